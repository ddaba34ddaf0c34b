"""What a simulated cache of experts holds and how it counts: every choice that changes a hit rate, in one place."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from moeworks.errors import BadData, did_you_mean

if TYPE_CHECKING:
    from moeworks.artefact import LayerShape

__all__ = ["BYTE_UNITS", "CAUSAL", "POLICIES", "CacheRules", "Capacity", "Policy", "as_policies", "check_policy"]

Policy = Literal[
    "random", "fixed", "lru", "lfu", "lfru", "predictor", "least_stale", "sch", "belady_forced", "belady"
]  # fmt: skip
# In the order of what they know: nothing, the past, other documents, a few tokens of the future, all of it.
POLICIES: tuple[Policy, ...] = get_args(Policy)
CAUSAL: tuple[Policy, ...] = ("random", "fixed", "lru", "lfu", "lfru", "predictor", "least_stale")
BYTE_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_FORM = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(k|%|[kmgt]i?b)?\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class Capacity:
    """How much fits: experts a layer, a multiple of k, a share of the experts, or bytes for the whole model."""

    kind: Literal["experts", "k", "share", "bytes"]
    value: float

    @classmethod
    def parse(cls, word: str) -> Capacity:
        """Read `8` (experts a layer), `2k` (twice the experts of a token), `25%` or `4GB` (all layers together)."""
        found = _FORM.match(word)
        if found is None:
            raise BadData(f"'{word}' is no capacity; write 8 (experts a layer), 2k, 25% or 4GB (the whole model).")
        number, unit = float(found[1]), (found[2] or "").lower()
        if unit == "":
            if number != int(number):
                raise BadData(f"'{word}' experts is no whole number; write 2k or 25% for a share.")
            return cls("experts", number)
        if unit == "k":
            return cls("k", number)
        if unit == "%":
            return cls("share", number / 100)
        return cls("bytes", number * BYTE_UNITS[unit])

    def of(self, layers: Sequence[LayerShape], *, expert_bytes: float | None = None) -> tuple[int, ...]:
        """Return the experts that each layer may hold, at least 1 and at most all; a pool holds their sum.

        Raises:
            BadData: bytes without the bytes of an expert, or too few for one expert a layer.
        """
        if self.kind == "bytes":
            if not expert_bytes:
                raise BadData("a capacity in bytes needs the bytes of one expert; give them, or a capacity in experts.")
            each = int(self.value / expert_bytes / len(layers))
            if each < 1:
                raise BadData(
                    f"{self.value:.3g} bytes hold less than one expert of {expert_bytes:.3g} bytes in each of "
                    f"{len(layers)} layers; give more."
                )
            return tuple(min(each, layer.experts) for layer in layers)
        if self.kind == "experts":
            held = tuple(int(self.value) for _ in layers)
        else:
            widths = [layer.top_k if self.kind == "k" else layer.experts for layer in layers]
            held = tuple(max(1, math.floor(self.value * width + 0.5)) for width in widths)
        if min(held) < 1:
            raise BadData("a cache holds at least one expert a layer.")
        for layer, experts in zip(layers, held, strict=True):
            if experts > layer.experts:
                raise BadData(
                    f"a cache of {experts} experts is larger than layer {layer.layer}, which has {layer.experts}."
                )
        return held


@dataclass(frozen=True, kw_only=True)
class CacheRules:
    """The semantics of a simulated cache; two hit rates are comparable only where all of this is equal.

    An event is what must be there at once: the experts that one step of one batch of texts uses in one layer. Hits are
    always counted against what the cache holds before the event.

    Attributes:
        scope: a cache for each layer, or one pool in which an expert of any layer may displace any other.
        capacity: see `Capacity.parse`; a pool holds as many experts as the layers together.
        pin: whether experts of an event cannot be evicted during it. Where an event has more experts than there are
            places, the rest is used without being kept. Without pinning, experts of an event are taken one after
            another and may displace one another, as in the published SCH.
        cold: what the first access of an expert counts as while there are still free places: a `miss`, a `hit` (as in
            the published SCH, which raises small traces by up to 0.17), or nothing (`skip`).
        bypass: whether a policy may leave out a newcomer that it ranks below everything held.
        batch: texts that run together, step by step; their experts are merged into one event.
        prefill: prompt tokens as single steps (`tokens`), a whole prompt as one event (`pass`), or not through the
            cache at all (`bypass`).
        between: whether the cache keeps its experts from one batch of texts to the next, or starts `empty`.
        lookahead: tokens of the future that `sch` knows and that `predictor` estimates, this one included.
    """

    scope: Literal["layer", "pooled"] = "layer"
    capacity: str = "2k"
    pin: bool = True
    cold: Literal["miss", "hit", "skip"] = "miss"
    bypass: bool = False
    batch: int = 1
    prefill: Literal["tokens", "pass", "bypass"] = "tokens"
    between: Literal["keep", "empty"] = "keep"
    lookahead: int = 16

    def __post_init__(self) -> None:
        for name, known in (
            ("scope", ("layer", "pooled")),
            ("cold", ("miss", "hit", "skip")),
            ("prefill", ("tokens", "pass", "bypass")),
            ("between", ("keep", "empty")),
        ):
            if getattr(self, name) not in known:
                raise BadData(f"{name} cannot be '{getattr(self, name)}'; {did_you_mean(getattr(self, name), known)}")
        if self.batch < 1 or self.lookahead < 1:
            raise BadData("batch and lookahead are at least 1.")
        Capacity.parse(self.capacity)

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self)


def as_policies(names: Sequence[str] | None, rules: CacheRules) -> tuple[Policy, ...] | None:
    """Return names as policies after checking them; None stays None."""
    if names is None:
        return None
    for name in names:
        check_policy(name, rules)
    return tuple(policy for policy in POLICIES if policy in names)


def check_policy(policy: str, rules: CacheRules) -> None:
    """Raise where a policy is unknown, or means nothing under these rules."""
    if policy not in POLICIES:
        raise BadData(f"no policy is called '{policy}'; {did_you_mean(policy, POLICIES)}")
    if policy == "least_stale" and rules.scope != "pooled":
        raise BadData("least_stale looks at the sweep over layers; it needs scope=pooled (within one layer it is lru).")
