"""Scores of one side: GateBreaker's gate profile and SEUF's affinity, with and without texts to compare with."""

import math

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.plans import identity
from helpers.traces import make_header, make_trace
from moeworks.contract import Contract
from moeworks.errors import BadData, BadTrace, Unsupported
from moeworks.find import Scores, find
from moeworks.find.scores import profile_of

A, B = {"side": "a"}, {"side": "b"}


def column(scores, name="score"):
    return scores.column(name).tolist()


def test_utility_is_a_mean_over_texts(tmp_path):
    """By hand: expert 0 on 1 of 2 and 3 of 4 tokens: (1/2 + 3/4) / 2 = 5/8, whatever runs on the other side."""
    texts = [Text(A, {0: [[0], [1]]}), Text(A, {0: [[0], [0], [0], [2]]}), Text(B, {0: [[0]] * 9})]
    trace = write_texts(tmp_path / "t", texts)
    scores = find(trace, contrast="side=a", against=None, method="gate_profile")
    assert column(scores) == pytest.approx([5 / 8, 1 / 4, 1 / 8, 0])
    assert (scores.header.null, scores.header.aggregate, scores.header.documents) == ("none", "macro", (2, 0))
    assert np.isnan(scores.column("p")).all()
    assert not scores.column("passes").any()
    assert "No test was made" in scores.summary()


def test_profile_is_three_times_k_of_each_layer(tmp_path):
    """By hand: k = 1, so 3 experts a layer. Layer 0: 4, 3, 2, 1 of 10 tokens for experts 5, 1, 2, 0: 9 of 10 choices.
    Layer 1: expert 4 always: 10 of 10. Together 19 of 20 choices on 4 experts of 12; the other side 5 of 20."""
    first = [[5]] * 4 + [[1]] * 3 + [[2]] * 2 + [[0]]
    other = [[5]] * 5 + [[0]] * 3 + [[3]] * 2
    texts = [Text(A, {0: first, 1: [[4]] * 10}), Text(B, {0: other, 1: [[3]] * 10})]
    trace = write_texts(tmp_path / "t", texts, experts=6)
    scores = find(trace, contrast="side=a", against="side=b", method="gate_profile", permutations=10)
    assert list(map(str, profile_of(scores))) == ["L0.E5", "L0.E1", "L0.E2", "L1.E4"]
    facts = scores.header.facts
    assert facts["profile"] == ["L0.E5", "L0.E1", "L0.E2", "L1.E4"]
    assert facts["concentration"] == pytest.approx({"contrast": 19 / 20, "against": 5 / 20})
    assert facts["by_layer"] == pytest.approx({"0": 0.9, "1": 1.0})
    assert facts["even"] == pytest.approx(4 / 12)
    assert "95.0% of the choices on the contrast side and 25.0%" in scores.summary()
    one = find(trace, contrast="side=a", against=None, method="gate_profile", times=1)
    assert one.header.facts["profile"] == ["L0.E5", "L1.E4"]


def test_profile_grows_with_k(tmp_path):
    """By hand: k = 2, so the profile of `times` 1 is 2 experts: 0 on all 4 tokens, 3 on 3 of them."""
    trace = write_texts(tmp_path / "t", [Text(A, {0: [[0, 3], [0, 3], [0, 3], [0, 1]]})], experts=8)
    scores = find(trace, contrast="side=a", against=None, method="gate_profile", times=1)
    assert scores.header.facts["profile"] == ["L0.E0", "L0.E3"]
    assert scores.header.facts["concentration"] == pytest.approx({"contrast": 7 / 8})


def test_facts_and_notes_are_kept_in_the_file(tmp_path):
    trace = make_trace(tmp_path / "t", labels={"side": ["a", "b"]})
    scores = find(trace, contrast="side=a", against="side=b", method="gate_profile", permutations=20)
    assert Scores.load(scores.save(tmp_path / "s.arrow")).header == scores.header
    assert scores.header.notes


