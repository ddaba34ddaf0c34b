"""Manuals of Debian and GNOME, parallel in up to eleven languages, paired by the order of their blocks.

Needs the Debian packages gnome-user-docs, debian-handbook, installation-guide-amd64, debian-reference-* and
debian-faq*; about 15 seconds, besides fetching. Run alone by
`python -m recipes.lab.corpus OUT --only gnome handbook installation_guide debian_reference debian_faq`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from recipes.lab.corpus.blocks import Markup, aligned_blocks
from recipes.lab.corpus.chunks import Document, in_all
from recipes.lab.corpus.packages import Packages, deb_members
from recipes.lab.corpus.records import Collector

__all__ = ["debian_faq", "debian_reference", "gnome", "handbook", "installation_guide"]

INLINE = frozenset({"code", "quote", "cite"})
CODE = frozenset({"pre", "script", "style", "head"})
NAVIGATION = frozenset({"navheader", "navfooter", "toc", "screen"})
MALLARD = Markup(frozenset({"info", "screen", "media", "comment", "links"}), inline=INLINE)
HANDBOOK = Markup(CODE, frozenset({"docnav", "toc", "index"}), INLINE)
GUIDE = Markup(CODE | {"table"}, NAVIGATION, INLINE)
REFERENCE = Markup(
    CODE | {"table"}, NAVIGATION | {"footnotes", "highlight", "sphinxsidebar", "related", "footer"}, INLINE
)


@dataclass(frozen=True)
class Manual:
    """A manual: its name in records, its licence, how its pages are built and what each language is called in it."""

    name: str
    licence: str
    markup: Markup
    languages: Mapping[str, str]


GNOME = Manual(
    "gnome",
    "CC-BY-SA-3.0",
    MALLARD,
    {
        "en": "C",
        "de": "de",
        "fr": "fr",
        "es": "es",
        "it": "it",
        "pt": "pt_BR",
        "ru": "ru",
        "zh": "zh_CN",
        "ja": "ja",
        "ko": "ko",
        "hi": "hi",
    },
)
ADMINISTRATOR = Manual(
    "handbook",
    "GPL-2.0-or-later OR CC-BY-SA-3.0",
    HANDBOOK,
    {
        "en": "en-US",
        "de": "de-DE",
        "fr": "fr-FR",
        "es": "es-ES",
        "it": "it-IT",
        "pt": "pt-BR",
        "ru": "ru-RU",
        "zh": "zh-CN",
        "ja": "ja-JP",
        "ko": "ko-KR",
        "ar": "ar-MA",
    },
)
INSTALLATION = Manual(
    "instguide",
    "GPL-2.0",
    GUIDE,
    {lang: lang for lang in ("en", "de", "fr", "es", "it", "pt", "ru", "ja", "ko")} | {"zh": "zh_CN"},
)
DEBIAN_REFERENCE = Manual(
    "debref",
    "GPL-2.0-or-later",
    REFERENCE,
    {lang: f"-{lang}" for lang in ("en", "de", "fr", "es", "it", "ja")} | {"pt": "-pt-br", "zh": "-zh-cn"},
)
DEBIAN_FAQ = Manual(
    "debfaq",
    "copyleft notice of the Debian FAQ (SPI)",
    REFERENCE,
    {lang: f"-{lang}" for lang in ("de", "fr", "it", "ja", "ru", "ko", "pt")} | {"en": "", "zh": "-zh-cn"},
)


def gnome(packages: Packages, collector: Collector) -> None:
    """Add the user documentation of GNOME, which is written in Mallard."""

    def place(member: str) -> tuple[str, str] | None:
        folder, _, page = member.partition("/help/")[2].partition("/")
        return (folder, page.removesuffix(".page")) if page.endswith(".page") else None

    _add_package(GNOME, "gnome-user-docs", place, packages, collector)


def handbook(packages: Packages, collector: Collector) -> None:
    """Add the Debian Administrator's Handbook."""

    def place(member: str) -> tuple[str, str] | None:
        found = re.search(r"/html/([^/]+)/([^/]+)\.html$", member)
        return (found[1], found[2]) if found and found[2] not in ("ix01", "index") else None

    _add_package(ADMINISTRATOR, "debian-handbook", place, packages, collector)


def installation_guide(packages: Packages, collector: Collector) -> None:
    """Add the installation guide without its appendix e, which is the GPL."""

    def place(member: str) -> tuple[str, str] | None:
        found = re.search(r"guide-amd64/([^/]+)/([^/]+)\.html$", member)
        return (found[1], found[2]) if found and found[2] != "index" and not found[2].startswith("ape") else None

    _add_package(INSTALLATION, "installation-guide-amd64", place, packages, collector)


def debian_reference(packages: Packages, collector: Collector) -> None:
    """Add the Debian Reference."""
    _add_family(DEBIAN_REFERENCE, "debian-reference", packages, collector)


def debian_faq(packages: Packages, collector: Collector) -> None:
    """Add the answers to frequent questions on Debian."""
    _add_family(DEBIAN_FAQ, "debian-faq", packages, collector)


def _add_package(
    manual: Manual,
    name: str,
    place: Callable[[str], tuple[str, str] | None],
    packages: Packages,
    collector: Collector,
) -> None:
    """Add a manual of which one package has all languages; `place` tells language folder and page of a file."""
    package = packages.debian(name)
    languages = {folder: lang for lang, folder in manual.languages.items()}
    pages: dict[str, dict[str, str]] = defaultdict(dict)
    for member, content in deb_members(package, place).items():
        folder, page = place(member) or ("", "")
        if folder in languages:
            pages[page][languages[folder]] = content.decode("utf-8", "replace")
    _add(manual, pages, in_all(package.source), collector)


def _add_family(manual: Manual, name: str, packages: Packages, collector: Collector) -> None:
    """Add a manual that has a package for each language."""
    pages: dict[str, dict[str, str]] = defaultdict(dict)
    sources = {}
    for lang, suffix in manual.languages.items():
        package = packages.debian(name + suffix)
        sources[lang] = package.source
        for member, content in deb_members(package, re.compile(r"/[\w-]+\.[\w-]+\.html$").search).items():
            page = member.split("/")[-1].split(".")[0]
            if page not in ("index", "ix01") and "/doc-base" not in member:
                pages[page][lang] = content.decode("utf-8", "replace")
    _add(manual, pages, sources, collector)


def _add(
    manual: Manual, pages: Mapping[str, Mapping[str, str]], sources: Mapping[str, str], collector: Collector
) -> None:
    for page, found in sorted(pages.items(), key=lambda page: f"{page[0]}.html"):
        if "en" not in found:
            continue
        units, different = aligned_blocks(found, manual.markup)
        collector.dropped.update(f"misaligned page {manual.name} {lang}" for lang in different)
        name = f"{manual.name}/{page}"
        collector.add_document(Document(name, "techdoc", units, sources, in_all(manual.licence)))
