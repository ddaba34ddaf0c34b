"""Collects statistics of a model that is larger than memory: one decoder layer at a time, its inputs on disk.

Each layer is loaded once, sees every text, writes what the next layer reads, and is let go of; memory holds the
embeddings, one layer and one batch. What is collected equals what `collect` gives, to rounding. A sequential method can
change a layer before its outputs are made, so that later layers see the edited model (`change`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import moeworks
from moeworks.artefact import EngineIdentity, LayerShape, ModelIdentity, replace_file
from moeworks.edit.checkpoint.source import Checkpoint, open_checkpoint
from moeworks.edit.collect import (
    TEXTS,
    Run,
    attached,
    check_folder,
    check_ran,
    columns_of,
    layer_statistics,
)
from moeworks.edit.collecting.blocks import Blocks, open_blocks
from moeworks.edit.collecting.corpus import Corpus, read_corpus
from moeworks.edit.collecting.cost import Cost, LayerSize, cost_of
from moeworks.edit.collecting.gather import LayerGather
from moeworks.edit.collecting.replay import Inputs, Replay
from moeworks.edit.collecting.state import settings_hash
from moeworks.edit.collecting.taps import Layout, Tap, new_gather
from moeworks.edit.in_memory import read_layer, write_layer
from moeworks.edit.layer import LayerWeights
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.statistics_file import (
    FORMAT,
    VERSION,
    LayerEntry,
    Statistics,
    StatisticsHeader,
    rows_file,
    save_layer,
    write_header,
)
from moeworks.engines.progress import Progress
from moeworks.engines.transformers.loading import hash_tokenizer
from moeworks.engines.transformers.tokens import Long, Reader
from moeworks.errors import BadData, Unsupported
from moeworks.examples import Example
from moeworks.families import Router, discover

__all__ = ["PROGRESS", "Change", "stream"]

PROGRESS = "progress.json"
# What becomes of a layer, from its statistics and its weights; later layers see the result.
Change = Callable[[LayerStatistics, LayerWeights], LayerWeights]


def stream(
    source: str | Path | Checkpoint,
    examples: Iterable[Example],
    folder: str | Path,
    *,
    label: str | None = None,
    groups: Sequence[str] = ("cheap", "router"),
    rows: int = 0,
    batch_size: int = 8,
    change: Change | None = None,
    resume: bool = False,
    seed: int = 0,
    long: Long = "truncate",
    dtype: str = "auto",
    device: str = "cpu",
    command: str = "",
    progress: bool = False,
    announce: Callable[[Cost], None] | None = None,
) -> Statistics:
    """Collect the statistics of a checkpoint with one decoder layer in memory at a time.

    A killed run goes on with the layer that it was at. Options not named here are those of `collect`.

    Args:
        source: `lab`, a folder with safetensors or a Hub id, or an open checkpoint.
        examples: the texts.
        folder: where the statistics go; until the end also two files with the inputs of a layer.
        label, groups, rows, batch_size, seed, long, command, progress: as of `collect`; `gradients` is not possible.
        change: what to do with a layer once its statistics are there; its outputs, which the next layer reads, are then
            those of the changed layer. With `resume` it is not called again for layers that are done.
        resume: go on with an unfinished run of the same model, texts and options.
        dtype, device: what layers run in and on; the inputs on disk have this dtype.
        announce: called with the cost before anything runs.

    Raises:
        BadData: as `collect`; or weights are missing in the checkpoint.
        Unsupported: gradients, quantised weights, or layers that are given more than hidden states of earlier ones.
    """
    if "gradients" in groups:
        raise Unsupported(
            "gradients need the whole model in memory at once; leave them out, or collect without streaming."
        )
    names = columns_of(groups)
    target = check_folder(folder, resume=resume)
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    blocks = open_blocks(checkpoint, dtype=dtype, device=device)
    corpus = read_corpus(_reader(blocks), examples, target / TEXTS, label=label, long=long)
    run = Run(corpus, target, names, tuple(groups), rows, seed, resume)
    if announce is not None:
        hidden = blocks.model.config.get_text_config().hidden_size
        announce(
            cost_of(
                corpus,
                _sizes(blocks, hidden),
                names,
                batch_size,
                len(run.chosen),
                replay=hidden * blocks.model.dtype.itemsize,
            )
        )
    settings = settings_hash(
        weights=checkpoint.files.fingerprint,
        texts=corpus.text_hash,
        tokens=corpus.tokens,
        label=label,
        groups=sorted(groups),
        rows=rows,
        batch_size=batch_size,
        seed=seed,
        long=long,
        dtype=str(blocks.model.dtype),
        changed=change is not None,
    )
    state = _load(target, settings) if resume else None
    job = _Job(blocks, corpus, run, target, settings, batch_size, change, progress)
    job.go_on(state or job.begin())
    header = StatisticsHeader(
        format=FORMAT,
        version=VERSION,
        moeworks=moeworks.__version__,
        model=job.identity(),
        engine=_engine(blocks),
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
        settings={"batch_size": batch_size, "long": long, "streamed": True, "changed": change is not None},
        layers=tuple(job.entries),
    )
    statistics = write_header(target, header)
    for leftover in (PROGRESS, TEXTS, *_INPUTS):
        (target / leftover).unlink(missing_ok=True)
    return statistics


_INPUTS = ("inputs-0.bin", "inputs-1.bin")


class _Job:
    """One streamed collection: what is done is in `progress.json`, layer by layer."""

    def __init__(
        self,
        blocks: Blocks,
        corpus: Corpus,
        run: Run,
        folder: Path,
        settings: str,
        batch_size: int,
        change: Change | None,
        progress: bool,
    ) -> None:
        self._blocks, self._corpus, self._run, self._folder = blocks, corpus, run, folder
        self._settings, self._change, self._progress = settings, change, progress
        self._batches = corpus.batches(batch_size)
        self._replay = Replay(blocks.model, blocks.layers)
        self._layout = Layout()
        self._weight_hash = ""
        self._tail: list[int] = []
        self._shapes: list[LayerShape] = []
        self.entries: list[LayerEntry] = []

    def identity(self) -> ModelIdentity:
        """Return the identity of the model as it is on disk, the one that a loaded model has."""
        return ModelIdentity(
            name=self._blocks.checkpoint.name,
            family=str(self._blocks.model.config.model_type),
            weight_hash=self._weight_hash,
            tokenizer_hash=hash_tokenizer(self._blocks.tokenizer),
            layers=tuple(self._shapes),
        )

    def begin(self) -> dict[str, Any]:
        """Hash the weights, embed all texts, and return the first state."""
        with Progress("hashing weights", "parts", total=len(self._blocks.layers) + 3, show=self._progress) as bar:
            self._weight_hash = self._blocks.weight_hash(lambda part: bar.advance(1))
        first = self._replay.embed(self._tensors(0)[0])
        self._tail = list(first.shape[2:])
        with self._inputs(0).writing() as write:
            for number in range(len(self._batches)):
                write(self._replay.embed(self._tensors(number)[0]))
        return self._save(0)

    def go_on(self, state: dict[str, Any]) -> None:
        """Run the layers that are left."""
        self._weight_hash, self._tail = state["weight_hash"], state["tail"]
        self._replay.parts = state["parts"]
        self._shapes = [LayerShape.model_validate(shape) for shape in state["shapes"]]
        self.entries = [LayerEntry.model_validate(entry) for entry in state["entries"]]
        last = max(layer.layer for layer in _declared(self._blocks))
        tokens = self._corpus.tokens
        with Progress("collecting", "layers", total=last + 1, rated="tokens", show=self._progress) as bar:
            bar.advance(state["done"], rated=0)
            for number in range(state["done"], last + 1):
                if not self._inputs(number).whole():
                    raise BadData(f"{self._folder} lacks the inputs of layer {number}; remove it and collect again.")
                self._layer(number, last=number == last)
                self._save(number + 1)
                bar.advance(1, rated=tokens)

    def _layer(self, number: int, *, last: bool) -> None:
        blocks, device = self._blocks, self._blocks.device
        blocks.load(number)
        try:
            self._replay.check(number, self._tensors(0)[0])
            routers = discover(blocks.model, layers={number})
            if not routers:
                self._pass(number, None, write=not last)
                return
            (router,) = routers
            run = self._run
            gather = new_gather(router, len(self._corpus.names), run.names, sets="sets" in run.groups)
            keep = run.keep if len(run.chosen) else None
            tap = Tap(blocks.model, router, gather, self._layout, keep)
            with attached([tap]):
                self._pass(number, tap, write=self._change is None and not last)
            run.flush()
            kept = rows_file(self._folder, number) if len(run.chosen) else None
            statistics = layer_statistics(gather, self._corpus, device, kept)
            if self._change is not None:
                write_layer(router, self._change(statistics, read_layer(router)))
                if not last:
                    self._pass(number, None, write=True)
            self._shapes.append(_shape(router, gather))
            self.entries.append(save_layer(self._folder, statistics, rows=len(run.chosen)))
        finally:
            blocks.free(number)

    def _pass(self, number: int, tap: Tap | None, *, write: bool) -> None:
        """Run all batches through a layer; with `tap` they are looked at, with `write` its outputs are kept."""
        inputs = self._inputs(number)
        if not write:
            for batch in range(len(self._batches)):
                self._run_batch(number, batch, inputs, tap)
            return
        with self._inputs(number + 1).writing() as keep:
            for batch in range(len(self._batches)):
                keep(self._run_batch(number, batch, inputs, tap))

    def _run_batch(self, number: int, batch: int, inputs: Inputs, tap: Tap | None) -> Tensor:
        tensors, labels, tokens = self._tensors(batch)
        self._layout.labels, self._run.tokens = labels, tokens
        if tap is not None:
            tap.begin()
        output = self._replay.run(number, tensors, inputs.read(batch).to(self._blocks.device))
        if tap is not None:
            check_ran([tap])
        return output

    def _tensors(self, number: int) -> tuple[dict[str, Tensor], Tensor, Any]:
        """Return the model's arguments of a batch, the label and the token number of each flat row."""
        batch = self._corpus.batch(self._batches[number])
        labels, tokens = self._corpus.rows_of(batch)
        pad = self._blocks.tokenizer.pad_token_id
        pad = pad if pad is not None else self._blocks.tokenizer.eos_token_id or 0
        device = self._blocks.device
        return batch.tensors(int(pad), device), torch.from_numpy(labels).to(device), tokens

    def _inputs(self, number: int) -> Inputs:
        sizes = [(len(texts), int(self._corpus.lengths[texts].max())) for texts in self._batches]
        return Inputs(self._folder / _INPUTS[number % 2], sizes, self._tail, self._blocks.model.dtype)

    def _save(self, done: int) -> dict[str, Any]:
        state = {
            "settings": self._settings,
            "done": done,
            "weight_hash": self._weight_hash,
            "tail": self._tail,
            "parts": self._replay.parts,
            "shapes": [shape.model_dump(mode="json") for shape in self._shapes],
            "entries": [entry.model_dump(mode="json") for entry in self.entries],
        }
        with replace_file(self._folder / PROGRESS) as temporary:
            temporary.write_text(json.dumps(state) + "\n", encoding="utf-8")
        return state


