"""What was computed already: scores and steering cells in a folder, each under the hash of all that it depends on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moeworks import __version__
from moeworks.artefact import replace_file
from moeworks.bench.cases import Case, Sizes
from moeworks.bench.detection import scored
from moeworks.bench.methods import Detector, Steerer, code_of
from moeworks.bench.schema import SteerCell
from moeworks.find import Scores
from moeworks.study.steps import settings_hash
from moeworks.trace import Trace

__all__ = ["Bench"]

Outcome = tuple[Scores | None, str, float]  # scores or None, why there are none, seconds


class Bench:
    """One case's work: scores and cells that are there with the same settings are read, others are made and kept.

    Args:
        folder: where they are kept.
        case: the case; its engine is opened here.
        sizes: how much.
        resume: False makes everything again.
    """

    def __init__(self, folder: Path, case: Case, sizes: Sizes, *, resume: bool) -> None:
        self.case, self.sizes, self.engine = case, sizes, case.engine()
        self._folder, self._resume = folder, resume
        self._room = folder / f"trace-{os.getpid()}"  # two runs may fill one folder
        self._traces: dict[bool, Trace] = {}
        self._made: dict[str, Outcome] = {}
        identity = self.engine.identity
        self._common: dict[str, Any] = {
            "moeworks": __version__,
            "weights": identity.weight_hash,
            "tokenizer": identity.tokenizer_hash,
            "engine": self.engine.engine.model_dump(),
            "probe": case.probe.header.model_dump(mode="json"),
            "texts": case.probe.text_hash(),
            "seed": case.seed,
            "permutations": sizes.permutations,
            "bootstrap": sizes.bootstrap,
        }

    def close(self) -> None:
        """Remove the trace; it can be recorded again and is large."""
        self._traces.clear()
        shutil.rmtree(self._room, ignore_errors=True)

    def scores(self, detector: Detector, among: list[Detector]) -> Outcome:
        """Return the scores of a detector, or why there are none, and the seconds that they took.

        Args:
            detector: what to score by.
            among: all detectors that will be asked, so that one trace holds what they read.
        """
        key = self._key(detector)
        if key in self._made:
            return self._made[key]
        path = self._folder / "scores" / f"{key}.arrow"
        note = path.with_suffix(".json")
        if self._resume and note.is_file():
            told = json.loads(note.read_text(encoding="utf-8"))
            self._made[key] = Scores.load(path) if not told["refused"] else None, told["refused"], told["seconds"]
            return self._made[key]
        trace = self._recorded(detector, among) if detector.home == "trace" and not detector.refused else None
        found, why, seconds = scored(detector, self.case, self.engine, trace, self.sizes)
        if found is not None:
            found.save(path)
        with replace_file(note) as temporary:
            temporary.write_text(json.dumps({"refused": why, "seconds": seconds}), encoding="utf-8")
        self._made[key] = found, why, seconds
        return self._made[key]

    def steer_cell(self, steerer: Steerer, make: Callable[[], SteerCell]) -> SteerCell:
        """Return the cell of a steerer, read or made."""
        settings = {
            "scores": self._key(steerer.detector),
            "policy": steerer.policy,
            "turns": steerer.turns,
            "maker": steerer.maker,
            "code": code_of(steerer.detector, steerer.policy, steerer.maker),
            "budget": self.case.budget,
            "controls": self.sizes.controls,
            "neutral": [text.content() for text in self.case.neutral],
        }
        path = self._folder / "steer" / f"{settings_hash(settings)}.json"
        if self._resume and path.is_file():
            try:
                kept = SteerCell.model_validate_json(path.read_bytes())
                return kept.model_copy(update={"method": steerer.name})
            except ValidationError:
                pass  # of another version: it is made again
        cell = make()
        with replace_file(path) as temporary:
            temporary.write_text(cell.model_dump_json() + "\n", encoding="utf-8")
        return cell

    def _recorded(self, detector: Detector, among: list[Detector]) -> Trace:
        """Return the trace of the case's texts; pairs are taken apart for a method that wants a number a document."""
        apart = detector.way == "number" and self.case.paired
        if apart not in self._traces:
            logits = any(d.home == "trace" and d.reads == "probabilities" for d in among)
            path = self._room / ("apart" if apart else "whole")
            shutil.rmtree(path, ignore_errors=True)
            texts = self.case.texts(apart=apart)
            self._traces[apart] = self.engine.record(texts, path, logits=logits, seed=self.case.seed)
        return self._traces[apart]

    def _key(self, detector: Detector) -> str:
        settings = {
            **self._common,
            "method": detector.method,
            "way": detector.way,
            "options": dict(detector.options),
            "refused": detector.refused,
            "code": code_of(detector),
        }
        return settings_hash(settings)
