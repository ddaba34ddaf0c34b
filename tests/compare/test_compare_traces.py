"""Two traces token by token: by hand, planted causes through `contract.decide`, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_header, make_identity, make_trace
from moeworks.compare import compare, match_rows
from moeworks.contract import Contract, decide
from moeworks.errors import BadData
from moeworks.trace import RouterValues
from moeworks.where import Where

SIGMOID = Contract(
    experts=16, top_k=4, score="sigmoid", bias=True, groups=4, groups_kept=2, renormalise=True, scale=2.5
)


def test_a_trace_equals_itself(tmp_path):
    trace = make_trace(tmp_path / "t", logits=True)
    found = compare(trace, trace)
    assert found.identical
    assert (found.rows, found.only_first, found.only_second, found.after_divergence, found.shift) == (80, 0, 0, 0, 0)
    for line in found.layers.to_pylist():
        assert (line["overlap"], line["flips"], line["largest_weight_error"], line["cause"]) == (1, 0, 0, "")


def test_overlap_order_weights_and_first_flip_by_hand(tmp_path):
    """k = 2 of 4, two layers, four tokens.

    Layer 0: same; other slots; one expert of two; same set with other weights. Layer 3: the third token flips again,
    which is no first flip; the fourth flips here first.
    """
    a = Text({"lang": "fr"}, {0: [[0, 1]] * 4, 3: [[0, 1]] * 4}, {0: [[0.6, 0.4]] * 4, 3: [[0.5, 0.5]] * 4})
    b = Text(
        {},
        {0: [[0, 1], [1, 0], [0, 2], [0, 1]], 3: [[0, 1], [0, 1], [2, 3], [1, 2]]},
        {0: [[0.6, 0.4], [0.4, 0.6], [0.6, 0.4], [0.5, 0.5]], 3: [[0.5, 0.5]] * 4},
    )
    found = compare(write_texts(tmp_path / "a", [a]), write_texts(tmp_path / "b", [b]), label="lang")
    zero, three = found.layers.to_pylist()
    assert not found.identical
    assert (zero["overlap"], zero["chance"]) == (7 / 8, 0.5)
    assert (zero["flips"], zero["first_flips"], zero["reordered"]) == (0.25, 0.25, 0.25)
    assert zero["largest_weight_error"] == pytest.approx(0.1)
    assert zero["weight_error"] == pytest.approx(0.1 / 4)
    assert (three["overlap"], three["flips"], three["first_flips"]) == ((2 + 2 + 0 + 1) / 8, 0.5, 0.25)
    assert zero["cause"].startswith("unknown: the first trace has no logits")
    assert [(row["value"], row["layer"], row["rows"]) for row in found.labels.to_pylist()] == [
        ("fr", 0, 4),
        ("fr", 3, 4),
    ]


def test_rows_are_matched_by_request_and_position_in_any_order(tmp_path):
    """Parts of other sizes, a slice on one side: as many rows are missing as the slice left out."""
    first = make_trace(tmp_path / "a", rows_per_request=[3, 8, 5], part_bytes=300, logits=True)
    second = make_trace(tmp_path / "b", rows_per_request=[3, 8, 5], logits=True)
    part = second.slice(Where.parse("position=2:"), tmp_path / "part")
    found = compare(first, part)
    rows = first.rows()
    assert found.rows == int((rows.position >= 2).sum())
    assert found.only_first == int((rows.position < 2).sum())
    assert found.identical
    back = compare(part, first)
    assert (back.rows, back.only_second) == (found.rows, found.only_first)


def test_generated_text_counts_up_to_the_first_other_token(tmp_path):
    """Positions 0 to 4, two generated; the second text differs at position 3: 3 and 4 are of another context."""
    ids = {0: [[0, 1]] * 5}
    a = write_texts(tmp_path / "a", [Text({}, ids, generated=2)])
    b = write_texts(tmp_path / "b", [Text({}, ids, generated=2, tokens=[0, 1, 2, 9, 4])])
    matched = match_rows(a, b)
    assert (matched.first.tolist(), matched.after_divergence) == ([0, 1, 2], 2)
    prompt = write_texts(tmp_path / "c", [Text({}, ids, generated=2, tokens=[0, 7, 2, 3, 4])])
    with pytest.raises(BadData, match="prompts are not the same: request 0 has token 1 at position 1"):
        match_rows(a, prompt)


def biased(tmp_path, name, contract, *, seed=0, bias=None, rows=400, noise=0.0, dtype="float32"):
    """A trace of one layer whose header holds contract SIGMOID and whose decisions are made by another rule."""
    rng = np.random.default_rng(seed)
    held = rng.normal(size=SIGMOID.experts) * 0.3
    logits = rng.normal(size=(rows, SIGMOID.experts)).astype(np.float32)
    seen = logits + np.random.default_rng(9).normal(size=logits.shape) * noise
    decision = decide(seen, contract, bias=held if contract.bias else None)
    identity = make_identity((5,), SIGMOID.experts, SIGMOID.top_k)
    shape = identity.layers[0].model_copy(update={"contract": SIGMOID})
    values = (RouterValues.of(5, held, None),) if bias is None else ()
    engine = make_header().engine.model_copy(update={"dtype": dtype})
    header = make_header(model=identity.model_copy(update={"layers": (shape,)}), values=values, engine=engine)
    text = Text({}, {5: decision.ids}, {5: decision.weights}, logits={5: logits})
    return write_texts(tmp_path / name, [text], header=header)


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        (replace(SIGMOID, bias=False), "selection bias left out"),
        (replace(SIGMOID, groups=1, groups_kept=1), "groups left out"),
        (replace(SIGMOID, bias=False, groups=1, groups_kept=1), "selection bias and groups left out"),
        (replace(SIGMOID, score="softmax"), "softmax in place of sigmoid"),
    ],
)
def test_a_planted_cause_of_flips_is_named(tmp_path, rule, what):
    """The second trace decides by a rule that lacks something, from the same logits."""
    (line,) = compare(biased(tmp_path, "a", SIGMOID), biased(tmp_path, "b", rule)).layers.to_pylist()
    assert line["flips"] > 0.05
    assert (line["cause"], line["cause_share"]) == (what, 1.0)


def test_near_ties_and_nothing_known(tmp_path):
    """Noise of 1e-4 turns near-ties alone, which is said; noise of 1 is no cause that is known."""
    whole = biased(tmp_path, "a", SIGMOID, rows=60_000, dtype="bfloat16")
    (line,) = compare(whole, biased(tmp_path, "near", SIGMOID, rows=60_000, noise=1e-4)).layers.to_pylist()
    assert 0 < line["flips"] < 0.01
    assert (line["cause"], line["near_ties"]) == ("near-ties", 1.0)
    assert line["flip_margin"] < line["margin"] / 100
    (line,) = compare(whole, biased(tmp_path, "far", SIGMOID, rows=60_000, noise=1.0)).layers.to_pylist()
    assert line["flips"] > 0.3
    assert line["cause"] == "unexplained"


def test_without_the_bias_there_is_no_margin_but_its_absence_is_found(tmp_path):
    first = biased(tmp_path, "a", SIGMOID, bias=False)
    (line,) = compare(first, biased(tmp_path, "b", replace(SIGMOID, bias=False))).layers.to_pylist()
    assert math.isnan(line["margin"])
    assert line["cause"] == "selection bias left out"


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        (replace(SIGMOID, renormalise=False), "weights not renormalised"),
        (replace(SIGMOID, scale=1.0), "routed scaling factor left out"),
    ],
)
def test_a_planted_cause_of_weights_is_named(tmp_path, rule, what):
    (line,) = compare(biased(tmp_path, "a", SIGMOID), biased(tmp_path, "b", rule)).layers.to_pylist()
    assert line["flips"] == 0
    assert line["largest_weight_error"] > 0.05
    assert line["weight_cause"] == what


def test_a_shifted_layer_axis_is_named(tmp_path):
    """The second trace's layer n holds what the first's layer n - 1 chose, as when dense layers are not counted."""
    rng = np.random.default_rng(0)
    ids = {layer: rng.random((50, 8)).argpartition(2, axis=1)[:, :2] for layer in range(4)}
    moved = {layer: ids[(layer - 1) % 4] for layer in range(4)}
    first = write_texts(tmp_path / "a", [Text({}, ids)], experts=8)
    second = write_texts(tmp_path / "b", [Text({}, moved)], experts=8)
    assert compare(first, second).shift == 1
    assert compare(first, first).shift == 0


def test_what_does_not_fit_is_refused(tmp_path):
    first = make_trace(tmp_path / "a", layers=(0, 1))
    with pytest.raises(BadData, match=r"layer 0 has 8 experts in .* and 16 in .*; .*has no layer 1\."):
        compare(first, make_trace(tmp_path / "b", layers=(0, 2), experts=16))
    with pytest.raises(BadData, match="no request and position in common"):
        match_rows(
            first.slice(Where.parse("position=0:2"), tmp_path / "x"),
            first.slice(Where.parse("position=2:"), tmp_path / "y"),
        )
    with pytest.raises(BadData, match="no label 'lang'"):
        compare(first, first, label="lang")
