"""The state of an unfinished training as one safetensors file: tensors, and the rest as JSON in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from moeworks.artefact import replace_file
from moeworks.errors import BadData

__all__ = ["State", "load_state", "save_state", "state_path"]

_KEY = "moeworks.training"


class State(NamedTuple):
    """How far a training got: enough to go on as if nothing had happened."""

    settings: str  # hash of model, texts and options
    stage: str
    step: int  # steps done
    history: list[dict[str, float]]
    carried: dict[str, Any]  # results of the stages before
    tensors: dict[str, Tensor]  # leaves and the optimiser's memory


def state_path(output: Path) -> Path:
    """Return where the state is kept while `output` is not there yet: beside it."""
    return output.with_name(f"{output.name}.training.safetensors")


def save_state(path: Path, state: State) -> None:
    """Write the state; the file is the old one or the whole new one."""
    from safetensors.torch import save_file

    plain = {name: value for name, value in state._asdict().items() if name != "tensors"}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    with replace_file(path) as temporary:
        save_file(tensors, str(temporary), metadata={_KEY: json.dumps(plain)})


def load_state(path: Path, settings: str) -> State | None:
    """Read the state of the same training, or None if there is none.

    Raises:
        BadData: the file is of another training, or is damaged.
    """
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            plain = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        state = State(**plain, tensors=tensors)
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise BadData(f"{path} is not the state of a training, or is damaged ({error}); remove it.") from None
    if state.settings != settings:
        raise BadData(
            f"{path} is the state of a training with another model, other texts or other options; repeat these, or "
            "remove it to begin anew."
        )
    return state
