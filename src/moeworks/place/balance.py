"""How unevenly GPUs would be loaded, with experts as they stand, with EPLB's copies, and with LLEP batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moeworks.errors import BadData
from moeworks.place.curve import split_documents
from moeworks.place.eplb import Placement, gpu_loads, imbalance, plain_placement, rebalance
from moeworks.place.llep import least_loaded
from moeworks.place.profile import Profile
from moeworks.stats.counts import add_runs, layers_of
from moeworks.stats.documents import draw_documents, percentiles
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["GpuBalance", "balance_experts", "balance_profile"]

Array = NDArray[Any]
_NOISE_DRAWS = 200
_OF_BATCHES = ("batch_plain", "batch_eplb", "batch_llep", "llep_moved", "llep_copies")


@dataclass(frozen=True)
class GpuBalance:
    """Imbalance of GPU loads, largest / mean, before and after; 1 is even.

    Attributes:
        table: a row per layer. `plain` (experts in their own order), `eplb` (placed by the loads of other documents)
            with intervals from resampled documents, `fitted` (placed by the measured documents themselves), `chance`
            (an even router with as many picks: what is above it is not noise); then means over batches:
            `batch_plain`, `batch_eplb`, `batch_llep`, and LLEP's share of tokens moved and copies sent a batch.
        placements: layer → EPLB's placement, one layer each.
        gpus, slots, groups, nodes, batch_tokens, batches: what was asked for; batches is how many were looked at.
        documents, calibration_documents, tokens: what was measured, and what the placement was made from.
    """

    table: pa.Table
    placements: dict[int, Placement]
    gpus: int
    slots: int
    groups: int
    nodes: int
    batch_tokens: int
    batches: int
    documents: int
    calibration_documents: int
    tokens: int

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        names = ("gpus", "slots", "groups", "nodes", "batch_tokens", "batches", "documents", "calibration_documents")
        return {
            **{name: getattr(self, name) for name in (*names, "tokens")},
            "rows": self.table.to_pylist(),
            "physical_to_logical": {
                layer: one.physical_to_logical[0].tolist() for layer, one in self.placements.items()
            },
        }


def balance_experts(
    trace: Trace,
    *,
    gpus: int,
    extra: int = 0,
    groups: int | None = None,
    nodes: int = 1,
    where: Where = Where(),
    batch_tokens: int = 4096,
    most_batches: int = 64,
    alpha: float = 1.0,
    fewest: int = 1024,
    threshold: float = 1.0,
    calibration_share: float = 0.5,
    bootstrap: int = 200,
    seed: int = 0,
) -> GpuBalance:
    """Measure GPU imbalance before and after placement, on other documents than the placement was made from.

    Args:
        trace: the trace.
        gpus: over how many GPUs experts are spread.
        extra: slots beyond one for each expert, over all GPUs.
        groups: groups of experts that EPLB keeps on one node; the router's own, unless given.
        nodes: machines.
        where: tokens and layers that count.
        batch_tokens: tokens of one batch, consecutive in the trace; what EPLB cannot know and LLEP reacts to.
        most_batches: batches looked at, spread evenly over the measured tokens.
        alpha, fewest, threshold: of LLEP, see `least_loaded`.
        calibration_share: share of the documents that EPLB sees.
        bootstrap, seed: of the resampled documents, the split and the noise level.

    Raises:
        BadData: numbers that do not divide, fewer than two documents, no token selected.
    """
    if batch_tokens < 1 or most_batches < 1:
        raise BadData("a batch has at least one token, and at least one batch is looked at.")
    layers = layers_of(trace, where)
    learned, measured = split_documents(trace, where=where, share=calibration_share, seed=seed)
    requests, of_request = trace.request_table(), trace.documents()
    side = np.full(int(of_request.max()) + 1, -1)
    side[measured] = np.arange(len(measured))
    side[learned] = len(measured)  # all together in one entry
    rows = trace.rows()
    kept = where.mask(rows, requests)
    entry = np.where(kept, side[of_request[rows.request]], -1)  # (n,)
    tokens = np.flatnonzero((entry >= 0) & (entry < len(measured)))
    whole = max(1, len(tokens) // batch_tokens)
    looked_at = np.unique(np.linspace(0, whole - 1, min(whole, most_batches)).round().astype(np.int64))
    batch = np.full(len(rows), -1)
    batch[tokens] = np.arange(len(tokens)) // batch_tokens
    number = np.full(whole + 1, -1)
    number[looked_at] = np.arange(len(looked_at))
    batch = np.where(batch >= 0, number[np.minimum(batch, whole)], -1)
    lines, placements = [], {}
    used_groups = 1
    for layer, experts in layers.items():
        contract = trace.header.shape_of(layer).contract
        used_groups = groups if groups is not None else (contract.groups if contract is not None else 1)
        runs = np.zeros((len(measured) + 1, experts))
        batches = np.zeros((len(looked_at), experts))
        begin = 0
        for part in trace.parts:
            here = slice(begin, begin + len(part))
            add_runs(runs, entry[here], part.ids(layer), part.weights(layer))
            add_runs(batches, batch[here], part.ids(layer), part.weights(layer))
            begin += len(part)
        plan: dict[str, Any] = {"replicas": experts + extra, "gpus": gpus, "groups": used_groups, "nodes": nodes}
        line, placement = _compare(runs[:-1], runs[-1], plan, bootstrap, seed)
        placements[layer] = placement
        plain = plain_placement(1, experts, gpus)
        least = [least_loaded(one, gpus=gpus, alpha=alpha, fewest=fewest, threshold=threshold) for one in batches]
        line = {
            "layer": layer,
            **line,
            "batch_plain": float(imbalance(gpu_loads(batches[:, None], plain)).mean()),
            "batch_eplb": float(imbalance(gpu_loads(batches[:, None], placement)).mean()),
            "batch_llep": float(np.mean([imbalance(one.loads) for one in least])),
            "llep_moved": float(sum(one.moved_tokens for one in least) / max(1.0, batches.sum())),
            "llep_copies": float(np.mean([one.moved_experts for one in least])),
        }
        lines.append(line)
    return GpuBalance(
        table=pa.Table.from_pylist(lines),
        placements=placements,
        gpus=gpus,
        slots=max(layers.values()) + extra,
        groups=used_groups,
        nodes=nodes,
        batch_tokens=batch_tokens,
        batches=len(looked_at),
        documents=len(measured),
        calibration_documents=len(learned),
        tokens=len(tokens),
    )


def balance_profile(
    profile: Profile,
    *,
    gpus: int,
    extra: int = 0,
    groups: int | None = None,
    nodes: int = 1,
    bootstrap: int = 200,
    seed: int = 0,
) -> GpuBalance:
    """Return the same of a profile with blocks of forward passes: the first half places, the second is measured.

    Columns of batches are NaN: a profile keeps no batch.

    Raises:
        BadData: the profile has fewer than two blocks, or numbers that do not divide.
    """
    lines, placements = [], {}
    used_groups = 1
    measured = learned = tokens = 0
    for layer in profile.layers:
        blocks = np.array(layer.blocks, np.float64)  # (b, E)
        if len(blocks) < 2:
            raise BadData(
                f"layer {layer.layer} of this profile has {len(blocks)} blocks of passes; a placement is measured on "
                "others than it is made from, which needs two. Measure it on a trace."
            )
        shape = next((one for one in (profile.model.layers if profile.model else ()) if one.layer == layer.layer), None)
        contract = shape.contract if shape is not None else None
        used_groups = groups if groups is not None else (contract.groups if contract is not None else 1)
        learned = len(blocks) // 2
        measured = len(blocks) - learned
        plan: dict[str, Any] = {"replicas": layer.experts + extra, "gpus": gpus, "groups": used_groups, "nodes": nodes}
        line, placements[layer.layer] = _compare(blocks[learned:], blocks[:learned].sum(0), plan, bootstrap, seed)
        tokens = round(blocks[learned:].sum() / layer.top_k)
        lines.append({"layer": layer.layer, **line, **dict.fromkeys(_OF_BATCHES, float("nan"))})
    return GpuBalance(
        table=pa.Table.from_pylist(lines),
        placements=placements,
        gpus=gpus,
        slots=max(layer.experts for layer in profile.layers) + extra,
        groups=used_groups,
        nodes=nodes,
        batch_tokens=0,
        batches=0,
        documents=measured,
        calibration_documents=learned,
        tokens=tokens,
    )


def _compare(
    runs: Array, learned: Array, plan: dict[str, Any], bootstrap: int, seed: int
) -> tuple[dict[str, Any], Placement]:
    """Return columns of one layer and EPLB's placement: measured runs (d, E), those it was made from (E,)."""
    placement = rebalance(learned[None], **plan)
    plain = plain_placement(1, len(learned), plan["gpus"])
    fitted = rebalance(runs.sum(0, keepdims=True), **plan)
    line: dict[str, Any] = {}
    for name, one in (("plain", plain), ("eplb", placement)):
        value, low, high = _with_interval(runs, one, bootstrap, seed)
        line |= {name: value, f"{name}_low": low, f"{name}_high": high}
    line |= {
        "fitted": float(imbalance(gpu_loads(runs.sum(0)[None], fitted))[0]),
        "chance": _even(int(runs.sum()), plan["gpus"], seed),
    }
    return line, placement


def _with_interval(runs: Array, placement: Placement, bootstrap: int, seed: int) -> tuple[float, float, float]:
    """Return imbalance over all documents, (d, E), and its interval over resampled ones."""
    value = imbalance(gpu_loads(runs.sum(0)[None], placement))[0]
    drawn = [
        imbalance(gpu_loads((times @ runs)[:, None], placement))[:, 0]
        for times in draw_documents(len(runs), samples=bootstrap, seed=seed)
    ]
    low, high = percentiles(np.concatenate(drawn), len(runs))
    return float(value), float(low), float(high)


def _even(picks: int, gpus: int, seed: int) -> float:
    """Return the mean imbalance of `picks` independent picks that fall on each GPU equally often."""
    drawn = np.random.default_rng([seed, 23]).multinomial(picks, np.full(gpus, 1 / gpus), _NOISE_DRAWS)
    return float(imbalance(drawn.astype(float)).mean())
