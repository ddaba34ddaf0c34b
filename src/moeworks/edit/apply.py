"""Writes the checkpoint that an edit plan describes, shard by shard; what cannot be written is refused before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moeworks import __version__
from moeworks.artefact import Header, replace_file
from moeworks.edit.beside import files_beside
from moeworks.edit.checkpoint.keys import edited_config
from moeworks.edit.checkpoint.source import FORMAT_FILE, Checkpoint, open_checkpoint
from moeworks.edit.files import save_edit_plan
from moeworks.edit.outputs import Sources, outputs
from moeworks.edit.plan import FORMAT, VERSION, EditPlan, LayerCut
from moeworks.edit.quantised import renumbered_names
from moeworks.edit.refusals import refusals, width_entry
from moeworks.edit.rewrite import CheckpointFormat, MergeLayout, Options, Rewrite, Tables, counts, rewrites
from moeworks.edit.same_weights import Compared, compare_weights
from moeworks.edit.stock import Unknown, stock_problems
from moeworks.edit.writer import Shard, assign, finish, job_hash, unfinished_folder, write_shards
from moeworks.engines.progress import Progress
from moeworks.errors import BadData, BadPlan
from moeworks.train.save import check_output

__all__ = ["PLAN_FILE", "Applied", "Forecast", "apply", "check_apply", "draft_plan"]

PLAN_FILE = "edit.json"
_UNEVEN_TYPE = "moeworks_uneven"


@dataclass(frozen=True)
class Forecast:
    """What writing a plan will give, known from headers alone.

    Attributes:
        counts: layer → experts in the end.
        bytes_before, bytes_after: of all weights.
        shards: number of weight files.
        largest_shard: bytes of tensors in the fullest of them.
        notes: what could not be checked, and what somebody who reads the plan should know.
    """

    counts: Mapping[int, int]
    bytes_before: int
    bytes_after: int
    shards: int
    largest_shard: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Applied(Forecast):
    """What was written.

    Attributes:
        output: the folder.
        resumed_shards: weight files that an earlier, interrupted run had finished.
    """

    output: Path = Path()
    resumed_shards: int = 0


@dataclass(frozen=True, eq=False)
class _Job:
    """All that is known before the first tensor is read."""

    checkpoint: Checkpoint
    plan: EditPlan
    options: Options
    planned: list[Rewrite]
    config: dict[str, Any]
    shards: list[Shard]
    notes: tuple[str, ...]

    def forecast(self) -> Forecast:
        return Forecast(
            counts=counts(self.planned),
            bytes_before=self.checkpoint.files.nbytes,
            bytes_after=sum(shard.nbytes for shard in self.shards),
            shards=len(self.shards),
            largest_shard=max(shard.nbytes for shard in self.shards),
            notes=self.notes,
        )


def check_apply(
    source: str | Path | Checkpoint,
    plan: EditPlan,
    *,
    statistics: Any = None,
    max_shard_bytes: int | None = None,
    layout: MergeLayout = "rows",
    pad: bool = False,
    format: CheckpointFormat = "stock",
    tables: Tables = "refuse",
    expert_parallel: int = 1,
    hash_override: str | None = None,
    compare: bool = True,
) -> Forecast:
    """Say what `apply` will write, or refuse it, from headers and config alone.

    Run it before a long calibration with `draft_plan(source, keep)`: what its numbers make impossible shows then.

    Raises:
        BadPlan: with everything that speaks against it in one message.
        BadData, Unsupported: as `open_checkpoint`.
    """
    options = Options(layout=layout, pad=pad, format=format, tables=tables, expert_parallel=expert_parallel)
    return _job(source, plan, options, statistics, max_shard_bytes, hash_override, compare).forecast()


def apply(
    source: str | Path | Checkpoint,
    plan: EditPlan,
    output: str | Path,
    *,
    statistics: Any = None,
    max_shard_bytes: int | None = None,
    overwrite: bool = False,
    resume: bool = True,
    layout: MergeLayout = "rows",
    pad: bool = False,
    format: CheckpointFormat = "stock",
    tables: Tables = "refuse",
    expert_parallel: int = 1,
    hash_override: str | None = None,
    compare: bool = True,
    progress: bool = False,
) -> Applied:
    """Write the checkpoint that a plan describes.

    Shards are written one after another in `OUTPUT.unfinished`, which takes its name at the end; a run that was killed
    is gone on with by calling again with the same arguments. Cuts copy what is stored, bit for bit, quantised weights
    too, and need less than two of the largest shard in memory. Whatever computes needs one shard and what its transform
    makes of one layer: `mean` about five times the layer's bytes (benchmarks/edit_apply.py).

    Args:
        source: `lab`, a folder, a Hub id, or a checkpoint that is open.
        plan: what is to be done.
        output: folder that is made.
        statistics: what the plan was made from, for transforms that need it.
        max_shard_bytes: size of a weight file at most; as the source's largest if it is not given.
        overwrite: replace an earlier output.
        resume: go on with what an interrupted run of the same arguments has finished.
        layout: merged experts have one router row each (`rows`), or all members keep theirs and get the same weights
            (`copies`): exact for M-SMoE and HC-SMoE, whose many rows lead to one expert, and no smaller.
        pad: fill poorer layers up with experts that are never chosen: exact where the router has a bias for it.
        format: `uneven` allows unequal numbers of experts and is read by `moeworks.edit.uneven.load_edited` alone.
        tables: `replace` gives tokens whose expert goes from a table of token ids (DeepSeek-V4) another one.
        expert_parallel: the number of experts must be a multiple of this.
        hash_override: the weight hash that the plan names, to write it from other weights of this shape.
        compare: load the model once to see that its weights are the plan's, if they fit into half of the free memory.
        progress: show a bar.

    Raises:
        BadPlan: with everything that speaks against it in one message; nothing was written.
        BadData: the output exists, or the source is no whole checkpoint.
        Unsupported: the layout of the source is not understood.
    """
    target = Path(output)
    check_output(target, mark=PLAN_FILE, overwrite=overwrite)
    options = Options(layout=layout, pad=pad, format=format, tables=tables, expert_parallel=expert_parallel)
    job = _job(source, plan, options, statistics, max_shard_bytes, hash_override, compare)
    if job.checkpoint.folder.resolve() == target.resolve():
        raise BadData(f"{target} is the checkpoint that is read; choose another output.")
    forecast = job.forecast()
    folder = unfinished_folder(target)
    number = job_hash(
        job.shards, job.checkpoint.files.fingerprint, json.loads(plan.model_dump_json()), asdict(options), job.config
    )
    with Progress("Writing", "MB", total=forecast.bytes_after // 10**6, show=progress) as bar:
        written = _Megabytes(bar)
        kept = write_shards(
            job.shards,
            Sources(job.checkpoint),
            folder,
            job=number,
            resume=resume,
            metadata={"format": "pt"},
            advance=written.add,
        )
    _beside(job, folder)
    finish(folder, target, job.shards, overwrite=overwrite)
    return Applied(**vars(forecast), output=target, resumed_shards=kept)


def draft_plan(source: str | Path | Checkpoint, keep: float) -> EditPlan:
    """Return a plan of the shape that cutting to a share of the experts has, to ask `check_apply` before calibrating.

    It keeps the first experts of each layer, or of each group; it is no plan to carry out.

    Raises:
        BadData: the share is not above 0 and at most 1.
    """
    if not 0 < keep <= 1:
        raise BadData(f"keep a share above 0 and at most 1, not {keep}.")
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    groups = checkpoint.settings.group_count
    cuts = []
    for layer in checkpoint.layers:
        layout = checkpoint.layouts[layer]
        size = layout.experts // groups
        each = max(1, round(size * keep))
        kept = [group * size + e for group in range(groups) for e in range(each)]
        whole = checkpoint.identity().layer(layer).experts
        kept += range(layout.experts, whole)
        cuts.append(LayerCut(layer=layer, experts=whole, keep=tuple(kept)))
    return EditPlan(
        method="draft",
        keep=keep,
        layers=tuple(cuts),
        description="A draft of a cut's shape; it keeps the first experts.",
        header=Header(format=FORMAT, version=VERSION, moeworks=__version__, model=checkpoint.identity()),
    )


def _job(
    source: str | Path | Checkpoint,
    plan: EditPlan,
    options: Options,
    statistics: Any,
    max_shard_bytes: int | None,
    hash_override: str | None,
    compare: bool,
) -> _Job:
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    found = refusals(checkpoint, plan, options, statistics=statistics, hash_override=hash_override)
    if checkpoint.counts and options.format == "stock":
        found.append(f"{checkpoint.name} has layers with unequal experts already; ask for the uneven format again.")
    if max_shard_bytes is not None and max_shard_bytes <= 0:
        found.append("A weight file needs more than 0 bytes.")
    _raise(checkpoint, found)
    planned = rewrites(checkpoint, plan, options)
    config, notes = _config(checkpoint, plan, planned, options)
    compared = compare_weights(checkpoint, plan, hash_override=hash_override) if compare else Compared()
    _raise(checkpoint, [compared.problem] if compared.problem else [])
    notes += (compared.note,) if compared.note else ()
    listed = outputs(checkpoint, plan, planned, options, statistics)
    shards = assign(listed, max_shard_bytes or checkpoint.files.largest_file())
    return _Job(checkpoint, plan, options, planned, config, shards, notes)


def _raise(checkpoint: Checkpoint, found: Sequence[str]) -> None:
    if found:
        count = "one problem" if len(found) == 1 else f"{len(found)} problems"
        raise BadPlan(f"the plan cannot be written from {checkpoint.name}, {count}: {' '.join(found)}")


def _config(
    checkpoint: Checkpoint, plan: EditPlan, planned: Sequence[Rewrite], options: Options
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the new config, once transformers has built it without weights, and what could not be checked."""
    experts = max(rewrite.experts for rewrite in planned)
    neurons = next((rewrite.neurons for rewrite in planned if rewrite.neurons is not None), None)
    entry = None if neurons is None else width_entry(checkpoint)
    width = None if neurons is None or entry is None else (entry, neurons)
    before = dict(checkpoint.config)
    config = edited_config(
        before, checkpoint.settings, experts=experts, width=width, drop_extra=plan.extra_layers == "drop"
    )
    config = renumbered_names(config, planned)
    notes: list[str] = []
    try:
        dropped = edited_config(
            before,
            checkpoint.settings,
            experts=checkpoint.settings.experts,
            width=None,
            drop_extra=plan.extra_layers == "drop",
        )
        _raise(checkpoint, stock_problems(dropped, config, experts))
    except Unknown as error:
        if width is not None and width[0].path[-1] == "intermediate_size":
            _raise(
                checkpoint,
                [f"Whether intermediate_size is the width of the experts alone cannot be checked: {error}."],
            )
        notes.append(f"The new config was not checked with transformers: {error}.")
    if options.format == "uneven":
        config["model_type"] = _UNEVEN_TYPE
    if any(rewrite.extra for rewrite in planned):
        notes.append("Layers for multi-token prediction keep the experts of the last layer of the plan.")
    return config, tuple(notes)


