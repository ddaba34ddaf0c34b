"""The activation rule of a checkpoint without its weights, against formulas and against loaded models."""

import json

import pytest
import torch

from helpers.merging import gpt_oss, relu2, silu
from moeworks.edit.activation import FamilyActivation, family_activations
from moeworks.engines.transformers.experts import open_experts
from moeworks.errors import Unsupported
from moeworks.families import discover
from moeworks.families.tiny import tiny_config, tiny_model
from moeworks.lab import lab_path

FORMULAS = {"qwen3_moe": silu, "gpt_oss": gpt_oss, "nemotron_h": relu2}


@pytest.mark.parametrize("family", FORMULAS)
def test_rules_are_the_published_formulas(family):
    config = json.loads(tiny_config(family).to_json_string(use_diff=False))
    rules = family_activations(config)
    gate, up = 9 * torch.randn(20, 8, dtype=torch.float64), 9 * torch.randn(20, 8, dtype=torch.float64)
    for rule in rules.values():
        given = None if family == "nemotron_h" else gate
        torch.testing.assert_close(rule(given, up), FORMULAS[family](given, up))


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "nemotron_h", "gemma4", "deepseek_v3", "lfm2_moe"])
def test_rules_are_those_of_the_loaded_model(family):
    model = tiny_model(family)
    config = json.loads(model.config.to_json_string(use_diff=False))
    rules = family_activations(config)
    routers = discover(model)
    assert sorted(rules) == [router.layer for router in routers]
    up = torch.randn(4, 32)
    for router in routers:
        own = open_experts(router)
        gate = None if own.weights.gate is None else torch.randn(4, 32)
        assert torch.equal(FamilyActivation(config, router.layer)(gate, up), own.rule(gate, up))


def test_layers_share_what_is_built_and_extra_layers_do_as_the_last():
    config = json.loads((lab_path() / "config.json").read_text("utf-8"))
    last, extra = FamilyActivation(config, 5), FamilyActivation(config, 6)
    gate, up = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(last(gate, up), extra(gate, up))
    torch.testing.assert_close(last(gate, up), silu(gate, up))
    assert last._rule is extra._rule


def test_what_transformers_does_not_know_is_refused():
    with pytest.raises(Unsupported, match="'none_such'"):
        family_activations({"model_type": "none_such"})
    weighted_inputs = json.loads(tiny_config("llama4").to_json_string(use_diff=False))
    with pytest.raises(Unsupported, match="no module that shows its activation"):
        family_activations(weighted_inputs)
    dense = {"model_type": "qwen3", "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 1}
    with pytest.raises(Unsupported, match="declares no router"):
        family_activations(dense)
