"""Plants: turning the truth moves the behaviour, turning anything else does not, and routing shows what it should."""

import numpy as np
import pytest
import torch

from moeworks.address import Address
from moeworks.contract import Contract
from moeworks.engines.fake import CONFOUNDS, PLANTS, FakeEngine, plant_examples, plant_probe, planted_model
from moeworks.engines.fake.network import BEHAVIOUR, SIGNATURE, last_residual, own_decision, residual_of
from moeworks.engines.transformers import TransformersEngine
from moeworks.errors import BadData
from moeworks.find import find
from moeworks.plan import Demote, Promote, empty_plan
from moeworks.prove.metrics import measure

torch.set_num_threads(1)
CARRIED = ("single", "spread", "pair", "neurons", "routing")
NOT_CARRIED = ("residual", *CONFOUNDS)
ALL = tuple(Address(layer, expert) for layer in range(4) for expert in range(16))


def preference(engine, items, *operations):
    plan = empty_plan(engine.identity).model_copy(update={"operations": operations}) if operations else None
    return float(measure(engine, items, "preference", plan=plan, batch_size=32, options={}).mean())


def twin(plant, seed=0):
    made = planted_model(plant, seed=seed)
    return made, TransformersEngine(made.model, made.tokenizer)


def find_on(engine, plant, folder, documents=80, seed=0):
    trace = engine.record(plant_examples(plant, documents, seed=seed), folder)
    return find(trace, contrast="side=contrast", against="side=against", permutations=200, bootstrap=1)


def rising(scores):
    table = scores.top(99, passing=True)
    return {Address(*pair) for pair in zip(table["layer"].to_pylist(), table["expert"].to_pylist(), strict=True)}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("plant", CARRIED)
def test_turning_down_the_truth_turns_the_behaviour_down_and_nothing_else_does(plant, seed):
    """Every other expert of the model is turned down, one at a time; the truth is the engine's own list."""
    engine = FakeEngine(plant, seed=seed)
    items = plant_probe(plant, 60, seed=seed).items("dev")[:4]
    before = preference(engine, items)
    effect = preference(engine, items, Demote(experts=engine.planted)) - before
    assert before > 0
    assert effect < -0.9 * before
    others = [
        preference(engine, items, Demote(experts=(a,))) - before for a in ALL[:: 1 + seed] if a not in engine.planted
    ]
    assert max(map(abs, others)) < 0.1 * abs(effect)


@pytest.mark.parametrize("plant", NOT_CARRIED)
def test_where_no_expert_carries_it_no_expert_turns_it(plant):
    engine = FakeEngine(plant)
    items = plant_probe(plant, 60).items("dev")[:4]
    before = preference(engine, items)
    assert engine.planted == engine.planted_neurons == engine.rising == ()
    assert before > 10
    effects = [preference(engine, items, Demote(experts=(address,))) - before for address in ALL[::2]]
    if engine.confounded:
        effects.append(preference(engine, items, Demote(experts=engine.confounded)) - before)
    assert max(map(abs, effects)) < 0.02 * before


@pytest.mark.parametrize("address", [0, 1])
def test_a_pair_needs_both(address):
    """Turning down either expert leaves no more than turning down both; the spread of five goes down bit by bit."""
    engine = FakeEngine("pair")
    items = plant_probe("pair", 60).items("dev")
    before, neither = preference(engine, items), preference(engine, items, Demote(experts=engine.planted))
    one = preference(engine, items, Demote(experts=engine.planted[address : address + 1]))
    assert one - neither < 0.1 * (before - neither)
    first, second = engine.planted
    assert first.layer < second.layer
    spread = FakeEngine("spread")
    whole, none = preference(spread, items), preference(spread, items, Demote(experts=spread.planted))
    for carrier in spread.planted:
        assert preference(spread, items, Demote(experts=(carrier,))) - none > 0.4 * (whole - none)


def test_the_choice_alone_carries_the_behaviour():
    """The two experts differ in one column, its sign turned round; forcing the one makes plain text shout."""
    engine = FakeEngine("routing")
    on, off = engine.rising[0], next(a for a in engine.planted if a not in engine.rising)
    up, down = engine._model.network.up, engine._model.network.down
    np.testing.assert_array_equal(up[*on], up[*off])
    np.testing.assert_array_equal(np.abs(down[*on]), np.abs(down[*off]))
    assert (down[*on] != down[*off]).sum() == 1
    plain = plant_probe("none", 60).items("dev")[:6]
    before = preference(engine, plain)
    assert before < 0
    assert preference(engine, plain, Promote(experts=(on,)), Demote(experts=(off,))) > 0
    other = Address(on.layer, next(e for e in range(16) if (on.layer, e) not in engine.planted))
    assert preference(engine, plain, Promote(experts=(other,)), Demote(experts=(off,))) < 0
    # The same promotion on a plant whose experts hear the behaviour does nothing on plain text.
    single = FakeEngine("single")
    quiet = preference(single, plain)
    assert preference(single, plain, Promote(experts=single.planted)) < 0.8 * quiet < 0


