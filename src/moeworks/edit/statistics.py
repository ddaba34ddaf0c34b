"""What one pass over text tells of every expert: additive numbers that all scores and groupings are functions of.

Letters in shapes: D values of the label that texts are told apart by (without a label one, `all`), E experts, I neurons
of an expert, H wide outside, n kept rows, k slots. `COLUMNS` names every array.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, did_you_mean

__all__ = ["COLUMNS", "GROUPS", "LayerRows", "LayerStatistics"]

Array = NDArray[Any]

# name → (group, shape of one layer, how two corpora are joined, meaning). Sums run over tokens routed to e, padding and
# shared experts left out, with the router's own ids and weights g; y = f_e(x) is the expert's output before weighting.
COLUMNS: dict[str, tuple[str, str, str, str]] = {
    "count": ("cheap", "D E", "sum", "tokens routed to e"),
    "first": ("cheap", "D E", "sum", "tokens whose largest weight is e's"),
    "first_gate": ("cheap", "D E", "sum", "sum of the weight of e over tokens whose largest it is"),
    "gate": ("cheap", "D E", "sum", "sum of g"),
    "gate_square": ("cheap", "D E", "sum", "sum of g^2"),
    "norm": ("cheap", "D E", "sum", "sum of |y|"),
    "norm_square": ("cheap", "D E", "sum", "sum of |y|^2"),
    "gated_norm": ("cheap", "D E", "sum", "sum of g |y|"),
    "turn": ("cheap", "D E", "sum", "sum of max(1 - cos(h, h + R), 0) g |y|; h residual stream, R routed output"),
    "own_turn": ("cheap", "D E", "sum", "sum of g |y| (1 - cos(x, y)); x input of the expert"),
    "peak": ("cheap", "D E", "max", "largest |y_i|"),
    "top_logit": ("cheap", "D E", "sum", "sum of the raw logit of e over tokens whose largest it is"),
    "pairs": ("router", "D E E", "sum", "tokens routed to both; the diagonal is count"),
    "logit_gram": ("router", "D E E", "sum", "sum over all tokens of z_e z_e', raw logits"),
    "output_sum": ("means", "D E H", "sum", "sum of y"),
    "gated_output_sum": ("means", "D E H", "sum", "sum of g y"),
    "all_output_sum": ("everywhere", "D E H", "sum", "sum of y over all tokens, routed to e or not"),
    "neuron_square": ("neurons", "D E I", "sum", "sum of (g a_j)^2; a_j what the down projection reads of neuron j"),
    "neuron_peak": ("neurons", "D E I", "max", "largest |g a_j|"),
    "neuron_gate_peak": ("neurons", "D E I", "max", "largest |act(gate_j x)|"),
    "neuron_projection": ("neurons", "D E I", "sum", "sum of <down_j a_j, y> / |y|"),
    "neuron_loss": ("gradients", "D E I", "sum", "sum of (o_j . dL/dy)^2; o_j = down_j a_j, HEAPr's second order"),
}
GROUPS = tuple(dict.fromkeys(group for group, *_ in COLUMNS.values()))


class LayerRows(NamedTuple):
    """Rows of calibration text as one layer saw them; methods that need activations compute them from these."""

    hidden: Array  # (n, H) float32, input of router and experts
    ids: Array  # (n, k)
    weights: Array  # (n, k) float32
    logits: Array  # (n, E) float32, raw


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """The statistics of one layer, labels added up unless asked for.

    Attributes:
        layer: global layer number.
        tokens: tokens of each value of the label.
        labels: the values, in the order of the first dimension of every array.
        arrays: by name as in `COLUMNS`.
        sets: distinct sets of chosen experts, (m, k) ascending, and how often each came, (m,); None if not collected.
        load_rows: reads the kept rows; None if none were kept.
        refused: arrays that were asked for and cannot be had of this family, with the reason.
    """

    layer: int
    tokens: Array  # (D,)
    labels: tuple[str, ...]
    arrays: Mapping[str, Array]
    sets: tuple[Array, Array] | None = None
    load_rows: Callable[[], LayerRows] | None = field(default=None, repr=False)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def experts(self) -> int:
        """Number of routed experts, E."""
        return int(self.arrays["count"].shape[1])

    def get(self, name: str, label: str | None = None) -> Array:
        """Return an array without its first dimension: joined over labels, or of one value of the label.

        Raises:
            BadData: it was not collected, or there is no such value; the message says what to collect.
        """
        if name not in COLUMNS:
            raise BadData(f"no statistic is called '{name}'; {did_you_mean(name, COLUMNS)}")
        group, _, joined, _ = COLUMNS[name]
        if name in self.refused:
            raise BadData(f"there is no '{name}' of this model: {self.refused[name]}.")
        if name not in self.arrays:
            raise BadData(f"these statistics hold no '{name}'; collect it with --collect {group} and score again.")
        array = self.arrays[name]
        if label is not None:
            if label not in self.labels:
                raise BadData(f"no text has the label '{label}'; {did_you_mean(label, self.labels)}")
            return np.asarray(array[self.labels.index(label)])
        return np.asarray(array.sum(0) if joined == "sum" else array.max(0))

    def rows(self) -> LayerRows:
        """Return the kept rows.

        Raises:
            BadData: none were kept.
        """
        if self.load_rows is None:
            raise BadData("these statistics kept no rows of text; collect them with --rows N and score again.")
        return self.load_rows()