def _beside(job: _Job, folder: Path) -> None:
    """Write config, plan and card, and copy tokenizer, chat template, generation settings and custom code."""
    for path in files_beside(job.checkpoint.folder):
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(job.checkpoint.folder / path, folder / path)
    documents: dict[str, str] = {
        "config.json": json.dumps(job.config, indent=2, ensure_ascii=False),
        "README.md": _card(job),
    }
    if job.options.format == "uneven":
        marks = {
            "format": "moeworks.uneven",
            "version": 1,
            "model_type": job.checkpoint.config["model_type"],
            "experts": {str(layer): count for layer, count in counts(job.planned).items()},
        }
        documents[FORMAT_FILE] = json.dumps(marks, indent=2)
    save_edit_plan(job.plan, folder / PLAN_FILE)
    for name, text in documents.items():
        with replace_file(folder / name) as temporary:
            temporary.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def _card(job: _Job) -> str:
    """Return the model card."""
    from moeworks.edit.card import model_card, source_metadata

    forecast = job.forecast()
    return model_card(
        job.plan,
        metadata=source_metadata(job.checkpoint.folder),
        bytes_before=forecast.bytes_before,
        bytes_after=forecast.bytes_after,
    )


class _Megabytes:
    """Moves a bar by whole megabytes as bytes come in."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._bytes = 0

    def add(self, nbytes: int) -> None:
        before = self._bytes // 10**6
        self._bytes += nbytes
        self._bar.advance(self._bytes // 10**6 - before)
