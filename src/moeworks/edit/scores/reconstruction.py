"""How far a layer's output moves when experts go: the loss that searches minimise, on kept rows of text.

Letters in shapes: n rows, E experts, k experts a token, H wide.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from moeworks.address import Address
from moeworks.artefact import LayerShape
from moeworks.contract import Contract, margins, selection_scores
from moeworks.edit.scores.base import EDIT_SCORES, Array, needs
from moeworks.edit.statistics import LayerRows, LayerStatistics
from moeworks.errors import BadData, Unsupported
from moeworks.plan.operations import apply
from moeworks.plan.schema import Mask, Operation

if TYPE_CHECKING:
    from moeworks.edit.layer import LayerWeights

__all__ = ["LayerLoss", "remove_independently"]

MOST_BYTES = 2 << 30  # of the products of expert outputs
_CHUNK = 256  # rows whose expert outputs are in memory at once
_NEAR_TIE = 1e-4
_MOST_ODD = 0.001  # share of rows whose decision may differ from the recorded one by rounding


class LayerLoss:
    """The output of one layer on kept rows, and what becomes of it under sets of experts.

    All experts run on all rows once; only the products of their outputs, row by row, are kept: n × E × E numbers. The
    output with weights w' in place of w moves by a vector of squared length (w' - w)' P (w' - w).
    """

    def __init__(
        self, statistics: LayerStatistics, weights: LayerWeights, shape: LayerShape, *, rows: int = 2048
    ) -> None:
        if shape.contract is None:
            raise Unsupported(f"layer {shape.layer}: its rule is not known, so that no decision can be made again.")
        if shape.contract.hashed:
            raise Unsupported(f"layer {shape.layer} takes its experts from token ids; no other expert can stand in.")
        kept = statistics.rows()
        if rows < 1 or not len(kept.hidden):
            raise BadData("at least one row of text is needed; collect rows with --rows N and score again.")
        take = np.unique(np.linspace(0, len(kept.hidden) - 1, min(rows, len(kept.hidden))).astype(int))
        self._rows = LayerRows(*(np.asarray(column)[take] for column in kept))
        self._contract: Contract = shape.contract
        self._layer, self._experts = shape.layer, shape.experts
        self._bias, self._scale = (
            None if tensor is None else tensor.double().cpu().numpy()
            for tensor in (weights.selection_bias, weights.expert_scale)
        )
        if not self._contract.bias:
            self._bias = None
        if not self._contract.expert_scale:
            self._scale = None
        size = len(take) * shape.experts**2 * 8
        if size > MOST_BYTES:
            raise BadData(
                f"{len(take):,} rows of {shape.experts} experts would need {size / 2**30:.1f} GiB; use fewer, with "
                f"rows={MOST_BYTES // (shape.experts**2 * 8)} or less."
            )
        self.ids: Array = self._rows.ids  # (n, k) the router's own
        if self.ids.min() < 0 or self.ids.max() >= min(shape.experts, weights.experts):
            raise Unsupported(f"layer {shape.layer}: some slots run no expert that has weights; no output can be made.")
        self._check()
        self._products = _products(self._rows.hidden, weights)  # (n, E, E)
        self._own = _dense(self._rows.ids, self._rows.weights, shape.experts)  # (n, E)

    def __len__(self) -> int:
        return len(self._own)

    @property
    def local(self) -> bool:
        """Whether rows that do not choose an expert stay as they are when it goes.

        Not so where it takes part in a softmax whose weights are not divided by their sum, in one that is compared with
        a bias, or in the score of a group.
        """
        c = self._contract
        if c.groups > 1 or c.score == "sparsemixer":
            return False
        if c.order == "top_k_first" or c.score != "softmax":
            return True
        return c.renormalise and c.norm_order == 1 and not c.epsilon and not c.floor and not c.bias

    def decide(self, dropped: Collection[int], rows: Array | slice = slice(None)) -> tuple[Array, Array]:
        """Return ids and weights, (m, k), that the layer's own rule gives some rows when experts are gone."""
        gone = tuple(Address(self._layer, expert) for expert in sorted(dropped))
        operations: list[Operation] = [Mask(experts=gone)] if gone else []
        return apply(
            self._rows.logits[rows],
            self._contract,
            operations,
            layer=self._layer,
            bias=self._bias,
            expert_scale=self._scale,
        )

    def errors(self, dropped: Collection[int], rows: Array | slice = slice(None)) -> tuple[Array, Array]:
        """Return the squared length by which each row's output moves, (m,), and the ids that run instead, (m, k)."""
        ids, weights = self.decide(dropped, rows)
        moved = _dense(ids, weights, self._experts) - self._own[rows]
        return np.maximum(_quadratic(self._products[rows], moved, moved), 0.0), ids

    def cosine_change(self, dropped: Collection[int], rows: Array) -> Array:
        """Return 1 - cosine of the output before and after, (m,); 0 where there was no output."""
        own = self._own[rows]
        new = _dense(*self.decide(dropped, rows), self._experts)
        products = self._products[rows]
        sizes = np.sqrt(np.maximum(_quadratic(products, own, own) * _quadratic(products, new, new), 0.0))
        return np.where(sizes > 0, 1 - _quadratic(products, own, new) / np.where(sizes > 0, sizes, 1.0), 0.0)

    def total(self, errors: Array, batch: int) -> float:
        """Return NAEE's loss: Frobenius norms of the change of each batch of rows, added."""
        starts = np.arange(0, len(errors), batch)
        return float(np.sqrt(np.add.reduceat(errors, starts)).sum())

    def _check(self) -> None:
        """Refuse rows whose recorded decisions are not what the rule makes of their logits."""
        ids, _ = self.decide(())
        differ = (np.sort(ids, 1) != np.sort(self._rows.ids, 1)).any(1)
        choice = selection_scores(self._rows.logits, self._contract, bias=self._bias)
        clear = differ & (margins(choice, self._contract) > _NEAR_TIE)
        if clear.sum() > _MOST_ODD * len(ids):
            raise BadData(
                f"layer {self._layer}: {int(clear.sum())} of {len(ids)} rows were decided otherwise than the model's "
                "rule decides from their logits; these weights or this model are not those of the statistics."
            )


