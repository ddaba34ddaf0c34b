"""`moeworks edit score` and `merge-statistics` on tiny checkpoints: what they write, print and refuse, and when."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from helpers.models import lab_tokenizer, tiny_engine, tiny_model
from moeworks.cli import main
from moeworks.edit.collecting.save_path import check_save_path
from moeworks.edit.collecting.state import STATE
from moeworks.edit.statistics_file import Statistics
from moeworks.errors import BadPlan

ROWS = [
    {"text": "The tower stands on a hill.", "domain": "prose"},
    {"text": "def f(x): return x", "domain": "code"},
    {"text": "Rain.", "domain": "prose"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model("sigmoid_groups").save_pretrained(folder)
    lab_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


def test_score_writes_statistics_and_tells_the_cost_first(model, data, tmp_path, capsys):
    assert run("edit", "score", model, data, "-o", tmp_path / "s", "--label", "domain", "--rows", 4) == 0
    shown = capsys.readouterr()
    statistics = Statistics.open(tmp_path / "s")
    tokens = sum(statistics.header.tokens)
    assert f"{tokens} tokens of 3 texts × 2 layers in 1 batches" in shown.err
    assert "of kept rows on disk" in shown.err
    assert f"{tokens} tokens of 3 texts, 2 layers." in shown.out
    assert "Tokens by domain: code" in shown.out
    assert statistics.header.groups == ("cheap", "router")
    assert statistics.header.command.startswith("moeworks")
    assert statistics.layer(1).rows().hidden.shape == (4, 32)
    assert run("edit", "plan", tmp_path / "s", "--keep", 0.75, "-o", tmp_path / "plan.json") == 0
    assert json.loads((tmp_path / "plan.json").read_text())["statistics"] == statistics.hash


def test_streamed_gives_the_same_and_json_is_one_document(model, data, tmp_path, capsys):
    assert run("edit", "score", model, data, "-o", tmp_path / "a") == 0
    capsys.readouterr()
    assert run("edit", "score", model, data, "-o", tmp_path / "b", "--stream", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "moeworks.statistics"
    assert document["layers"] == [1, 2]
    a, b = Statistics.open(tmp_path / "a"), Statistics.open(tmp_path / "b")
    assert np.array_equal(a.array("count"), b.array("count"))
    assert np.allclose(a.array("gated_norm"), b.array("gated_norm"), rtol=1e-6)


def test_merge_statistics(model, data, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": "In the morning the boats go out."}) + "\n")
    run("edit", "score", model, data, "-o", tmp_path / "a")
    run("edit", "score", model, other, "-o", tmp_path / "b")
    assert run("edit", "merge-statistics", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c") == 0
    assert "tokens of 4 texts, 2 layers." in capsys.readouterr().out
    total = [Statistics.open(tmp_path / name).array("count") for name in "abc"]
    assert np.array_equal(total[0] + total[1], total[2])
    assert run("edit", "merge-statistics", tmp_path / "a", tmp_path / "a", "-o", tmp_path / "d") == 2
    assert "the same texts are in two of them" in capsys.readouterr().err


def test_a_cut_that_cannot_be_saved_is_refused_before_anything_runs(model, data, tmp_path, capsys):
    assert run("edit", "score", model, data, "-o", tmp_path / "s", "--check-keep", 0.25) == 2
    shown = capsys.readouterr()
    assert "tokens of" not in shown.err
    assert "moeworks: " in shown.err
    assert not (tmp_path / "s").exists()
    with pytest.raises(BadPlan):
        check_save_path(model, keep=0.25)
    assert check_save_path(model, keep=0.5).bytes_after < check_save_path(model, keep=0.75).bytes_after
    assert run("edit", "score", model, data, "-o", tmp_path / "s", "--check-keep", 0.25, "--no-check") == 0


def test_mistakes_come_before_the_model_is_loaded(data, tmp_path, capsys):
    for words, said in (
        (("nowhere", data, "--collect", "cheep"), "no group 'cheep'"),
        (("nowhere", data, "--collect", ","), "names no group"),
        (("nowhere", tmp_path / "none.jsonl"), "there is no file"),
        (("fake", data), "take the transformers engine"),
    ):
        assert run("edit", "score", *words, "-o", tmp_path / "s") in (1, 2)
        assert said in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_killed_for_good_and_resumed(model, tmp_path):
    """kill -9 of a process, wherever it is by then; the same line with --resume gives what an undisturbed run gives."""
    many = tmp_path / "many.jsonl"
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    many.write_text("".join(json.dumps({"text": " ".join(words[i % 7 :] * (1 + i % 5))}) + "\n" for i in range(120)))
    line = ["edit", "score", model, str(many), "--batch-size", "2", "--checkpoint-every", "3", "--collect"]
    line += ["cheap,router,means,sets", "--rows", "50"]
    assert run(*line, "-o", tmp_path / "whole") == 0
    target = tmp_path / "s"
    program = "from moeworks.cli import main; import sys; main(sys.argv[1:])"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *line, "-o", str(target)], env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (target / STATE).is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (target / STATE).is_file()
    assert run(*line, "-o", target, "--resume") == 0
    one, two = Statistics.open(tmp_path / "whole"), Statistics.open(target)
    for layer in one:
        other = two.layer(layer.layer)
        assert np.array_equal(layer.arrays["count"], other.arrays["count"])
        for name, array in layer.arrays.items():
            assert np.allclose(array, other.arrays[name], rtol=1e-6), name  # another process may round otherwise
        assert np.array_equal(layer.rows().ids, other.rows().ids)
    assert not (target / STATE).exists()
    assert tiny_engine("sigmoid_groups").identity.weight_hash == two.header.model.weight_hash