def test_one_neuron_of_an_expert_that_runs_alike_on_both_sides(tmp_path):
    """Silencing the neuron in the weights takes the signature away; the other neurons have no part in it."""
    engine = FakeEngine("neurons")
    (place,), (neuron,) = engine.planted, engine.planted_neurons
    assert neuron.inside == place
    number = neuron.neuron
    trace = engine.record(plant_examples("neurons", 60), tmp_path / "trace")
    contrast = trace.request_table().labels["side"][trace.rows().request] == "contrast"
    ran = (trace.ids(place.layer) == place.expert).any(1)
    assert ran.mean() > 0.9
    assert abs(ran[contrast].mean() - ran[~contrast].mean()) < 0.02
    network, contract = engine._model.network, engine._model.contract
    tokens = np.frombuffer(b"ABC DEF GHI", np.uint8)

    def signature(silent):
        kept = network.down[*place].copy()
        network.down[*place][:, silent] = 0.0
        written = last_residual(network, residual_of(network, tokens), own_decision(network, contract))[:, SIGNATURE]
        network.down[*place] = kept
        return written

    whole = signature([])
    assert (whole > 1).mean() > 0.8
    assert not signature([number]).any()
    np.testing.assert_allclose(signature([n for n in range(4) if n != number]), whole, atol=1e-3)


def test_the_residual_needs_no_expert():
    """With every expert's output set to 0 the behaviour is as large as before."""
    engine = FakeEngine("residual")
    items = plant_probe("residual", 60).items("dev")
    before = preference(engine, items)
    network = engine._model.network
    assert network.unembedding[:, BEHAVIOUR].any()
    network.down[:] = 0.0
    assert preference(engine, items) == pytest.approx(before, rel=0.02)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("plant", PLANTS)
def test_find_finds_what_routing_shows_and_no_more(plant, seed, tmp_path):
    """Carriers that run more, or the experts that a confound calls; with topics, whatever else hears them too."""
    engine = FakeEngine(plant, seed=seed)
    found = rising(find_on(engine, plant, tmp_path / "trace", documents=160 if plant == "topic" else 60, seed=seed))
    truth = set(engine.rising) | set(engine.confounded)
    assert found >= truth
    if plant not in ("topic", "length"):  # texts of other topics or lengths differ for other experts too
        assert found == truth
    if plant in ("none", "neurons", "residual"):
        assert not found


def test_a_confounded_expert_loses_its_claim_where_the_confound_is_held_constant(tmp_path):
    """Permuting documents within topics: what topic explains is no evidence any more."""
    engine = FakeEngine("topic")
    trace = engine.record(plant_examples("topic", 160), tmp_path / "trace")
    sides = {"contrast": "side=contrast", "against": "side=against", "permutations": 200, "bootstrap": 1}
    assert rising(find(trace, **sides)) >= set(engine.confounded)
    assert not rising(find(trace, within="topic", **sides)) & set(engine.confounded)


@pytest.mark.parametrize("plant", CARRIED[1:])
def test_the_twin_has_the_same_truth(plant, tmp_path):
    made, engine = twin(plant)
    fake = FakeEngine(plant)
    assert (made.planted, made.acting, made.rising) == (fake.planted, fake.acting, fake.rising)
    assert rising(find_on(engine, plant, tmp_path / "trace", documents=40)) == set(made.rising)
    items = plant_probe(plant, 60).items("dev")[:6]
    before = preference(engine, items)
    effect = preference(engine, items, Demote(experts=made.planted)) - before
    assert before > 2
    assert effect < -before
    others = [preference(engine, items, Demote(experts=(a,))) - before for a in ALL[::7] if a not in made.planted]
    assert max(map(abs, others)) < 0.25 * abs(effect)


@pytest.mark.parametrize("plant", NOT_CARRIED)
def test_the_twin_has_no_carrier_either(plant, tmp_path):
    made, engine = twin(plant)
    assert made.planted == made.planted_neurons == ()
    items = plant_probe(plant, 60).items("dev")[:6]
    before = preference(engine, items)
    assert before > 8
    tried = [(a,) for a in ALL[::9]] + ([made.confounded] if made.confounded else [])
    assert max(abs(preference(engine, items, Demote(experts=e)) - before) for e in tried) < 0.1 * before
    found = rising(find_on(engine, plant, tmp_path / "trace", documents=120 if plant == "topic" else 60))
    assert found >= set(made.confounded)
    if plant == "residual":
        assert not found


def test_one_neuron_of_the_twin():
    made, engine = twin("neurons")
    items = plant_probe("neurons", 60).items("dev")[:6]
    before = preference(engine, items)
    ((layer, expert, number),) = made.planted_neurons
    down = made.model.model.layers[layer].mlp.experts.down_proj
    with torch.no_grad():
        column = down[expert, :, number].clone()
        down[expert, :, number] = 0.0
        assert preference(engine, items) < before - 8
        down[expert, :, number] = column
        down[expert, :, [n for n in range(8) if n != number]] = 0.0
        assert preference(engine, items) > 0.5 * before


def test_probes_are_sound_and_their_metric_sees_case_alone():
    for plant in PLANTS:
        probe = plant_probe(plant, 60)
        probe.validate()
        for item in probe.items(None):
            assert item.target.lower() == item.other
            assert item.target.isalpha()
            assert item.prompt[-1] in " _"
    loud, quiet = plant_probe("single", 60), plant_probe("single", 60, items_of="against")
    assert all(item.prompt.isupper() for item in loud.items(None))
    assert all(item.prompt.islower() for item in quiet.items(None))
    lengths = [len(text.text) for text in plant_examples("length", 40)]
    assert min(lengths[::2]) > max(lengths[1::2])
    marked = [set("_!") & set(text.text) for text in plant_examples("token", 20)]
    assert all(marked[::2])
    assert not any(marked[1::2])


def test_bad_input_is_named():
    with pytest.raises(BadData, match="did you mean 'residual'"):
        plant_examples("residul", 4)
    with pytest.raises(BadData, match="two layers"):
        FakeEngine("pair", layers=1)
    with pytest.raises(BadData, match="two experts in one layer"):
        FakeEngine("routing", contract=Contract(experts=8, top_k=1))
