"""What a plan would do to the decisions of a trace, without running the model.

Each layer is looked at on its own, on the logits that the model had without the plan: an edit in one layer changes what
later layers see, and that only a run shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.artefact import LayerShape
from moeworks.contract import decide
from moeworks.errors import BadTrace
from moeworks.plan.compiled import CompiledEdit, LayerEdit, compile_plan
from moeworks.plan.gate import opened_requests
from moeworks.plan.guards import check
from moeworks.plan.operations import apply_edits
from moeworks.plan.schema import Plan

if TYPE_CHECKING:
    from moeworks.trace import Part, Trace

__all__ = ["DryRun", "LayerReport", "dry_run"]

Array = NDArray[Any]
ROWS = 16_384  # rows looked at together; bounds memory whatever the trace


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What happens in one layer, counted over the rows that the plan's clauses take there."""

    layer: int
    rows: int
    changed: int | None  # rows in which other experts run; None where that cannot be said
    reweighed: int | None  # rows in which the same experts run with other weights; None where that cannot be said
    share_before: dict[int, float]  # listed expert → share of rows in which it runs
    share_after: dict[int, float | None]  # None where that cannot be said
    takeover: dict[int, float]  # other expert → gain of its share, largest first, where it can be said
    not_reproduced: int  # rows left out: their logits do not give the recorded experts (near-ties, or an edited run)
    unknown: str = ""  # why something cannot be said
    neurons: dict[int, int] = field(default_factory=dict)  # expert → how many of its neurons change where it runs


@dataclass(frozen=True)
class DryRun:
    """What a plan would do to the decisions of a trace, layer by layer."""

    layers: tuple[LayerReport, ...]

    def __str__(self) -> str:
        lines = ["Each layer on its own; what an edit changes in later layers only a run of the model shows."]
        return "\n".join([*lines, *map(_line, self.layers)])


def dry_run(
    plan: Plan,
    trace: Trace,
    *,
    arrays: Mapping[int, Mapping[str, Array]] | None = None,
    hash_override: str | None = None,
) -> DryRun:
    """Report how many decisions a plan changes, what becomes of the listed experts' shares, and who takes over.

    With logits in the trace the numpy reference is run on them. Without, only what needs none is said: a demoted or
    masked expert's rows change, a promoted expert's other rows do, who takes over is not known. Where the plan has a
    gate, only the rows of requests for which it opens are counted; the trace must be one of the plain model then.

    Args:
        plan: what would be run.
        trace: decisions of the same model without it.
        arrays: layer → `bias` and `expert_scale`, (E,) each, for routers that have them; a trace does not hold them.
        hash_override: as in `check`.

    Raises:
        BadPlan: the plan does not fit the trace's model.
        BadTrace: the trace does not say which model it is of.
        Unsupported: the plan's gate looks at the residual stream, which no trace holds.
    """
    model = trace.header.model
    if model is None:
        raise BadTrace("the trace does not say which model it is of; nothing can be run on it.")
    check(plan, model, hash_override=hash_override)
    edits = compile_plan(plan, model)
    layers = sorted({layer for edit in edits for layer in edit.layers})
    counts = [_Count(model.layer(layer), edits, trace, (arrays or {}).get(layer, {})) for layer in layers]
    opened = None if plan.gate is None else opened_requests(plan.gate, trace)  # (requests,)
    for part in trace.parts:
        masks = _masks(edits, part, trace)
        if opened is not None:
            here = opened[part.rows().request]
            masks = [mask & here for mask in masks]
        for count in counts:
            count.add(part, masks)
    return DryRun(tuple(count.report() for count in counts))


def _masks(edits: Sequence[CompiledEdit], part: Part, trace: Trace) -> list[Array]:
    rows, requests = part.rows(), trace.request_table()
    return [edit.where.mask(rows, requests) for edit in edits]


