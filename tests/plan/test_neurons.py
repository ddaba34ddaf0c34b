"""The operation `neurons`: its formulas by hand, the torch twin, real models against edited weights, and its guards.

Above 400 lines: the operation is followed from its formula to an engine, and the cases share one model.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from helpers.models import tiny_engine, tiny_model
from helpers.plans import plan, scores, small
from moeworks.address import NeuronAddress, parse_neuron, parse_neurons
from moeworks.contract import Contract
from moeworks.engines.fake import FakeEngine, planted_model, planted_probe
from moeworks.engines.transformers import TransformersEngine
from moeworks.engines.transformers.experts import Slice, open_experts
from moeworks.engines.transformers.neurons import edited, neuron_edit
from moeworks.errors import BadData, BadPlan, Unsupported
from moeworks.examples import Example
from moeworks.families.engine_checks import _examples, _tokenizer
from moeworks.families.tiny import tiny_model as tiny_family
from moeworks.find import Scores
from moeworks.plan import (
    Demote,
    Mask,
    Neurons,
    Promote,
    Scale,
    TopK,
    bottom_of,
    check,
    compile_plan,
    compose,
    diff,
    dry_run,
    empty_plan,
    explain,
    load_plan,
    matched_random,
    plan_hash,
    save_plan,
    with_amount,
)
from moeworks.plan.guards import problems
from moeworks.plan.neurons import NeuronStep, apply_step
from moeworks.plan.schema import Plan
from moeworks.prove.metrics import measure
from moeworks.where import Where

TEXTS = ["The tower stands on a hill.", "In the morning the boats go out to sea, and in the evening they come back."]
KINDS = ("softmax", "top_k_first", "granite")


def model_with(neurons: int | None = 6, **options):
    identity = small(**options)
    layers = tuple(shape.model_copy(update={"neurons": neurons}) for shape in identity.layers)
    return identity.model_copy(update={"layers": layers})


def plan_for(engine, *operations, where: str = "", **fields):
    update = {"operations": operations, "where": Where.parse(where), **fields}
    return empty_plan(engine.identity).model_copy(update=update)


def logits_of(engine, text: str = TEXTS[0]) -> torch.Tensor:
    with torch.no_grad():
        return engine.model(torch.tensor([engine.tokenizer(text)["input_ids"]])).logits


# ------------------------------------------------------------------ addresses


def test_addresses_are_read_and_printed():
    assert parse_neuron("L3.E5.N17") == NeuronAddress(3, 5, 17)
    assert str(NeuronAddress(3, 5, 17)) == "L3.E5.N17"
    assert str(NeuronAddress(3, 5, 17).inside) == "L3.E5"
    assert [str(n) for n in parse_neurons("L0.E1.N2, L3.E5.N4-6")] == ["L0.E1.N2", "L3.E5.N4", "L3.E5.N5", "L3.E5.N6"]
    for wrong, reason in (("L3.E5", "not a neuron"), ("L3.E5.N6-4", "backwards")):
        with pytest.raises(BadData, match=reason):
            parse_neurons(wrong)
    with pytest.raises(BadData, match="names 2 neurons"):
        parse_neuron("L3.E5.N4-5")


# ------------------------------------------------------------------ the formulas

V = np.array([[1.0, 2.0, -3.0], [4.0, -5.0, 6.0]])  # (tokens, neurons)


@pytest.mark.parametrize(
    ("action", "numbers", "wanted"),
    [
        ("zero", {}, [[0, 2, 0], [0, -5, 0]]),
        ("scale", {"factor": [2.0, -1.0]}, [[2, 2, 3], [8, -5, -6]]),
        ("reflect", {"mean": [0.5, 10.0]}, [[0, 2, 23], [-3, -5, 14]]),
        ("clamp", {"value": [7.0, 8.0]}, [[7, 2, 8], [7, -5, 8]]),
    ],
)
def test_formulas_by_hand_and_the_torch_twin(action, numbers, wanted):
    step = NeuronStep(
        expert=3,
        site="key",
        action=action,
        neurons=np.array([0, 2]),
        numbers={name: np.array(values) for name, values in numbers.items()},
    )
    assert np.array_equal(apply_step(step, V), wanted)
    second = apply_step(step, V, np.array([False, True]))
    assert np.array_equal(second[0], V[0])
    assert np.array_equal(second[1], wanted[1])

    generator = np.random.default_rng(0)
    values, rows = generator.normal(size=(50, 3)), generator.random(50) < 0.5
    edit, part = neuron_edit([step], 8, torch.device("cpu")), Slice(3, True, torch.arange(50), torch.zeros(50).long())
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.2)):
        given = torch.from_numpy(values).to(dtype)
        got = edited([(edit, torch.from_numpy(rows))], part, "key", given)
        assert got.dtype == dtype
        assert np.allclose(got.double().numpy(), apply_step(step, given.double().numpy(), rows), atol=error)
        assert torch.equal(got[~torch.from_numpy(rows)], given[~torch.from_numpy(rows)])
        for expert, site in ((2, "key"), (3, "up")):
            elsewhere = edited([(edit, None)], part._replace(expert=expert), site, given)
            assert elsewhere is given


def test_values_that_cannot_be():
    step = NeuronStep(expert=0, site="key", action="zero", neurons=np.array([3]), numbers={})
    with pytest.raises(BadData, match="no neuron 3"):
        apply_step(step, V)
    with pytest.raises(BadData, match="NaN"):
        apply_step(NeuronStep(expert=0, site="key", action="zero", neurons=np.array([0]), numbers={}), V * np.nan)


# ------------------------------------------------------------------ in a model, against edited weights


def _with_edited_weights(kind, change):
    """The same model with other weights in layer 0 (the first router's), run without any plan."""
    engine = TransformersEngine(tiny_model(kind), tiny_engine(kind).tokenizer, name="edited")
    with torch.no_grad():
        change(open_experts(engine.routers[0]).weights)
    return logits_of(engine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("action", "numbers", "factor"), [("zero", {}, 0.0), ("scale", {"factor": -2.5}, -2.5)])
def test_keys_are_changed_as_if_the_down_projection_was(kind, action, numbers, factor):
    engine = tiny_engine(kind)
    layer = engine.routers[0].layer
    neurons = [f"L{layer}.E{expert}.N{n}" for expert in range(8) for n in (1, 5)]

    def change(weights):
        weights.down[:, :, [1, 5]] *= factor

    plain = logits_of(engine)
    with engine.steered(plan_for(engine, Neurons(neurons=neurons, action=action, **numbers))):
        got = logits_of(engine)
    wanted = _with_edited_weights(kind, change)
    assert (got - plain).abs().max() > 0.05
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits_of(engine), plain)


