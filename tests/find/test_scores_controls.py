"""Controls: token-matched sides, topics held apart, and the standing committee weighted down."""

import math

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.errors import BadData
from moeworks.find import find
from moeworks.find.committee import committee_weights
from moeworks.find.matching import token_factors
from moeworks.find.sides import Sides
from moeworks.where import Where

SIDES = {"contrast": "side=a", "against": "side=b"}


def clauses():
    return Sides(Where.parse("side=a"), Where.parse("side=b"), Where())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Token ids by hand. a: 5 5 5 6 | 5 7; b: 5 5 6 6 | 8 6. Shared: 5 twice, 6 once; 7 and 8 never."""
    texts = [
        Text({"side": "a"}, {0: [[0], [0], [1], [0]]}, tokens=[5, 5, 5, 6]),
        Text({"side": "a"}, {0: [[1], [2]]}, tokens=[5, 7]),
        Text({"side": "b"}, {0: [[0], [1], [1], [3]]}, tokens=[5, 5, 6, 6]),
        Text({"side": "b"}, {0: [[2], [0]]}, tokens=[8, 6]),
        Text({"side": "b"}, {0: [[2]]}, tokens=[8]),  # nothing of it is shared: it is no document of this comparison
    ]
    return write_texts(tmp_path_factory.mktemp("small") / "t", texts)


def test_factors_by_hand(small):
    """a has 5 four times, b twice: a's count half. a has 6 once, b three times: b's count a third."""
    factors = token_factors(small, clauses())
    assert factors[0, 5:].tolist() == [0.5, 1, 0, 0]
    assert factors[1, 5:] == pytest.approx([1, 1 / 3, 0, 0])


def test_matched_rates_by_hand(small):
    """Of 3 shared tokens. a: expert 0 ½+½+1 = 2, expert 1 ½+½ = 1. b: expert 0 1+⅓, expert 1 1+⅓, expert 3 ⅓."""
    scores = find(small, **SIDES, match="token", permutations=20)
    assert scores.column("contrast_rate") == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert scores.column("against_rate") == pytest.approx([4 / 9, 4 / 9, 0, 1 / 9])
    assert scores.header.tokens == (3, 3)
    assert scores.header.documents == (2, 2)
    assert scores.header.match == "token"
    assert "ids of one side only do not count" in scores.summary()


def test_matched_means_over_documents_by_hand(small):
    """a: texts weigh 2.5 and 0.5: expert 0 on 2 of 2.5 and 0; b: texts weigh 2⅔ and ⅓: 1 of 2⅔ and ⅓ of ⅓."""
    scores = find(small, **SIDES, match="token", aggregate="macro", permutations=20)
    assert scores.column("contrast_rate")[0] == pytest.approx((2 / 2.5 + 0) / 2)
    assert scores.column("against_rate")[0] == pytest.approx((1 / (2 + 2 / 3) + 1) / 2)


def test_probabilities_are_matched_too(tmp_path):
    """By hand: a's two tokens of id 5 count half each: (1/4 + 3/4) / 2 = 1/2; the token of id 6 does not count."""
    far = math.log(3)
    texts = [
        Text({"side": "a"}, {0: [[0]] * 3}, tokens=[5, 6, 5], logits={0: [[0, far], [99, 0], [far, 0]]}),
        Text({"side": "b"}, {0: [[1]]}, tokens=[5], logits={0: [[0, 0]]}),
    ]
    trace = write_texts(tmp_path / "t", texts, experts=2)
    scores = find(trace, **SIDES, match="token", method="affinity", permutations=20)
    assert scores.column("score") == pytest.approx([1 / 2, 1 / 2])


def confounded(path, *, behaviour=0.0, seed=0):
    """Vocabulary differs between the sides, and expert 0 of 8 follows one word whatever the side; expert 1 follows
    the side on the other words, if asked. Side a says word 1 on 60 % of its tokens, side b on 20 %."""
    rng = np.random.default_rng(seed)
    texts = []
    for i in range(60):
        side = "ab"[i % 2]
        word = np.where(rng.random(30) < (0.6 if side == "a" else 0.2), 1, rng.integers(2, 12, 30))
        expert = np.where((word == 1) & (rng.random(30) < 0.8), 0, rng.integers(2, 8, 30))
        if side == "a":
            expert = np.where((word != 1) & (rng.random(30) < behaviour), 1, expert)
        texts.append(
            Text({"side": side, "topic": "xy"[rng.random() < 0.5]}, {0: expert[:, None]}, tokens=word.tolist())
        )
    return write_texts(path, texts, experts=8)


def test_an_expert_of_a_word_passes_unmatched_and_not_matched(tmp_path):
    trace = confounded(tmp_path / "t", behaviour=0.3)
    plain, matched = (find(trace, **SIDES, permutations=400, match=match) for match in (None, "token"))
    assert plain.column("passes")[:2].tolist() == [True, True]
    assert matched.column("passes")[:2].tolist() == [False, True]
    assert plain.column("score")[0] > 0.15
    assert abs(matched.column("score")[0]) < 0.05
    assert matched.column("score")[1] == pytest.approx(0.3 * 2 / 3, abs=0.06)  # shared: 20 % word 1, 40 % others