class _Count:
    """Counts of one layer, part by part."""

    def __init__(
        self, shape: LayerShape, edits: Sequence[CompiledEdit], trace: Trace, values: Mapping[str, Array]
    ) -> None:
        self.shape, self.values = shape, values
        self.edits: list[tuple[int, LayerEdit]] = [
            (index, edit.layers[shape.layer]) for index, edit in enumerate(edits) if shape.layer in edit.layers
        ]
        self.reason = self._reason(trace)
        self.rows = self.changed = self.reweighed = self.not_reproduced = 0
        self.pinned = np.zeros(shape.experts, np.int64)  # rows in which the plan says whether an expert runs
        self.before = np.zeros(shape.experts, np.int64)
        self.after = np.zeros(shape.experts, np.int64)

    def _reason(self, trace: Trace) -> str:
        """Return why the reference cannot be run on this layer, or an empty string."""
        contract = self.shape.contract
        if contract is None:  # the guard lets only operations on neurons through
            return f"the router has no proved contract ({self.shape.opaque or 'no reason is given'})"
        if any(edit.replay is not None for _, edit in self.edits):
            return "what a replayed trace would bring is seen in that trace"
        if not trace.header.logits:
            return "the trace has no logits; record it with logits"
        needed = [name for name in ("bias", "expert_scale") if getattr(contract, name) and name not in self.values]
        return f"the router's {' and '.join(needed)} must be given as arrays" if needed else ""

    @property
    def by_guarantee(self) -> bool:
        """Whether the guards alone say which rows change: nothing is added, replayed or resized."""
        return not any(edit.adds or edit.top_k is not None or edit.replay is not None for _, edit in self.edits)

    def add(self, part: Part, masks: Sequence[Array]) -> None:
        active = np.any([masks[index] for index, _ in self.edits], axis=0)
        taken = np.flatnonzero(active)
        ids, weights = part.ids(self.shape.layer), part.weights(self.shape.layer)
        logits = None if self.reason else part.logits(self.shape.layer)
        for start in range(0, len(taken), ROWS):
            rows = taken[start : start + ROWS]
            here = [(edit, masks[index][rows]) for index, edit in self.edits]
            running = _running(ids[rows], weights[rows], self.shape.experts)
            if logits is None:
                on, off = _pins(here, self.shape.experts)
                self.pinned += (on | off).sum(0)
                self._enter(running, (running | on) & ~off, None)
            else:
                self._decide(logits[rows], ids[rows], running, here)

    def _decide(self, logits: Array, ids: Array, recorded: Array, edits: list[tuple[LayerEdit, Array]]) -> None:
        contract = self.shape.contract
        assert contract is not None
        bias = self.values["bias"] if contract.bias else None
        scale = self.values["expert_scale"] if contract.expert_scale else None
        given = ids.astype(np.int64) if contract.hashed else None
        own = decide(logits, contract, bias=bias, expert_scale=scale, ids=given)
        new = apply_edits(logits, contract, edits, bias=bias, expert_scale=scale, ids=given)
        before = _running(own.ids, own.weights, contract.experts)
        after = _running(new.ids, new.weights, contract.experts)
        weighed = np.abs(
            _dense(own.ids, own.weights, contract.experts) - _dense(new.ids, new.weights, contract.experts)
        )
        same = (before == recorded).all(-1)
        self.not_reproduced += int((~same).sum())
        self._enter(before[same], after[same], weighed[same].max(-1, initial=0) > 1e-6)

    def _enter(self, before: Array, after: Array, reweighed: Array | None) -> None:
        self.rows += len(before)
        changed = (before != after).any(-1)
        self.changed += int(changed.sum())
        self.reweighed += 0 if reweighed is None else int((reweighed & ~changed).sum())
        self.before += before.sum(0)
        self.after += after.sum(0)

    def report(self) -> LayerReport:
        rows = max(self.rows, 1)
        listed = np.zeros(self.shape.experts, bool)
        for _, edit in self.edits:
            listed |= edit.promote | edit.demote | edit.masked | (edit.add_logit != 0) | (edit.add_std != 0)
            listed |= edit.add_spread != 0
            for step in edit.weight_steps:
                listed |= step.factor != 1
            listed[[step.expert for step in edit.neurons]] = True
        known = not self.reason
        said = known or self.by_guarantee
        # Without logits, an expert that is not pinned in some rows may take over there, if anything is refilled at all.
        moves = any(edit.edits_choice for _, edit in self.edits)
        certain = known | (said & ((self.pinned == self.rows) | (not moves)))  # (E,)
        gains = (self.after - self.before) / rows
        takers = [e for e in np.argsort(-gains, kind="stable") if known and gains[e] > 0 and not listed[e]]
        names = np.flatnonzero(listed)
        return LayerReport(
            layer=self.shape.layer,
            rows=self.rows,
            changed=self.changed if said else None,
            reweighed=self.reweighed if known else None,
            share_before={int(e): float(self.before[e] / rows) for e in names},
            share_after={int(e): float(self.after[e] / rows) if certain[e] else None for e in names},
            takeover={int(e): float(gains[e]) for e in takers},
            not_reproduced=self.not_reproduced,
            unknown=self.reason,
            neurons={expert: len(numbers) for expert, numbers in sorted(_neurons(self.edits).items())},
        )


