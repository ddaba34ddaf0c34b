"""The state of an unfinished collection as one safetensors file: all sums so far, and how many batches are in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from moeworks.artefact import replace_file
from moeworks.errors import BadData

__all__ = ["STATE", "State", "load_state", "save_state", "settings_hash"]

Array = NDArray[Any]
STATE = "unfinished.safetensors"
_KEY = "moeworks.statistics"


class State(NamedTuple):
    """How far a collection got."""

    batches: int
    arrays: dict[int, dict[str, Array]]  # by layer
    refused: dict[int, dict[str, str]]


def settings_hash(**settings: Any) -> str:
    """Return the hash of what must be equal for a collection to go on."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


def save_state(folder: Path, settings: str, state: State) -> None:
    """Write the state; the file is the old one or the whole new one."""
    from safetensors.numpy import save_file

    flat = {f"{layer}.{name}": array for layer, arrays in state.arrays.items() for name, array in arrays.items()}
    plain = {"settings": settings, "batches": state.batches, "refused": state.refused}
    with replace_file(folder / STATE) as temporary:
        save_file(flat, str(temporary), metadata={_KEY: json.dumps(plain)})


def load_state(folder: Path, settings: str) -> State | None:
    """Read the state of the same collection, or None if there is none.

    Raises:
        BadData: it is of another collection, or damaged.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    arrays: dict[int, dict[str, Array]] = {}
    try:
        with safe_open(str(path), framework="np") as file:
            plain: Mapping[str, Any] = json.loads((file.metadata() or {})[_KEY])
            for key in file.keys():  # noqa: SIM118 (not a dict)
                layer, _, name = key.partition(".")
                arrays.setdefault(int(layer), {})[name] = file.get_tensor(key)
        refused = {int(layer): dict(reasons) for layer, reasons in plain["refused"].items()}
        state, known = State(int(plain["batches"]), arrays, refused), str(plain["settings"])
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        raise BadData(f"{path} is not the state of a collection, or is damaged ({error}); remove it.") from None
    if known != settings:
        raise BadData(
            f"{path} is the state of a collection with another model, other texts or other options; repeat these, or "
            "remove the folder to begin anew."
        )
    return state
