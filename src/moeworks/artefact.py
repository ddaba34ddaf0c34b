"""What every file we write carries: a header that says which model, which program and which text it came from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from moeworks.contract import Contract
from moeworks.errors import BadData, MoeworksError

__all__ = [
    "EngineIdentity",
    "Header",
    "LayerShape",
    "ModelIdentity",
    "hash_texts",
    "problems_of",
    "replace_file",
]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerShape(_Frozen):
    """One router: where it sits, how many experts it has, and the rule by which it decides."""

    layer: int = Field(description="global layer number, dense layers counted")
    experts: int = Field(description="number of routed experts")
    top_k: int = Field(description="experts chosen for each token")
    contract: Contract | None = Field(None, description="the rule, if it was proved at load time")
    opaque: str = Field("", description="why there is no proved contract; empty where there is one")
    neurons: int | None = Field(None, description="neurons of each expert, if that is known")


class ModelIdentity(_Frozen):
    """Which model: enough to refuse a file that was made for another one."""

    name: str = Field(description="what the user typed: `lab`, a folder or a Hub id")
    family: str = Field(description="the model type of transformers, such as qwen3_moe")
    weight_hash: str = Field(description="hash of all weights, in the order of their names")
    tokenizer_hash: str = Field(description="hash of the tokenizer's own serialisation")
    layers: tuple[LayerShape, ...] = Field(description="the routers, in layer order")

    @property
    def shape(self) -> tuple[tuple[int, int, int], ...]:
        """(layer, experts, top_k) of each router: what a plan must fit."""
        return tuple((layer.layer, layer.experts, layer.top_k) for layer in self.layers)

    @property
    def experts(self) -> int:
        """Number of routed experts in the whole model."""
        return sum(layer.experts for layer in self.layers)

    def layer(self, number: int) -> LayerShape:
        """Return the router of global layer `number`."""
        for layer in self.layers:
            if layer.layer == number:
                return layer
        known = ", ".join(str(layer.layer) for layer in self.layers)
        raise BadData(f"layer {number} of {self.name} has no router; layers with routers: {known}.")


class EngineIdentity(_Frozen):
    """Which program ran the model."""

    name: Literal["transformers", "vllm", "fake"] | str
    version: str
    dtype: str = Field(description="the dtype that the model ran in")
    device: str = "cpu"


class Header(_Frozen):
    """The part that all artefacts share."""

    format: str = Field(description="moeworks.trace, moeworks.scores, moeworks.plan or moeworks.study")
    version: int = Field(1, description="version of that format's schema")
    moeworks: str = Field(description="version of moeworks that wrote it")
    model: ModelIdentity | None = None
    engine: EngineIdentity | None = None
    command: str = Field("", description="how it was made, as typed")
    seed: int | None = None
    text_hash: str = Field("", description="hash of the texts it was made from")


def hash_texts(texts: Iterable[str]) -> str:
    """Return the hash of a sequence of texts; lengths are hashed too, so that joins and splits differ."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes its place, on failure it is removed.

    The file is flushed to disk before it is renamed, so that `path` is either the old file or the whole new one.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(target)
    except OSError as error:
        raise MoeworksError(f"cannot write {target}: {error.strerror}; nothing was left behind.") from error
    finally:
        temporary.unlink(missing_ok=True)


def problems_of(error: ValidationError) -> str:
    """Return all problems of a document in one sentence each, joined by semicolons."""
    places = [(".".join(map(str, problem["loc"])), problem["msg"]) for problem in error.errors()]
    return "; ".join(f"{place}: {message}" if place else message for place, message in places)


def json_schema(model: Any) -> dict[str, Any]:
    """Return the JSON schema of a pydantic model or type, as the docs page shows it."""
    return TypeAdapter(model).json_schema()
