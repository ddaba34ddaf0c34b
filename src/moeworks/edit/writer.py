"""Writes tensors shard by shard under temporary names; what a killed run has finished is kept and gone on from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeworks.artefact import replace_file
from moeworks.edit.checkpoint.files import INDEX, read_header
from moeworks.edit.outputs import Output, Sources
from moeworks.errors import BadData, MoeworksError

__all__ = ["JOURNAL", "Shard", "assign", "finish", "job_hash", "unfinished_folder", "write_shards"]

JOURNAL = "unfinished.json"


@dataclass(frozen=True, eq=False)
class Shard:
    """A file of the new checkpoint and the tensors that go into it."""

    file: str
    outputs: tuple[Output, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(output.nbytes for output in self.outputs)


def assign(outputs: Sequence[Output], max_bytes: int) -> list[Shard]:
    """Share tensors out over files of at most `max_bytes` in their order; a larger tensor gets a file of its own."""
    from huggingface_hub import split_state_dict_into_shards_factory

    named = {output.name: output for output in outputs}
    split = split_state_dict_into_shards_factory(
        named,
        get_storage_size=lambda output: output.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_bytes,
    )
    return [Shard(file, tuple(named[name] for name in names)) for file, names in split.filename_to_tensors.items()]


def job_hash(shards: Sequence[Shard], *facts: Any) -> str:
    """Return the hash of what is to be written and from what: only a run of the same job may go on with its files."""
    listed = [[s.file, [[o.name, o.shape, o.dtype] for o in s.outputs]] for s in shards]
    return hashlib.blake2b(json.dumps([listed, *facts], sort_keys=True).encode(), digest_size=16).hexdigest()


def unfinished_folder(output: Path) -> Path:
    """Return where files lie until all of them are there."""
    return output.with_name(f"{output.name}.unfinished")


def write_shards(
    shards: Sequence[Shard],
    sources: Sources,
    folder: Path,
    *,
    job: str,
    resume: bool,
    metadata: dict[str, str],
    advance: Callable[[int], None] = lambda nbytes: None,
) -> int:
    """Write all shards into `folder` and return how many were there already.

    A shard takes its name by one rename after it is on disk, so that a kill at any moment loses that one alone. Peak
    memory is one shard, and the layer that is being computed where one is.

    Raises:
        BadData: the folder holds another job's files, and `resume` was asked for.
        MoeworksError: the disk is full or refuses.
    """
    from safetensors.torch import save_file

    _begin(folder, job, resume)
    kept = 0
    for shard in shards:
        path = folder / shard.file
        if _is_whole(path, shard):
            kept += 1
            advance(shard.nbytes)
            continue
        tensors = {}
        for output in shard.outputs:
            tensors[output.name] = output.make(sources).contiguous()
            advance(output.nbytes)
        with replace_file(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)
        del tensors
        sources.release()
    return kept


def finish(folder: Path, output: Path, shards: Sequence[Shard], *, overwrite: bool) -> None:
    """Write the index, take away the journal, and give the folder its name."""
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(shard.nbytes for shard in shards)},
            "weight_map": {o.name: shard.file for shard in shards for o in shard.outputs},
        }
        with replace_file(folder / INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    old = output.with_name(f".{output.name}.{os.getpid()}.old")
    try:
        (folder / JOURNAL).unlink()
        if output.exists():
            assert overwrite
            output.rename(old)
        folder.rename(output)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise MoeworksError(f"cannot put {output} in its place: {error.strerror or error}.") from error


def _begin(folder: Path, job: str, resume: bool) -> None:
    """Make the folder ready: of the same job its whole files stay, of another one nothing."""
    journal = folder / JOURNAL
    if folder.exists():
        if not journal.is_file():
            raise BadData(f"{folder} is there and is no unfinished checkpoint of ours; move it out of the way.")
        same = json.loads(journal.read_text(encoding="utf-8")).get("job") == job
        if not (same and resume):
            shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MoeworksError(f"cannot write {folder}: {error.strerror}.") from error
    for left in folder.glob(".*.tmp"):
        left.unlink()
    if not journal.is_file():
        with replace_file(journal) as temporary:
            temporary.write_text(json.dumps({"format": "moeworks.unfinished", "version": 1, "job": job}) + "\n")


def _is_whole(path: Path, shard: Shard) -> bool:
    """Whether a file has all of a shard's tensors; it took its name only when it was whole."""
    if not path.is_file():
        return False
    try:
        header, _ = read_header(path)
    except BadData:
        return False
    header.pop("__metadata__", None)
    listed = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    return listed == {output.name: (output.dtype, output.shape) for output in shard.outputs}
