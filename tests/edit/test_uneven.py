"""Unequal numbers of experts. Outside truth: stock code with dropped logits at -inf."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.checkpoints import plan_of, saved
from moeworks.edit.apply import apply
from moeworks.edit.checkpoint import open_checkpoint
from moeworks.edit.uneven import load_edited
from moeworks.errors import BadData, BadPlan
from moeworks.families.edit_checks import TOLERANCE, load, masked_run, run
from moeworks.families.tiny import model_class

KEEP = {0: range(3), 1: range(4, 16), 2: (0, 5, 9, 11, 13), 3: range(0, 16, 2)}


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss", "granitemoe", "minimax_m2"])
def test_layers_of_unequal_size_run_as_the_masked_original(family: str, tmp_path) -> None:
    source = saved(family, tmp_path / "m", shards=2)
    applied = apply(source, plan_of(source, KEEP), tmp_path / "out", format="uneven")
    assert applied.counts == {0: 3, 1: 12, 2: 5, 3: 8}
    assert applied.bytes_after < 0.6 * applied.bytes_before
    model, tokenizer, settings = load_edited(tmp_path / "out")
    assert tokenizer is None
    assert settings == {}
    dropped = {layer: [e for e in range(16) if e not in kept] for layer, kept in KEEP.items()}
    whole = masked_run(load(family, source), open_checkpoint(source), dropped)
    assert (run(model) - whole).abs().max() / whole.abs().max().clamp(min=1) <= TOLERANCE


def test_stock_programs_refuse_it(tmp_path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    source = saved("qwen3_moe", tmp_path / "m")
    apply(source, plan_of(source, KEEP), tmp_path / "out", format="uneven")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "moeworks_uneven"
    with pytest.raises(ValueError, match="moeworks_uneven"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="moeworks_uneven"):
        AutoConfig.from_pretrained(tmp_path / "out")
    config = model_class("qwen3_moe").config_class.from_pretrained(source)
    config.num_experts = 12
    with pytest.raises(RuntimeError, match="size"):
        model_class("qwen3_moe").from_pretrained(tmp_path / "out", config=config)


def test_a_layer_is_read_with_its_own_count(tmp_path) -> None:
    source = saved("mixtral", tmp_path / "m")
    apply(source, plan_of(source, KEEP), tmp_path / "out", format="uneven")
    before, after = open_checkpoint(source).read_layer(2), open_checkpoint(tmp_path / "out").read_layer(2)
    assert torch.equal(after.down, before.down[list(KEEP[2])])
    assert torch.equal(after.router, before.router[list(KEEP[2])])


def test_it_can_be_cut_again_and_is_no_stock_checkpoint(tmp_path) -> None:
    source = saved("mixtral", tmp_path / "m")
    apply(source, plan_of(source, KEEP), tmp_path / "out", format="uneven")
    again = plan_of(tmp_path / "out", {1: range(6)})
    with pytest.raises(BadPlan, match="unequal experts already"):
        apply(tmp_path / "out", again, tmp_path / "again")
    assert apply(tmp_path / "out", again, tmp_path / "again", format="uneven").counts == {0: 3, 1: 6, 2: 5, 3: 8}
    assert run(load_edited(tmp_path / "again").model).isfinite().all()


def test_a_stock_checkpoint_is_for_stock_loading(tmp_path) -> None:
    with pytest.raises(BadData, match="is a stock checkpoint"):
        load_edited(saved("mixtral", tmp_path / "m"))
