"""Gates: hand-worked decisions, a probe that finds the plant and nothing on a null, requests untouched to the bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from helpers.plans import at, plan, small
from moeworks.engines.fake import (
    FakeEngine,
    neutral_examples,
    null_examples,
    planted_examples,
    planted_model,
    planted_probe,
)
from moeworks.engines.fake.twin import HEARD, HIDDEN
from moeworks.engines.gating import prompts_of, routing_rates, ungated
from moeworks.engines.transformers import TransformersEngine
from moeworks.engines.transformers.residual import residual_module
from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import BadData, BadPlan, MoeworksError, Unsupported
from moeworks.examples import Example
from moeworks.find.fit_gate import area_under_curve, best_threshold, fit_box_gate, fit_gate, logistic
from moeworks.find.key_space import Box, routing_frequencies
from moeworks.plan import Demote, Promote, TopK, compose, diff, dry_run, explain, load_plan, plan_hash, save_plan
from moeworks.plan.gate import KeySpaceGate, ResidualGate, RoutingGate, opens, projected_opens, reduce_prompt
from moeworks.plan.guards import problems
from moeworks.prove import evaluate
from moeworks.prove.mechanism import check_mechanism

torch.set_num_threads(1)
MODEL = small(layers=2, experts=4, top_k=2)
SIDES = {"contrast": "side=contrast", "against": "side=against"}


@pytest.fixture(scope="module")
def fake():
    return FakeEngine("single")


@pytest.fixture(scope="module")
def twin():
    made = planted_model("single", layers=2, experts=8)
    return TransformersEngine(made.model, made.tokenizer), made.planted


def gate_on(engine, planted, threshold=0.2):
    """A gate by hand: open where the planted expert runs for more than a fifth of the prompt."""
    experts = {shape.layer: shape.experts for shape in engine.identity.layers}
    ((layer, expert),) = planted
    return RoutingGate(weights={layer: tuple(float(e == expert) for e in range(experts[layer]))}, threshold=threshold)


def blunt(engine, planted, gate=None):
    """Turns the plant down together with four experts that have nothing to do with it."""
    ((layer, expert),) = planted
    others = [e for e in range(engine.identity.layer(layer).experts) if e != expert][:4]
    experts = at(",".join(f"L{layer}.E{e}" for e in (expert, *others)))
    return plan(engine.identity, Demote(experts=experts), gate=gate)


# ---------------------------------------------------------------- hand-worked


def test_routing_rates_hand_worked():
    """Request 0: tokens {0, 1}, {0, 2}; request 1: one token {3, 1} whose second slot has weight 0 and did not run."""
    rates = routing_rates(
        np.array([0, 0, 1]),
        {5: np.array([[0, 1], [0, 2], [3, 1]])},
        {5: np.array([[0.6, 0.4], [0.7, 0.3], [1.0, 0.0]])},
        {5: 4},
        2,
    )
    np.testing.assert_array_equal(rates[5], [[1.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]])
    gate = RoutingGate(weights={5: (1.0, 0.0, -1.0, 0.25)}, threshold=0.4)  # 1 - .5 = .5; .25
    assert opens(gate, rates).tolist() == [True, False]
    equal = gate.model_copy(update={"threshold": 0.5})  # the threshold itself does not open
    assert opens(equal, rates).tolist() == [False, False]


def test_a_box_hand_worked():
    """Mean .5, std .1, k 2, alpha .5: inside is .4 to .6 in both dimensions."""
    gate = KeySpaceGate(layers={0: 1, 3: 1}, mean=(0.5, 0.5), std=(0.1, 0.1), k=2.0, alpha=0.5)
    rates = {0: np.array([[0.41], [0.41], [0.55]]), 3: np.array([[0.59], [0.61], [0.5]])}
    assert opens(gate, rates).tolist() == [True, False, True]
    assert opens(gate.model_copy(update={"inside": False}), rates).tolist() == [False, True, False]


def test_projections_hand_worked():
    """Tokens project to -1, 3, 1: mean 1, max 3, last 1; above 1 only the maximum."""
    values = {}
    for over in ("mean", "max", "last"):
        gate = ResidualGate(layer=0, direction=(1.0,), over=over, threshold=1.0)
        values[over] = reduce_prompt(gate, np.array([-1.0, 3.0, 1.0]))
        assert projected_opens(gate, np.array([values[over]])).tolist() == [over == "max"]
    assert values == {"mean": 1.0, "max": 3.0, "last": 1.0}


def test_logistic_hand_worked():
    """One feature, x = ±1, side = sign: by symmetry b = 0, and sigmoid(-w) = penalty × w has w = 1.2785 for .17."""
    weights, intercept = logistic(np.array([[1.0], [-1.0], [-1.0]]), np.array([True, False, False]), penalty=0.17)
    assert intercept == pytest.approx(0.0, abs=1e-4)
    assert 1 / (1 + np.exp(weights[0])) == pytest.approx(0.17 * weights[0], abs=1e-5)
    # positives .9, .4 against .5, .4, .1: wins .9 three, .4 one and a half of six pairs
    values, side = np.array([0.9, 0.4, 0.5, 0.4, 0.1]), np.array([True, True, False, False, False])
    assert area_under_curve(values, side) == pytest.approx(4.5 / 6)
    assert best_threshold(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])) == pytest.approx(0.5)


# ---------------------------------------------------------------- the plan


def test_a_gate_is_part_of_the_plan(tmp_path):
    gate = RoutingGate(weights={1: (0.0, 1.0, 0.0, 0.0)}, threshold=0.25, provenance={"auroc_held_out": 0.93})
    gated = plan(MODEL, Demote(experts=at("L0.E1")), gate=gate)
    save_plan(gated, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == gated
    open_plan = ungated(gated)
    assert plan_hash(gated) != plan_hash(open_plan) == plan_hash(plan(MODEL, Demote(experts=at("L0.E1"))))
    relabelled = gated.model_copy(update={"gate": gate.model_copy(update={"provenance": {}})})
    assert plan_hash(gated) == plan_hash(relabelled)
    assert "only to requests" in explain(gated)
    assert "(on held-out documents: AUROC 0.930)" in explain(gated)
    assert [change.subject for change in diff(open_plan, gated).added] == ["gate"]
    other = gated.model_copy(update={"gate": gate.model_copy(update={"threshold": 0.3})})
    assert [change.subject for change in diff(gated, other).changed] == ["gate"]
    assert compose(gated, gated.model_copy(update={"operations": (Demote(experts=at("L1.E1")),)})).gate == gate
    with pytest.raises(BadPlan, match="different gates"):
        compose(gated, open_plan)


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (RoutingGate(weights={7: (1.0,) * 4}), "reads layer 7; routers are in layers 0, 1"),
        (RoutingGate(weights={0: (1.0,) * 3}), "has 3 numbers for layer 0, which has 4 experts"),
        (ResidualGate(layer=0, direction=(0.0, 0.0)), "is 0 everywhere"),
    ],
)
def test_a_gate_that_does_not_fit(gate, message):
    assert any(message in problem for problem in problems(plan(MODEL, Demote(experts=at("L0.E1")), gate=gate), MODEL))


def test_a_box_of_the_wrong_size_is_no_gate():
    with pytest.raises(ValueError, match="are not one an expert of 4"):
        KeySpaceGate(layers={0: 4}, mean=(0.0,), std=(1.0,), k=1.0)


# ---------------------------------------------------------------- fitting


def test_the_probe_finds_the_plant_and_nothing_on_a_null(fake, tmp_path):
    trace = fake.record(planted_examples(60), tmp_path / "planted")
    gate = fit_gate(trace, **SIDES)
    assert gate.provenance["auroc_held_out"] == 1.0
    assert gate.provenance["opened_held_out"]["contrast"] >= 0.9
    assert gate.provenance["opened_held_out"]["against"] == 0.0
    ((layer, expert),) = fake.planted
    assert np.argmax(gate.weights[layer]) == expert
    same = fit_gate(fake.record(null_examples(120), tmp_path / "null"), **SIDES)
    assert abs(same.provenance["auroc_held_out"] - 0.5) < 0.2  # 18 against 18 documents: two standard errors are .2
    engine_gate = fit_gate(fake, **SIDES, examples=planted_examples(60))
    assert engine_gate == gate


def test_held_out_documents_do_not_shape_the_gate(fake, tmp_path):
    """Held-out sides turned round: same weights and threshold, and an AUROC of 0."""
    texts = list(planted_probe(60).texts(None))
    turned = [
        text.model_copy(
            update={
                "labels": {
                    **text.labels,
                    "side": {"contrast": "against", "against": "contrast"}[text.labels["side"]],
                }
            }
        )
        if text.labels["split"] == "held_out"
        else text
        for text in texts
    ]
    gates = [fit_gate(fake.record(t, tmp_path / str(n)), **SIDES) for n, t in enumerate((texts, turned))]
    assert gates[0].weights == gates[1].weights
    assert gates[0].threshold == gates[1].threshold
    assert [gate.provenance["auroc_held_out"] for gate in gates] == [1.0, 0.0]


def test_a_box_is_fitted_calibrated_and_told(fake, tmp_path):
    """Outside truth: the probe's own sides; the box never sees the other one."""
    trace = fake.record(list(planted_probe(160).texts(None)), tmp_path / "trace")
    gate = fit_box_gate(trace, **SIDES, coverage=0.8)
    told = gate.provenance["opened_held_out"]
    assert told["contrast"] > 0.5
    assert told["against"] == 0.0
    with pytest.raises(BadData, match=r"cannot show a coverage of 0\.999"):
        fit_box_gate(trace, **SIDES, coverage=0.999)


