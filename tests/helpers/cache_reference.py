"""A cache simulator in plain Python, written from the rules and not from the kernels: what those are compared with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from moeworks.place.rules import CacheRules

__all__ = ["hits_of"]

Event = Sequence[int]  # distinct experts of one event


def hits_of(
    events: Sequence[Event],
    policy: str,
    capacity: int,
    *,
    rules: CacheRules,
    fresh: Sequence[bool] | None = None,
    layer: Sequence[int] | None = None,
    home: Sequence[int] | None = None,
    resident: frozenset[int] = frozenset(),
    window: int | None = None,
) -> list[tuple[int, int]]:
    """Return (hits, requests) of each event; every number is found by looking at the whole trace anew."""
    starts = [i for i in range(len(events)) if i == 0 or (fresh is not None and fresh[i])]
    window = rules.lookahead if window is None else window
    counted: list[tuple[int, int]] = []
    for begin, end in zip(starts, [*starts[1:], len(events)], strict=True):
        cache: set[int] = set()
        history: list[tuple[int, int]] = []  # (event, expert) in order of access
        for i in range(begin, end):
            event = list(events[i])
            known = [x for _, x in history]
            hits = requests = 0
            for x in event:
                hit, counts = x in cache, True
                if x not in known and not hit and len(set(known)) < capacity:
                    hit, counts = rules.cold == "hit", rules.cold != "skip"
                known.append(x)
                requests += counts
                hits += counts and hit
            counted.append((hits, requests))
            if policy == "fixed":
                cache |= set(event) & resident
                history = history + [(i, x) for x in event]
                continue

            def score(
                e: int, done: list[int], i: int = i, end: int = end, history: list[tuple[int, int]] = history
            ) -> tuple[float, float]:
                """What is evicted first is lowest; `done` are the experts of this event that were accessed."""
                accessed = history + [(i, x) for x in done]
                mine = [place for place, (_, x) in enumerate(accessed) if x == e]
                recency = mine[-1] if mine else -1
                rest = [x for x in events[i] if x not in done]
                later = [rest, *events[i + 1 : end]]
                if policy == "lru":
                    return 0, recency
                if policy == "lfu":
                    return len(mine), recency
                if policy == "lfru":
                    return len(mine) / (i - accessed[mine[-1]][0] + 1), recency
                if policy == "least_stale":
                    assert home is not None
                    assert layer is not None
                    return float(home[e] > layer[i]), recency
                if policy == "sch":
                    return Counter(x for step in later[:window] for x in step)[e], recency
                assert policy.startswith("belady")
                return -next((n for n, step in enumerate(later) if e in step), math.inf), recency

            together = rules.pin or policy == "belady"
            skips = policy == "belady" or (rules.bypass and policy not in ("belady_forced", "random"))
            order = event
            if policy == "belady_forced" and rules.pin and len(event) > capacity:
                order = sorted(event, key=lambda x: -score(x, event)[0])
            for place, x in enumerate(order):
                done = event if together else event[: place + 1]
                if x in cache:
                    continue
                if len(cache) < capacity:
                    cache.add(x)
                    continue
                candidates = set(cache)
                if rules.pin and policy != "belady":
                    candidates -= set(event)
                if skips:
                    candidates.add(x)
                if not candidates:
                    continue
                victim = min(candidates, key=lambda e: score(e, done))
                if victim != x:
                    cache.remove(victim)
                    cache.add(x)
            history = history + [(i, x) for x in event]
    return counted
