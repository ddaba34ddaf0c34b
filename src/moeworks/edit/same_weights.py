"""Compares a checkpoint's weights with those that a plan was made for, where the model fits into memory."""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

from moeworks.edit.checkpoint.source import Checkpoint
from moeworks.edit.plan import EditPlan
from moeworks.errors import MoeworksError

__all__ = ["Compared", "compare_weights"]

_HERE = 100_000_000  # bytes; a larger model is loaded in a process of its own, whose memory is given back
_SHARE = 0.5  # of the memory that is free
_CHILD = "import sys; from moeworks.edit.same_weights import weight_hash; print(weight_hash(sys.argv[1]))"


class Compared(NamedTuple):
    """What speaks against the plan, or why nothing could be compared; both empty where the weights are the same."""

    problem: str = ""
    note: str = ""


def compare_weights(checkpoint: Checkpoint, plan: EditPlan, *, hash_override: str | None = None) -> Compared:
    """Compare the hash of a checkpoint's weights with the one in a plan.

    Transformers loads the model as the engine does, since the hash is of what is in memory. Shapes are compared in
    any case; weights are not where the plan names none, where `hash_override` says that others are meant, or where the
    model does not fit into half of the memory that is free.
    """
    expected = "" if plan.model is None else plan.model.weight_hash
    if not expected or expected == hash_override:
        return Compared()
    size = checkpoint.files.nbytes
    free = _free_memory()
    if size > _SHARE * free:
        return Compared(
            note=f"The weights were not compared with the plan's: {size / 1e9:.1f} GB do not fit into half of the "
            f"{free / 1e9:.1f} GB that are free. The shapes are the same."
        )
    try:
        found = weight_hash(str(checkpoint.folder)) if size <= _HERE else _in_child(str(checkpoint.folder))
    except MoeworksError as error:
        return Compared(note=f"The weights were not compared with the plan's, whose shapes are the same: {error}")
    if found == expected:
        return Compared()
    return Compared(
        problem=f"It was made for weights {expected} of {plan.model.name if plan.model else ''}, these are {found}; if "
        f"that is meant, name the plan's hash as hash_override='{expected}' (--hash-override)."
    )


def weight_hash(folder: str) -> str:
    """Return the hash of a checkpoint's weights as the transformers engine computes it.

    Raises:
        BadData: transformers does not load it.
    """
    from moeworks.engines.transformers.loading import hash_weights, load_pretrained

    return hash_weights(load_pretrained(folder).model)


def _in_child(folder: str) -> str:
    ran = subprocess.run([sys.executable, "-c", _CHILD, folder], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise MoeworksError((ran.stderr.strip().splitlines() or ["it could not be loaded"])[-1])
    return ran.stdout.strip().splitlines()[-1]


def _free_memory() -> int:
    import psutil  # type: ignore[import-untyped]  # comes with accelerate

    return int(psutil.virtual_memory().available)
