"""Key Space Detection: the box against hand-worked numbers, against bisection, and on planted traces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moeworks.engines.fake import FakeEngine, null_examples, planted_examples
from moeworks.errors import BadData
from moeworks.find.key_space import Box, routing_frequencies

POINTS = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 4.0]])  # means 2 and 2, variances 8/3 and 2


def test_the_smallest_box_by_hand() -> None:
    box = Box.fit(POINTS)
    assert box.mean == (2.0, 2.0)
    np.testing.assert_allclose(box.std, [np.sqrt(8 / 3), np.sqrt(2)])
    # |4 - 2| / sqrt(8/3) = 1.2247, |4 - 2| / sqrt(2) = 1.4142: the larger one decides
    assert box.k == pytest.approx(np.sqrt(2))
    assert box.contains(POINTS).all()
    # in the first dimension the box reaches 2 + sqrt(2) * sqrt(8/3) = 4.3094
    assert box.contains(np.array([[4.309, 2.0], [4.310, 2.0], [2.0, 0.0], [2.0, -0.001]])).tolist() == [
        True,
        False,
        True,
        False,
    ]


def test_k_is_what_bisection_finds() -> None:
    points = np.random.default_rng(0).normal(size=(40, 30)) * 3 + 1
    low, high = 0.0, 100.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        inside = (np.abs(points - points.mean(0)) <= middle * points.std(0)).all()
        low, high = (low, middle) if inside else (middle, high)
    assert Box.fit(points).k == pytest.approx(high, abs=1e-5)


def test_calibration_takes_in_the_share_that_was_asked_for() -> None:
    box = Box(mean=(0.0,), std=(1.0,), k=2.0)
    held_out = np.arange(1.0, 10.0)[:, None]  # radii 1 to 9
    assert box.calibrate(held_out, coverage=0.9).alpha == pytest.approx(4.5)  # the 9th of 9: ceil(10 * 0.9)
    assert box.calibrate(held_out, coverage=0.5).alpha == pytest.approx(2.5)  # the 5th
    for coverage in (0.1, 0.3, 0.7):
        assert box.calibrate(held_out, coverage=coverage).contains(held_out).sum() == round(10 * coverage)
    with pytest.raises(BadData, match="at least 19 are needed"):
        box.calibrate(held_out, coverage=0.95)


def test_calibration_covers_new_points_and_not_strangers() -> None:
    rng = np.random.default_rng(1)
    skill = rng.normal(size=(600, 50))
    box = Box.fit(skill[:200]).calibrate(skill[200:300], coverage=0.9)
    assert 0.8 < box.contains(skill[300:]).mean() < 0.99
    assert not box.contains(rng.normal(size=(300, 50)) + 2).any()


def test_dimensions_without_spread_need_a_floor() -> None:
    points = np.column_stack([np.full(5, 0.1), np.arange(5.0)])
    box = Box.fit(points)
    assert box.std[0] == 0.0
    assert box.contains(points).all()
    stray = np.array([[0.2, 2.0]] * 9)
    assert not box.contains(stray).any()
    with pytest.raises(BadData, match=r"9 of 9 held-out points .* floor"):
        box.calibrate(stray)
    assert Box.fit(points, floor=0.1).calibrate(stray).contains(stray).all()


def test_a_box_survives_json() -> None:
    box = Box.fit(POINTS).calibrate(np.repeat(POINTS, 4, 0) + 0.3, coverage=0.8)
    assert Box.from_json(json.loads(json.dumps(box.as_json()))) == box
    with pytest.raises(BadData, match="not a box"):
        Box.from_json({"mean": [1.0]})
    with pytest.raises(BadData, match="not finite"):
        Box(mean=(0.0,), std=(1.0,), k=float("nan"))


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (np.zeros((1, 3)), "at least 2"),
        (np.zeros(3), "rows of numbers"),
        (np.array([[np.nan], [1.0]]), "not finite"),
    ],
)
def test_bad_points(points: np.ndarray, words: str) -> None:
    with pytest.raises(BadData, match=words):
        Box.fit(points)


def test_a_box_knows_prompts_of_the_plant_by_their_routing(tmp_path: Path) -> None:
    engine = FakeEngine("single")
    examples = planted_examples(160)
    trace = engine.record(examples, tmp_path / "trace")
    found = routing_frequencies(trace)
    assert found.rates.shape == (160, 4 * 16)
    np.testing.assert_allclose(found.rates.reshape(160, 4, 16).sum(2), trace.ids(0).shape[1])  # k runs a token
    shouted = np.array([examples[number].labels["side"] == "contrast" for number in found.requests])
    skill, other = found.rates[shouted], found.rates[~shouted]
    box = Box.fit(skill[:40], floor=0.01).calibrate(skill[40:60], coverage=0.9)
    assert box.contains(skill[60:]).mean() >= 0.7
    assert not box.contains(other).any()


def test_without_a_plant_the_box_does_not_tell_sides_apart(tmp_path: Path) -> None:
    engine = FakeEngine("single")
    examples = null_examples(160)
    found = routing_frequencies(engine.record(examples, tmp_path / "trace"))
    one = np.array([examples[number].labels["side"] == "contrast" for number in found.requests])
    skill, other = found.rates[one], found.rates[~one]
    box = Box.fit(skill[:40], floor=0.01).calibrate(skill[40:60], coverage=0.9)
    assert abs(box.contains(skill[60:]).mean() - box.contains(other).mean()) < 0.25
