"""What a request may hold, as data: the `moeworks` field, and the fields of chat and completions that are understood.

No torch and no web framework here: any server that takes plans per request reads the same fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeworks.artefact import problems_of
from moeworks.errors import BadData

__all__ = ["ChatFields", "CompletionFields", "GenerationOptions", "MoeworksField", "Record", "Sampling", "read_fields"]

STOPS, STOP_LENGTH = 16, 256
Stop = Annotated[str, Field(min_length=1, max_length=STOP_LENGTH)]
Fields = TypeVar("Fields", bound=BaseModel)
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Record(_Strict):
    """Which routes of this request the answer is to hold."""

    layers: tuple[int, ...] | None = Field(None, min_length=1, max_length=4096, description="none: all layers")
    start: Literal["prompt", "generated"] | Annotated[int, Field(ge=0)] = Field(
        "prompt", alias="from", description="all tokens, those that were generated, or those from a position on"
    )
    weights: bool = Field(False, description="the combine weights too")
    logits: bool = Field(False, description="the raw logits too")


class MoeworksField(_Strict):
    """The request field `moeworks`."""

    plan: Annotated[str, Field(max_length=200)] | dict[str, Any] | None = Field(
        None, description="name of a plan of this server, or a whole plan"
    )
    strength: float = Field(1.0, ge=0, le=2, description="of the plan's `add` and `scale` operations")
    record: Record | None = None


class StreamOptions(BaseModel):
    """OpenAI's `stream_options`; others than `include_usage` are left alone."""

    model_config = ConfigDict(frozen=True)

    include_usage: bool = False


TokenId = Annotated[int, Field(ge=0)]


class GenerationOptions(_Strict):
    """Options of `generate` that the field `generation_config` may set; none changes what a pass of the model is."""

    do_sample: bool | None = None
    temperature: float | None = Field(None, gt=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    epsilon_cutoff: float | None = Field(None, gt=0, lt=1)
    eta_cutoff: float | None = Field(None, gt=0, lt=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    no_repeat_ngram_size: int | None = Field(None, ge=1, le=1024)
    max_new_tokens: int | None = Field(None, ge=1)
    min_new_tokens: int | None = Field(None, ge=1)
    eos_token_id: TokenId | Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=64)] | None = None

    @classmethod
    def read(cls, text: str | None) -> dict[str, Any]:
        """Return what was set, by name.

        Raises:
            BadData: it is no JSON object of these.
        """
        if text is None:
            return {}
        try:
            given = cls.model_validate_json(text).model_dump(exclude_none=True)
        except ValidationError as error:
            raise BadData(f"generation_config: {problems_of(error)[:1000]}.") from None
        ends = given.get("eos_token_id")
        return {**given, "eos_token_id": list(ends)} if isinstance(ends, tuple) else given


class Sampling(BaseModel):
    """Fields that chat and completions share; further ones are left to the base's own check of names."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    model: Annotated[str, Field(max_length=500)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Seed | None = None
    stop: Stop | Annotated[tuple[Stop, ...], Field(max_length=STOPS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(gt=-1, le=2)] | None = Field(
        None, description="becomes the repetition penalty 1 + value"
    )
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=1024),
        ]
        | None
    ) = None
    generation_config: str | None = Field(None, description="options of transformers' generate, as a JSON object")
    moeworks: MoeworksField = MoeworksField()

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end generation."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else self.stop

    @property
    def choices(self) -> int:
        """How many continuations a prompt gets."""
        return self.n or 1


class ChatFields(Sampling):
    """Fields of `/v1/chat/completions`."""

    messages: tuple[dict[str, Any], ...] = Field(min_length=1, max_length=4096)
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: tuple[dict[str, Any], ...] | None = Field(None, max_length=256)
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def top(self) -> int | None:
        """How many alternatives are shown beside each token's log-probability; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


TokenIds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class CompletionFields(Sampling):
    """Fields of `/v1/completions`."""

    prompt: (
        str
        | TokenIds
        | Annotated[tuple[str, ...], Field(min_length=1)]
        | Annotated[tuple[TokenIds, ...], Field(min_length=1)]
    ) = ""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None

    @property
    def top(self) -> int | None:
        """How many alternatives are shown beside each token's log-probability; None: no log-probabilities."""
        return self.logprobs

    @property
    def prompts(self) -> tuple[str | tuple[int, ...], ...]:
        """Return one entry a prompt: a text or token ids."""
        given: Any = self.prompt
        if isinstance(given, str):
            return (given,)
        return (given,) if given and isinstance(given[0], int) else tuple(given)


def read_fields(kind: type[Fields], body: dict[str, Any]) -> Fields:
    """Return a request's fields.

    Raises:
        BadData: naming every field that is wrong.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise BadData(f"{problems_of(error)[:2000]}.") from None
