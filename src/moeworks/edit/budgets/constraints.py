"""What every plan has to fulfil: experts enough for the router, equal groups, multiples, protected experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, lcm

from moeworks.address import Address
from moeworks.artefact import LayerShape
from moeworks.errors import BadPlan

__all__ = ["Constraints", "expert_groups"]


def expert_groups(shape: LayerShape) -> int:
    """Return the number of groups that the router limits its choice by; 1 where it does not."""
    return shape.contract.groups if shape.contract is not None else 1


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Rules for the number of experts that each layer keeps.

    Attributes:
        shapes: the routers that are cut, in layer order.
        protected: experts that stay.
        multiple_of: each count is a multiple of it (kernels like 8).
        expert_parallel: devices that share a layer's experts; each count is a multiple of it.
        equal_groups: groups of a group-limited router keep equally many, without which it goes silently wrong.
        uneven: whether layers may keep different numbers, which stock checkpoints cannot express.
        whole: layers with routers that are left as they are: hash-routed ones, and those that nobody asked to cut.
    """

    shapes: tuple[LayerShape, ...]
    protected: tuple[Address, ...] = ()
    multiple_of: int = 1
    expert_parallel: int = 1
    equal_groups: bool = True
    uneven: bool = False
    whole: tuple[LayerShape, ...] = ()

    def __post_init__(self) -> None:
        if self.multiple_of < 1 or self.expert_parallel < 1:
            raise BadPlan("multiples of experts are at least 1.")

    def step(self, place: int) -> int:
        """Return what the count of a layer has to be a multiple of."""
        groups = expert_groups(self.shapes[place]) if self.equal_groups else 1
        return lcm(self.multiple_of, self.expert_parallel, groups)

    def least(self, place: int) -> int:
        """Return the fewest experts that a layer may keep, before multiples; `place` counts the layers that are cut."""
        return max(number for number, _ in self._lower_bounds(place))

    def floor(self, place: int) -> int:
        """Return the fewest experts that a layer may keep, a multiple of its step or all."""
        step = self.step(place)
        return min(ceil(self.least(place) / step) * step, self.shapes[place].experts)

    def floors(self) -> tuple[int, ...]:
        """Return `floor` of every layer."""
        return tuple(self.floor(place) for place in range(len(self.shapes)))

    def protected_in(self, layer: int) -> frozenset[int]:
        """Return the protected experts of a layer."""
        return frozenset(address.expert for address in self.protected if address.layer == layer)

    def _lower_bounds(self, place: int) -> Iterator[tuple[int, str]]:
        shape = self.shapes[place]
        yield shape.top_k, f"its router chooses {shape.top_k}"
        groups = expert_groups(shape)
        contract = shape.contract
        per_group = [1]
        if groups > 1 and contract is not None:
            each = shape.experts // groups
            needed = ceil(shape.top_k / contract.groups_kept)
            yield needed * groups, f"{contract.groups_kept} of its {groups} groups have to hold {shape.top_k}"
            if contract.group_score == "top_2_sum":
                yield 2 * groups, "a group is as good as its best two"
            held = [expert // each for expert in self.protected_in(shape.layer)]
            per_group = [held.count(group) for group in range(groups)]
        protected = len(self.protected_in(shape.layer))
        if protected:
            number = max(per_group) * groups if groups > 1 and self.equal_groups else protected
            where = f", up to {max(per_group)} in one group" if groups > 1 else ""
            yield number, f"{protected} are protected{where}"

    def problems(self, counts: Sequence[int]) -> list[str]:
        """Return every rule that counts break, one sentence each."""
        found = []
        for shape in self.shapes:
            if shape.contract is None:
                found.append(
                    f"Layer {shape.layer}: its router's rule is not known ({shape.opaque or 'no reason given'}), "
                    "so that nobody can say what a cut does to it."
                )
        for address in self.protected:
            home = next((s for s in (*self.shapes, *self.whole) if s.layer == address.layer), None)
            if home is None or address.expert >= home.experts:
                found.append(f"The protected expert {address} does not exist.")
        for place, (shape, count) in enumerate(zip(self.shapes, counts, strict=True)):
            found += [f"Layer {shape.layer} {problem}" for problem in self._layer_problems(place, shape, count)]
        sizes = {*counts, *(shape.experts for shape in self.whole)}
        if len(sizes) > 1 and not self.uneven:
            left = ", ".join(str(shape.layer) for shape in self.whole)
            why = f"layers {left} would stay whole" if left else "layers would keep unequal numbers"
            found.append(
                f"{why.capitalize()} ({', '.join(map(str, sorted(sizes)))} experts), and stock checkpoints have one "
                "number for all; use the budget uniform, or ask for it by name with uneven (--uneven)."
            )
        return found

    def _layer_problems(self, place: int, shape: LayerShape, count: int) -> Iterator[str]:
        if not 1 <= count <= shape.experts:
            yield f"would keep {count} of {shape.experts} experts."
            return
        for number, why in self._lower_bounds(place):
            if count < number:
                yield f"would keep {count} experts and {why}; keep at least {number} of {shape.experts}."
        if count == shape.experts:
            return
        groups = expert_groups(shape)
        if self.equal_groups and count % groups:
            yield (
                f"would keep {count} experts in {groups} groups, which have to be equal; use the budget group_equal, "
                "or another share."
            )
        for step, what in ((self.multiple_of, "asked for"), (self.expert_parallel, "devices")):
            if count % step:
                yield f"would keep {count} experts, no multiple of {step} ({what})."

    def check(self, counts: Sequence[int]) -> None:
        """Refuse counts that break a rule.

        Raises:
            BadPlan: with every problem in one message.
        """
        found = self.problems(counts)
        if found:
            number = "one problem" if len(found) == 1 else f"{len(found)} problems"
            raise BadPlan(f"these experts cannot be cut so, {number}: {' '.join(found)}")
