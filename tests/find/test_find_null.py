"""The null and its p-values: against scipy's permutation test, full enumerations in plain Python, and hand counts."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from helpers.decisions import Text, one_expert_texts, write_texts
from moeworks.errors import BadData
from moeworks.find import find
from moeworks.find.null import Null, p_values, q_values, smallest_p
from moeworks.find.scores import risk_difference
from moeworks.find.sides import Entries

UNPAIRED = [("a", f"a{i}", hits, 12 - hits) for i, hits in enumerate((9, 7, 8, 3))] + [
    ("b", f"b{i}", hits, 12 - hits) for i, hits in enumerate((1, 4, 2, 6))
]
PAIRED = [(side, f"d{i}", hits, 10 - hits) for i, both in enumerate([(9, 2), (7, 5), (3, 6), (8, 1), (5, 4)])
          for side, hits in zip("ab", both, strict=True)]  # fmt: skip


def entries(side, document, tokens=None, stratum=None):
    side, document = np.asarray(side), np.asarray(document)
    partner = [
        next((j for j in range(len(side)) if document[j] == document[i] and side[j] != side[i]), -1)
        for i in range(len(side))
    ]
    return Entries(
        side=side,
        document=document,
        tokens=np.ones(len(side), int) if tokens is None else np.asarray(tokens),
        partner=np.array(partner),
        stratum=np.zeros(len(side), int) if stratum is None else np.asarray(stratum),
        of_request=np.zeros((2, 0), int),
    )


def p_of_expert_0(tmp_path, texts, **options):
    trace = write_texts(tmp_path / "t", texts)
    scores = find(trace, contrast="side=a", against="side=b", **options)
    return scores.table["p"][0].as_py(), scores


def test_labels_equal_scipy_on_all_arrangements(tmp_path):
    """scipy.stats.permutation_test on the documents' rates, all 70 arrangements; equal sizes make it symmetric."""
    p, scores = p_of_expert_0(tmp_path, one_expert_texts(UNPAIRED), aggregate="macro")
    rates = [[hits / 12 for s, _, hits, _ in UNPAIRED if s == side] for side in "ab"]
    expected = stats.permutation_test(rates, lambda x, y: np.mean(x) - np.mean(y), n_resamples=np.inf).pvalue
    assert p == pytest.approx(expected, abs=1e-12)
    assert (scores.header.null, scores.header.drawn, scores.header.exhaustive) == ("labels", 70, True)
    assert scores.header.smallest_p == pytest.approx(2 / 70)


def test_flips_equal_scipy_on_all_arrangements(tmp_path):
    """scipy.stats.permutation_test of paired samples, all 2 ** 5 swaps."""
    p, scores = p_of_expert_0(tmp_path, one_expert_texts(PAIRED), aggregate="macro")
    rates = [[hits / 10 for s, _, hits, _ in PAIRED if s == side] for side in "ab"]
    test = stats.permutation_test(
        rates, lambda x, y: np.mean(x) - np.mean(y), permutation_type="samples", n_resamples=np.inf
    )
    assert p == pytest.approx(test.pvalue, abs=1e-12)
    assert (scores.header.null, scores.header.drawn, scores.header.pairs) == ("flips", 32, 5)
    assert scores.header.smallest_p == pytest.approx(2 / 32)


def test_micro_with_unequal_documents_equals_enumeration(tmp_path):
    """A loop over all C(8, 3) = 56 choices of documents, pooled rates recomputed from integer counts."""
    counts = [("a", 9, 1), ("a", 3, 3), ("a", 14, 6), ("b", 2, 18), ("b", 1, 4), ("b", 5, 5), ("b", 0, 3), ("b", 2, 9)]
    p, _ = p_of_expert_0(tmp_path, one_expert_texts([(s, f"d{i}", h, m) for i, (s, h, m) in enumerate(counts)]))

    def difference(chosen):
        pooled = []
        for members in (chosen, [i for i in range(8) if i not in chosen]):
            hits, misses = (sum(counts[i][column] for i in members) for column in (1, 2))
            pooled.append(hits / (hits + misses))
        return pooled[0] - pooled[1]

    observed = abs(difference((0, 1, 2)))
    far = [abs(difference(c)) >= observed - 1e-12 for c in itertools.combinations(range(8), 3)]
    assert len(far) == 56
    assert p == pytest.approx(np.mean(far), abs=1e-12)