def test_the_up_projection_and_the_gate_are_changed_before_the_activation():
    engine = tiny_engine("softmax")
    neurons = [f"L0.E{expert}.N3" for expert in range(8)]
    for site in ("up", "gate"):

        def change(weights, site=site):
            getattr(weights, site)[:, 3] *= 3.0

        with engine.steered(plan_for(engine, Neurons(neurons=neurons, action="scale", factor=3.0, site=site))):
            got = logits_of(engine)
        assert torch.allclose(got, _with_edited_weights("softmax", change), rtol=1e-4, atol=1e-4)


def test_clamp_and_reflect_add_what_the_formula_says():
    engine = tiny_engine("softmax")
    router, plain = engine.routers[-1], logits_of(engine)
    column = open_experts(router).weights.down[:, :, 2]  # (E, H)
    mean, value = 0.7, 1.9
    keys, given = {}, {}

    def observe(p, rows, requests):
        if p.layer == router.layer:
            given[p.expert] = (p.rows, p.weights)
            keys[p.expert] = p.key[:, 2]

    from moeworks.engines.transformers.inside import observe_experts

    observe_experts(engine, [Example(text=TEXTS[0])], observe)
    for action, numbers, new in (
        ("clamp", {"value": value}, lambda key: torch.full_like(key, value)),
        ("reflect", {"mean": mean}, lambda key: 2 * mean - key),
    ):

        def by_hand(module, args, output, new=new):
            output = output.clone()
            for expert, (rows, weights) in given.items():
                output[rows] += ((new(keys[expert]) - keys[expert]) * weights)[:, None] * column[expert]
            return output

        handle = router.experts_module.register_forward_hook(by_hand)
        wanted = logits_of(engine)
        handle.remove()
        neurons = [f"L{router.layer}.E{expert}.N2" for expert in range(8)]
        with engine.steered(plan_for(engine, Neurons(neurons=neurons, action=action, **numbers))):
            got = logits_of(engine)
        assert (got - plain).abs().max() > 0.05
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_rows_that_no_clause_takes_keep_every_bit():
    """With products that do not depend on how many tokens share an expert: the last token is routed elsewhere later."""
    engine = tiny_engine("softmax")
    engine.model.set_experts_implementation("batched_mm")
    neurons = [f"L0.E{expert}.N{n}" for expert in range(8) for n in range(8)]
    plain = logits_of(engine)
    tokens = plain.shape[1]
    with engine.steered(plan_for(engine, Neurons(neurons=neurons, action="zero"), where=f"position={tokens - 1}:")):
        late = logits_of(engine)
    assert torch.equal(late[:, :-1], plain[:, :-1])
    assert not torch.equal(late[:, -1], plain[:, -1])
    for nothing in (plan_for(engine), plan_for(engine, Neurons(neurons=neurons, action="zero"), where="token=8000")):
        with engine.steered(nothing):
            assert torch.equal(logits_of(engine), plain)


