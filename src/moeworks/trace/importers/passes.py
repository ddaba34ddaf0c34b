"""Joins the forward passes of a server, which name no request, to texts, and only where that is certain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData

__all__ = ["Joined", "join_passes"]

Array = NDArray[Any]
EXTEND, DECODE, MIXED, IDLE = 1, 2, 3, 4  # ForwardMode of SGLang


class Joined(NamedTuple):
    """Rows of all passes in the order of the dump, n rows of t texts."""

    text: Array  # (n,) number of the text
    position: Array  # (n,)
    token: Array  # (n,)
    generated: Array  # (n,) bool
    linked: Array  # (t,) bool: whether it is certain what the text's rows belong to
    unlinked: int  # rows for which it is not


class _Open:
    """The texts that the next decode pass may go on, in the order of the batch."""

    def __init__(self) -> None:
        self.text, self.following = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.linked: list[bool] = []

    def new(self, linked: Array) -> Array:
        """Return numbers of new texts, one for each element."""
        first = len(self.linked)
        self.linked += linked.tolist()
        return first + np.arange(len(linked))

    def go_on(self, position: Array) -> tuple[Array, Array]:
        """Return the text of each decoded token, (b,), and which are certain; see `import_recorder`."""
        order, mine = np.argsort(position, kind="stable"), np.argsort(self.following, kind="stable")
        sought, held = position[order], self.following[mine]
        first, last = np.searchsorted(held, sought, "left"), np.searchsorted(held, sought, "right")
        rank = np.arange(len(sought)) - np.searchsorted(sought, sought, "left")
        count = np.searchsorted(sought, sought, "right") - np.searchsorted(sought, sought, "left")
        joins = (last - first == count) & (count > 0)
        certain = joins | (last == first)  # nobody waits for this position: a text from before the recording
        text = np.full(len(position), -1)
        text[order[joins]] = self.text[mine[(first + rank)[joins]]]
        sure = np.zeros(len(position), bool)
        sure[order] = certain
        text[text < 0] = self.new(sure[text < 0])
        return text, sure


def join_passes(records: Sequence[Mapping[str, Any]], source: str) -> Joined:
    """Return the rows of all passes as texts.

    Raises:
        BadData: a pass lacks fields, counts its tokens in two ways, or is of another kind than prefill and decode.
    """
    waiting = _Open()
    texts, positions, tokens, generated = [], [], [], []
    unlinked = 0
    for number, record in enumerate(records):
        where = f"{source}, pass {number}"
        mode = record.get("forward_mode")
        token, position = (_numbers(record.get(name), f"{where}: {name}") for name in ("input_ids", "positions"))
        count = record["topk_ids_of_layer"].shape[1]
        if len(token) != len(position) or len(token) != count:
            raise BadData(f"{where}: {len(token)} tokens, {len(position)} positions and experts of {count}.")
        if mode == IDLE or (mode in (EXTEND, DECODE, MIXED) and not count):
            continue
        if mode == DECODE:
            text, sure = waiting.go_on(position)
            made = np.ones(count, bool)
            waiting.text, waiting.following = text[sure], position[sure] + 1
            unlinked += int((~sure).sum())
        elif mode in (EXTEND, MIXED):
            text, made, lost = _prefill(record, position, waiting, where, mixed=mode == MIXED)
            unlinked += lost
        else:
            raise BadData(
                f"{where} is of forward mode {mode}; 1 to 4 (extend, decode, mixed, idle) are read. Speculative "
                "decoding records drafts: switch it off to record."
            )
        texts.append(text)
        positions.append(position)
        tokens.append(token)
        generated.append(made)
    if not texts:
        raise BadData(f"{source} holds no token.")
    text = np.concatenate(texts)
    return Joined(
        text,
        np.concatenate(positions),
        np.concatenate(tokens),
        np.concatenate(generated),
        np.array(waiting.linked),
        unlinked,
    )


def _prefill(
    record: Mapping[str, Any], position: Array, waiting: _Open, where: str, *, mixed: bool
) -> tuple[Array, Array, int]:
    """Return text, whether it was generated, and rows of no certain text, of a pass with prompts."""
    lengths = _numbers(record.get("extend_seq_lens"), f"{where}: extend_seq_lens")
    if lengths.sum() != len(position) or (lengths < 1).any():
        raise BadData(f"{where}: sequences of {lengths.tolist()} tokens do not make {len(position)}.")
    start = np.cumsum(lengths) - lengths  # (s,)
    inner = np.arange(len(position)) - np.repeat(start, lengths)
    if (position - np.repeat(position[start], lengths) != inner).any():
        raise BadData(f"{where}: positions of a sequence do not follow one another.")
    last = np.flatnonzero(lengths > 1)
    decodes = np.zeros(len(lengths), bool)
    if mixed:  # running texts stand after the prompts, a token each
        decodes[(last[-1] + 1 if len(last) else 0) :] = True
        decodes &= position[start] > 0
    of_sequence = np.full(len(lengths), -1)
    of_sequence[~decodes] = waiting.new(np.ones(int((~decodes).sum()), bool))
    sure = np.ones(len(lengths), bool)
    if decodes.any():
        of_sequence[decodes], sure[decodes] = waiting.go_on(position[start[decodes]])
    following = position[start] + lengths
    before = (waiting.text, waiting.following) if not mixed else (np.zeros(0, np.int64), np.zeros(0, np.int64))
    waiting.text = np.concatenate([before[0], of_sequence[sure]])
    waiting.following = np.concatenate([before[1], following[sure]])
    return np.repeat(of_sequence, lengths), np.repeat(decodes, lengths), int((~sure).sum())


def _numbers(value: Any, what: str) -> Array:
    if not isinstance(value, list) or not all(type(one) is int and 0 <= one < 2**31 for one in value):
        raise BadData(f"{what} is no list of numbers from 0 on.")
    return np.array(value, np.int64)
