"""Previews: a mask is what it says, controls have the same counts, probes and perplexities are those of the engine."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.models import tiny_engine
from helpers.twins import plant, twin
from moeworks.address import Address
from moeworks.artefact import Header
from moeworks.edit.plan import EditPlan, LayerCut
from moeworks.edit.preview import Preview, preview
from moeworks.edit.random_cuts import random_cut
from moeworks.edit.sides import side_of, under
from moeworks.engines.fake import neutral_examples
from moeworks.errors import BadPlan
from moeworks.examples import Example
from moeworks.plan import Mask, empty_plan
from moeworks.prove.metrics import measure

TEXTS = [Example(text=f"Numbers {n} and {n * n} and more.", labels={"lang": "en"}, document=str(n)) for n in range(6)]


def plan_for(engine, kept, **fields):
    """A cut by hand: layer → experts that stay."""
    experts = {shape.layer: shape.experts for shape in engine.identity.layers}
    cuts = tuple(LayerCut(layer=layer, experts=experts[layer], keep=tuple(keep)) for layer, keep in kept.items())
    header = Header(format="moeworks.edit", moeworks="0", model=engine.identity)
    return EditPlan(method="by_hand", keep=0.5, layers=cuts, header=header, **fields)


def test_a_cut_is_the_mask_of_what_goes():
    engine = tiny_engine("softmax")
    plan = plan_for(engine, {0: (0, 2, 3, 7), 2: (1, 2, 3, 4)})
    gone = tuple(Address(0, e) for e in (1, 4, 5, 6)) + tuple(Address(2, e) for e in (0, 5, 6, 7))
    mask = empty_plan(engine.identity, protect="none").model_copy(update={"operations": (Mask(experts=gone),)})
    found = preview(engine, plan, texts=TEXTS, controls=2)
    scores = list(engine.token_scores([text.text for text in TEXTS], plan=mask, divergence=True))
    divergence = np.concatenate([score.divergence for score in scores])
    log_probability = np.concatenate([score.log_probabilities for score in scores])
    assert found.comparison.divergence.value == pytest.approx(divergence.mean(), rel=1e-4)
    assert found.comparison.perplexity["lang=en"].after == pytest.approx(np.exp(-log_probability.mean()), rel=1e-4)
    assert [control.seed for control in found.random] == [0, 1]
    for control in found.random:
        random = random_cut(plan, seed=control.seed)
        with under(engine, random).running():
            again = np.concatenate([s.log_probabilities for s in engine.token_scores([t.text for t in TEXTS])])
        before = np.concatenate([s.log_probabilities for s in engine.token_scores([t.text for t in TEXTS])])
        assert control.perplexity["all"] == pytest.approx(np.exp((before - again).mean()), rel=1e-4)
    assert Preview.model_validate(found.evidence()) == found
    assert "random, 2 seeds" in found.words()


def test_controls_have_the_same_counts_and_protect_the_same():
    engine = tiny_engine("sigmoid_groups")
    protected = (Address(1, 5), Address(2, 0))
    plan = plan_for(engine, {1: (0, 1, 5, 6, 8, 9, 12, 15), 2: (0, 3, 4, 7, 9, 10, 13, 14)}, protected=protected)
    drawn = [random_cut(plan, seed=seed) for seed in range(40)]
    for control in drawn:
        assert control.counts == plan.counts
        for cut in control.layers:
            assert np.bincount(np.array(cut.keep) // 4, minlength=4).tolist() == [2, 2, 2, 2]
        assert all(
            address.expert in cut.keep for cut in control.layers for address in protected if address.layer == cut.layer
        )
    assert len({control.layers for control in drawn}) > 30
    often = np.bincount([expert for control in drawn for expert in control.layers[0].keep], minlength=16)
    assert often[5] == 40
    assert (often[[4, 6, 7]] < 30).all()  # one of three beside the protected one
    assert drawn[0] == random_cut(plan, seed=0)


def test_controls_of_neurons():
    engine = tiny_engine("softmax")
    cut = LayerCut(layer=0, experts=8, keep=tuple(range(8)), neurons=tuple((0, 1, 2) for _ in range(8)))
    plan = plan_for(engine, {0: range(8)}).model_copy(update={"layers": (cut,)})
    control = random_cut(plan, seed=1)
    assert [len(set(own)) for own in control.layers[0].neurons] == [3] * 8
    assert control.layers[0].neurons != cut.neurons
    assert max(max(own) for own in control.layers[0].neurons) > 2
    assert max(max(own) for own in control.layers[0].neurons) < 16


def test_probes_see_what_the_cut_takes_away():
    engine, planted, _ = twin("single")
    probe = plant()
    kept = {
        shape.layer: [e for e in range(16) if e != (planted.expert if shape.layer == planted.layer else 0)]
        for shape in engine.identity.layers
    }
    found = preview(
        engine,
        plan_for(engine, kept),
        probes=[probe],
        texts=neutral_examples(6),
        controls=3,
        limit=12,
        split="held_out",
    )
    (effect,) = found.probes
    items = probe.items("held_out")[:12]
    metric = probe.header.metric
    before = measure(engine, items, metric.name, plan=None, batch_size=8, options=metric.options)
    mask = empty_plan(engine.identity, protect="none").model_copy(
        update={"operations": (Mask(experts=tuple(plan_for(engine, kept).dropped())),)}
    )
    after = measure(engine, items, metric.name, plan=mask, batch_size=8, options=metric.options)
    assert effect.before == pytest.approx(before.mean())
    assert effect.after == pytest.approx(after.mean())
    assert abs(effect.effect.value) > 5 * max(map(abs, effect.random))
    assert effect.excess is not None
    assert effect.probe in found.words()


def test_a_plan_of_another_model_is_refused():
    engine = tiny_engine("softmax")
    plan = plan_for(engine, {0: (0, 1, 2)})
    with pytest.raises(BadPlan, match="weights"):
        preview(tiny_engine("softmax", seed=1), plan, texts=TEXTS)
    with pytest.raises(BadPlan, match="layers are not those"):
        preview(tiny_engine("granite"), plan, texts=TEXTS)
    nameless = plan.model_copy(update={"header": plan.header.model_copy(update={"model": None})})
    with pytest.raises(BadPlan, match="which model"):
        preview(engine, nameless, texts=TEXTS)


def test_the_model_is_left_as_it_was():
    engine = tiny_engine("softmax")
    before = [s.log_probabilities for s in engine.token_scores([text.text for text in TEXTS])]
    preview(engine, plan_for(engine, {0: (0, 1, 2)}), texts=TEXTS, controls=1)
    after = [s.log_probabilities for s in engine.token_scores([text.text for text in TEXTS])]
    assert all((one == other).all() for one, other in zip(before, after, strict=True))
    assert side_of(engine).name == "tiny-softmax"
