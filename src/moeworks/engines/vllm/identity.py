"""Which model an engine of vLLM runs: its weights and tokenizer by hash, its routers as the workers found them."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from moeworks.artefact import EngineIdentity, LayerShape, ModelIdentity
from moeworks.engines.vllm.info import WorkerInfo, read_info
from moeworks.engines.vllm.versions import installed
from moeworks.errors import BadData, Unsupported
from moeworks.lab import LAB_MODELS, lab_path

__all__ = ["IDENTITY", "checkpoint_identity", "engine_identity", "join", "model_folder", "running_engine"]

IDENTITY = "MOEWORKS_VLLM_IDENTITY"  # environment variable: file with the identity of the checkpoint


def model_folder(name: str) -> str:
    """Return what vLLM is to open: the folder of a lab model, or the name itself."""
    return str(lab_path(name)) if name in LAB_MODELS else name


def engine_identity(config: Any) -> ModelIdentity:
    """Return the identity of the model that an engine runs.

    Args:
        config: the engine's configuration.

    Raises:
        Unsupported: nothing can be steered or recorded in this engine.
        RunFailed: its workers did not say what they hold.
    """
    return _identity_of(str(config.model_config.model), str(config.instance_id))


def running_engine(config: Any) -> EngineIdentity:
    """Return what a trace says of the engine with this configuration."""
    return EngineIdentity(
        name="vllm",
        version=installed(),
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        device=str(config.device_config.device_type),
    )


@lru_cache(maxsize=8)
def _identity_of(model: str, instance: str) -> ModelIdentity:
    info = read_info(instance)
    if info.refused:
        raise Unsupported(f"this server steers and records nothing: {info.refused}.")
    return join(checkpoint_identity(model), info)


@lru_cache(maxsize=8)
def checkpoint_identity(model: str) -> ModelIdentity:
    """Return the identity of a checkpoint as the transformers engine states it.

    It is read from the file that `MOEWORKS_VLLM_IDENTITY` names, if that is there; else transformers loads the
    checkpoint once, on the CPU.
    """
    file = os.environ.get(IDENTITY)
    if file and Path(file).is_file():
        return ModelIdentity.model_validate_json(Path(file).read_text(encoding="utf-8"))
    from moeworks.engines.transformers import TransformersEngine

    return TransformersEngine.load(model).identity


def join(checkpoint: ModelIdentity, info: WorkerInfo) -> ModelIdentity:
    """Return the checkpoint's identity with the routers as vLLM runs them.

    Raises:
        BadData: the checkpoint has other routers than the workers found.
    """
    found = {shape.layer: shape for shape in info.layers}
    if tuple(found) != tuple(shape.layer for shape in checkpoint.layers):
        raise BadData(
            f"vLLM has routers in layers {', '.join(map(str, found))}, the checkpoint in "
            f"{', '.join(str(shape.layer) for shape in checkpoint.layers)}; nothing can be steered or recorded."
        )
    layers = tuple(_layer(shape, found[shape.layer]) for shape in checkpoint.layers)
    return checkpoint.model_copy(update={"layers": layers})


def _layer(checkpoint: LayerShape, worker: LayerShape) -> LayerShape:
    if (checkpoint.experts, checkpoint.top_k) != (worker.experts, worker.top_k):
        raise BadData(
            f"layer {worker.layer} has top {worker.top_k} of {worker.experts} experts in vLLM and top "
            f"{checkpoint.top_k} of {checkpoint.experts} in the checkpoint."
        )
    return worker.model_copy(update={"neurons": checkpoint.neurons})
