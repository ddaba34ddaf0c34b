"""Router tuning: moves routers alone, towards the original, stops by dev texts, goes on where it was interrupted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from helpers.models import tiny_engine
from moeworks.edit.repair import REPORT, distillation_loss, repair
from moeworks.errors import BadData
from moeworks.examples import Example

module = sys.modules["moeworks.edit.repair"]  # `moeworks.edit.repair` itself is the function
TEXTS = [
    Example(text=f"The {noun} of number {n} is {n * 7} and the {noun} after it {n * 7 + 7}.", document=f"{noun}{n}")
    for n in range(4)
    for noun in ("dog", "city", "river", "song")
]
OPTIONS = {"steps": 30, "check_every": 5, "batch_size": 4, "learning_rate": 0.02, "announce": lambda sentence: None}


def damaged(seed=0):
    """A tiny model whose routers were shaken."""
    engine = tiny_engine("softmax")
    generator = torch.Generator().manual_seed(seed)
    for router in engine.routers:
        weight = router.module.weight.data
        weight += 0.2 * torch.randn(weight.shape, generator=generator)
    return type(engine)(engine.model, engine.tokenizer, name="edited")


def values(engine):
    return {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}


def test_loss_is_the_formula():
    generator = np.random.default_rng(0)
    teacher, student = generator.normal(size=(2, 2, 5, 7))  # (b, w, V) each
    counted = np.array([[True, True, False, True], [False, True, True, False]])
    log_p, log_q = log_softmax(teacher[:, :-1], -1), log_softmax(student[:, :-1], -1)
    expected = (np.exp(log_p) * (log_p - log_q)).sum(-1)[counted].mean()
    found = distillation_loss(*(torch.from_numpy(a) for a in (teacher, student, counted)))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_routers_alone_move_towards_the_original():
    edited, original = damaged(), tiny_engine("softmax")
    before = values(edited)
    report = repair(edited, TEXTS, teacher=original, **OPTIONS)
    after = values(edited)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.layers.0.mlp.gate.weight", "model.layers.2.mlp.gate.weight"}
    one, other = report.to_teacher
    assert other.divergence.value < 0.95 * one.divergence.value
    assert report.best_step == min(report.dev, key=report.dev.get) > 0
    assert set(report.dev) == {0, *range(5, report.steps + 1, 5)}
    assert report.numbers == 2 * 8 * 32
    assert "KL to the original" in report.words()


def test_next_token_loss_lowers_perplexity_on_dev():
    edited = damaged()
    report = repair(edited, TEXTS, **OPTIONS)
    assert report.dev[report.best_step] < report.dev[0]
    assert report.to_teacher is None
    assert report.settings["loss"] == "next_token"


def test_nothing_better_leaves_everything_as_it_was(tmp_path):
    edited = damaged()
    before = values(edited)
    options = OPTIONS | {"learning_rate": 50.0, "steps": 40, "patience": 2}
    report = repair(edited, TEXTS, teacher=tiny_engine("softmax"), output=tmp_path / "out", **options)
    assert report.best_step == 0
    assert report.steps == 10  # two looks without anything better
    assert all(torch.equal(before[name], tensor) for name, tensor in values(edited).items())
    assert not list(tmp_path.iterdir())
    assert "stays as it was" in report.words()


def test_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    whole = damaged()
    repair(whole, TEXTS, output=tmp_path / "whole", **OPTIONS)
    calls = 0
    plain = module.in_order

    def killed(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls > 12:
            raise KeyboardInterrupt
        return plain(*arguments, **named)

    edited = damaged()
    before = values(edited)
    monkeypatch.setattr(module, "in_order", killed)
    with pytest.raises(KeyboardInterrupt):
        repair(edited, TEXTS, output=tmp_path / "parts", **OPTIONS)
    assert all(torch.equal(before[name], tensor) for name, tensor in values(edited).items())
    monkeypatch.setattr(module, "in_order", plain)
    with pytest.raises(BadData, match="--resume"):
        repair(edited, TEXTS, output=tmp_path / "parts", **OPTIONS)
    report = repair(edited, TEXTS, output=tmp_path / "parts", resume=True, **OPTIONS)
    assert len(report.history) == report.steps
    assert all(torch.equal(tensor, values(edited)[name]) for name, tensor in values(whole).items())
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "parts"}


def test_written_folder_keeps_the_edited_ones_files(tmp_path):
    edited = damaged()
    edited.model.save_pretrained(tmp_path / "edited")
    edited.tokenizer.save_pretrained(tmp_path / "edited")
    config = json.loads((tmp_path / "edited" / "config.json").read_text()) | {"num_experts": 8, "num_local_experts": 8}
    (tmp_path / "edited" / "config.json").write_text(json.dumps(config))
    (tmp_path / "edited" / "README.md").write_text("# card\n")
    options = OPTIONS | {"steps": 10}
    repair(str(tmp_path / "edited"), TEXTS, teacher=tiny_engine("softmax"), output=tmp_path / "out", **options)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == config
    assert (tmp_path / "out" / "README.md").read_text() == "# card\n"
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    from transformers import AutoModelForCausalLM

    from moeworks.engines.transformers.loading import hash_weights

    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert hash_weights(model) == report["weight_hash"]
    assert Path(tmp_path / "out" / "tokenizer.json").is_file()


def test_refusals(tmp_path):
    edited = damaged()
    with pytest.raises(BadData, match="at least two"):
        repair(edited, TEXTS[:1], **OPTIONS)
    other = tiny_engine("softmax")
    other.identity = other.identity.model_copy(update={"tokenizer_hash": "another"})
    with pytest.raises(BadData, match="different tokenizers"):
        repair(edited, TEXTS, teacher=other, **OPTIONS)
    (tmp_path / "there").mkdir()
    with pytest.raises(BadData, match="there already"):
        repair(edited, TEXTS, output=tmp_path / "there", **OPTIONS)
