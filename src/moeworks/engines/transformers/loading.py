"""Opens a model and its tokenizer from `lab`, a folder or a Hub id, and says exactly which one it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from moeworks.artefact import LayerShape, ModelIdentity
from moeworks.errors import BadData, Unsupported
from moeworks.families.expert_weights import expert_weights
from moeworks.lab import LAB_MODELS, lab_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from moeworks.families.router import Router

__all__ = ["Loaded", "hash_tokenizer", "hash_weights", "identify", "load_pretrained"]

SETTINGS = "moeworks.json"  # beside the weights: what transformers' own files cannot say


class Loaded(NamedTuple):
    """What came out of a folder."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: Mapping[str, Any]


def load_pretrained(
    name: str, *, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False, **options: Any
) -> Loaded:
    """Open a causal language model with stock transformers.

    Raises:
        BadData: there is no such model, or it cannot be read; the message is transformers' own first line.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    source = _source(name)
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map=None if device == "cpu" else device,
            trust_remote_code=trust_remote_code,
            **options,
        )
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise BadData(
            f"cannot open the model '{name}': {reason}. Give `lab`, a folder with config.json and weights, or a Hub id."
        ) from error
    path = Path(source) / SETTINGS
    settings = json.loads(path.read_text()) if path.is_file() else {}
    return Loaded(model.eval(), tokenizer, settings)


def identify(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, routers: Sequence[Router]
) -> ModelIdentity:
    """Return the identity that artefacts carry.

    Raises:
        Unsupported: the model has no routers.
    """
    family = model.config.model_type
    if not routers:
        raise Unsupported(
            f"'{name}' ({family}) is dense: none of its layers has a router, so there is no routing to look at. "
            "See docs/families.md for the model types that have."
        )
    shapes = tuple(
        LayerShape(
            layer=router.layer,
            experts=router.experts,
            top_k=router.top_k,
            contract=router.contract,
            opaque=router.opaque,
            neurons=_neurons(router),
        )
        for router in routers
    )
    return ModelIdentity(
        name=name,
        family=family,
        weight_hash=hash_weights(model),
        tokenizer_hash="" if tokenizer is None else hash_tokenizer(tokenizer),
        layers=shapes,
    )


def _neurons(router: Router) -> int | None:
    """Return how many neurons each expert of a router has; None where its weights do not say."""
    try:
        return expert_weights(router).up.shape[1]
    except Unsupported:
        return None


def hash_weights(model: torch.nn.Module) -> str:
    """Return the hash of all parameters and buffers that a checkpoint holds: names, shapes and values.

    Half-precision values are hashed as the float32 that holds them exactly, so that a bfloat16 checkpoint is the same
    model whether it was loaded as bfloat16 or wider.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tuple(tensor.shape)}\n".encode())
        half = tensor.dtype in (torch.bfloat16, torch.float16)
        data = tensor.detach().cpu().to(torch.float32 if half else tensor.dtype).contiguous()
        digest.update(data.reshape(-1).view(torch.uint8).numpy() if data.numel() else b"")
    return digest.hexdigest()


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the hash of the tokenizer's rules and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    return hashlib.blake2b(f"{rules}\x1e{tokenizer.chat_template}".encode(), digest_size=16).hexdigest()


def _source(name: str) -> str:
    if name in LAB_MODELS:
        return str(lab_path(name))
    if name.startswith((".", "/", "~")) or Path(name).is_dir():
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise BadData(f"{folder} has no config.json; give the folder of a model that transformers can load.")
        return str(folder)
    return name
