"""What the workers tell the front end about a loaded model: a small file in a folder that all processes inherit."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeworks.artefact import LayerShape, replace_file
from moeworks.errors import RunFailed
from moeworks.trace.format import RouterValues

__all__ = ["FOLDER", "WorkerInfo", "make_folder", "read_info", "write_info"]

FOLDER = "MOEWORKS_VLLM_FOLDER"  # environment variable: where the files are
OWNER = f"{FOLDER}_OWNER"  # the process that removes them
_REMOVED: list[str] = []  # folders that this process removes when it ends


class WorkerInfo(BaseModel):
    """What one pipeline rank holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: tuple[LayerShape, ...] = Field(description="routers of this rank; one without a contract is opaque")
    values: tuple[RouterValues, ...] = ()
    pipeline_ranks: int = 1
    refused: str = Field("", description="why nothing can be steered or recorded here at all")
    bank_bytes: int = 0
    slots: int = 0


def make_folder() -> Path:
    """Return the folder, made by the first process that asks and removed when that one ends."""
    if FOLDER not in os.environ:
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="moeworks-vllm-")
        os.environ[OWNER] = str(os.getpid())
    folder = os.environ[FOLDER]
    if os.environ.get(OWNER) == str(os.getpid()) and not _REMOVED:  # a process that becomes another keeps its number
        _REMOVED.append(folder)
        atexit.register(_remove, folder, os.getpid())
    return Path(folder)


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a process that was forked from it
        shutil.rmtree(folder, ignore_errors=True)


def write_info(info: WorkerInfo, instance: str, rank: int) -> None:
    """Write what a pipeline rank of an engine holds."""
    with replace_file(make_folder() / f"{instance}-{rank}.json") as temporary:
        temporary.write_text(info.model_dump_json(), encoding="utf-8")


def read_info(instance: str) -> WorkerInfo:
    """Return what all pipeline ranks of an engine hold, layers in order.

    Raises:
        RunFailed: some rank has not written its file, as where workers run on another machine.
    """
    found: list[WorkerInfo] = []
    rank, ranks = 0, 1
    while rank < ranks:
        path = make_folder() / f"{instance}-{rank}.json"
        try:
            found.append(WorkerInfo.model_validate_json(path.read_text(encoding="utf-8")))
        except (OSError, ValidationError):
            raise RunFailed(
                f"the workers have not said what they hold (rank {rank}); if they run on other machines, point "
                f"{FOLDER} to a folder that all of them share."
            ) from None
        ranks = found[-1].pipeline_ranks
        rank += 1
    return WorkerInfo(
        layers=tuple(sorted((shape for info in found for shape in info.layers), key=lambda shape: shape.layer)),
        values=tuple(sorted((value for info in found for value in info.values), key=lambda value: value.layer)),
        pipeline_ranks=ranks,
        refused=next((info.refused for info in found if info.refused), ""),
        bank_bytes=sum(info.bank_bytes for info in found),
        slots=min(info.slots for info in found),
    )
