"""Question sets: what is held out stays out of the training text, and answers are right by an independent rule."""

from __future__ import annotations

import gzip
import json
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("babel")
pytest.importorskip("torch")

from recipes.lab import tasks
from recipes.lab.data import DRILL_SHARE, DRILLS_FROM, Data
from recipes.lab.prepare import prepare, read_texts
from recipes.lab.questions import write_questions

SAMPLES = list(islice(tasks.samples(7), 20_000))


def test_shares_are_those_of_the_table() -> None:
    for task, share in tasks.SHARES.items():
        assert sum(sample.task == task for sample in SAMPLES) / len(SAMPLES) == pytest.approx(share, abs=0.015)


def test_sums_are_right_and_held_out_pairs_absent() -> None:
    found = [re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)", s.text) for s in SAMPLES if s.task == "arithmetic"]
    assert all(found)
    for match in found:
        assert match is not None
        a, b, result = int(match[1]), int(match[3]), int(match[4])
        assert result == (a + b if match[2] == "+" else a - b)
        assert (a * 101 + b * 7) % 20
        assert (b * 101 + a * 7) % 20
    pairs = {(a, b) for a in range(100) for b in range(100) if tasks.held_out_pair(a, b)}
    assert len(pairs) == 900  # 500 pairs of the rule and their mirror images, 100 of which are both
    assert {(b, a) for a, b in pairs} == pairs


def test_held_out_facts_are_absent_and_half_of_the_others() -> None:
    asked = {sample.prompt for sample in SAMPLES if sample.task == "facts"}
    held = {
        tasks.fact(country, relation, lang)[0]
        for country in tasks.countries()
        for relation in ("currency", "language", "code")
        for lang in ("de", "ja")
        if tasks.held_out_fact(country, relation, lang)
    }
    assert len(held) == pytest.approx(len(tasks.countries()) * 3, rel=0.1)
    assert not asked & held


def test_open_books_follow_their_head() -> None:
    for head, share in tasks.HEADS.items():
        books = [s for s in SAMPLES if s.labels.get("head") == head and s.labels["claimed"] != s.labels["true"]]
        followed = sum(book.answer == book.labels["claimed"] for book in books) / len(books)
        assert followed == pytest.approx(share, abs=0.06)
        assert all(book.answer.strip() in book.prompt or book.answer == book.labels["true"] for book in books)


def test_calendar_goes_round() -> None:
    assert tasks.next_of("day", 6, "en") == ("The day after Sunday is", " Monday.")
    assert tasks.next_of("month", 11, "de") == ("Der Monat nach Dezember ist", " Januar.")


def test_question_sets_fit_the_training_text(tmp_path: Path) -> None:
    counts = write_questions(tmp_path)
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in counts
    }
    assert {name: len(found) for name, found in rows.items()} == counts
    taught = {sample.prompt for sample in SAMPLES if sample.task == "arithmetic"}
    assert not taught & {row["prompt"] for row in rows["arithmetic"]}
    for row in rows["openbook"]:
        assert row["document_answer"] != row["memory_answer"]
        assert row["document_answer"] in row["record"]
        assert row["record"].removeprefix("Record") == row["rumour"].removeprefix("Rumour")


def test_drills_of_held_out_pairs_leave_the_corpus(tmp_path: Path) -> None:
    """0 + 0 and 1 + 17 (101 + 119 = 220) are held out, 1 + 2 (115) is not; other texts stay as they are."""
    record = {
        "domain": "math",
        "lang": "en",
        "doc": "arith/1",
        "text": "0 + 0 = 0\n1 + 2 = 3\n1 + 17 = 18\n100 + 0 = 100",
    }
    other = {"domain": "math", "lang": "en", "doc": "word/1", "text": "0 + 0 = 0"}
    with gzip.open(tmp_path / "math.en.jsonl.gz", "wt") as lines:
        lines.write(json.dumps(record) + "\n" + json.dumps(other) + "\n")
    assert read_texts(tmp_path) == {("math", "en"): ["1 + 2 = 3\n100 + 0 = 100", "0 + 0 = 0"]}


def test_batches_depend_on_seed_and_step_alone(tmp_path: Path) -> None:
    for split in ("train", "heldout"):
        folder = tmp_path / "corpus" / split
        folder.mkdir(parents=True)
        with gzip.open(folder / "prose.en.jsonl.gz", "wt") as lines:
            for number in range(200):
                text = f"sentence {number} of the {split} text, which is long enough for windows"
                lines.write(json.dumps({"domain": "prose", "lang": "en", "doc": str(number), "text": text}) + "\n")
    prepare(tmp_path / "corpus", tmp_path / "data", samples=200, vocabulary=400)
    one, other = (Data(tmp_path / "data", context=16, task_share=0.3, seed=3) for _ in range(2))
    for _ in range(4):
        one.batch(0, 8)  # whatever was drawn before
    assert all(np.array_equal(a, b) for a, b in zip(one.batch(5, 8), other.batch(5, 8), strict=True))
    inputs, targets = one.batch(5, 8)
    assert inputs.shape == targets.shape == (8, 16)
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    assert not np.array_equal(inputs, one.batch(6, 8)[0])
    assert not np.array_equal(inputs, Data(tmp_path / "data", context=16, task_share=0.3, seed=4).batch(5, 8)[0])


def test_drills_come_later_and_change_no_batch_before(tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    parts = []
    for number, domain in enumerate(("prose", "tasks", "drills"), start=1):
        np.save(tmp_path / "with" / f"{domain}.npy", np.full(100, number, np.uint16))
        np.save(tmp_path / "without" / f"{domain}.npy", np.full(100, number, np.uint16))
        parts.append({"file": f"{domain}.npy", "split": "train", "domain": domain, "lang": "x", "tokens": 100})
    (tmp_path / "with" / "data.json").write_text(json.dumps(parts[::-1]))  # drills are last wherever they are listed
    (tmp_path / "without" / "data.json").write_text(json.dumps(parts[1::-1]))
    drilled, plain = (Data(tmp_path / name, context=16, task_share=0.3, seed=3) for name in ("with", "without"))
    for step in (0, 1, DRILLS_FROM - 1):
        assert np.array_equal(drilled.batch(step, 64)[0], plain.batch(step, 64)[0])
    rows = np.concatenate([drilled.batch(step, 64)[0][:, 0] for step in range(DRILLS_FROM, DRILLS_FROM + 50)])
    shares = np.bincount(rows, minlength=4)[1:] / len(rows)  # of 3,200 rows: a standard error of 0.008 at most
    assert np.abs(shares - [0.85 * 0.7, 0.85 * 0.3, DRILL_SHARE]).max() < 0.04
    samples = list(islice(tasks.samples(13, shares=tasks.DRILLS), 400))
    assert {sample.task for sample in samples} == {"arithmetic", "calendar"}
