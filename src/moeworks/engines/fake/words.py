"""The fake model's language: sentences of invented words, a small vocabulary for each topic."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LONG", "MARKS", "TOPICS", "topic_letters", "write_sentences"]

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
TOPICS = 6
LONG = 64  # characters from which a text counts as long
MARKS = {" ": "_", ".": "!"}  # other spaces and stops, which mean the same


def write_sentences(topic: int, generator: np.random.Generator, *, sentences: tuple[int, int] = (3, 6)) -> list[str]:
    """Return sentences of three to six words, in small letters; a topic has 12 words of its own.

    Args:
        topic: its number.
        generator: what the words are drawn from.
        sentences: how many, at least, and one more than at most.
    """
    vocabulary = _vocabulary(topic)
    lengths = generator.integers(3, 7, size=generator.integers(*sentences))
    return [" ".join(generator.choice(vocabulary, size=length)) + "." for length in lengths]


def topic_letters(topic: int) -> NDArray[np.float64]:
    """Return how often each letter occurs in a topic's words, as shares, (26,)."""
    letters = np.frombuffer("".join(_vocabulary(topic)).encode(), np.uint8) - ord("a")
    return np.asarray(np.bincount(letters, minlength=26) / len(letters))


def _vocabulary(topic: int) -> list[str]:
    spelling = np.random.default_rng([7919, topic])
    return ["".join(spelling.choice(LETTERS, size=spelling.integers(2, 7))) for _ in range(12)]
