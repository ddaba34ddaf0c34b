"""Reads and replaces the experts and the router of a layer of a loaded model, with any number of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moeworks.edit.checkpoint.convert import pack, unpack
from moeworks.edit.checkpoint.layout import LayerLayout, layout_of
from moeworks.edit.layer import Activation, LayerWeights
from moeworks.edit.plan import EditPlan
from moeworks.edit.rewrite import MergeLayout, Options, Tables, kept_experts, merges, rewrite_of, without_extra
from moeworks.edit.transformed import new_layer
from moeworks.errors import BadData, BadPlan, Unsupported
from moeworks.families.expert_weights import expert_weights
from moeworks.families.router import Router

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["edited", "read_layer", "restoring", "write_layer"]

_COUNT = re.compile(r"\w*experts|num_router_classes")
_NOT_A_COUNT = re.compile(r"shared|per_tok|top_?k|zero")
_WIDTH = re.compile(r"intermediate_(dim|size)|moe_intermediate_size|ffn_hidden_size|expert_dim")
_CONFIG_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def read_layer(router: Router) -> LayerWeights:
    """Return copies of the weights of a router and its experts.

    Raises:
        Unsupported: they are stored in a form that is not understood, or quantised.
    """
    tensors = _tensors(router)
    weights = unpack(_layout(router, tensors), tensors.__getitem__, interleaved=_interleaved(router))
    copies: dict[str, Any] = {name: tensor.clone() for name, tensor in weights.per_expert().items()}
    table = None if weights.table is None else weights.table.clone()
    return replace(weights, **copies, table=table, activation=_activation(router))


@torch.no_grad()
def write_layer(router: Router, weights: LayerWeights) -> None:
    """Put other weights into a loaded model, with any number of experts and of neurons.

    Parameters are replaced by new ones in the old ones' dtypes and places. What the modules of the layer say of these
    numbers follows, each in a configuration of its own, since layers may come to differ. Groups of a router keep their
    number. The `Router` still says what was there before: discover the model again, or use `edited`. To undo it, do it
    inside `restoring`.

    Raises:
        BadData: the weights are of another layer or another hidden size.
        Unsupported: the layer is stored in a form that is not understood.
    """
    tensors = _tensors(router)
    layout = _layout(router, tensors)
    old = unpack(layout, tensors.__getitem__, interleaved=_interleaved(router))
    if weights.layer != old.layer or weights.up.shape[2] != old.up.shape[2]:
        raise BadData(
            f"weights of layer {weights.layer}, {weights.up.shape[2]} wide, do not fit layer {old.layer}, "
            f"{old.up.shape[2]} wide."
        )
    if set(weights.per_expert()) != set(old.per_expert()) or (weights.table is None) != (old.table is None):
        other, own = sorted(weights.per_expert()), sorted(old.per_expert())
        raise BadData(f"layer {old.layer} consists of {', '.join(own)}, and these weights of {', '.join(other)}.")
    device = old.down.device
    there: dict[str, Any] = {name: tensor.to(device) for name, tensor in weights.per_expert().items()}
    moved = replace(weights, **there, table=None if weights.table is None else weights.table.to(device))
    packed = pack(layout, moved, tensors.__getitem__, interleaved=_interleaved(router))
    for name, tensor in packed.items():
        _put(router.holder, name, tensor)
    _count(router, layout, old, weights)


@contextmanager
def restoring(*modules: nn.Module) -> Iterator[None]:
    """Put back, at the end, the very parameters, buffers and attributes that these modules have now."""
    kept = [
        (part, dict(vars(part)), dict(part._parameters), dict(part._buffers))
        for module in modules
        for part in module.modules()
    ]
    try:
        yield
    finally:
        for part, attributes, parameters, buffers in kept:
            vars(part).clear()
            vars(part).update(attributes)
            for shelf, before in ((part._parameters, parameters), (part._buffers, buffers)):
                shelf.clear()
                shelf.update(before)  # type: ignore[arg-type]


@contextmanager
def edited(
    engine: TransformersEngine,
    plan: EditPlan,
    statistics: Any = None,
    *,
    layout: MergeLayout = "rows",
    tables: Tables = "refuse",
) -> Iterator[TransformersEngine]:
    """Run an engine's model under an edit plan inside the block; afterwards it is the very model it was before.

    The engine's routers and identity are those of the edited model meanwhile, so that what is recorded says so. Layers
    may have unequal numbers of experts here.

    Args:
        engine: holds the model; it is the one that is yielded.
        plan: for this model and these weights.
        statistics: what the plan was made from, for transforms that need them.
        layout, tables: as in `moeworks.edit.apply.apply`.

    Raises:
        BadPlan: the plan is for another model, or needs statistics.
        Unsupported: the weights of a layer are not understood.
    """
    from moeworks.engines.transformers.loading import identify
    from moeworks.families import discover

    options = Options(layout=layout, tables=tables)
    routers = {router.layer: router for router in engine.routers}
    _check(engine, plan, statistics)
    with ExitStack() as stack:
        stack.enter_context(restoring(*[routers[cut.layer].holder for cut in plan.layers]))
        stack.enter_context(restoring_attributes(engine, "routers", "identity", "plain"))
        for cut in plan.layers:
            router = routers[cut.layer]
            weights = read_layer(router)
            place = _layout(router, _tensors(router))
            own = without_extra(cut, place)
            rewrite = rewrite_of(place, own, kept_experts(own, layout))
            groups = 1 if router.contract is None else router.contract.groups or 1
            write_layer(router, new_layer(weights, rewrite, plan, options, statistics, groups=groups))
        _say_in_config(engine, stack)
        engine.routers = discover(engine.model)
        engine.identity = identify(engine.identity.name, engine.model, engine._tokenizer, engine.routers)
        engine.plain = None
        yield engine


@contextmanager
def restoring_attributes(owner: object, *names: str) -> Iterator[None]:
    """Put back these attributes at the end."""
    before = {name: getattr(owner, name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def _check(engine: TransformersEngine, plan: EditPlan, statistics: Any) -> None:
    from moeworks.edit.transforms import transforms_with_statistics

    found: list[str] = []
    if engine.plan is not None:
        found.append("A plan is applied to the engine; leave its `with steered(…)` block first.")
    if plan.model is None or plan.model.shape != engine.identity.shape:
        found.append("It was made for a model of another shape.")
    elif plan.model.weight_hash not in ("", engine.identity.weight_hash):
        found.append(
            f"It was made for weights {plan.model.weight_hash} of {plan.model.name}, these are "
            f"{engine.identity.weight_hash}."
        )
    if transforms_with_statistics(plan.transform) and statistics is None:
        found.append(f"The transform '{plan.transform}' needs the statistics that the plan was made from.")
    if plan.transform == "cut" and any(merges(cut) for cut in plan.layers):
        found.append("It has groups, and the transform 'cut' merges nothing.")
    if not found:
        for router in engine.routers:
            found += _too_few(router, plan)
    if found:
        raise BadPlan(f"the plan cannot run on {engine.identity.name}: {' '.join(found)}")


def _too_few(router: Router, plan: EditPlan) -> Iterator[str]:
    """What a router cannot choose from afterwards."""
    kept = next((cut.keep for cut in plan.layers if cut.layer == router.layer), None)
    if kept is None:
        return
    if len(kept) < router.top_k:
        yield f"Layer {router.layer} keeps {len(kept)} experts, and the router chooses {router.top_k} for each token."
    groups = 1 if router.contract is None else router.contract.groups or 1
    if groups > 1:
        size = router.experts // groups
        counts = {sum(expert // size == group for expert in kept) for group in range(groups)}
        least = 1 if router.contract is not None and router.contract.group_score == "max" else 2
        if len(counts) > 1 or min(counts) < least:
            yield f"Layer {router.layer} must keep equally many of each group of experts, {least} at least."


def _tensors(router: Router) -> dict[str, Tensor]:
    holder = router.holder
    return {name: tensor.detach() for name, tensor in (*holder.named_parameters(), *holder.named_buffers())}


def _layout(router: Router, tensors: dict[str, Tensor]) -> LayerLayout:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    layout = layout_of(router.layer, "", shapes, expert_weights(router).experts)
    if layout is None:
        raise Unsupported(f"layer {router.layer} has no experts whose names are understood.")
    return layout


def _activation(router: Router) -> Activation | None:
    """Return the rule of the experts, where it is known."""
    from moeworks.engines.transformers.experts import activation_rule

    try:
        return activation_rule(router)
    except Unsupported:
        return None


def _interleaved(router: Router) -> bool:
    return getattr(router.experts_module, "is_concatenated", True) is False


def _put(holder: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, last = name.rpartition(".")
    owner = holder.get_submodule(path)
    before = owner._parameters.get(last)
    if before is not None:
        owner._parameters[last] = nn.Parameter(tensor, requires_grad=before.requires_grad)
    else:
        owner._buffers[last] = tensor
    if last == "weight" and isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = tensor.shape


def _count(router: Router, layout: LayerLayout, old: LayerWeights, new: LayerWeights) -> None:
    """Let the layer's modules say the new numbers of experts and neurons."""
    numbers = {layout.width: new.experts + layout.extra, old.experts: new.experts}

    def experts_say(name: str, value: Any) -> Any:
        counts = _COUNT.fullmatch(name) and not _NOT_A_COUNT.search(name)
        return numbers[value] if counts and type(value) is int and value in numbers else value

    def width_says(name: str, value: Any) -> Any:
        return new.neurons if _WIDTH.fullmatch(name) and value == old.neurons else value

    for path, module in router.holder.named_modules():
        if re.search(r"shared|attn|attention", path):
            continue
        _rewrite_attributes(module, experts_say)
        if isinstance(getattr(module, "config", None), object) and "config" in vars(module):
            vars(module)["config"] = _own_config(module.config, old.experts, new.experts)
    experts = router.experts_module if router.experts_module is not None else router.holder
    if new.neurons != old.neurons:
        for module in experts.modules():
            _rewrite_attributes(module, width_says)
    for module in experts.modules():  # Granite's and JetMoE's say the sizes of their matrices
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim == 3 and hasattr(module, "input_size"):
            vars(module)["output_size"], vars(module)["input_size"] = weight.shape[1:]


def _say_in_config(engine: TransformersEngine, stack: ExitStack) -> None:
    """Let the model's config say the new number of experts, where all layers have the same, until the block ends."""
    before = {router.experts for router in engine.routers}
    after = {len(expert_weights(router).down) for router in engine.routers}
    config = engine.model.config.get_text_config()
    if len(before) == len(after) == 1:
        for name in _CONFIG_COUNTS:
            if getattr(config, name, None) in before:
                stack.callback(setattr, config, name, getattr(config, name))
                setattr(config, name, next(iter(after)))


def _rewrite_attributes(module: nn.Module, change: Callable[[str, Any], Any]) -> None:
    for name, value in list(vars(module).items()):
        if isinstance(value, int):
            vars(module)[name] = change(name, value)


def _own_config(config: Any, old: int, new: int) -> Any:
    own = copy.copy(config)
    for name in _CONFIG_COUNTS:
        if getattr(own, name, None) == old:
            setattr(own, name, new)
    return own