@pytest.mark.parametrize("engine", [lambda: tiny_engine("softmax"), lambda: FakeEngine("single")])
def test_two_requests_with_different_neurons_never_mix(engine):
    engine = engine()
    operations = [
        Neurons(neurons=_all(engine, neuron), action="scale", factor=9.0, where=Where.parse(f"who={name}"))
        for name, neuron in (("a", 0), ("b", 1))
    ]
    whole = plan_for(engine, *operations)
    examples = [Example(text=text, labels={"who": who}) for text in TEXTS for who in ("a", "b", "c")]

    def written(given, plan, batch_size):
        return [one.tokens for one in engine.generate(given, plan=plan, max_new_tokens=6, batch_size=batch_size)]

    together = written(examples, whole, 6)
    for place, example in enumerate(examples):
        alone = {"a": plan_for(engine, operations[0]), "b": plan_for(engine, operations[1]), "c": None}
        assert together[place] == written([example], alone[example.labels["who"]], 1)[0]
    assert len(set(together)) >= 4  # the plans do something


def _all(engine, neuron):
    return [f"L{shape.layer}.E{e}.N{neuron}" for shape in engine.identity.layers for e in range(shape.experts)]


@pytest.mark.parametrize("engine", [lambda: tiny_engine("softmax"), lambda: FakeEngine("single")])
def test_every_call_runs_under_the_plan(engine, tmp_path):
    engine = engine()
    first = engine.identity.layers[0].layer
    strong = plan_for(engine, Neurons(neurons=_all(engine, 0), action="scale", factor=20.0))
    pairs = [("The tower stands on", " a hill.")]
    plain, inside = engine.answers(pairs)[0], engine.answers(pairs, plan=strong)[0]
    assert inside.log_probability != plain.log_probability
    with engine.steered(strong):
        assert engine.answers(pairs)[0] == inside
    scored = list(engine.token_scores(TEXTS, plan=strong, divergence=True))
    assert all(one.divergence.sum() > 0 for one in scored)
    examples = [Example(text=text) for text in TEXTS]
    before, after = (
        engine.record(examples, tmp_path / name, plan=p) for name, p in (("plain", None), ("inside", strong))
    )
    assert np.array_equal(before.ids(first), after.ids(first))  # nothing precedes it
    assert np.array_equal(before.weights(first), after.weights(first))
    if not isinstance(engine, FakeEngine):  # whose routers hear the tokens only
        last = before.layers[-1]
        assert not np.array_equal(before.weights(last), after.weights(last))


