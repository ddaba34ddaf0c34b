"""Compressed experts inside stock models: installed, saved, opened again, and as a PEFT adapter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moeworks.edit.compress import (
    CompressedExperts,
    base_delta,
    compressed_experts,
    dense,
    install,
    install_all,
    load_compressed,
    load_factors,
    mole,
    save_compressed,
    save_lora,
    ternary,
)
from moeworks.edit.compress.folder import FORMAT_FILE
from moeworks.edit.layer import LayerWeights
from moeworks.errors import BadData, Unsupported
from moeworks.families.discover import discover
from moeworks.families.expert_weights import expert_weights
from moeworks.families.tiny import tiny_model


def layers_of(model: nn.Module) -> dict[int, LayerWeights]:
    found = {}
    for router in discover(model):
        views = expert_weights(router)
        found[router.layer] = LayerWeights(
            layer=router.layer,
            gate=None if views.gate is None else views.gate.clone(),
            up=views.up.clone(),
            down=views.down.clone(),
            router=torch.zeros(views.experts, 1),
        )
    return found


def write_dense(model: nn.Module, layer: int, weights: LayerWeights) -> None:
    router = next(router for router in discover(model) if router.layer == layer)
    views = expert_weights(router)
    for name in ("gate", "up", "down"):
        view: Tensor | None = getattr(views, name)
        if view is not None:
            view.copy_(getattr(weights, name))


TOKENS = torch.arange(3, 35).reshape(2, 16)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(TOKENS).logits
    return result


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "glm4_moe", "nemotron_h"])
@pytest.mark.parametrize("operator", [lambda w: mole(w, rank=5), lambda w: base_delta(w, rank=3), ternary])
def test_installed_experts_equal_the_weights_multiplied_out(family: str, operator: Any) -> None:
    model = tiny_model(family)
    before = logits(model)
    layers = layers_of(model)
    factors = {number: operator(weights) for number, weights in layers.items()}
    twin = tiny_model(family)
    twin.load_state_dict(model.state_dict())
    for number, weights in layers.items():
        write_dense(twin, number, dense(factors[number], weights))
    install_all(model, factors)
    after = logits(model)
    torch.testing.assert_close(after, logits(twin), rtol=1e-4, atol=1e-5)
    assert (after - before).abs().max() > 1e-3


def test_a_saved_model_opens_again_and_stock_transformers_refuses_it(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for tie in (False, True):
        model = tied_model() if tie else tiny_model("qwen3_moe")
        layers = layers_of(model)
        methods = [mole(layers[0], rank=5, groups=2), ternary(layers[1]), compressed_experts(layers[2], main=1)]
        for factors in methods:  # the last layer stays as it is
            install(model, factors.layer, factors)
        folder = save_compressed(model, tmp_path / f"small-{tie}", evidence={"error": 0.5})
        header = json.loads((folder / FORMAT_FILE).read_text())
        assert header["format"] == "moeworks.compressed_experts"
        assert header["evidence"] == {"error": 0.5}
        assert {n: entry["method"] for n, entry in header["layers"].items()} == {
            "0": "mole",
            "1": "ternary",
            "2": "compressed_experts",
        }
        again = load_compressed(folder)
        torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-6)  # another attention kernel
        assert load_factors(folder)[1].tensors["up_codes"].dtype == torch.uint8
        assert again.config.tie_word_embeddings is tie
        names = [name for name, module in again.named_modules() if isinstance(module, CompressedExperts)]
        assert len(names) == 3
        with pytest.raises(OSError, match="no file named"):
            AutoModelForCausalLM.from_pretrained(folder)
        with pytest.raises(BadData, match="is there already"):
            save_compressed(model, folder)


def tied_model() -> Any:
    from transformers import AutoModelForCausalLM

    model = tiny_model("qwen3_moe")
    config = model.config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def test_missing_weights_are_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny_model("qwen3_moe")
    install(model, 1, ternary(layers_of(model)[1]))
    folder = save_compressed(model, tmp_path / "small")
    rest = load_file(folder / "rest.safetensors")
    gone = rest.pop("model.norm.weight")
    save_file(rest, folder / "rest.safetensors")
    with pytest.raises(BadData, match=r"1 weights are missing and 0 have no place \(model\.norm\.weight"):
        load_compressed(folder)
    save_file({**rest, "model.norm.weight": gone, "more": gone.clone()}, folder / "rest.safetensors")
    with pytest.raises(BadData, match="0 weights are missing and 1 have no place"):
        load_compressed(folder)
    (folder / FORMAT_FILE).write_text('{"format": "moeworks.uneven", "version": 1}')
    with pytest.raises(BadData, match=r"is 'moeworks\.uneven' version 1"):
        load_compressed(folder)


def test_what_cannot_be_replaced_is_refused() -> None:
    model = tiny_model("qwen3_moe")
    weights = layers_of(model)[1]
    with pytest.raises(BadData, match="layer 9 of this model has no router; layers with routers: 0, 1, 2, 3"):
        install(model, 9, ternary(weights))
    with pytest.raises(BadData, match="do not fit layer 1"):
        install(model, 1, ternary(weights.select([0, 1, 2])))
    with pytest.raises(BadData, match="do not fit layer 2"):
        install(model, 2, ternary(weights))
    with pytest.raises(BadData, match="no layer of this model"):
        save_compressed(model, "unused")
    own_rule = tiny_model("gpt_oss")
    factors = replace(ternary(layers_of(own_rule)[1]), layer=1)
    with pytest.raises(Unsupported, match="a rule of their own"):
        install(own_rule, 1, factors)


@pytest.mark.parametrize("family", ["qwen3_moe", "nemotron_h"])
def test_an_adapter_on_the_base_is_the_compressed_model(family: str, tmp_path: Path) -> None:
    """PEFT itself reads the adapter; narrow down projections have fewer ranks than asked for and are filled up."""
    peft = pytest.importorskip("peft")

    model = tiny_model(family)
    layers = layers_of(model)
    for rank in (3, min(layers[min(layers)].down.shape[1:])):
        based, whole = tiny_model(family), tiny_model(family)
        factors = []
        for other in (based, whole):
            other.load_state_dict(model.state_dict())
        for number, weights in layers.items():
            found = base_delta(weights, rank=rank)
            factors.append(found)
            write_dense(based, number, dense(base_delta(weights, rank=0), weights))
            write_dense(whole, number, dense(found, weights))
        folder = save_lora(factors, tmp_path / f"adapter-{rank}", config=model.config, base="base")
        adapted = peft.PeftModel.from_pretrained(based, folder)
        torch.testing.assert_close(logits(adapted), logits(whole), rtol=1e-4, atol=1e-5)
        with adapted.disable_adapter():
            assert (logits(adapted) - logits(whole)).abs().max() > 1e-3


def test_adapters_are_refused_where_they_would_not_be_exact(tmp_path: Path) -> None:
    model = tiny_model("gpt_oss")
    layers = layers_of(model)
    with pytest.raises(Unsupported, match="gate rows first"):
        save_lora([base_delta(layers[1], rank=2)], tmp_path / "a", config=model.config, base="base")
    plain = tiny_model("qwen3_moe")
    weights = layers_of(plain)[1]
    with pytest.raises(BadData, match="made of 'base_delta' factors"):
        save_lora([ternary(weights)], tmp_path / "a", config=plain.config, base="base")
    mixed = [base_delta(weights, rank=2), base_delta(replace(weights, layer=2), rank=3)]
    with pytest.raises(BadData, match=r"these factors have \[2, 3\]"):
        save_lora(mixed, tmp_path / "a", config=plain.config, base="base")
    assert not (tmp_path / "a").exists()
