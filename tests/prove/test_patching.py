"""Patching: arms told apart on planted truth and against weights written out, pairs refused, a double dissociation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from helpers.models import tiny_engine
from moeworks.address import Address
from moeworks.engines.fake import FakeEngine, planted_model
from moeworks.engines.fake.twin import CALL, HEARD, WRITTEN
from moeworks.engines.fake.twin import CONSTANT as ONE
from moeworks.engines.transformers import TransformersEngine
from moeworks.engines.transformers.patch import PairRun
from moeworks.errors import BadData, Unsupported
from moeworks.plan.evidence import Interval
from moeworks.prove.dissociation import Cell, double_dissociation, judge_table
from moeworks.prove.pairs import Pair, prepare, read_pairs
from moeworks.prove.patching import expert_effects, patch, ratios

torch.set_num_threads(1)
WORDS = ["hello there friend ", "so it goes on and ", "a quiet evening in ", "more of the words ", "and one more line "]


def shouting(letters="ae", words=WORDS):
    """Clean is shouted, corrupt is not; a capital is the answer of one, the small letter of the other."""
    return [
        Pair(clean=w.upper(), corrupt=w, correct=c.upper(), distractor=c, task="shout", document=w)
        for w in words
        for c in letters
    ]


@pytest.fixture(scope="module")
def planted():
    return planted_model("single", layers=3, experts=8)


@pytest.fixture(scope="module")
def engine(planted):
    return TransformersEngine(planted.model, planted.tokenizer)


# ---------------------------------------------------------------- hand-worked


def test_the_effect_hand_worked():
    """(m patched - m corrupt) / (m clean - m corrupt): (1 + 1) / (3 + 1) = .5; (-2 + 1) / 4 = -.25; 0 / 0 is none."""
    found = ratios(np.array([1.0, -2.0, 5.0]), np.array([3.0, 3.0, 5.0]), np.array([-1.0, -1.0, 5.0]))
    assert found[:2].tolist() == [0.5, -0.25]
    assert np.isnan(found[2])


def by_hand(engine, layer, arm, clean, corrupt, expert=None):
    """The patched layer's routed output from the weights themselves: a loop over tokens, slots and experts."""
    module = engine.model.model.layers[layer].mlp
    inputs, outputs = {}, []

    def keep(name):
        return lambda m, args, out: inputs.__setitem__(name, (args[0].reshape(-1, args[0].shape[-1]), out))

    def expert_output(e, h):
        gate, up = module.experts.gate_up_proj[e].matmul(h).chunk(2)
        return module.experts.down_proj[e].matmul(torch.nn.functional.silu(gate) * up)

    def replace(m, args, out):
        hidden, routing = {}, {}
        for name in ("clean", "corrupt"):
            hidden[name], (_, weights, ids) = inputs[name]
            routing[name] = ids, weights
        h_from, r_from = {"routing": ("corrupt", "clean"), "output": ("clean", "corrupt"), "joint": ("clean",) * 2}[arm]
        rows = []
        for row in range(len(hidden["clean"])):
            total = torch.zeros(hidden["clean"].shape[-1])
            parts = [("in", h_from, r_from)] if expert is None else [("rest", *["corrupt"] * 2), ("in", h_from, r_from)]
            for kind, h, r in parts:
                ids, weights = routing[r]
                for e, w in zip(ids[row].tolist(), weights[row], strict=True):
                    if expert is None or (e == expert) == (kind == "in"):
                        total += w * expert_output(e, hidden[h][row])
            rows.append(total)
        return torch.stack(rows).reshape(out.shape)

    with torch.no_grad():
        for name, ids in (("clean", clean), ("corrupt", corrupt)):
            handle = module.gate.register_forward_hook(keep(name))
            engine.model(ids)
            handle.remove()
        handle = module.experts.register_forward_hook(replace)
        outputs.append(engine.model(corrupt).logits[0, -1])
        handle.remove()
    return outputs[0]


@pytest.mark.parametrize("arm", ["routing", "output", "joint"])
@pytest.mark.parametrize("expert", [False, True])
def test_arms_are_what_the_weights_say(arm, expert):
    """Outside truth: the routed output of one layer, summed token by token from the model's own weights."""
    engine = tiny_engine("softmax")
    pair = Pair(clean="The tower stands on a hill", corrupt="The tower stands on a rock", correct=" a", distractor=" b")
    (ready,) = prepare(engine, [pair])
    run = PairRun(engine, [ready.clean], [ready.corrupt])
    moves = (e for e in run.running(2) if not torch.allclose(run.patched_expert(arm, Address(2, e))[0], run.corrupt[0]))
    chosen = next(moves) if expert else None  # one that runs for the last token; others leave the logits as they are
    ids = [torch.tensor([side.tokens]) for side in (ready.clean, ready.corrupt)]
    truth = by_hand(engine, 2, arm, *ids, expert=chosen)
    found = run.patched(arm, [2]) if chosen is None else run.patched_expert(arm, Address(2, chosen))
    torch.testing.assert_close(found[0], truth, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0], run.corrupt[0], atol=1e-3)


