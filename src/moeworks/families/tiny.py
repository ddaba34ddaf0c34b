"""Builds a tiny random model of every mixture-of-experts family that the installed transformers has.

Families are found by their declaration, configurations are the real classes, shrunk by rules on field names.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from moeworks.errors import Unsupported, did_you_mean

__all__ = ["TINY_VOCABULARY", "families", "model_class", "tiny_config", "tiny_model"]

TINY_VOCABULARY = 128

_COUNT = re.compile(r"num_experts|num_local_experts|n_routed_experts|moe_num_experts")
_DECLARATION = re.compile(r'"router_logits":\s*(OutputRecorder|\[|[A-Z])')

# Field name → size; the first rule that matches the whole name holds. Only fields with a number or None are touched.
_RULES: tuple[tuple[str, int], ...] = (
    (r"pad_token_id", 0),
    (r"bos_token_id|decoder_start_token_id", 1),
    (r"eos_token_id", 2),
    (r".*vocab_size.*", TINY_VOCABULARY),
    (r"max_position_embeddings|max_seq_len|model_max_length", 128),
    (r"num_hidden_layers|num_layers|n_layers|(num_)?(en|de)coder_layers", 4),
    (r"num_sparse_(en|de)coder_layers", 2),
    (r"(en|de)coder_sparse_step", 1),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    (r"moe_layer_end_index", 3),
    (r"num_nextn_predict_layers|num_mtp_layers", 0),
    (r"attn_layer_period|layer_group_size|global_attn_every_n_layers|n_layers_per_attn_res_block", 2),
    (r"attn_layer_offset|expert_layer_offset", 1),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts", 8),
    (r"zero_expert_num", 2),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts", 2),
    (r"n_group|num_expert_group", 4),
    (r"topk_group", 2),
    (r"expert_capacity", 64),
    (r"hidden_size|d_model|moe_hidden_size|ple_embed_dim|mamba_n_heads|mamba_num_heads", 32),
    (r"router_hidden_size", 16),
    (r"(.*_)?intermediate_size(_.*)?|(.*_)?ffn_(dim|hidden_size)|d_ff|share_expert_dim", 32),
    (r"mamba_(d_head|head_dim)|kv_n_heads", 2),
    (r"(.*_)?num_key_value_heads|(.*_)?num_key_heads", 2),
    (r"(.*_)?(num_.*heads|n_heads|attention_heads|num_heads)", 4),
    (r"qk_rope_head_dim|rotary_dim", 8),
    (r"(.*_)?head_dim|d_kv|kv_channels", 16),
    (r"(.*_)?(lora_rank|lowrank|norm_rank)", 16),
    (r"d_rel|.*(d_state|state_size)|mamba_dt_rank", 8),
    (
        r"rel_extent|(mamba_)?chunk_size|index_(topk|block_size)|sliding_window(_size)?|attention_chunk_size|block_size",
        16,
    ),
    (r"index_(topk_blocks|kpool)", 2),
    (r"n_groups|o_groups|hc_(mult|count)", 2),
)
_SIZES = tuple((re.compile(pattern), size) for pattern, size in _RULES)

# What the rules cannot know: switches that turn the experts on, and sizes that must fit one another.
_MIXED = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_SPARSE = ["dense", "sparse", "sparse", "sparse"]
_SPECIAL: dict[str, dict[str, Any]] = {
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_ocr2": {"mlp_layer_types": _SPARSE},
    "doge": {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 4},
    "dots1": {"n_shared_experts": 1},
    "ernie4_5_vl_moe": {
        "moe_intermediate_size": [32, 16],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    },
    "gemma4": {"enable_moe_block": True},
    "glm4v_moe": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]}},
    "glm5_next": {"qk_rope_head_dim": 0},
    "granitemoehybrid": {"layer_types": _MIXED},
    "kimi_linear": {"layer_types": _MIXED},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8},
    "nllb_moe": {"decoder_layerdrop": 0.0, "encoder_layerdrop": 0.0},
    "qwen4_exp": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "step3p7": {"sliding_window": 16, "mlp_layer_types": _SPARSE},
    "zaya": {"num_experts_per_tok": 1},
}


def families() -> list[str]:
    """Return the packages of transformers whose model declares router logits, in alphabetical order."""
    return sorted(_packages())


@cache
def _packages() -> dict[str, str]:
    """Return package → module name of its modelling file."""
    root = Path(transformers.__file__).parent / "models"
    files = (file for file in root.glob("*/modeling_*.py") if _DECLARATION.search(file.read_text("utf-8")))
    return {file.parent.name: f"transformers.models.{file.parent.name}.{file.stem}" for file in files}


@cache
def model_class(family: str) -> Any:
    """Return the class that is built for a family: its causal language model, else its bare text decoder.

    Raises:
        Unsupported: no such family.
    """
    if family not in _packages():
        raise Unsupported(f"no mixture-of-experts family is called '{family}'; {did_you_mean(family, families())}")
    module = importlib.import_module(_packages()[family])
    ranked = sorted(
        (rank, name) for name, kind in vars(module).items() if (rank := _rank(name, kind, module)) is not None
    )
    if not ranked:
        raise Unsupported(f"transformers has no text model with experts in the package '{family}'.")
    return getattr(module, ranked[0][1])


def _rank(name: str, kind: Any, module: Any) -> int | None:
    """Return how well a class stands for its family, smallest first; None if it is no text model with experts."""
    own = (
        inspect.isclass(kind) and issubclass(kind, transformers.PreTrainedModel) and kind.__module__ == module.__name__
    )
    if not own or not isinstance(kind.config_class, type) or not _has_experts(kind.config_class):
        return None
    if re.search("Vision|Audio|Talker|Code2Wav|PreTrainedModel", name):
        return None
    endings = ("ForCausalLM", "ForConditionalGeneration", "TextModel", "Model")
    return next((rank for rank, ending in enumerate(endings) if name.endswith(ending)), len(endings))


def _has_experts(config_class: Any) -> bool:
    inner = [kind for key, kind in config_class.sub_configs.items() if key == "ffn_config"]
    names = {field.name for kind in (config_class, *inner) for field in dataclasses.fields(kind)}
    return any(_COUNT.fullmatch(name) for name in names)


def tiny_config(family: str, *, experts: int | None = None) -> Any:
    """Return the family's configuration with every size shrunk; with `experts` it has so many, not 8."""
    kind: Any = model_class(family).config_class
    sizes = _shrunk(kind) | _SPECIAL.get(family, {})
    return kind(**sizes if experts is None else _with_experts(sizes, experts))


