"""The first look at a model: a small trace of texts in twelve languages, and which experts carry each of them.

Both are kept in the user's cache (`$XDG_CACHE_HOME/moeworks/first-look`, else `~/.cache/moeworks/first-look`), under
the hash of the weights, the texts and the program's version, so that the page opens at once from the second time on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from moeworks import __version__
from moeworks.artefact import hash_texts
from moeworks.errors import MoeworksError
from moeworks.plan.protected import cache_folder
from moeworks.probes import load_probe, probe_names
from moeworks.study.budget import some_documents

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.examples import Example

__all__ = ["LANGUAGES", "TRACE", "first_look", "first_texts"]

LANGUAGES = "language/"  # the probes whose texts are read
TRACE = "languages"
KEPT = 6  # models whose first looks are kept; the one that was not used for the longest goes
PERMUTATIONS, BOOTSTRAP = 1000, 200


def first_texts(count: int = 20) -> list[Example]:
    """Return `count` texts of each language of the built-in probes, with the labels `lang` and `domain`.

    They are from the part for finding, so that evidence on held-out items stays evidence.
    """
    texts = []
    for name in probe_names():
        if name.startswith(LANGUAGES):
            language = name.removeprefix(LANGUAGES)
            own = [text for text in load_probe(name).texts("find") if text.labels["lang"] == language]
            texts += [
                text.model_copy(update={"labels": {key: text.labels[key] for key in ("lang", "domain")}})
                for text in some_documents(own, count, seed=0)
            ]
    return texts


def first_look(
    engine: Engine,
    *,
    texts: int = 20,
    progress: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> list[Path]:
    """Return the paths of the trace and of the scores, recorded and computed now unless they are kept.

    Args:
        engine: the model; it must not be steered.
        texts: of each language.
        progress: show a bar on standard error while the texts are read.
        say: told what is done, a sentence each.

    Raises:
        MoeworksError: the texts cannot be recorded.
    """
    examples = first_texts(texts)
    told = [__version__, engine.identity.weight_hash, engine.identity.tokenizer_hash, engine.engine.dtype]
    told += [hash_texts(text.content() for text in examples), str((PERMUTATIONS, BOOTSTRAP))]
    place = _root() / hashlib.blake2b("\x1e".join(told).encode(), digest_size=16).hexdigest()
    if not _whole(place):
        say(f"recording {len(examples)} texts in {len({text.labels['lang'] for text in examples})} languages, once")
        place = _make(engine, examples, place, progress)
    os.utime(place)
    _drop_old(place.parent)
    return [place / TRACE, *sorted(place.glob("*.arrow"))]


def _root() -> Path:
    root = cache_folder().with_name("first-look")
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(root, os.W_OK):
            return root
    except OSError:
        pass
    # Nothing can be kept: the folder goes with the process.
    import atexit

    folder = tempfile.mkdtemp(prefix="moeworks-first-look-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _whole(place: Path) -> bool:
    """Whether a first look is there and can be read; one that cannot is removed."""
    from moeworks.find import Scores
    from moeworks.trace import Trace

    if not place.is_dir():
        return False
    try:
        Trace.open(place / TRACE)
        for path in place.glob("*.arrow"):
            Scores.load(path)
        return True
    except MoeworksError:
        shutil.rmtree(place, ignore_errors=True)
        return False


def _make(engine: Engine, examples: list[Example], place: Path, progress: bool) -> Path:
    """Make it in a folder beside and rename that: what stands under its name is whole."""
    from moeworks.find import find

    folder = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        trace = engine.record(examples, folder / TRACE, logits=True, progress=progress, command="moeworks view")
        for name in probe_names():
            if name.startswith(LANGUAGES):
                header = load_probe(name).header
                scores = find(
                    trace,
                    contrast=header.contrast,
                    against=header.against,
                    permutations=PERMUTATIONS,
                    bootstrap=BOOTSTRAP,
                    command=f"moeworks find {place / TRACE} --contrast {header.contrast} --against {header.against}",
                )
                scores.save(folder / f"{name.replace('/', '-')}.arrow")
        del trace
        try:
            folder.rename(place)
        except OSError:  # another process was quicker; what it made is the same
            if not _whole(place):
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return place


def _drop_old(root: Path) -> None:
    """Keep the folders that were used last."""
    kept = sorted((one for one in root.iterdir() if not one.name.startswith(".")), key=lambda one: -one.stat().st_mtime)
    for old in kept[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
