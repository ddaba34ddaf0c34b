"""The keys of one expert, what its down projection reads: points for a box of Key Space Detection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.address import Address
from moeworks.errors import BadData
from moeworks.find.inside.observe import as_numpy, observe
from moeworks.where import Where

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.inside import ExpertPass
    from moeworks.examples import Example
    from moeworks.where import Requests, Rows

__all__ = ["Keys", "expert_keys"]

Array = NDArray[Any]


class Keys(NamedTuple):
    """One key for each text in which the expert ran."""

    points: Array  # (n, I) what the down projection read, for `Box.fit`, `contains` and `calibrate`
    examples: Array  # (n,) which texts, ascending
    positions: Array  # (n,) at which token


def expert_keys(
    engine: Engine,
    examples: Sequence[Example],
    expert: Address,
    *,
    where: Where | str = Where(phase=("prompt",)),
    batch_size: int = 8,
) -> Keys:
    """Return the key of an expert at the last token of each text for which it ran.

    Source: Key Space Detection (arXiv 2503.21730) takes the input of the down projection of a late dense layer at the
    last token of a prompt; an expert has a key only where it is chosen, so that its last one stands for the text. Texts
    in which it never ran have none: a condition on this box is then not met.

    Args:
        engine: the transformers engine.
        examples: the texts; none of their activations but these keys is kept.
        expert: whose keys.
        where: tokens that count; by default those of the prompt.
        batch_size: texts a forward pass.

    Raises:
        BadData: the expert is not there, or ran for no selected token.
    """
    shape = engine.identity.layer(expert.layer)
    if expert.expert >= shape.experts:
        raise BadData(f"{expert} is not there: layer {expert.layer} has experts 0 to {shape.experts - 1}.")
    clause = Where.parse(where) if isinstance(where, str) else where
    found: dict[int, tuple[int, Array]] = {}

    def add(seen: ExpertPass, rows: Rows, requests: Requests) -> None:
        if seen.expert != expert.expert:
            return
        place = as_numpy(seen.rows)  # ascending, so that the last of a request comes last
        request = rows.request[place]
        last = np.flatnonzero(np.diff(request, append=-1))
        keys = as_numpy(seen.key[last.tolist()])
        for number, row, key in zip(requests.numbers[request[last]], place[last], keys, strict=True):  # type: ignore[attr-defined]
            found[int(number)] = int(rows.position[row]), key

    clause = clause.model_copy(update={"layer": (expert.layer,)})
    observe(engine, examples, add, where=clause, batch_size=batch_size)
    if not found:
        raise BadData(f"{expert} ran for no token of these texts that '{clause}' takes; it has no key there.")
    order = sorted(found)
    return Keys(
        np.stack([found[number][1] for number in order]), np.array(order), np.array([found[n][0] for n in order])
    )