def test_affinity_is_the_mean_over_texts_of_softmax(tmp_path):
    """By hand: logits ln 1, ln 2, ln 3 give 1/6, 2/6, 3/6; the second text's tokens 1/3 each and 1, 0, 0."""
    far = [50.0, 0.0, 0.0]
    texts = [
        Text(A, {0: [[2]]}, logits={0: [[0.0, math.log(2), math.log(3)]]}),
        Text(A, {0: [[0], [0]]}, logits={0: [[1.0, 1.0, 1.0], far]}),
        Text(B, {0: [[1]]}, logits={0: [[0.0, 9.0, 0.0]]}),
    ]
    trace = write_texts(tmp_path / "t", texts, experts=3)
    scores = find(trace, contrast="side=a", against=None, method="affinity")
    assert column(scores) == pytest.approx([5 / 12, 1 / 4, 1 / 3])
    facts = scores.header.facts
    assert (facts["target"], facts["second"]) == ("L0.E0", "L0.E2")
    assert facts["gap"] == pytest.approx(1 / 12)


def test_sigmoid_scores_are_divided_by_their_sum(tmp_path):
    """By hand: sigmoid of 0, ln 3, -ln 3 is 1/2, 3/4, 1/4: 2/6, 3/6, 1/6. A selection bias does not enter."""
    model = identity(Contract(experts=3, top_k=1, score="sigmoid", bias=True))
    logits = [[0.0, math.log(3), -math.log(3)]]
    texts = [Text(A, {0: [[1]]}, logits={0: logits})]
    trace = write_texts(tmp_path / "t", texts, header=make_header(model=model))
    assert column(find(trace, contrast="side=a", against=None, method="affinity")) == pytest.approx(
        [2 / 6, 3 / 6, 1 / 6]
    )


def test_probabilities_need_logits(tmp_path):
    trace = make_trace(tmp_path / "t", labels={"side": ["a", "b"]})
    with pytest.raises(BadTrace, match=r"record it again with logits \(moeworks record"):
        find(trace, contrast="side=a", against="side=b", method="affinity")


@pytest.mark.parametrize(
    ("contract", "opaque", "message"),
    [
        ({"score": "identity"}, "", "weights experts by its logits themselves"),
        ({}, "hash router", "no proved contract \\(hash router\\)"),
    ],
)
def test_routers_without_probabilities_are_refused(tmp_path, contract, opaque, message):
    model = identity(Contract(experts=3, top_k=1, **contract), opaque=opaque)
    texts = [Text(A, {0: [[1]]}, logits={0: [[0.0, 1.0, 2.0]]})]
    trace = write_texts(tmp_path / "t", texts, header=make_header(model=model))
    with pytest.raises(Unsupported, match=message):
        find(trace, contrast="side=a", against=None, method="affinity")


def test_the_null_asks_for_the_upper_tail(tmp_path):
    """Enumerated: 3 + 3 documents with the rates below; 1 of the 20 choices of 3 has as large a mean, so p = 1/20."""
    rates = [("a", 9), ("a", 8), ("a", 7), ("b", 1), ("b", 2), ("b", 3)]
    texts = [Text({"side": s}, {0: [[0]] * n + [[1]] * (10 - n)}) for s, n in rates]
    trace = write_texts(tmp_path / "t", texts)
    scores = find(trace, contrast="side=a", against="side=b", method="gate_profile")
    assert scores.column("p")[:2].tolist() == [1 / 20, 1.0]
    assert scores.header.smallest_p == pytest.approx(1 / 20)
    assert scores.header.tail == "upper"


def test_methods_of_two_sides_need_both_and_of_one_aggregate_only_that(tmp_path):
    trace = make_trace(tmp_path / "t", labels={"side": ["a", "b"]})
    with pytest.raises(BadData, match="'risk_difference' compares two sides"):
        find(trace, contrast="side=a", against=None)
    with pytest.raises(BadData, match="aggregate macro only"):
        find(trace, contrast="side=a", against="side=b", method="gate_profile", aggregate="micro")
