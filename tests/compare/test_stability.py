"""Alone against batched on engines whose answer is known, and what the commands print."""

import json

import pytest

from moeworks.cli.main import main
from moeworks.compare import in_words, stability
from moeworks.compare.picture import save_comparison
from moeworks.engines import load
from moeworks.engines.fake import planted_examples
from moeworks.errors import BadData


def run(*words):
    """Run the program and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code


@pytest.fixture(scope="module")
def examples():
    return list(planted_examples(6))


def test_the_fake_engine_is_stable_to_the_bit(tmp_path, examples):
    """It runs text after text in float64, so that a batch cannot change anything."""
    found = stability(load("fake"), examples, tmp_path, batch_size=4)
    assert found.identical
    assert "They route alike" in in_words(found)
    assert {path.name for path in tmp_path.iterdir()} == {"alone", "batched"}
    assert found.rows == sum(len(load("fake").tokens(example.text)) for example in examples)


def test_one_text_or_a_batch_of_one_is_refused(examples):
    with pytest.raises(BadData, match="not 1 and 8"):
        stability(load("fake"), examples[:1])
    with pytest.raises(BadData, match="not 6 and 1"):
        stability(load("fake"), examples, batch_size=1)


def test_commands(tmp_path, capsys, examples):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": example.text, "lang": "x"}) + "\n" for example in examples))
    folder, picture = tmp_path / "kept", tmp_path / "p.png"
    assert run("stability", "fake", str(data), "-o", str(folder), "--picture", str(picture), "--limit", "4") == 0
    assert "They route alike" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run("compare", str(folder / "alone"), str(folder / "batched"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["identical"] is True
    assert [line["overlap"] for line in found["layers"]] == [1.0] * len(found["layers"])
    assert run("compare", str(folder / "alone"), str(tmp_path / "nowhere")) == 2


def test_a_picture_of_a_difference_is_the_same_bytes_each_time(tmp_path, examples):
    found = stability(load("fake"), examples, batch_size=4)
    paths = [save_comparison(found, tmp_path / name) for name in ("a.svg", "b.svg")]
    assert paths[0].read_text() == paths[1].read_text()
