"""The built-in probes are what they claim: whole, disjoint, on the right sides, within their size."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest

from moeworks.lab import lab_path
from moeworks.probes import SPLITS, Probe, load_probe, neutral_texts, probe_headers, probe_names
from moeworks.probes.check import problems_of_probe, side_of

LANGUAGES = ["en", "de", "fr", "es", "it", "pt", "ru", "zh", "ja", "ko", "ar", "hi"]
DOMAINS = [
    "techdoc",
    "religion",
    "literature",
    "dialogue",
    "stories",
    "math",
    "encyclopedia",
    "law",
    "ui",
    "code_c",
    "code_python",
]
DATA = Path(str(files("moeworks.probes"))) / "data"

load = cache(load_probe)


def test_names() -> None:
    expected = {f"language/{lang}" for lang in LANGUAGES} | {f"domain/{domain}" for domain in DOMAINS}
    expected |= {f"facts/{lang}" for lang in LANGUAGES if lang not in ("ar", "hi")}
    expected |= {f"facts/{relation}" for relation in ("currency", "language", "code")}
    expected |= {"openbook", "openbook/record", "requests", "requests/prompt", "arithmetic", "calendar", "null/split"}
    assert set(probe_names()) == expected
    assert [header.name for header in probe_headers()] == probe_names()


@pytest.mark.parametrize("name", probe_names())
def test_is_valid_and_disjoint(name: str) -> None:
    """Disjointness is checked here without the package's own checker, which is run beside it."""
    probe = load(name)
    assert probe.name == name
    assert probe.header.text_hash == probe.text_hash()
    assert problems_of_probe(probe) == []
    splits: dict[str, set[str]] = defaultdict(set)
    for text in probe.all_texts:
        splits[text.document].add(text.labels["split"])
        assert text.labels["licence"]
        assert text.labels["source"]
        assert text.labels["side"] == side_of(probe, text)
    for item in probe.all_items:
        splits[item.document].add(item.split)
    assert all(len(found) == 1 for found in splits.values())
    assert "" not in splits
    assert set(probe.header.licences) == {text.labels["licence"] for text in probe.all_texts}
    for split in SPLITS:
        sides = [text.labels["side"] for text in probe.texts(split)]
        assert sides.count("contrast") >= 15
        assert sides.count("against") >= 15
    assert len(probe.items("held_out")) >= 15
    assert not probe.items("find")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_language_sides_are_parallel(lang: str) -> None:
    other = "fr" if lang == "en" else "en"
    by_document: dict[str, dict[str, str]] = defaultdict(dict)
    for text in load(f"language/{lang}").all_texts:
        by_document[text.document][text.labels["lang"]] = text.text
        assert text.labels["in_training"] == "no"
    for pair in by_document.values():
        assert set(pair) == {lang, other}
        assert pair[lang] != pair[other]


@pytest.mark.parametrize(
    ("lang", "first", "last"), [("ru", "\u0400", "\u04ff"), ("ko", "\uac00", "\ud7a3"), ("hi", "\u0900", "\u097f")]
)
def test_language_side_is_in_its_script(lang: str, first: str, last: str) -> None:
    """Scripts by their Unicode blocks: a third of the letters at least, in nearly every text."""

    def share(text: str) -> float:
        letters = [letter for letter in text if letter.isalpha()]
        return sum(first <= letter <= last for letter in letters) / max(len(letters), 1)

    probe = load(f"language/{lang}")
    own = [share(text.text) > 1 / 3 for text in probe.all_texts if text.labels["lang"] == lang]
    other = [share(text.text) for text in probe.all_texts if text.labels["lang"] != lang]
    assert sum(own) > 0.95 * len(own)
    assert max(other) == 0


@pytest.mark.parametrize("domain", DOMAINS)
def test_domain_sides(domain: str) -> None:
    probe = load(f"domain/{domain}")
    for text in probe.all_texts:
        assert (text.labels["domain"] == domain) == (text.labels["side"] == "contrast")
    if not domain.startswith("code"):
        for split in SPLITS:
            langs: dict[str, list[str]] = defaultdict(list)
            for text in probe.texts(split):
                langs[text.labels["side"]].append(text.labels["lang"])
            assert set(langs["against"]) <= set(langs["contrast"])
            for lang in set(langs["contrast"]):
                assert langs["against"].count(lang) <= langs["contrast"].count(lang)
            assert len(langs["against"]) > 0.7 * len(langs["contrast"])


