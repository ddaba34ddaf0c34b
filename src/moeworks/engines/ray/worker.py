"""What runs in a worker of Ray: a model, loaded once, that records one shard at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moeworks.engines.ray.shards import Shards
from moeworks.errors import MoeworksError

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.plan import Plan

__all__ = ["Recorder"]


class Recorder:
    """A callable class for `ray.data.Dataset.map_batches`.

    Args:
        model: as `moeworks.load` takes it.
        engine: the engine inside.
        load: further options of loading.
        record: options of `Engine.record`, the plan as JSON.
        folder: of the shards, on a disk that all workers share.
        threads: of a worker's arithmetic; 0 leaves them alone.
    """

    def __init__(
        self, *, model: str, engine: str, load: dict[str, Any], record: dict[str, Any], folder: str, threads: int
    ) -> None:
        if threads:
            os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
        self._load: dict[str, Any] = {"model": model, "engine": engine, **load}
        self._record = dict(record)
        self._shards = Shards(Path(folder))
        self._engine: Engine | None = None
        self._plan: Plan | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Record the shards with these numbers; an error of ours comes back as a row, so that it is not tried again."""
        done = [self._one(int(number)) for number in batch["shard"]]
        return {
            "shard": np.asarray(batch["shard"]),
            "tokens": np.array([tokens for tokens, _, _ in done], np.int64),
            "kind": np.array([kind for _, kind, _ in done], object),
            "error": np.array([error for _, _, error in done], object),
        }

    def _one(self, number: int) -> tuple[int, str, str]:
        try:
            if self._shards.done(number):
                return 0, "", ""
            attempt = self._shards.attempt(number)
            engine = self._opened()
            trace = engine.record(self._shards.read(number), attempt, plan=self._plan, **self._record)
            self._shards.finish(attempt, number)
            return len(trace), "", ""
        except MoeworksError as error:
            return 0, type(error).__name__, str(error)

    def _opened(self) -> Engine:
        """Return the model, loaded at the first shard."""
        if self._engine is None:
            from moeworks.engines.registry import load
            from moeworks.plan import Plan

            if plan := self._record.pop("plan", None):
                self._plan = Plan.model_validate_json(plan)
            self._engine = load(**self._load)
        return self._engine
