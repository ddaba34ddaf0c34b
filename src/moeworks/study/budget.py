"""How much a study computes: sizes for a look within minutes, and for a result to publish."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from moeworks.examples import Example
from moeworks.probes import Item, Probe
from moeworks.study.schema import Budget

__all__ = ["BUDGETS", "Sizes", "some_documents", "some_items", "some_of_each"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that a budget stands for."""

    texts: int | None  # of the find split, recorded; None: all
    items: int | None  # measured on dev and on held-out
    neutral: int | None  # neutral texts for damage
    permutations: int
    bootstrap: int
    controls: int  # random plans
    doses: tuple[float, ...]  # of the chosen number of experts, for the dose curve
    amounts: tuple[int, ...]  # numbers of experts tried on dev
    documents: int  # of each language, for the divergence of routing
    samples: int  # prompts continued without and with the plan
    new_tokens: int  # generated for each
    routing_tokens: int  # at most, behind each number of routing


BUDGETS: dict[Budget, Sizes] = {
    "quick": Sizes(
        texts=160,
        items=24,
        neutral=20,
        permutations=1000,
        bootstrap=200,
        controls=5,
        doses=(0.5, 1.0, 2.0),
        amounts=(2, 5, 10),
        documents=8,
        samples=2,
        new_tokens=24,
        routing_tokens=1 << 16,
    ),
    "full": Sizes(
        texts=None,
        items=None,
        neutral=None,
        permutations=10_000,
        bootstrap=1000,
        controls=20,
        doses=(0.25, 0.5, 1.0, 2.0),
        amounts=(1, 2, 3, 5, 10, 20, 40),
        documents=100,
        samples=6,
        new_tokens=64,
        routing_tokens=1 << 20,
    ),
}


def some_documents(texts: Sequence[Example], limit: int | None, *, seed: int) -> list[Example]:
    """Return texts of whole documents, at most `limit` texts, in their order; which ones, hash and seed decide.

    A document is never cut: what belongs together (both sides of a pair) stays together.
    """
    if limit is None or len(texts) <= limit:
        return list(texts)
    sizes: dict[str, int] = {}
    names = [text.document or f"\x00{number}" for number, text in enumerate(texts)]  # nameless: one of its own
    for name in names:
        sizes[name] = sizes.get(name, 0) + 1
    kept: set[str] = set()
    room = limit
    for name in sorted(sizes, key=lambda name: hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=8).digest()):
        if sizes[name] <= room:
            kept.add(name)
            room -= sizes[name]
    return [text for name, text in zip(names, texts, strict=True) if name in kept]


def some_of_each(texts: Sequence[Example], limit: int | None) -> list[Example]:
    """Return at most `limit` texts, in their order; each next is of the language and domain with the fewest."""
    if limit is None or len(texts) <= limit:
        return list(texts)
    groups = [[(name, text.labels.get(name, "")) for name in ("lang", "domain")] for text in texts]
    seen: Counter[tuple[str, str]] = Counter()
    left = list(range(len(texts)))
    for _ in range(limit):
        best = min(left, key=lambda number: (sum(seen[group] for group in groups[number]), number))
        left.remove(best)
        seen.update(groups[best])
    return [text for number, text in enumerate(texts) if number not in set(left)]


def some_items(probe: Probe, limit: int | None) -> Probe:
    """Return the probe with at most `limit` items a split, from as many documents as can be."""
    if limit is None:
        return probe
    kept: list[Item] = []
    for split in ("dev", "held_out"):
        items = [item for item in probe.all_items if item.split == split]
        kept += _spread(items, [item.document or number for number, item in enumerate(items)], limit)
    return replace(probe, all_items=tuple(kept))


def _spread(values: Sequence[T], groups: Sequence[Hashable], limit: int | None) -> list[T]:
    """Return the first of each group, then the second, and so on, up to `limit`; in their order."""
    seen: Counter[Hashable] = Counter()
    turns = []
    for number, group in enumerate(groups):
        seen[group] += 1
        turns.append((seen[group], number))
    return [values[number] for number in sorted(number for _, number in sorted(turns)[:limit])]
