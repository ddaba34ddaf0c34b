"""Mean and spread of every neuron on two sides of a contrast, streamed: activations are never kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, Unsupported, did_you_mean
from moeworks.find.inside.observe import as_numpy, observe
from moeworks.find.inside.texts import Texts, expert_columns
from moeworks.find.sides import AGAINST, CONTRAST

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.engines.transformers.inside import ExpertPass
    from moeworks.where import Requests, Rows

__all__ = ["SITES", "Moments", "Site", "moments"]

Array = NDArray[Any]
Site = Literal["gate", "up", "key"]
SITES: tuple[Site, ...] = ("gate", "up", "key")


@dataclass
class Moments:
    """Count, mean and sum of squared deviations of each neuron on both sides, over tokens its expert ran for."""

    experts: dict[int, int]  # layer → E
    count: dict[int, Array] = field(default_factory=dict)  # layer → (2, E)
    mean: dict[int, Array] = field(default_factory=dict)  # layer → (2, E, I)
    deviations: dict[int, Array] = field(default_factory=dict)  # layer → (2, E, I)

    def add(self, layer: int, expert: int, side: int, values: Array) -> None:
        """Add rows, (m, I), by the formula of Chan, Golub and LeVeque (1979), which loses no digits."""
        if layer not in self.count:
            shape = (2, self.experts[layer], values.shape[1])
            self.count[layer], self.mean[layer], self.deviations[layer] = np.zeros(shape[:2]), *np.zeros((2, *shape))
        n, m = self.count[layer][side, expert], len(values)
        if not m:
            return
        mean = values.mean(0)
        apart = mean - self.mean[layer][side, expert]
        self.mean[layer][side, expert] += apart * m / (n + m)
        self.deviations[layer][side, expert] += ((values - mean) ** 2).sum(0) + apart**2 * n * m / (n + m)
        self.count[layer][side, expert] = n + m

    def std(self, layer: int) -> Array:
        """Return the population standard deviations of a layer, (2, E, I); 0 where nothing was seen."""
        return np.asarray(np.sqrt(self.deviations[layer] / np.maximum(self.count[layer], 1)[..., None]))

    def known(self, layer: int, *, least: int) -> Array:
        """Return the experts that ran for at least so many tokens of both sides, (e,)."""
        return np.flatnonzero((self.count[layer] >= least).all(0))


def moments(engine: Engine, texts: Texts, *, site: Site = "gate", batch_size: int = 8) -> Moments:
    """Run the texts of both sides and return the moments of all neurons.

    Raises:
        BadData: there is no such site, or a side has no token.
        Unsupported: the experts have no gate, or are not to be looked into; with the reason.
    """
    if site not in SITES:
        raise BadData(f"there is no site '{site}'; {did_you_mean(site, SITES)}")
    found = Moments({layer: experts for layer, (_, experts) in expert_columns(engine.identity, texts.where).items()})

    def add(seen: ExpertPass, rows: Rows, requests: Requests) -> None:
        values = getattr(seen, site)
        if values is None:
            raise Unsupported("the experts of this model have no gate; take site='up' or 'key'.")
        side = texts.sides(rows, requests)[as_numpy(seen.rows)]
        wide = as_numpy(values)
        for which in (CONTRAST, AGAINST):
            found.add(seen.layer, seen.expert, which, wide[side == which])

    observe(engine, texts.examples, add, where=texts.where, batch_size=batch_size)
    texts.present()  # both sides have tokens
    return found
