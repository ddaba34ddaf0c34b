"""Read the messages of a compiled gettext file, which pairs English with one translation.

Needs the standard library, as gettext looks messages up but does not list them, and babel refuses files with an unusual
date in their header; a second for 300,000 messages. Run by `python -m recipes.lab.corpus OUT`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Translation", "translations"]

LITTLE_ENDIAN = 0x950412DE


@dataclass(frozen=True)
class Translation:
    """One message: `key` is what programs look up, the English behind its context."""

    key: str
    english: str
    text: str


def translations(content: bytes) -> Iterator[Translation]:
    """Yield the messages of a file; those with plural forms, the header and empty ones are left out."""
    order = "<" if struct.unpack_from("<I", content)[0] == LITTLE_ENDIAN else ">"
    pair = struct.Struct(f"{order}2I")  # length, start
    count, keys, texts = struct.unpack_from(f"{order}3I", content, 8)
    for place in range(count):
        key, text = (_text(content, *pair.unpack_from(content, table + 8 * place)) for table in (keys, texts))
        if key and text and "\0" not in key:
            yield Translation(key, key.rpartition("\x04")[2], text)


def _text(content: bytes, length: int, start: int) -> str:
    return content[start : start + length].decode("utf-8", "replace")
