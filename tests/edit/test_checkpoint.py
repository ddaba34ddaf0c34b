"""Layouts of checkpoints. Outside truth: the parameters of the same model as transformers holds it in memory."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.checkpoints import by_hand, saved
from moeworks.edit.checkpoint import open_checkpoint
from moeworks.edit.checkpoint.names import match, split
from moeworks.errors import BadData, Unsupported
from moeworks.families import survey
from moeworks.families.expert_weights import expert_weights
from moeworks.families.tiny import tiny_model

FIELDS = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")


@pytest.mark.parametrize(
    "family",
    ["mixtral", "gpt_oss", "llama4", "dbrx", "aria", "granitemoe", "nemotron_h", "inkling2", "longcat_flash"],
)
def test_layers_equal_the_parameters_of_the_loaded_model(family: str, tmp_path) -> None:
    checkpoint = open_checkpoint(saved(family, tmp_path / "m", experts=8))
    routers = survey(tiny_model(family, experts=8)).routers
    assert checkpoint.layers == [router.layer for router in routers]
    for router in routers:
        read, live = checkpoint.read_layer(router.layer), expert_weights(router)
        for name in FIELDS:
            ours, theirs = getattr(read, name), getattr(live, name)
            assert (ours is None) == (theirs is None), name
            assert ours is None or torch.equal(ours, theirs[: read.experts]), name
        bias = router.arrays.bias
        assert (bias is None) == (read.selection_bias is None)
        assert bias is None or torch.equal(bias[: read.experts], read.selection_bias)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("mlp.experts.17.gate_proj.weight", "numbered"),
        ("mlp.experts.17.down_proj.weight_scale_inv", "numbered"),
        ("block_sparse_moe.experts.3.w2.qweight", "numbered"),
        ("mlp.experts.gate_up_proj_blocks", "side"),
        ("mlp.experts.gate_up_proj_scales", "side"),
        ("mlp.experts.down_proj_scale_inv", "side"),
        ("mlp.experts.gate_up_proj_bias", "fused_bias"),
        ("mlp.gate.wg.weight", "router"),
        ("block_sparse_moe.router.layer.weight", "router"),
        ("router.proj.weight", "router"),
        ("mixer.gate.e_score_correction_bias", "selection_bias"),
        ("mlp.moe_statics.e_score_correction_bias", "selection_bias"),
        ("feed_forward.expert_bias", "selection_bias"),
        ("ffn.gate.bias", "selection_bias"),
        ("mlp.router.bias", "router_bias"),
        ("router.per_expert_scale", "expert_scale"),
        ("router.scale", "whole"),
        ("ffn.gate.tid2eid", "table"),
        ("mlp.shared_experts.gate_proj.weight", "whole"),
        ("mlp.shared_expert_gate.weight", "whole"),
        ("self_attn.q_proj.weight", "whole"),
    ],
)
def test_names_of_the_conventions(name: str, role: str) -> None:
    found = match(name)
    assert found is not None
    assert found.role == role


@pytest.mark.parametrize("name", ["mlp.experts.mystery", "mlp.router_gate.weight", "self_attention.experts.bias"])
def test_names_nobody_knows(name: str) -> None:
    assert match(name) is None


def test_the_layer_of_a_name() -> None:
    assert split("model.language_model.layers.12.mlp.experts.3.up_proj.weight") == (
        "model.language_model.layers.",
        12,
        "mlp.experts.3.up_proj.weight",
    )
    assert split("lm_head.weight") is None


@pytest.mark.parametrize(
    ("name", "shape"), [("mlp.expert_mystery", (3,)), ("mlp.balance", (16,)), ("mlp.experts.w9", (16, 4))]
)
def test_what_seems_to_be_an_expert_and_is_not_known_is_refused_by_name(name, shape, tmp_path) -> None:
    folder = saved("qwen3_moe", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors[f"model.layers.2.{name}"] = torch.zeros(shape)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(Unsupported, match=f"model.layers.2.{name}"):
        open_checkpoint(folder)


def test_counts_that_contradict_the_files_are_refused(tmp_path) -> None:
    folder = saved("mixtral", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_local_experts": 12}))
    with pytest.raises(Unsupported, match="does not have 12 experts"):
        open_checkpoint(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_experts": 12}))
    with pytest.raises(BadData, match="num_experts = 12, num_local_experts = 16"):
        open_checkpoint(folder)


def test_a_dense_model_an_encoder_and_a_folder_without_weights(tmp_path) -> None:
    with pytest.raises(BadData, match="names no number of experts"):
        open_checkpoint(by_hand(tmp_path / "dense", {"x": torch.zeros(2)}, model_type="llama"))
    with pytest.raises(Unsupported, match="encoder"):
        open_checkpoint(by_hand(tmp_path / "nllb", {"x": torch.zeros(2)}, is_encoder_decoder=True, num_experts=4))
    folder = by_hand(tmp_path / "empty", {"x": torch.zeros(2)}, num_experts=4, num_experts_per_tok=2)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadData, match="whole checkpoint"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(Unsupported, match="save_pretrained"):
        open_checkpoint(folder)
    with pytest.raises(BadData, match=r"has no config.json"):
        open_checkpoint(tmp_path / "nowhere")


def test_missing_and_damaged_shards_are_named(tmp_path) -> None:
    folder = saved("qwen2_moe", tmp_path / "m", shards=3)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) >= 3
    data = shards[1].read_bytes()
    shards[1].write_bytes(data[:-7])
    with pytest.raises(BadData, match=rf"{shards[1].name} is no whole safetensors file"):
        open_checkpoint(folder)
    shards[1].unlink()
    with pytest.raises(BadData, match=f"lacks {shards[1].name}"):
        open_checkpoint(folder)


def test_settings_below_text_config(tmp_path) -> None:
    folder = saved("qwen3_moe", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({"model_type": "some_vlm", "text_config": config, "vision_config": {"num_experts": 3}})
    )
    checkpoint = open_checkpoint(folder)
    assert str(checkpoint.settings.counts[0]) == "text_config.num_local_experts"
    assert checkpoint.settings.experts == 16
    assert checkpoint.settings.top_k[0].value == 2


def test_another_model_within_is_left_alone(tmp_path) -> None:
    folder = saved("qwen3_moe", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"talker.{name}": tensor.clone() for name, tensor in tensors.items() if ".experts." in name}
    save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert all(not layout.prefix.startswith("talker") for layout in checkpoint.layouts.values())


def test_the_lab_model_opens_and_reads() -> None:
    checkpoint = open_checkpoint("lab")
    weights = checkpoint.read_layer(checkpoint.layers[0])
    assert weights.experts == checkpoint.settings.experts
    assert weights.gate is not None
    assert weights.gate.shape == weights.up.shape


def test_a_layer_without_experts_is_named() -> None:
    checkpoint = open_checkpoint("lab")
    with pytest.raises(BadData, match="layers with experts"):
        checkpoint.read_layer(99)


def test_quantised_experts_are_not_read_as_weights(tmp_path) -> None:
    packed = {"model.layers.0.mlp.experts.gate_up_proj_blocks": torch.zeros(4, 8, 2, 16, dtype=torch.uint8)}
    packed["model.layers.0.mlp.experts.down_proj_blocks"] = torch.zeros(4, 8, 1, 16, dtype=torch.uint8)
    packed["model.layers.0.mlp.router.weight"] = torch.zeros(4, 8)
    folder = by_hand(tmp_path / "q", packed, model_type="gpt_oss", num_local_experts=4, num_experts_per_tok=2)
    with pytest.raises(Unsupported, match="only whole experts can be cut"):
        open_checkpoint(folder).read_layer(0)


def test_a_hub_id_is_downloaded_and_what_fails_is_said(tmp_path, monkeypatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder = saved("mixtral", tmp_path / "m")
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: asked.append(name) or str(folder))
    assert open_checkpoint("some/model").layers == [0, 1, 2, 3]
    assert asked == ["some/model"]

    def offline(name, **options):
        raise LocalEntryNotFoundError("no network.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(BadData, match=r"cannot open the model 'some/model': no network\. Give `lab`"):
        open_checkpoint("some/model")
