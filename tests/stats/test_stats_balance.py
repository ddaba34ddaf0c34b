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
from moeworks.stats.near_ties import NEAR_TIE, logit_margins
from moeworks.trace.format import RouterValues
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


def test_all_measures_of_balance_by_hand():
    """Loads 6, 2, 0, 0: deviations 4, 0, -2, -2 of mean 2: CV sqrt(6) / 2; Gini (-3×0 - 1×0 + 1×2 + 3×6) / (4 × 8)."""
    found = balance_of(np.array([6, 2, 0, 0]))
    spread = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found.cv == pytest.approx(math.sqrt(6) / 2)
    assert found.balancedness == pytest.approx(2 / 6) == 1 / (1 + found.max_violation)
    assert found.kl == pytest.approx(math.log(4) - spread)
    assert found.entropy_experts == pytest.approx(math.exp(spread))
    assert found.gini == pytest.approx(20 / 32)
    assert (found.top_1, found.top_5, found.top_10) == (0.75, 0.75, 0.75)  # one of four experts
    wide = balance_of(np.array([50, 10, *[1] * 98]))
    assert (wide.top_1, wide.top_5) == pytest.approx((50 / 158, 63 / 158))


def test_batches_lead_over_texts_and_the_last_one_is_left_out(tmp_path):
    """Seven top-1 tokens in batches of two: 00, 01, 11, and one left over: violations 1, 0, 1."""
    texts = [Text({}, {0: [[0], [0], [0]]}), Text({}, {0: [[1], [1], [1], [1]]})]
    for name, size in (("parts", 1), ("one", 1 << 20)):
        trace = write_texts(tmp_path / name, texts, experts=2, part_bytes=size)
        (line,) = balance(trace, batch_tokens=2).to_pylist()
        assert (line["batches"], line["batch_max_violation"]) == (3, pytest.approx(2 / 3))
    (line,) = balance(trace, batch_tokens=100).to_pylist()
    assert line["batches"] == 0
    assert math.isnan(line["batch_max_violation"])


def test_starved_experts_need_tokens_enough(tmp_path):
    """Below 1,000 runs an expert nothing is said; an expert with one run of 4,000 is starved, not dead."""
    few = write_texts(tmp_path / "few", [Text({}, {0: [[0]] * 1998})], experts=2)
    many = write_texts(tmp_path / "many", [Text({}, {0: [[0]] * 3999 + [[1]]})], experts=2)
    assert [balance(trace)["starved"].to_pylist() for trace in (few, many)] == [[None], [1]]
    assert [balance(trace)["dead"].to_pylist() for trace in (few, many)] == [[1], [0]]
    assert balance(many, tau=0.0001)["starved"].to_pylist() == [0]


def test_even_routing_is_at_chance_and_uneven_above_it(tmp_path):
    even = make_trace(tmp_path / "even", requests=40, rows_per_request=50)
    for line in balance(even, batch_tokens=200).to_pylist():
        for name in ("max_violation", "cv", "gini"):
            assert line[f"{name}_low"] <= line[name] <= line[f"{name}_high"]
            assert line[name] < 2.5 * line[f"{name}_chance"]
        assert line["batch_max_violation"] == pytest.approx(line["batch_chance"], rel=0.25)
    busy = {(layer, 3): ("lang", "en", 2.0) for layer in (0, 1)}
    uneven = make_trace(tmp_path / "uneven", requests=40, rows_per_request=50, planted=busy, labels={"lang": ["en"]})
    for line in balance(uneven).to_pylist():
        assert all(line[f"{name}_low"] > line[f"{name}_chance"] for name in ("max_violation", "cv", "gini"))
    # Documents with tastes of their own and even use on the whole: not above what documents alone make.
    topics = make_trace(tmp_path / "topics", requests=40, rows_per_request=50, topic=1.0)
    assert all(line["cv"] > line["cv_chance"] > line["cv_low"] for line in balance(topics).to_pylist())


