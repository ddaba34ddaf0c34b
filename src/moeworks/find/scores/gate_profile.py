"""Gate profile: which few experts of each layer a behaviour runs through, as an audit of how concentrated it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.address import Address
from moeworks.errors import BadData
from moeworks.find.scores.base import SCORES, Report, Side, reads

if TYPE_CHECKING:
    from moeworks.find.artefact import Scores

__all__ = ["gate_profile", "profile_of"]

Array = NDArray[Any]


def profile_of(scores: Scores, *, times: int = 3) -> tuple[Address, ...]:
    """Return the `times` × k experts of each layer with the largest utility, by layer, strongest first.

    Raises:
        BadData: the scores do not say which model they are of.
    """
    if scores.header.model is None:
        raise BadData("the scores do not say which model they are of; make them again with: moeworks find.")
    layer, expert, score = (scores.column(name) for name in ("layer", "expert", "score"))
    found: list[Address] = []
    for number in scores.layers:
        rows = np.flatnonzero(layer == number)
        order = rows[np.lexsort((expert[rows], -score[rows]))][: times * scores.header.model.layer(number).top_k]
        found += [Address(number, int(expert[row])) for row in order if score[row] > 0]
    return tuple(found)


def _report(scores: Scores, rates: Array, names: tuple[str, ...], options: dict[str, Any]) -> Report:
    """Say which share of all choices falls on the profile, on each side, and which share of the experts it is."""
    profile = profile_of(scores, times=options.get("times", 3))
    places = {
        (int(a), int(b)): row
        for row, (a, b) in enumerate(zip(scores.column("layer"), scores.column("expert"), strict=True))
    }
    rows = [places[address.layer, address.expert] for address in profile]
    shares = {name: float(side[rows].sum() / side.sum()) for name, side in zip(names, rates, strict=True)}
    by_layer = {}
    for number in scores.layers:
        mine = scores.column("layer") == number
        inside = [row for row in rows if mine[row]]
        by_layer[str(number)] = float(rates[0, inside].sum() / rates[0, mine].sum())
    even = len(profile) / rates.shape[1]
    told = " and ".join(f"{share:.1%} of the choices on the {name} side" for name, share in shares.items())
    note = (
        f"Profile: {len(profile)} experts ({even:.1%} of all), the strongest of each layer, take {told}. The score is "
        "of one side: experts that run on everything are in the profile too."
    )
    facts = {"profile": [str(a) for a in profile], "concentration": shares, "by_layer": by_layer, "even": even}
    return Report(facts, (note,))


@SCORES.register("gate_profile")
@reads("runs", aggregate="macro", one_sided=True, tail="upper", report=_report)
def gate_profile(contrast: Side, against: Side, *, times: int = 3) -> Array:
    """Return the utility of each expert: the mean over texts of the share of tokens for which it ran, (b, experts).

    There is no subtraction of what runs on other texts at this stage, as in the paper; so every layer has a profile,
    its `times` × k experts of largest utility (`profile_of`), and the report says how concentrated the behaviour is:
    the share of all choices that falls on the profile, to be compared with the other side's. Where another side is
    given, p asks whether as many documents of either side would have as large a utility.

    Source: GateBreaker (arXiv 2512.21008, eq. 4 to 6), read through a re-implementation that cites the equations. The
    paper counts content tokens only: leave template tokens out by a clause. It is an attack paper; here the first
    step is an audit of how few experts carry a behaviour.
    """
    return np.asarray(contrast.rates)