def test_pairs_and_single_documents_together_equal_enumeration(tmp_path):
    """A loop over 2 ** 2 swaps of two pairs times C(4, 2) labels of four single documents, pooled rates.

    Pairs swap rates, numbers of tokens stay: (8, 2) and (3, 9) become 10 tokens of rate 3/12 and 12 of rate 8/10.
    """
    pairs = [((8, 2), (3, 9)), ((6, 1), (2, 2))]  # (hits, misses) on a and on b
    single = [("a", (5, 1)), ("a", (7, 5)), ("b", (1, 6)), ("b", (4, 4))]
    texts = [(s, f"p{i}", *sides[j]) for i, sides in enumerate(pairs) for j, s in enumerate("ab")]
    p, scores = p_of_expert_0(tmp_path, one_expert_texts(texts + [(s, f"s{i}", *c) for i, (s, c) in enumerate(single)]))

    def difference(swaps, chosen):
        sums = np.zeros((2, 2))
        for swap, sides in zip(swaps, pairs, strict=True):
            rates = [hits / (hits + misses) for hits, misses in sides]
            for side, (tokens, rate) in enumerate(zip(map(sum, sides), rates[::-1] if swap else rates, strict=True)):
                sums[side] += tokens * rate, tokens * (1 - rate)
        for i, (_, counts) in enumerate(single):
            sums[0 if i in chosen else 1] += counts
        rates = sums[:, 0] / sums.sum(1)
        return rates[0] - rates[1]

    observed = abs(difference((0, 0), (0, 1)))
    every = [
        abs(difference(swaps, chosen)) >= observed - 1e-12
        for swaps in itertools.product((0, 1), repeat=2)
        for chosen in itertools.combinations(range(4), 2)
    ]
    assert len(every) == scores.header.drawn == 24
    assert scores.header.null == "labels and flips"
    assert scores.header.smallest_p == pytest.approx(1 / 24)  # pairs of unequal sides have no mirror image
    assert p == pytest.approx(np.mean(every), abs=1e-12)


def test_within_a_label_equals_enumeration(tmp_path):
    """A loop over C(3, 1) choices among law documents times C(4, 2) among stories."""
    rows = [("a", "law", 9), ("b", "law", 3), ("b", "law", 4), ("a", "story", 8), ("a", "story", 6), ("b", "story", 5),
            ("b", "story", 1)]  # fmt: skip
    texts = [Text({"side": s, "domain": d}, {0: [[0]] * h + [[1]] * (10 - h)}) for s, d, h in rows]
    p, scores = p_of_expert_0(tmp_path, texts, within="domain", aggregate="macro")
    rates = np.array([h / 10 for _, _, h in rows])

    def difference(chosen):
        inside = np.isin(np.arange(7), chosen)
        return abs(rates[inside].mean() - rates[~inside].mean())

    every = [
        difference((one, *two)) >= difference((0, 3, 4)) - 1e-12
        for one in (0, 1, 2)
        for two in itertools.combinations((3, 4, 5, 6), 2)
    ]
    assert scores.header.drawn == len(every) == 18
    assert scores.header.within == "domain"
    assert p == pytest.approx(np.mean(every), abs=1e-12)


def test_within_removes_a_topic_confound(tmp_path):
    """Expert 0 runs for law only, and law is nearly always on side a: significant, but not within domains."""
    texts = []
    for i in range(40):
        side = "a" if i < 20 else "b"
        law = (i % 10 != 0) if side == "a" else (i % 10 == 0)
        texts.append(
            Text({"side": side, "domain": "law" if law else "story"}, {0: [[0]] * 9 + [[1]] if law else [[1]] * 10})
        )
    trace = write_texts(tmp_path / "t", texts)
    plain = find(trace, contrast="side=a", against="side=b")
    inside = find(trace, contrast="side=a", against="side=b", within="domain")
    assert plain.table["passes"][0].as_py()
    assert inside.table["p"][0].as_py() == 1.0  # within a domain all documents have the same rate
    assert plain.table["score"][0].as_py() == inside.table["score"][0].as_py() == pytest.approx(0.9 * 0.8)


def test_random_draws_come_close_to_all_arrangements():
    """All C(14, 7) = 3,432 arrangements are the truth; 4 standard errors of 2,000 draws are allowed."""
    rng = np.random.default_rng(3)
    null = Null(entries([0] * 7 + [1] * 7, range(14)))
    values, sizes = rng.random((14, 40)) + np.linspace(0, 0.5, 40) * (np.arange(14) < 7)[:, None], np.ones(14)
    exact = p_values(null, values, sizes, risk_difference, permutations=4000, most=4000, seed=0)
    drawn = p_values(null, values, sizes, risk_difference, permutations=2000, most=2000, seed=0)
    assert (exact.exhaustive, exact.drawn) == (True, 3432)
    assert (drawn.exhaustive, drawn.drawn) == (False, 2000)
    error = np.sqrt(exact.p * (1 - exact.p) / 2000) + 1 / 2000
    assert (np.abs(drawn.p - exact.p) < 4 * error).all()
    assert exact.p.min() < 0.05 < 0.5 < exact.p.max()


