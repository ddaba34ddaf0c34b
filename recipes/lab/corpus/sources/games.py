"""Dialogue, stories and encyclopedia entries of two games, parallel in up to eleven languages.

Needs the Debian packages wesnoth-1.16-* and freeciv-data; about 10 seconds, besides fetching. Run alone by
`python -m recipes.lab.corpus OUT --only wesnoth freeciv`.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections import defaultdict
from collections.abc import Iterator

from recipes.lab.corpus.chunks import Document, in_all
from recipes.lab.corpus.clean import clean
from recipes.lab.corpus.messages import translations
from recipes.lab.corpus.packages import Packages, deb_members
from recipes.lab.corpus.records import Collector

__all__ = ["freeciv", "scenario_texts", "wesnoth"]

LICENCE = in_all("GPL-2.0-or-later")
FOLDERS = {
    "de": "de",
    "fr": "fr",
    "es": "es",
    "it": "it",
    "pt_BR": "pt",
    "ru": "ru",
    "zh_CN": "zh",
    "ja": "ja",
    "ko": "ko",
    "ar": "ar",
}
CAMPAIGNS = "data did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs"
STATEMENT = re.compile(
    r'^[ \t]*#textdomain[ \t]+(?P<textdomain>\S+)|(?:(?P<key>[a-z_]+)[ \t]*=[ \t]*)?_[ \t]*"(?P<text>(?:[^"]|"")*)"',
    re.M,
)


def wesnoth(packages: Packages, collector: Collector) -> None:
    """Add Battle for Wesnoth: what its people say, then what is told of them, in the order of the scenario files."""
    messages: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # text domain and language: English: text
    scenarios = []
    for campaign in CAMPAIGNS.split():
        package = packages.debian(f"wesnoth-1.16-{campaign}")
        for member, content in deb_members(package, lambda name: name.endswith((".mo", ".cfg"))).items():
            lang = _language(member)
            if member.endswith(".mo") and lang:
                textdomain = member.split("/")[-1].removesuffix(".mo")
                messages[textdomain, lang].update((found.key, found.text) for found in translations(content))
            elif member.endswith(".cfg") and "/data/" in member:
                name = member.partition("/data/")[2].removesuffix(".cfg")
                scenarios.append((name, content.decode("utf-8", "replace"), package.source))
    for name, scenario, source in sorted(scenarios, key=lambda scenario: f"{scenario[0]}.cfg"):
        units: dict[str, list[dict[str, str]]] = {"dialogue": [], "stories": []}
        for domain, textdomain, key in scenario_texts(scenario):
            unit = {"en": _plain_scenario(key)}
            if len(unit["en"]) < 20 or " " not in unit["en"] or "$" in unit["en"] or "|" in unit["en"]:
                continue
            for lang in FOLDERS.values():
                text = _plain_scenario(messages[textdomain, lang].get(key, ""))
                if text and "$" not in text:
                    unit[lang] = text
            units[domain].append(unit)
        for domain, end in (("dialogue", ""), ("stories", "/text")):
            document = Document(f"wesnoth/{name}{end}", domain, units[domain], in_all(source), LICENCE)
            collector.add_document(document)


def scenario_texts(scenario: str) -> Iterator[tuple[str, str, str]]:
    """Yield domain, text domain and message of the texts of a scenario that have translations."""
    textdomain = "wesnoth"
    for statement in STATEMENT.finditer(scenario):
        if statement["textdomain"]:
            textdomain = statement["textdomain"]
        else:
            domain = "dialogue" if statement["key"] == "message" else "stories"
            yield domain, textdomain, statement["text"].replace('""', '"')


def freeciv(packages: Packages, collector: Collector) -> None:
    """Add Freeciv: legends of nations, and help on units, buildings and governments."""
    package = packages.debian("freeciv-data")
    entries: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    members = deb_members(package, re.compile(r"/freeciv-(core|nations)\.mo$").search)
    for member, content in members.items():
        lang = _language(member)
        if lang is None:
            continue
        part = member.split("/freeciv-")[-1].removesuffix(".mo")
        for found in translations(content):
            if "%" not in found.key and len(found.key) >= 60 and found.key.count(" ") >= 8:
                entries[part, found.key][lang] = found.text
    for (part, key), texts in sorted(entries.items()):
        unit = {lang: _plain_entry(text) for lang, text in {"en": key, **texts}.items()}
        name = f"freeciv/{part}/{hashlib.md5(key.encode()).hexdigest()[:10]}"
        collector.add_document(Document(name, "encyclopedia", [unit], in_all(package.source), LICENCE))


def _language(member: str) -> str | None:
    return FOLDERS.get(member.partition("/locale/")[2].split("/")[0])


def _plain_scenario(text: str) -> str:
    """Return a text without its context, which ends in ^, and without markup."""
    if 0 <= text.find("^") < 40:
        text = text.split("^", 1)[1]
    text = re.sub(r"<ref>.*?text='([^']*)'.*?</ref>", r"\1", text)
    text = re.sub(r"<(?:header|jump|img)>.*?</(?:header|jump|img)>", " ", text)
    text = re.sub(r"<(?:italic|bold|format)>.*?text='((?:[^'\\]|\\.)*)'.*?</(?:italic|bold|format)>", r"\1", text)
    return clean(html.unescape(re.sub(r"<[^>]*>", "", text)).replace("\\n", " "))


def _plain_entry(text: str) -> str:
    """Return a text without its context, which is ?like this:, and without [markup]."""
    text = re.sub(r"^\?[\w ,/-]+:", "", text.rpartition("\x04")[2])
    return clean(re.sub(r"\[[^\]]*\]", "", text))
