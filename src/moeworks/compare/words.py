"""What a comparison says, in a few sentences."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moeworks.compare.comparison import Comparison

__all__ = ["in_words"]


def in_words(found: Comparison) -> str:
    """Return what is alike, where it parts first, and probably why."""
    lines = [f"{found.rows:,} tokens compared, first to second: {_who(found, 0)}; {_who(found, 1)}."]
    if found.only_first or found.only_second:
        lines.append(
            f"Left out: {found.only_first:,} tokens are in the first alone, {found.only_second:,} in the second."
        )
    if found.after_divergence:
        lines.append(
            f"Left out: {found.after_divergence:,} tokens of texts that had become different texts before them."
        )
    if found.lacks:
        lines.append(f"Not compared, since one of the traces lacks them: {', '.join(found.lacks)}.")
    if found.shift:
        lines.append(
            f"The layer axis is moved: the second's layer n holds what the first has {abs(found.shift)} layer(s) "
            f"{'before' if found.shift > 0 else 'after'} it. Numbers below compare layers of the same number."
        )
    table = found.layers.to_pylist()
    if found.identical:
        return "\n".join([*lines, "They route alike: the same experts, in the same slots, with the same weights."])
    overlap = sum(line["overlap"] for line in table) / len(table)
    flips = sum(line["first_flips"] for line in table)
    lines.append(f"Of a token's experts {overlap:.2%} are the same; {flips:.2%} of the tokens part somewhere.")
    first = max(table, key=lambda line: line["first_flips"])
    if first["first_flips"]:
        lines.append(f"Most part first in layer {first['layer']} ({first['first_flips']:.2%} of the tokens).")
    causes = Counter(line["cause"] for line in table if line["cause"])
    lines += [f"Probable cause of flips in {_layers(count)}: {what}." for what, count in causes.most_common()]
    weights = Counter(line["weight_cause"] for line in table if line["weight_cause"])
    lines += [f"Probable cause of weight errors in {_layers(count)}: {what}." for what, count in weights.most_common()]
    return "\n".join(lines)


def _who(found: Comparison, which: int) -> str:
    model, engine = found.models[which], found.engines[which]
    name = model.name if model is not None else (found.first, found.second)[which]
    return f"{name} in {engine.name} {engine.version}, {engine.dtype}" if engine is not None else name


def _layers(count: int) -> str:
    return "one layer" if count == 1 else f"{count} layers"