def test_draws_keep_pairs_apart_and_sides_full():
    """By hand: a pair's two entries are always on different sides, each stratum keeps its number on either side."""
    null = Null(entries([0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 3, 0, 4, 5, 6], stratum=[0, 0, 1, 1, 0, 0, 1, 1]))
    drawn = null.draw(np.random.default_rng(0), 500)
    assert (drawn[:, 0] + drawn[:, 4] == 1).all()
    assert (drawn[:, [1, 5]].sum(1) == 1).all()
    assert (drawn[:, [2, 3, 6, 7]].sum(1) == 2).all()
    assert len(np.unique(drawn, axis=0)) == null.arrangements == len(np.unique(null.every(), axis=0)) == 2 * 2 * 6
    assert (null.every() == null.observed()).all(1).sum() == 1


def test_the_plus_one_rule_bounds_p_from_below():
    """By hand: no random arrangement of 20 + 20 documents reaches a perfect separation: p = 1 / (1 + 200)."""
    null = Null(entries([0] * 20 + [1] * 20, range(40)))
    values = (np.arange(40) < 20)[:, None].astype(float)
    tested = p_values(null, values, np.ones(40), risk_difference, permutations=200, most=200, seed=1)
    assert tested.p[0] == pytest.approx(1 / 201)
    assert smallest_p(null, 200, 200) == pytest.approx(1 / 201)
    assert smallest_p(Null(entries([0] * 3 + [1] * 4, range(7))), 1000, 5000) == pytest.approx(1 / math.comb(7, 3))


def test_refining_gives_valid_p_and_leaves_clear_cases_alone():
    """By the rule: an expert that stops after the first round has the p that it has without, at least 11 / 101."""
    rng = np.random.default_rng(0)
    null = Null(entries([0] * 15 + [1] * 15, range(30)))
    values = rng.random((30, 60))
    values[:15, 0] += 2
    one = p_values(null, values, np.ones(30), risk_difference, permutations=100, most=100, seed=0)
    more = p_values(null, values, np.ones(30), risk_difference, permutations=100, most=5000, seed=0)
    stopped = one.p >= 11 / 101
    assert np.array_equal(one.p[stopped], more.p[stopped])
    assert more.drawn == 5000
    assert more.p[0] == pytest.approx(1 / 5001)
    assert stopped.sum() > 40


def test_one_planted_expert_of_many_passes_only_when_refined(tmp_path):
    """1 / 101 × 64 experts is above 0.05, so that 100 permutations cannot show a single expert; 1,280 can."""
    rng = np.random.default_rng(1)
    texts = []
    for i in range(40):
        ids = rng.integers(1, 64, (20, 1))
        ids[: 15 if i % 2 else 1] = 0
        texts.append(Text({"side": "ab"[i % 2]}, {0: ids}))
    trace = write_texts(tmp_path / "t", texts, experts=64)
    coarse = find(trace, contrast="side=b", against="side=a", permutations=100, refine=False)
    fine = find(trace, contrast="side=b", against="side=a", permutations=100)
    assert "No expert passes." in coarse.summary()
    assert "at least 13 do" in coarse.summary()  # 13 × 0.05 / 64 is the first multiple above 1 / 101
    assert fine.table["passes"].to_pylist() == [True] + [False] * 63
    assert fine.header.drawn == 1280


def test_q_values_are_benjamini_hochberg():
    """The definition, in a loop: the smallest of p × m / rank over all p that are no smaller."""
    p = np.random.default_rng(0).random(50) ** 3
    ranked = sorted(p)
    expected = [min(other * 50 / (r + 1) for r, other in enumerate(ranked) if other >= own) for own in p]
    assert q_values(p) == pytest.approx(np.minimum(expected, 1), abs=1e-12)


def test_strata_that_leave_nothing_to_exchange_are_refused(tmp_path):
    texts = [Text({"side": s, "domain": s}, {0: [[0]]}) for s in "aabb"]
    with pytest.raises(BadData, match="no document can change sides"):
        find(write_texts(tmp_path / "t", texts), contrast="side=a", against="side=b", within="domain")
