"""Anomalies of outputs by hand: experts of unlike size, an expert that became one domain's, silent neurons."""

import math

import numpy as np
import pytest

from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.stats.outputs import output_anomalies, with_blocks

BLOCKS = 8


def statistics(norms, share, *, spread=0.0, peaks=None, per_block=100, seed=0):
    """One layer: mean |y| of each expert, (E,), and how often each value's tokens go to it, (values, E)."""
    rng = np.random.default_rng(seed)
    values, experts = share.shape
    count = np.repeat((share * per_block)[:, None], BLOCKS, 1).reshape(-1, experts)  # (D, E)
    noisy = norms * (1 + spread * rng.standard_normal(count.shape))
    arrays = {
        "count": count,
        "norm": count * noisy,
        "norm_square": count * noisy**2,
        "gated_norm": 0.5 * count * noisy,
    }
    if peaks is not None:
        arrays["neuron_peak"] = np.repeat(peaks[None], values * BLOCKS, 0)
    labels = tuple(f"v{v}\t{b:04d}" for v in range(values) for b in range(BLOCKS))
    return LayerStatistics(3, np.full(values * BLOCKS, per_block), labels, arrays)


EVEN = np.full((2, 4), 0.25)


def test_spread_by_hand():
    """Means 1, 1, 1, 5: mean 2, standard deviation sqrt(3), so 0.866; loudest 5 times the median."""
    row = output_anomalies([statistics(np.array([1.0, 1, 1, 5]), EVEN)]).collapse.to_pylist()[0]
    assert math.isclose(row["spread"], math.sqrt(3) / 2)
    assert (row["largest"], row["smallest"]) == (5.0, 1.0)
    assert row["p"] < 0.01
    assert row["chance"] < 0.1 * row["spread"]
    assert (row["low"], row["high"]) == pytest.approx((row["spread"], row["spread"]))
    assert math.isnan(row["silent"])
    assert (row["layer"], row["experts"], row["blocks"], row["tokens"]) == (3, 4, 16, 1600)


def test_like_experts_are_within_chance():
    """One distribution for all, sd 0.4 of |y| around 1: the spread is near its chance, and p is seldom small."""
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        count = np.full((16, 8), 50.0)
        draws = 1 + 0.4 * rng.standard_normal((16, 8, 50))
        arrays = {
            "count": count,
            "norm": draws.sum(2),
            "norm_square": (draws**2).sum(2),
            "gated_norm": draws.sum(2),
        }
        labels = tuple(f"all\t{b:04d}" for b in range(16))
        one = output_anomalies([LayerStatistics(0, np.full(16, 200), labels, arrays)], seed=seed)
        assert one.domains is None
        found.append(one.collapse.to_pylist()[0])
    expected = 0.4 / math.sqrt(800)  # of each mean; the deviation of 8 of them is a little smaller
    assert math.isclose(np.mean([row["chance"] for row in found]), expected, rel_tol=0.15)
    assert sum(row["p"] < 0.05 for row in found) <= 4
    assert math.isclose(np.mean([row["spread"] for row in found]), expected, rel_tol=0.15)


def test_silent_neurons_by_hand():
    """Of 4 × 10 neurons, 6 peak below a hundredth of the median (1): 0.15; a barely louder one does not count."""
    peaks = np.ones((4, 10))
    peaks[0, :6] = [0, 0.001, 0.009, 0.01, 0.005, 0.002]
    peaks[1, 0] = 0.0101
    row = output_anomalies([statistics(np.ones(4), EVEN, peaks=peaks)]).collapse.to_pylist()[0]
    assert row["silent"] == 0.15
    assert (row["silent_low"], row["silent_high"]) == pytest.approx((0.15, 0.15))


def test_an_expert_that_became_one_domains_own():
    """Expert 0 has a quarter of the runs in v0, none in v1, and is loud; weight × output says so, counts alone do not.

    Shares of v0's output: 4/7, 1/7, 1/7, 1/7; of v1's: 0, 1/3, 1/3, 1/3.
    """
    share = np.array([[0.25, 0.25, 0.25, 0.25], [0.0, 1 / 3, 1 / 3, 1 / 3]])
    rows = output_anomalies([statistics(np.array([4.0, 1, 1, 1]), share)]).domains.to_pylist()
    first, second = rows
    assert (first["value"], second["value"]) == ("v0", "v1")
    assert first["degraded"] == 1  # mean share 2/7 is at least 1 / E, all of it v0's
    assert first["largest_share"] == 1.0
    assert math.isclose(first["mass"], 4 / 7)
    assert first["p"] < 0.01
    assert first["mass"] > first["chance"]
    assert second["degraded"] == 0
    quiet = output_anomalies([statistics(np.ones(4), share)]).domains.to_pylist()[0]
    assert quiet["degraded"] == 0  # at equal size its mean share is 1/8, below an even one
    assert [row["tokens"] for row in rows] == [800, 800]


def test_blocks_deal_documents():
    texts = [Example(text=f"{n}", document=f"d{n // 2}", labels={"domain": "ab"[n % 4 // 2]}) for n in range(40)]
    found = [one.labels["moeworks block"] for one in with_blocks([*texts, Example(text="x")], "domain", blocks=4)]
    assert len(found) == 40  # the text without the label is left out
    assert all(found[n] == found[n + 1] for n in range(0, 40, 2))  # documents stay whole
    values, counts = np.unique(found, return_counts=True)
    assert [value.split("\t") for value in values] == [[v, f"{b:04d}"] for v in "ab" for b in range(4)]
    assert counts.sum() == 40
    assert max(counts) - min(counts) <= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fewest": 10**6}, "0 experts ran"),
        ({"eps": 2.0}, "eps=2.0"),
        ({"private": 1.5}, "private=1.5"),
    ],
)
def test_what_cannot_be_told(change, message):
    with pytest.raises(BadData, match=message):
        output_anomalies([statistics(np.ones(4), EVEN)], **change)


def test_other_statistics_are_refused():
    one = statistics(np.ones(4), EVEN)
    with pytest.raises(BadData, match="with_blocks"):
        output_anomalies([LayerStatistics(0, one.tokens, tuple(map(str, range(16))), one.arrays)])
    with pytest.raises(BadData, match="hold no norm"):
        output_anomalies([LayerStatistics(0, one.tokens, one.labels, {"count": one.arrays["count"]})])
