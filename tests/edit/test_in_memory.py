"""Layers of a loaded model replaced. Outside truth: the cut checkpoint, loaded by stock transformers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from helpers.checkpoints import plan_of, saved
from helpers.models import tiny_engine
from moeworks import __version__
from moeworks.artefact import Header
from moeworks.edit.apply import apply
from moeworks.edit.in_memory import edited, read_layer, restoring, write_layer
from moeworks.edit.plan import FORMAT, VERSION, EditPlan, LayerCut
from moeworks.errors import BadData, BadPlan
from moeworks.families import survey
from moeworks.families.edit_checks import EXPERTS, load, random_cut, run
from moeworks.families.tiny import tiny_model

FAMILIES = ["mixtral", "gpt_oss", "dbrx", "granitemoe", "llama4", "nemotron_h", "longcat_flash", "zaya", "gemma4"]


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_experts_in_memory_are_the_cut_checkpoint(family: str, tmp_path) -> None:
    from moeworks.edit.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(saved(family, tmp_path / "m", experts=EXPERTS))
    plan = random_cut(checkpoint)
    apply(checkpoint, plan, tmp_path / "out")
    model = load(family, tmp_path / "m")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = run(model)
    routers = survey(model).routers
    with restoring(*[router.holder for router in routers]):
        for router, cut in zip(routers, plan.layers, strict=True):
            weights = read_layer(router)
            write_layer(router, weights.select([e for e in cut.keep if e < weights.experts]))
        torch.testing.assert_close(run(model), run(load(family, tmp_path / "out")), rtol=0, atol=2e-6)
        assert [router.opaque for router in survey(model).routers] == [""] * len(routers)
    assert torch.equal(run(model), before)
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in state.items())


@pytest.mark.parametrize("family", ["ernie4_5_vl_moe", "jetmoe"])
def test_what_no_checkpoint_can_hold_runs_in_memory(family: str) -> None:
    model = tiny_model(family)
    before = run(model)
    with ExitStack() as stack:
        for router in survey(model).routers:
            stack.enter_context(restoring(router.holder))
            write_layer(router, read_layer(router).select((0, 2, 3, 7)))
        assert (run(model) - before).abs().max() > 1e-3
    assert torch.equal(run(model), before)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "dbrx", "granitemoe", "nemotron_h"])
def test_order_of_experts_and_neurons_is_free(family: str) -> None:
    model = tiny_model(family)
    before = run(model)
    for router in survey(model).routers:
        weights = read_layer(router).select((1, 0, 3, 2, 5, 4, 7, 6))  # groups stay together
        order = [[(n * 5 + e) % 32 for n in range(32)] for e in range(8)]
        write_layer(router, weights.select_neurons(order))
    torch.testing.assert_close(run(model), before, rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "dbrx", "granitemoe", "nemotron_h", "aria"])
def test_neurons_that_do_nothing_may_go(family: str) -> None:
    model = tiny_model(family)
    routers = survey(model).routers
    for router in routers:
        weights = read_layer(router)
        weights.down[:, :, 20:] = 0
        write_layer(router, weights)
    whole = run(model)
    for router in routers:
        write_layer(router, read_layer(router).select_neurons([range(20)] * 8))
        assert read_layer(router).neurons == 20
    torch.testing.assert_close(run(model), whole, rtol=0, atol=2e-6)


def test_more_experts_than_before() -> None:
    model = tiny_model("glm4_moe")
    from moeworks.edit.padding import pad

    before = run(model)
    for router in survey(model).routers:
        write_layer(router, pad(read_layer(router), 12, groups=[e // 2 for e in range(8)]))
    torch.testing.assert_close(run(model), before, rtol=0, atol=2e-6)


def test_weights_that_do_not_fit_are_refused() -> None:
    routers = survey(tiny_model("qwen3_moe")).routers
    with pytest.raises(BadData, match="of layer 1, 32 wide, do not fit layer 0"):
        write_layer(routers[0], read_layer(routers[1]))
    with_bias = survey(tiny_model("glm4_moe")).routers
    without = replace(read_layer(with_bias[0]), selection_bias=None)
    with pytest.raises(BadData, match=r"consists of .*selection_bias"):
        write_layer(with_bias[0], without)


def engine_plan(engine, keep, **fields) -> EditPlan:
    header = Header(format=FORMAT, version=VERSION, moeworks=__version__, model=engine.identity)
    cuts = tuple(LayerCut(layer=n, experts=engine.identity.layer(n).experts, keep=tuple(k)) for n, k in keep.items())
    return EditPlan(method="test", keep=0.5, layers=cuts, header=header, **fields)


def test_an_engine_under_an_edit_plan_and_after_it(tmp_path) -> None:
    engine = tiny_engine("softmax")
    identity, routers, ids = engine.identity, engine.routers, torch.arange(12)[None]
    before = engine.model(ids).logits
    plan = engine_plan(engine, {0: (1, 2, 5, 6), 2: (0, 2, 3, 7)})
    with edited(engine, plan) as inside:
        assert inside is engine
        assert [shape.experts for shape in engine.identity.layers] == [4, 4]
        assert engine.identity.weight_hash != identity.weight_hash
        engine.model.save_pretrained(tmp_path / "m")
        logits = engine.model(ids).logits
    assert torch.equal(engine.model(ids).logits, before)
    assert engine.identity is identity
    assert engine.routers is routers
    assert engine.model.config.num_experts == 8
    engine.model.save_pretrained(tmp_path / "whole")
    apply(tmp_path / "whole", plan_of(tmp_path / "whole", {0: (1, 2, 5, 6), 2: (0, 2, 3, 7)}), tmp_path / "cut")
    saved_inside = load_file(tmp_path / "m" / "model.safetensors")
    cut = load_file(tmp_path / "cut" / "model.safetensors")
    assert saved_inside.keys() == cut.keys()
    assert all(torch.equal(tensor, cut[name]) for name, tensor in saved_inside.items())
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", attn_implementation="eager").eval()
    torch.testing.assert_close(loaded(ids).logits, logits, rtol=0, atol=2e-5)


def test_the_model_comes_back_after_an_error() -> None:
    engine = tiny_engine("granite")
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    plan = engine_plan(engine, {0: (0, 1), 1: (2, 3, 4)})  # layers may differ here
    seen = []

    def fail() -> None:
        with edited(engine, plan):
            seen.extend(shape.experts for shape in engine.identity.layers)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [2, 3]
    after = engine.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_plans_that_cannot_run() -> None:
    engine = tiny_engine("sigmoid_groups")
    kept = (0, 1, 4, 5, 8, 9, 12, 13)
    with edited(engine, engine_plan(engine, {1: kept, 2: kept})):
        pass
    with pytest.raises(BadPlan, match="equally many of each group"), edited(engine, engine_plan(engine, {1: range(8)})):
        pass
    with pytest.raises(BadPlan, match="the router chooses 3"), edited(engine, engine_plan(engine, {1: (0, 1)})):
        pass
    other = engine_plan(tiny_engine("sigmoid_groups", seed=1), {1: kept})
    with pytest.raises(BadPlan, match="made for weights"), edited(engine, other):
        pass