def _products(hidden: Array, weights: LayerWeights) -> Array:
    import torch

    from moeworks.edit.algebra.neurons import activation_of, expert_of, outputs

    activation = activation_of(weights)
    experts = [expert_of(weights, expert) for expert in range(weights.experts)]
    found = np.empty((len(hidden), len(experts), len(experts)))
    with torch.no_grad():
        for start in range(0, len(hidden), _CHUNK):
            x = torch.as_tensor(np.asarray(hidden[start : start + _CHUNK]))
            y = torch.stack([outputs(expert, activation, x) for expert in experts], 1).double()  # (m, E, H)
            found[start : start + _CHUNK] = (y @ y.transpose(1, 2)).cpu().numpy()
    return found


def _dense(ids: Array, weights: Array, experts: int) -> Array:
    dense = np.zeros((len(ids), experts))
    np.put_along_axis(dense, np.asarray(ids, np.int64), np.asarray(weights, np.float64), 1)
    return dense


def _quadratic(products: Array, left: Array, right: Array) -> Array:
    return np.asarray(((left[:, None] @ products)[:, 0] * right).sum(1))  # (m,)


@EDIT_SCORES.register("remove_independently")
@needs("cheap", "rows", "weights", "contract")
def remove_independently(
    statistics: Sequence[LayerStatistics],
    *,
    layers: Iterable[LayerWeights],
    shapes: Sequence[LayerShape],
    measure: Literal["mse", "cosine"] = "mse",
    rows: int = 2048,
) -> Array:
    """How much the layer's output changes when this expert alone goes and its tokens choose again.

    Source: RemoveExpertsIndependent of modelopt 0.47 (wheel read): the displaced tokens run again with the expert
    masked, and the score is the mean squared error or the change of the cosine. Here the mean is over all kept rows, so
    that an expert counts by how often it is needed too. Experts that stand in for each other both look dispensable.
    """
    if measure not in ("mse", "cosine"):
        raise BadData(f"measure is 'mse' or 'cosine', not '{measure}'.")
    scores = []
    for statistic, layer, shape in zip(statistics, layers, shapes, strict=True):
        loss = LayerLoss(statistic, layer, shape, rows=rows)
        wide = statistic.rows().hidden.shape[1]
        row = np.zeros(shape.experts)
        for expert in range(shape.experts):
            touched = np.flatnonzero((loss.ids == expert).any(1)) if loss.local else np.arange(len(loss))
            if len(touched) and shape.experts > shape.top_k:
                change = (
                    loss.errors({expert}, touched)[0] / wide
                    if measure == "mse"
                    else loss.cosine_change({expert}, touched)
                )
                row[expert] = change.sum() / len(loss)
        scores.append(row)
    return np.stack(scores)