def _with_experts(sizes: dict[str, Any], experts: int) -> dict[str, Any]:
    return {
        name: _with_experts(size, experts) if isinstance(size, dict) else experts if _COUNT.fullmatch(name) else size
        for name, size in sizes.items()
    }


def _shrunk(kind: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in kind.sub_configs:
            sizes[field.name] = _shrunk(kind.sub_configs[field.name])
            continue
        rule = next((size for pattern, size in _SIZES if pattern.fullmatch(field.name)), None)
        plain = field.default is None or (isinstance(field.default, int) and not isinstance(field.default, bool))
        if rule is not None and plain and (field.default is not None or field.name in _EVEN_IF_NONE):
            sizes[field.name] = rule
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    if defaults.get("num_key_value_heads") == defaults.get("num_attention_heads") and "num_attention_heads" in sizes:
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    return sizes


# Fields whose None means "not set yet" and not "without".
_EVEN_IF_NONE = {
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "top_k_experts",
    "moe_intermediate_size",
    "head_dim",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
}


def tiny_model(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, experts: int | None = None) -> Any:
    """Return a random model of the family, in evaluation mode, whose routing is not flat and whose biases are not 0."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(family)._from_config(tiny_config(family, experts=experts), attn_implementation="eager")
        _spread(model)
    _cast(model, dtype)
    return model.eval()


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Cast as `from_pretrained` does: what the class keeps in float32 stays there."""
    strict = "|".join(re.escape(name) for name in model._keep_in_fp32_modules_strict)
    kept = re.compile(rf"(^|\.)({strict})($|\.)") if strict else None
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not (kept and kept.search(name)):
            tensor.data = tensor.data.to(dtype)
    model.config.dtype = dtype


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Draw routers and experts wide enough to tell tokens and experts apart, and biases and factors off 0 and 1."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        last = name.rpartition(".")[2]
        if "expert_scale" in last:
            tensor.uniform_(0.5, 1.5)
        elif last == "tid2eid":
            tensor.copy_(torch.rand(len(tensor), 8).argsort(-1)[:, : tensor.shape[1]])
        elif re.fullmatch(r"e_score_correction_bias|expert_bias|balancing_biases", last):
            tensor.normal_(0.0, 0.1)
        elif re.search(r"\bexperts\.|(in|out)put_linear", name) and tensor.ndim >= 2:
            tensor.normal_(0.0, 0.2)
        elif re.search(r"(gate|router|classifier)(\.\w+)*\.(weight|wg)$", name) and tensor.ndim == 2:
            tensor.normal_(0.0, 0.3)