def test_too_few_documents(fake, tmp_path):
    trace = fake.record(planted_examples(8), tmp_path / "trace")
    with pytest.raises(BadData, match="at least 3 of each"):
        fit_gate(trace, **SIDES)
    with pytest.raises(BadData, match="on both sides"):
        fit_gate(fake.record(planted_examples(30), tmp_path / "more"), contrast="side=contrast", against="phase=prompt")


# ---------------------------------------------------------------- engines

PROMPTS = [
    "HELLO THERE FRIEND ",
    "hello there friend ",
    "a longer quiet line of words ",
    "LOUD WORDS OF A LONGER LINE ",
    "x ",
]
LOUD = [True, False, False, True, False]


def results(engine, made, batch_size):
    """All four calls on a mixed batch, as plain values."""
    pairs = [(prompt, "NEXT" if loud else "next") for prompt, loud in zip(PROMPTS, LOUD, strict=True)]
    options = {"plan": made, "batch_size": batch_size}
    return {
        "generate": [g.tokens for g in engine.generate(PROMPTS, max_new_tokens=6, **options)],
        "answers": engine.answers(pairs, **options),
        "token_scores": [
            (s.log_probabilities.tolist(), s.divergence.tolist())
            for s in engine.token_scores(PROMPTS, divergence=True, **options)
        ],
    }