def _load(folder: Path, settings: str) -> dict[str, Any] | None:
    path = folder / PROGRESS
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = json.loads(path.read_text("utf-8"))
        known = state["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{path} is damaged ({error}); remove the folder and collect again.") from None
    if known != settings:
        raise BadData(
            f"{path} is of a collection with another model, other texts or other options; repeat these, or remove the "
            "folder to begin anew."
        )
    return state


def _declared(blocks: Blocks) -> list[Any]:
    from moeworks.families.declarations import declared_routers

    return declared_routers(blocks.model)[0]


def _sizes(blocks: Blocks, hidden: int) -> list[LayerSize]:
    """Return the sizes of the layers with experts, from headers alone."""
    sizes = []
    for shape in blocks.checkpoint.identity().layers:
        layer = blocks.layers[shape.layer]
        down = next((p for name, p in layer.named_parameters() if name.endswith("experts.down_proj")), None)
        neurons = 0 if down is None else down.numel() // (len(down) * hidden)
        sizes.append(LayerSize(shape.experts, shape.top_k, hidden, neurons, blocks.model.dtype.itemsize))
    return sizes


def _shape(router: Router, gather: LayerGather) -> LayerShape:
    return LayerShape(
        layer=router.layer,
        experts=router.experts,
        top_k=router.top_k,
        contract=router.contract,
        opaque=router.opaque,
        neurons=None if gather.inner is None else gather.inner.neurons,
    )


def _reader(blocks: Blocks) -> Reader:
    config, tokenizer = blocks.model.config.get_text_config(), blocks.tokenizer
    limits = (getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None))
    context = min((limit for limit in limits if limit), default=2**31)
    return Reader(tokenizer, context, bool(blocks.settings.get("add_bos", False)))


def _engine(blocks: Blocks) -> EngineIdentity:
    import transformers

    return EngineIdentity(
        name="transformers",
        version=f"{transformers.__version__} (torch {torch.__version__})",
        dtype=str(blocks.model.dtype).removeprefix("torch."),
        device=str(blocks.device),
    )
