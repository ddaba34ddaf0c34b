"""Technical documentation and interface texts of LibreOffice, parallel in eleven and twelve languages.

Needs the Debian packages libreoffice-help-* and libreoffice-l10n-*; about 20 seconds, besides fetching. Run alone by
`python -m recipes.lab.corpus OUT --only libreoffice_help libreoffice_interface`.
"""

from __future__ import annotations

import re
from collections import defaultdict

from recipes.lab.corpus.chunks import Document, in_all
from recipes.lab.corpus.clean import clean, strip_tags
from recipes.lab.corpus.messages import translations
from recipes.lab.corpus.packages import Packages, deb_members
from recipes.lab.corpus.records import Collector

__all__ = ["help_pages", "help_paragraphs", "interface"]

LICENCE = in_all("MPL-2.0")
TRANSLATED = {
    "de": "de",
    "fr": "fr",
    "es": "es",
    "it": "it",
    "pt": "pt-br",
    "ru": "ru",
    "zh": "zh-cn",
    "ja": "ja",
    "ko": "ko",
    "hi": "hi",
}
MENU_PATHS = re.compile(r"/00/0000(04|05)\d\d$")  # pages that name menu items and nothing else
PARAGRAPH = re.compile(r'<(p|h[1-6]) id="((?:par_|hd_)[^"]*)"([^>]*)>(.*?)</\1>', re.S)
NO_PROSE = re.compile(r'class="[^"]*(code|related|bug|howtoget)')
FOR_MAC = re.compile(r'<span[^>]*class="MAC">(?:[^<]|<(?!/?span)[^>]*>|<span[^>]*>[^<]*</span>)*</span>')
VARIABLE = re.compile(r"\$\(ARG\d\)|%\w+%?|#\w+#")
SHORTCUT = re.compile(r"[~_](?=\w)")  # marks the letter of a keyboard shortcut


def help_pages(packages: Packages, collector: Collector) -> None:
    """Add the help, paired by the identifiers of paragraphs."""
    pages: dict[str, dict[str, list[tuple[str, str]]]] = defaultdict(dict)  # page: language: paragraphs
    sources = {}
    for lang, name in {"en": "en-us", **TRANSLATED}.items():
        package = packages.debian(f"libreoffice-help-{name}")
        sources[lang] = package.source
        members = deb_members(package, lambda name: "/text/" in name and name.endswith(".html"))
        for member, content in members.items():
            page = member.split("/text/", 1)[1].removesuffix(".html")
            if not MENU_PATHS.search(page):
                pages[page][lang] = help_paragraphs(content.decode("utf-8", "replace"))
    for page, found in sorted(pages.items()):
        translated = {lang: dict(paragraphs) for lang, paragraphs in found.items()}
        units = [
            {lang: texts[identifier] for lang, texts in translated.items() if identifier in texts} | {"en": english}
            for identifier, english in found.get("en", ())  # an identifier may come twice
        ]
        collector.add_document(Document(f"lohelp/{page}", "techdoc", units, sources, LICENCE))


def help_paragraphs(page: str) -> list[tuple[str, str]]:
    """Return identifier and text of the paragraphs of a help page that are prose."""
    found = []
    for paragraph in PARAGRAPH.finditer(page, max(0, page.find('id="DisplayArea"'))):
        _, identifier, attributes, content = paragraph.groups()
        if NO_PROSE.search(attributes):
            continue
        if "switchinline" in content:
            content = FOR_MAC.sub("", content)
        text = clean(strip_tags(re.sub(r"<br */?>", " ", content)))
        if text:
            found.append((identifier, text))
    return found


def interface(packages: Packages, collector: Collector) -> None:
    """Add the messages of the interface that are sentences, the only larger technical text in Arabic and Hindi."""
    messages: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    sources = {}
    for lang, name in {**TRANSLATED, "ar": "ar"}.items():
        package = packages.debian(f"libreoffice-l10n-{name}")
        sources[lang] = package.source
        for member, content in deb_members(package, lambda name: name.endswith(".mo")).items():
            program = member.split("/")[-1].removesuffix(".mo")
            for message in translations(content):
                messages[program, message.english][lang] = message.text
    sources["en"] = sources["de"]
    programs: dict[str, list[dict[str, str]]] = defaultdict(list)
    for (program, key), texts in sorted(messages.items()):
        english = _plain(key)
        if len(english) >= 30 and english.count(" ") >= 4 and "<" not in english and "{" not in english:
            programs[program].append({"en": english} | {lang: _plain(text) for lang, text in texts.items()})
    for program, units in sorted(programs.items()):
        for place, unit in enumerate(units):
            collector.add_document(Document(f"loui/{program}/{place:05d}", "ui", [unit], sources, LICENCE))


def _plain(message: str) -> str:
    return clean(SHORTCUT.sub("", VARIABLE.sub("X", message)))