def test_phases_apart(tmp_path):
    trace = make_trace(tmp_path / "t", generated=4, labels={"lang": ["en", "fr"]})
    rows = balance(trace, by="phase").to_pylist()
    assert [(row["layer"], row["phase"], row["tokens"]) for row in rows] == [
        (layer, phase, tokens) for layer in (0, 1) for phase, tokens in (("prompt", 48), ("generated", 32))
    ]
    prompt = balance(trace, where=Where.parse("phase=prompt")).to_pylist()
    assert [row["busiest"] for row in rows[::2]] == [row["busiest"] for row in prompt]
    with pytest.raises(BadData, match="by=token"):
        balance(trace, by="token")


def test_aux_loss_is_the_megatron_form(tmp_path):
    """E Σ f P by hand: f (1, 0), P the mean of softmax; 1 where both are even."""
    logits = np.log(np.array([[3.0, 1.0], [1.0, 1.0]]))
    (line,) = balance(
        write_texts(tmp_path / "t", [Text({}, {0: [[0], [0]]}, logits={0: logits})], experts=2)
    ).to_pylist()
    assert line["aux_loss"] == pytest.approx(2 * (0.75 + 0.5) / 2, abs=1e-6)
    flat = Text({}, {0: [[0], [1]]}, logits={0: np.zeros((2, 2))})
    assert balance(write_texts(tmp_path / "u", [flat], experts=2))["aux_loss"].to_pylist() == pytest.approx([1])
    assert math.isnan(balance(make_trace(tmp_path / "v"))["aux_loss"].to_pylist()[0])


def sigmoid_trace(path, logits, ids, bias):
    identity = make_identity((0,), 4, 1)
    contract = Contract(experts=4, top_k=1, score="sigmoid", bias=True)
    model = identity.model_copy(update={"layers": (identity.layers[0].model_copy(update={"contract": contract}),)})
    header = make_header(model=model, values=(RouterValues(layer=0, selection_bias=bias),))
    return write_texts(path, [Text({}, {0: ids}, logits={0: np.array(logits)})], header=header)


def test_a_sigmoid_router_by_hand(tmp_path):
    """Scores 1/2 each but one of 3/4: divided by their sum; the bias decides margin and near-ties, and has a spread."""
    trace = sigmoid_trace(tmp_path / "t", [[math.log(3), 0, 0, 0], [0, 0, 0, 0]], [[0], [1]], (0.0, 0.2, 0.0, -0.1))
    (line,) = confidence(trace, near_tie=0.5).to_pylist()
    p = np.array([0.75, 0.5, 0.5, 0.5]) / 2.25
    assert line["top_probability"] == pytest.approx((p[0] + 0.25) / 2, abs=1e-6)
    assert line["entropy"] == pytest.approx((entropy(p) / math.log(4) + 1) / 2, abs=1e-6)
    assert line["top_k_mass"] == pytest.approx((p[0] + 0.25) / 2, abs=1e-6)
    assert line["margin"] == pytest.approx((0.05 + 0.2) / 2, abs=1e-6)  # .75 against .7, .7 against .5
    assert line["near_ties"] == 0.5  # in logits: .05 / (.75 × .25) < .5 ln 3; .2 / (.5 × .5) against a largest logit 0
    assert line["bias_spread"] == pytest.approx(0.3)
    assert (line["top_k_mass_chance"], line["top_probability_chance"]) == (0.25, 0.25)
    logsums = (math.log(6), math.log(4))
    assert line["z_loss"] == pytest.approx(np.mean(np.square(logsums)), abs=1e-6)


def test_confidence_has_intervals_and_a_level_of_near_ties_by_dtype(tmp_path):
    trace = make_trace(tmp_path / "t", requests=20, logits=True, topic=1.0)
    for line in confidence(trace).to_pylist():
        assert line["near_tie"] == NEAR_TIE["float32"]
        for name in ("entropy", "margin", "top_k_mass", "z_loss"):
            assert line[f"{name}_low"] < line[name] < line[f"{name}_high"]
    bfloat = make_header().engine.model_copy(update={"dtype": "bfloat16"})
    rough = make_trace(tmp_path / "u", requests=20, logits=True, topic=1.0, header={"engine": bfloat})
    assert confidence(rough, near_tie=0.3)["near_ties"].to_pylist()[0] > 0.1
    assert confidence(rough)["near_tie"].to_pylist() == [NEAR_TIE["bfloat16"]] * 2
    assert confidence(rough)["near_ties"].to_pylist()[0] > confidence(trace)["near_ties"].to_pylist()[0]
