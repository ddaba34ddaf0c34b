"""Cut pages of markup into blocks of text, and pair the blocks of a page in one language with those in another.

Needs the standard library, whose parser is as lenient with the HTML of a manual as with Mallard, which is XML;
milliseconds a page. Run by `python -m recipes.lab.corpus OUT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise

from recipes.lab.corpus.clean import clean

__all__ = ["Block", "Markup", "aligned_blocks", "blocks", "sections"]

HTML = """html body div p ul ol li dl dt dd table thead tbody tr td th h1 h2 h3 h4 h5 h6 pre blockquote section article
header br hr"""
MALLARD = """page title item steps list note terms desc info code screen example media figure synopsis links comment
cite quote subtitle listing caption"""
BLOCKS = frozenset(f"{HTML} {MALLARD}".split())
EMPTY = frozenset({"br", "hr", "img", "input", "meta", "link", "col", "area", "base", "wbr"})
BREAKS = frozenset({"br", "hr"})
HEADINGS = frozenset({"h1", "h2", "h3", "h4", "title"})


@dataclass(frozen=True)
class Markup:
    """Which elements of a kind of page are left out, and which do not end a block."""

    skipped: frozenset[str] = frozenset()
    skipped_classes: frozenset[str] = frozenset()
    inline: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Block:
    """A text and the element that it stands in."""

    tag: str
    text: str


class _Parser(HTMLParser):
    def __init__(self, markup: Markup) -> None:
        super().__init__(convert_charrefs=True)
        self.markup = markup
        self.found: list[Block] = []
        self.pieces: list[str] = []
        self.open: list[tuple[str, bool]] = []  # element, is it skipped
        self.skipped = 0  # open elements that are

    def cut(self) -> None:
        if not self.skipped:
            text = clean("".join(self.pieces))
            if text:
                self.found.append(Block(self.open[-1][0] if self.open else "", text))
            self.pieces = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in EMPTY:
            if tag in BREAKS and not self.skipped:
                self.pieces.append(" ")
        elif tag in BLOCKS and tag not in self.markup.inline:
            self.cut()
            classes = (dict(attrs).get("class") or "").split()
            self._enter(tag, tag in self.markup.skipped or not self.markup.skipped_classes.isdisjoint(classes))
        elif tag in self.markup.skipped:
            self._enter(tag, True)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element without content is no text."""

    def handle_endtag(self, tag: str) -> None:
        if not any(opened == tag for opened, _ in self.open):
            return
        self.cut()
        self.pieces = []
        while self.open:
            opened, skipped = self.open.pop()
            self.skipped -= skipped
            if opened == tag:
                break

    def handle_data(self, data: str) -> None:
        if not self.skipped:
            self.pieces.append(data)

    def _enter(self, tag: str, skipped: bool) -> None:
        self.open.append((tag, skipped))
        self.skipped += skipped


def blocks(page: str, markup: Markup) -> list[Block]:
    """Return the blocks of a page in order."""
    parser = _Parser(markup)
    parser.feed(page)
    parser.close()
    parser.cut()
    return parser.found


def sections(tags: list[str]) -> list[tuple[int, int]]:
    """Return the (first, end) of the runs of blocks that begin at a heading."""
    cuts = [place for place, tag in enumerate(tags) if tag in HEADINGS or place == 0] + [len(tags)]
    return [(first, end) for first, end in pairwise(cuts) if end > first]


def aligned_blocks(pages: Mapping[str, str], markup: Markup) -> tuple[list[dict[str, str]], list[str]]:
    """Return the English blocks with their translations, and the languages whose page is built in another way.

    Where pages have the same number of sections, those sections are taken whose blocks agree in their elements.
    """
    found = {lang: blocks(page, markup) for lang, page in pages.items()}
    units = [{"en": block.text} for block in found["en"]]
    tags = [block.tag for block in found["en"]]
    different = []
    for lang, translated in found.items():
        own = [block.tag for block in translated]
        if lang == "en":
            continue
        if own == tags:
            paired = [((0, len(tags)), (0, len(tags)))]
        elif len(sections(own)) == len(sections(tags)):
            paired = list(zip(sections(tags), sections(own), strict=True))
        else:
            different.append(lang)
            continue
        for (first, end), (own_first, own_end) in paired:
            if tags[first:end] == own[own_first:own_end]:
                for unit, block in zip(units[first:end], translated[own_first:own_end], strict=True):
                    unit[lang] = block.text
    return units, different