def test_a_batch_of_pairs_is_its_pairs(engine):
    """Outside truth: each pair alone; lengths differ, so that there is padding."""
    pairs = prepare(engine, [*shouting("a"), Pair(clean="A ", corrupt="a ", correct="T", distractor="t")])
    together = PairRun(engine, [p.clean for p in pairs], [p.corrupt for p in pairs])
    for row, pair in enumerate(pairs):
        alone = PairRun(engine, [pair.clean], [pair.corrupt])
        torch.testing.assert_close(together.clean[row], alone.clean[0], atol=1e-4, rtol=1e-4)
        for arm in ("routing", "joint"):
            both = together.patched(arm, together.layers)[row], alone.patched(arm, alone.layers)[0]
            torch.testing.assert_close(*both, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- planted truth


def test_the_single_plant_needs_decision_and_activation_together(planted, engine):
    """By construction: the planted expert writes where it is chosen and hears capitals. Chosen alone it stays silent or
    writes the opposite, heard alone it does not run; both together are the clean model.
    """
    found = patch(engine, shouting(), experts=2, bootstrap=100)
    (place,) = planted.planted
    for layer in range(3):
        joint = found.effect("joint", f"layer {layer}").value
        assert joint == pytest.approx(float(layer == place.layer), abs=0.02)
        assert found.effect("output", f"layer {layer}").value == pytest.approx(0.0, abs=0.02)
    assert found.effect("joint", "all layers").value == pytest.approx(1.0, abs=0.02)
    assert found.effect("routing", "all layers").value < 0.1
    assert found.effect("joint", str(place)).value == pytest.approx(1.0, abs=0.02)
    strongest = [row.component for row in found.effects if row.arm == "joint" and row.component.startswith("L")]
    assert strongest[0] == str(place)
    assert len(strongest) == 2
    effects = expert_effects(engine, shouting())
    assert max(effects, key=effects.get) == place


def test_nothing_is_claimed_without_a_plant():
    """Texts that differ in case only run alike in a model without a plant: every pair is refused."""
    model = planted_model("none", layers=2, experts=8)
    with pytest.raises(BadData, match="none of the 10 pairs tells clean from corrupt"):
        patch(TransformersEngine(model.model, model.tokenizer), shouting())


def test_pairs_that_say_nothing_are_counted(engine):
    """A digit and a full stop do not depend on the case, and a ratio of two roundings is no effect."""
    mute = [Pair(clean=w.upper(), corrupt=w, correct="1", distractor=".") for w in WORDS[:2]]
    found = patch(engine, [*shouting(), *mute], arms=["joint"], bootstrap=10)
    without = patch(engine, shouting(), arms=["joint"], bootstrap=10)
    assert found.refused == without.refused + 2
    assert (found.pairs, found.documents) == (without.pairs, without.documents)
    assert found.effects == without.effects


def test_the_model_is_left_as_it_was(engine):
    ids = torch.tensor([engine.tokens("HELLO there")])
    before = engine.model(ids).logits
    patch(engine, shouting("a"), arms=["routing"], bootstrap=10)
    assert torch.equal(engine.model(ids).logits, before)
    assert not any("forward" in module.__dict__ for module in engine.model.modules())


# ---------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corrupt": "hello "}, "pair 2: the clean prompt has 19 tokens, the corrupt one 6"),
        ({"correct": "ab"}, "pair 2: correct 'ab' is 2 tokens"),
        ({"distractor": "A"}, "pair 2: correct and distractor are the same"),
        ({"corrupt": WORDS[0].upper()}, "pair 2: both prompts are the same"),
    ],
)
def test_pairs_that_are_not_aligned(engine, change, message):
    good = shouting("a", WORDS[:1])[0]
    with pytest.raises(BadData, match=message):
        patch(engine, [good, good.model_copy(update=change)])


def test_the_first_bad_pair_is_named(engine):
    bad = [Pair(clean="ab", corrupt="abc", correct="a", distractor="b")] * 3
    with pytest.raises(BadData, match="pair 1:"):
        patch(engine, bad)


def test_reading_pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair.model_dump()) + "\n" for pair in shouting()))
    assert read_pairs(path) == shouting()
    path.write_text('{"clean": "a"}\nnot json\n')
    with pytest.raises(BadData, match=r"2 problems(.|\n)*line 1(.|\n)*line 2"):
        read_pairs(path)


