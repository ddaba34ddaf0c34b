"""Engines of real vLLM, one for each model and session; without vLLM the modules that need it are skipped by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moeworks.engines.vllm.versions import installed

# vLLM reads these when it is imported
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TORCH_COMPILE_DISABLE": "1",
}
HERE = bool(installed())  # by its metadata: this folder has the same name, and would be found as a package
if HERE:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs vLLM where it is not installed, and say how it is run."""
    if HERE:
        return
    skip = pytest.mark.skip(reason="vLLM is not importable here; make check-vllm runs this in its own environment")
    for item in items:
        if getattr(getattr(item, "module", None), "NEEDS_VLLM", False):
            item.add_marker(skip)


def _config(kind: str) -> Any:
    from transformers import Glm4MoeConfig, OlmoeConfig, Qwen3MoeConfig

    shared = {
        "vocab_size": 8192,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 3,
        "initializer_range": 0.2,
    }
    if kind == "olmoe":
        return OlmoeConfig(
            **shared | {"num_attention_heads": 2},
            num_key_value_heads=2,
            intermediate_size=32,
            num_experts=8,
            num_experts_per_tok=2,
            clip_qkv=None,
        )
    if kind == "glm4_moe":
        return Glm4MoeConfig(
            **shared,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=64,
            moe_intermediate_size=32,
            n_routed_experts=16,
            num_experts_per_tok=4,
            n_group=4,
            topk_group=2,
            n_shared_experts=1,
            routed_scaling_factor=1.5,
            norm_topk_prob=True,
            first_k_dense_replace=1,
        )
    return Qwen3MoeConfig(
        **shared,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        mlp_only_layers=[1],
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a tiny random checkpoint, made once."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind in made:
            return made[kind]
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from moeworks.lab import lab_path

        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(kind)
        model = AutoModelForCausalLM.from_config(_config(kind))
        with torch.no_grad():
            for tensor_name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if tensor_name.endswith("e_score_correction_bias"):
                    tensor.normal_(0.0, 0.1)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(lab_path()).save_pretrained(folder)
        made[kind] = folder
        return folder

    return make


@pytest.fixture(scope="session")
def engine_of(checkpoint: Callable[[str], Path]) -> Iterator[Callable[..., Any]]:
    """Return the vLLM engine of a model, loaded once a session."""
    engines: dict[str, Any] = {}

    def get(kind: str) -> Any:
        from moeworks.engines.vllm import VllmEngine

        if kind not in engines:
            engines[kind] = VllmEngine.load(
                kind if kind == "lab" else str(checkpoint(kind)),
                dtype="float32",
                max_model_len=128,
                max_num_seqs=8,
                max_num_batched_tokens=128,
                block_size=32,
                enable_prefix_caching=True,
                num_gpu_blocks_override=20,  # eight requests that have grown need more: some are preempted
            )
        return engines[kind]

    yield get
    for engine in engines.values():
        engine.llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="session")
def reference_of(checkpoint: Callable[[str], Path]) -> Callable[[str], Any]:
    """Return the transformers engine of a model, in float32."""
    engines: dict[str, Any] = {}

    def get(kind: str) -> Any:
        from moeworks.engines.transformers import TransformersEngine

        if kind not in engines:
            name = kind if kind == "lab" else str(checkpoint(kind))
            engines[kind] = TransformersEngine.load(name, dtype="float32")
        return engines[kind]

    return get
