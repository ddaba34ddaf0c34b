"""RouterLens: routers tuned on a task, counts of what they select, and a model that is as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.models import tiny_engine
from moeworks.engines.fake import FakeEngine, null_probe, planted_examples, planted_model, planted_probe
from moeworks.engines.transformers import TransformersEngine
from moeworks.errors import BadData, Unsupported
from moeworks.find import Scores
from moeworks.find.in_model import find_in_model
from moeworks.probes import save_probe
from moeworks.train import ceft_settings, router_lens, top_experts


def quiet(sentence: str) -> None:
    assert "of memory" in sentence


def planted(plant: str = "single") -> TransformersEngine:
    torch.set_num_threads(1)
    made = planted_model(plant, layers=2)
    return TransformersEngine(made.model, made.tokenizer, name=plant)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid_groups", "top_k_first"])
def test_counts_are_those_of_a_trace_and_the_model_is_left_alone(kind: str, tmp_path: Path) -> None:
    engine = tiny_engine(kind)
    examples = [example.model_copy(update={"text": example.text[:60]}) for example in planted_examples(6)]
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in engine.model.parameters()]
    scores = router_lens(engine, examples, epochs=4, learning_rate=2e-2, batch_size=3, per_layer=2, announce=quiet)
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.model.state_dict().items())
    assert [parameter.requires_grad for parameter in engine.model.parameters()] == flags

    trace = engine.record(examples, tmp_path / "trace")
    for router in engine.routers:
        own = scores.column("layer") == router.layer
        counts = np.bincount(trace.ids(router.layer).ravel(), minlength=router.experts)
        np.testing.assert_allclose(scores.column("against_rate")[own], counts / len(trace))
        assert scores.column("score")[own].sum() == pytest.approx(router.top_k)  # every token selects k
    assert not np.allclose(scores.column("score"), scores.column("against_rate"))  # tuning changed the routes
    facts = scores.header.facts
    assert facts["loss_last_epoch"] < facts["loss_first_epoch"]
    assert facts["tuned_numbers"] == sum(8 * (router.experts + 32) for router in engine.routers)
    assert not scores.column("passes").any()
    assert np.isnan(scores.column("p")).all()


def test_the_planted_expert_is_at_the_top_and_nothing_is_claimed(tmp_path: Path) -> None:
    engine = planted()
    scores = find_in_model(engine, planted_probe(40), method="router_lens", epochs=1, max_tokens=48, per_layer=1)
    (address,) = planted_model("single", layers=2).planted
    first = scores.top(1).to_pylist()[0]
    assert (first["layer"], first["expert"]) == tuple(address)
    assert str(address) in scores.header.facts["experts"]
    assert top_experts(scores, 1)[address.layer] == [address.expert]
    assert "No test was made" in scores.summary()
    scores.save(tmp_path / "scores.arrow")
    loaded = Scores.load(tmp_path / "scores.arrow")
    assert loaded.header == scores.header
    assert loaded.column("score").tolist() == scores.column("score").tolist()

    null = find_in_model(engine, null_probe(40), method="router_lens", epochs=1, max_tokens=48)
    assert not null.column("passes").any()


def test_of_a_probe_the_contrast_side_is_the_task(tmp_path: Path) -> None:
    engine = planted()
    save_probe(planted_probe(40), tmp_path / "probe")
    options = {"epochs": 1, "max_tokens": 16, "announce": quiet}
    by_folder = router_lens(engine, tmp_path / "probe", **options)
    by_hand = [t for t in planted_probe(40).texts("find") if t.labels["side"] == "contrast"]
    assert by_folder.header.text_hash == router_lens(engine, by_hand, **options).header.text_hash
    with pytest.raises(BadData, match="no split 'hold_out'"):
        router_lens(engine, "probe:requests:hold_out", **options)


def test_the_same_seed_gives_the_same_scores() -> None:
    engine = planted()
    examples = planted_examples(12)
    options = {"epochs": 1, "max_tokens": 32, "samples": 8, "learning_rate": 1e-2, "announce": quiet}
    one, again, other = (router_lens(engine, examples, seed=seed, **options) for seed in (1, 1, 2))
    assert one.header.hash == again.header.hash
    assert one.header.text_hash != other.header.text_hash  # other texts were drawn


def test_top_experts_by_hand() -> None:
    scores = router_lens(planted(), planted_examples(4), epochs=1, max_tokens=16, announce=quiet)
    table = scores.table
    values = np.zeros(32)
    values[[3, 5, 16 + 2]] = [0.5, 0.9, 0.1]
    changed = Scores(table.set_column(2, "score", [values]), scores.header)
    assert top_experts(changed, 2) == {0: [5, 3], 1: [2, 0]}


def test_ceft_settings_name_slices_of_real_parameters() -> None:
    engine = tiny_engine("top_k_first")
    scores = router_lens(engine, planted_examples(4), epochs=1, max_tokens=16, announce=quiet)
    settings = json.loads(json.dumps(ceft_settings(scores, engine, per_layer=3)))
    parameters = dict(engine.model.named_parameters())
    assert set(settings["experts"]) == {str(router.layer) for router in engine.routers}
    assert all(len(experts) == 3 for experts in settings["experts"].values())
    assert all(len(parameters[name]) == 8 for name in settings["target_parameters"])


def test_bad_input_is_one_sentence() -> None:
    engine = planted()
    with pytest.raises(Unsupported, match="only the transformers engine"):
        find_in_model(FakeEngine(), planted_probe(8), method="router_lens")
    with pytest.raises(BadData, match="no option 'epoch'"):
        find_in_model(engine, planted_probe(8), method="router_lens", epoch=1)
    with pytest.raises(BadData, match="above 0"):
        router_lens(engine, planted_examples(4), epochs=0)
    one_sided = planted_probe(8)
    one_sided = type(one_sided)(
        one_sided.header, tuple(t for t in one_sided.all_texts if t.labels["side"] == "against"), one_sided.all_items
    )
    with pytest.raises(BadData, match="contrast side"):
        find_in_model(engine, one_sided, method="router_lens")
