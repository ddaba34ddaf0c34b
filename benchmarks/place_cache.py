"""Times simulated caches against the same rules in plain Python, and at a large size; prints JSON.

The naive arm is the usual way of doing it: a dict or list a policy, a loop over tokens and experts. Both arms get the
same events of one layer, and their hits must be equal. Arms run in turn in one process; the ratio is the median over
rounds. Compiling, once a process, is told apart. The synthetic trace has tastes by token, so that caches differ.

    python benchmarks/place_cache.py [--tokens 20000] [--large 1000000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections import OrderedDict
from typing import Any

import numpy as np

from moeworks.place.cache import run_events
from moeworks.place.events import Events
from moeworks.place.kernels import compiled, next_uses
from moeworks.place.rules import CacheRules

EXPERTS, TOP_K, HELD = 64, 8, 16
RULES = CacheRules()


def make_events(tokens: int) -> Events:
    rng = np.random.default_rng(0)
    taste = rng.normal(size=(500, EXPERTS)).astype(np.float32)
    token = np.minimum(rng.zipf(1.3, tokens), 500) - 1
    chosen = np.empty((tokens, TOP_K), np.int32)
    for start in range(0, tokens, 100_000):
        part = slice(start, start + 100_000)
        noise = rng.normal(size=(len(token[part]), EXPERTS)).astype(np.float32)
        chosen[part] = (taste[token[part]] + noise).argpartition(-TOP_K)[:, -TOP_K:]
    fresh = np.zeros(tokens, bool)
    fresh[0] = True
    zeros = np.zeros(tokens, np.int32)
    return Events(
        chosen.ravel(), np.arange(tokens + 1, dtype=np.int64) * TOP_K, zeros, zeros, fresh,
        np.zeros(EXPERTS, np.int32), np.zeros(1, np.int64), 1, 1,
    )  # fmt: skip


def naive_lru(rows: list[list[int]]) -> int:
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for row in rows:
        hits += sum(expert in cache for expert in row)
        for expert in row:
            if expert in cache:
                cache.move_to_end(expert)
        held = set(row)
        for expert in row:
            if expert not in cache:
                if len(cache) == HELD:
                    del cache[next(other for other in cache if other not in held)]
                cache[expert] = None
        for expert in row:
            cache.move_to_end(expert)
    return hits


def naive_lfu(rows: list[list[int]]) -> int:
    cache: set[int] = set()
    count, last = dict.fromkeys(range(EXPERTS), 0), dict.fromkeys(range(EXPERTS), 0)
    hits = clock = 0
    for row in rows:
        hits += sum(expert in cache for expert in row)
        for expert in row:
            clock += 1
            count[expert] += 1
            last[expert] = clock
        held = set(row)
        for expert in row:
            if expert not in cache:
                if len(cache) == HELD:
                    cache.remove(min(cache - held, key=lambda other: (count[other], last[other])))
                cache.add(expert)
    return hits


def naive_belady(rows: list[list[int]]) -> int:
    never = len(rows) + 1
    after: list[list[int]] = [[] for _ in rows]
    upcoming = dict.fromkeys(range(EXPERTS), never)
    for step in range(len(rows) - 1, -1, -1):
        after[step] = [upcoming[expert] for expert in rows[step]]
        for expert in rows[step]:
            upcoming[expert] = step
    cache: set[int] = set()
    hits = 0
    for row, later in zip(rows, after, strict=True):
        hits += sum(expert in cache for expert in row)
        upcoming.update(zip(row, later, strict=True))
        for expert in row:
            if expert not in cache:
                cache.add(expert)
                if len(cache) > HELD:
                    cache.remove(max(cache, key=lambda other: upcoming[other]))
    return hits


def kernel(events: Events, policy: Any) -> int:
    hits, _ = run_events(events, policy, (HELD,), rules=RULES)
    return int(hits.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    started = time.process_time()
    small = make_events(100)
    compiled(next_uses)(small.experts, small.starts, small.fresh, EXPERTS)
    kernel(small, "lru")
    compiling = time.process_time() - started
    events = make_events(arguments.tokens)
    rows = events.experts.reshape(-1, TOP_K).tolist()
    results = {}
    arms: tuple[tuple[str, Any], ...] = (("lru", naive_lru), ("lfu", naive_lfu), ("belady", naive_belady))
    for policy, naive in arms:
        assert naive(rows) == kernel(events, policy), policy
        times: dict[str, list[float]] = {"naive": [], "ours": []}
        for _ in range(arguments.rounds):
            for name, call, given in (("naive", naive, (rows,)), ("ours", kernel, (events, policy))):
                begin = time.process_time()
                call(*given)
                times[name].append(time.process_time() - begin)
        ratios = [a / max(b, 1e-6) for a, b in zip(times["naive"], times["ours"], strict=True)]
        results[policy] = {
            "naive_seconds": round(statistics.median(times["naive"]), 4),
            "seconds": round(statistics.median(times["ours"]), 4),
            "times_faster": round(statistics.median(ratios), 1),
        }
        print(policy, results[policy], file=sys.stderr, flush=True)
    large = make_events(arguments.large)
    for policy in ("lru", "lfu", "lfru", "sch", "belady"):
        begin = time.process_time()
        kernel(large, policy)
        taken = time.process_time() - begin
        results.setdefault(policy, {})["million_requests_a_second"] = round(len(large.experts) / taken / 1e6, 1)
        print(policy, results[policy], file=sys.stderr, flush=True)
    report = {
        "benchmark": "place_cache",
        "conditions": {
            "experts": EXPERTS, "top_k": TOP_K, "held": HELD, "tokens": arguments.tokens, "large": arguments.large,
            "rounds": arguments.rounds, "cores": os.cpu_count(), "machine": platform.machine(),
            "python": platform.python_version(), "numpy": np.__version__,
        },
        "compile_seconds": round(compiling, 2),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "results": results,
    }  # fmt: skip
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
