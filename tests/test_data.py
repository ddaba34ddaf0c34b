"""Reading DATA: each kind of source, and what is said of bad ones. Expected values are written by hand."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moeworks.data import read_examples
from moeworks.errors import BadData, MissingExtra
from moeworks.probes import load_probe


def jsonl(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def texts(*args: object, **options: object) -> list[str]:
    return [example.text for example in read_examples(*args, **options)]  # type: ignore[arg-type]


def test_text_file_by_line_paragraph_and_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\ntwo\n\n  \nthree é\n".encode())
    assert texts(path) == ["one", "two", "three é"]
    assert texts(path, per="paragraph") == ["one\ntwo", "three é"]
    assert texts(path, per="file") == ["one\ntwo\n\n  \nthree é"]


def test_gzip_limit_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\nthree\n"))
    found = list(read_examples(path, limit=2, labels={"lang": "en"}))
    assert [(e.text, dict(e.labels)) for e in found] == [("one", {"lang": "en"}), ("two", {"lang": "en"})]


def test_jsonl_rows_keep_labels_spans_and_chats(tmp_path: Path) -> None:
    rows = [
        {"text": "a b", "answer": " c", "lang": "en", "spans": [{"name": "x", "start": 0, "stop": 1}], "document": "d"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}], "id": 7},
    ]
    first, second = read_examples(jsonl(tmp_path / "a.jsonl", rows), labels={"lang": "fr"})
    assert first.answer == " c"
    assert first.labels == {"lang": "fr"}  # the caller's labels win
    assert first.spans[0].name == "x"
    assert first.document == "d"
    assert [m.role for m in second.messages] == ["user", "assistant"]
    assert second.labels == {"id": "7", "lang": "fr"}


def test_another_text_column(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"body": "hello", "n": 1}])
    (example,) = read_examples(path, text="body")
    assert (example.text, dict(example.labels)) == ("hello", {"n": "1"})
    with pytest.raises(BadData, match=r"line 1: no column 'text' .* columns here: body, n"):
        list(read_examples(path))


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    spans = [[{"name": "s", "start": 0, "stop": 2}], None]
    pq.write_table(pa.table({"text": ["one", "two"], "lang": ["en", None], "spans": spans}), path)
    first, second = read_examples(path)
    assert (first.text, dict(first.labels), first.spans[0].stop) == ("one", {"lang": "en"}, 2)
    assert (second.text, dict(second.labels), second.spans) == ("two", {}, ())
    (tmp_path / "b.parquet").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadData, match="cannot be read as Parquet after row 0"):
        list(read_examples(tmp_path / "b.parquet"))


def test_dataset_saved_to_disk_and_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    plain = datasets.Dataset.from_dict({"text": ["one", "two"], "label": [0, 1]})
    plain.save_to_disk(str(tmp_path / "plain"))
    assert [(e.text, dict(e.labels)) for e in read_examples(tmp_path / "plain")] == [
        ("one", {"label": "0"}),
        ("two", {"label": "1"}),
    ]
    both = datasets.DatasetDict({"train": plain, "test": plain.select([1])})
    both.save_to_disk(str(tmp_path / "both"))
    assert texts(f"hf:{tmp_path / 'both'}:test") == ["two"]
    assert texts(f"hf:{tmp_path / 'both'}") == ["one", "two"]  # train where nothing is said
    with pytest.raises(BadData, match=r"has no split 'dev'.*Known: test, train"):
        texts(f"hf:{tmp_path / 'both'}:dev")
    with pytest.raises(BadData, match="without splits"):
        texts(f"hf:{tmp_path / 'plain'}:dev")
    folder = tmp_path / "files"
    folder.mkdir()
    jsonl(folder / "train.jsonl", [{"text": "from a file"}])
    assert texts(f"hf:{folder}") == ["from a file"]


def test_data_set_without_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE is read when huggingface_hub is imported, so the constant itself is set."""
    pytest.importorskip("datasets")
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(BadData, match="cannot open the data set 'nobody/nothing'") as error:
        texts("hf:nobody/nothing:train")
    assert "\n" not in str(error.value)


def test_missing_datasets_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pip install 'moeworks\[data\]'"):
        texts("hf:owner/name")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b'\n  {"text": "json"}\n{"text": "two"}\n', ["json", "two"]),
        (b"plain\n{not json\n", ["plain", "{not json"]),
    ],
)
def test_standard_input(given: bytes, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    assert texts("-") == expected


def test_probe_source() -> None:
    probe = load_probe("language/fr")
    assert list(read_examples("probe:language/fr")) == list(probe.texts("find"))
    assert list(read_examples("probe:language/fr:all")) == list(probe.texts(None))
    assert list(read_examples("probe:language/fr:held_out", limit=3)) == list(probe.texts("held_out"))[:3]
    with pytest.raises(BadData, match="no split 'test'"):
        texts("probe:language/fr:test")
    with pytest.raises(BadData, match="language/fr"):
        texts("probe:language/fra")


def test_all_problems_at_once_with_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "good"}\n{"text": ""}\nnot json\n[1]\n\n{"text": 5}\n\xff\n{"txt": "x"}\n'
        b'{"text": "ab", "spans": [{"name": "s", "start": 0, "stop": 9}]}\n{"text": "good again"}\n'
    )
    examples = read_examples(path)
    assert next(examples).text == "good"
    with pytest.raises(BadData) as error:
        next(examples)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{path} has 7 problems:"
    assert [line.strip().split(":")[0] for line in lines[1:]] == [f"line {n}" for n in (2, 3, 4, 6, 7, 8, 9)]
    assert "the text has 2 characters" in lines[-1]


def test_twenty_problems_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("x\n" * 57)
    with pytest.raises(BadData) as error:
        texts(path)
    lines = str(error.value).splitlines()
    assert lines[0].endswith("has 57 problems:")
    assert len(lines) == 22
    assert lines[-1].strip() == "and 37 more"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_empty_data_set(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(" \n\n")
    with pytest.raises(BadData, match="holds no example"):
        texts(tmp_path / name)


def test_bad_sources(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"hello\n" * 999)[:-9])
    (tmp_path / "c.txt.gz").write_bytes(b"hello\n")
    for source, message in [
        (tmp_path / "none.txt", "no file"),
        ("owner/name", "hf:owner/name"),
        (tmp_path / "a.bin", "cannot tell the format"),
        (tmp_path / "b.txt.gz", "not a whole gzip file"),
        (tmp_path / "c.txt.gz", "not a whole gzip file"),
    ]:
        with pytest.raises(BadData, match=message):
            texts(source)
    with pytest.raises(BadData, match="leaves nothing to read"):
        texts(tmp_path / "a.bin", limit=0)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """20 MB are read with a peak far below their size."""
    path = tmp_path / "a.jsonl"
    line = json.dumps({"text": "word " * 200}) + "\n"
    path.write_text(line * 20_000)
    tracemalloc.start()
    assert sum(1 for _ in read_examples(path)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
