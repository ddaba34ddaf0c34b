"""Pairs of prompts for patching: one file of JSON lines, checked before any model runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.lines import Problems, json_rows, open_bytes

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.engines.transformers.tokens import Prepared

__all__ = ["Pair", "Ready", "prepare", "read_pairs"]


class Pair(BaseModel):
    """Two prompts that differ in what is asked about, and the two tokens that tell which of them was answered."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clean: str = Field(min_length=1, description="the prompt that `correct` answers")
    corrupt: str = Field(
        min_length=1, description="as many tokens, aligned by position, without what leads to the answer"
    )
    correct: str = Field(min_length=1, description="one token, leading space included")
    distractor: str = Field(min_length=1, description="one token: what is said after the corrupt prompt")
    task: str = Field("", description="kind of task, for the double dissociation")
    document: str = Field("", description="pairs of one document are resampled together; empty: one of its own")


class Ready(NamedTuple):
    """A pair as tokens."""

    clean: Prepared
    corrupt: Prepared
    correct: int  # token id
    distractor: int


def read_pairs(path: str | Path) -> list[Pair]:
    """Read pairs from JSON lines, plain or gzip.

    Raises:
        BadData: with every line that is not a pair.
    """
    problems, pairs = Problems(str(path)), list[Pair]()
    with open_bytes(path) as stream:
        for number, row in json_rows(stream, problems):
            try:
                pairs.append(Pair.model_validate(row))
            except ValidationError as error:
                problems.add(f"line {number}", error)
    problems.raise_if_any()
    if not pairs:
        raise BadData(f"{path} holds no pair; each line is an object with clean, corrupt, correct and distractor.")
    return pairs


def prepare(engine: TransformersEngine, pairs: Sequence[Pair]) -> list[Ready]:
    """Return the pairs as tokens.

    Raises:
        BadData: the first pair whose prompts differ in length, or whose answers are not one token each.
    """
    sides = [
        list(engine.reader.read((Example(text=getattr(pair, side)) for pair in pairs), long="error"))
        for side in ("clean", "corrupt")
    ]
    ready = []
    for number, (pair, clean, corrupt) in enumerate(zip(pairs, *sides, strict=True), 1):
        lengths = len(clean.tokens), len(corrupt.tokens)
        if lengths[0] != lengths[1]:
            raise BadData(
                f"pair {number}: the clean prompt has {lengths[0]} tokens, the corrupt one {lengths[1]}; patching "
                "aligns them by position, so that they must be equally long."
            )
        if clean.tokens == corrupt.tokens:
            raise BadData(f"pair {number}: both prompts are the same; there is nothing to patch.")
        answers = []
        for name in ("correct", "distractor"):
            tokens = engine.tokens(getattr(pair, name))
            if len(tokens) != 1:
                raise BadData(
                    f"pair {number}: {name} {getattr(pair, name)!r} is {len(tokens)} tokens; the two logits that are "
                    "compared need one token each."
                )
            answers.append(tokens[0])
        if answers[0] == answers[1]:
            raise BadData(f"pair {number}: correct and distractor are the same token.")
        ready.append(Ready(clean, corrupt, *answers))
    return ready
