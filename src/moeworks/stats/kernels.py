"""Loops over the experts of neighbouring tokens, for `compiled`: windows, caches with lookahead, reuse.

Arguments they share: `slots` (n, k) int16 experts, -1 where a slot did not run; `start`, `stop` (s,) stretches of
tokens; `entry` (s,) the entry of `counts`, an integer array that is added to in place, that a stretch belongs to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["count_hits", "count_ranks", "count_reuse", "count_runs", "count_windows", "sum_shares"]

Array = NDArray[Any]


def count_runs(counts: Array, entry: Array, ids: Array, bits: Array, mask: int) -> bool:
    """Add how often each expert ran to counts (entries, E), and return whether every id is below E.

    `bits` (n, k) are the weights' bits as unsigned numbers and `mask` all of them but the sign, so that -0 is 0 too;
    rows of entry -1 are left out. Nothing is added from the first wrong id on.
    """
    experts = counts.shape[1]
    for i in range(len(entry)):
        e = entry[i]
        if e < 0:
            continue
        for j in range(ids.shape[1]):
            chosen = ids[i, j]
            if chosen < 0 or chosen >= experts:
                return False
            if bits[i, j] & mask:
                counts[e, chosen] += 1
    return True


def sum_shares(sums: Array, entry: Array, ids: Array, weights: Array) -> bool:
    """Add each row's weights / their sum to sums (entries, E) float64, and return whether a row is no distribution.

    Rows of entry -1 are left out; nothing is added from the first wrong row on. Weights (n, k) float32.
    """
    experts = sums.shape[1]
    for i in range(len(entry)):
        e = entry[i]
        if e < 0:
            continue
        total = 0.0
        for j in range(ids.shape[1]):
            if ids[i, j] < 0 or ids[i, j] >= experts or weights[i, j] < 0:
                return True
            total += np.float64(weights[i, j])
        if total > 0:
            for j in range(ids.shape[1]):
                sums[e, ids[i, j]] += np.float64(weights[i, j]) / total
    return False


def count_windows(slots: Array, start: Array, stop: Array, entry: Array, length: int, counts: Array) -> None:
    """Count windows by how many of their tokens an expert ran for: counts (entries, E, length + 1).

    A count changes with two tokens only, so that a window costs 2 k steps, not E.
    """
    experts = counts.shape[1]
    ran = np.zeros(experts, np.int64)
    since = np.zeros(experts, np.int64)
    for s in range(len(start)):
        first, windows, here = start[s], stop[s] - start[s] - length + 1, counts[entry[s]]
        if windows < 1:
            continue
        ran[:] = 0
        since[:] = 0
        for i in range(first, first + length):
            for j in range(slots.shape[1]):
                if slots[i, j] >= 0:
                    ran[slots[i, j]] += 1
        for p in range(1, windows):
            for j in range(slots.shape[1]):
                e = slots[first + p - 1, j]
                if e >= 0:
                    here[e, ran[e]] += p - since[e]
                    since[e] = p
                    ran[e] -= 1
            for j in range(slots.shape[1]):
                e = slots[first + p + length - 1, j]
                if e >= 0:
                    here[e, ran[e]] += p - since[e]
                    since[e] = p
                    ran[e] += 1
        for e in range(experts):
            here[e, ran[e]] += windows - since[e]


def count_ranks(slots: Array, start: Array, stop: Array, entry: Array, length: int, counts: Array) -> None:
    """Count windows by how many experts ran for at least v of their tokens: counts (entries, length + 1, E + 1).

    With n(v) such experts, the c most frequent experts of a window ran Σ over v ≥ 1 of min(c, n(v)) times.
    """
    experts = counts.shape[2] - 1
    ran = np.zeros(experts, np.int64)
    reach = np.zeros(length + 1, np.int64)  # experts that ran for at least v tokens of the window
    since = np.zeros(length + 1, np.int64)
    for s in range(len(start)):
        first, windows, here = start[s], stop[s] - start[s] - length + 1, counts[entry[s]]
        if windows < 1:
            continue
        ran[:] = 0
        reach[:] = 0
        since[:] = 0
        for i in range(first, first + length):
            for j in range(slots.shape[1]):
                e = slots[i, j]
                if e >= 0:
                    ran[e] += 1
                    reach[ran[e]] += 1
        for p in range(1, windows):
            for j in range(slots.shape[1]):
                e = slots[first + p - 1, j]
                if e >= 0:
                    v = ran[e]
                    here[v, reach[v]] += p - since[v]
                    since[v] = p
                    reach[v] -= 1
                    ran[e] -= 1
            for j in range(slots.shape[1]):
                e = slots[first + p + length - 1, j]
                if e >= 0:
                    ran[e] += 1
                    v = ran[e]
                    here[v, reach[v]] += p - since[v]
                    since[v] = p
                    reach[v] += 1
        for v in range(1, length + 1):
            here[v, reach[v]] += windows - since[v]


def count_hits(slots: Array, start: Array, stop: Array, entry: Array, length: int, counts: Array) -> None:
    """Count uses of experts by the smallest cache that would hold them: counts (entries, E + 1), size 1 to E.

    The cache sees `length` tokens ahead, throws out what they use least (of equal ones what it used longest ago), and
    takes in what runs. The order in which it gives things up is the same for all sizes, so that a cache holds what
    smaller ones hold (a stack algorithm): one pass serves all sizes. An expert's first use counts as a hit while fewer
    experts than the size have been seen.

    Source: inclusion property, Mattson et al. 1970.
    """
    experts, k = counts.shape[1] - 1, slots.shape[1]
    stack = np.zeros(experts, np.int64)  # what a cache of size c holds are the first c
    place = np.zeros(experts, np.int64)  # where each expert stands in it
    future = np.zeros(experts, np.int64)  # uses in the tokens ahead
    stamp = np.zeros(experts, np.int64)  # last use; 0 is never
    for s in range(len(start)):
        here = counts[entry[s]]
        future[:] = 0
        stamp[:] = 0
        seen, clock, ahead = 0, 0, start[s]
        for i in range(start[s], stop[s]):
            while ahead < stop[s] and ahead < i + length:
                for j in range(k):
                    if slots[ahead, j] >= 0:
                        future[slots[ahead, j]] += 1
                ahead += 1
            fresh = 0
            for j in range(k):  # before this token's own experts come in
                e = slots[i, j]
                if e < 0:
                    continue
                if stamp[e] == 0:
                    fresh += 1
                    here[seen + fresh] += 1
                else:
                    here[place[e] + 1] += 1
            for j in range(k):
                e = slots[i, j]
                if e < 0:
                    continue
                future[e] -= 1
                depth = place[e]
                if stamp[e] == 0:
                    depth = seen
                    seen += 1
                clock += 1
                stamp[e] = clock
                if depth == 0:
                    stack[0] = e
                    place[e] = 0
                    continue
                carried = stack[0]
                stack[0] = e
                place[e] = 0
                most, age = future[carried], stamp[carried]
                for d in range(1, depth):  # at each size, what the smaller cache gave up against what this one held
                    other = stack[d]
                    uses = future[other]
                    if uses < most or (uses == most and stamp[other] < age):
                        stack[d] = carried
                        place[carried] = d
                        carried, most, age = other, uses, stamp[other]
                stack[depth] = carried
                place[carried] = depth


def count_reuse(slots: Array, start: Array, stop: Array, entry: Array, gaps: Array, counts: Array) -> None:
    """Count uses of experts by tokens since the last use, gaps (entries, longest + 1), and by distance.

    counts (entries, E + 1): how many different experts, itself included, ran from its last use on to the token before
    this one: the smallest cache of most recently used experts that still holds it. First uses of a text stand at 0 of
    both.
    """
    experts, k = counts.shape[1] - 1, slots.shape[1]
    stack = np.zeros(experts, np.int64)  # most recently used first
    last = np.zeros(experts, np.int64)
    for s in range(len(start)):
        gap, here = gaps[entry[s]], counts[entry[s]]
        last[:] = -1
        seen = 0
        for i in range(start[s], stop[s]):
            for j in range(k):
                e = slots[i, j]
                if e < 0:
                    continue
                if last[e] < 0:
                    gap[0] += 1
                    here[0] += 1
                    continue
                gap[i - last[e]] += 1
                depth = 0
                while stack[depth] != e:
                    depth += 1
                here[depth + 1] += 1
            for j in range(k):
                e = slots[i, j]
                if e < 0:
                    continue
                depth = 0
                if last[e] < 0:
                    depth = seen
                    seen += 1
                else:
                    while stack[depth] != e:
                        depth += 1
                while depth > 0:
                    stack[depth] = stack[depth - 1]
                    depth -= 1
                stack[0] = e
                last[e] = i