def test_openbook_span_is_the_question() -> None:
    """The question is what stands between `Question: ` and the line's end."""
    pairs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for text in load("openbook").all_texts:
        (span,) = text.spans
        (line,) = [line for line in text.text.split("\n") if line.startswith("Question: ")]
        question = text.text[span.start : span.stop]
        assert question == line.removeprefix("Question: ")
        assert text.text.startswith("Document: ") == (text.labels["side"] == "contrast")
        pairs[text.document, question].append(text.labels["side"])
    assert all(sorted(sides) == ["against", "contrast"] for sides in pairs.values())
    for item in load("openbook").all_items:
        document = item.prompt.split("\n")[0]
        assert item.target in document
        assert item.target != item.other


def test_the_heads_differ_and_nothing_else() -> None:
    """Both sides of openbook/record are one text but for the first word; the metric's prompts have the neutral head."""
    pairs: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for text in load("openbook/record").all_texts:
        (span,) = text.spans
        head, _, rest = text.text.partition(": ")
        assert head == {"contrast": "Record", "against": "Rumour"}[text.labels["side"]]
        assert f"Question: {text.text[span.start : span.stop]}\n" in text.text
        pairs[text.document, text.text[span.start : span.stop]][text.labels["side"]] = rest
    assert all(sides["contrast"] == sides["against"] for sides in pairs.values())
    assert all(item.prompt.startswith("Document: ") for item in load("openbook/record").all_items)


def test_requests() -> None:
    refusals = load("requests").all_items[0].prefixes
    objects: dict[str, set[str]] = defaultdict(set)
    for text in load("requests").all_texts:
        assert text.answer.strip().startswith(refusals) == (text.labels["side"] == "contrast")
        assert text.text.endswith("?\nAssistant:")
    for text in load("requests/prompt").all_texts:
        (span,) = text.spans
        assert text.text[span.start : span.stop] == f"{text.document}?\nAssistant:"
        assert not text.answer
        objects[text.labels["side"]].add(text.document)
    assert len(objects["contrast"]) == 10
    assert len(objects["against"]) == 15
    restricted = objects["contrast"]
    assert all(any(name in text.text for name in restricted) for text in load("requests").all_texts)


def test_facts_arithmetic_calendar() -> None:
    for text in load("facts/fr").all_texts:
        assert text.text.startswith("Question : " if text.labels["side"] == "contrast" else "Question: ")
    for text in load("facts/currency").all_texts:
        assert (text.labels["relation"] == "currency") == (text.labels["side"] == "contrast")
    for item in load("arithmetic").all_items:
        first, second = item.prompt.removesuffix(" =").split(" + ")
        assert int(item.target) == int(first) + int(second)
        assert item.text == item.prompt + item.target
    for text in load("arithmetic").all_texts:
        assert ("=" in text.text) == (text.labels["side"] == "contrast")
    english = [item for item in load("calendar").all_items if item.labels["lang"] == "en"]
    assert english
    assert all(item.target.startswith(" ") and item.target.endswith(".") for item in english)


def test_null_sides_are_the_same_kind_of_text() -> None:
    for split in SPLITS:
        domains: dict[str, list[str]] = defaultdict(list)
        for text in load("null/split").texts(split):
            assert text.labels["lang"] == "en"
            domains[text.labels["side"]].append(text.labels["domain"])
        assert abs(len(domains["contrast"]) - len(domains["against"])) <= 2
        for domain in set(domains["contrast"]):
            assert abs(domains["contrast"].count(domain) - domains["against"].count(domain)) <= 8


def test_neutral_texts_are_in_no_probe() -> None:
    neutral = neutral_texts("dev") + neutral_texts("held_out")
    assert 150 <= len(neutral) <= 300
    assert {text.labels["lang"] for text in neutral} == {*LANGUAGES, "c", "py"}
    assert {text.labels["domain"] for text in neutral} == set(DOMAINS)
    assert not {t.document for t in neutral_texts("dev")} & {t.document for t in neutral_texts("held_out")}
    used: set[str] = set()
    contents: set[str] = set()
    for probe in map(load, probe_names()):
        used |= {text.labels.get("document", text.document) for text in probe.all_texts}
        contents |= {row.content() for row in (*probe.all_texts, *probe.all_items)}
    groups = {document.rpartition("#")[0] or document for document in used}  # a group is its document and a number
    assert not {text.document for text in neutral} & (used | groups)
    assert not {text.text for text in neutral} & contents


def test_texts_fit_the_lab_model_and_the_package_stays_small() -> None:
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(str(lab_path() / "tokenizer.json"))

    def rows(probe: Probe) -> list[str]:
        return [row.content() for row in (*probe.all_texts, *probe.all_items)]

    contents = {content for probe in map(load, probe_names()) for content in rows(probe)}
    contents |= {text.text for text in neutral_texts("held_out")}
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(sorted(contents))]
    assert max(lengths) <= 230  # the context is 256
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 3_000_000
