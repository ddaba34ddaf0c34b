"""Starts Ray on this machine, or joins the cluster that is there, and maps shards over its workers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from moeworks import errors
from moeworks.engines.ray.worker import Recorder
from moeworks.errors import BadData, MoeworksError, RunFailed

__all__ = ["mapped"]

STORE = 100 * 2**20  # bytes of Ray's object store: what goes through it is numbers of shards


def mapped(shards: Sequence[int], *, workers: int, gpu: bool, **recorder: Any) -> Iterator[tuple[int, int]]:
    """Record shards on workers and yield (shard, tokens) as they are finished.

    Args:
        shards: their numbers.
        workers: how many; each takes one core of Ray's count, and one GPU with `gpu`.
        gpu: whether a worker needs one.
        **recorder: arguments of `Recorder`.

    Raises:
        MoeworksError: what a worker said, as it said it.
        RunFailed: Ray itself failed, or too many workers died on one shard; finished shards are kept. A worker that
            died is started again by Ray, and its shard handed out again, as often as it takes.
    """
    import ray
    from ray.data import ActorPoolStrategy

    with _running(workers), _quiet():
        _check_room(ray.cluster_resources(), workers, gpu)
        data = ray.data.from_items([{"shard": number} for number in shards], override_num_blocks=len(shards))
        results = data.map_batches(
            Recorder,
            fn_constructor_kwargs=recorder,
            batch_size=1,
            compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=1 if gpu else 0,
        )
        try:
            for row in results.iter_rows():
                if row["kind"]:
                    raise _error(row["kind"])(row["error"])
                yield int(row["shard"]), int(row["tokens"])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise RunFailed(f"Ray failed ({reason[-1]}); finished shards are kept: resume (--resume).") from error


def _error(kind: str) -> type[MoeworksError]:
    found = getattr(errors, kind, RunFailed)
    return found if isinstance(found, type) and issubclass(found, MoeworksError) else RunFailed


@contextmanager
def _running(workers: int) -> Iterator[None]:
    """Join the Ray that runs or that RAY_ADDRESS names, or start one on this machine, which listens on loopback."""
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    if not os.environ.get("RAY_ADDRESS"):
        # one core more than the workers take: reading needs it, and with none to spare the run would stand still
        options |= {"num_cpus": workers + 1, "_node_ip_address": "127.0.0.1", "object_store_memory": STORE}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # on the screen; its log files have more
    ray.init(**options)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data's bars and reports off the screen."""
    from ray.data import DataContext

    context = DataContext.get_current()
    log = logging.getLogger("ray.data")
    before = context.enable_progress_bars, log.level
    context.enable_progress_bars = False
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        log.setLevel(before[1])


def _check_room(resources: dict[str, float], workers: int, gpu: bool) -> None:
    """Refuse more workers than Ray has room for: it would wait for ever."""
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if workers >= cores:
        raise BadData(f"{workers} workers need {workers + 1} cores of Ray's count, it has {cores}; ask for fewer.")
    if gpu and workers > gpus:
        raise BadData(f"{workers} workers need a GPU each, Ray has {gpus}; ask for fewer, or leave the device out.")
