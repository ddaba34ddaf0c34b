"""Which keys of a config.json say how many experts there are, how many run, and in which groups."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moeworks.errors import BadData

__all__ = ["Entry", "Settings", "edited_config", "read_settings"]

# Under these names the language model's own settings lie, if not at the top.
_SCOPES: tuple[tuple[str, ...], ...] = (
    (),
    ("text_config",),
    ("language_config",),
    ("llm_config",),
    ("thinker_config", "text_config"),
    ("ffn_config",),
    ("text_config", "ffn_config"),
)
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
)
_GROUPS = ("n_group", "num_expert_group")
_GROUPS_KEPT = ("topk_group",)
_WIDTHS = ("moe_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size", "intermediate_size")
_EXTRA_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "mtp_num_layers")
_LAYERS = ("num_hidden_layers", "n_layers", "num_layers")
_BOTH = re.compile(r"qwen3_(vl_)?moe")  # transformers 5 saves num_local_experts, transformers 4 reads num_experts


@dataclass(frozen=True)
class Entry:
    """One number of a config: the keys that lead to it, and what it is."""

    path: tuple[str, ...]
    value: int

    def __str__(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class Settings:
    """What a config says of its experts; several entries of one kind have one value.

    Attributes:
        counts: number of routed experts, E.
        top_k: experts chosen for each token.
        groups, groups_kept: groups of the router and how many of them a token chooses from; none: one group.
        widths: keys that may say how many neurons an expert has, the likeliest first.
        extra_layers: number of layers for multi-token prediction.
        layers: number of layers of the decoder.
        rule: how logits are scored where the config says it, such as sigmoid.
    """

    counts: tuple[Entry, ...]
    top_k: tuple[Entry, ...]
    groups: tuple[Entry, ...]
    groups_kept: tuple[Entry, ...]
    widths: tuple[Entry, ...]
    extra_layers: tuple[Entry, ...]
    layers: int | None
    rule: str

    @property
    def experts(self) -> int:
        """Number of routed experts of a layer, E."""
        return self.counts[0].value

    @property
    def group_count(self) -> int:
        """Groups of the router; 1 without."""
        return self.groups[0].value if self.groups else 1

    @property
    def group_limit(self) -> int:
        """Groups that a token chooses from; 1 without."""
        return self.groups_kept[0].value if self.groups and self.groups_kept else self.group_count


def read_settings(config: dict[str, Any], name: str) -> Settings:
    """Return what a config says of the experts of the language model.

    Raises:
        BadData: it says nothing, or two keys contradict each other.
    """
    counts = _entries(config, _COUNTS)
    if not counts:
        raise BadData(
            f"the config.json of {name} names no number of experts (looked for {', '.join(_COUNTS)}); "
            "a dense model has none to edit."
        )
    if len({entry.value for entry in counts}) > 1:
        words = ", ".join(f"{entry} = {entry.value}" for entry in counts)
        raise BadData(f"the config.json of {name} contradicts itself: {words}; put in the number that the files have.")
    top_k = _entries(config, _TOP_K)
    if len({entry.value for entry in top_k}) != 1:
        raise BadData(
            f"the config.json of {name} does not say how many experts a token gets (looked for {', '.join(_TOP_K)})."
        )
    layers = _entries(config, _LAYERS)
    rules = [scope[key] for _, scope in _scopes(config) for key in ("scoring_func", "score_function") if key in scope]
    return Settings(
        counts=counts,
        top_k=top_k,
        groups=_entries(config, _GROUPS),
        groups_kept=_entries(config, _GROUPS_KEPT),
        widths=_entries(config, _WIDTHS),
        extra_layers=_entries(config, _EXTRA_LAYERS),
        layers=layers[0].value if layers else None,
        rule=str(rules[0]) if rules else "",
    )


def edited_config(
    config: dict[str, Any], settings: Settings, *, experts: int, width: tuple[Entry, int] | None, drop_extra: bool
) -> dict[str, Any]:
    """Return a copy of a config with another number of experts, and width of each where `width` names key and value."""
    edited = copy.deepcopy(config)
    for entry in settings.counts:
        _put(edited, entry.path, experts)
        if _BOTH.match(str(_holder(edited, entry.path).get("model_type", edited.get("model_type", "")))):
            for key in ("num_experts", "num_local_experts"):
                _put(edited, (*entry.path[:-1], key), experts)
    if width is not None:
        _put(edited, width[0].path, width[1])
    for entry in settings.extra_layers if drop_extra else ():
        _put(edited, entry.path, 0)
    return edited


def _scopes(config: dict[str, Any]) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    found = []
    for path in _SCOPES:
        scope: Any = config
        for key in path:
            scope = scope.get(key) if isinstance(scope, dict) else None
        if isinstance(scope, dict):
            found.append((path, scope))
    return found


def _entries(config: dict[str, Any], keys: Sequence[str]) -> tuple[Entry, ...]:
    """Return the whole numbers under these keys wherever the language model's settings may lie, keys first."""
    return tuple(
        Entry((*path, key), scope[key])
        for key in keys
        for path, scope in _scopes(config)
        if isinstance(scope.get(key), int) and not isinstance(scope[key], bool) and scope[key] >= 0
    )


def _holder(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path[:-1]:
        config = config[key]
    return config


def _put(config: dict[str, Any], path: tuple[str, ...], value: int) -> None:
    _holder(config, path)[path[-1]] = value
