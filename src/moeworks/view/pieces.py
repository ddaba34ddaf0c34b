"""Cuts the text of token ids into one piece a token, whose concatenation is the text that the tokenizer decodes."""

from __future__ import annotations

import codecs
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    from moeworks.view.decoding import Decoder

__all__ = ["Pieces", "text_pieces"]

Array = NDArray[Any]
_REPLACEMENT = np.frombuffer("\ufffd".encode(), np.uint8)
_CONTEXT = 8  # tokens before an anchor that are decoded with those after it
_STRETCH = 32  # tokens after an anchor before it moves on


class Pieces(NamedTuple):
    """The text of n tokens: a character made of several tokens belongs to the last of them, the others are `part`."""

    text: Any  # (n,) Arrow strings
    part: Array  # (n,) whether a token has no text of its own because it is a part of a later one's

    @property
    def nbytes(self) -> int:
        """Bytes that the pieces take."""
        return int(self.text.nbytes + self.part.nbytes)


def text_pieces(decoder: Decoder, token: Array, starts: Array) -> Pieces:
    """Return the piece of text of each token.

    Args:
        decoder: of the tokenizer; without a reason.
        token: (n,) ids, requests one after another.
        starts: (r,) row of each request's first token, ascending from 0.

    Returns:
        The pieces; those of a request joined are `decoder.decode` of its ids.
    """
    if not len(token):
        return Pieces(pa.array([], pa.string()), np.zeros(0, bool))
    stops = np.append(starts[1:], len(token))
    if decoder.bytes_of is None:
        return _listed([piece for s, e in zip(starts, stops, strict=True) for piece in _slow(decoder, token[s:e])])
    data, ends, raw = _fast(decoder, token, starts)
    whole = data.tobytes()
    wrong = [
        (int(s), int(e))
        for s, e in zip(starts, stops, strict=True)
        if whole[ends[s] : ends[e]].decode() != decoder.decode(token[s:e].tolist())
    ]
    text = pa.StringArray.from_buffers(len(token), pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(whole))
    if wrong:  # a rule that the tokens' bytes do not tell
        pieces = text.to_pylist()
        for s, e in wrong:
            pieces[s:e] = _slow(decoder, token[s:e])
        text = pa.array(pieces, pa.string())
    empty = np.diff(np.frombuffer(text.buffers()[1], np.int32)[: len(token) + 1]) == 0
    return Pieces(text, empty & (raw > 0))


def _fast(decoder: Decoder, token: Array, starts: Array) -> tuple[Array, Array, Array]:
    """Return UTF-8 bytes, (b,), where each token's text ends, (n + 1,), and how many bytes tokens stand for, (n,)."""
    unique, inverse = np.unique(token, return_inverse=True)
    words = [decoder.bytes_at(int(one)) for one in unique]
    length = np.array([len(word) for word in words], np.int64)
    pool, first = np.frombuffer(b"".join(words), np.uint8), np.cumsum(length) - length
    raw = length[inverse]  # (n,)
    ends = np.append(0, np.cumsum(raw))  # (n + 1,)
    data = pool[np.repeat(first[inverse] - ends[:-1], raw) + np.arange(ends[-1])]
    if decoder.strips:
        at = ends[starts]
        inside = raw[starts] > 0
        gone = at[inside][data[at[inside]] == 0x20]
        data, ends = np.delete(data, gone), ends - np.searchsorted(gone, ends, side="left")
    edges = ends[np.append(starts, len(token))]
    data, ends = _repaired(data, ends, edges)
    at_character = np.append((data & 0xC0) != 0x80, True)  # positions at which a character begins, and the end
    began = np.maximum.accumulate(np.where(at_character, np.arange(len(data) + 1), 0))
    return data, began[ends], raw


def _repaired(data: Array, ends: Array, edges: Array) -> tuple[Array, Array]:
    """Return bytes and ends with U+FFFD in place of bytes that are no UTF-8, as lossy decoding puts it.

    Args:
        data: (b,) bytes.
        ends: (n + 1,) where tokens end in them.
        edges: (r + 1,) where requests begin, and the end: no character reaches over one.
    """
    whole = data.tobytes()
    inside = edges[(edges > 0) & (edges < len(data))]
    if not ((data[inside] & 0xC0) == 0x80).any():
        try:
            whole.decode()
            return data, ends
        except UnicodeDecodeError:
            pass
    broken: list[tuple[int, int]] = []
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        _places.found = []
        whole[start:stop].decode(errors=_NOTE)
        broken += [(start + a, start + b) for a, b in _places.found]
    if not broken:
        return data, ends
    first, last = np.array(broken).T
    size = np.full(len(data), 1)
    cut = np.zeros(len(data) + 1, np.int64)
    np.add.at(cut, first, 1)
    np.add.at(cut, last, -1)  # one range may begin where another ends
    size[np.cumsum(cut[:-1]) > 0] = 0
    size[last - 1] = len(_REPLACEMENT)  # the character belongs to the token with its last byte
    place = np.append(0, np.cumsum(size))  # (b + 1,)
    result = np.repeat(data, size)
    result[place[last - 1][:, None] + np.arange(len(_REPLACEMENT))] = _REPLACEMENT
    return result, place[ends]


_NOTE = "moeworks.view.note"
_places = threading.local()


def _note(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    _places.found.append((error.start, error.end))
    return "\ufffd", error.end


codecs.register_error(_NOTE, _note)


def _slow(decoder: Decoder, token: Array) -> list[str]:
    """Return the pieces of one request by decoding ever longer stretches; the last token gets what is left over.

    For tokenizers whose tokens do not stand for bytes: a token's piece is how much further the text then agrees with
    that of all tokens.
    """
    ids = token.tolist()
    whole = decoder.decode(ids)
    pieces: list[str] = []
    done = anchor = told = 0  # characters handed out, first token after the anchor, characters before it
    for place in range(len(ids)):
        begin = max(0, anchor - _CONTEXT)
        before = decoder.decode(ids[begin:anchor]) if anchor else ""
        after = decoder.decode(ids[begin : place + 1])
        new = after[_common(before, after) :]
        agree = _common(new, whole[told : told + len(new)])
        stop = len(whole) if place == len(ids) - 1 else max(done, told + agree)
        pieces.append(whole[done:stop])
        done = stop
        if agree == len(new) and place - anchor >= _STRETCH:
            anchor, told = place + 1, done
    return pieces


def _common(first: str, second: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    if second.startswith(first):
        return len(first)
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _listed(pieces: list[str]) -> Pieces:
    return Pieces(pa.array(pieces, pa.string()), np.array([not piece for piece in pieces]))