@pytest.mark.parametrize("name", ["fake", "twin"])
@pytest.mark.parametrize("batch_size", [2, 5])
def test_each_request_is_on_its_own_side_to_the_bit(request, name, batch_size):
    """Outside truth: the plain engine and the plan without a gate, on the same batches."""
    engine, planted = (request.getfixturevalue("fake"), None) if name == "fake" else request.getfixturevalue("twin")
    planted = planted or engine.planted
    gated = blunt(engine, planted, gate_on(engine, planted))
    assert engine.applies(gated, PROMPTS).tolist() == LOUD
    plain = results(engine, None, batch_size)
    steered = results(engine, ungated(gated), batch_size)
    found = results(engine, gated, batch_size)
    for call in plain:
        for place, loud in enumerate(LOUD):
            assert found[call][place] == (steered if loud else plain)[call][place], (call, place)
        assert [plain[call][p] != steered[call][p] for p in range(5)] == [True] * 5 or call == "generate"
    with engine.steered(gated):
        assert results(engine, None, batch_size) == found
    assert results(engine, None, batch_size) == plain


@pytest.mark.parametrize("name", ["fake", "twin"])
@pytest.mark.parametrize("generate", [0, 4])
def test_recording_under_a_gate(request, name, generate, tmp_path):
    engine, planted = (request.getfixturevalue("fake"), None) if name == "fake" else request.getfixturevalue("twin")
    planted = planted or engine.planted
    gated = blunt(engine, planted, gate_on(engine, planted))
    gated = gated.model_copy(update={"operations": (*gated.operations, TopK(k=3))})  # wider than the plain model
    traces = {
        key: engine.record(PROMPTS_AS_EXAMPLES, tmp_path / key, plan=made, generate=generate, logits=True, batch_size=5)
        for key, made in (("plain", None), ("steered", ungated(gated)), ("gated", gated))
    }
    for trace in traces.values():
        trace.verify()
    rows = traces["gated"].rows()
    for number, loud in enumerate(LOUD):
        other = traces["steered" if loud else "plain"]
        here, there = rows.request == number, other.rows().request == number
        assert rows.token[here].tolist() == other.rows().token[there].tolist()
        for layer in other.layers:
            slots = other.ids(layer).shape[1]
            ids, weights = traces["gated"].ids(layer)[here], traces["gated"].weights(layer)[here]
            np.testing.assert_array_equal(ids[:, :slots], other.ids(layer)[there])
            np.testing.assert_array_equal(weights[:, :slots], other.weights(layer)[there])
            assert not weights[:, slots:].any()
            np.testing.assert_array_equal(traces["gated"].logits(layer)[here], other.logits(layer)[there])


