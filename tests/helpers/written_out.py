"""A layer of experts that decided some rows, with its output written out in numpy, for tests of searches."""

from __future__ import annotations

import numpy as np
import torch

from helpers.contracts import Case, sliced
from helpers.cuts import layer_of
from moeworks.artefact import LayerShape
from moeworks.contract import decide
from moeworks.edit.layer import LayerWeights
from moeworks.edit.statistics import LayerRows

ROWS, HIDDEN, NEURONS = 40, 5, 3


class Setting:
    """A layer of 8 experts with a rule, rows that it decided, and its output written out in numpy."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case = case
        draw = np.random.default_rng(seed)
        experts = case.contract.experts
        self.x = draw.normal(size=(ROWS, HIDDEN)).astype(np.float32)
        parts = {name: draw.normal(size=(experts, NEURONS, HIDDEN)) for name in ("gate", "up")}
        down, router = draw.normal(size=(experts, HIDDEN, NEURONS)), draw.normal(size=(experts, HIDDEN))
        self.logits = (self.x @ router.T.astype(np.float32)).astype(np.float32)
        ids, weights = decide(self.logits, case.contract, bias=case.bias, expert_scale=case.expert_scale)
        self.ids, self.gates = ids, weights
        gate, up = (np.einsum("eih,nh->nei", part, self.x.astype(float)) for part in (parts["gate"], parts["up"]))
        self.y = np.einsum("ehi,nei->neh", down, gate / (1 + np.exp(-gate)) * up)  # (n, E, H)
        self.weights = LayerWeights(
            layer=0,
            **{name: torch.tensor(part) for name, part in parts.items()},
            down=torch.tensor(down),
            router=torch.tensor(router),
            selection_bias=None if case.bias is None else torch.tensor(case.bias),
            expert_scale=None if case.expert_scale is None else torch.tensor(case.expert_scale),
            activation=lambda gate, up: torch.nn.functional.silu(gate) * up,
        )
        self.shape = LayerShape(layer=0, experts=experts, top_k=case.contract.top_k, contract=case.contract)
        self.statistics = layer_of(count=np.bincount(ids.ravel(), minlength=experts), load_rows=self.rows)

    def rows(self) -> LayerRows:
        return LayerRows(self.x, self.ids, self.gates.astype(np.float32), self.logits)

    def output(self, keep: list[int] | None = None) -> np.ndarray:
        """Return the layer's output, (n, H), of the layer that only has these experts."""
        keep = list(range(8)) if keep is None else keep
        rule = sliced(self.case, keep)
        ids, weights = decide(self.logits[:, keep], rule.contract, bias=rule.bias, expert_scale=rule.expert_scale)
        chosen = np.take_along_axis(self.y[:, keep], ids[:, :, None], 1)  # (n, k, H)
        return (weights[:, :, None] * chosen).sum(1)