def test_engines_that_cannot(engine):
    with pytest.raises(Unsupported, match="fake cannot patch: it runs no module"):
        patch(FakeEngine(), shouting())
    granite = tiny_engine("granite")
    if any(router.experts_module is None for router in granite.routers):
        pair = Pair(clean="The hill", corrupt="The rock", correct=" a", distractor=" b")
        with pytest.raises(Unsupported, match="not called with the router's decision"):
            patch(granite, [pair])


# ---------------------------------------------------------------- double dissociation


def two_behaviours():
    """The planted twin, and a second expert in another layer that hears small letters and says ! and not ?."""
    made = planted_model("single", layers=3, experts=8)
    (first,) = made.planted
    second = Address((first.layer + 1) % 3, 0)
    free = WRITTEN.start
    with torch.no_grad():
        for layer in made.model.model.layers:
            layer.mlp.experts.down_proj[:, free] = 0.0
        made.model.lm_head.weight[:, free] = 0.0
        mlp = made.model.model.layers[second.layer].mlp
        mlp.gate.weight[second.expert, HEARD] = -CALL * 6.0
        mlp.experts.gate_up_proj[second.expert, 0] = 0.0
        mlp.experts.gate_up_proj[second.expert, 0, HEARD] = -4.0
        mlp.experts.gate_up_proj[second.expert, 8] = 0.0
        mlp.experts.gate_up_proj[second.expert, 8, ONE] = 1.0
        mlp.experts.down_proj[second.expert, :, 0] = 0.0
        mlp.experts.down_proj[second.expert, free, 0] = 6.0
        head = made.model.lm_head.weight
        bang, what = ord("!"), ord("?")
        head[bang] = head[what] = (head[bang] + head[what]) / 2
        head[bang, free], head[what, free] = 3.0, -3.0
        head[:, ONE][65:91] = head[:, ONE][97:123] - 0.1  # without the plant small letters win, but only just
    engine = TransformersEngine(made.model, made.tokenizer)
    lines = [
        f"{a}{b}"
        for a in ("hello there ", "so it goes on ", "a quiet line ")
        for b in ("now ", "then ", "here ", "up ")
    ]
    shout = [
        Pair(clean=w.upper(), corrupt=w, correct=c.upper(), distractor=c, task="shout", document=w)
        for w in lines
        for c in "at"
    ]
    bang = [Pair(clean=w, corrupt=w.upper(), correct="!", distractor="?", task="bang", document=w) for w in lines]
    return engine, [*shout, *bang], {"shout": first, "bang": second}


def test_a_double_dissociation_of_two_planted_behaviours():
    engine, pairs, truth = two_behaviours()
    found = double_dissociation(engine, pairs, top=1, bootstrap=200)
    assert found.experts == {name: (str(place),) for name, place in truth.items()}
    assert found.accuracy == {"shout": 1.0, "bang": 1.0}
    for own, other in (("shout", "bang"), ("bang", "shout")):
        assert found.cell(own, own).accuracy.value < -0.5
        assert found.cell(own, other).accuracy.value == 0.0
        assert abs(found.cell(f"random, for {own}", own).accuracy.value) < 0.2
    assert found.finding == "double"


def test_one_behaviour_under_two_names_is_no_double_dissociation():
    engine, pairs, _ = two_behaviours()
    shout = [pair for pair in pairs if pair.task == "shout"]
    named = [pair.model_copy(update={"task": "ab"[n % 2], "document": f"{n}"}) for n, pair in enumerate(shout)]
    found = double_dissociation(engine, named, top=1, bootstrap=200)
    assert found.experts["a"] == found.experts["b"]
    assert found.finding == "none"


def test_the_verdict_hand_worked():
    def table(aa, ab, ba, bb):
        values = {("a", "a"): aa, ("a", "b"): ab, ("b", "a"): ba, ("b", "b"): bb}
        intervals = {key: Interval(value=sum(v) / 2, low=v[0], high=v[1]) for key, v in values.items()}
        return [Cell(ablated=a, measured=m, accuracy=i, margin=i) for (a, m), i in intervals.items()]

    own, spared = (-0.4, -0.2), (-0.1, 0.1)
    assert judge_table(table(own, spared, spared, own), ("a", "b")) == "double"
    assert judge_table(table(own, spared, own, own), ("a", "b")) == "single"
    assert judge_table(table(own, (-0.3, 0.1), own, own), ("a", "b")) == "none"  # intervals overlap
    assert judge_table(table((-0.4, 0.0), spared, spared, (-0.1, 0.2)), ("a", "b")) == "none"


def test_what_a_dissociation_needs(engine):
    with pytest.raises(BadData, match="needs two tasks; the pairs have 1: 'shout'"):
        double_dissociation(engine, shouting())
    other = [shouting("a", WORDS[:1])[0].model_copy(update={"task": "other"})]
    with pytest.raises(BadData, match="task 'other' has 1 documents"):
        double_dissociation(engine, [*shouting(), *other])