def _dense(ids: Array, weights: Array, experts: int) -> Array:
    dense = np.zeros((len(ids), experts))  # (n, E)
    np.add.at(dense, (np.arange(len(ids))[:, None], ids), weights)
    return dense


def _running(ids: Array, weights: Array, experts: int) -> Array:
    """Return which experts run, (n, E): those in a slot whose weight is not exactly 0."""
    running = np.zeros((len(ids), experts), bool)
    row, slot = np.nonzero(weights)
    running[row, ids[row, slot]] = True
    return running


def _neurons(edits: Sequence[tuple[int, LayerEdit]]) -> dict[int, set[int]]:
    """Return which neurons of which expert change under any clause."""
    found: dict[int, set[int]] = {}
    for _, edit in edits:
        for step in edit.neurons:
            found.setdefault(step.expert, set()).update(step.neurons.tolist())
    return found


def _pins(edits: list[tuple[LayerEdit, Array]], experts: int) -> tuple[Array, Array]:
    """Return which experts run for certain, (n, E), the promoted ones; and which do not: demoted, masked, zeroed."""
    on = np.zeros((len(edits[0][1]), experts), bool)
    off = on.copy()
    for edit, rows in edits:
        out = edit.demote | edit.masked
        for step in edit.weight_steps:
            out = out | (step.factor == 0)
        on |= rows[:, None] & edit.promote
        off |= rows[:, None] & out
    return on, off


def _line(report: LayerReport) -> str:
    text = f"Layer {report.layer}: "
    if report.changed is None:
        text += f"how many of {report.rows} decisions change cannot be said"
    else:
        text += f"other experts run in {report.changed} of {report.rows} decisions"
    if report.reweighed:
        text += f", the same with other weights in {report.reweighed}"
    shares = [
        f"E{expert} {share:.1%} → {'?' if (after := report.share_after[expert]) is None else f'{after:.1%}'}"
        for expert, share in report.share_before.items()
    ]
    text += f"; {', '.join(shares)}" if shares else ""
    if report.neurons:
        inside = ", ".join(f"{count} of E{expert}" for expert, count in report.neurons.items())
        text += f"; neurons change where their expert runs: {inside}"
    takers = [f"E{expert} +{gain:.1%}" for expert, gain in list(report.takeover.items())[:5]]
    text += f"; taken over by {', '.join(takers)}" if takers else ""
    if report.not_reproduced:
        text += f"; {report.not_reproduced} rows left out, their logits do not give the recorded experts"
    return f"{text}. {f'Who takes over is not known: {report.unknown}.' if report.unknown else ''}".rstrip()
