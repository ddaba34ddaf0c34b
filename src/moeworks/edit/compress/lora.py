"""Low-rank differences as a PEFT adapter on a checkpoint whose experts are all the common base: exact, and stock.

Written by PEFT's documented files (`adapter_config.json` with `target_parameters`, `adapter_model.safetensors`),
without PEFT. Layout of a three-dimensional parameter (E, out, in), read in PEFT 0.21 and tested against it: `lora_A`
is (E r, in), experts outermost; `lora_B` is (out, r E), experts innermost; the delta is B A lora_alpha / r. Of two
parameters of one module the first, in the module's order, is wrapped first and named `base_layer`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moeworks.edit.compress.factors import Factors
from moeworks.edit.compress.install import experts_place
from moeworks.errors import BadData, Unsupported

__all__ = ["adapter_state", "experts_names", "save_lora"]


def experts_names(config: Any, layers: Iterable[int]) -> dict[int, str]:
    """Return the module name of each layer's experts in the stock model of a configuration; no weight is made.

    Raises:
        Unsupported: they are not stored as gate_up_proj (or up_proj) and down_proj, (E, out, in), gate rows first.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names: dict[int, str] = {}
    for layer in layers:
        experts = experts_place(model, layer)[1]
        names[layer] = next(name for name, module in model.named_modules() if module is experts)
        _check_layout(experts, names[layer])
    return names


def adapter_state(factors: Iterable[Factors], names: Mapping[int, str]) -> dict[str, Tensor]:
    """Return the adapter's tensors by PEFT's names.

    Args:
        factors: of `base_delta`, all of one rank.
        names: module name of each layer's experts in the base model.

    Raises:
        BadData: factors of another method, or of several ranks.
    """
    state: dict[str, Tensor] = {}
    ranks: set[int] = set()
    for found in factors:
        if found.method != "base_delta" or found.settings["rank"] < 1:
            raise BadData("an adapter is made of 'base_delta' factors with a rank of 1 or more.")
        rank = int(found.settings["rank"])
        ranks.add(rank)
        for projection, place in (("inner", ".base_layer"), ("down", "")):
            inwards = _wide(found.tensors[f"{projection}_in"], rank, 1)  # (E, r, in)
            outwards = _wide(found.tensors[f"{projection}_out"], rank, 2)  # (E, out, r)
            prefix = f"base_model.model.{names[found.layer]}{place}"
            state[f"{prefix}.lora_A.weight"] = inwards.flatten(0, 1).contiguous()
            state[f"{prefix}.lora_B.weight"] = outwards.permute(1, 2, 0).flatten(1).contiguous()
    if len(ranks) != 1:
        raise BadData(f"an adapter has one rank; these factors have {sorted(ranks) or 'none'}.")
    return state


def save_lora(
    factors: Iterable[Factors], folder: str | Path, *, config: Any, base: str, overwrite: bool = False
) -> Path:
    """Write `base_delta` factors as a PEFT LoRA adapter, whole or not at all.

    On the base checkpoint (the model with every expert replaced by its layer's base: the transform `base_delta` with
    rank 0 and the same `base`), PEFT's `PeftModel.from_pretrained(model, folder)` gives the compressed model. vLLM and
    other engines read adapters on experts in layouts of their own: not tried.

    Args:
        factors: of each compressed layer, all of one rank.
        folder: where to.
        config: the model's transformers configuration.
        base: what the adapter names as its base model.
        overwrite: replace an adapter that is there.

    Raises:
        Unsupported: the family stores its experts in another layout.
    """
    from safetensors.torch import save_file

    from moeworks.train.save import check_output, whole_folder

    output, listed = Path(folder), list(factors)
    names = experts_names(config, [found.layer for found in listed])
    state = adapter_state(listed, names)
    inner = "up_proj" if listed[0].tensors["inner_base"].shape[0] == listed[0].neurons else "gate_up_proj"
    rank = int(listed[0].settings["rank"])
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,  # the delta is B A itself
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": [],
        "target_parameters": [f"{name}.{part}" for name in names.values() for part in (inner, "down_proj")],
    }
    check_output(output, mark="adapter_config.json", overwrite=overwrite)
    with whole_folder(output) as temporary:
        save_file(state, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        text = json.dumps(described, indent=2) + "\n"
        (temporary / "adapter_config.json").write_text(text, encoding="utf-8")
    return output


def _wide(factor: Tensor, rank: int, dimension: int) -> Tensor:
    """Return a factor with zeros up to the rank: a full-rank projection can be narrower than the other one's rank."""
    missing = rank - factor.shape[dimension]
    padding = (0, missing) if dimension == 2 else (0, 0, 0, missing)
    return nn.functional.pad(factor, padding)


def _check_layout(experts: nn.Module, name: str) -> None:
    first = next(iter(dict(experts.named_parameters(recurse=False))), "")
    turned = getattr(experts, "is_transposed", False) or not getattr(experts, "is_concatenated", True)
    if (
        turned
        or first not in ("gate_up_proj", "up_proj")
        or not isinstance(getattr(experts, "down_proj", None), Tensor)
    ):
        raise Unsupported(
            f"the experts '{name}' are not stored as (experts, out, in) with gate rows first, so that no exact adapter "
            "is known for them; write the factors multiplied out instead."
        )
