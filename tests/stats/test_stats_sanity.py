"""Each check of a trace passes on a right one and fails on one that is wrong in just this; inspect then refuses."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_header, make_identity, make_trace
from moeworks.cli import main
from moeworks.contract import Contract
from moeworks.errors import BadData
from moeworks.stats import sanity
from moeworks.stats.sanity import refusal, sentence
from moeworks.trace import Trace
from moeworks.trace.reader import Part
from moeworks.where import Where

CHECKS = ["empty_rows", "ids_below_E", "distinct_ids", "counts", "weights_finite", "raw_logits", "weights_follow",
          "ids_follow"]  # fmt: skip


@pytest.fixture
def trace(tmp_path):
    return make_trace(tmp_path / "t", requests=10, rows_per_request=20, logits=True, part_bytes=3000,
                      labels={"lang": ["en", "fr"]})  # fmt: skip


def alter(monkeypatch, kind, change):
    """Let parts give other values than their files hold, in layer 1 alone."""
    plain = Part.column

    def column(self, layer, name):
        values = plain(self, layer, name)
        if layer != 1 or name != kind:
            return values
        values = values.copy()
        change(values)
        return values

    monkeypatch.setattr(Part, "column", column)


def failed(trace, **options):
    table = sanity(trace, **options).to_pylist()
    return {(row["layer"], row["check"]): row["failed"] for row in table if row["result"] == "fail"}


def test_a_right_trace_passes_everything(trace):
    table = sanity(trace)
    assert table["check"].to_pylist() == CHECKS * 2
    assert set(table["result"].to_pylist()) == {"pass"}
    assert table["checked"].to_pylist()[:6] == [200, 200, 200, 400, 200, 200]
    assert refusal(table) is None
    assert sentence(table) == "sanity: 16 checks pass in 2 layers; 0 not told by this trace"
    assert sanity(trace, where=Where.parse("lang=fr layer=1"))["checked"].to_pylist()[:4] == [100, 100, 100, 200]


def first_rows(value, *, slot=slice(None)):
    def change(values):
        values[:3, slot] = value

    return change


def repeat_expert(values):
    values[:3, 1] = values[:3, 0]


def softmaxed(values):
    values[:] = np.exp(values) / np.exp(values).sum(1, keepdims=True)


def exchange(values):
    values[:3] = values[:3, ::-1] + 1.0


@pytest.mark.parametrize(
    ("kind", "change", "check", "counted", "refused"),
    [
        ("weights", first_rows(0.0), "empty_rows", 3, True),
        ("ids", first_rows(8, slot=0), "ids_below_E", 3, True),
        ("ids", repeat_expert, "distinct_ids", 3, True),
        ("weights", first_rows(np.nan, slot=0), "weights_finite", 3, True),
        ("weights", first_rows(np.inf), "weights_finite", 3, True),
        ("logits", softmaxed, "raw_logits", 200, True),
        ("weights", first_rows(0.3, slot=0), "weights_follow", 3, False),
        ("logits", exchange, "ids_follow", None, False),
    ],
)
def test_each_check_fails_alone(trace, monkeypatch, kind, change, check, counted, refused):
    """Three rows of each part are altered; the trace is refused where numbers would be wrong, and only there."""
    parts = len(trace.parts)
    alter(monkeypatch, kind, change)
    found = failed(trace)
    assert {layer for layer, _ in found} == {1}
    assert (1, check) in found
    if counted is not None:
        assert found[1, check] == (counted if counted == 200 else counted * parts)
    reason = refusal(sanity(trace))
    assert (reason is not None) == refused
    if refused:
        assert "layer 1 fails the check" in reason
    assert f"{check} in layer 1" in sentence(sanity(trace))


def test_unknown_ids_are_missing_from_the_counts(trace, monkeypatch):
    parts = len(trace.parts)
    alter(monkeypatch, "ids", first_rows(8, slot=0))
    assert failed(trace)[1, "counts"] == 3 * parts


def test_slots_that_did_not_run_are_no_failure_and_may_repeat(tmp_path):
    text = Text({}, {0: [[0, 0], [1, 2]]}, {0: [[1, 0], [0.5, 0.5]]})
    rows = {row["check"]: row for row in sanity(write_texts(tmp_path / "t", [text], experts=3)).to_pylist()}
    assert rows["distinct_ids"]["result"] == "pass"
    assert (rows["counts"]["result"], rows["counts"]["checked"]) == ("pass", 3)
    assert rows["raw_logits"]["result"] == "not told"


def test_an_opaque_router_may_drop_tokens(tmp_path):
    """Its rule is unknown, it may have a capacity: rows without runs are reported, not refused."""
    identity = make_identity((0,), 4, 1)
    opaque = identity.model_copy(update={"layers": (identity.layers[0].model_copy(update={"contract": None}),)})
    text = Text({}, {0: [[0], [1]]}, {0: [[1], [0]]})
    table = sanity(write_texts(tmp_path / "t", [text], header=make_header(model=opaque)))
    assert table.to_pylist()[0]["result"] == "fail"
    assert refusal(table) is None


def test_a_biased_sigmoid_router_follows_its_logits(tmp_path):
    """The bias is in the header; without it nobody can tell which experts were due."""
    identity = make_identity((0,), 4, 1)
    contract = Contract(experts=4, top_k=1, score="sigmoid", bias=True)
    model = identity.model_copy(update={"layers": (identity.layers[0].model_copy(update={"contract": contract}),)})
    logits = np.array([[2.0, 1.0, 0.0, -1.0]])
    weights = [[1 / (1 + np.exp(-1.0))]]
    text = Text({}, {0: [[1]]}, {0: weights}, logits={0: logits})
    from moeworks.trace.format import RouterValues

    held = (RouterValues(layer=0, selection_bias=(0.0, 0.5, 0.0, 0.0)),)
    for values, result in ((held, "pass"), ((), "not told")):
        trace = write_texts(tmp_path / result, [text], header=make_header(model=model, values=values))
        rows = {row["check"]: row["result"] for row in sanity(trace).to_pylist()}
        assert (rows["weights_follow"], rows["ids_follow"]) == ("pass", result)


def test_inspect_refuses_with_the_reason(trace, monkeypatch, capsys):
    """Exit code 1, the reason on standard error, no number; the checks themselves are still shown."""
    alter(monkeypatch, "logits", softmaxed)
    outputs = []
    for words in ([], ["--what", "confidence", "--json"], ["--what", "sanity"]):
        with pytest.raises(SystemExit) as stopped:
            main(["inspect", str(trace.path), *words])
        assert stopped.value.code == 1
        out, err = capsys.readouterr()
        assert "layer 1 fails the check raw_logits: 200 of 200" in err
        outputs.append(out)
    assert outputs[:2] == ["", ""]
    assert "raw_logits" in outputs[2]
    with pytest.raises(SystemExit) as stopped:  # a clause that leaves the layer out
        main(["inspect", str(trace.path), "--where", "layer=0"])
    assert stopped.value.code == 0


def test_nothing_selected(trace):
    with pytest.raises(BadData, match="no token matches"):
        sanity(trace, where=Where.parse("lang=de"))
    assert isinstance(trace, Trace)
