"""Quantised experts, multi-token prediction, tables of token ids, text_config, rescaling: expected values by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.checkpoints import by_hand, plan_of, saved, tensors_of
from moeworks.edit.apply import apply, check_apply
from moeworks.edit.checkpoint import open_checkpoint
from moeworks.edit.rescale import cut_rescaled, kept_probability
from moeworks.edit.statistics import LayerRows, LayerStatistics
from moeworks.edit.tables import replace_in_table
from moeworks.errors import BadPlan, Unsupported
from moeworks.families.edit_checks import load, run

KEEP = (1, 4, 6)


def fp8(tmp_path, **quantisation):
    tensors = {"model.layers.0.mlp.gate.weight": torch.arange(32.0).view(8, 4).bfloat16()}
    for e in range(8):
        for part in ("gate_proj", "up_proj", "down_proj"):
            name = f"model.layers.0.mlp.experts.{e}.{part}"
            tensors[f"{name}.weight"] = torch.full((4, 4), float(e)).to(torch.float8_e4m3fn)
            tensors[f"{name}.weight_scale_inv"] = torch.tensor([[0.5 + e]])
    config = {"model_type": "unheard_of", "num_experts": 8, "num_experts_per_tok": 2}
    return by_hand(tmp_path / "fp8", tensors, **config, quantization_config={"quant_method": "fp8", **quantisation})


def test_scales_go_with_their_experts_and_nothing_is_dequantised(tmp_path) -> None:
    source = fp8(tmp_path)
    apply(source, plan_of(source, {0: KEEP}), tmp_path / "out")
    after = tensors_of(tmp_path / "out")
    for new, old in enumerate(KEEP):
        weight = after[f"model.layers.0.mlp.experts.{new}.up_proj.weight"]
        assert weight.dtype == torch.float8_e4m3fn
        assert weight.float().unique().tolist() == [old]
        assert after[f"model.layers.0.mlp.experts.{new}.up_proj.weight_scale_inv"].item() == 0.5 + old
    assert len(after) == 1 + 3 * 3 * 2


def test_quantised_weights_are_neither_merged_nor_narrowed(tmp_path) -> None:
    source = fp8(tmp_path)
    groups = {0: tuple(((e, 1.0), (e + 1, 1.0)) for e in (0, 2, 4, 6))}
    plan = plan_of(source, {0: (0, 2, 4, 6)}, groups=groups, transform="mean")
    with pytest.raises(BadPlan, match=r"quantised .*only whole experts can be cut"):
        check_apply(source, plan)


def test_names_in_the_quantisation_follow_the_experts(tmp_path) -> None:
    names = [
        "lm_head",
        "model.layers.0.mlp.experts.4.down_proj",
        "model.layers.0.mlp.experts.5.down_proj",
        "re:.*mlp.gate$",
        "model.layers.7.mlp.experts.5.down_proj",
    ]
    dynamic = {"model.layers.0.mlp.experts.6.up_proj": {"bits": 8}, "model.layers.0.mlp.experts.7.up_proj": {"bits": 4}}
    source = fp8(tmp_path, modules_to_not_convert=names, dynamic=dynamic, bits=4, dataset=None)
    apply(source, plan_of(source, {0: KEEP}), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["modules_to_not_convert"] == [
        "lm_head",
        "model.layers.0.mlp.experts.1.down_proj",
        "re:.*mlp.gate$",
        "model.layers.7.mlp.experts.5.down_proj",
    ]
    assert config["dynamic"] == {"model.layers.0.mlp.experts.2.up_proj": {"bits": 8}}
    assert (config["bits"], config["dataset"]) == (4, None)


def test_a_pattern_with_numbers_of_experts_is_refused(tmp_path) -> None:
    source = fp8(tmp_path, ignore=[r"re:.*experts\.[0-3]\..*"])
    with pytest.raises(Unsupported, match="names experts by a pattern"):
        check_apply(source, plan_of(source, {0: KEEP}))


def test_blocks_and_scales_of_mxfp4_are_cut_along_the_experts(tmp_path) -> None:
    prefix = "model.layers.0.mlp"
    each = torch.arange(8, dtype=torch.uint8)
    tensors = {
        f"{prefix}.experts.gate_up_proj_blocks": each.view(8, 1, 1, 1).expand(8, 6, 2, 16),
        f"{prefix}.experts.gate_up_proj_scales": each.view(8, 1, 1).expand(8, 6, 2),
        f"{prefix}.experts.gate_up_proj_bias": each.view(8, 1).expand(8, 6).bfloat16(),
        f"{prefix}.experts.down_proj_blocks": each.view(8, 1, 1, 1).expand(8, 4, 1, 16),
        f"{prefix}.experts.down_proj_scales": each.view(8, 1, 1).expand(8, 4, 1),
        f"{prefix}.experts.down_proj_bias": each.view(8, 1).expand(8, 4).bfloat16(),
        f"{prefix}.router.weight": each.view(8, 1).expand(8, 4).bfloat16(),
        f"{prefix}.router.bias": each.bfloat16(),
        "model.layers.0.self_attn.sinks": torch.arange(8.0),  # as many heads as experts, by chance
    }
    source = by_hand(tmp_path / "mx", tensors, model_type="unheard_of", num_local_experts=8, num_experts_per_tok=2)
    apply(source, plan_of(source, {0: KEEP}), tmp_path / "out")
    after = tensors_of(tmp_path / "out")
    assert after.keys() == tensors.keys()
    for name, tensor in after.items():
        if "sinks" in name:
            assert len(tensor) == 8
        else:
            assert tensor.flatten(1 if tensor.ndim > 1 else 0).float().unique().tolist() == list(KEEP), name


def with_extra_layer(tmp_path):
    """A checkpoint with a layer for multi-token prediction behind its last, a copy of that."""
    source = saved("deepseek_v3", tmp_path / "m")
    tensors = load_file(source / "model.safetensors")
    copies = {
        name.replace("layers.3.", "layers.4."): tensor.clone()
        for name, tensor in tensors.items()
        if "layers.3." in name
    }
    save_file(tensors | copies | {"model.layers.4.eh_proj.weight": torch.zeros(3, 3)}, source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    return source


FOUR_GROUPS = (0, 3, 5, 6, 8, 11, 14, 15)


def test_prediction_layers_are_cut_like_the_last_layer(tmp_path) -> None:
    source = with_extra_layer(tmp_path)
    plan = plan_of(source, {1: FOUR_GROUPS, 2: FOUR_GROUPS, 3: (1, 2, 5, 6, 9, 10, 13, 14)})
    applied = apply(source, plan, tmp_path / "out")
    after = tensors_of(tmp_path / "out")
    for name, tensor in after.items():
        if "layers.4." in name and "eh_proj" not in name:
            assert torch.equal(tensor, after[name.replace("layers.4.", "layers.3.")])
    assert "model.layers.4.eh_proj.weight" in after
    assert any("multi-token" in note for note in applied.notes)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_nextn_predict_layers"] == 1


def test_prediction_layers_are_dropped(tmp_path) -> None:
    source = with_extra_layer(tmp_path)
    plan = plan_of(source, dict.fromkeys((1, 2, 3), FOUR_GROUPS), extra_layers="drop")
    apply(source, plan, tmp_path / "out")
    assert not [name for name in tensors_of(tmp_path / "out") if "layers.4." in name]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_nextn_predict_layers"] == 0
    load("deepseek_v3", tmp_path / "out")


def test_prediction_layers_under_a_name_of_their_own(tmp_path) -> None:
    source = saved("qwen3_next", tmp_path / "m")
    tensors = load_file(source / "model.safetensors")
    own = {
        name.replace("model.layers.3.", "mtp.layers.0."): tensor.clone()
        for name, tensor in tensors.items()
        if "layers.3.mlp" in name
    }
    save_file(tensors | own | {"mtp.fc.weight": torch.zeros(2, 2)}, source / "model.safetensors")
    plan = plan_of(source, {layer: range(4) for layer in range(4)})
    apply(source, plan, tmp_path / "same")
    assert len(tensors_of(tmp_path / "same")["mtp.layers.0.mlp.gate.weight"]) == 4
    with pytest.raises(BadPlan, match="no key that says how many"):
        check_apply(source, plan.model_copy(update={"extra_layers": "drop"}))


def test_settings_in_text_config_are_edited_there(tmp_path) -> None:
    source = fp8(tmp_path)
    config = {"model_type": "some_vlm", "text_config": {"num_experts": 8, "num_experts_per_tok": 2}, "vision": 1}
    (source / "config.json").write_text(json.dumps(config))
    apply(source, plan_of(source, {0: KEEP}), tmp_path / "out")
    expected = config | {"text_config": {"num_experts": 3, "num_experts_per_tok": 2}}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == expected


def test_tables_by_hand() -> None:
    router = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    table = torch.tensor([[0, 3], [1, 0], [2, 3]])
    renumbered = replace_in_table(table[:1], router, (0, 3), replace=False, layer=0)
    assert renumbered.tolist() == [[0, 1]]
    with pytest.raises(BadPlan, match="names experts that go"):
        replace_in_table(table, router, (0, 3), replace=False, layer=0)
    # 1 is like 0, which its token has already: it gets 3. 2 is like 3, taken too: it gets 0.
    assert replace_in_table(table, router, (0, 3), replace=True, layer=0).tolist() == [[0, 1], [1, 0], [0, 1]]
    with pytest.raises(BadPlan, match="keeps 1 experts"):
        replace_in_table(table, router, (3,), replace=True, layer=0)


def test_a_checkpoint_with_tables_is_cut_and_runs(tmp_path) -> None:
    source = saved("deepseek_v4", tmp_path / "m")
    plan = plan_of(source, {layer: range(0, 16, 4) for layer in open_checkpoint(source).layers})
    apply(source, plan, tmp_path / "out", tables="replace")
    tables = [tensor for name, tensor in tensors_of(tmp_path / "out").items() if "tid2eid" in name]
    assert tables
    for table in tables:
        assert int(table.max()) < 4
        assert all(len(set(row)) == len(row) for row in table.tolist())  # a token's experts stay different ones
    assert run(load("deepseek_v4", tmp_path / "out")).isfinite().all()


def test_rescaling_by_hand(tmp_path) -> None:
    logits = np.log(np.array([[1.0, 2.0, 3.0, 2.0], [4.0, 1.0, 1.0, 2.0]]))
    assert kept_probability(logits, (0, 2)) == pytest.approx((4 / 8 + 5 / 8) / 2)
    source = saved("olmoe", tmp_path / "m", experts=4)
    weights = open_checkpoint(source).read_layer(0)
    rows = LayerRows(np.zeros((2, 1)), np.zeros((2, 2)), np.zeros((2, 2)), logits)
    seen = LayerStatistics(0, np.array([2]), ("all",), {"count": np.zeros((1, 4))}, load_rows=lambda: rows)
    plan = plan_of(source, dict.fromkeys(range(4), (0, 2)), transform="cut_rescaled")
    new = cut_rescaled(weights, plan.layers[0], seen)
    torch.testing.assert_close(new.down, weights.down[[0, 2]] * 0.5625)
    assert torch.equal(new.up, weights.up[[0, 2]])
