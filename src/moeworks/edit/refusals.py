"""Everything that can speak against writing a plan into a checkpoint, found before anything is computed or written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moeworks.address import Address
from moeworks.artefact import LayerShape
from moeworks.edit.checkpoint.convert import unpack
from moeworks.edit.checkpoint.keys import Entry
from moeworks.edit.checkpoint.layout import LayerLayout
from moeworks.edit.checkpoint.source import Checkpoint
from moeworks.edit.outputs import meta_reader
from moeworks.edit.plan import EditPlan, LayerCut
from moeworks.edit.rewrite import Options, Rewrite, counts, merges, rewrites, without_extra
from moeworks.edit.transforms import TRANSFORMS, strange_options, transforms_with_statistics
from moeworks.errors import MoeworksError, Unsupported

__all__ = ["refusals", "width_entry"]


def refusals(
    checkpoint: Checkpoint,
    plan: EditPlan,
    options: Options,
    *,
    statistics: Any = None,
    hash_override: str | None = None,
) -> list[str]:
    """Return all that speaks against writing the plan, one sentence each; an empty list if nothing does."""
    found = list(_model(checkpoint, plan, hash_override))
    found += _transform(plan, statistics)
    fitting = plan.transform in TRANSFORMS.names()
    for cut in plan.layers:
        problems = list(_layer(checkpoint, cut))
        fitting &= not problems
        found += problems
    if found and not fitting:
        return found  # what follows needs layers that are there
    planned = rewrites(checkpoint, plan, options)
    found += _counts(checkpoint, plan, planned, options)
    found += _groups(checkpoint, plan, planned)
    found += _widths(checkpoint, planned)
    found += _padding(checkpoint, plan, planned)
    found += _tables(checkpoint, planned, options)
    found += _form(checkpoint, planned)
    if checkpoint.extra and plan.extra_layers == "drop" and not checkpoint.settings.extra_layers:
        found.append(
            f"{checkpoint.name} has layers for multi-token prediction and no key that says how many, so that they "
            "cannot be dropped; keep them (extra_layers 'same')."
        )
    return found


def width_entry(checkpoint: Checkpoint) -> Entry | None:
    """Return the key of the config that says how many neurons an expert has, or None."""
    neurons = neurons_of(checkpoint)
    return next((entry for entry in checkpoint.settings.widths if entry.value == neurons), None)


def neurons_of(checkpoint: Checkpoint) -> int:
    """Return how many neurons each expert has, from the shapes of the first layer with experts."""
    layout = checkpoint.layouts[checkpoint.layers[0]]
    return unpack(layout, meta_reader(checkpoint, layout), interleaved=checkpoint.interleaved).neurons


def _model(checkpoint: Checkpoint, plan: EditPlan, hash_override: str | None) -> Iterator[str]:
    model = plan.model
    if model is None:
        yield "It does not say which model it is for; plan it from statistics or scores of this model."
        return
    here = checkpoint.identity().shape
    if model.shape != here:
        yield f"It was made for {_words(model.shape)}; {checkpoint.name} has {_words(here)}."
    if hash_override is not None and model.weight_hash != hash_override:
        yield f"It was made for weights {model.weight_hash}, not for those that hash_override names ({hash_override})."


def _words(shape: Sequence[tuple[int, int, int]]) -> str:
    sizes = " and ".join(f"top {k} of {experts}" for experts, k in sorted({(e, k) for _, e, k in shape}))
    return f"{sizes} experts in layers {', '.join(str(layer) for layer, _, _ in shape)}"


def _transform(plan: EditPlan, statistics: Any) -> Iterator[str]:
    try:
        needs = transforms_with_statistics(plan.transform)
    except MoeworksError as error:
        yield f"{str(error)[0].upper()}{str(error)[1:]}"
        return
    if needs and statistics is None:
        yield f"The transform '{plan.transform}' needs the statistics that the plan was made from (--statistics)."
    made_from = "" if statistics is None else str(getattr(statistics, "hash", ""))
    if made_from and plan.statistics and made_from != plan.statistics:
        yield f"It was made from the statistics {plan.statistics}, and these are {made_from}."
    strange = strange_options(plan.transform, plan.transform_options)
    if strange:
        yield f"{strange[0].upper()}{strange[1:]}"
    contracts = [shape.contract for shape in (() if plan.model is None else plan.model.layers) if shape.contract]
    if plan.transform == "cut_rescaled" and any(c.renormalise or c.score != "softmax" for c in contracts):
        yield (
            "The transform 'cut_rescaled' is for softmax routers that do not divide by the sum of the chosen weights; "
            "this one does, so that a plain cut keeps the weights as they are: take 'cut'."
        )
    if plan.transform == "cut":
        for cut in plan.layers:
            if merges(cut):
                yield f"Layer {cut.layer} has groups, and the transform 'cut' merges nothing; name one that does."


def _layer(checkpoint: Checkpoint, cut: LayerCut) -> Iterator[str]:
    layout = checkpoint.layouts.get(cut.layer)
    if layout is None:
        known = ", ".join(map(str, checkpoint.layers))
        yield f"Layer {cut.layer} has no experts; layers with experts: {known}."
        return
    if cut.experts not in (layout.experts, layout.width):
        yield f"Layer {cut.layer} has {layout.experts} experts, not {cut.experts}."
        return
    beyond = set(range(layout.experts, cut.experts))
    if not beyond <= set(cut.keep):
        names = ", ".join(str(Address(cut.layer, expert)) for expert in sorted(beyond - set(cut.keep)))
        yield f"{names} have no weights and stay in every checkpoint; keep them."
    if any(len(group) > 1 and beyond & {expert for expert, _ in group} for group in cut.groups or ()):
        yield f"Layer {cut.layer} merges experts that have no weights."
    if not without_extra(cut, layout).keep:
        yield f"Layer {cut.layer} keeps no expert that has weights."


def _counts(checkpoint: Checkpoint, plan: EditPlan, planned: list[Rewrite], options: Options) -> Iterator[str]:
    layers_of: dict[int, list[int]] = {}
    for layer, count in counts(planned).items():
        layers_of.setdefault(count, []).append(layer)
    if len(layers_of) > 1 and options.format == "stock":
        words = "; ".join(f"{n} in layers {', '.join(map(str, layers))}" for n, layers in sorted(layers_of.items()))
        unlisted = sorted(set(checkpoint.layers) - {cut.layer for cut in plan.layers})
        whole = f" Layers {', '.join(map(str, unlisted))} are not in the plan and stay whole." if unlisted else ""
        yield (
            f"Stock checkpoints have one number of experts for all layers, and this plan has {words}.{whole} Plan "
            "equal counts (budget 'uniform'); or fill up with experts that are never chosen (--pad), which families "
            "with a selection bias allow and which saves no memory; or ask for the uneven format (--format uneven), "
            "which stock programs do not read."
        )
    if options.format == "uneven" and checkpoint.extra and plan.extra_layers == "same":
        yield "The uneven format has no layers for multi-token prediction; plan with extra_layers 'drop'."
    top_k = checkpoint.settings.top_k[0].value
    for rewrite in planned:
        chosen_from = len(rewrite.kept) + _selectable(rewrite.layout)
        if chosen_from < top_k:
            yield (
                f"Layer {rewrite.layout.layer} keeps {chosen_from} experts, and the router chooses {top_k} for each "
                "token; keep at least as many."
            )
        if rewrite.experts % options.expert_parallel:
            yield (
                f"Layer {rewrite.layout.layer} has {rewrite.experts} experts in the end, no multiple of "
                f"{options.expert_parallel} (expert-parallel size); plan with multiple_of={options.expert_parallel}."
            )


def _selectable(layout: LayerLayout) -> int:
    """Experts without weights that the router can choose."""
    bias = layout.stacked.get("selection_bias")
    return layout.extra if bias is not None and layout.shapes[bias][-1] == layout.width else 0


def _groups(checkpoint: Checkpoint, plan: EditPlan, planned: list[Rewrite]) -> Iterator[str]:
    groups, limit = checkpoint.settings.group_count, checkpoint.settings.group_limit
    if groups <= 1:
        return
    top_k = checkpoint.settings.top_k[0].value
    for rewrite in planned:
        layer, size = rewrite.layout.layer, rewrite.layout.experts // groups
        per_group = [sum(expert // size == group for expert in rewrite.kept) for group in range(groups)]
        if rewrite.experts % groups:
            yield (
                f"Layer {layer} has {rewrite.experts} experts in the end, and its router has {groups} groups of equal "
                "size; keep a multiple of that."
            )
        elif len(set(per_group)) > 1:
            yield (
                f"Layer {layer} keeps {', '.join(map(str, per_group))} experts of its {groups} groups; unequal groups "
                "load and route wrongly without an error. Plan with equal_groups."
            )
        elif top_k > limit * per_group[0]:
            yield (
                f"Layer {layer} keeps {per_group[0]} experts of each group, and a token chooses {top_k} from "
                f"{limit} groups; keep at least {-(-top_k // limit)} of each."
            )
        elif per_group[0] < 2 and not _by_best_one(plan, layer):
            yield (
                f"Layer {layer} keeps one expert of each group, and its router ranks groups by their best two; keep "
                "two of each at least."
            )


def _by_best_one(plan: EditPlan, layer: int) -> bool:
    """Whether the plan carries a proved contract by which groups are ranked by their best expert alone."""
    shapes = () if plan.model is None else plan.model.layers
    contracts = [shape.contract for shape in shapes if shape.layer == layer and shape.contract is not None]
    return bool(contracts) and contracts[0].group_score == "max"


def _widths(checkpoint: Checkpoint, planned: list[Rewrite]) -> Iterator[str]:
    widths: dict[int | None, list[int]] = {}
    for rewrite in planned:
        widths.setdefault(rewrite.neurons, []).append(rewrite.layout.layer)
        lists = {len(neurons) for neurons in (rewrite.cut.neurons if rewrite.cut else None) or () if rewrite.narrow}
        if len(lists) > 1:
            yield (
                f"Layer {rewrite.layout.layer} keeps {min(lists)} to {max(lists)} neurons in its experts; checkpoints "
                "have one width for all experts."
            )
    if set(widths) == {None}:
        return
    if len(widths) > 1:
        words = "; ".join(
            f"{'all' if width is None else width} in layers {', '.join(map(str, layers))}"
            for width, layers in widths.items()
        )
        yield f"Checkpoints have one width for the experts of all layers, and this plan keeps {words} neurons."
    elif width_entry(checkpoint) is None:
        keys = ", ".join(f"{entry} = {entry.value}" for entry in checkpoint.settings.widths)
        yield f"No key of the config says that experts have {neurons_of(checkpoint)} neurons ({keys})."


def _padding(checkpoint: Checkpoint, plan: EditPlan, planned: list[Rewrite]) -> Iterator[str]:
    shapes = {} if plan.model is None else {shape.layer: shape for shape in plan.model.layers}
    reasons: dict[str, list[int]] = {}
    for rewrite in planned:
        if rewrite.padding:
            reason = _cannot_pad(checkpoint, rewrite, shapes)
            if reason:
                reasons.setdefault(reason, []).append(rewrite.layout.layer)
    for reason, layers in reasons.items():
        yield f"Layers {', '.join(map(str, layers))} cannot be filled up: {reason}. Plan equal counts instead."


def _cannot_pad(checkpoint: Checkpoint, rewrite: Rewrite, shapes: Mapping[int, LayerShape]) -> str:
    """Return why experts that are never chosen cannot be added exactly; empty if they can (edit.md, section 9.5)."""
    roles = rewrite.layout.stacked
    contract = shapes[rewrite.layout.layer].contract if rewrite.layout.layer in shapes else None
    if rewrite.layout.table:
        return ""  # no token's table names them
    if "router_bias" not in roles and "selection_bias" not in roles:
        return "their router has no bias by which an expert could be kept from being chosen"
    if contract is None and checkpoint.settings.rule not in ("sigmoid", "sqrtsoftplus"):
        return "the plan carries no proved contract of their router, so that nobody knows whether padding is exact"
    if contract is None or contract.order == "top_k_first":
        return ""
    if contract.score in ("softmax", "sparsemixer"):
        return "their softmax runs over all experts, so that an added one takes probability from the others"
    return ""


def _tables(checkpoint: Checkpoint, planned: list[Rewrite], options: Options) -> Iterator[str]:
    hashed = [r.layout.layer for r in planned if r.layout.table and len(r.kept) < r.layout.experts]
    if hashed and options.tables == "refuse":
        from moeworks.edit.checkpoint.files import Reader

        reader = Reader(checkpoint.files)
        for rewrite in planned:
            if rewrite.layout.layer in hashed and rewrite.layout.table:
                named = set(reader.get(rewrite.layout.table).flatten().tolist())
                if not named <= set(rewrite.kept):
                    yield (
                        f"Layer {rewrite.layout.layer} takes experts from a table of token ids, which names "
                        f"{len(named - set(rewrite.kept))} experts that go; give their tokens the most similar expert "
                        "that stays (--tables replace), and measure what that does."
                    )
        reader.close()


def _form(checkpoint: Checkpoint, planned: list[Rewrite]) -> Iterator[str]:
    """What cannot be read as weights, where more than whole experts is cut."""
    said: set[str] = set()
    for rewrite in planned:
        if not rewrite.raw:
            try:
                checkpoint.check_form(rewrite.layout)
                unpack(rewrite.layout, meta_reader(checkpoint, rewrite.layout), interleaved=checkpoint.interleaved)
            except Unsupported as error:
                sentence = f"{str(error)[0].upper()}{str(error)[1:]}"
                if sentence not in said:
                    said.add(sentence)
                    yield sentence