def test_an_opaque_router_is_no_hindrance():
    engine = TransformersEngine(tiny_family("inkling"), _tokenizer(), name="tiny")
    layer = engine.identity.layers[0].layer
    assert engine.identity.layers[0].contract is None
    with pytest.raises(BadPlan, match="no proved contract"):
        check(plan_for(engine, Promote(experts=[f"L{layer}.E0"])), engine.identity)
    whole = plan_for(engine, Neurons(neurons=_all(engine, 0), action="scale", factor=30.0))
    text = " ".join(example.text for example in _examples())
    plain, changed = (next(iter(engine.token_scores([text], plan=p))).mean for p in (None, whole))
    assert plain != changed


def test_a_gate_that_is_not_there_is_refused():
    ungated = TransformersEngine(tiny_family("nemotron_h"), _tokenizer(), name="tiny")
    layer = ungated.identity.layers[0].layer
    for engine, expert in ((ungated, f"L{layer}.E0"), (FakeEngine("single"), "L0.E0")):
        wrong = plan_for(engine, Neurons(neurons=[f"{expert}.N0"], action="zero", site="gate"))
        with pytest.raises(Unsupported, match="no gate"):
            engine.token_scores(["w3 w4 w5"], plan=wrong).__next__()
    assert not any("forward" in module.__dict__ for module in ungated.model.modules())


# ------------------------------------------------------------------ on the plant


@pytest.mark.parametrize("twin", [False, True])
def test_zeroing_the_planted_neuron_stops_the_behaviour_and_its_neighbours_do_not(twin):
    if twin:
        made = planted_model("single")
        engine, planted = TransformersEngine(made.model, made.tokenizer, name="twin"), made.planted
    else:
        engine = FakeEngine("single")
        planted = engine.planted
    probe = planted_probe()
    items = probe.items("dev")[:40]
    metric = probe.header.metric

    def mean(operations):
        values = measure(
            engine, items, metric.name, plan=plan_for(engine, *operations), batch_size=20, options=metric.options
        )
        return float(np.mean(values))

    neurons = [f"{address}.N0" for address in planted]
    whole = plan_for(engine, Neurons(neurons=neurons, action="zero"))
    plain, silent = mean([]), mean(whole.operations)
    masked = mean([Mask(experts=[str(a) for a in planted], refill=False)])
    random = [mean(matched_random(whole, engine.identity, seed=seed).operations) for seed in range(3)]
    assert abs(silent - masked) < 0.2 * abs(plain - masked)
    assert all(abs(value - plain) < 0.2 * abs(plain - masked) for value in random)


# ------------------------------------------------------------------ documents and guards


def test_a_plan_survives_its_file_and_its_schema_knows_it(tmp_path):
    model = model_with()
    whole = plan(
        model,
        Neurons(neurons=["L0.E1.N2", "L0.E1.N3", "L1.E0.N5"], action="reflect", mean=[0.5, 0.0, -2.0], site="up"),
        Neurons(neurons=["L0.E1.N2"], action="clamp", value=3, where=Where.parse("phase=generated")),
    )
    save_plan(whole, tmp_path / "plan.json")
    document = json.loads((tmp_path / "plan.json").read_text())
    assert document["operations"][0] == {
        "op": "neurons",
        "neurons": ["L0.E1.N2", "L0.E1.N3", "L1.E0.N5"],
        "action": "reflect",
        "site": "up",
        "mean": [0.5, 0.0, -2.0],
    }
    assert load_plan(tmp_path / "plan.json") == whole
    assert "neurons" in json.dumps(Plan.model_json_schema())
    edit = compile_plan(whole, model)[0].layers
    assert [(s.expert, s.neurons.tolist(), s.numbers["mean"].tolist()) for s in edit[0].neurons] == [
        (1, [2, 3], [0.5, 0.0])
    ]
    assert edit[1].neurons[0].numbers["mean"].tolist() == [-2.0]
    assert not edit[0].edits_decision


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"action": "scale"}, "needs factor"),
        ({"action": "zero", "value": 1.0}, "has no value"),
        ({"action": "reflect", "mean": [1.0]}, "1 numbers for 2 neurons"),
        ({"action": "clamp", "value": float("nan")}, "finite"),
        ({"action": "clamp", "value": [1.0, float("inf")]}, "finite"),
        ({"action": "zero", "site": "down"}, "gate"),
        ({"action": "zero", "neurons": ["L0.E1"]}, "not a neuron"),
        ({"action": "zero", "neurons": []}, "at least 1"),
    ],
)
def test_malformed_operations(fields, reason):
    with pytest.raises(ValueError, match=reason):
        Neurons(**{"neurons": ["L0.E1.N2", "L0.E1.N3"], **fields})


