"""Language and task experts: how much more often an expert runs on some value of a label than on the base's texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.address import Address
from moeworks.errors import BadData, did_you_mean
from moeworks.find.scores.base import GROUP_SCORES, Groups, Report, reads

if TYPE_CHECKING:
    from moeworks.find.artefact import Scores

__all__ = ["TAUS", "multilingual"]

Array = NDArray[Any]
TAUS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def _admits(score: Array, *, base: str = "en", tau: float = 0.3) -> Array:
    return np.asarray(score > tau + 1e-12)


def _report(scores: Scores, rates: Array, names: tuple[str, ...], options: dict[str, Any]) -> Report:
    """Count experts by tau, and name those of each value at the tau that was asked for."""
    base, tau = options.get("base", "en"), options.get("tau", 0.3)
    others = [name for name in names if name != base]
    delta = {name: rates[names.index(name)] - rates[names.index(base)] for name in others}
    largest = np.max(list(delta.values()), axis=0)
    addresses = [
        str(Address(int(a), int(b))) for a, b in zip(scores.column("layer"), scores.column("expert"), strict=True)
    ]
    counts = {f"{t:g}": int((largest > t).sum()) for t in sorted({*TAUS, tau})}
    experts = {name: [addresses[row] for row in np.flatnonzero(values > tau)] for name, values in delta.items()}
    note = f"Experts above tau: {', '.join(f'{t}: {n}' for t, n in counts.items())}."
    note += f" At {tau:g} by value: {', '.join(f'{name} {len(found)}' for name, found in experts.items())}."
    return Report({"base": base, "tau": tau, "counts": counts, "by_value": experts}, (note,))


@GROUP_SCORES.register("multilingual")
@reads("runs", aggregate="macro", tail="upper", admits=_admits, report=_report)
def multilingual(groups: Groups, *, base: str = "en", tau: float = 0.3) -> Array:
    """Return Delta, how much more often an expert runs on a value's texts than on the base's, (b, experts), -1 to 1.

    Frequencies are means over texts of the share of a text's tokens. Without a target it is the largest Delta of all
    values but the base: an expert is multilingual if it exceeds `tau` for at least one language. tau is the model's
    own; the report counts experts for several before anything is done with them. Beside the paper's rule an expert
    must stand a null in which documents change their values.

    Source: Multilingual Routing in MoE (arXiv 2510.04694, section on expert identification), read through a
    re-implementation that cites its equations.

    Raises:
        BadData: no text has the base value, or the base itself is asked for.
    """
    if base not in groups.names:
        raise BadData(f"no text has the base value '{base}'; {did_you_mean(base, groups.names)}")
    place = groups.names.index(base)
    if groups.target == place:
        raise BadData(
            f"'{base}' is the base that others are compared with; ask for another value, or name another base."
        )
    rates = groups.rates
    above = rates - rates[:, place, None]  # (b, g, experts)
    if groups.target is not None:
        return np.asarray(above[:, groups.target])
    return np.asarray(np.delete(above, place, axis=1).max(1))
