"""Overlap of sets of experts and its chance: against Python's sets and enumeration of all pairs."""

import itertools

import numpy as np
import pytest

from moeworks.errors import BadTrace
from moeworks.stats.sets import chance_any, chance_jaccard, check_ids, chosen, jaccard, overlap


def test_overlap_and_jaccard_equal_python_sets():
    rng = np.random.default_rng(0)
    first, second = (rng.random((50, 6)).argpartition(3, axis=1)[:, :3].astype(np.uint8) for _ in "ab")
    sets = [(set(a.tolist()), set(b.tolist())) for a, b in zip(first, second, strict=True)]
    assert overlap(first, second).tolist() == [len(a & b) for a, b in sets]
    assert jaccard(first, second) == pytest.approx([len(a & b) / len(a | b) for a, b in sets])


def test_slots_that_did_not_run_are_not_shared():
    """By hand: {3} and {3, 1} share one of two; two empty slots are not the same expert."""
    first = chosen(np.array([[3, 0]], np.uint8), np.array([[1.0, 0.0]]))
    second = chosen(np.array([[3, 1], [2, 0]], np.uint8), np.array([[0.5, 0.5], [1.0, 0.0]]), empty=-2)
    assert overlap(first, second[:1]).tolist() == [1]
    assert jaccard(first, second[:1]).tolist() == [0.5]
    assert overlap(first, second[1:]).tolist() == [0]
    full = np.array([[255, 0]], np.uint8)
    assert chosen(full, np.ones((1, 2))) is full


@pytest.mark.parametrize(("experts", "k"), [(8, 2), (6, 3), (5, 4)])
def test_chance_by_enumeration(experts, k):
    """All pairs of k-subsets; a set of k > E / 2 always shares something."""
    pairs = list(itertools.product(itertools.combinations(range(experts), k), repeat=2))
    shared = [len(set(a) & set(b)) for a, b in pairs]
    assert chance_any(experts, k) == pytest.approx(np.mean([s > 0 for s in shared]))
    assert chance_jaccard(experts, k) == pytest.approx(np.mean([s / (2 * k - s) for s in shared]))


def test_chance_of_two_of_eight():
    """By hand: 1 - C(6, 2) / C(8, 2) = 1 - 15 / 28."""
    assert chance_any(8, 2) == pytest.approx(13 / 28)


def test_an_id_beyond_the_experts_is_an_altered_trace():
    check_ids(np.array([[3]]), 4)
    with pytest.raises(BadTrace, match="names expert 4, but experts are 0 to 3"):
        check_ids(np.array([[4]]), 4)