def one(*neurons, **fields):
    return Neurons(neurons=neurons, **({"action": "zero"} | fields))


@pytest.mark.parametrize(
    ("operations", "fields", "reason"),
    [
        ([one("L0.E1.N6")], {}, "L0.E1.N6 does not exist; experts of layer 0 have neurons 0 to 5"),
        ([one("L0.E9.N0")], {}, "L0.E9 does not exist"),
        ([one("L7.E0.N0")], {}, "L7.E0 does not exist"),
        ([one("L0.E1.N2", "L0.E1.N2")], {}, "lists L0.E1.N2 more than once"),
        ([one("L0.E1.N2"), one("L0.E1.N2", action="scale", factor=2)], {}, "L0.E1.N2 .key. is changed by two"),
        ([one("L0.E1.N2", where=Where.parse("layer=1"))], {}, "touches nothing"),
        ([one("L0.E1.N2")], {"protected": ("L0.E1",)}, "changes neurons of protected experts: L0.E1"),
        ([one("L0.E1.N2", action="scale", factor=0.5)], {"protected": ("L0.E1",)}, "changes neurons of protected"),
    ],
)
def test_what_is_refused(operations, fields, reason):
    model = model_with()
    fields = {name: tuple(plan(model, Mask(experts=list(v))).operations[0].experts) for name, v in fields.items()}
    with pytest.raises(BadPlan, match=reason):
        check(plan(model, *operations, **fields), model)


def test_what_is_allowed():
    model = model_with()
    for operations in (
        [one("L0.E1.N2"), one("L0.E1.N2", site="up"), one("L0.E1.N3")],
        [one("L0.E1.N2", where=Where.parse("phase=prompt")), one("L0.E1.N2", where=Where.parse("phase=generated"))],
        [one("L0.E1.N2"), Demote(experts=["L0.E1"]), TopK(k=1)],
    ):
        assert problems(plan(model, *operations), model) == []
    protected = plan(model, Mask(experts=["L0.E1"])).operations[0].experts
    louder = plan(model, one("L0.E1.N2", action="scale", factor=2.0), protected=protected)
    assert problems(louder, model) == []
    assert "is not known" in problems(plan(model_with(None), one("L0.E1.N2")), model_with(None))[0]


# ------------------------------------------------------------------ words, differences, doses, controls


def test_words_and_differences():
    model = model_with()
    first = plan(model, one("L0.E1.N2", "L0.E1.N3", action="scale", factor=[0.5, 2.0], site="gate"))
    second = plan(model, one("L0.E1.N2", action="scale", factor=0.5, site="gate"), Scale(experts=["L1.E0"], factor=2))
    assert "2 neurons (L0.E1.N2, L0.E1.N3), the pre-activation of the gate" in explain(first)
    assert "times 0.5 to 2, each its own" in explain(first)
    changes = str(diff(first, second))
    assert "- L0.E1.N3: gate: times 0.5 to 2, each its own" in changes
    assert "+ L1.E0: scale by 2" in changes
    both = compose(first, plan(model, one("L0.E1.N2")))
    assert len(both.operations) == 2
    with pytest.raises(BadPlan, match="changed by two"):
        compose(first, second)


