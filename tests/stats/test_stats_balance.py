"""Load, balance and confidence: hand-worked numbers and loops in plain Python."""

import math

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from helpers.decisions import Text, write_texts
from helpers.traces import make_header, make_identity, make_trace
from moeworks.contract import Contract, select, selection_scores
from moeworks.errors import BadData
from moeworks.stats import balance, balance_of, confidence, load
from moeworks.stats.near_ties import logit_margins
from moeworks.where import Where


def test_balance_by_hand():
    """Loads 6, 2, 0, 0 (mean 2): MaxVio 2; entropy of 3/4, 1/4 over ln 4; 1 / (9/16 + 1/16) = 1.6; two dead."""
    found = balance_of(np.array([6, 2, 0, 0]))
    assert found.max_violation == pytest.approx(2)
    assert found.entropy == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4))
    assert found.effective_experts == pytest.approx(1.6)
    assert (found.busiest, found.dead) == (0.75, 2)


def test_even_use_by_hand():
    """All equal: no violation, full entropy, as many effective experts as there are."""
    found = balance_of(np.full(8, 5))
    assert (found.max_violation, found.effective_experts, found.dead) == pytest.approx((0, 8, 0))
    assert found.entropy == pytest.approx(1)


def test_a_layer_in_which_nothing_ran_has_no_balance():
    with pytest.raises(BadData, match="no expert of this layer ran"):
        balance_of(np.zeros(4))


def test_load_by_hand(tmp_path):
    """Two texts, four tokens, k = 2; a slot of weight 0 did not run; layer 5 has another number of experts."""
    texts = [
        Text({}, {2: [[0, 1], [0, 2]], 5: [[0], [1]]}, {2: [[0.5, 0.5], [1, 0]], 5: [[1], [1]]}),
        Text({}, {2: [[3, 0], [1, 0]], 5: [[1], [1]]}, {2: [[0.5, 0.5], [0.5, 0.5]], 5: [[1], [1]]}),
    ]
    trace = write_texts(tmp_path / "t", texts, experts=(4, 2), part_bytes=1)
    table = load(trace).to_pydict()
    assert table["layer"] == [2, 2, 2, 2, 5, 5]
    assert table["expert"] == [0, 1, 2, 3, 0, 1]
    assert table["runs"] == [4, 2, 0, 1, 1, 3]
    assert table["rate"] == pytest.approx([1, 0.5, 0, 0.25, 0.25, 0.75])
    assert table["share"] == pytest.approx([4 / 7, 2 / 7, 0, 1 / 7, 0.25, 0.75])
    (first, second) = balance(trace).to_pylist()
    assert (first["layer"], first["tokens"], first["dead"]) == (2, 4, 1)
    assert first["max_violation"] == pytest.approx(4 / (7 / 4) - 1)
    assert second["busiest"] == 0.75


def test_load_follows_where(tmp_path):
    """The rates of a layer sum to k; selected tokens and layers only."""
    trace = make_trace(tmp_path / "t", labels={"lang": ["fr", "en"]}, generated=3, experts=(8, 6), top_k=(2, 3))
    table = load(trace, where=Where.parse("lang=fr phase=generated layer=1")).to_pydict()
    assert set(table["layer"]) == {1}
    assert sum(table["runs"]) == 4 * 3 * 3  # requests × tokens × k
    assert sum(table["rate"]) == pytest.approx(3)
    with pytest.raises(BadData, match="no token matches the clause 'lang=xx'"):
        load(trace, where=Where.parse("lang=xx"))
    with pytest.raises(BadData, match="no layer 7"):
        load(trace, where=Where.parse("layer=7"))


@pytest.mark.parametrize("logits", [True, False])
def test_confidence_equals_a_loop_over_tokens(tmp_path, logits):
    """Plain loops with scipy's softmax and entropy; the margin of softmax scores is that of the sorted scores."""
    trace = make_trace(tmp_path / "t", logits=logits, experts=(8, 6), top_k=(2, 3), part_bytes=2000, generated=4)
    assert len(trace.parts) > 1
    rows = np.flatnonzero(trace.rows().phase == 0)
    for line, k, experts in zip(confidence(trace, where=Where.parse("phase=prompt")).to_pylist(), (2, 3), (8, 6),
                                strict=True):  # fmt: skip
        layer = line["layer"]
        weights = trace.weights(layer).astype(float)
        shares = [weights[i] / sum(weights[i]) for i in rows]
        assert line["tokens"] == len(rows) == 48
        assert line["top_weight"] == pytest.approx(np.mean([max(s) for s in shares]), abs=1e-9)
        assert line["weight_entropy"] == pytest.approx(np.mean([entropy(s) for s in shares]) / math.log(k), abs=1e-9)
        if not logits:
            assert all(math.isnan(line[name]) for name in ("top_probability", "entropy", "margin"))
            continue
        p = [np.sort(softmax(z.astype(float)))[::-1] for z in trace.logits(layer)[rows]]
        assert line["top_probability"] == pytest.approx(np.mean([x[0] for x in p]), abs=1e-9)
        assert line["entropy"] == pytest.approx(np.mean([entropy(x) for x in p]) / math.log(experts), abs=1e-9)
        assert line["margin"] == pytest.approx(np.mean([x[k - 1] - x[k] for x in p]), abs=1e-9)


def test_a_layer_with_a_selection_bias_has_no_margin(tmp_path):
    """The bias is not in a trace: the margin in selection space is unknown, and a number would be wrong."""
    identity = make_identity((0,), 8, 2)
    biased = identity.layers[0].model_copy(
        update={"contract": Contract(experts=8, top_k=2, score="sigmoid", bias=True, renormalise=True)}
    )
    header = make_header(model=identity.model_copy(update={"layers": (biased,)}))
    text = Text({}, {0: [[0, 1]]}, logits={0: np.zeros((1, 8))})
    (line,) = confidence(write_texts(tmp_path / "t", [text], header=header)).to_pylist()
    assert math.isnan(line["margin"])
    assert line["entropy"] == pytest.approx(1)


@pytest.mark.parametrize("score", ["softmax", "sigmoid", "sqrt_softplus"])
def test_logit_margins_are_what_a_logit_may_fall(score):
    """The last chosen expert's logit lowered by 90 % of its margin keeps its place, by 110 % loses it.

    On decisions that are close, where the first order is all there is.
    """
    contract = Contract(experts=16, top_k=4, score=score, bias=True)
    rng = np.random.default_rng(0)
    logits, bias = rng.normal(size=(4000, 16)), rng.normal(size=16) * 0.05
    scores = selection_scores(logits, contract, bias=bias)
    margins = logit_margins(logits, contract, bias, scores)
    close = np.flatnonzero(margins < 0.02)[:200]
    assert len(close) > 50
    ids = select(scores, contract)
    for row in close:
        for share, stays in ((0.9, True), (1.1, False)):
            moved = logits[row].copy()
            moved[ids[row, -1]] -= share * margins[row]
            again = select(selection_scores(moved[None], contract, bias=bias), contract)[0]
            assert (set(again) == set(ids[row])) == stays
