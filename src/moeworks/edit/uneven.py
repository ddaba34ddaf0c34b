"""Checkpoints whose layers have unequal numbers of experts: stock files, counts beside them, and how to load them.

Such a folder holds what any checkpoint holds, and `moeworks_format.json`:

    {"format": "moeworks.uneven", "version": 1, "model_type": "qwen3_moe", "experts": {"0": 24, "1": 40}}

`config.json` has the largest count and the model type `moeworks_uneven`, which no stock program knows: the Auto classes
of transformers refuse it by that name, and a class that is named outright refuses the sizes of the smaller layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from moeworks.edit.checkpoint import open_checkpoint
from moeworks.edit.checkpoint.names import match, split
from moeworks.edit.checkpoint.source import FORMAT_FILE
from moeworks.edit.in_memory import write_layer
from moeworks.edit.stock import Unknown, model_class_of
from moeworks.engines.transformers.loading import SETTINGS, Loaded
from moeworks.errors import BadData, Unsupported
from moeworks.families import discover

__all__ = ["load_edited"]


def load_edited(folder: str | Path, *, dtype: str = "auto", device: str = "cpu") -> Loaded:
    """Load a checkpoint of the uneven format, or any other, as a model of the stock class with layers resized.

    `TransformersEngine(*load_edited(folder)[:2], name=...)` makes an engine of it.

    Args:
        folder: what `apply(…, format="uneven")` wrote.
        dtype: `auto` as stored, or a name such as float32.
        device: where the model goes.

    Returns:
        model, tokenizer, settings.

    Raises:
        BadData: it is no checkpoint, or its files and counts contradict each other.
        Unsupported: transformers does not know the model.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    checkpoint = open_checkpoint(folder)
    if not checkpoint.counts:
        raise BadData(f"{folder} has no {FORMAT_FILE} with counts; it is a stock checkpoint, load it as any other.")
    try:
        kind = model_class_of(checkpoint.config)
    except Unknown as error:
        raise Unsupported(f"{folder} cannot be loaded: {error}.") from error
    model, loading = kind.from_pretrained(
        checkpoint.folder,
        config=kind.config_class.from_dict(dict(checkpoint.config)),
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    _check(loading, folder)
    for router in discover(model):
        if checkpoint.counts.get(router.layer) != checkpoint.settings.experts:
            write_layer(router, checkpoint.read_layer(router.layer))
    has_tokenizer = (checkpoint.folder / "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, config=model.config) if has_tokenizer else None
    path = checkpoint.folder / SETTINGS
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return Loaded(model.eval().to(device), tokenizer, settings)


def _check(loading: dict[str, Any], folder: str | Path) -> None:
    """Nothing but experts and routers may have been of another size; those are put in afterwards."""
    named = [key[0] if isinstance(key, tuple) else key for kind in loading.values() for key in kind]
    wrong = [name for name in named if not _of_experts(name)]
    if wrong:
        raise BadData(f"{folder} does not fit its model: {', '.join(sorted(wrong)[:5])}.")


def _of_experts(name: str) -> bool:
    place = split(name)
    found = None if place is None else match(place[2])
    return found is not None and found.role != "whole"
