"""Collects every statistic that scores, groupings and transforms ask for in one streaming pass over texts.

What is summed is what the model does: ids and weights are read from its routers, outputs of experts from the products
that the experts module makes in its own forward (`collecting/products.py`), so that the model's own result, and all
routing after it, goes on untouched, and nothing is computed twice. Padding falls into a bin that is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import moeworks
from moeworks.edit.collecting.corpus import Corpus, read_corpus
from moeworks.edit.collecting.cost import Cost, cost_of
from moeworks.edit.collecting.gather import LayerGather, Seen
from moeworks.edit.collecting.kept_rows import KeptRows, choose_rows
from moeworks.edit.collecting.loss import add_gradients
from moeworks.edit.collecting.state import STATE, State, load_state, save_state, settings_hash
from moeworks.edit.collecting.taps import Layout, Tap, new_gather
from moeworks.edit.statistics import COLUMNS, GROUPS, LayerStatistics
from moeworks.edit.statistics_file import (
    FORMAT,
    HEADER,
    VERSION,
    LayerEntry,
    Statistics,
    StatisticsHeader,
    read_rows,
    rows_file,
    save_layer,
    write_header,
)
from moeworks.engines.progress import Progress
from moeworks.engines.transformers.lean import lean
from moeworks.engines.transformers.tokens import Long
from moeworks.errors import BadData, BadPlan, Unsupported, did_you_mean
from moeworks.examples import Example

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["COLLECTABLE", "collect", "columns_of"]

COLLECTABLE = (*GROUPS, "sets")  # `sets`: distinct sets of chosen experts, which are no array of COLUMNS
TEXTS = "texts.tokens"  # the texts as token ids, removed at the end


def collect(
    engine: TransformersEngine,
    examples: Iterable[Example],
    folder: str | Path,
    *,
    label: str | None = None,
    groups: Sequence[str] = ("cheap", "router"),
    rows: int = 0,
    batch_size: int = 8,
    checkpoint_every: int = 50,
    resume: bool = False,
    seed: int = 0,
    long: Long = "truncate",
    command: str = "",
    progress: bool = False,
    announce: Callable[[Cost], None] | None = None,
) -> Statistics:
    """Run texts through a model and write the statistics of every layer with a router to a folder.

    Texts run from the longest to the shortest, in a fixed order, so that a collection that was killed and resumed gives
    the arrays of one that was not, to the bit. While it is unfinished the folder holds the texts as token ids.

    Args:
        engine: a loaded model.
        examples: the texts; their token ids are kept in the folder until the end.
        folder: where the statistics go.
        label: a label that tells texts apart: every array gets a first dimension with one entry a value.
        groups: which arrays: `cheap` (counts, weights, norms), `router` (pairs, Gram matrix of logits), `means`
            (summed outputs), `everywhere` (outputs of every expert on every token: costs E / k of the experts' work),
            `neurons` (sums for each neuron), `gradients` (loss gradients, one more pass and a backward one), `sets`
            (distinct sets of chosen experts; may grow with the text).
        rows: rows of text to keep for methods that need activations: a seeded uniform choice of all tokens, the same
            in every layer, in the order of the text.
        batch_size: texts a forward pass.
        checkpoint_every: batches after which all sums are written, so that no more is lost.
        resume: go on with an unfinished collection of the same model, texts and options.
        seed: of the choice of rows.
        long: what happens to texts longer than the context; what is cut is counted in the header.
        command: how this was called, for the header.
        progress: show a bar on standard error.
        announce: called with the cost before anything runs.

    Raises:
        BadData: no text, a text without the label, a folder in use, another collection to resume.
        BadPlan: a plan is applied; statistics are of the plain model.
        Unsupported: another engine, or a model of which nothing can be collected.
    """
    if not hasattr(engine, "session"):
        raise Unsupported(
            f"the {engine.engine.name} engine shows nothing inside experts; take the transformers engine."
        )
    if engine.plan is not None:
        raise BadPlan("a plan is applied; statistics are of the plain model, so leave its `with` block first.")
    names = columns_of(groups)
    target = check_folder(folder, resume=resume)
    corpus = read_corpus(engine.reader, examples, target / TEXTS, label=label, long=long)
    run = Run(corpus, target, names, tuple(groups), rows, seed, resume)
    gathers = [new_gather(router, len(corpus.names), names, sets="sets" in groups) for router in engine.routers]
    if announce is not None:
        announce(cost_of(corpus, [gather.size for gather in gathers], names, batch_size, len(run.chosen)))
    settings = settings_hash(
        model=engine.identity.weight_hash,
        engine=engine.engine.model_dump(),
        texts=corpus.text_hash,
        tokens=corpus.tokens,
        label=label,
        groups=sorted(groups),
        rows=rows,
        batch_size=batch_size,
        seed=seed,
        long=long,
    )
    layout = Layout()
    taps = [
        Tap(engine.model, router, gather, layout, run.keep if rows else None)
        for router, gather in zip(engine.routers, gathers, strict=True)
    ]
    device = engine.model.device
    done = restore(target, settings, gathers, device) if resume else 0
    with (
        engine.session(None, record=False),
        attached(taps),
        Progress("collecting", "tokens", total=corpus.tokens, show=progress) as bar,
    ):
        for number, texts in enumerate(corpus.batches(batch_size)):
            tokens = int(corpus.lengths[texts].sum())
            if number >= done:
                run_batch(engine, corpus, texts, layout, taps, run)
                if "gradients" in groups:
                    add_gradients(engine, corpus, corpus.batch(texts), gathers, taps)
                if (number + 1) % checkpoint_every == 0:
                    run.flush()
                    save_state(target, settings, _state(number + 1, gathers))
            bar.advance(tokens)
    entries = [finish_layer(target, gather, corpus, run, device) for gather in gathers]
    header = StatisticsHeader(
        format=FORMAT,
        version=VERSION,
        moeworks=moeworks.__version__,
        model=engine.identity,
        engine=engine.engine,
        command=command,
        seed=seed,
        text_hash=corpus.text_hash,
        label=label or "",
        labels=corpus.names,
        tokens=corpus.tokens_of_labels(),
        texts=len(corpus.lengths),
        truncated=corpus.truncated,
        groups=tuple(groups),
        rows=len(run.chosen),
        settings={"batch_size": batch_size, "long": long},
        layers=tuple(entries),
    )
    statistics = write_header(target, header)
    for leftover in (STATE, TEXTS):
        (target / leftover).unlink(missing_ok=True)
    return statistics


def columns_of(groups: Sequence[str]) -> tuple[str, ...]:
    """Return the arrays of some groups; `count` is always among them.

    Raises:
        BadData: there is no such group.
    """
    for group in groups:
        if group not in COLLECTABLE:
            raise BadData(f"there is no group '{group}' of statistics; {did_you_mean(group, COLLECTABLE)}")
    return tuple(name for name, (group, *_) in COLUMNS.items() if group in groups or name == "count")


def check_folder(folder: str | Path, *, resume: bool) -> Path:
    """Return the folder to write to.

    Raises:
        BadData: it holds statistics, an unfinished collection that is not to be resumed, or something else.
    """
    path = Path(folder)
    if (path / HEADER).exists():
        raise BadData(f"{path} holds statistics already; choose another folder or remove it.")
    if path.exists() and not path.is_dir():
        raise BadData(f"{path} is a file; choose the name of a folder.")
    unfinished = (path / STATE).exists() or (path / "progress.json").exists()
    if unfinished and not resume:
        raise BadData(f"{path} holds an unfinished collection; go on with it (--resume), or remove the folder.")
    ours = {STATE, TEXTS, "progress.json"}
    if path.is_dir() and not resume:
        foreign = [p.name for p in path.iterdir() if p.name not in ours and p.suffix != ".safetensors"]
        if foreign:
            raise BadData(f"{path} holds other files ({', '.join(sorted(foreign)[:3])}); choose an empty folder.")
    path.mkdir(parents=True, exist_ok=True)
    return path


class Run:
    """Where the rows of a collection go, and which token each row of the running pass is."""

    def __init__(
        self,
        corpus: Corpus,
        folder: Path,
        names: tuple[str, ...],
        groups: tuple[str, ...],
        rows: int,
        seed: int,
        resume: bool,
    ) -> None:
        self.corpus, self.folder, self.names, self.groups = corpus, folder, names, groups
        self.chosen = choose_rows(corpus.tokens, rows, seed) if rows else np.zeros(0, np.int64)
        self.tokens = np.zeros(0, np.int64)  # (n,) token number of each flat row
        self._resume = resume
        self._kept: dict[int, KeptRows] = {}

    def keep(self, layer: int, seen: Seen) -> None:
        """Write the rows of a pass that are to be kept."""
        if layer not in self._kept:
            self._kept[layer] = KeptRows(rows_file(self.folder, layer), self.chosen, resume=self._resume)
        self._kept[layer].add(seen, self.tokens)

    def flush(self) -> None:
        """Put all rows on the disk."""
        for kept in self._kept.values():
            kept.flush()


@contextmanager
def attached(taps: Sequence[Tap]) -> Iterator[None]:
    """Put hooks on and take them off again, whatever happens."""
    try:
        for tap in taps:
            tap.attach()
        yield
    finally:
        for tap in reversed(taps):
            tap.detach()


def run_batch(
    engine: TransformersEngine,
    corpus: Corpus,
    texts: Any,
    layout: Layout,
    taps: Sequence[Tap],
    run: Run,
    *,
    pad_left: bool = False,
) -> None:
    """Run one batch of texts through the model while its layers are watched."""
    batch = corpus.batch(texts, pad_left=pad_left)
    labels, run.tokens = corpus.rows_of(batch)
    device = engine.model.device
    layout.labels = torch.from_numpy(labels).to(device)
    for tap in taps:
        tap.begin()
    with torch.inference_mode():
        engine.model(**batch.tensors(engine.pad_token, device), **lean(engine.model))
    check_ran(taps)


def check_ran(taps: Sequence[Tap]) -> None:
    """Raise unless every layer showed one whole pass."""
    missing = [tap.router.layer for tap in taps if not tap.complete]
    if missing:
        raise Unsupported(
            f"the experts of layers {missing} did not run in this forward pass, so nothing of them can be collected; "
            "the model bypasses them (fused kernel?)."
        )


def restore(folder: Path, settings: str, gathers: Sequence[LayerGather], device: torch.device) -> int:
    """Go on from what was written; return how many batches are done."""
    state = load_state(folder, settings)
    if state is None:
        return 0
    for gather in gathers:
        gather.load(state.arrays.get(gather.layer, {}), device)
        for name, reason in state.refused.get(gather.layer, {}).items():
            gather.refuse([name], reason)
    return state.batches


def finish_layer(folder: Path, gather: LayerGather, corpus: Corpus, run: Run, device: torch.device) -> LayerEntry:
    """Write the statistics of one layer that is done."""
    run.flush()
    return save_layer(folder, layer_statistics(gather, corpus, device), rows=len(run.chosen))


def layer_statistics(
    gather: LayerGather, corpus: Corpus, device: torch.device, rows: Path | None = None
) -> LayerStatistics:
    """Return what was gathered of a layer; `rows` is the file of its kept rows."""
    gather.finish(device)
    arrays = gather.arrays()
    sets = (arrays.pop("sets"), arrays.pop("set_counts")) if gather.sets else None
    return LayerStatistics(
        layer=gather.layer,
        tokens=np.asarray(corpus.tokens_of_labels()),
        labels=corpus.names,
        arrays=arrays,
        sets=sets,
        load_rows=None if rows is None else partial(read_rows, rows),
        refused=dict(gather.refused),
    )


def _state(batches: int, gathers: Sequence[LayerGather]) -> State:
    return State(batches, {g.layer: g.arrays() for g in gathers}, {g.layer: dict(g.refused) for g in gathers})
