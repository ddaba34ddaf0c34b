"""From what was typed to what the page shows: models are told from files, and a model alone gets its first look."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeworks.errors import BadData
from moeworks.lab import LAB_MODELS
from moeworks.view.sources import Sources

if TYPE_CHECKING:
    from moeworks.engines.base import Engine

__all__ = ["gather", "is_model"]


def is_model(word: str) -> bool:
    """Whether a SOURCE is a model: a name of ours, a folder with a config.json, or what is no path at all.

    Raises:
        BadData: it is written as a path, and nothing is there.
    """
    path = Path(word)
    if word in LAB_MODELS or word.partition(":")[0] == "fake":
        return True
    if path.exists():
        return (path / "config.json").is_file()
    if path.is_absolute() or word.startswith((".", "~")) or word.endswith((os.sep, ".json", ".arrow")):
        raise BadData(f"there is no file or folder {word}.")
    return True


def gather(
    words: Iterable[str] = (),
    *,
    more: Iterable[str | Path] = (),
    tokenizer: str | Path | None = None,
    texts: int = 20,
    progress: bool = False,
    **options: Any,
) -> Sources:
    """Return what the page shows.

    Args:
        words: the SOURCEs as typed; without any, and without `more`, the lab model.
        more: files and folders that are shown besides.
        tokenizer: of traces whose own is not found.
        texts: of each language, that a model without a trace reads first; 0: none.
        progress: say on standard error what is done.
        options: of the model's loader, such as `device` and `dtype`.

    Raises:
        BadData: two models, or something that a page cannot show.
    """
    words, more = list(words), list(more)
    models = [word for word in words if is_model(word)]
    files = [word for word in words if word not in models]
    if len(models) > 1:
        raise BadData(f"a page has one model, not {' and '.join(models)}; record the others and give their traces.")
    if not (models or files or more):
        models = ["lab"]
    shown = Sources([*files, *more], tokenizer=tokenizer)  # what cannot be shown is said before a model is loaded
    if not models:
        return shown
    shown.engine = engine = _open(models[0], options, progress)
    if texts and not shown.ids("trace"):
        from moeworks.view.first_look import first_look

        for path in first_look(engine, texts=texts, progress=progress, say=_say if progress else _silent):
            shown.add(path)
    return shown


def _open(model: str, options: Mapping[str, Any], progress: bool) -> Engine:
    from moeworks.serve.run import open_model

    if progress:
        _say(f"opening {model}")
    return open_model(model, **options)


def _say(sentence: str) -> None:
    print(f"{sentence} …", file=sys.stderr)


def _silent(sentence: str) -> None:
    pass
