"""The league: every registered method on every probe, with the same data, controls and budget, and what it shows."""

from moeworks.bench.editing import bench_edit
from moeworks.bench.run import bench_detect, bench_steer
from moeworks.bench.schema import League, load_league

__all__ = ["League", "bench_detect", "bench_edit", "bench_steer", "load_league"]
