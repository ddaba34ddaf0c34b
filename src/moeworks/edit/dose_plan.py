"""The ranking that a dose curve follows, and the three parts of the texts: for finding, for choosing, held out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from moeworks.edit.calibration import calibration_texts
from moeworks.edit.files import load_edit_plan
from moeworks.edit.plan import EditPlan
from moeworks.edit.planning import plan_edit
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.probes import neutral_texts, split_of
from moeworks.study.budget import some_of_each

if TYPE_CHECKING:
    from moeworks.engines.base import Engine

__all__ = ["DoseTexts", "dose_texts", "ranking_plan"]

BUILT_IN = 400  # built-in texts that statistics are collected on


class DoseTexts(NamedTuple):
    """Three sets of texts that share no document."""

    find: Sequence[Example]
    dev: Sequence[Example]
    held_out: Sequence[Example]


def dose_texts(source: str | None) -> DoseTexts:
    """Return the texts of a source, split by document as probes are, or the built-in ones.

    Raises:
        BadData: a part has no text.
    """
    if source is None:
        return DoseTexts(some_of_each(calibration_texts(), BUILT_IN), neutral_texts("dev"), neutral_texts("held_out"))
    from moeworks.data import read_examples

    parts: dict[str, list[Example]] = {"find": [], "dev": [], "held_out": []}
    for number, example in enumerate(read_examples(source)):
        parts[split_of(example.document or f"{number}")].append(example)
    empty = [name for name, texts in parts.items() if not texts]
    if empty:
        raise BadData(
            f"{source} has too few documents to split: none of them falls into {' and '.join(empty)}; give more texts, "
            "of 20 documents, say."
        )
    return DoseTexts(parts["find"], parts["dev"], parts["held_out"])


def ranking_plan(
    engine: Engine,
    *,
    plan: str | Path | None = None,
    statistics: str | Path | None = None,
    method: str = "reap",
    texts: Sequence[Example] = (),
    seed: int = 0,
    progress: bool = False,
) -> EditPlan:
    """Return a plan with a ranking: one that is given, or one made from statistics, or from texts that are run first.

    Args:
        engine: the model.
        plan: a file with a ranking.
        statistics: a folder of them.
        method: score to rank by.
        texts: run where neither is given.
        seed: of methods that draw.
        progress: show a bar on standard error.
    """
    if plan is not None:
        return load_edit_plan(plan)
    from moeworks.edit.statistics_file import Statistics

    if statistics is not None:
        return plan_edit(Statistics.open(statistics), method=method, keep=1.0, seed=seed)
    from moeworks.edit.collect import collect
    from moeworks.edit.sides import side_of

    with tempfile.TemporaryDirectory() as folder:
        found = collect(side_of(engine).engine, texts, Path(folder) / "stats", progress=progress)
        return plan_edit(found, method=method, keep=1.0, seed=seed)
