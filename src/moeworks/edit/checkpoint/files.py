"""The weight files of a checkpoint: which tensor is where and of which shape, read from headers alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from moeworks.errors import BadData, Unsupported

__all__ = ["INDEX", "Reader", "Stored", "WeightFiles", "read_files", "read_header"]

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_LONGEST_HEADER = 100_000_000  # bytes; what the safetensors library itself allows


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its dtype as safetensors spells it (`BF16`), its shape, its bytes."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, eq=False)
class WeightFiles:
    """All tensors of a checkpoint, in the order of files and of their place in them."""

    folder: Path
    tensors: Mapping[str, Stored]
    sharded: bool
    fingerprint: str  # of headers, sizes and times of change of the files; values are not read
    metadata: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.nbytes for stored in self.tensors.values())

    def largest_file(self) -> int:
        """Return the bytes of tensors in the fullest file."""
        sizes: dict[str, int] = {}
        for stored in self.tensors.values():
            sizes[stored.file] = sizes.get(stored.file, 0) + stored.nbytes
        return max(sizes.values())


class Reader:
    """Reads tensors one at a time; files are mapped, not loaded, and let go of with `close`."""

    def __init__(self, files: WeightFiles) -> None:
        self._files = files
        self._open: dict[str, Any] = {}

    def get(self, name: str) -> Tensor:
        """Return a tensor; it may be a view of the mapped file and is not to be written to."""
        from safetensors import safe_open

        file = self._files.tensors[name].file
        if file not in self._open:
            self._open[file] = safe_open(self._files.folder / file, framework="pt")
        tensor: Tensor = self._open[file].get_tensor(name)
        return tensor

    def close(self) -> None:
        """Unmap all files; tensors that are still held keep theirs."""
        self._open.clear()


def read_files(folder: Path) -> WeightFiles:
    """Return what the safetensors files of a folder hold.

    Raises:
        BadData: a file is missing or damaged, or index and files contradict each other.
        Unsupported: the weights are in another format.
    """
    index = folder / INDEX
    listed: dict[str, str] | None = None
    if index.is_file():
        listed = _json(index).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise BadData(f"{index} lists no tensors; download it again.")
        names = sorted(set(listed.values()))
    elif (folder / _SINGLE).is_file():
        names = [_SINGLE]
    else:
        other = sorted(file.name for file in folder.glob("*") if file.suffix in (".bin", ".pt", ".pth", ".gguf"))
        if other:
            raise Unsupported(
                f"{folder} has its weights in {other[0]}; only safetensors are read. Load it with transformers and "
                "save it again with save_pretrained."
            )
        raise BadData(f"{folder} has neither {_SINGLE} nor {INDEX}; give the folder of a whole checkpoint.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise BadData(f"{folder} lacks {', '.join(missing[:5])}, which its index names; download the missing files.")
    tensors: dict[str, Stored] = {}
    digest = hashlib.blake2b(digest_size=16)
    metadata: dict[str, str] = {}
    for name in names:
        header, size = read_header(folder / name)
        changed = (folder / name).stat().st_mtime_ns
        digest.update(f"{name}:{size}:{changed}:{json.dumps(header, sort_keys=True)}\n".encode())
        metadata = header.pop("__metadata__", {}) or metadata
        for tensor, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            if tensor in tensors:
                raise BadData(f"the tensor {tensor} is both in {tensors[tensor].file} and in {name} of {folder}.")
            start, end = entry["data_offsets"]
            tensors[tensor] = Stored(name, entry["dtype"], tuple(entry["shape"]), end - start)
    if listed is not None and {t: s.file for t, s in tensors.items()} != listed:
        wrong = sorted({t for t in {*listed, *tensors} if t not in tensors or listed.get(t) != tensors[t].file})
        raise BadData(f"index and files of {folder} disagree about {', '.join(wrong[:5])}; download them again.")
    return WeightFiles(folder, tensors, listed is not None, digest.hexdigest(), metadata)


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and the file's size, once it is sure that all bytes are there."""
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > min(size, _LONGEST_HEADER):
                raise ValueError("its header is longer than the file")
            header = json.loads(handle.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if size != 8 + length + max(ends, default=0):
            raise ValueError(f"it has {size} bytes where its header says {8 + length + max(ends, default=0)}")
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{path} is no whole safetensors file ({error}); download it again.") from error
    return header, size


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadData(f"{path} is no JSON document: {error}.") from error
    if not isinstance(document, dict):
        raise BadData(f"{path} holds no JSON object.")
    return document