def test_matched_nulls_claim_no_more_than_they_should(tmp_path):
    """10 confounded traces of 8 experts where only words differ: p is at most its level, 4 standard errors allowed."""
    p = [
        find(
            confounded(tmp_path / f"t{s}", seed=s), **SIDES, match="token", permutations=199, refine=False, bootstrap=1
        )
        for s in range(10)
    ]
    values = np.concatenate([scores.column("p") for scores in p])
    for level in (0.05, 0.2):
        assert np.mean(values <= level) < level + 4 * np.sqrt(level * (1 - level) / len(values))
    assert sum(scores.column("passes").any() for scores in p) <= 3


def test_sides_without_a_common_word_cannot_be_matched(tmp_path):
    texts = [Text({"side": s}, {0: [[0]]}, tokens=[t]) for s, t in (("a", 1), ("b", 2))]
    trace = write_texts(tmp_path / "t", texts)
    with pytest.raises(BadData, match="no token id occurs both"):
        find(trace, **SIDES, match="token")
    with pytest.raises(BadData, match="between two sides only"):
        find(trace, contrast="side=a", against=None, method="gate_profile", match="token")
    with pytest.raises(BadData, match="match cannot be 'topic'"):
        find(trace, **SIDES, match="topic")


def test_a_topic_passes_when_pooled_and_not_within_topics(tmp_path):
    """Side a is law on 3 texts of 4, side b story on 3 of 4; L0.E5 is planted for law, L1.E2 for the side itself."""
    domain = ["law", "story", "law", "story", "law", "story", "story", "law"]  # sides alternate a, b
    trace = make_trace(
        tmp_path / "t", requests=96, rows_per_request=25, experts=16, layers=(0, 1), topic=0.4,
        labels={"side": ["a", "b"], "domain": domain},
        planted={(0, 5): ("domain", "law", 3.0), (1, 2): ("side", "a", 3.0)},
    )  # fmt: skip
    pooled, apart = (find(trace, **SIDES, within=within, permutations=300) for within in (None, "domain"))

    def passing(scores):
        return [(r["layer"], r["expert"]) for r in scores.table.to_pylist() if r["passes"] and r["score"] > 0]

    assert passing(pooled) == [(0, 5), (1, 2)]
    assert passing(apart) == [(1, 2)]


def test_committee_weights_by_hand():
    """k = 2 of 8, fair 1/4: always → 0; 1/2 → ln 2 / ln 4 = 1/2; fair and less → 1. A second layer of its own."""
    rates = np.array([1.0, 0.5, 0.25, 0.1, 0.1, 0.05, 0, 0, 0.5, 0.5])
    weights = committee_weights(rates, {0: 8, 3: 2})
    assert weights == pytest.approx([0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1])
    assert committee_weights(np.ones(2), {0: 2}).tolist() == [1, 1]


def test_the_committee_loses_its_place_and_keeps_its_p(tmp_path):
    """By hand: expert 0 runs on 9 of 10 against 6 of 10 (pooled .75), expert 1 on 1 of 10 against 3 of 10 (.2) …

    fair = 1/4, so expert 0's .3 becomes .3 · ln .75 / ln .25 and expert 1's -.2 stays.
    """
    texts = [Text({"side": "a"}, {0: [[0]] * 9 + [[1]]}) for _ in range(6)]
    texts += [Text({"side": "b"}, {0: [[0]] * 6 + [[1]] * 3 + [[2]]}) for _ in range(6)]
    trace = write_texts(tmp_path / "t", texts)
    plain, lowered = (find(trace, **SIDES, downweight=option) for option in (None, "committee"))
    assert plain.column("score")[:3] == pytest.approx([0.3, -0.2, -0.1])
    weight = math.log(0.75) / math.log(0.25)
    assert lowered.column("score")[:3] == pytest.approx([0.3 * weight, -0.2, -0.1])
    for name in ("p", "q", "contrast_rate"):
        assert lowered.column(name).tolist() == plain.column(name).tolist()
    assert lowered.column("high")[0] == pytest.approx(plain.column("high")[0] * weight)
    assert [lowered.top(1, sign=0)["expert"][0].as_py(), plain.top(1, sign=0)["expert"][0].as_py()] == [1, 0]
    assert lowered.header.downweight == "committee"


def test_only_runs_can_be_weighted_down(tmp_path):
    trace = make_trace(tmp_path / "t", labels={"side": ["a", "b"]}, logits=True)
    with pytest.raises(BadData, match="reads probabilities; only scores of runs"):
        find(trace, **SIDES, method="affinity", downweight="committee")
    with pytest.raises(BadData, match="downweight cannot be 'idf'"):
        find(trace, **SIDES, downweight="idf")
