"""Dense models as stock mixtures of experts: equal after saving and opening again where they have to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moeworks.edit.dense import Dense, dense_of, make, upcycle
from moeworks.edit.dense.compare import compare_models
from moeworks.edit.dense.source import Text, collect_inputs
from moeworks.errors import BadData, BadPlan, Unsupported
from moeworks.lab import lab_path

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
TOKENS = torch.arange(2, 66).reshape(2, 32) % 96


def dense(family: str = "qwen3", *, seed: int = 0, **changes: Any) -> Dense:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**SIZES, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():  # sizes that make every part matter, norms included
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return dense_of(model, name=family)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


def reloaded(model: Any, folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model.save_pretrained(folder)
    again, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(again).__module__.startswith("transformers.models.")
    return again


def distance(a: Any, b: Any) -> float:
    first = logits(a)
    return float((first - logits(b)).abs().max() / first.abs().max())


def texts(count: int = 8, length: int = 40, domains: int = 1) -> list[Text]:
    draw = torch.Generator().manual_seed(5)
    each = 96 // domains  # each domain has token ids of its own
    return [
        Text(tuple((torch.randint(each, (length,), generator=draw) + each * (i % domains)).tolist()), f"d{i % domains}")
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("family", "target", "experts", "shared"),
    [
        ("qwen3", "qwen3_moe", 4, 0),
        ("llama", "mixtral", 2, 0),
        ("mistral", "mixtral", 4, 0),
        ("qwen3", "glm4_moe", 3, 1),
        ("llama", "glm4_moe", 2, 2),
        ("mistral", "glm4_moe", 3, 1),
        ("qwen3", "dots1", 3, 1),
        ("qwen3", "dots1", 5, 3),
    ],
)
def test_all_pieces_are_the_dense_model(family: str, target: str, experts: int, shared: int, tmp_path: Path) -> None:
    """k = E: the sum of the weights is E, whichever way the target scales."""
    source = dense(family, **({"sliding_window": None} if family == "mistral" else {}))
    for by in ("contiguous", "random"):
        options = {"experts": experts, "top_k": experts, "shared": shared, "target": target}
        model, made = make(source, method="partition", options={"by": by}, **options)
        assert made.router == "zero"
        assert distance(source.model, reloaded(model, tmp_path / by)) < 1e-6
        assert made.random.largest < 1e-4
        assert made.random.divergence == pytest.approx(0, abs=1e-9)
        assert made.random.agreement == 1


@pytest.mark.parametrize(("family", "target"), [("qwen3", "qwen3_moe"), ("llama", "mixtral"), ("mistral", "mixtral")])
@pytest.mark.parametrize("tied", [False, True])
def test_copies_are_the_dense_model(family: str, target: str, tied: bool, tmp_path: Path) -> None:
    source = dense(family, tie_word_embeddings=tied)
    model, made = make(source, experts=5, top_k=2, method="copy")
    assert made.family == target
    assert made.router == "random"
    again = reloaded(model, tmp_path / "moe")
    assert again.config.tie_word_embeddings is tied
    assert distance(source.model, again) < 1e-6
    noisy, worse = make(source, experts=5, top_k=2, method="copy", options={"noise": 0.2})
    assert worse.random.largest > 100 * max(made.random.largest, 1e-7)
    assert distance(source.model, noisy) > 1e-3


def test_weights_that_are_not_normalised_are_the_trap(tmp_path: Path) -> None:
    source = dense()
    model, _ = make(source, experts=4, top_k=2, method="copy")
    folder = tmp_path / "moe"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["norm_topk_prob"] is True
    (folder / "config.json").write_text(json.dumps({**config, "norm_topk_prob": False}))
    from transformers import AutoModelForCausalLM

    assert distance(source.model, AutoModelForCausalLM.from_pretrained(folder)) > 1e-2


def test_the_hosts_with_shared_experts_need_what_is_set(tmp_path: Path) -> None:
    """GLM-4-MoE turns half of each head and has no norms in it unless told: both would be silent errors."""
    from transformers import AutoModelForCausalLM

    source = dense()
    model, _ = make(source, experts=3, top_k=3, shared=1, method="partition")
    folder = tmp_path / "moe"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["n_shared_experts"], config["n_group"]) == ("glm4_moe", 1, 1)
    assert config["routed_scaling_factor"] == 3
    wrong = {**config, "rope_parameters": {**config["rope_parameters"], "partial_rotary_factor": 0.5}}
    (folder / "config.json").write_text(json.dumps(wrong))
    assert distance(source.model, AutoModelForCausalLM.from_pretrained(folder)) > 1e-2


def test_fine_tunes_become_experts(tmp_path: Path) -> None:
    base, first, second = dense(), dense(seed=1), dense(seed=2)
    model, made = make(base, experts=2, top_k=1, method="merge", others=[first, second])
    weights = model.state_dict()
    assert torch.equal(weights["model.layers.1.mlp.experts.down_proj"][1], second.ffn(1).down)
    assert torch.equal(
        weights["model.layers.0.self_attn.q_proj.weight"], base.model.model.layers[0].self_attn.q_proj.weight
    )
    assert made.scale == 1
    bam, _ = make(base, experts=2, top_k=1, method="bam", others=[first, second])
    mean = sum(m.model.model.layers[0].self_attn.q_proj.weight for m in (first, second)) / 2
    torch.testing.assert_close(bam.state_dict()["model.layers.0.self_attn.q_proj.weight"], mean.detach())
    # the same model twice is that model, whatever the router does
    twice, _ = make(base, experts=2, top_k=2, method="bam", others=[first, first])
    assert distance(first.model, reloaded(twice, tmp_path / "twice")) < 1e-6
    with pytest.raises(BadData, match="both have to be tunes of one base"):
        make(base, experts=2, method="merge", others=[first, dense(hidden_size=16)])


@pytest.mark.parametrize("method", ["partition", "cmoe", "factorllm"])
def test_fewer_pieces_lose_and_the_loss_is_measured(method: str, tmp_path: Path) -> None:
    source, read = dense(), texts()
    shared = 1
    model, made = make(source, experts=7, top_k=3, shared=shared, method=method, texts=read)
    assert made.held_out
    assert made.text is not None
    assert made.text == compare_models(source.model, model, [read[3].tokens, read[7].tokens])
    assert made.text.tokens == 78
    assert made.text.divergence > 1e-5
    assert made.text.perplexity_after != pytest.approx(made.text.perplexity_before, rel=1e-6)
    assert made.scale == 3
    assert made.neurons == 8
    assert reloaded(model, tmp_path / "moe").config.routed_scaling_factor == 3
    # chosen pieces count 1 each: what one layer gives out is shared plus the chosen pieces, unweighted
    inputs = collect_inputs(source, read, rows=100)[0]
    mlp, ffn = model.model.layers[0].mlp, source.ffn(0)
    with torch.no_grad():
        _, weights, ids = mlp.gate(inputs.hidden)
        assert float((weights - 1).abs().max()) < 0.02
        out = mlp(inputs.hidden[None])[0]
    experts, total = mlp.experts, mlp.shared_experts(inputs.hidden).detach()
    for n in range(len(inputs.hidden)):
        for e in ids[n]:
            gate, up = (experts.gate_up_proj[e] @ inputs.hidden[n]).chunk(2)
            total[n] += (experts.down_proj[e] @ (ffn.act(gate) * up)).detach()
    torch.testing.assert_close(out, total, rtol=0.03, atol=0.03)


def test_labelled_text_makes_domain_experts() -> None:
    source = dense()
    model, made = make(source, experts=2, top_k=1, shared=2, method="read_me", texts=texts(12, domains=2), rows=400)
    assert made.scale == 1
    inputs = collect_inputs(source, texts(12, domains=2))[1]
    with torch.no_grad():
        ids = model.model.layers[1].mlp.gate(inputs.hidden)[2][:, 0]
    assert float((ids == inputs.domain).float().mean()) > 0.75
    _, unified = make(source, experts=3, top_k=2, shared=1, method="unified", texts=texts(12, domains=2))
    assert (unified.router, len(unified.fits)) == ("local", 2)
    _, hidden = make(source, experts=2, method="copy", router="hidden", texts=texts(12, domains=2))
    assert hidden.router == "hidden"


def test_rows_are_what_a_router_reads() -> None:
    source, read = dense(), texts(3, domains=3)
    seen: list[Tensor] = []
    handle = source.model.model.layers[1].post_attention_layernorm.register_forward_hook(
        lambda m, a, o: seen.append(o[0])
    )
    inputs = collect_inputs(source, read, rows=30)[1]
    handle.remove()
    assert inputs.hidden.shape == (30, 32)
    assert inputs.domains == ("d0", "d1", "d2")
    assert inputs.domain.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert inputs.last.nonzero()[:, 0].tolist() == [9, 19, 29]
    for text in range(3):
        assert torch.equal(inputs.hidden[10 * text + 9], seen[text][-1])
        assert all(
            any(torch.equal(row, other) for other in seen[text]) for row in inputs.hidden[10 * text : 10 * text + 9]
        )


def test_what_cannot_be_made_is_refused_before_it_is_written(tmp_path: Path) -> None:
    source = dense()
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (
            BadData,
            "no shared experts; give --shared 0, or --target one of glm4_moe, dots1",
            {"shared": 1, "target": "qwen3_moe"},
        ),
        (BadData, "needs a shared expert", {"target": "dots1"}),
        (Unsupported, "mixtral cannot express: attention of qwen3", {"target": "mixtral"}),
        (BadPlan, "a token cannot have 5 of 4 experts", {"top_k": 5}),
        (BadPlan, "same 2 of 4 pieces", {"method": "partition", "router": "zero"}),
        (BadPlan, "multiple of 16 bytes", {"experts": 32, "method": "partition"}),
        (BadPlan, "no option 'nois'", {"options": {"nois": 1}}),
        (BadData, "give some with --data", {"method": "cmoe", "shared": 4}),
    ]
    for kind, message, options in cases:
        with pytest.raises(kind, match=message):
            upcycle(source, tmp_path / "moe", **{"experts": 4, **options})
    assert not list(tmp_path.iterdir())
    with pytest.raises(Unsupported, match="dense models are taken of llama, mistral, qwen3"):
        upcycle(str(lab_path()), experts=4)
    with pytest.raises(Unsupported, match="sliding attention"):
        make(dense("mistral", sliding_window=8), experts=2, top_k=2, shared=1, method="partition")
    with pytest.raises(Unsupported, match="have biases"):
        dense("llama", mlp_bias=True)


def test_a_written_folder_says_what_was_done(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = dense()
    made = upcycle(source, tmp_path / "moe", experts=4, method="copy", seed=3)
    assert made.output == str(tmp_path / "moe")
    record = json.loads((tmp_path / "moe" / "moeworks_upcycle.json").read_text())
    assert (record["method"], record["experts"], record["seed"]) == ("copy", 4, 3)
    assert record["random"]["largest"] == made.random.largest
    assert distance(source.model, AutoModelForCausalLM.from_pretrained(tmp_path / "moe")) < 1e-6
    with pytest.raises(BadData, match="is there already"):
        upcycle(source, tmp_path / "moe", experts=4)
    upcycle(source, tmp_path / "moe", experts=2, overwrite=True)
