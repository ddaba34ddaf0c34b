"""The loops that numpy cannot do: one step depends on the one before. Plain functions, compiled at first use."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.stats.compiled import compiled

__all__ = ["NEVER", "compiled", "merge_events", "next_uses", "run_cache"]

Array = NDArray[Any]
NEVER = np.int32(2**31 - 1)  # the next use of an expert that is not used again
# Policies as numbers; `moeworks.place.cache` maps names to them.
RANDOM, FIXED, LRU, LFU, LFRU, PREDICTOR, LEAST_STALE, SCH, BELADY_FORCED, BELADY = range(10)
COLD_MISS, COLD_HIT, COLD_SKIP = range(3)


def merge_events(ids: Array, ran: Array, event: Array, seen: Array, out: Array, sizes: Array) -> int:
    """Write the distinct experts of each event to `out` in the order in which they first appear; return how many.

    Args:
        ids: (n, k) experts. ran: (n, k) booleans, False where a slot did not run.
        event: (n,) event of each row, not descending.
        seen: (E,) int64, the last event of each expert, -1 at first; kept from call to call.
        out: (n k,) int32, filled from the front. sizes: (events,) int64, added to.
    """
    filled = 0
    for row in range(ids.shape[0]):
        here = event[row]
        for slot in range(ids.shape[1]):
            x = ids[row, slot]
            if ran[row, slot] and seen[x] != here:
                seen[x] = here
                out[filled] = x
                filled += 1
                sizes[here] += 1
    return filled


def next_uses(experts: Array, starts: Array, fresh: Array, total: int) -> Array:
    """Return for each access the number of the next event that uses its expert, (a,) int32; NEVER if none does."""
    never = np.int32(2**31 - 1)
    found = np.empty(len(experts), np.int32)
    upcoming = np.full(total, never, np.int32)
    for i in range(len(starts) - 2, -1, -1):
        for j in range(starts[i], starts[i + 1]):
            found[j] = upcoming[experts[j]]
        for j in range(starts[i], starts[i + 1]):
            upcoming[experts[j]] = i
        if fresh[i]:
            for x in range(total):
                upcoming[x] = never
    return found


def run_cache(
    experts: Array,
    starts: Array,
    unit: Array,
    layer: Array,
    fresh: Array,
    next_use: Array,
    home: Array,
    base: Array,
    tables: Array,
    resident: Array,
    capacity: int,
    policy: int,
    pin: bool,
    bypass: bool,
    cold: int,
    window: int,
    seed: int,
    hits: Array,
    requests: Array,
) -> None:
    """Run one cache over all events and add to `hits` and `requests`, (units, layers) int64 each.

    Args:
        experts: (a,) int32, distinct in an event; starts: (events + 1,) int64 where each event's accesses begin.
        unit, layer: (events,) where counts go. fresh: (events,) whether the cache is emptied before the event.
        next_use: (a,) int32, or (0,) where the policy does not look ahead.
        home: (total,) layer of each expert; base: (layers,) number of each layer's first expert.
        tables: (layers, E, E) float32 of the predictor, or (0, 0, 0). resident: (total,) booleans of the fixed set.
        window: events that `sch` looks at, this one included.
    """
    total = len(home)
    events = len(starts) - 1
    all_at_once = pin or policy == BELADY
    looks_ahead = policy in (BELADY, BELADY_FORCED)
    protects = pin and policy != BELADY
    may_skip = policy == BELADY or (bypass and policy != BELADY_FORCED and policy != RANDOM)
    slots = np.full(capacity, -1, np.int32)
    slot_of = np.full(total, -1, np.int32)
    count = np.zeros(total, np.int64)
    last = np.zeros(total, np.int64)  # clock of the last access
    used = np.zeros(total, np.int64)  # event of the last access
    held = np.full(total, -1, np.int64)  # event that pins it
    future = np.zeros(total, np.int64)
    key = np.zeros(total, np.float64)  # what is evicted first is lowest; the oldest among equals
    seen = np.zeros(total, np.bool_)
    order = np.zeros(total, np.int64)
    # LRU keeps held experts in a ring from the oldest to the newest; the place `total` joins its ends.
    older = np.full(total + 1, total, np.int32)
    newer = np.full(total + 1, total, np.int32)
    size, distinct, clock, ahead = 0, 0, 0, 0
    np.random.seed(seed)
    for i in range(events):
        begin, end = starts[i], starts[i + 1]
        here = layer[i]
        if fresh[i]:
            for x in range(total):
                slot_of[x] = -1
                count[x] = 0
                future[x] = 0
                key[x] = 0.0
                seen[x] = False
            size, distinct, ahead = 0, 0, i
            older[total] = total
            newer[total] = total
        if policy == SCH:
            while ahead < events and ahead < i + window and (ahead <= i or not fresh[ahead]):
                for j in range(starts[ahead], starts[ahead + 1]):
                    future[experts[j]] += 1
                    key[experts[j]] += 1.0
                ahead += 1
        for j in range(begin, end):
            x = experts[j]
            hit = slot_of[x] >= 0
            counted = True
            if not seen[x]:
                seen[x] = True
                if distinct < capacity and not hit:
                    hit = cold == COLD_HIT
                    counted = cold != COLD_SKIP
                distinct += 1
            if counted:
                requests[unit[i], here] += 1
                hits[unit[i], here] += hit
        if policy == FIXED:  # its experts are loaded when they are first needed, as those of any other cache
            for j in range(begin, end):
                if resident[experts[j]]:
                    slot_of[experts[j]] = 0
            continue
        if policy == PREDICTOR:
            width = tables.shape[2]
            for e in range(width):
                if base[here] + e < total and home[base[here] + e] == here:
                    expected = 0.0
                    for j in range(begin, end):
                        expected += tables[here, experts[j] - base[here], e]
                    key[base[here] + e] = expected / max(1, end - begin)
        if all_at_once:
            for j in range(begin, end):
                x = experts[j]
                clock += 1
                count[x] += 1
                last[x] = clock
                used[x] = i
                held[x] = i
                if policy == LFU:
                    key[x] = count[x]
                elif policy == SCH:
                    future[x] -= 1
                    key[x] = future[x]
                elif looks_ahead:
                    key[x] = -next_use[j]
        for t in range(end - begin):
            order[t] = begin + t
        if policy == BELADY_FORCED and pin and end - begin > capacity:
            # More than fits: what is used again soonest gets the places. Insertion sort by next use.
            for t in range(1, end - begin):
                moved = order[t]
                place = t
                while place > 0 and next_use[order[place - 1]] > next_use[moved]:
                    order[place] = order[place - 1]
                    place -= 1
                order[place] = moved
        for t in range(end - begin):
            x = experts[order[t]]
            if not all_at_once:
                clock += 1
                count[x] += 1
                last[x] = clock
                used[x] = i
                if policy == LFU:
                    key[x] = count[x]
                elif policy == SCH:
                    future[x] -= 1
                    key[x] = future[x]
                elif looks_ahead:
                    key[x] = -next_use[order[t]]
            if slot_of[x] >= 0:
                if policy == LRU and not all_at_once:
                    newer[older[x]] = newer[x]
                    older[newer[x]] = older[x]
                    older[x] = older[total]
                    newer[x] = total
                    newer[older[x]] = x
                    older[total] = x
                continue
            if size < capacity:
                slots[size] = x
                slot_of[x] = size
                size += 1
                if policy == LRU:
                    older[x] = older[total]
                    newer[x] = total
                    newer[older[x]] = x
                    older[total] = x
                continue
            if policy == LRU:
                e = newer[total]
                while protects and e < total and held[e] == i:
                    e = newer[e]
                if e == total:
                    continue
                newer[older[e]] = newer[e]
                older[newer[e]] = older[e]
                slots[slot_of[e]] = x
                slot_of[x] = slot_of[e]
                slot_of[e] = -1
                older[x] = older[total]
                newer[x] = total
                newer[older[x]] = x
                older[total] = x
                continue
            best, found, lowest, oldest = -1, 0, 0.0, 0
            for s in range(size + 1):  # the place after the last stands for the newcomer
                if s == size and not may_skip:
                    break
                e = x if s == size else slots[s]
                if protects and s < size and held[e] == i:
                    continue
                found += 1
                if policy == RANDOM:
                    if np.random.random() * found < 1:
                        best = s
                    continue
                score = key[e]
                if policy == LFRU:
                    score = count[e] / (i - used[e] + 1.0)
                elif policy == LEAST_STALE:
                    score = 1.0 if home[e] > here else 0.0
                if best < 0 or score < lowest or (score == lowest and last[e] < oldest):
                    best, lowest, oldest = s, score, last[e]
            if best < 0 or best == size:  # all pinned, or the newcomer ranks lowest: used without being kept
                continue
            slot_of[slots[best]] = -1
            slots[best] = x
            slot_of[x] = best
        if policy == LRU and all_at_once:
            for j in range(begin, end):  # those of this event are the newest, in its order
                x = experts[j]
                if slot_of[x] >= 0:
                    newer[older[x]] = newer[x]
                    older[newer[x]] = older[x]
                    older[x] = older[total]
                    newer[x] = total
                    newer[older[x]] = x
                    older[total] = x
