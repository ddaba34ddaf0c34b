"""Gates in the fake engine: a plain pass over the prompts decides which requests a plan applies to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moeworks.engines.fake.run import Model, Pass
from moeworks.engines.gating import prompts_of, routing_rates, widen
from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import Unsupported
from moeworks.plan.gate import Gate, ResidualGate, opens

__all__ = ["opened", "widened_pass"]


def opened(model: Model, gate: Gate, requests: Sequence[Prepared]) -> NDArray[np.bool_]:
    """Return for which requests a gate opens, (requests,).

    Raises:
        BadData: a request has no prompt.
        Unsupported: the gate looks at the residual stream.
    """
    if isinstance(gate, ResidualGate):
        raise Unsupported(
            "the fake engine shows no residual stream, which the plan's gate looks at; use its torch twin."
        )
    prompts = prompts_of(requests)
    if not prompts:
        return np.zeros(0, bool)
    plain = model.read(prompts, ())
    experts = dict.fromkeys(plain.ids, model.contract.experts)
    return opens(gate, routing_rates(plain.rows.request, plain.ids, plain.weights, experts, len(prompts)))


def widened_pass(one: Pass, slots: Mapping[int, int]) -> Pass:
    """Return a pass with as many slots as the trace has: a run without the plan may have fewer."""
    return replace(
        one,
        ids={layer: widen(ids, slots[layer], fill=ids) for layer, ids in one.ids.items()},
        weights={layer: widen(weights, slots[layer]) for layer, weights in one.weights.items()},
    )
