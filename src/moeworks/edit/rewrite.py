"""From a plan and a checkpoint to how each layer is rewritten: which experts stay, copied or made anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from moeworks.edit.checkpoint.layout import LayerLayout
from moeworks.edit.checkpoint.source import Checkpoint
from moeworks.edit.plan import EditPlan, LayerCut
from moeworks.edit.transforms import transform_keeps_width

__all__ = [
    "CheckpointFormat",
    "MergeLayout",
    "Options",
    "Rewrite",
    "Tables",
    "counts",
    "kept_experts",
    "merges",
    "rewrite_of",
    "rewrites",
    "without_extra",
]

MergeLayout = Literal["rows", "copies"]
CheckpointFormat = Literal["stock", "uneven"]
Tables = Literal["refuse", "replace"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a plan is written down.

    Attributes:
        layout: of merged experts: one router row for each (`rows`), or all members with their own rows and the same
            weights (`copies`), which is the exact form of many rows to one expert and saves nothing.
        pad: fill poorer layers up with experts that are never chosen.
        format: `stock` has one number of experts; `uneven` is for `moeworks.edit.uneven.load_edited` alone.
        tables: whether tokens whose expert goes from a table of token ids get the most similar one that stays.
        expert_parallel: the number of experts must be a multiple of this.
    """

    layout: MergeLayout = "rows"
    pad: bool = False
    format: CheckpointFormat = "stock"
    tables: Tables = "refuse"
    expert_parallel: int = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Rewrite:
    """One layer, rewritten.

    Attributes:
        layout: where it lies.
        cut: what the plan says of it, experts without weights left out; None: it says nothing.
        kept: old experts whose router rows stay, ascending; of merged ones all members in the layout `copies`.
        experts: number of experts in the end, padding among them.
        raw: whether tensors are copied expert by expert, whatever is in them.
        narrow: whether experts come to have the neurons alone that the cut lists.
        extra: whether it is a layer for multi-token prediction.
    """

    layout: LayerLayout
    cut: LayerCut | None
    kept: tuple[int, ...]
    experts: int
    raw: bool
    narrow: bool = True
    extra: bool = False

    @property
    def padding(self) -> int:
        """Experts that are added and never chosen."""
        return self.experts - len(self.kept)

    @property
    def neurons(self) -> int | None:
        """Neurons of each expert in the end, None as before."""
        lists = None if self.cut is None else self.cut.neurons
        return len(lists[0]) if lists and self.narrow else None


def rewrites(checkpoint: Checkpoint, plan: EditPlan, options: Options) -> list[Rewrite]:
    """Return how every layer with experts is rewritten; the plan's layers exist (see `moeworks.edit.refusals`)."""
    cuts = {cut.layer: without_extra(cut, checkpoint.layouts[cut.layer]) for cut in plan.layers}
    found = [_rewrite(checkpoint.layouts[layer], cuts.get(layer), plan, options.layout) for layer in checkpoint.layers]
    if plan.extra_layers == "same":
        kept = kept_experts(cuts[max(cuts)], options.layout)
        for layout in checkpoint.extra.values():  # a merge has no statistics of theirs: they are cut to the centres
            found.append(Rewrite(layout=layout, cut=None, kept=kept, experts=len(kept), raw=True, extra=True))
    if options.pad:
        most = max(rewrite.experts for rewrite in found)
        found = [replace(r, experts=most, raw=r.raw and r.experts == most) for r in found]
    return found


def without_extra(cut: LayerCut, layout: LayerLayout) -> LayerCut:
    """Return a cut that speaks of experts with weights alone; those beyond stay whatever it says."""
    if cut.experts == layout.experts:
        return cut
    inside = [i for i, expert in enumerate(cut.keep) if expert < layout.experts]
    changed: dict[str, Any] = {
        "experts": layout.experts,
        "keep": tuple(cut.keep[i] for i in inside),
        "order": tuple(expert for expert in cut.order if expert < layout.experts),
        "groups": None if cut.groups is None else tuple(cut.groups[i] for i in inside),
        "neurons": None if cut.neurons is None else tuple(cut.neurons[i] for i in inside),
    }
    return cut.model_copy(update=changed)


def merges(cut: LayerCut) -> bool:
    """Whether a cut makes one expert of several."""
    return any(len(group) > 1 for group in cut.groups or ())


def _rewrite(layout: LayerLayout, cut: LayerCut | None, plan: EditPlan, merge_layout: MergeLayout) -> Rewrite:
    if cut is None:
        everyone = tuple(range(layout.experts))
        return Rewrite(layout=layout, cut=None, kept=everyone, experts=layout.experts, raw=True)
    raw = plan.transform == "cut" and cut.neurons is None and not merges(cut)
    narrow = not transform_keeps_width(plan.transform)
    return replace(rewrite_of(layout, cut, kept_experts(cut, merge_layout)), raw=raw, narrow=narrow)


def rewrite_of(layout: LayerLayout, cut: LayerCut, kept: tuple[int, ...]) -> Rewrite:
    """Return the rewriting of a layer to the experts that are kept, made anew and without padding."""
    return Rewrite(layout=layout, cut=cut, kept=kept, experts=len(kept), raw=False)


def kept_experts(cut: LayerCut, merge_layout: MergeLayout) -> tuple[int, ...]:
    """Return the experts whose router rows stay: those that are kept, in the layout `copies` all members of groups."""
    if merge_layout == "rows" or not merges(cut):
        return cut.keep
    return tuple(sorted(expert for group in cut.groups or () for expert, _ in group))


def counts(found: list[Rewrite]) -> Mapping[int, int]:
    """Return layer → experts in the end, of the decoder's layers."""
    return {rewrite.layout.layer: rewrite.experts for rewrite in found if not rewrite.extra}
