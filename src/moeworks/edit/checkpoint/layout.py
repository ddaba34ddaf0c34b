"""Which tensors of a layer are its experts and its router, in whatever form; what is not known is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeworks.edit.checkpoint.names import EXPERT_PARTS, Role, match
from moeworks.errors import Unsupported

__all__ = ["LayerLayout", "Shape", "layout_of"]

Shape = tuple[int, ...]
_STACKED: tuple[Role, ...] = ("gate", "up", "down", "fused", "gate_bias", "up_bias", "down_bias", "fused_bias")
_FLAT: tuple[Role, ...] = ("flat_gate", "flat_up", "flat_down")
_VECTORS: tuple[Role, ...] = ("router", "router_bias", "selection_bias", "expert_scale")


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerLayout:
    """Where the experts and the router of one layer lie. E experts with weights.

    Attributes:
        layer: global layer number.
        prefix: what stands before the names within the layer.
        experts: E.
        extra: rows that the router has beyond E: experts without weights, or shared ones. They always stay, at the end.
        block: what stands before `experts.N.` within the layer, where each expert has tensors of its own.
        numbered: for each expert its tensors, part → name; some have parts beyond E (LongCat).
        stacked: role → name of a tensor with all experts.
        side: stacked tensors of quantised experts.
        table: name of the table of token ids, or "".
        shapes: name → shape, of all tensors named here.
    """

    layer: int
    prefix: str
    experts: int
    extra: int
    block: str
    numbered: Mapping[int, Mapping[str, str]]
    stacked: Mapping[Role, str]
    side: tuple[str, ...]
    table: str
    shapes: Mapping[str, Shape]

    @property
    def width(self) -> int:
        """Rows of the router: experts, and those beyond."""
        return self.experts + self.extra

    @property
    def names(self) -> set[str]:
        """All tensors that depend on the number of experts."""
        parts = {name for parts in self.numbered.values() for name in parts.values()}
        return parts | set(self.stacked.values()) | set(self.side) | ({self.table} if self.table else set())

    def numbered_name(self, expert: int, part: str) -> str:
        """Return the name of one expert's tensor."""
        return f"{self.prefix}{self.block}experts.{expert}.{part}"


def layout_of(layer: int, prefix: str, shapes: Mapping[str, Shape], experts: int) -> LayerLayout | None:
    """Return where the experts of a layer lie, or None if it has none.

    Args:
        layer: its number.
        prefix: what its tensors' names begin with.
        shapes: full name → shape of every tensor of the layer.
        experts: E, as the config says.

    Raises:
        Unsupported: a tensor seems to depend on the experts and the table of names does not know it, or the number of
            experts is another than E; the message names every such tensor.
    """
    numbered: dict[int, dict[str, str]] = {}
    stacked: dict[Role, str] = {}
    side: list[str] = []
    table, blocks, unknown, strange = "", set(), [], []
    for name, shape in shapes.items():
        rest = name.removeprefix(prefix)
        found = match(rest)
        if found is None:
            if shape[:1] == (experts,) or "expert" in rest or "router" in rest:
                unknown.append(name)
        elif found.role == "numbered":
            numbered.setdefault(found.expert, {})[found.part] = name
            blocks.add(found.block)
        elif found.role == "side":
            side.append(name)
        elif found.role == "table":
            table = name
        elif found.role != "whole":
            if found.role in stacked:
                strange.append(f"{name} and {stacked[found.role]}")
            stacked[found.role] = name
    if not any(role in stacked for role in ("down", "flat_down")) and not numbered and not side:
        if any("expert" in name.removeprefix(prefix) and "shared" not in name for name in unknown):
            raise Unsupported(_refusal(layer, unknown))
        return None
    if unknown:
        raise Unsupported(_refusal(layer, unknown))
    if strange or len(blocks) > 1:
        raise Unsupported(
            f"layer {layer} has two sets of experts under one number of experts "
            f"({'; '.join(strange) or ', '.join(sorted(blocks))}); cutting one alone cannot be written."
        )
    if "router" not in stacked:
        raise Unsupported(f"layer {layer} has experts and no router that is known by its name; nothing was written.")
    layout = LayerLayout(
        layer=layer,
        prefix=prefix,
        experts=experts,
        extra=shapes[stacked["router"]][0] - experts,
        block=next(iter(blocks), ""),
        numbered=numbered,
        stacked=stacked,
        side=tuple(side),
        table=table,
        shapes=dict(shapes),
    )
    _check_counts(layout)
    return layout


def _refusal(layer: int, unknown: list[str]) -> str:
    names = ", ".join(unknown[:6]) + (f" and {len(unknown) - 6} more" if len(unknown) > 6 else "")
    return (
        f"layer {layer} has tensors that seem to belong to experts and that are not understood: {names}. Nothing is "
        "copied on a guess; add their names to moeworks.edit.checkpoint.names."
    )


def _check_counts(layout: LayerLayout) -> None:
    """Every tensor must have as many experts as the config says, and every expert the same tensors."""
    wrong: list[str] = []
    for role, name in layout.stacked.items():
        shape = layout.shapes[name]
        rows = shape[-1] if role == "selection_bias" and len(shape) == 2 and shape[0] == 1 else shape[0]
        if role in _FLAT:
            fits = rows % layout.experts == 0
        elif role in _VECTORS:
            fits = rows in (layout.experts, layout.width)
        else:
            fits = rows == layout.experts or (rows == layout.width and role != "down")
        if not fits or (role == "selection_bias" and len(shape) > 1 and shape[0] != 1):
            wrong.append(f"{name} {shape}")
    wrong += [f"{name} {layout.shapes[name]}" for name in layout.side if layout.shapes[name][0] != layout.experts]
    if layout.numbered:
        expected = set(layout.numbered.get(0, ()))
        there = {expert for expert, parts in layout.numbered.items() if expected <= set(parts)}
        beyond = [e for e in layout.numbered if e >= layout.width or (e >= layout.experts and e in there)]
        missing = sorted(set(range(layout.experts)) - there)
        uneven = [e for e in range(layout.experts) if set(layout.numbered.get(e, ())) != expected]
        if beyond or missing or uneven:
            wrong.append(f"experts {sorted({*beyond, *missing, *uneven})[:8]} have other tensors than expert 0")
        if not any(EXPERT_PARTS.get(part.partition(".")[0]) == "down" for part in expected):
            wrong.append(f"expert 0 has the parts {', '.join(sorted(expected))}, none of them a down projection")
    if layout.extra < 0 or wrong:
        raise Unsupported(
            f"layer {layout.layer} does not have {layout.experts} experts everywhere, as the config says: "
            f"{'; '.join(wrong) or 'its router has fewer rows'}."
        )
