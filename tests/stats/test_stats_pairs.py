"""Co-activation, transitions and paths: all pairs counted by hand, exact chance, planted and absent dependence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.errors import BadData
from moeworks.stats import coactivation, coactivation_lift, paths, transitions
from moeworks.stats.fixed_size_sets import pairs_by_chance
from moeworks.stats.transitions import mutual_information
from moeworks.where import Where


@pytest.mark.parametrize(("experts", "size", "spread"), [(6, 3, 1.0), (8, 2, 2.0), (9, 4, 0.5), (7, 5, 1.0)])
def test_pairs_by_chance_equals_the_sum_over_all_sets(experts, size, spread):
    """Every set enumerated, as likely as the product of its odds."""
    odds = np.exp(spread * np.random.default_rng(experts).normal(size=experts))
    sets = list(itertools.combinations(range(experts), size))
    p = np.array([np.prod(odds[list(one)]) for one in sets])
    pairs = np.zeros((experts, experts))
    for one, likely in zip(sets, p / p.sum(), strict=True):
        pairs[np.ix_(one, one)] += likely
    assert pairs_by_chance(np.diag(pairs), size) == pytest.approx(pairs, abs=1e-7)


def test_pairs_by_chance_where_there_is_no_choice():
    assert pairs_by_chance(np.full(8, 2 / 8), 2)[0, 1] == pytest.approx(2 * 1 / (8 * 7))
    assert pairs_by_chance(np.array([1.0, 1.0, 0.0]), 2)[0, 1] == 1
    always = pairs_by_chance(np.array([1.0, 0.5, 0.5, 0.5, 0.5]), 3)  # expert 0 and two of four
    assert always[0].tolist() == [1, 0.5, 0.5, 0.5, 0.5]
    assert always[1, 2] == pytest.approx(1 / 6)
    nearly = pairs_by_chance(np.array([0.9999, 0.9, *[0.1] * 10, 0.1001]), 3)
    assert nearly.sum(1) == pytest.approx(3 * np.diag(nearly), abs=1e-6)
    assert pairs_by_chance(np.array([0.5, 0.5]), 1)[0, 1] == 0


def test_all_pairs_count_not_only_neighbours_in_rank(tmp_path):
    """{0,1,2} twice, {0,1,3}, {1,2,3} by hand: 0 and 2, first and last of their rows, are a pair."""
    ids = [[0, 1, 2], [0, 1, 2], [0, 1, 3], [1, 2, 3]]
    trace = write_texts(tmp_path / "t", [Text({}, {0: ids})], experts=4)
    rows = {(row["first"], row["second"]): row for row in coactivation(trace, top=0, fewest=0).to_pylist()}
    assert len(rows) == 6
    together = {pair: row["together"] for pair, row in rows.items()}
    assert together == {(0, 1): 3, (0, 2): 2, (0, 3): 1, (1, 2): 3, (1, 3): 2, (2, 3): 1}
    assert rows[0, 2]["lift"] == pytest.approx(2 * 4 / (3 * 3))
    assert rows[0, 2]["given_first"] == pytest.approx(2 / 3)
    assert rows[1, 3]["given_second"] == pytest.approx(2 / 2)
    assert sum(row["together_chance"] for row in rows.values()) == pytest.approx(4 * 3, rel=1e-5)


def test_sets_of_other_sizes_have_a_chance_of_their_own(tmp_path):
    """Half of the tokens ran one expert: chance is that of the pairs of the other half."""
    weights = [[1, 0], [0.5, 0.5]] * 50
    ids = [[0, 1], [0, 1], [2, 3], [2, 3]] * 25
    trace = write_texts(tmp_path / "t", [Text({}, {0: ids}, {0: weights})], experts=4)
    rows = {(r["first"], r["second"]): r for r in coactivation(trace, top=0, fewest=0).to_pylist()}
    assert rows[0, 1]["together"] == rows[2, 3]["together"] == 25
    assert rows[0, 1]["together_chance"] == pytest.approx(50 / 6)  # 50 sets of two, even loads


def test_chance_adds_up_over_set_sizes(tmp_path):
    """Half of the tokens ran three of four experts, half two: 3 and 1 pairs of 6, each with even loads."""
    sets = [[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 0, 1]]
    ids, weights = sets * 20, [[1 / 3] * 3] * 40 + [[0.5, 0.5, 0]] * 40
    trace = write_texts(tmp_path / "t", [Text({}, {0: ids}, {0: weights})], experts=4)
    rows = coactivation(trace, top=0, fewest=0).to_pylist()
    assert len(rows) == 6
    assert all(row["together_chance"] == pytest.approx(40 * 3 / 6 + 40 * 1 / 6) for row in rows)


def test_independent_choices_are_at_chance_and_planted_pairs_are_found(tmp_path):
    """Null: no pair far from chance; planted: experts 1 and 4 rise together in half of the texts."""
    null = make_trace(tmp_path / "null", requests=40, rows_per_request=100, top_k=3)
    for row in coactivation(null, top=1).to_pylist():
        assert row["lift"] / row["chance"] < 1.15
        assert row["moved"] < 1.6 * row["moved_chance"]
    lift = coactivation_lift(null, 0)
    assert np.nanmin(lift) > 0.85
    assert np.isnan(np.diag(lift)).all()
    both = {(0, expert): ("lang", "fr", 3.0) for expert in (1, 4)}
    planted = make_trace(tmp_path / "planted", requests=40, rows_per_request=100, top_k=3, planted=both,
                         labels={"lang": ["fr", "en"]})  # fmt: skip
    rows = coactivation(planted, top=0, where=Where.parse("layer=0")).to_pylist()
    (pair,) = (row for row in rows if (row["first"], row["second"]) == (1, 4))
    assert pair["low"] > 1.1 * pair["chance"]
    assert pair["moved"] > 3 * pair["moved_chance"]
    assert coactivation_lift(planted, 0)[1, 4] == pytest.approx(pair["lift"] / pair["chance"])


def test_one_expert_a_token_has_no_pairs(tmp_path):
    with pytest.raises(BadData, match="one expert a token"):
        coactivation(make_trace(tmp_path / "t", top_k=1))


def test_mutual_information_by_hand():
    """A permutation of two even experts tells everything, ln 2; independent ones nothing."""
    assert mutual_information(np.array([[0, 5], [5, 0]])) == pytest.approx(np.log(2))
    assert mutual_information(np.array([[2, 4], [3, 6]])) == pytest.approx(0, abs=1e-12)
    assert mutual_information(np.array([[3, 1], [1, 3]])) == pytest.approx(
        2 * (3 / 8 * np.log(3 / 8 / 0.25) + 1 / 8 * np.log(1 / 8 / 0.25))
    )


def test_a_layer_that_decides_the_next_foretells_all_of_it(tmp_path):
    """Expert e is followed by e + 1, and the lift of each transition is E."""
    rng = np.random.default_rng(0)
    texts = [
        Text({}, {0: (e := rng.integers(0, 4, (50, 1))).tolist(), 3: ((e + 1) % 4).tolist()}, document=f"d{i}")
        for i in range(12)
    ]
    trace = write_texts(tmp_path / "t", texts, experts=4, part_bytes=600)
    (line,) = transitions(trace).to_pylist()
    assert (line["layer"], line["next_layer"]) == (0, 3)
    assert (line["information"], line["foretold"]) == pytest.approx((1, 1))
    assert line["chance"] < 0.05
    assert line["foretold_chance"] == pytest.approx(0.25, abs=0.05)
    assert {one.split(" ")[0] for one in line["top"]} == {"0>1", "1>2", "2>3", "3>0"}
    assert line["top_lift"] == pytest.approx(4, rel=0.2)
    (path,) = paths(trace, top=4).to_pylist()
    assert (path["distinct"], path["top_share"]) == (4, 1)
    assert path["distinct_chance"] == 16
    first, second = path["commonest"]
    assert second == (first + 1) % 4


def test_layers_that_ignore_each_other_are_at_chance(tmp_path):
    trace = make_trace(tmp_path / "t", requests=40, rows_per_request=60, layers=(0, 1, 2), experts=6)
    for line in transitions(trace).to_pylist():
        assert line["information"] == pytest.approx(line["chance"], abs=0.002)
        assert line["foretold"] == pytest.approx(line["foretold_chance"], abs=0.06)  # read on the tokens it counted
    for line in paths(trace).to_pylist():
        assert line["top_share"] == pytest.approx(line["chance"], abs=0.03)
        assert line["entropy"] == pytest.approx(line["entropy_chance"], abs=0.03)


def test_pairs_of_two_layers_count_every_pair(tmp_path):
    """One token, {0, 1} then {2, 0}: four pairs; the slot that did not run makes none."""
    text = Text({}, {0: [[0, 1], [3, 1]], 1: [[2, 0], [2, 1]]}, {0: [[0.5, 0.5], [1, 0]], 1: [[0.5, 0.5]] * 2})
    (line,) = transitions(write_texts(tmp_path / "t", [text], experts=4), fewest=0, top=10).to_pylist()
    lifts = dict(one.split(" ×") for one in line["top"])
    assert lifts["0>2"] == "1.0"  # N = 1, of 1 and 2 in 2 tokens
    assert lifts["3>1"] == "2.0"
    assert lifts["0>0"] == "2.0"


def test_one_layer_has_no_transitions(tmp_path):
    trace = make_trace(tmp_path / "t")
    for function in (transitions, paths):
        with pytest.raises(BadData, match="at least two"):
            function(trace, where=Where.parse("layer=0"))
