"""Patching: how much of what a clean prompt does comes back when part of its experts' work is put into a corrupt one.

Source: recall and reasoning patching (arXiv 2510.03366), of which the abstract was read; the procedure is recalled, not
read: paired clean and corrupt prompts, one component's activation patched at aligned positions,

    effect = (m patched - m corrupt) / (m clean - m corrupt),   m = logit(correct) - logit(distractor)

after the last token; then the top components of each kind of task are ablated and both accuracies compared. The paper
patches layers, heads and neurons of dense models. Here the components are what a mixture of experts adds: a layer's
routed output or one expert's share of it, and three arms take decision and activations apart (`routing`, `output`,
`joint`, see `moeworks.engines.transformers.patch`). Routing alone is the clean test of whether routing carries a
behaviour. Effects of layers and experts do not add up: what one restores another may restore as well.

A pair whose clean and corrupt runs say nearly the same gives a ratio of two roundings; it is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from moeworks.address import Address
from moeworks.engines.progress import Progress
from moeworks.errors import BadData, Unsupported
from moeworks.plan.evidence import Interval
from moeworks.prove.pairs import Pair, Ready, prepare
from moeworks.prove.resample import Resamples, document_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.engines.transformers.patch import Arm, PairRun

__all__ = ["ARMS", "SMALLEST", "Patched", "Patching", "can_patch", "expert_effects", "patch", "ratios"]

Array = NDArray[np.float64]
ARMS: tuple[Arm, ...] = ("routing", "output", "joint")
SMALLEST = 0.1  # logits between clean and corrupt below which a pair says nothing


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Patched(_Frozen):
    """One component, patched in one arm."""

    arm: Literal["routing", "output", "joint"]
    component: str = Field(description="all layers, layer 3, or L3.E5")
    effect: Interval = Field(description="0: as corrupt, 1: as clean; mean over pairs, bootstrap over documents")


class Patching(_Frozen):
    """What patching gave."""

    pairs: int = Field(description="pairs that were measured")
    refused: int = Field(description="pairs left out, since clean and corrupt say nearly the same")
    documents: int
    clean: float = Field(description="mean logit(correct) - logit(distractor) after the clean prompts")
    corrupt: float = Field(description="the same after the corrupt prompts")
    effects: tuple[Patched, ...]

    def effect(self, arm: str, component: str) -> Interval:
        """Return the effect of one component in one arm."""
        for row in self.effects:
            if (row.arm, row.component) == (arm, component):
                return row.effect
        raise BadData(f"{component} was not patched in arm {arm}.")


def patch(
    engine: Engine,
    pairs: Sequence[Pair],
    *,
    arms: Sequence[Arm] = ARMS,
    experts: int = 0,
    smallest: float = SMALLEST,
    bootstrap: int = 1000,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Patching:
    """Patch every layer, all layers at once and, if asked, the strongest experts.

    Args:
        engine: the model; what is measured is the plain one.
        pairs: prompts of equal length in tokens, with two answers of one token.
        arms: what is taken from the clean run.
        experts: how many experts to report for each arm, those with the largest absolute effect. All that run are
            patched for it: one forward pass a batch each.
        smallest: pairs whose clean and corrupt margins differ by less than this are left out.
        bootstrap: samples of the intervals.
        batch_size: pairs a forward pass.
        seed: of the bootstrap.
        progress: show a bar on standard error.

    Raises:
        BadData: pairs are not aligned, or none is left.
        Unsupported: the engine or the family cannot swap what the experts do.
    """
    running = can_patch(engine)
    if not arms:
        raise BadData("say which arms to patch: routing, output or joint.")
    ready = prepare(running, pairs)
    margins: dict[tuple[Arm, str], Array] = {}
    clean, corrupt = np.empty(len(ready)), np.empty(len(ready))
    with Progress("patching", "pairs", total=len(ready), show=progress) as bar:
        for rows, run in _batches(running, ready, batch_size):
            measure = _margins([ready[row] for row in rows])
            clean[rows], corrupt[rows] = measure(run.clean), measure(run.corrupt)
            for arm in arms:
                for name, layers in (("all layers", run.layers), *((f"layer {n}", [n]) for n in run.layers)):
                    values = margins.setdefault((arm, name), np.full(len(ready), np.nan))
                    values[rows] = measure(run.patched(arm, layers))
                for address in _running(run) if experts else ():
                    values = margins.setdefault((arm, str(address)), np.full(len(ready), np.nan))
                    values[rows] = measure(run.patched_expert(arm, address))
            bar.advance(len(rows))
    kept = np.abs(clean - corrupt) >= smallest
    if not kept.any():
        raise BadData(
            f"none of the {len(ready)} pairs tells clean from corrupt by {smallest:g} logits; the model does not show "
            "the behaviour on them."
        )
    documents = document_numbers([pair.document for pair, keep in zip(pairs, kept, strict=True) if keep])
    resamples = Resamples(documents, samples=bootstrap, seed=seed)
    effects: list[Patched] = []
    for (arm, name), values in margins.items():
        values = np.where(np.isnan(values), corrupt, values)  # an expert that runs in neither run: nothing to swap
        found = resamples.interval(ratios(values, clean, corrupt)[kept])
        effects.append(Patched(arm=arm, component=name, effect=found))
    return Patching(
        pairs=int(kept.sum()),
        refused=int((~kept).sum()),
        documents=int(documents.max()) + 1,
        clean=float(clean[kept].mean()),
        corrupt=float(corrupt[kept].mean()),
        effects=tuple(_strongest(effects, experts)),
    )


def ratios(patched: Array, clean: Array, corrupt: Array) -> Array:
    """Return (patched - corrupt) / (clean - corrupt), one a pair; NaN where clean and corrupt are equal."""
    apart = clean - corrupt
    return np.divide(patched - corrupt, apart, out=np.full_like(apart, np.nan), where=apart != 0)


def expert_effects(
    engine: TransformersEngine,
    pairs: Sequence[Pair],
    *,
    arm: Arm = "joint",
    smallest: float = SMALLEST,
    batch_size: int = 16,
) -> dict[Address, float]:
    """Return the mean effect of every expert that runs, over the pairs that tell clean from corrupt."""
    ready = prepare(engine, pairs)
    sums: dict[Address, float] = {}
    count = 0
    for rows, run in _batches(engine, ready, batch_size):
        measure = _margins([ready[row] for row in rows])
        clean, corrupt = measure(run.clean), measure(run.corrupt)
        kept = np.abs(clean - corrupt) >= smallest
        count += int(kept.sum())
        for address in _running(run) if kept.any() else ():
            effect = ratios(measure(run.patched_expert(arm, address)), clean, corrupt)[kept].sum()
            sums[address] = sums.get(address, 0.0) + float(effect)
    if not count:
        raise BadData(f"none of the {len(pairs)} pairs tells clean from corrupt by {smallest:g} logits.")
    return {address: total / count for address, total in sums.items()}


def can_patch(engine: Engine) -> TransformersEngine:
    """Return the engine if it can swap what experts do, or raise Unsupported with the reason."""
    from moeworks.engines.capabilities import abilities

    reason = abilities(engine.engine.name)["patching"]
    if reason:
        raise Unsupported(f"engine {engine.engine.name} cannot patch: {reason}.")
    from moeworks.engines.transformers.engine import TransformersEngine

    assert isinstance(engine, TransformersEngine)
    return engine


def _batches(
    engine: TransformersEngine, ready: Sequence[Ready], batch_size: int
) -> Iterator[tuple[list[int], PairRun]]:
    """Yield the places and runs of batches of pairs, shortest first."""
    from moeworks.engines.transformers.patch import PairRun

    if batch_size < 1:
        raise BadData(f"a batch of {batch_size} pairs is not possible; batch_size is 1 or more.")
    order = sorted(range(len(ready)), key=lambda row: len(ready[row].clean.tokens))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        pairs = [ready[row] for row in rows]
        yield rows, PairRun(engine, [pair.clean for pair in pairs], [pair.corrupt for pair in pairs])


def _margins(pairs: Sequence[Ready]) -> Callable[[Tensor], Array]:
    """Return what takes (pairs, vocabulary) logits to logit(correct) - logit(distractor), (pairs,)."""
    rows = list(range(len(pairs)))
    correct, distractor = [pair.correct for pair in pairs], [pair.distractor for pair in pairs]

    def measure(logits: Tensor) -> Array:
        return (logits[rows, correct] - logits[rows, distractor]).double().cpu().numpy()

    return measure


def _running(run: PairRun) -> list[Address]:
    return [Address(layer, expert) for layer in run.layers for expert in run.running(layer)]


def _strongest(effects: Sequence[Patched], experts: int) -> list[Patched]:
    """Return all layers, and of each arm's experts the strongest."""
    kept = [row for row in effects if not row.component.startswith("L")]
    for arm in dict.fromkeys(row.arm for row in effects):
        single = [row for row in effects if row.arm == arm and row.component.startswith("L")]
        kept += sorted(single, key=lambda row: -abs(row.effect.value))[:experts]
    return kept
