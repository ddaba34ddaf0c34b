"""GateBreaker's neurons: maxima, gaps, z and the null by hand; the planted neuron is found, noise is not claimed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.twins import no_plant, plant, twin
from moeworks.engines.fake import FakeEngine
from moeworks.errors import BadData, BadPlan, Unsupported
from moeworks.find import Scores
from moeworks.find.in_model import find_in_model
from moeworks.find.inside.gaps import Gaps, largest_by_group
from moeworks.find.inside.neuron_gap import _matched, concentration, standardised
from moeworks.plan import steer, steer_neurons


def test_largest_values_of_each_prompt() -> None:
    values = torch.tensor([[1.0, -5.0], [3.0, -7.0], [9.0, 9.0], [2.0, -1.0]])
    largest, present = largest_by_group(values, np.array([4, 4, -1, 1]), 5)
    assert present.tolist() == [1, 4]
    assert largest.tolist() == [[2.0, -1.0], [3.0, -5.0]]
    none, present = largest_by_group(values, np.full(4, -1), 5)
    assert none.shape == (0, 2)
    assert not len(present)


def test_z_within_the_expert_by_hand() -> None:
    # gaps 0, 0, 0, 4: mean 1, population deviation sqrt(3)
    np.testing.assert_allclose(
        standardised(np.array([[0.0, 0, 0, 4], [5, 5, 5, 5]])),
        [[-1 / 3**0.5] * 3 + [3 / 3**0.5], [0] * 4],
    )


def gaps_of(absent: str) -> Gaps:
    """Four prompts of one neuron, two a side: 5 and 3 against 1 and nothing; a second arrangement swaps two of them."""
    arrangements = np.array([[1, 1, 0, 0], [1, 0, 1, 0]], np.float32)
    gaps = Gaps(arrangements, {(2, 7): 0}, 1, np.ones(4), absent)
    gaps.add(SimpleNamespace(layer=2, expert=7), np.array([[5.0], [3.0]]), np.array([0, 1]))
    gaps.add(SimpleNamespace(layer=2, expert=7), np.array([[1.0]]), np.array([2]))
    return gaps


def test_gaps_by_hand() -> None:
    first, second = gaps_of("left_out").means(0)
    assert first[:, 0].tolist() == [4.0, 3.0]
    assert second[:, 0].tolist() == [1.0, 3.0]
    # values 5, 3, 1: variance 8/3; standard error of 2 against 1: sqrt(8/3 * (1/2 + 1)) = 2
    np.testing.assert_allclose(gaps_of("left_out").studentised(0)[:, 0], [3 / 2, 0])
    first, second = gaps_of("zero").means(0)  # the fourth prompt says 0
    assert first[:, 0].tolist() == [4.0, 3.0]
    assert second[:, 0].tolist() == [0.5, 1.5]
    # values 5, 3, 1, 0: mean 9/4, variance 35/4 - 81/16 = 59/16
    np.testing.assert_allclose(gaps_of("zero").studentised(0)[:, 0], np.array([3.5, 1.5]) / np.sqrt(59 / 16))


def test_a_neuron_that_never_changes_says_nothing() -> None:
    """Sums of one and the same number differ by rounding, and a tiny gap over a tiny deviation is no evidence."""
    for value in (0.1, 0.7, 1.1, 123.4):
        gaps = Gaps(np.array([[1, 1, 1, 0, 0, 0, 0]], np.float32), {(0, 0): 0}, 1, np.ones(7))
        for entry in range(7):
            gaps.add(SimpleNamespace(layer=0, expert=0), np.array([[value]]), np.array([entry]))
        assert gaps.studentised(0).tolist() == [[0.0]]


def test_prompts_of_both_sides_get_the_same_lengths() -> None:
    lengths = np.array([[3, 10, 0, 0, 6], [0, 0, 20, 4, 5]])
    assert _matched(lengths).tolist() == [[3, 10, 0, 0, 5], [0, 0, 10, 3, 5]]
    limit = _matched(np.array([[8, 2, 0], [0, 0, 4]]))
    assert limit.tolist() == [[4, 2, 0], [0, 0, 4]]


@pytest.mark.parametrize("name", ["single", "neurons"])
def test_the_planted_neuron_alone_passes(name: str) -> None:
    engine, expert, neuron = twin(name)
    scores = find_in_model(engine, plant(), method="neuron_gap")
    assert isinstance(scores, Scores)
    passing = scores.top(10, passing=True).to_pylist()
    assert [(row["layer"], row["expert"], row["neuron"]) for row in passing] == [neuron]
    assert passing[0]["q"] == pytest.approx(1 / 201)
    layers = {row["layer"]: row for row in concentration(scores).to_pylist()}
    assert sum(row["passing"] for row in layers.values()) == layers[expert.layer]["passing"] == 1
    assert scores.header.facts["above"] == sum(row["above"] for row in layers.values())


@pytest.mark.parametrize("seed", [0, 1])
def test_without_a_plant_z_above_2_is_no_claim(seed: int) -> None:
    engine, _, _ = twin("neurons")
    scores = find_in_model(engine, no_plant(), method="neuron_gap", seed=seed)
    assert not scores.column("passes").any()
    assert scores.column("score").max() > 2  # there always are some: that is why the test is needed
    assert "No neuron passes." in scores.summary()


def test_experts_and_sites_can_be_named(tmp_path) -> None:
    engine, expert, neuron = twin("neurons")
    scores = find_in_model(engine, plant(), method="neuron_gap", experts=str(expert), site="up", permutations=20)
    assert set(scores.column("neuron")) == set(range(8))
    assert {(row["layer"], row["expert"]) for row in scores.table.to_pylist()} == {expert}
    assert Scores.load(scores.save(tmp_path / "s.arrow")).header == scores.header
    gate = find_in_model(engine, plant(), method="neuron_gap", experts=str(expert), permutations=20)
    assert gate.top(1)["neuron"].to_pylist() == [neuron.neuron]
    assert gate.column("score").tolist() != scores.column("score").tolist()  # the two are kept apart


def test_a_plan_of_the_neuron_takes_the_behaviour_away() -> None:
    engine, _, neuron = twin("neurons")
    scores = find_in_model(engine, plant(), method="neuron_gap")
    plan = steer_neurons(scores, 1)
    assert plan.operations[0].neurons == (neuron,)
    assert (plan.operations[0].action, plan.operations[0].site) == ("zero", "gate")
    texts = {
        side: [text.text for text in plant().texts("held_out") if text.labels["side"] == side][:6]
        for side in ("contrast", "against")
    }
    change = {
        side: np.mean([s.mean for s in engine.token_scores(several, plan=plan)])
        - np.mean([s.mean for s in engine.token_scores(several)])
        for side, several in texts.items()
    }
    assert change["contrast"] < -0.5
    assert abs(change["against"]) < 0.1
    doubled = steer_neurons(scores, 1, action="scale", factor=2.0, where="phase=prompt")
    assert doubled.operations[0].numbers() == {"factor": (2.0,)}


def test_plans_of_neurons_that_cannot_be() -> None:
    engine, expert, _ = twin("neurons")
    scores = find_in_model(engine, plant(), method="neuron_gap")
    with pytest.raises(BadPlan, match=r"2 neurons were asked for, 1 are eligible; ask for fewer, or"):
        steer_neurons(scores, 2)
    assert len(steer_neurons(scores, 2, only_passing=False).operations[0].neurons) == 2
    with pytest.raises(BadPlan, match="0 are eligible"):
        steer_neurons(scores, 1, protect=[expert])
    with pytest.raises(BadPlan, match="'scale' needs factor"):
        steer_neurons(scores, 1, action="scale")
    with pytest.raises(BadData, match=r"moeworks\.plan\.steer_neurons"):
        steer(scores, demote=1)
    untested = find_in_model(engine, plant(), method="neuron_adjust")
    with pytest.raises(BadPlan, match="neuron_adjust makes no test"):
        steer_neurons(untested, 1)
    experts = find_in_model(engine, plant(), method="activity", permutations=10)
    with pytest.raises(BadData, match="for experts take `steer`"):
        steer_neurons(experts, 1)


def test_bad_options() -> None:
    engine, _, _ = twin("neurons")
    with pytest.raises(BadData, match="no site 'down'"):
        find_in_model(engine, plant(), method="neuron_gap", site="down")
    with pytest.raises(BadData, match="no option 'treshold'; did you mean 'threshold'"):
        find_in_model(engine, plant(), method="neuron_gap", treshold=1)
    with pytest.raises(BadData, match="not among the experts"):
        find_in_model(engine, plant(), method="neuron_gap", experts="L9.E0")
    with pytest.raises(Unsupported, match="fake engine shows nothing inside"):
        find_in_model(FakeEngine("single"), plant(), method="neuron_gap")
