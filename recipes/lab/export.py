"""Write a training checkpoint as a stock checkpoint, and check that transformers computes the same logits from it.

Needs torch and transformers; a few seconds:

    python -m recipes.lab.export RUN/checkpoint.safetensors DATA/tokenizer.json OUT

A softmax router becomes Qwen3-MoE, a sigmoid router with groups GLM-4-MoE. Weights are bfloat16, a selection bias stays
float32. The folder is written under a temporary name and renamed once its logits were compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.utils import logging

from recipes.lab.model import EPSILON, Block, LanguageModel, ModelSettings
from recipes.lab.train import read_model

__all__ = ["CLOSE", "export", "largest_difference", "stock_model"]

CLOSE = 1e-3  # logits may differ by this share of their largest, from the order of float32 sums
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}User: {{ m['content'] }}\n"
    "{% elif m['role'] == 'assistant' %}Assistant: {{ m['content'] }}<|endoftext|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def export(checkpoint: Path, tokenizer: Path, out: Path) -> None:
    """Write `out`, a folder that `AutoModelForCausalLM.from_pretrained` loads.

    Raises:
        SystemExit: `out` exists, or the stock model computes other logits.
    """
    if out.exists():
        raise SystemExit(f"{out} exists; remove it or name another folder.")
    logging.disable_progress_bar()
    model, step = read_model(checkpoint)
    stock = stock_model(model)
    _compare(model, stock, "the stock model made of these weights")
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    bias = {name: buffer.clone() for name, buffer in stock.named_buffers() if name.endswith("correction_bias")}
    stock.to(torch.bfloat16)
    for name, buffer in bias.items():  # its steps of 0.001 would be lost in bfloat16
        stock.get_submodule(name.rpartition(".")[0]).e_score_correction_bias = buffer
    stock.save_pretrained(temporary)
    _write_tokenizer(tokenizer, temporary, model.settings.context)
    (temporary / "moeworks.json").write_text('{\n  "add_bos": true\n}\n')
    (temporary / "training.json").write_text(json.dumps({"step": step}) + "\n")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())
    _compare(model, AutoModelForCausalLM.from_pretrained(temporary, dtype=torch.float32), "the folder, loaded again,")
    temporary.rename(out)


def stock_model(model: LanguageModel) -> PreTrainedModel:
    """Return the same model as a class of transformers, in float32."""
    settings = model.settings
    sigmoid = settings.router.transform == "sigmoid"
    stock = (Glm4MoeForCausalLM if sigmoid else Qwen3MoeForCausalLM)(_config(settings)).eval()
    weights: dict[str, Tensor] = {"model.embed_tokens.weight": model.embedding, "model.norm.weight": model.norm}
    weights["lm_head.weight"] = model.embedding
    for layer, block in enumerate(model.layers):
        weights |= {f"model.layers.{layer}.{name}": tensor for name, tensor in _block(block, sigmoid).items()}
    problems = stock.load_state_dict({n: t.detach().contiguous() for n, t in weights.items()}, strict=False)
    if problems.missing_keys or problems.unexpected_keys:
        raise SystemExit(f"the weights do not fit {type(stock).__name__}: {problems}")
    stock.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=3, max_new_tokens=64)
    return stock


@torch.no_grad()
def largest_difference(model: LanguageModel, stock: PreTrainedModel) -> float:
    """Return the largest difference of two logits on random tokens, as a share of the largest logit."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, model.settings.vocabulary, (4, model.settings.context), generator=generator)
    own = model.hidden_states(ids)[0] @ model.embedding.t()  # (texts, tokens, vocabulary)
    return float((own - stock(input_ids=ids).logits).abs().max() / own.abs().max())


def _compare(model: LanguageModel, stock: PreTrainedModel, what: str) -> None:
    difference = largest_difference(model, stock)
    if not difference < CLOSE:
        raise SystemExit(f"{what} computes other logits: they differ by {difference:.2g} of the largest.")


def _config(settings: ModelSettings) -> PreTrainedConfig:
    router = settings.router
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": settings.rope_theta}
    shared: dict[str, Any] = {
        "vocab_size": settings.vocabulary,
        "hidden_size": settings.hidden,
        "intermediate_size": settings.expert_width * router.top_k,
        "moe_intermediate_size": settings.expert_width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.heads,
        "head_dim": settings.head_width,
        "num_experts_per_tok": router.top_k,
        "norm_topk_prob": router.weight != "keep",
        "tie_word_embeddings": True,
        "max_position_embeddings": settings.context,
        "rms_norm_eps": EPSILON,
        "hidden_act": "silu",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 3,
    }
    if router.transform == "softmax":
        return Qwen3MoeConfig(
            **shared,
            rope_parameters=rope,
            num_experts=router.experts,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            router_aux_loss_coef=0.02,
        )
    return Glm4MoeConfig(
        **shared,
        rope_parameters={**rope, "partial_rotary_factor": 1.0},
        partial_rotary_factor=1.0,
        n_routed_experts=router.experts,
        n_shared_experts=1,
        routed_scaling_factor=router.scale,
        n_group=router.groups,
        topk_group=router.kept_groups,
        first_k_dense_replace=0,
        use_qk_norm=True,
        num_mtp_layers=0,
    )


def _block(block: Block, sigmoid: bool) -> dict[str, Tensor]:
    attention, experts = block.attention, block.experts
    query, key, value = attention.qkv.weight.chunk(3)
    weights: dict[str, Tensor] = {
        "self_attn.q_proj.weight": query,
        "self_attn.k_proj.weight": key,
        "self_attn.v_proj.weight": value,
        "self_attn.o_proj.weight": attention.out.weight,
        "self_attn.q_norm.weight": attention.query_norm,
        "self_attn.k_norm.weight": attention.key_norm,
        "input_layernorm.weight": block.attention_norm,
        "post_attention_layernorm.weight": block.experts_norm,
        "mlp.gate.weight": experts.router.score.get_parameter("weight"),
        "mlp.experts.gate_up_proj": experts.gate_up,
        "mlp.experts.down_proj": experts.down,
    }
    if sigmoid:
        gate, up = experts.shared_gate_up.chunk(2)
        weights |= {
            "mlp.gate.e_score_correction_bias": experts.router.load_bias,
            "mlp.shared_experts.gate_proj.weight": gate,
            "mlp.shared_experts.up_proj.weight": up,
            "mlp.shared_experts.down_proj.weight": experts.shared_down,
        }
    return weights


def _write_tokenizer(path: Path, out: Path, context: int) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(out)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.tokenizer, arguments.out)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
