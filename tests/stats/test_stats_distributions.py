"""Entropy and divergence against hand-worked numbers and scipy."""

import numpy as np
import pytest
from scipy.spatial import distance
from scipy.special import softmax as scipy_softmax
from scipy.stats import entropy as scipy_entropy

from moeworks.errors import BadTrace
from moeworks.stats import entropy, jensen_shannon, normalised_divergence
from moeworks.stats.distributions import softmax, weight_shares


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        ([0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], (0.2531, 0.4458, 0.568)),
        ([0.4, 0.2, 0.2, 0.2], [0.2, 0.4, 0.2, 0.2], (0.0340, 0.0541, 0.628)),
    ],
)
def test_worked_numbers(p, q, expected):
    """Worked by hand for four experts: JS in nats, the norm ln 4 - mean entropy, and their ratio."""
    p, q = np.array(p), np.array(q)
    js, norm, ratio = expected
    assert jensen_shannon(p, q) == pytest.approx(js, abs=5e-5)
    assert np.log(4) - (entropy(p) + entropy(q)) / 2 == pytest.approx(norm, abs=5e-5)
    assert normalised_divergence(p, q) == pytest.approx(ratio, abs=2e-3)


@pytest.mark.parametrize("experts", [4, 128])
def test_disjoint_one_hot_distributions(experts):
    """By hand: both entropies are 0 and JS is ln 2, so that D is ln 2 / ln E: 0.5 for 4, 0.143 for 128."""
    p, q = np.eye(experts)[:2]
    assert normalised_divergence(p, q) == pytest.approx(np.log(2) / np.log(experts), abs=1e-12)
    assert jensen_shannon(p, q) == pytest.approx(np.log(2), abs=1e-12)


def test_equal_to_scipy_on_random_distributions():
    """scipy.spatial.distance.jensenshannon is the root of it; scipy.stats.entropy, scipy.special.softmax."""
    rng = np.random.default_rng(0)
    z = 5 * rng.normal(size=(2, 50, 16)).astype(np.float32)
    p, q = softmax(z)
    assert p == pytest.approx(scipy_softmax(z[0].astype(float), axis=-1), abs=1e-15)
    assert entropy(p) == pytest.approx(scipy_entropy(p, axis=-1), abs=1e-12)
    assert jensen_shannon(p, q) == pytest.approx(distance.jensenshannon(p, q, axis=-1) ** 2, abs=1e-12)


def test_uniform_routing_has_no_normalised_divergence():
    """By the definition: the norm is 0 for two uniform distributions."""
    uniform = np.full(8, 1 / 8)
    assert np.isnan(normalised_divergence(uniform, uniform))
    assert jensen_shannon(uniform, uniform) == 0


def test_weight_shares():
    """By hand; a token whose slots did not run has no share."""
    assert np.array_equal(weight_shares(np.array([[1.0, 3.0], [0, 0]])), [[0.25, 0.75], [0, 0]])
    with pytest.raises(BadTrace, match="negative combine weights"):
        weight_shares(np.array([[1.0, -0.5]]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("into", [np.float64, np.int64])
def test_counting_in_machine_code_is_counting_in_numpy(monkeypatch, dtype, into):
    """Rows left out, weights of 0 and of -0, NaN weights (which ran) and wrong ids: the same either way."""
    from moeworks.stats import counts as module

    rng = np.random.default_rng(0)
    ids = rng.permuted(np.tile(np.arange(16, dtype=np.uint8), (40_000, 1)), axis=1)[:, :4]
    weights = rng.random((40_000, 4)).astype(dtype)
    weights[rng.random(weights.shape) < 0.1] = 0
    weights[:5] = -0.0
    weights[5:9] = np.nan
    entry = rng.integers(-1, 50, 40_000)
    found = []
    for worth in (1 << 15, 1 << 30):
        monkeypatch.setattr(module, "_WORTH_COMPILING", worth)
        table = np.zeros((50, 16), into)
        module.add_runs(table, entry, ids, weights)
        found.append(table)
        wrong = ids.copy()
        wrong[20_000, 1] = 16
        with pytest.raises(BadTrace):
            module.add_runs(np.zeros((50, 16), into), np.zeros(40_000, np.int64), wrong, weights)
    assert (found[0] == found[1]).all()
    assert found[0].sum() == ((weights != 0) & (entry >= 0)[:, None]).sum()


def test_shares_in_machine_code_are_those_of_numpy(monkeypatch):
    from moeworks.stats import counts as module

    rng = np.random.default_rng(1)
    ids = rng.permuted(np.tile(np.arange(16, dtype=np.uint8), (40_000, 1)), axis=1)[:, :4]
    weights = rng.random((40_000, 4)).astype(np.float16)
    weights[:50] = 0  # no expert ran: nothing to share
    entry = rng.integers(-1, 50, 40_000)
    found = []
    for worth in (1 << 15, 1 << 30):
        monkeypatch.setattr(module, "_WORTH_COMPILING", worth)
        table = np.zeros((50, 16))
        module.add_shares(table, entry, ids, weights)
        found.append(table)
        for wrong_ids, wrong_weight in ((16, 0.5), (0, -0.5)):
            other_ids, other = ids.copy(), weights.copy()
            other_ids[20_000, 1], other[20_000, 1] = wrong_ids, wrong_weight
            with pytest.raises(BadTrace):
                module.add_shares(np.zeros((50, 16)), np.zeros(40_000, np.int64), other_ids, other)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)
    ran = (entry >= 0) & (np.arange(40_000) >= 50)
    assert found[0].sum() == pytest.approx(ran.sum())