PROMPTS_AS_EXAMPLES = [Example(text=prompt) for prompt in PROMPTS]


def test_a_residual_gate(twin):
    """One dimension after the first layer holds the mean case of what was heard: above 0 in shouted prompts."""
    engine, planted = twin
    direction = tuple(float(d == HEARD) for d in range(HIDDEN))
    gated = blunt(engine, planted, ResidualGate(layer=0, direction=direction))
    assert engine.applies(gated, PROMPTS).tolist() == LOUD
    alone = [bool(engine.applies(gated, [prompt])[0]) for prompt in PROMPTS]  # padding does not count
    assert alone == LOUD
    plain, found = results(engine, None, 5), results(engine, gated, 5)
    assert [found["answers"][p] == plain["answers"][p] for p in range(5)] == [not loud for loud in LOUD]
    assert residual_module(engine, 1) is engine.model.model.layers[1]
    with pytest.raises(Unsupported, match="no module for layer 9"):
        engine.applies(blunt(engine, planted, ResidualGate(layer=9, direction=direction)), PROMPTS)
    with pytest.raises(Unsupported, match="has 2 dimensions"):
        engine.applies(blunt(engine, planted, ResidualGate(layer=0, direction=(1.0, 2.0))), PROMPTS)


def test_what_cannot_be_gated(fake, twin):
    engine, planted = twin
    gated = blunt(engine, planted, gate_on(engine, planted))
    ids = torch.tensor([engine.tokens("HELLO")])
    before = sum(len(module._forward_pre_hooks) for module in engine.model.modules())
    with engine.steered(gated):
        with pytest.raises(Unsupported, match="decides request by request"):
            engine.model(ids)
        with pytest.raises(BadPlan, match="applied already"), engine.steered(gated.model_copy()):
            pass
    engine.model(ids)
    assert sum(len(module._forward_pre_hooks) for module in engine.model.modules()) == before
    with pytest.raises(Unsupported, match="take the gate out"), engine.session(gated, record=False):
        pass
    residual = blunt(fake, fake.planted, ResidualGate(layer=0, direction=(1.0,)))
    with pytest.raises(Unsupported, match="fake engine shows no residual"):
        fake.answers([("HELLO ", "THERE")], plan=residual)
    bare = Prepared(3, (1, 2), 0, (), {}, "", "", 0)
    with pytest.raises(BadData, match="request 3 has no prompt"):
        prompts_of([bare])
    assert prompts_of([dataclasses.replace(bare, prompt_tokens=1)])[0].tokens == (1,)


