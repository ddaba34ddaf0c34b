"""Whether the null holds what it promises: calibrated where nothing is planted, and the plant found where one is."""

import numpy as np
import pytest
from scipy import stats

from helpers.traces import make_trace
from moeworks.find import find
from moeworks.find.null import Null, p_values, q_values
from moeworks.find.scores import risk_difference
from moeworks.find.sides import Entries


def null_documents(rng, experts, *, pairs=False):
    """Counts of 20 + 20 documents of unequal length whose rates are their own: no side differs from the other."""
    n = 40
    side = np.arange(n) >= 20
    tokens = rng.integers(10, 120, n)
    own = rng.normal(size=(n, experts))
    if pairs:  # both texts of a pair share most of their topic
        own = 0.9 * np.tile(rng.normal(size=(20, experts)), (2, 1)) + 0.3 * own
    runs = rng.binomial(tokens[:, None], 1 / (1 + np.exp(1 - own))).astype(float)  # (n, experts)
    partner = (np.arange(n) + 20) % n if pairs else np.full(n, -1)
    document = np.arange(n) % 20 if pairs else np.arange(n)
    entries = Entries(side.astype(int), document, tokens, partner, np.zeros(n, int), np.zeros((2, 0), int))
    return entries, runs


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("aggregate", ["micro", "macro"])
def test_p_is_calibrated_when_documents_differ_but_sides_do_not(pairs, aggregate):
    """2,000 independent nulls: the share of p ≤ a must be a, by the definition of p; 4 standard errors allowed.

    Fisher's exact test on tokens (scipy), which takes tokens for independent, calls most of them significant.
    """
    rng = np.random.default_rng(7)
    p, naive = [], []
    for model in range(20):
        entries, runs = null_documents(rng, 100, pairs=pairs)
        sizes = entries.tokens.astype(float)
        values, weights = (runs, sizes) if aggregate == "micro" else (runs / sizes[:, None], np.ones(40))
        tested = p_values(Null(entries), values, weights, risk_difference, permutations=399, most=399, seed=model)
        p += tested.p.tolist()
        a, b = (runs[entries.side == s].sum(0) for s in (0, 1))
        total = [sizes[entries.side == s].sum() for s in (0, 1)]
        naive += [
            stats.fisher_exact([[a[e], total[0] - a[e]], [b[e], total[1] - b[e]]]).pvalue for e in range(0, 100, 20)
        ]
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 2000))
    assert np.mean(np.array(naive) <= 0.05) > (0.15 if pairs else 0.5)


@pytest.mark.parametrize(("short", "long"), [(1, 100), (5, 40), (40, 120)])
def test_pairs_of_unequal_length_are_calibrated(short, long):
    """1,000 nulls: 60 documents with `short` tokens on one side and `long` on the other, pooled; 4 standard errors.

    A short side swapped whole for a long one gave 20 % of p at most 0.05 for 1 against 8, and none for 50 against 200.
    """
    rng = np.random.default_rng(11)
    p = []
    for model in range(10):
        rates = 1 / (1 + np.exp(2 - 0.7 * rng.normal(size=(60, 100))))
        tokens = np.repeat([short, long], 60)
        runs = rng.binomial(tokens[:, None], np.tile(rates, (2, 1))).astype(float)
        partner, document = (np.arange(120) + 60) % 120, np.arange(120) % 60
        entries = Entries(np.repeat([0, 1], 60), document, tokens, partner, np.zeros(120, int), np.zeros((2, 0), int))
        sizes = tokens.astype(float)
        p += p_values(Null(entries), runs, sizes, risk_difference, permutations=399, most=399, seed=model).p.tolist()
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 1000))


def test_refined_p_is_calibrated_too():
    """Drawing on where p is small must not make p too small: P(p ≤ a) is at most a, also far down."""
    rng = np.random.default_rng(8)
    p = []
    for _ in range(40):
        entries, runs = null_documents(rng, 250)
        tested = p_values(
            Null(entries), runs, entries.tokens.astype(float), risk_difference, permutations=49, most=1600, seed=2
        )
        p += tested.p.tolist()
    for level in (0.005, 0.02, 0.05, 0.2):
        assert np.mean(np.array(p) <= level) < level + 4 * np.sqrt(level * (1 - level) / len(p))
    assert np.mean(np.array(p) <= 0.05) > 0.03


