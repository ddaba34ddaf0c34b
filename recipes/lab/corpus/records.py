"""Collect the records of all sources, each text once in a language, and hold out 2 % of every source.

Needs the standard library; half a gigabyte of memory for the whole corpus. Run by `python -m recipes.lab.corpus OUT`.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from recipes.lab.corpus.chunks import Document, Unit, aligned_chunks, joined
from recipes.lab.corpus.clean import fingerprint, looks_like

__all__ = ["Collector", "Record", "held_out"]

ONE_IN = 50  # of a source is held out
MANY = 8  # languages of a group that evaluation wants


@dataclass(frozen=True)
class Record:
    """One text. `group` is shared by all languages of a parallel text, `together` is held out or kept as a whole."""

    text: str
    lang: str
    domain: str
    source: str
    licence: str
    doc: str
    seq: int
    group: str | None = None
    n_langs: int = 0
    together: str | None = None

    def public(self) -> dict[str, str | int]:
        """Return what the corpus says of a text."""
        values = asdict(self)
        del values["together"]
        if self.group is None:
            del values["group"], values["n_langs"]
        return values


class Collector:
    """The records so far, in order; a text that a language has already is dropped."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.dropped: Counter[str] = Counter()
        self.texts: defaultdict[str, set[bytes]] = defaultdict(set)  # by language
        self.units: set[bytes] = set()  # in English

    def add(self, record: Record) -> bool:
        """Add a record and say whether its text was new."""
        key = fingerprint(record.text)
        if key in self.texts[record.lang]:
            self.dropped[f"dup {record.source.split('==')[0]}"] += 1
            return False
        self.texts[record.lang].add(key)
        self.records.append(record)
        return True

    def add_document(self, document: Document) -> None:
        """Add a parallel document in chunks; a chunk whose English was there before is dropped in all languages."""
        place = 0
        for run, languages in aligned_chunks(self._fresh(document), document.chunk):
            texts = joined(run, languages, document.separator)
            group = f"{document.name}#{place}" if len(texts) > 1 else None
            records = [
                Record(
                    text=text,
                    lang=lang,
                    domain=document.domain,
                    source=document.sources[lang],
                    licence=document.licences[lang],
                    doc=document.name,
                    seq=place,
                    group=group,
                    n_langs=len(texts) if group else 0,
                )
                for lang, text in texts.items()
            ]
            if records and self.add(records[0]):
                for record in records[1:]:
                    self.add(record)
                place += 1

    def _fresh(self, document: Document) -> Iterator[Unit]:
        """Yield the units that are English and, if they must be distinct, were not in an earlier document."""
        for unit in document.units:
            english = unit.get("en", "")
            if len(english) < 2 or not looks_like("en", english):
                continue
            if document.distinct and len(english) > 20:
                key = fingerprint(english)
                if key in self.units:
                    continue
                self.units.add(key)
            yield unit


def held_out(records: Sequence[Record]) -> list[bool]:
    """Say of each record whether it is held out: 2 % of the groups, and of the bytes of other documents, by hash.

    Whole groups or documents are, so that no text is on both sides. Groups with many languages are a stratum of their
    own, so that evaluation gets its share of them. A stratum of fewer than five is not split.
    """
    sizes: dict[tuple[str, str, str, str], Counter[str]] = defaultdict(Counter)
    for record in records:
        size = sizes[_stratum(record)]
        unit = _unit(record)
        size[unit] = 1 if record.group else size[unit] + len(record.text.encode())
    held = {(stratum, unit) for stratum, size in sizes.items() for unit in _drawn(size, grouped=bool(stratum[3]))}
    return [(_stratum(record), _unit(record)) in held for record in records]


def _drawn(sizes: Counter[str], *, grouped: bool) -> Iterator[str]:
    """Yield units in the order of their hashes until they make up their share; one document may not be most of it."""
    if len(sizes) < 5:
        return
    wanted = max(1.0, sizes.total() / ONE_IN)
    drawn = 0
    for unit in sorted(sizes, key=lambda unit: hashlib.md5(unit.encode()).digest()):
        if drawn >= wanted:
            return
        if grouped or sizes[unit] <= 2 * wanted or len(sizes) <= 20:
            drawn += sizes[unit]
            yield unit


def _stratum(record: Record) -> tuple[str, str, str, str]:
    origin = record.doc.split("/")[0]
    if record.group is None:
        return record.domain, origin, record.lang, ""
    return record.domain, origin, "", "many" if record.n_langs >= MANY else "few"


def _unit(record: Record) -> str:
    return record.together or record.group or record.doc
