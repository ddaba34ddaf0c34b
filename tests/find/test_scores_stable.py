"""SAFEx's stability selection: set algebra by hand, the plant, and no claims where nothing is planted."""

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.address import Address
from moeworks.errors import BadData
from moeworks.find import select_stable
from moeworks.find.stable import _among_most_used

SIDES = {"contrast": "side=a", "against": "side=b"}


def text(side, *counts):
    return Text({"side": side}, {0: [[e] for e, count in enumerate(counts) for _ in range(count)]})


def test_shares_by_hand():
    """Two resamplings of three documents: (2, 1, 0) times and (0, 0, 3) times; the 2 most used of 4 experts.

    First: runs 2·(5,3,1,1) + (1,6,2,1) = (11,12,4,3) → experts 1, 0. Second: 3·(0,4,4,2) → experts 1, 2.
    A tie for the last place takes both: with (3,3,3,1) experts 0, 1, 2 are all in.
    """
    values = np.array([[5, 3, 1, 1], [1, 6, 2, 1], [0, 4, 4, 2]], float)
    times = np.array([[2, 1, 0], [0, 0, 3]], float)
    assert _among_most_used(times, values, np.full(3, 10.0), 2).tolist() == [0.5, 1, 0.5, 0]
    assert _among_most_used(np.ones((1, 1)), np.array([[3.0, 3, 3, 1]]), np.array([10.0]), 2).tolist() == [1, 1, 1, 0]
    assert _among_most_used(np.ones((1, 1)), np.array([[3.0, 0, 0, 0]]), np.array([3.0]), 2).tolist() == [1, 0, 0, 0]


def test_groups_are_set_algebra(tmp_path):
    """All documents of a side are alike, so that all resamplings are: top 2 are {0, 1} of a and {1, 2} of b.

    Expert 3 runs more on a, surely, but is not among the most used.
    """
    texts = [text("a", 5, 4, 1, 2) for _ in range(12)] + [text("b", 1, 4, 5, 0) for _ in range(12)]
    trace = write_texts(tmp_path / "t", texts)
    found = select_stable(trace, **SIDES, most_used=2)
    assert found.detection == (Address(0, 1),)
    assert found.control == (Address(0, 0),)
    scores = found.scores
    assert scores.column("score").tolist() == [1, 0, -1, 0]
    assert scores.column("contrast_rate").tolist() == [1, 1, 0, 0]
    assert scores.column("against_rate").tolist() == [0, 1, 1, 0]
    assert scores.column("passes").tolist() == [True, False, False, False]
    assert scores.column("q")[3] <= 0.05
    assert scores.header.facts == {"detection": ["L0.E1"], "control": ["L0.E0"]}
    assert "2 of the 2 most used; 1 of them on the other side too (detection group), 1 not" in scores.summary()
    both = select_stable(trace, **SIDES, most_used=2, group="detection")
    assert both.scores.column("score").tolist() == [0, 1, 0, 0]
    assert both.scores.header.null == "none"
    assert not both.scores.column("passes").any()


def planted(path, boost, seed=0):
    return make_trace(
        path, requests=60, rows_per_request=[20, 31, 25], experts=16, top_k=2, layers=(0, 1), topic=0.6, seed=seed,
        labels={"side": ["a", "b"]}, planted={(1, 9): ("side", "a", boost)} if boost else None,
    )  # fmt: skip


def test_the_plant_is_in_the_control_group(tmp_path):
    found = select_stable(planted(tmp_path / "t", 4.0), **SIDES)
    assert Address(1, 9) in found.control
    passing = [(r["layer"], r["expert"]) for r in found.scores.table.to_pylist() if r["passes"]]
    assert passing == [(1, 9)]
    assert found.scores.header.options["most_used"] == 4  # an eighth of 32


def test_where_nothing_is_planted_little_is_claimed(tmp_path):
    """12 traces; at 5 % a trace, more than 4 alarms have a probability below 0.001 (binomial)."""
    traces = [planted(tmp_path / f"t{seed}", 0, seed) for seed in range(12)]
    alarms = sum(select_stable(t, **SIDES).scores.column("passes").any() for t in traces)
    assert alarms <= 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"group": "both"}, "no group 'both'"),
        ({"most_used": 32}, "all 32 experts are among the 32 most used"),
        ({"contrast": "side=a document='document 0'"}, "a side has 1 documents"),
        ({"subsets": 0}, "0 bootstrap samples"),
    ],
)
def test_one_clear_sentence(tmp_path, changed, message):
    with pytest.raises(BadData, match=message):
        select_stable(planted(tmp_path / "t", 0), **(SIDES | changed))
