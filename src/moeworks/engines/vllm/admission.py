"""The door: a request's `moeworks` field is read, checked against the model and turned into what workers understand."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from functools import wraps
from typing import Any

from pydantic import ValidationError

from moeworks.artefact import ModelIdentity, problems_of
from moeworks.engines.vllm.books import book_of
from moeworks.engines.vllm.refusals import check_request
from moeworks.engines.vllm.spec import FIELD, Recording, Spec
from moeworks.errors import BadData, MoeworksError, Unsupported
from moeworks.serve.fields import MoeworksField, Record
from moeworks.serve.routes import estimate_bytes, recorded_layers

__all__ = ["SALT", "admit", "guarded", "read_field"]

SALT = True  # whether prefix caches are kept apart by plan; only a test that shows why turns it off
MAX_FIELD = 4 * 2**20  # characters of the field


def guarded(process: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `InputProcessor.process_inputs`: requests without our field pass through as they are."""

    @wraps(process)
    def process_inputs(self: Any, request_id: Any, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        given = (getattr(params, "extra_args", None) or {}).get(FIELD)
        if given is None:
            return process(self, request_id, prompt, params, *args, **kwargs)
        from vllm.exceptions import VLLMValidationError

        request = process(self, request_id, prompt, params, *args, **kwargs)  # its own checks, its own copy of params
        try:
            spec = admit(given, self.vllm_config, request, params)
        except MoeworksError as error:
            raise VLLMValidationError(str(error), parameter=FIELD) from None
        own = request.sampling_params
        own.extra_args = {**own.extra_args, FIELD: spec.dumps()}
        if spec.record is not None and spec.record.start < len(request.prompt_token_ids or ()):
            own.skip_reading_prefix_cache = True  # rows that come from the cache are not computed, so not seen
        if spec.digest and SALT:
            request.cache_salt = f"{request.cache_salt or ''}|moeworks:{spec.digest}"
        return request

    return process_inputs


def admit(given: Any, config: Any, request: Any, params: Any) -> Spec:
    """Return the checked spec of one request.

    Args:
        given: the field as it came.
        config: vLLM's configuration.
        request: vLLM's own request, made already.
        params: the sampling parameters.

    Raises:
        MoeworksError: what is wrong, in one sentence.
    """
    if request.sampling_params is None:
        raise Unsupported("plans and routes are for requests that generate, not for pooling.")
    if request.prompt_token_ids is None or request.mm_features:
        raise Unsupported("plans and routes are for prompts of text tokens.")
    if request.resumable:
        raise Unsupported("plans and routes are not for requests whose prompt is streamed in.")
    if isinstance(given, Spec):  # the offline engine's own, checked there; nothing that comes over HTTP is one
        return given
    book = book_of(config)
    prompt = len(request.prompt_token_ids)
    field, key, keep = read_field(given)
    checked = book.checked(field)
    check_request(checked.operations, prompt=prompt, given=prompt, length=int(config.model_config.max_model_len))
    record = None
    if field.record is not None:
        if int(params.n or 1) > 1:
            raise Unsupported("routes are recorded for one choice a request; ask for n=1.")
        new = int(request.sampling_params.max_tokens or 1)
        expected = estimate_bytes(field.record, book.identity, prompt=prompt, new=new)
        if expected > book.limits.record_bytes:
            raise BadData(
                f"record: the routes may take {expected} bytes, this server gives {book.limits.record_bytes}; ask for "
                "fewer layers or tokens, or leave out logits and weights."
            )
        record = recording(field.record, book.identity, prompt, key)
    if keep:  # everything, so that it can be downloaded later; the answer gets what was asked for
        record = Recording(key=key, logits=record is not None and record.logits)
    return Spec(operations=checked.operations, record=record)


def read_field(given: Any) -> tuple[MoeworksField, str, bool]:
    """Return the field, the key under which routes are to be kept, and whether all of them are, as our server asks.

    Raises:
        BadData: it is no JSON, too long, or its parts are wrong.
    """
    if isinstance(given, str):
        if len(given) > MAX_FIELD:
            raise BadData(f"{FIELD}: {len(given)} characters are too many, {MAX_FIELD} are possible.")
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise BadData(f"{FIELD}: the text is not JSON; send the field as a JSON object in a string.") from None
    if not isinstance(given, dict):
        raise BadData(f"{FIELD}: this is no object; send {{plan, strength, record}}.")
    given = dict(given)
    key = given.pop("key", None) or uuid.uuid4().hex
    if not isinstance(key, str) or len(key) > 64:
        raise BadData(f"{FIELD}.key: a key is a text of at most 64 characters.")
    keep = given.pop("keep", False) is True
    try:
        return MoeworksField.model_validate(given), key, keep
    except ValidationError as error:
        raise BadData(f"{FIELD}: {problems_of(error)[:2000]}.") from None


def recording(record: Record, identity: ModelIdentity, prompt: int, key: str) -> Recording:
    """Return what workers keep for a `record` field."""
    start = {"prompt": 0, "generated": prompt}.get(str(record.start))
    return Recording(
        key=key,
        layers=None if record.layers is None else recorded_layers(record, identity),
        start=int(record.start) if start is None else start,
        weights=record.weights,
        logits=record.logits,
    )
