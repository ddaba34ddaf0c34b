"""A model that goes through memory layer by layer: its statistics are those of the model in memory."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.models import CONFIGS, lab_tokenizer, tiny_model
from moeworks.edit.checkpoint.source import open_checkpoint
from moeworks.edit.collect import COLLECTABLE, collect, columns_of
from moeworks.edit.collecting.blocks import open_blocks
from moeworks.edit.collecting.replay import Replay
from moeworks.edit.statistics_file import Statistics
from moeworks.edit.stream import PROGRESS, stream
from moeworks.engines.transformers import TransformersEngine
from moeworks.errors import BadData, Unsupported
from moeworks.examples import Example
from moeworks.families.engine_checks import _examples, _tokenizer
from moeworks.families.tiny import tiny_model as tiny_family

TEXTS = [
    "The tower stands on a hill.",
    "Rain.",
    "In the morning the boats go out to sea, and in the evening they come back.",
    "One two three four five six seven eight nine ten.",
]
EXAMPLES = [Example(text=text, labels={"kind": kind}) for text, kind in zip(TEXTS, "abac", strict=True)]
ALL = [group for group in COLLECTABLE if group != "gradients"]
OPTIONS = {"label": "kind", "groups": ALL, "rows": 9, "batch_size": 3}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of tiny checkpoints by kind."""
    root = tmp_path_factory.mktemp("models")
    for kind in CONFIGS:
        tiny_model(kind).save_pretrained(root / kind, max_shard_size="40KB")
        lab_tokenizer().save_pretrained(root / kind)
    return root


def same(one: Statistics, other: Statistics, *, exact=False):
    assert one.layers == other.layers
    for layer in one:
        there = other.layer(layer.layer)
        assert layer.arrays.keys() == there.arrays.keys()
        for name, array in layer.arrays.items():
            if exact or name in ("count", "first", "pairs"):
                assert np.array_equal(array, there.arrays[name]), (layer.layer, name)
            else:
                size = max(np.abs(array).max(), 1e-9)
                assert np.allclose(array, there.arrays[name], rtol=1e-5, atol=1e-6 * size), (layer.layer, name)
        assert layer.refused == there.refused
        if layer.sets is not None:
            assert all(np.array_equal(a, b) for a, b in zip(layer.sets, there.sets, strict=True))
        if layer.load_rows is not None:
            for a, b in zip(layer.rows(), there.rows(), strict=True):
                assert np.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_streamed_equals_in_memory(kind, saved, tmp_path):
    engine = TransformersEngine.load(str(saved / kind))
    memory = collect(engine, EXAMPLES, tmp_path / "m", **OPTIONS)
    streamed = stream(saved / kind, EXAMPLES, tmp_path / "s", **OPTIONS)
    same(memory, streamed)
    assert streamed.header.model == memory.header.model  # the hash of the weights and the contracts too
    assert streamed.header.tokens == memory.header.tokens
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == sorted(p.name for p in (tmp_path / "m").iterdir())


@pytest.mark.parametrize(
    "family", ["olmoe", "glm4_moe", "ernie4_5_moe", "qwen3_next", "lfm2_moe", "gemma4", "deepseek_v4"]
)
def test_families_streamed_equal_in_memory(family, tmp_path):
    tiny_family(family).save_pretrained(tmp_path / "model")
    _tokenizer().save_pretrained(tmp_path / "model")
    engine = TransformersEngine.load(str(tmp_path / "model"))
    memory = collect(engine, _examples(), tmp_path / "m", groups=ALL)
    streamed = stream(tmp_path / "model", _examples(), tmp_path / "s", groups=ALL)
    same(memory, streamed)
    assert streamed.header.model.weight_hash == memory.header.model.weight_hash


def test_the_lab_model_to_the_bit(tmp_path):
    """In bfloat16, where any other rounding would show: the same kernels on the same batches."""
    examples = [Example(text=text * 5) for text in TEXTS]
    engine = TransformersEngine.load("lab")
    memory = collect(engine, examples, tmp_path / "m", rows=20)
    streamed = stream("lab", examples, tmp_path / "s", rows=20)
    same(memory, streamed, exact=True)
    assert streamed.header.model.weight_hash == engine.identity.weight_hash


def test_one_layer_is_in_memory_at_a_time(saved, tmp_path, monkeypatch):
    seen = []
    plain = Replay.run

    def watch(self, number, tensors, hidden):
        loaded = [
            place
            for place, layer in enumerate(self._layers)
            if any(p.device.type != "meta" for p in layer.parameters())
        ]
        seen.append((number, loaded, self._model.lm_head.weight.device.type))
        return plain(self, number, tensors, hidden)

    monkeypatch.setattr(Replay, "run", watch)
    stream(saved / "softmax", EXAMPLES, tmp_path / "s", batch_size=2)
    assert [number for number, _, _ in seen] == [0, 0, 1, 1, 2, 2]
    assert all(loaded == [number] for number, loaded, _ in seen)
    assert {head for _, _, head in seen} == {"meta"}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [0, 1, 2])
