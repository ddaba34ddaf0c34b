"""Checks of an edited checkpoint's files against the original's, without a model: config, index, tensors, rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moeworks.edit.beside import files_beside
from moeworks.edit.checkpoint.files import INDEX, Reader
from moeworks.edit.checkpoint.keys import Entry, edited_config
from moeworks.edit.checkpoint.source import Checkpoint, open_checkpoint
from moeworks.edit.plan import EditPlan
from moeworks.edit.rewrite import Options, Rewrite, counts, rewrites
from moeworks.edit.transformed import new_layer
from moeworks.edit.verification import Check
from moeworks.engines.progress import Progress
from moeworks.errors import MoeworksError, Unsupported

__all__ = ["check_beside", "check_config", "check_index", "check_layers", "check_tensors", "opened"]


def opened(edited: str | Path) -> tuple[Checkpoint | None, Check]:
    """Open the edited checkpoint: all files are there and whole, and config, index and tensors do not contradict."""
    try:
        found = open_checkpoint(edited)
    except MoeworksError as error:
        return None, Check(name="files", state="failed", detail=str(error))
    detail = f"{len(found.files.tensors)} tensors, {found.files.nbytes / 1e6:.1f} MB"
    return found, Check(name="files", state="passed", detail=detail)


def check_index(edited: Checkpoint) -> Check:
    """Compare the index's total size with the tensors; that it names each tensor's file was seen when it was opened."""
    if not edited.files.sharded:
        return Check(name="index", state="passed", detail="one file, which needs none")
    document = json.loads((edited.folder / INDEX).read_text(encoding="utf-8"))
    said = document.get("metadata", {}).get("total_size")
    if said != edited.files.nbytes:
        detail = f"total_size is {said}, the tensors have {edited.files.nbytes} bytes"
        return Check(name="index", state="failed", detail=detail)
    return Check(name="index", state="passed", detail=f"total_size {said}")


def check_config(original: Checkpoint, edited: Checkpoint, plan: EditPlan, options: Options) -> Check:
    """Look at every key of the config that counts experts, at top-k and groups, and at what older versions read.

    Transformers 5 saves `num_local_experts` of Qwen3-MoE, transformers 4.57 reads `num_experts` and would take 128:
    both have to be there. No other family that both know needs two keys.
    """
    planned = counts(rewrites(original, plan, options))
    most = max(planned.values())
    problems = [f"{entry} is {entry.value}, not {most}" for entry in edited.settings.counts if entry.value != most]
    config = dict(edited.config)
    whole = edited_config(config, edited.settings, experts=edited.settings.experts, width=None, drop_extra=False)
    missing = sorted(set(_keys(whole)) - set(_keys(config)))
    if missing:
        problems.append(f"{', '.join(missing)} is missing, which another version of transformers reads")
    for kind in ("top_k", "groups", "groups_kept"):
        old: tuple[Entry, ...] = getattr(original.settings, kind)
        new: tuple[Entry, ...] = getattr(edited.settings, kind)
        if {(str(e), e.value) for e in old} != {(str(e), e.value) for e in new}:
            problems.append(f"{kind} was {_words(old)} and is {_words(new)}")
    if problems:
        return Check(name="config", state="failed", detail="; ".join(problems))
    return Check(name="config", state="passed", detail=_words(edited.settings.counts))


def check_layers(original: Checkpoint, edited: Checkpoint, plan: EditPlan, options: Options) -> Check:
    """Compare the number of experts in each layer's tensors with the plan."""
    planned = counts(rewrites(original, plan, options))
    if set(planned) != set(edited.layouts):
        detail = f"experts are in layers {sorted(edited.layouts)}, the original's in {sorted(planned)}"
        return Check(name="layers", state="failed", detail=detail)
    wrong = [
        f"layer {layer} has {edited.layouts[layer].experts} experts, planned are {count}"
        for layer, count in planned.items()
        if edited.layouts[layer].experts != count
    ]
    if wrong:
        return Check(name="layers", state="failed", detail="; ".join(wrong))
    experts = sorted(set(planned.values()))
    return Check(
        name="layers", state="passed", detail=f"{len(planned)} layers of {' or '.join(map(str, experts))} experts"
    )


def check_beside(original: Checkpoint, edited: Checkpoint) -> Check:
    """Look whether tokenizer, chat template, generation settings and custom code lie beside the weights, unchanged."""
    paths, problems = files_beside(original.folder), []
    for path in paths:
        copy = edited.folder / path
        if not copy.is_file():
            problems.append(f"{path} is missing")
        elif copy.read_bytes() != (original.folder / path).read_bytes():
            problems.append(f"{path} is another one")
    if problems:
        return Check(name="tokenizer and settings", state="failed", detail=", ".join(problems))
    return Check(name="tokenizer and settings", state="passed", detail=", ".join(map(str, paths)) or "none")


