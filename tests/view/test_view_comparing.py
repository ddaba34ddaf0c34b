"""Two traces side by side: the tokens of both, flips that agree with `compare`, and generated texts that part."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers.traces import make_header, make_identity, make_request, make_trace
from moeworks.compare import compare
from moeworks.errors import BadData
from moeworks.trace import RecordedRows, RequestInfo, Trace, TraceWriter
from moeworks.view.comparing import compared_tokens, comparison_json
from moeworks.view.plain import plain
from moeworks.view.refusals import TooMuch
from moeworks.where import Rows


def written(path, texts, *, seed=0, prompt=4, order=None) -> Trace:
    """A trace of byte tokens whose routes come from the seed, requests in any order."""
    model = make_identity((0, 2), 8, 2).model_copy(update={"tokenizer_hash": "bytes"})
    head = make_header(model=model)
    with TraceWriter(path, head) as out:
        for number in order or range(len(texts)):
            token = np.frombuffer(texts[number].encode(), np.uint8).astype(np.int64)
            info = RequestInfo(request=number, tokens=len(token), prompt_tokens=min(prompt, len(token)))
            long = RequestInfo(request=number, tokens=64, prompt_tokens=64)  # the same routes whatever the length
            made, n = make_request(head, long, seed=seed), len(token)
            rows = Rows(np.full(n, number), np.arange(n), token, np.arange(n) >= info.prompt_tokens)
            ids, weights = ({layer: one[:n] for layer, one in kind.items()} for kind in (made.ids, made.weights))
            out.add_request(info)
            out.write(RecordedRows(rows=rows, ids=ids, weights=weights))
    return Trace.open(path)


def test_a_trace_beside_itself_in_another_order_has_no_difference(tmp_path) -> None:
    texts = ["prompt one", "второй", "third"]
    a, b = written(tmp_path / "a", texts), written(tmp_path / "b", texts, order=[2, 0, 1])
    table = compared_tokens(a, b)
    assert table.num_rows == len(a)
    assert all(table["same"].to_pylist())
    assert set(table["flips"].to_pylist()) == {0}
    assert set(table["first_layer"].to_pylist()) == {None}
    assert set(table["L2.overlap"].to_pylist()) == {2}
    assert table["text_a"].to_pylist() == table["text_b"].to_pylist()
    assert "".join(table["text_b"].to_pylist()) == "".join(texts)
    assert table["row_b"].to_pylist() != table["row_a"].to_pylist()
    keys = list(zip(table["request"].to_pylist(), table["position"].to_pylist(), strict=True))
    assert keys == sorted(keys)


def test_flips_agree_with_the_comparison(tmp_path) -> None:
    a = make_trace(tmp_path / "a", layers=(0, 2, 3))
    b = Trace.open(a.path)
    c = written_like(a, tmp_path / "c")
    table, found = compared_tokens(a, c), compare(a, c)
    assert found.layers["flips"].to_pylist()[1] > 0
    for layer, line in zip(a.layers, found.layers.to_pylist(), strict=True):
        shared = table[f"L{layer}.overlap"].to_numpy()
        assert shared.mean() / 2 == pytest.approx(line["overlap"])
        assert (shared < 2).mean() == pytest.approx(line["flips"])
        first = np.array([one == layer for one in table["first_layer"].to_pylist()])
        assert first.mean() == pytest.approx(line["first_flips"])
    overlaps = np.stack([table[f"L{layer}.overlap"].to_numpy() for layer in a.layers])
    assert table["flips"].to_pylist() == (overlaps < 2).sum(0).tolist()
    assert set(compared_tokens(a, b)["flips"].to_pylist()) == {0}


def written_like(trace: Trace, path) -> Trace:
    """The same tokens with the routes of layers 2 and 3 exchanged."""
    rows = trace.rows()
    with TraceWriter(path, make_header(model=trace.header.model)) as out:
        for number in range(len(trace.requests)):
            mine = np.flatnonzero(rows.request == number)
            info = RequestInfo(request=number, tokens=len(mine), prompt_tokens=len(mine))
            swapped = {0: 0, 2: 3, 3: 2}
            out.add_request(info)
            out.write(
                RecordedRows(
                    rows=Rows(*(getattr(rows, n)[mine] for n in ("request", "position", "token", "phase"))),
                    ids={n: trace.ids(other)[mine] for n, other in swapped.items()},
                    weights={n: trace.weights(other)[mine] for n, other in swapped.items()},
                )
            )
    return Trace.open(path)


def test_texts_that_part_are_not_compared_beyond(tmp_path) -> None:
    a = written(tmp_path / "a", ["same and then x", "equal"])
    b = written(tmp_path / "b", ["same and than", "equal"])
    rows = compared_tokens(a, b).to_pylist()
    first = [row for row in rows if row["request"] == 0]
    assert len(first) == len("same and then x")
    parted = len("same and th")
    assert [row["same_context"] for row in first] == [True] * parted + [False] * (len(first) - parted)
    assert first[parted]["text_a"] == "e"
    assert first[parted]["text_b"] == "a"
    assert first[parted]["flips"] is None
    assert first[parted]["L0.overlap"] is None
    assert first[parted - 1]["flips"] == 0
    assert first[-1]["row_b"] is None
    assert first[-1]["text_b"] is None
    assert first[-1]["text_a"] == "x"
    again = next(row for row in first[parted:] if row["text_a"] == row["text_b"])
    assert again["same"]
    assert not again["same_context"]
    assert all(row["same_context"] for row in rows if row["request"] == 1)


def test_stretches_are_parts_of_the_whole(tmp_path) -> None:
    a = written(tmp_path / "a", ["静かな川", "plain text", "ещё"])
    b = written(tmp_path / "b", ["静かな山", "plain", "ещё!"], order=[1, 2, 0])
    whole = compared_tokens(a, b).to_pylist()
    for start in range(0, len(whole), 3):
        assert compared_tokens(a, b, start=start, stop=start + 7).to_pylist() == whole[start : start + 7]
    with pytest.raises(BadData, match=f"it has {len(whole)} rows"):
        compared_tokens(a, b, start=len(whole))


def test_too_much_and_nothing_in_common(tmp_path) -> None:
    a = make_trace(tmp_path / "a", requests=3, rows_per_request=8000)
    with pytest.raises(TooMuch, match="20001"):
        compared_tokens(a, a, start=0, stop=20_001)
    with pytest.raises(BadData, match="no layer in common"):
        compared_tokens(a, make_trace(tmp_path / "b", experts=6))


def test_the_summary_is_that_of_the_command(tmp_path) -> None:
    a = make_trace(tmp_path / "a", labels={"lang": ["fr", "ru"]}, logits=True)
    c = make_trace(tmp_path / "c", labels={"lang": ["fr", "ru"]}, weights_dtype="float16")
    found = comparison_json(a, c, label="lang")
    assert found.pop("command") == f"moeworks compare {a.path} {c.path} --label lang --json"
    assert found == plain(compare(a, c, label="lang").as_json())
    json.dumps(found, allow_nan=False)
