"""Opens a dump of SGLang's expert-distribution recorder without running code of its, and tells what kind it is."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, need

__all__ = ["Dump", "read_dump"]

Array = NDArray[Any]
Mode = Literal["counts", "per_pass", "per_token"]


class Dump(NamedTuple):
    """What one file holds.

    `counts` (modes stat and stat_approx, which write the same): `counts` alone, already of logical experts.
    `per_pass`: `counts` of physical experts, one forward pass each, and the map.
    `per_token`: `records`, one forward pass each, and the map.
    """

    mode: Mode
    counts: Array  # (passes, layers, experts or slots) int64; (0, 0, 0) of per_token
    records: list[dict[str, Any]]  # arrays in place of tensors
    map: Array | None  # (layers, slots): the logical expert in each physical slot at the time of the dump


def read_dump(path: str | Path) -> Dump:
    """Read a file that `dump_expert_distribution_record` wrote.

    The file is read with `torch.load(weights_only=True)`, which builds tensors, numbers and text alone and refuses
    everything else that pickle could run. Format: `python/sglang/srt/eplb/expert_distribution.py`, as in SGLang 0.5.

    Raises:
        BadData: no such file, not a dump, or one with other objects in it. MissingExtra: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise need("torch", "transformers", "Reading a .pt file") from error
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise BadData(
            f"{path} holds other objects than tensors, numbers and text, or is no .pt file; such objects can run code "
            "when read and are refused. Save it again where it was made, as a dictionary of plain values."
        ) from None
    except OSError as error:
        raise BadData(f"cannot read {path}: {error.strerror or error}.") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise BadData(f"{path} is no file of torch.save: {str(error).splitlines()[0]}") from None
    if not isinstance(document, dict) or not ({"logical_count", "records"} & set(document)):
        raise BadData(
            f"{path} is no dump of SGLang's expert-distribution recorder: it has neither 'logical_count' (modes stat, "
            "stat_approx) nor 'records' (per_pass, per_token)."
        )
    if "logical_count" in document:
        counts = _array(document["logical_count"], path, "logical_count")
        if counts.ndim != 3:
            raise BadData(f"{path}: logical_count has the shape {counts.shape}, not (passes, layers, experts).")
        return Dump("counts", _checked(counts, path), [], None)
    return _detail(document, path)


def _detail(document: dict[str, Any], path: str | Path) -> Dump:
    records = document["records"]
    if not isinstance(records, list) or not records or not all(isinstance(one, dict) for one in records):
        raise BadData(f"{path} holds no forward pass; record some requests before the dump.")
    found = document.get("last_physical_to_logical_map")
    placed = None if found is None else _array(found, path, "last_physical_to_logical_map")
    kinds = {"topk_ids_of_layer" in one for one in records}
    if kinds == {True}:
        tensors = [
            {**one, "topk_ids_of_layer": _array(one["topk_ids_of_layer"], path, "topk_ids_of_layer")} for one in records
        ]
        return Dump("per_token", np.zeros((0, 0, 0), np.int64), tensors, placed)
    if not all("global_physical_count" in one for one in records):
        raise BadData(f"{path}: some records have neither topk_ids_of_layer nor global_physical_count.")
    passes = [_array(one["global_physical_count"], path, "global_physical_count") for one in records]
    if len({one.shape for one in passes}) != 1 or passes[0].ndim != 2:
        raise BadData(f"{path}: the passes have counts of different shapes.")
    return Dump("per_pass", _checked(np.stack(passes), path), [], placed)


def _array(value: Any, path: str | Path, name: str) -> Array:
    if not hasattr(value, "numpy"):
        raise BadData(f"{path}: {name} is {type(value).__name__}, not a tensor.")
    array = np.asarray(value.numpy())
    if array.dtype.kind not in "iu":
        raise BadData(f"{path}: {name} holds {array.dtype}, not whole numbers.")
    return array.astype(np.int64)


def _checked(counts: Array, path: str | Path) -> Array:
    if counts.size and counts.min() < 0:
        raise BadData(f"{path}: a count is {counts.min()}, below 0: the recorder's int32 overflowed.")
    return counts
