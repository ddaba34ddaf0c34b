"""CULNIG: selection by hand, influence against finite differences of the model itself, and on a plant."""

from __future__ import annotations

from string import ascii_letters

import numpy as np
import pytest

from helpers.twins import no_plant, plant, twin
from moeworks.engines.transformers.gradients import Influence, observe_influence
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.find.in_model import find_in_model
from moeworks.find.inside.culnig import general, influences, specific
from moeworks.find.inside.texts import texts_of
from moeworks.plan import Plan
from moeworks.plan.files import plan_header
from moeworks.plan.schema import Neurons, Scale
from moeworks.probes import Metric, Probe, ProbeHeader


def test_general_neurons_by_hand() -> None:
    score = np.array([9.0, 8, 7, 1, 0, 0, 0, 0, 0, 0])
    surface = np.array([0.0, 9, 0, 0, 0, 0, 0, 0, 0, 0])
    assert np.flatnonzero(general(score, surface, share=0.3)).tolist() == [0, 2]  # 1 of three goes with the surface
    assert np.flatnonzero(general(score, surface, share=0.1)).tolist() == [0]


def test_specific_neurons_by_hand() -> None:
    # Neuron 0 is high for all, so that z is 0; neuron 1 for the first label only: mean 2, deviation sqrt(8), z 1.41;
    # neuron 2 too, but its surface is high.
    scores = np.array([[9.0, 6, 6, 0], [9, 0, 0, 0], [9, 0, 0, 0]])
    surface = np.array([0.0, 0, 5, 0])
    assert specific(scores, surface, 0, share=0.75, drop=0.25).tolist() == [False, True, False, False]
    assert not specific(scores, surface, 0, share=0.75, drop=0.25, least=1.5).any()


def runs_of(engine, examples, **options) -> list[Influence]:
    found: list[Influence] = []
    observe_influence(engine, examples, found.append, layers=[0, 1, 2, 3], **options)
    return found


def probability(engine, prompt: str, answer: str, operation=None) -> float:
    plan = None
    if operation is not None:
        plan = Plan(header=plan_header(engine.identity), operations=(operation,))
    return float(np.exp(engine.answers([(prompt, answer)], plan=plan)[0].log_probability))


@pytest.mark.parametrize("site", ["gate", "up", "key"])
def test_influence_is_the_derivative_of_the_answer(site: str) -> None:
    """act · dP/d act, summed over tokens, is dP/d factor of a neuron's `scale` at 1; so for a weight."""
    engine, _, _ = twin("neurons")
    prompt = "A"  # one token, so that the largest value over tokens is their sum
    likely = engine.answers([(prompt, letter) for letter in ascii_letters])
    answer = max(zip(likely, ascii_letters, strict=True))[1]
    found = runs_of(engine, [Example(text=prompt, answer=answer)], site=site)
    p, step = probability(engine, prompt, answer), 0.02

    def slope(operation) -> float:
        ends = [probability(engine, prompt, answer, operation(1 + way * step)) for way in (1, -1)]
        return (ends[0] - ends[1]) / (2 * step)

    strongest = max(found, key=lambda f: np.abs(f.neurons).max())
    neuron = int(np.abs(strongest.neurons[0]).argmax())
    name = f"L{strongest.layer}.E{strongest.expert}.N{neuron}"
    expected = p * slope(lambda factor: Neurons(neurons=(name,), action="scale", factor=factor, site=site))
    assert abs(expected) > 1e-5
    assert strongest.neurons[0, neuron] == pytest.approx(expected, rel=0.03)

    strongest = max(found, key=lambda f: abs(f.weight[0]))
    place = f"L{strongest.layer}.E{strongest.expert}"
    expected = p * slope(lambda factor: Scale(experts=(place,), factor=factor))
    assert abs(expected) > 1e-5
    assert strongest.weight[0] == pytest.approx(expected, rel=0.03)


