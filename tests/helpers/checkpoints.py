"""Tiny checkpoints on disk, plans for them, and hand-made ones in formats that no tiny model can be saved in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from moeworks import __version__
from moeworks.artefact import Header, ModelIdentity
from moeworks.edit.checkpoint import Checkpoint, open_checkpoint
from moeworks.edit.plan import FORMAT, VERSION, EditPlan, LayerCut
from moeworks.engines.transformers.loading import identify
from moeworks.families import survey
from moeworks.families.tiny import tiny_model

transformers.utils.logging.disable_progress_bar()


def saved(family: str, folder: Path, *, experts: int = 16, shards: int = 1, dtype: torch.dtype = torch.float32) -> Path:
    """Save a family's tiny model, in about so many weight files."""
    model = tiny_model(family, experts=experts, dtype=dtype)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    model.save_pretrained(folder, max_shard_size=size // shards + 4096)
    return folder


def proved(family: str, folder: Path, *, experts: int = 16) -> ModelIdentity:
    """Return the identity of a tiny model with its proved contracts."""
    model = tiny_model(family, experts=experts)
    return identify(str(folder), model, None, survey(model).routers)


def plan_of(
    source: Path | Checkpoint,
    keep: Mapping[int, Sequence[int]],
    *,
    identity: ModelIdentity | None = None,
    groups: Mapping[int, Any] | None = None,
    neurons: Mapping[int, Any] | None = None,
    **fields: Any,
) -> EditPlan:
    """Return a plan that keeps these experts of these layers."""
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    identity = identity or checkpoint.identity()
    cuts = tuple(
        LayerCut(
            layer=layer,
            experts=identity.layer(layer).experts,
            keep=tuple(kept),
            groups=None if groups is None else groups[layer],
            neurons=None if neurons is None else neurons[layer],
        )
        for layer, kept in sorted(keep.items())
    )
    header = Header(format=FORMAT, version=VERSION, moeworks=__version__, model=identity)
    return EditPlan(method="test", keep=0.5, layers=cuts, header=header, **fields)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def by_hand(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """Write a checkpoint from tensors and config alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder
