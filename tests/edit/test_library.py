"""The library of task plans: retrieval on planted data, of statistics and of prompts that a model runs."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.cuts import layer_of, model_of, shape_of
from helpers.models import tiny_engine
from moeworks.edit.files import save_edit_plan
from moeworks.edit.library import PlanLibrary, signature_of, signature_of_prompt
from moeworks.edit.planning import plan_edit
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.trace import Trace

MODEL = model_of(*(shape_of(layer, experts=8, top_k=2, renormalise=True) for layer in (0, 2)))
TASKS = {"maths": (0, 1), "law": (2, 3), "poetry": (4, 5)}


def text_of(task: str, seed: int, tokens: int = 400, strength: float = 1.0) -> list:
    """Return statistics of a text of a task, whose two experts have logits raised by `strength` in the first layer."""
    draw = np.random.default_rng(seed)
    layers = []
    for layer in (0, 2):
        logits = draw.normal(size=(tokens, 8))
        if layer == 0:
            logits[:, TASKS[task]] += strength
        first = logits.argmax(1)
        top = np.bincount(first, weights=logits.max(1), minlength=8)
        layers.append(layer_of(layer, tokens=[tokens], count=np.ones(8), gated_norm=np.arange(8.0), top_logit=top))
    return layers


@pytest.fixture
def library(tmp_path) -> PlanLibrary:
    shelf = PlanLibrary(tmp_path / "plans")
    for seed, task in enumerate(TASKS):
        statistics = text_of(task, seed)
        keep = [0.25, 0.5, 0.75][seed]
        shelf.add(task, statistics, plan_edit(statistics, identity=MODEL, keep=keep, protect="none"))
    return shelf


def test_held_out_texts_find_their_task(library) -> None:
    """30 texts of 400 tokens that were not stored; by chance a third would find their task."""
    hits = [library.find(signature_of(text_of(task, 100 + n))).name == task for task in TASKS for n in range(10)]
    assert np.mean(hits) == 1.0


def test_retrieval_falls_with_the_plant(library) -> None:
    """Without a plant the nearest is chance: the measurement above is of the plant and of nothing else."""
    hits = [
        library.find(signature_of(text_of(task, 200 + n, strength=0.0))).name == task
        for task in TASKS
        for n in range(10)
    ]
    assert np.mean(hits) < 0.7


def test_distance_is_euclidean_over_the_first_layer_or_all(library) -> None:
    asked, stored = signature_of(text_of("law", 7)), signature_of(text_of("law", 1))
    first = np.sqrt(((asked[0] - stored[0]) ** 2).sum())
    both = np.sqrt(((asked[0] - stored[0]) ** 2).sum() + ((asked[2] - stored[2]) ** 2).sum())
    assert dict(library.nearest(asked))["law"] == pytest.approx(first)
    assert dict(library.nearest(asked, all_layers=True))["law"] == pytest.approx(both)
    assert library.nearest(asked)[0][0] == "law"


def test_plans_come_back_whole(library) -> None:
    found = library.find(signature_of(text_of("poetry", 50)))
    assert found.plan.counts == (6, 6)
    assert library.names() == ["law", "maths", "poetry"]
    library.remove("law")
    assert library.names() == ["maths", "poetry"]
    with pytest.raises(BadData, match="no plan 'law'"):
        library.plan("law")


def test_an_entry_without_its_last_file_is_none(library) -> None:
    (library.folder / "law" / "entry.json").unlink()
    assert library.names() == ["maths", "poetry"]
    assert library.find(signature_of(text_of("law", 9))).name in ("maths", "poetry")


def test_what_does_not_belong_is_refused(library) -> None:
    statistics = text_of("law", 3)
    plan = plan_edit(statistics, identity=MODEL, keep=0.5, protect="none")
    with pytest.raises(BadData, match="already"):
        library.add("law", statistics, plan)
    with pytest.raises(BadData, match="no name"):
        library.add("../law", statistics, plan)
    other = model_of(*MODEL.layers, weight_hash="others", name="other")
    with pytest.raises(BadData, match="other weights"):
        library.add("tax", statistics, plan_edit(statistics, identity=other, keep=0.5, protect="none"))
    with pytest.raises(BadData, match="do not cover layers 2"):
        library.add("tax", statistics[:1], plan)
    with pytest.raises(BadData, match="other layers or experts"):
        library.find({0: np.zeros(4)})
    with pytest.raises(BadData, match="either"):
        library.find()
    library.add("law", statistics, plan, overwrite=True)
    save_edit_plan(plan_edit(statistics, identity=MODEL, keep=0.75), library.folder / "law" / "plan.json")
    with pytest.raises(BadData, match="was changed"):
        library.plan("law")


def test_a_prompt_is_recorded_and_looked_up(tmp_path) -> None:
    engine = tiny_engine("softmax")
    prompts = ["one two three", "four five six seven"]
    found = signature_of_prompt(engine, prompts)
    trace: Trace = engine.record([Example(text=text) for text in prompts], tmp_path / "trace", logits=True)
    layer = trace.layers[0]
    logits = np.asarray(trace.logits(layer), np.float64)
    expected = [sum(row.max() for row in logits if row.argmax() == e) / len(logits) for e in range(logits.shape[1])]
    np.testing.assert_allclose(found[layer], expected)
    statistics = [
        layer_of(n, tokens=[len(logits)], count=np.ones(len(v)), gated_norm=np.ones(len(v)), top_logit=v * len(logits))
        for n, v in found.items()
    ]
    shelf = PlanLibrary(tmp_path / "plans")
    shelf.add("own", statistics, plan_edit(statistics, identity=engine.identity, protect="none"))
    again = shelf.find(engine=engine, prompt=prompts)
    assert again.name == "own"
    assert again.distance == pytest.approx(0, abs=1e-6)
