"""Cut documents into texts of about equal length: parallel ones where all languages allow it, code before definitions.

Needs the standard library; microseconds a text. Run by `python -m recipes.lab.corpus OUT`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from recipes.lab.corpus.clean import looks_like

__all__ = ["LANGUAGES", "Document", "Unit", "aligned_chunks", "code_chunks", "in_all", "join", "joined", "split_lines"]

LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "ru", "zh", "ja", "ko", "ar", "hi")
SHORT = 40  # English characters of a heading that may join what follows
LEAST = 25  # English characters of a text
DENSE = ("zh", "ja", "ko")

Unit = Mapping[str, str]  # language: text


@dataclass(frozen=True)
class Document:
    """A text in several languages, as units that say the same in each."""

    name: str
    domain: str
    units: Sequence[Unit]
    sources: Mapping[str, str]
    licences: Mapping[str, str]
    chunk: int = 350  # English characters that a chunk aims at
    separator: str = "\n"
    distinct: bool = True  # drop units whose English was seen before


def in_all(value: str) -> dict[str, str]:
    """Return the same value for all languages."""
    return dict.fromkeys(LANGUAGES, value)


def aligned_chunks(units: Iterable[Unit], size: int) -> Iterator[tuple[list[Unit], frozenset[str]]]:
    """Yield runs of units of at least `size` English characters, and the languages that have all of a run.

    A run ends early where the languages change, so that a language that lacks one unit does not lose its neighbours.
    """
    run: list[Unit] = []
    shared: frozenset[str] = frozenset()
    length = 0
    for unit in units:
        neutral = not _has_words(unit["en"])
        languages = _languages(unit)
        if not run:
            shared = languages
        elif neutral:
            shared &= languages
        elif languages != shared:
            if length < SHORT and languages <= shared:
                shared = languages
            else:
                yield run, shared
                run, shared, length = [], languages, 0
        run.append(unit)
        length += len(unit["en"])
        if length >= size:
            yield run, shared
            run, length = [], 0
    if run:
        yield run, shared


def joined(run: Sequence[Unit], languages: frozenset[str], separator: str) -> dict[str, str]:
    """Return the text of a run by language, English first; translations of an unlikely length are left out."""
    if sum(len(unit["en"]) for unit in run) < LEAST:
        return {}
    english = separator.join(unit["en"] for unit in run)
    texts = {"en": english}
    for lang in LANGUAGES[1:]:
        if lang in languages:
            text = separator.join(unit[lang] for unit in run)
            low, high = (0.12, 1.3) if lang in DENSE else (0.4, 2.6)
            if low <= len(text) / len(english) <= high or len(english) < 30:
                texts[lang] = text
    return texts


def split_lines(text: str, size: int) -> list[str]:
    """Cut a text at line ends into parts of about `size` characters."""
    parts, part = [], ""
    for line in text.split("\n"):
        if part and len(part) + len(line) > size:
            parts.append(part)
            part = ""
        part += ("\n" if part else "") + line
    return [*parts, part] if part else parts


def join(paragraphs: Iterable[str], size: int) -> list[str]:
    """Join paragraphs to texts of about `size` characters."""
    texts: list[str] = []
    run: list[str] = []
    length = 0
    for paragraph in paragraphs:
        if run and length + len(paragraph) > size:
            texts.append("\n\n".join(run))
            run, length = [], 0
        run.append(paragraph)
        length += len(paragraph)
    return [*texts, "\n\n".join(run)] if run else texts


def code_chunks(text: str, size: int, boundary: re.Pattern[str]) -> list[str]:
    """Cut code before the first line that matches the boundary once a part has more than `size` characters."""
    parts: list[str] = []
    run: list[str] = []
    length = 0
    for line in text.split("\n"):
        if run and length > size and boundary.match(line):
            parts.append("\n".join(run).strip("\n"))
            run, length = [], 0
        run.append(line)
        length += len(line) + 1
    return [*parts, "\n".join(run).strip("\n")]


def _has_words(text: str) -> bool:
    return re.search(r"[A-Za-z]{4}", text) is not None


def _languages(unit: Unit) -> frozenset[str]:
    """Return the languages that truly have a unit; numbers and names need no translation."""
    english = unit["en"]
    neutral = not _has_words(english)
    return frozenset(
        lang
        for lang in LANGUAGES[1:]
        if (text := unit.get(lang)) and (neutral or (text.casefold() != english.casefold() and looks_like(lang, text)))
    )