def test_doses_are_prefixes_with_their_numbers():
    model = model_with()
    whole = plan(
        model, one("L0.E1.N2", "L0.E1.N3", "L1.E0.N5", action="reflect", mean=[0.5, 0.0, -2.0]), one("L1.E3.N0")
    )
    half = with_amount(whole, experts=3)
    assert half.operations[0].neurons == tuple(parse_neurons("L0.E1.N2-3"))
    assert half.operations[0].mean == (0.5, 0.0)
    assert half.operations[1] == whole.operations[1]
    scaled = with_amount(plan(model, one("L0.E1.N2", action="scale", factor=2.0)), strength=3.0)
    assert scaled.operations[0].factor == 3.0
    with pytest.raises(BadData, match="no operation"):
        with_amount(whole, strength=2.0)


def test_random_controls_are_other_neurons_of_the_same_experts():
    model = model_with(50)
    whole = plan(model, one("L0.E1.N2", "L0.E1.N3", "L1.E0.N5"), one("L0.E1.N2", site="up"), Mask(experts=["L1.E7"]))
    drawn = [matched_random(whole, model, seed=seed) for seed in range(5)]
    assert len({plan_hash(control) for control in drawn}) == 5
    for control in drawn:
        first, second, third = control.operations
        assert [n.inside for n in first.neurons] == [n.inside for n in whole.operations[0].neurons]
        assert not set(first.neurons) & set(whole.operations[0].neurons)
        assert len(set(first.neurons)) == 3
        assert second.neurons == first.neurons[:1]  # one neuron that two operations list stays one
        assert third.experts[0].layer == 1
        assert third.experts[0].expert != 7
    with pytest.raises(BadPlan, match="mean for each of its neurons"):
        matched_random(plan(model, one("L0.E1.N2", action="reflect", mean=[0.5])), model, seed=0)
    assert matched_random(plan(model, one("L0.E1.N2", action="reflect", mean=0.5)), model, seed=0)
    full = plan(model_with(6), one(*(f"L0.E1.N{n}" for n in range(4))))
    with pytest.raises(BadPlan, match=r"L0\.E1 has 2 other neurons left, 4"):
        matched_random(full, model_with(6), seed=0)


def test_the_bottom_of_a_ranking_of_neurons():
    model = model_with(4)
    whole = plan(model, one("L0.E1.N2"))
    with pytest.raises(BadPlan, match="scores are of experts"):
        bottom_of(scores(model, {"L0.E1": 1.0}), whole)
    rows = [(0, 1, n, s) for n, s in enumerate((0.5, -0.1, 9.0, 3.0))]
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(("layer", "expert", "neuron", "score"))})
    of_neurons = Scores(table, scores(model, {}).header)
    assert bottom_of(of_neurons, whole).operations[0].neurons == tuple(parse_neurons("L0.E1.N1"))
    with pytest.raises(BadPlan, match="scores are of neurons"):
        bottom_of(of_neurons, plan(model, Mask(experts=["L0.E1"])))


def test_the_dry_run_says_on_how_many_rows_the_expert_runs(tmp_path):
    engine = FakeEngine("none")
    trace = engine.record([Example(text="a quick brown fox jumps over the lazy dog.")], tmp_path / "trace", logits=True)
    report = dry_run(plan_for(engine, one("L1.E3.N0", "L1.E3.N2"), one("L1.E3.N2", site="up")), trace).layers[0]
    ran = ((trace.ids(1) == 3) & (trace.weights(1) != 0)).any(-1)
    assert report.neurons == {3: 2}
    assert (report.changed, report.reweighed) == (0, 0)
    assert report.share_before == {3: ran.mean()}
    assert report.share_after == report.share_before
    assert "neurons change where their expert runs: 2 of E3" in str(
        dry_run(plan_for(engine, one("L1.E3.N0", "L1.E3.N2")), trace)
    )


def test_identities_know_their_neurons():
    assert {shape.neurons for shape in tiny_engine("top_k_first").identity.layers} == {16}
    assert {shape.neurons for shape in FakeEngine("none").identity.layers} == {4}
    assert Contract(experts=4, top_k=2)
