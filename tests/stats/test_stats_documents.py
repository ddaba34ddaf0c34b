"""Sums and intervals by document: against loops, and against the textbook standard error."""

import math

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from moeworks.errors import BadData
from moeworks.stats.documents import add_sums, draw_documents, percentiles, ratio_intervals, selected_documents
from moeworks.where import Where


def test_add_sums_equals_a_loop():
    rng = np.random.default_rng(0)
    entry, values = rng.integers(-1, 4, 100), rng.random(100)
    sums = np.ones(4)
    add_sums(sums, entry, values)
    assert sums == pytest.approx([1 + values[entry == e].sum() for e in range(4)])
    small = np.zeros(1)
    add_sums(small, np.zeros(300, int), np.full(300, 200, np.uint8))  # sums of small integers do not overflow
    assert small[0] == 60_000
    add_sums(small, np.full(3, -1), np.ones(3))
    assert small[0] == 60_000


def test_selected_documents_are_numbered_without_gaps(tmp_path):
    texts = [Text({"lang": lang}, {0: [[0]] * n}, document=d) for lang, n, d in
             (("en", 2, "a"), ("fr", 3, "b"), ("en", 1, "c"), ("en", 4, "a"))]  # fmt: skip
    found = selected_documents(write_texts(tmp_path / "t", texts), Where.parse("lang=en"))
    assert found.of_request.tolist() == [0, -1, 1, 0]
    assert found.tokens.tolist() == [6, 1]
    assert found.of_text.tolist() == [2, 0, 1, 4]


def test_interval_has_the_width_of_the_standard_error():
    """Outside truth: the mean of 400 documents of equal size, standard deviation 1, ± 1.96 / 20."""
    values = np.random.default_rng(1).normal(size=(400, 1))
    low, high = ratio_intervals(values, np.ones(400), samples=4000, seed=0)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)


def test_few_documents_have_no_interval():
    low, high = ratio_intervals(np.ones((4, 2)), np.ones(4), samples=10, seed=0)
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_every_draw_has_as_many_documents_as_there_are():
    drawn = np.concatenate(list(draw_documents(7, samples=300, seed=0)))
    assert drawn.shape == (300, 7)
    assert (drawn.sum(1) == 7).all()
    assert drawn.mean() == pytest.approx(1)
    with pytest.raises(BadData, match="0 bootstrap samples"):
        list(draw_documents(7, samples=0, seed=0))


def test_centred_percentiles_keep_their_width():
    samples = np.arange(101.0)
    assert percentiles(samples, 9, centre=0.0) == pytest.approx((-47.5, 47.5))
    assert percentiles(samples, 9) == pytest.approx((2.5, 97.5))
    assert all(math.isnan(end) for end in percentiles(samples, 4))
