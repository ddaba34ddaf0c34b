"""Asks transformers itself, without weights, whether an edited config gives the model that the files will be for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from moeworks.edit.checkpoint.names import is_other, match, split

__all__ = ["Unknown", "model_class_of", "stock_problems"]

Shapes = dict[str, tuple[int, ...]]


class Unknown(Exception):
    """Transformers has no class for this config, or it does not build without weights; the message says why."""


def stock_problems(before: Mapping[str, Any], after: Mapping[str, Any], experts: int) -> list[str]:
    """Return what is wrong with an edited config, one sentence each.

    Both configs are built on the meta device. Only tensors of routed experts and of routers may change their shape,
    and every layer must have `experts` of them: a key that other parts depend on too is found here.

    Raises:
        Unknown: the config before the edit cannot be built, so that nothing can be said.
    """
    old = _shapes(before)
    try:
        new = _shapes(after)
    except Unknown as error:
        return [f"Transformers does not build the edited config: {error}"]
    return list(_compare(old, new, experts))


def model_class_of(config: Mapping[str, Any]) -> Any:
    """Return the class of transformers that a config names.

    Raises:
        Unknown: there is none.
    """
    import transformers

    names = config.get("architectures") or []
    found = getattr(transformers, names[0], None) if names else None
    if found is None and names:
        found = _in_package(names[0], str(config.get("model_type", "")))
    if found is None:
        raise Unknown(f"transformers has no class '{names[0] if names else 'none'}'")
    return found


def _in_package(name: str, model_type: str) -> Any:
    """Return a class that transformers does not list at its top, from the package of its model type."""
    import importlib

    from transformers.models.auto.configuration_auto import model_type_to_module_name

    package = model_type_to_module_name(model_type)
    try:
        module = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    except ImportError:
        return None
    return getattr(module, name, None)


def _shapes(config: Mapping[str, Any]) -> Shapes:
    import torch

    kind = model_class_of(config)
    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    try:
        with torch.device("meta"):
            model = kind._from_config(kind.config_class.from_dict(plain), attn_implementation="eager")
    except Exception as error:  # whatever a family's own code raises is the reason
        line = (str(error).strip().splitlines() or [""])[0]
        raise Unknown(f"{type(error).__name__}: {line}") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _compare(old: Shapes, new: Shapes, experts: int) -> Iterator[str]:
    other = [name for name in old if old[name] != new.get(name, old[name]) and not _of_experts(name)]
    if other:
        yield (
            f"The keys that give the experts their shape also change {', '.join(other[:3])}"
            f"{f' and {len(other) - 3} more' if len(other) > 3 else ''}, so that stock transformers would not load it."
        )
    wrong = [
        name
        for name, shape in new.items()
        if (place := split(name)) is not None
        and not is_other(place[0])
        and (found := match(place[2])) is not None
        and found.role == "down"
        and "expert" in name
        and shape[0] != experts
    ]
    if wrong:
        yield f"With the edited config {wrong[0]} has {new[wrong[0]][0]} experts, not {experts}."
    if set(old) != set(new):
        yield f"The edited config gives other tensors: {', '.join(sorted(set(old) ^ set(new))[:3])}."


def _of_experts(name: str) -> bool:
    place = split(name)
    found = None if place is None else match(place[2])
    return found is not None and found.role != "whole"