def test_samples_of_a_batch_do_not_mix() -> None:
    engine, _, _ = twin("neurons")
    examples = [
        Example(text="SAY IT LOU", answer="D"),
        Example(text="so", answer="f"),
        Example(text="HERE WE G", answer="O"),
    ]
    alone = {
        (f.layer, f.expert, n): f.neurons[0]
        for n, example in enumerate(examples)
        for f in runs_of(engine, [example], site="gate")
    }
    for found in runs_of(engine, examples, site="gate", batch_size=3):
        for sample, neurons in zip(found.samples, found.neurons, strict=True):
            np.testing.assert_allclose(neurons, alone[found.layer, found.expert, int(sample)], rtol=1e-3, atol=1e-9)


def answered(texts: list[tuple[str, str, str, str]]) -> Probe:
    header = ProbeHeader(name="answered", behaviour="x", metric=Metric(name="exact_match"))
    examples = tuple(
        Example(text=text, answer=answer, labels={"side": side, "lang": lang, "split": "find"})
        for side, lang, text, answer in texts
    )
    return Probe(header, examples, ())


def test_sums_by_side_and_label_and_both_divisors() -> None:
    engine, _, _ = twin("neurons")
    probe = answered(
        [
            ("contrast", "a", "SAY IT LOU", "D"),
            ("contrast", "b", "HERE WE G", "O"),
            ("contrast", "b", "ON AND O", "N"),
            ("against", "a", "so on", "e"),
        ]
    )
    said: list[str] = []
    found = influences(engine, texts_of(probe, "find"), label="lang", say=said.append)
    assert found.groups == ("contrast a", "contrast b", "against a", "against b")
    assert found.samples.tolist() == [1, 2, 1, 0]
    assert len(said) == 1
    assert "GiB" in said[0]
    one, two = (runs_of(engine, [probe.all_texts[n]], site="gate") for n in (1, 2))
    for f in one:
        twice = [g.neurons[0] for g in two if (g.layer, g.expert) == (f.layer, f.expert)]
        total = f.neurons[0] + (twice[0] if twice else 0)
        np.testing.assert_allclose(found.sums[f.layer][1, f.expert], total, rtol=1e-3, atol=1e-9)
        np.testing.assert_allclose(found.mean(f.layer, "samples")[1, f.expert], total / 2, rtol=1e-3, atol=1e-9)
        np.testing.assert_allclose(
            found.mean(f.layer, "routed")[1, f.expert], total / (1 + len(twice)), rtol=1e-3, atol=1e-9
        )
    assert min(sums[2].min() for sums in found.sums.values()) >= 0  # control samples: negatives count as 0
    assert min(sums[:2].min() for sums in found.sums.values()) < 0


def test_the_planted_neuron_is_first_and_nothing_is_claimed() -> None:
    engine, _, neuron = twin("neurons")
    scores = find_in_model(engine, plant(), method="culnig", say=lambda words: None)
    best = scores.top(1).to_pylist()[0]
    assert (best["layer"], best["expert"], best["neuron"]) == neuron
    assert not scores.column("passes").any()
    assert np.isnan(scores.column("p")).all()
    assert scores.header.null == "none"
    null = find_in_model(engine, no_plant(), method="culnig", say=lambda words: None)
    assert null.top(1)["score"][0].as_py() < best["score"] / 2


def test_parameters_and_flags_are_as_before(capsys) -> None:
    engine, _, _ = twin("neurons")
    find_in_model(engine, answered([("contrast", "a", "GO O", "N"), ("against", "a", "go o", "n")]), method="culnig")
    assert "gradients will take about" in capsys.readouterr().err
    assert all(p.requires_grad and p.grad is None for p in engine.model.parameters())
    assert not engine.model.training


def test_probes_that_do_not_fit() -> None:
    engine, _, _ = twin("neurons")
    with pytest.raises(BadData, match="no text of 1 matches the clause 'side=against'"):
        find_in_model(engine, answered([("contrast", "a", "GO O", "N")]), method="culnig")
    with pytest.raises(BadData, match="'routes' is no number to divide by; did you mean 'routed'"):
        find_in_model(engine, plant(), method="culnig", divide="routes")
