"""Stock mixture-of-experts classes that a dense model can become: configuration, names of weights, what rules it out.

Read and tested in transformers 5.23. Mixtral and Qwen3-MoE choose by softmax and have no shared experts; dots1 and
GLM-4-MoE choose by sigmoid and have them. All divide the chosen weights by their sum here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moeworks.edit.dense.ffn import Split
from moeworks.edit.dense.source import Dense
from moeworks.errors import BadData, Unsupported, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["TARGETS", "Target", "build", "default_target", "target_for"]

_COMMON = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


@dataclass(frozen=True)
class Target:
    """A stock class.

    Attributes:
        family: its model type.
        sources: dense families whose attention it has.
        shared: whether it has shared experts; then it needs at least one.
        fields: from (dense config, experts, neurons of each, k, shared experts, scale) to its own fields.
        refuse: from the dense config to what it cannot express of it.
    """

    family: str
    sources: tuple[str, ...]
    shared: bool
    fields: Callable[[Any, int, int, int, int, float], dict[str, Any]]
    refuse: Callable[[Any], list[str]]


def _mixtral(config: Any, experts: int, width: int, top_k: int, shared: int, scale: float) -> dict[str, Any]:
    window = getattr(config, "sliding_window", None)
    own = {"num_local_experts": experts, "intermediate_size": width, "num_experts_per_tok": top_k}
    return {**own, "sliding_window": window if config.model_type == "mistral" else None}


def _qwen3_moe(config: Any, experts: int, width: int, top_k: int, shared: int, scale: float) -> dict[str, Any]:
    own = {"num_local_experts": experts, "moe_intermediate_size": width, "num_experts_per_tok": top_k}
    more = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [], "use_sliding_window": False}
    return {**own, **more, "intermediate_size": config.intermediate_size, "attention_bias": config.attention_bias}


def _with_shared(config: Any, experts: int, width: int, top_k: int, shared: int, scale: float) -> dict[str, Any]:
    return {
        "n_routed_experts": experts,
        "n_shared_experts": shared,
        "moe_intermediate_size": width,
        "intermediate_size": config.intermediate_size,
        "num_experts_per_tok": top_k,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "norm_topk_prob": True,
        "routed_scaling_factor": scale,
        "attention_bias": getattr(config, "attention_bias", False),
    }


def _glm4_moe(config: Any, experts: int, width: int, top_k: int, shared: int, scale: float) -> dict[str, Any]:
    own = {"use_qk_norm": config.model_type == "qwen3", "partial_rotary_factor": 1.0, "num_nextn_predict_layers": 0}
    return {**_with_shared(config, experts, width, top_k, shared, scale), **own}


def _dots1(config: Any, experts: int, width: int, top_k: int, shared: int, scale: float) -> dict[str, Any]:
    own = {"layer_types": ["full_attention"] * config.num_hidden_layers, "sliding_window": None}
    return {**_with_shared(config, experts, width, top_k, shared, scale), **own}


def _slides(config: Any) -> list[str]:
    types = getattr(config, "layer_types", None) or []
    slides = "sliding_attention" in types or (config.model_type == "mistral" and config.sliding_window is not None)
    return ["layers with sliding attention"] if slides else []


def _biased(config: Any) -> list[str]:
    return ["biases in attention"] if getattr(config, "attention_bias", False) else []


TARGETS: dict[str, Target] = {
    "mixtral": Target("mixtral", ("llama", "mistral"), False, _mixtral, _biased),
    "qwen3_moe": Target("qwen3_moe", ("qwen3",), False, _qwen3_moe, _slides),
    "glm4_moe": Target("glm4_moe", ("qwen3", "llama", "mistral"), True, _glm4_moe, lambda c: _slides(c) + _biased(c)),
    "dots1": Target("dots1", ("qwen3",), True, _dots1, _slides),
}


def default_target(family: str, shared: int) -> str:
    """Return the usual class for a dense family."""
    if shared:
        return "glm4_moe"
    return "qwen3_moe" if family == "qwen3" else "mixtral"


def target_for(name: str, config: Any, *, shared: int) -> Target:
    """Return a target if it can hold this dense model's attention and these shared experts.

    Raises:
        BadData: there is no such target, or it cannot have so many shared experts.
        Unsupported: it cannot compute what the dense model does; all reasons are named.
    """
    if name not in TARGETS:
        raise BadData(f"no target is called '{name}'; {did_you_mean(name, TARGETS)}")
    target, family = TARGETS[name], config.model_type
    if shared and not target.shared:
        hosts = ", ".join(n for n, t in TARGETS.items() if t.shared and family in t.sources)
        raise BadData(f"{name} has no shared experts; give --shared 0, or --target one of {hosts}.")
    if target.shared and not shared:
        raise BadData(f"{name} needs a shared expert; give --shared 1 or more, or another --target.")
    problems = [] if family in target.sources else [f"attention of {family} (it takes {', '.join(target.sources)})"]
    problems += target.refuse(config) if family in target.sources else []
    if problems:
        raise Unsupported(f"{name} cannot express: {'; '.join(problems)}.")
    return target


def build(
    dense: Dense,
    target: Target,
    splits: Sequence[Split],
    routers: Sequence[Tensor],
    *,
    top_k: int,
    scale: float = 1.0,
    rest: Mapping[str, Tensor] | None = None,
) -> PreTrainedModel:
    """Return the stock model, in memory; attention, norms and embeddings are the dense model's own tensors.

    Args:
        dense: the model that it is made of.
        target: the class.
        splits: of each layer; all of one shape.
        routers: rows of each layer, (E, H).
        top_k: experts a token.
        scale: what the sum of the chosen experts' weights has to be: `routed_scaling_factor` where the class has it,
            else a factor of the down projections.
        rest: other weights in place of the dense model's own, by its names.

    Raises:
        Unsupported: a weight has no place, which would be a change in transformers.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config, first = dense.model.config, splits[0]
    width = first.up.shape[1]
    shared = 0 if first.shared is None else first.shared.neurons // width
    kind = first.up.dtype
    common = {name: getattr(config, name) for name in _COMMON if getattr(config, name, None) is not None}
    common["rope_parameters"] = dict(config.rope_parameters)
    own = target.fields(config, first.experts, width, top_k, shared, scale)
    made = AutoConfig.for_model(target.family, **{**common, **own}, dtype=kind)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(made, dtype=kind)
    factor = 1.0 if target.shared else scale
    state = {n: t for n, t in (rest or dense.model.state_dict()).items() if ".mlp." not in n}
    for layer, (split, router) in enumerate(zip(splits, routers, strict=True)):
        prefix = f"model.layers.{layer}.mlp"
        state[f"{prefix}.experts.gate_up_proj"] = torch.cat([split.gate, split.up], 1)
        state[f"{prefix}.experts.down_proj"] = split.down if factor == 1 else split.down * factor
        state[f"{prefix}.gate.weight"] = router.to(kind)
        if target.shared:
            assert split.shared is not None
            state[f"{prefix}.gate.e_score_correction_bias"] = torch.zeros(split.experts)
            for name in ("gate", "up", "down"):
                state[f"{prefix}.shared_experts.{name}_proj.weight"] = getattr(split.shared, name)
    result = model.load_state_dict(state, strict=False, assign=True)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    wrong = [*(set(result.missing_keys) - tied), *result.unexpected_keys]
    if wrong:
        raise Unsupported(f"{target.family} of the installed transformers has other weights: {', '.join(wrong[:5])}.")
    model.tie_weights()
    model.generation_config = dense.model.generation_config
    return model.eval()
