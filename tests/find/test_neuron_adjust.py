"""Neuron Adjust: moments, the mirror map by hand and by chance, torch against numpy; the plan undoes the plant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from helpers.twins import no_plant, plant, twin
from moeworks.engines.transformers.neurons import TorchStep
from moeworks.errors import BadData
from moeworks.find.in_model import find_in_model
from moeworks.find.inside.moments import Moments
from moeworks.find.inside.neuron_adjust import adjust_plan
from moeworks.plan import explain
from moeworks.plan.neurons import NeuronStep, apply_step
from moeworks.plan.schema import Neurons

NUMBERS = {"mean": 2.0, "std": 1.0, "other_mean": -1.0, "other_std": 0.5}


def step(numbers: dict[str, float] = NUMBERS, neuron: int = 0) -> NeuronStep:
    return NeuronStep(
        expert=0,
        site="gate",
        action="adjust",
        neurons=np.array([neuron]),
        numbers={name: np.array([value]) for name, value in numbers.items()},
    )


def test_moments_equal_numpy_however_they_come() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(100, 3)) * [1, 5, 1e-3] + [0, 1e4, 1]
    found = Moments({4: 2})
    for part in np.split(values, [1, 1, 40, 97]):
        found.add(4, 1, 0, part)
    found.add(4, 1, 1, values[:30])
    np.testing.assert_allclose(found.mean[4][0, 1], values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std(4)[0, 1], values.std(0), rtol=1e-9)  # a deviation and no variance
    assert found.count[4].tolist() == [[0, 100], [0, 30]]
    assert found.known(4, least=30).tolist() == [1]
    assert not len(found.known(4, least=31))


def test_the_mirror_map_by_hand() -> None:
    """N(2, 1) against N(-1, 0.5): 2 is z = 0 and goes to -1, 3 is z = 1 and goes to -1.5; -1 is at home elsewhere."""
    got = apply_step(step(), np.array([[2.0], [3.0], [-1.0], [4.5]]))
    assert got[:, 0].tolist() == [-1.0, -1.5, -1.0, -2.25]
    assert apply_step(step(), np.array([[-0.9]]))[0, 0] == -0.9  # densities .0059 against .782


def test_values_change_as_often_as_the_densities_say() -> None:
    """Where d_R <= d_F a value changes with probability d_F / (d_R + d_F), elsewhere never."""
    rng = np.random.default_rng(1)
    for low, high in ((0.0, 0.1), (0.2, 0.3), (0.5, 0.6)):
        v = rng.uniform(low, high, size=(20_000, 1))
        d_f, d_r = norm.pdf(v, 2.0, 1.0), norm.pdf(v, -1.0, 0.5)
        expected = np.where(d_r <= d_f, d_f / (d_r + d_f), 0).mean()
        # draws are shared within 1/256 of a deviation, about 26 bins here, and by no two neurons
        changed = np.mean([apply_step(step(neuron=n), np.repeat(v, n + 1, 1))[:, n] != v[:, 0] for n in range(40)])
        assert changed == pytest.approx(expected, abs=0.03)


def test_the_draw_is_the_values_own() -> None:
    v = np.random.default_rng(2).normal(size=(500, 1)) + 0.3
    whole = apply_step(step(), v)
    np.testing.assert_array_equal(whole, np.concatenate([apply_step(step(), row[None]) for row in v]))
    assert (whole == v).any()
    assert (whole != v).any()


def test_torch_equals_numpy() -> None:
    rng = np.random.default_rng(3)
    v = rng.normal(size=(4000, 1)).astype(np.float32) * 2
    numbers = {name: torch.tensor([value]) for name, value in NUMBERS.items()}
    got = TorchStep("adjust", torch.tensor([0]), numbers)(torch.from_numpy(v))
    expected = apply_step(step(), v.astype(np.float64))
    apart = np.abs(got.numpy() - expected) > 1e-5
    assert apart.mean() < 1e-3  # where the last bit of a density decides
    half = TorchStep("adjust", torch.tensor([0]), numbers)(torch.from_numpy(v).bfloat16())
    assert half.dtype == torch.bfloat16


def test_deviations_must_be_above_0() -> None:
    with pytest.raises(ValueError, match="std holds a deviation that is not above 0"):
        Neurons(neurons=("L0.E0.N0",), action="adjust", **{**NUMBERS, "std": 0.0})
    with pytest.raises(ValueError, match="needs other_std"):
        Neurons(neurons=("L0.E0.N0",), action="adjust", mean=0.0, std=1.0, other_mean=1.0)


def test_the_planted_neuron_is_first_and_nothing_is_claimed() -> None:
    engine, _, neuron = twin("neurons")
    scores = find_in_model(engine, plant(), method="neuron_adjust")
    best = scores.top(1).to_pylist()[0]
    assert (best["layer"], best["expert"], best["neuron"]) == neuron
    assert not scores.column("passes").any()
    null = find_in_model(engine, no_plant(), method="neuron_adjust")
    row = [r for r in null.table.to_pylist() if (r["layer"], r["expert"], r["neuron"]) == neuron]
    assert abs(row[0]["score"]) < best["score"] / 10


def test_the_plan_takes_the_behaviour_away_and_a_random_one_does_not() -> None:
    engine, _, neuron = twin("neurons")
    plan = adjust_plan(engine, plant(), share=0.002)
    (operation,) = plan.operations
    assert neuron in operation.neurons
    assert "mirrored, by chance" in explain(plan)
    random = adjust_plan(engine, plant(), share=0.002, at_random=True, seed=1)
    assert len(random.operations[0].neurons) == len(operation.neurons)
    assert neuron not in random.operations[0].neurons
    sides = {
        side: [text.text for text in plant().texts("held_out") if text.labels["side"] == side][:6]
        for side in ("contrast", "against")
    }

    def mean(side: str, plan=None) -> float:
        return float(np.mean([score.mean for score in engine.token_scores(sides[side], plan=plan)]))

    assert mean("contrast", plan) < mean("contrast") - 1.0
    assert abs(mean("against", plan) - mean("against")) < 0.1
    assert abs(mean("contrast", random) - mean("contrast")) < 0.1


def test_what_cannot_be() -> None:
    engine, _, _ = twin("neurons")
    with pytest.raises(BadData, match="no expert ran for 100000 tokens"):
        find_in_model(engine, plant(), method="neuron_adjust", least=100_000)
    with pytest.raises(BadData, match="not above 0 and at most 1"):
        adjust_plan(engine, plant(), share=0)
