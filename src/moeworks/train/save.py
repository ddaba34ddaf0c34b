"""Writes a whole model folder that stock transformers loads; it takes its place by one rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moeworks.errors import BadData, MoeworksError

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["check_output", "save_model", "whole_folder"]


def check_output(output: Path, *, mark: str, overwrite: bool) -> None:
    """Refuse a folder that is there, unless it is one of ours (holds `mark`) and may be replaced.

    Raises:
        BadData: it exists.
    """
    if not output.exists():
        return
    if not overwrite:
        raise BadData(f"{output} is there already; choose another name, or replace it with overwrite (--overwrite).")
    if not (output / mark).is_file():
        raise BadData(f"{output} was not written by this command (it has no {mark}), so it is not replaced.")


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `output`; on success it takes its place, on failure it is removed."""
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    old = output.with_name(f".{output.name}.{os.getpid()}.old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if output.exists():
            output.rename(old)
        temporary.rename(output)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise MoeworksError(f"cannot write {output}: {error.strerror or error}; nothing was left behind.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_model(engine: TransformersEngine, folder: Path) -> None:
    """Write weights (safetensors), configuration, generation settings and tokenizer, as `save_pretrained` does."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    engine.model.save_pretrained(folder)
    engine.tokenizer.save_pretrained(folder)
    if engine.reader.add_bos:  # what transformers' own files cannot say
        from moeworks.engines.transformers.loading import SETTINGS

        (folder / SETTINGS).write_text(json.dumps({"add_bos": True}) + "\n", encoding="utf-8")
