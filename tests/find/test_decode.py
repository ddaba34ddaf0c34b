"""What neurons point to: against numpy on the weights themselves, and on the plant."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PhimoeConfig, PhimoeForCausalLM

from moeworks.address import Address
from moeworks.cli import main
from moeworks.engines.fake import FakeEngine, planted_model
from moeworks.engines.transformers import TransformersEngine
from moeworks.engines.transformers.unembedding import unembedding_of
from moeworks.errors import BadData, Unsupported
from moeworks.find.inside.decode import DECODED, decode, decoded_words


@pytest.fixture(scope="module")
def planted():
    plant = planted_model("single")
    model, expert = plant.model, plant.planted[0]
    with torch.no_grad():
        model.model.norm.weight.copy_(
            torch.linspace(0.5, 2.0, model.config.hidden_size)
        )  # a gain of ones would hide that it is left out
    return TransformersEngine(model, plant.tokenizer), expert


def rows_of(table, expert, neuron, vector):
    return [
        row
        for row in table.to_pylist()
        if (row["layer"], row["expert"], row["neuron"], row["vector"]) == (*expert, neuron, vector)
    ]


def test_the_planted_neuron_writes_capitals(planted) -> None:
    engine, expert = planted
    table = decode(engine, [expert], neurons=[0], vectors=["down"], top=26)
    assert sorted(table["text"].to_pylist()) == [chr(letter) for letter in range(65, 91)]
    away = decode(engine, [expert], neurons=[0], vectors=["down"], top=26, sign=-1)
    assert sorted(away["text"].to_pylist()) == [chr(letter) for letter in range(97, 123)]
    assert max(away["score"].to_pylist()) < 0


def test_scores_are_centred_rows_times_the_vector(planted) -> None:
    engine, expert = planted
    model, other = engine.model, Address(1, 3)
    rows = model.lm_head.weight.detach().double().numpy()
    rows = rows - rows.mean(0)
    experts = model.model.layers[1].mlp.experts
    fused, down = (p.detach().double().numpy()[3] for p in (experts.gate_up_proj, experts.down_proj))
    gain = np.linspace(0.5, 2.0, model.config.hidden_size)
    expected = {
        ("gate", 5): rows @ fused[5],
        ("up", 5): rows @ fused[8 + 5],
        ("down", 5): rows @ (gain * down[:, 5]),
        ("router", None): rows @ model.model.layers[1].mlp.gate.weight.detach().double().numpy()[3],
    }
    table = decode(engine, [expert, other], neurons=[2, 5], top=4)
    assert table.schema == DECODED
    assert table.num_rows == 2 * (1 + 2 * 3) * 4
    for (vector, neuron), logits in expected.items():
        found = rows_of(table, other, neuron, vector)
        np.testing.assert_allclose(logits[[row["token"] for row in found]], np.sort(logits)[::-1][:4])  # bytes may tie
        np.testing.assert_allclose([row["score"] for row in found], np.sort(logits)[::-1][:4], rtol=1e-4)


def test_router_rows_come_first_and_words_show_all(planted) -> None:
    engine, expert = planted
    lines = decoded_words(decode(engine, [expert], neurons=[0], top=2))
    assert [line.split("  ")[0].strip() for line in lines] == [
        f"{expert} router",
        f"{expert}.N0 gate",
        f"{expert}.N0 up",
        f"{expert}.N0 down",
    ]


def test_a_layer_norm_takes_the_mean_off_what_is_written() -> None:
    config = PhimoeConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = PhimoeForCausalLM(config).eval()
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.rand(32) + 0.5)
        model.model.norm.bias.copy_(torch.randn(32))
        if model.lm_head.bias is not None:
            model.lm_head.bias = None
    read = unembedding_of(SimpleNamespace(model=model))
    assert read.centred
    torch.testing.assert_close(read.gain, model.model.norm.weight.detach())
    torch.testing.assert_close(read.shift, model.model.norm.bias.detach())
    # written · scale + shift is the norm itself
    hidden = torch.randn(5, 32)
    ours = read.written(hidden) * read.scale(hidden)[:, None] + read.shift
    torch.testing.assert_close(ours, model.model.norm(hidden).detach())


def test_what_is_not_there(planted) -> None:
    engine, expert = planted
    with pytest.raises(BadData, match="has experts 0 to 15"):
        decode(engine, [Address(0, 16)])
    with pytest.raises(BadData, match="neurons 0 to 7"):
        decode(engine, [expert], neurons=[8])
    with pytest.raises(BadData, match="did you mean 'router'"):
        decode(engine, [expert], vectors=["routers"])
    with pytest.raises(Unsupported, match="fake engine has no unembedding"):
        decode(FakeEngine("single"), [expert])


def test_the_command(capsys) -> None:
    with pytest.raises(SystemExit) as left:
        main(["decode", "lab", "L3.E5", "--neurons", "0-1,4", "--vector", "down", "--top", "2", "--json"])
    assert left.value.code == 0
    rows = json.loads(capsys.readouterr().out)["decoded"]
    assert [(row["neuron"], row["rank"]) for row in rows] == [(n, r) for n in (0, 1, 4) for r in (0, 1)]
    with pytest.raises(SystemExit) as left:
        main(["decode", "lab", "L3.E5", "--neurons", "4-1"])
    assert left.value.code == 2
    assert "'4-1' is not a neuron or a range" in capsys.readouterr().err
