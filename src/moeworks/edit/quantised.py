"""Names of single experts in a quantization_config (what is not quantised, what is so otherwise) follow the cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moeworks.edit.rewrite import Rewrite
from moeworks.errors import Unsupported

__all__ = ["renumbered_names"]

_KEYS = ("quantization_config", "compression_config")
_EXPERT = re.compile(r"(?P<before>(?:^|.*?\.)(?P<layer>\d+)\.(?:.*\.)?experts\.)(?P<expert>\d+)(?P<after>\..*|$)")
_PATTERN = re.compile(r"experts(\\\.|\.)[^.]*[\d\[(|]")


def renumbered_names(config: dict[str, Any], planned: Sequence[Rewrite]) -> dict[str, Any]:
    """Return a config whose quantisation names the experts by their new numbers; those that went are left out.

    Raises:
        Unsupported: a regular expression names numbers of experts.
    """
    places = {(r.layout.layer, old): new for r in planned for new, old in enumerate(r.kept)}
    edited = {r.layout.layer for r in planned}

    def rename(name: str) -> str | None:
        found = _EXPERT.match(name)
        if name.startswith("re:") or any(sign in name for sign in "^$*[(|\\"):
            if _PATTERN.search(name):
                raise Unsupported(
                    f"the quantisation of this checkpoint names experts by a pattern ({name}), whose numbers would be "
                    "wrong after a cut; write the names out first."
                )
            return name
        if found is None or int(found["layer"]) not in edited:
            return name
        new = places.get((int(found["layer"]), int(found["expert"])))
        return None if new is None else f"{found['before']}{new}{found['after']}"

    return {key: _walk(value, rename) if key in _KEYS else value for key, value in config.items()}


def _walk(value: Any, rename: Callable[[str], str | None]) -> Any:
    """Return a document with every string and every key renamed; what has no name any more is left out."""
    if isinstance(value, str):
        return rename(value)
    if isinstance(value, Mapping):
        pairs = ((rename(str(key)), inner) for key, inner in value.items())
        return {key: _walk(inner, rename) for key, inner in pairs if key is not None}
    if isinstance(value, list):
        walked = [_walk(inner, rename) for inner in value]
        return [new for new, old in zip(walked, value, strict=True) if new is not None or old is None]
    return value