def check_tensors(
    original: Checkpoint, edited: Checkpoint, plan: EditPlan, options: Options, statistics: Any, *, progress: bool
) -> Check:
    """Compare every tensor with what the plan makes of the original's, one layer at a time.

    What is only cut has to be equal bit for bit; what is computed, up to two units in the last place of its dtype.
    """
    try:
        wrong = list(_different(original, edited, plan, options, statistics, progress))
    except Unsupported as error:
        return Check(name="tensors", state="not checked", detail=str(error))
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        return Check(name="tensors", state="failed", detail="; ".join(wrong[:4]) + more)
    how = "bit for bit" if plan.pure_cut else "as computed anew"
    return Check(name="tensors", state="passed", detail=f"all equal the original's under the plan, {how}")


def _different(
    original: Checkpoint, edited: Checkpoint, plan: EditPlan, options: Options, statistics: Any, progress: bool
) -> Iterator[str]:
    planned = [rewrite for rewrite in rewrites(original, plan, options) if not rewrite.extra]
    with Progress("comparing tensors", "layers", total=len(planned) + 1, show=progress) as bar:
        for rewrite in planned:
            yield from _layer(original, edited, rewrite, plan, options, statistics)
            bar.advance(1)
        yield from _others(original, edited)
        bar.advance(1)


def _layer(
    original: Checkpoint, edited: Checkpoint, rewrite: Rewrite, plan: EditPlan, options: Options, statistics: Any
) -> Iterator[str]:
    number = rewrite.layout.layer
    old, new = original.read_layer(number), edited.read_layer(number)
    exact = rewrite.raw and not rewrite.padding
    if exact:
        expected = old.select(rewrite.kept)
    else:
        expected = new_layer(old, rewrite, plan, options, statistics, groups=original.settings.group_count)
    found, wanted = new.per_expert(), expected.per_expert()
    if found.keys() != wanted.keys():
        yield f"layer {number} has other tensors than the original ({', '.join(sorted(found.keys() ^ wanted.keys()))})"
        return
    for name, tensor in wanted.items():
        if tensor.shape != found[name].shape:
            yield f"layer {number}: {name} is {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
            continue
        experts = [e for e in range(len(tensor)) if not _equal(tensor[e], found[name][e], exact=exact)]
        if experts:
            yield f"layer {number}: {name} of expert {', '.join(map(str, experts))} is not the planned one"
    if (new.table is None) != (expected.table is None) or (
        new.table is not None
        and expected.table is not None
        and not torch.equal(new.table.long(), expected.table.long())
    ):
        yield f"layer {number}: the table of token ids is not the planned one"


def _others(original: Checkpoint, edited: Checkpoint) -> Iterator[str]:
    """Tensors that no expert has a part in: equal, none missing, none new."""

    def outside(checkpoint: Checkpoint) -> set[str]:
        inside = {name for layout in checkpoint.layouts.values() for name in layout.names}
        extra = tuple(checkpoint.extra)
        return {
            name for name in checkpoint.files.tensors if name not in inside and not (extra and name.startswith(extra))
        }

    before, after = outside(original), outside(edited)
    yield from (f"{name} is missing" for name in sorted(before - after))
    yield from (f"{name} is new" for name in sorted(after - before))
    one, other = Reader(original.files), Reader(edited.files)
    try:
        for name in sorted(before & after):
            if not _equal(one.get(name), other.get(name), exact=True):
                yield f"{name} is not the original's"
    finally:
        one.close()
        other.close()


def _equal(wanted: Tensor, found: Tensor, *, exact: bool) -> bool:
    if wanted.dtype != found.dtype or wanted.shape != found.shape:
        return False
    if exact or not wanted.is_floating_point():
        return torch.equal(wanted.contiguous().view(torch.uint8), found.contiguous().view(torch.uint8))
    unit = 2 * torch.finfo(wanted.dtype).eps
    largest = float(wanted.double().abs().max()) if wanted.numel() else 0.0
    return bool(torch.allclose(wanted.double(), found.double(), rtol=unit, atol=unit * largest))


def _keys(config: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in config.items():
        yield f"{before}{key}"
        if isinstance(value, dict):
            yield from _keys(value, f"{before}{key}.")


def _words(entries: tuple[Entry, ...]) -> str:
    return ", ".join(f"{entry} = {entry.value}" for entry in entries) or "none"