def test_killed_in_a_layer_and_resumed(at, saved, tmp_path, monkeypatch):
    whole = stream(saved / "softmax", EXAMPLES, tmp_path / "whole", **OPTIONS)
    plain = Replay.run

    def dies(self, number, tensors, hidden):
        if number == at and len(hidden) == 1:  # in its second batch
            raise Killed
        return plain(self, number, tensors, hidden)

    monkeypatch.setattr(Replay, "run", dies)
    with pytest.raises(Killed):
        stream(saved / "softmax", EXAMPLES, tmp_path / "s", **OPTIONS)
    ran = []
    monkeypatch.setattr(Replay, "run", lambda self, n, *more: (ran.append(n), plain(self, n, *more))[1])
    with pytest.raises(BadData, match="unfinished collection"):
        stream(saved / "softmax", EXAMPLES, tmp_path / "s", **OPTIONS)
    with pytest.raises(BadData, match="another model, other texts or other options"):
        stream(saved / "softmax", EXAMPLES, tmp_path / "s", resume=True, **OPTIONS | {"rows": 1})
    again = stream(saved / "softmax", EXAMPLES, tmp_path / "s", resume=True, **OPTIONS)
    assert ran == [n for n in range(3) if n >= at for _ in range(2)]
    same(whole, again, exact=True)
    assert again.hash == whole.hash
    assert not (tmp_path / "s" / PROGRESS).exists()


def test_a_changed_layer_is_what_later_layers_see(saved, tmp_path):
    """Scaling layer 0's experts: the outcome is that of a model in memory with those weights, its own layer apart."""
    plain = stream(saved / "softmax", EXAMPLES, tmp_path / "p", **OPTIONS)
    called = []

    def change(statistics, weights):
        called.append((statistics.layer, weights.layer, statistics.get("count").sum(), statistics.rows().ids.shape))
        return replace(weights, down=weights.down * 3) if weights.layer == 0 else weights

    changed = stream(saved / "softmax", EXAMPLES, tmp_path / "c", change=change, **OPTIONS)
    tokens = sum(plain.header.tokens)
    assert called == [(0, 0, 2 * tokens, (9, 2)), (2, 2, 2 * tokens, (9, 2))]
    engine = TransformersEngine.load(str(saved / "softmax"))
    with torch.no_grad():
        engine.model.model.layers[0].mlp.experts.down_proj.mul_(3)
    memory = collect(engine, EXAMPLES, tmp_path / "m", **OPTIONS)
    for name in columns_of(ALL):
        assert np.array_equal(changed.layer(0).arrays[name], plain.layer(0).arrays[name])  # as it was before
        size = max(np.abs(memory.layer(2).arrays[name]).max(), 1e-9)
        assert np.allclose(changed.layer(2).arrays[name], memory.layer(2).arrays[name], rtol=1e-4, atol=1e-5 * size)
    assert not np.allclose(changed.layer(2).get("gate"), plain.layer(2).get("gate"), rtol=1e-3)
    assert changed.header.settings["changed"]


def test_a_layer_with_fewer_experts_runs_on(saved, tmp_path):
    def halve(statistics, weights):
        order = np.argsort(-statistics.get("gated_norm"))
        return weights.select(sorted(order[: weights.experts // 2].tolist()))

    statistics = stream(saved / "sigmoid_groups", EXAMPLES, tmp_path / "s", change=halve, groups=["cheap"])
    assert [entry.experts for entry in statistics.header.layers] == [16, 16]  # what was measured, before each change


def test_what_cannot_be_streamed_is_said(saved, tmp_path):
    with pytest.raises(Unsupported, match="gradients need the whole model"):
        stream(saved / "softmax", EXAMPLES, tmp_path / "a", groups=["gradients"])
    config = json.loads((saved / "softmax" / "config.json").read_text())
    quantised = tmp_path / "q"
    quantised.mkdir()
    for file in (saved / "softmax").iterdir():
        if file.name != "config.json":
            (quantised / file.name).symlink_to(file)
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(Unsupported, match="quantised"):
        stream(quantised, EXAMPLES, tmp_path / "b")


@pytest.mark.parametrize(
    ("family", "reason"),
    [("inkling2", "is given more of what earlier layers computed"), ("glm_moe_dsa", "hands on more than its hidden")],
)
def test_layers_that_share_more_than_hidden_states_are_refused(family, reason, tmp_path):
    tiny_family(family).save_pretrained(tmp_path / "model")
    _tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(Unsupported, match=reason):
        stream(tmp_path / "model", _examples(), tmp_path / "s")


def test_the_hash_of_the_weights_is_the_loaded_models(saved):
    for kind in CONFIGS:
        engine = TransformersEngine.load(str(saved / kind))
        blocks = open_blocks(open_checkpoint(saved / kind))
        parts = []
        assert blocks.weight_hash(parts.append) == engine.identity.weight_hash
        assert "head" in parts or engine.model.config.tie_word_embeddings
        assert any(part.startswith("layer") for part in parts)


def test_the_cost_names_the_disk(saved, tmp_path):
    told = []
    stream(saved / "softmax", EXAMPLES, tmp_path / "s", batch_size=4, groups=["cheap", "neurons"], announce=told.append)
    (cost,) = told
    assert cost.replay_bytes == 2 * cost.padded_tokens * 32 * 4
    assert cost.layers == 2
    sums = len(columns_of(["cheap"])) + 4 * 16
    assert cost.statistics_bytes == 2 * 8 * 8 * sums
    assert "of layer inputs on disk" in cost.sentence()