def test_false_discoveries_are_rare_on_nulls():
    """Where no expert is real, every discovery is false: at most alpha of the models may have one.

    100 models of 60 experts; more than 13 with a discovery has a probability below 0.001 at alpha = 0.05 (binomial).
    """
    rng = np.random.default_rng(9)
    alarms = 0
    for _ in range(100):
        entries, runs = null_documents(rng, 60)
        p = p_values(
            Null(entries), runs, entries.tokens.astype(float), risk_difference, permutations=200, most=1200, seed=3
        ).p
        alarms += bool((q_values(p) <= 0.05).any())
    assert stats.binom.sf(13, 100, 0.05) < 0.001
    assert alarms <= 13


def test_half_of_the_experts_real_keeps_the_false_discovery_rate():
    """60 models, 10 of 60 experts shifted: the mean share of false among passing experts is at most alpha."""
    rng = np.random.default_rng(10)
    shares, found = [], []
    for _ in range(60):
        entries, runs = null_documents(rng, 60)
        tokens = entries.tokens.astype(float)
        real = np.arange(60) < 10
        runs[:20, real] = np.minimum(runs[:20, real] + 0.4 * tokens[:20, None], tokens[:20, None])
        q = q_values(p_values(Null(entries), runs, tokens, risk_difference, permutations=200, most=1200, seed=4).p)
        passes = q <= 0.05
        shares.append((passes & ~real).sum() / max(passes.sum(), 1))
        found.append(passes[real].mean())
    assert np.mean(shares) < 0.05 + 3 * np.std(shares) / np.sqrt(60)
    assert np.mean(found) > 0.8


def test_a_trace_with_nothing_planted_passes_nothing_while_a_token_test_passes_much(tmp_path):
    """The trace helper's documents share a topic; its labels mean nothing. Fisher on tokens is the naive test."""
    trace = make_trace(
        tmp_path / "t", requests=60, rows_per_request=40, experts=24, layers=(0, 1, 2), labels={"lang": ["fr", "en"]},
        topic=1.0, seed=5,
    )  # fmt: skip
    scores = find(trace, contrast="lang=fr", against="lang=en", permutations=300)
    assert not scores.column("passes").any()
    assert np.mean(scores.column("p") <= 0.05) < 0.15
    naive = [
        stats.fisher_exact([[round(1200 * rate), round(1200 * (1 - rate))] for rate in rates]).pvalue
        for rates in zip(scores.column("contrast_rate"), scores.column("against_rate"), strict=True)
    ]
    assert np.mean(np.array(naive) <= 0.05) > 0.4


@pytest.mark.parametrize("aggregate", ["micro", "macro"])
@pytest.mark.parametrize("pairs", [False, True])
def test_the_planted_experts_are_found(tmp_path, aggregate, pairs):
    """Planted: L1.E3 for French, L2.E5 for English, among 96 experts and topics that differ by document."""
    trace = make_trace(
        tmp_path / "t",
        requests=80,
        rows_per_request=[15, 30, 25],
        experts=32,
        top_k=4,
        layers=(0, 1, 2),
        labels={"lang": ["fr", "en"]},
        requests_per_document=2 if pairs else 1,
        planted={(1, 3): ("lang", "fr", 2.5), (2, 5): ("lang", "en", 2.5)},
        topic=0.7,
    )
    scores = find(trace, contrast="lang=fr", against="lang=en", aggregate=aggregate, permutations=400)
    assert scores.header.null == ("flips" if pairs else "labels")
    (first,) = scores.top(1, sign=+1).to_pylist()
    (last,) = scores.top(1, sign=-1).to_pylist()
    assert ((first["layer"], first["expert"]), (last["layer"], last["expert"])) == ((1, 3), (2, 5))
    for planted in (first, last):
        assert planted["passes"]
        assert planted["q"] <= 0.05
        assert planted["stability"] > 0.95
    assert 0.1 < first["low"] < first["score"] < first["high"]
    others = scores.matrix("passes")[0]  # nothing is planted in layer 0
    assert others.sum() <= 2
