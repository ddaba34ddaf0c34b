"""nPMI of marker tokens: hand-worked numbers, several markers with signs, and the null in which markers move."""

import math

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.errors import BadData
from moeworks.find import find_markers
from moeworks.find.scores import Side, normalised_pmi, npmi


def one(k, marker, expert, total):
    return float(normalised_pmi(*(np.array([float(x)]) for x in (k, marker, expert, total)))[0])


def test_the_worked_example():
    """Of the specification: T = 10,000, M = 50, K = 400, k = 40: PMI log2(.8) + log2(25) = 4.322, norm 7.966, .543."""
    assert one(40, 50, 400, 10_000) == pytest.approx(0.543, abs=5e-4)
    assert one(40, 50, 400, 10_000) == pytest.approx((math.log2(0.8) + math.log2(25)) / math.log2(250), abs=1e-12)


def test_limits():
    """By the definition: never together -1, always and only together 1, independent 0."""
    assert one(0, 50, 400, 10_000) == -1
    assert one(0, 50, 0, 10_000) == -1
    assert one(50, 50, 50, 10_000) == pytest.approx(1)
    assert one(2, 50, 400, 10_000) == pytest.approx(0)
    assert one(10, 10, 10, 10) == 0


def test_sides_are_marker_and_rest():
    """The worked example again, as two sides: 40 of 50 and 360 of 9,950."""
    contrast = Side(np.array([[40.0, 0.0]]), np.array([[50.0]]))
    against = Side(np.array([[360.0, 7.0]]), np.array([[9950.0]]))
    assert npmi(contrast, against)[0] == pytest.approx([0.5426, -1], abs=1e-4)


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """The worked example as a trace: 50 texts of 200 tokens; token 7 is the marker, expert 0 runs on 40 of 50 of them
    and on 360 other tokens. Token 9 always has expert 1, which runs nowhere else; expert 2 takes the rest."""
    texts, left = [], 360
    for i in range(50):
        ids = [[2] for _ in range(200)]
        if i < 40:
            ids[7] = [0]
        ids[9] = [1]
        for position in range(20, 28):
            if left:
                ids[position], left = [0], left - 1
        texts.append(Text({}, {3: ids}))
    return write_texts(tmp_path_factory.mktemp("npmi") / "t", texts, part_bytes=20_000)


def row(scores, expert):
    return scores.table.to_pylist()[expert]


def test_a_marker_in_a_trace(worked):
    scores = find_markers(worked, markers={"token=7": 1}, permutations=50, bootstrap=5)
    assert row(scores, 0)["score"] == pytest.approx(0.5426, abs=1e-4)
    assert row(scores, 0)["contrast_rate"] == 0.8
    assert row(scores, 0)["against_rate"] == pytest.approx(360 / 9950)
    assert row(scores, 1)["score"] == -1
    assert row(scores, 3)["score"] == -1
    assert (scores.header.tokens, scores.header.documents, scores.header.null) == ((50, 9950), (50, 50), "rotations")


def test_signed_sum_of_markers(worked):
    """By hand: expert 1 on token 9 has nPMI 1 and on token 7 -1; expert 0 the other way round .543 and -1."""
    scores = find_markers(worked, markers={"token=7": 1, "token=9": -1}, permutations=50, bootstrap=5)
    assert row(scores, 0)["score"] == pytest.approx(0.5426 + 1, abs=1e-4)
    assert row(scores, 1)["score"] == pytest.approx(-2)
    assert row(scores, 0)["contrast_rate"] == 0.8  # of the positive marker
    weighted = find_markers(worked, markers={"token=7": 0.5, "token=9": 2.0}, permutations=50, bootstrap=5)
    assert row(weighted, 1)["score"] == pytest.approx(1.5)


def test_only_experts_of_the_marker_pass(worked):
    scores = find_markers(worked, markers={"token=7": 1}, bootstrap=20)
    assert [r["expert"] for r in scores.table.to_pylist() if r["passes"]] == [0]
    assert row(scores, 0)["stability"] == 1


def test_scores_of_the_null_equal_a_loop(tmp_path):
    """p of one expert from a plain loop over all rotations of two short documents, weights of 0 included."""
    rng = np.random.default_rng(3)
    texts = []
    for length, marks in ((5, (1, 3)), (4, (2,))):
        ids = rng.integers(0, 3, (length, 1))
        weights = (rng.random((length, 1)) < 0.5).astype(float)
        tokens = [9 if i in marks else i for i in range(length)]
        texts.append(Text({}, {0: ids}, {0: weights}, tokens=tokens))
    trace = write_texts(tmp_path / "t", texts)
    draws = 4000
    scores = find_markers(trace, markers={"token=9": 1}, permutations=draws, refine=False, bootstrap=1)
    ids = [np.where(np.asarray(t.weights[0]) != 0, np.asarray(t.ids[0]), -1)[:, 0] for t in texts]
    for expert in range(3):
        everything = sum(int((i == expert).sum()) for i in ids)
        values = []
        for a in range(5):
            for b in range(4):
                k = sum(ids[0][(m + a) % 5] == expert for m in (1, 3)) + (ids[1][(2 + b) % 4] == expert)
                values.append(one(k, 3, everything, 9) if everything else -1)
        assert row(scores, expert)["score"] == pytest.approx(values[0])
        exact = np.mean(np.array(values) >= values[0] - 1e-9)
        assert row(scores, expert)["p"] == pytest.approx(exact, abs=4 / np.sqrt(draws))


def planted(path, boost, **options):
    """Texts whose fifth and sixth tokens are a span; expert 3 of layer 1 is planted there."""
    return make_trace(
        path, requests=60, rows_per_request=[20, 33, 27], experts=16, top_k=2, layers=(0, 1), topic=0.8,
        spans={"mark": (5, 7)}, planted={(1, 3): ("span", "mark", boost)} if boost else None, **options,
    )  # fmt: skip


def test_the_planted_expert_is_found(tmp_path):
    scores = find_markers(planted(tmp_path / "t", 3.0), markers={"span=mark": 1}, permutations=200)
    (first,) = scores.top(1).to_pylist()
    assert (first["layer"], first["expert"], first["passes"]) == (1, 3, True)
    assert scores.column("passes").sum() == 1
    assert scores.column("stability")[16 + 3] == 1
    assert first["low"] < first["score"] < first["high"]


def test_where_nothing_is_planted_p_is_calibrated(tmp_path):
    """Topics make documents differ, and neighbouring tokens alike: nothing belongs to the span for all that.

    10 traces of 32 experts; at most 4 standard errors above the level.
    """
    p, found = [], 0
    for seed in range(10):
        scores = find_markers(planted(tmp_path / f"t{seed}", 0, seed=seed), markers={"span=mark": 1}, permutations=199)
        p += scores.column("p").tolist()
        found += int(scores.column("passes").any())
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 320))
    assert found <= 3


@pytest.mark.parametrize(
    ("markers", "message"),
    [
        ({}, "at least one marker"),
        ({"token=7": 0}, "sign that is not 0"),
        ({"token=7": -1}, "no marker is positive"),
        ({"token=999": 1}, "'token=999' selects no token"),
        ({"": 1}, "'' selects all tokens"),
        ({"token=7 layer=3": 1}, "put them into where"),
    ],
)
def test_bad_markers(worked, markers, message):
    with pytest.raises(BadData, match=message):
        find_markers(worked, markers=markers)