def test_a_box_on_routing_frequencies_gates(fake, tmp_path):
    """Key Space Detection: a box around the routing of shouted prompts lets those in and no plain one."""
    trace = fake.record(planted_examples(40), tmp_path / "trace")
    found = routing_frequencies(trace)
    loud = trace.request_table().labels["side"][found.requests] == "contrast"
    box = Box.fit(found.rates[loud][:12], floor=0.05).calibrate(found.rates[loud][12:], coverage=0.8)
    gate = KeySpaceGate(layers=found.layers, **box.as_json())
    gated = blunt(fake, fake.planted, gate)
    fresh = planted_examples(40, seed=1)
    opened = fake.applies(gated, fresh)
    side = np.array([text.labels["side"] == "contrast" for text in fresh])
    assert opened[side].mean() > 0.6
    assert not opened[~side].any()


def test_a_gate_keeps_neutral_requests_unharmed_while_the_effect_stays(fake, tmp_path):
    """The point of a gate: the blunt plan does the same to shouted texts, and nothing at all to plain ones."""
    probe = planted_probe(120)
    gate = fit_gate(fake.record(list(probe.texts(None)), tmp_path / "trace"), **SIDES)
    neutral = neutral_examples(8)
    without, with_gate = (
        evaluate(fake, made, probe, neutral=neutral, doses=(), bootstrap=100, controls=2)
        for made in (blunt(fake, fake.planted), blunt(fake, fake.planted, gate))
    )
    assert without.damage.divergence > 0.05
    assert with_gate.damage.divergence == 0.0
    assert with_gate.effect == without.effect
    assert with_gate.effect.value < -0.5
    assert with_gate.mechanism.as_planned


def test_the_re_trace_counts_what_the_gate_takes(fake):
    """Texts of both sides: the plan's experts go on running in plain ones, and that is as planned."""
    gated = blunt(fake, fake.planted, gate_on(fake, fake.planted))
    found = check_mechanism(fake, gated, PROMPTS_AS_EXAMPLES)
    assert found.as_planned
    loud = [example for example, mine in zip(PROMPTS_AS_EXAMPLES, LOUD, strict=True) if mine]
    assert found == check_mechanism(fake, ungated(gated), loud)
    with pytest.raises(BadData, match="behind the plan's gate takes no token"):
        check_mechanism(fake, gated, PROMPTS_AS_EXAMPLES[1:3])


def test_a_dry_run_counts_what_the_gate_takes(fake, tmp_path):
    trace = fake.record(PROMPTS_AS_EXAMPLES, tmp_path / "trace", logits=True)
    gated = blunt(fake, fake.planted, gate_on(fake, fake.planted))
    whole, taken = (dry_run(made, trace).layers[0] for made in (ungated(gated), gated))
    assert whole.rows == sum(map(len, PROMPTS))
    assert taken.rows == sum(len(prompt) for prompt, loud in zip(PROMPTS, LOUD, strict=True) if loud)
    with pytest.raises(Unsupported, match="a trace does not hold"):
        dry_run(blunt(fake, fake.planted, ResidualGate(layer=0, direction=(1.0,))), trace)


def test_an_unsteered_prompt_is_needed(fake):
    with pytest.raises(MoeworksError):
        fake.applies(plan(small(), Promote(experts=at("L0.E1")), gate=gate_on(fake, fake.planted)), PROMPTS)
