"""A recording in shards: the folder beside the trace that holds each shard's texts and, once it is done, its trace."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from moeworks.artefact import replace_file
from moeworks.errors import BadData, BadTrace, RunFailed
from moeworks.examples import Example

__all__ = ["Shards"]

SETTINGS = "settings.json"
ATTEMPT = ".by-"
ATTEMPTS = 4  # workers that may die on a shard


@dataclass(frozen=True)
class Shards:
    """The folder; shard n is the file `n.jsonl` and, when it was recorded, the trace in the folder `n`."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> Shards:
        """Make the folder, or go on with the one that is there.

        Args:
            folder: beside the trace.
            settings: what must be the same for shards to fit together, as JSON has it.
            resume: go on with what is there.
            overwrite: begin anew whatever is there.

        Raises:
            BadTrace: something is there and neither was asked for, or it was made in another way.
        """
        if overwrite and folder.exists():
            shutil.rmtree(folder)
        file = folder / SETTINGS
        if file.is_file():
            if not resume:
                raise BadTrace(f"{folder} holds an unfinished recording; resume it (--resume) or remove it.")
            before = json.loads(file.read_text(encoding="utf-8"))
            if unlike := sorted(n for n in before.keys() | settings.keys() if before.get(n) != settings.get(n)):
                told = "; ".join(f"{n} is {before.get(n)} there and {settings.get(n)} here" for n in unlike)
                raise BadTrace(f"{folder} cannot be resumed: {told}.")
            for left in folder.glob(f"*{ATTEMPT}*"):  # of workers that died
                shutil.rmtree(left)
            return cls(folder)
        if folder.exists() and any(folder.iterdir()):
            raise BadTrace(f"{folder} is in the way: it holds no recording; remove it.")
        folder.mkdir(parents=True, exist_ok=True)
        with replace_file(file) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        return cls(folder)

    def cut(self, examples: Iterable[Example], size: int) -> int:
        """Write the texts in shards of `size`, and return how many there are.

        A text without a document gets its place among all texts as one, as it would have in one piece.

        Raises:
            BadTrace: a shard is there with other texts, or beyond the last one.
            BadData: there is no text.
        """
        count = 0
        for number, lines in enumerate(_lines(examples, size)):
            file = self.texts(number)
            if file.is_file():
                if file.read_text(encoding="utf-8") != lines:
                    raise BadTrace(f"{self.folder} cannot be resumed: the texts of shard {number} were others.")
            else:
                with replace_file(file) as temporary:
                    temporary.write_text(lines, encoding="utf-8")
            count = number + 1
        if not count:
            raise BadData("there is no text to record.")
        if self.texts(count).is_file():
            raise BadTrace(f"{self.folder} cannot be resumed: it has more texts than the data have now.")
        return count

    def texts(self, number: int) -> Path:
        """Return the file of a shard's texts."""
        return self.folder / f"{number:06d}.jsonl"

    def trace(self, number: int) -> Path:
        """Return the folder of a shard's trace."""
        return self.folder / f"{number:06d}"

    def done(self, number: int) -> bool:
        """Whether a shard was recorded."""
        return (self.trace(number) / "trace.json").is_file()

    def read(self, number: int) -> Iterator[Example]:
        """Yield a shard's texts."""
        with self.texts(number).open(encoding="utf-8") as stream:
            for line in stream:
                yield Example.model_validate_json(line)

    def attempt(self, number: int) -> Path:
        """Return an empty folder for this process to record a shard in; `finish` moves it to its place.

        Raises:
            RunFailed: so many processes died on this shard that the next one would too.
        """
        before = len(list(self.folder.glob(f"{number:06d}{ATTEMPT}*")))
        if before >= ATTEMPTS:
            raise RunFailed(
                f"{before} workers died while they recorded shard {number}, perhaps for want of memory: look at its "
                f"texts ({self.texts(number)}), use fewer workers or smaller batches. Other shards are kept: resume "
                "(--resume)."
            )
        path = self.folder / f"{number:06d}{ATTEMPT}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        path.mkdir()
        return path

    def finish(self, attempt: Path, number: int) -> None:
        """Put a whole trace in its place; where another worker was faster, that one's stays."""
        try:
            attempt.rename(self.trace(number))
        except OSError:
            if not self.done(number):
                raise
            shutil.rmtree(attempt)

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder)


def _lines(examples: Iterable[Example], size: int) -> Iterator[str]:
    """Yield the JSON lines of `size` examples at a time."""
    numbered = enumerate(examples)
    while shard := list(islice(numbered, size)):
        yield "".join(
            (example if example.document else example.model_copy(update={"document": str(index)})).model_dump_json(
                exclude_defaults=True
            )
            + "\n"
            for index, example in shard
        )
