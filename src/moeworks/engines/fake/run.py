"""Forward passes of the fake model over the rows of several texts, with a plan's edits applied in its routers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.contract import Contract, Decision, decide
from moeworks.engines.fake.network import END, Inside, Network, last_residual, layer_values, predict, residual_of
from moeworks.engines.fake.replay import Replays
from moeworks.engines.transformers.tokens import Prepared, request_table
from moeworks.errors import Unsupported
from moeworks.plan.compiled import CompiledEdit
from moeworks.plan.neurons import Site, apply_step
from moeworks.plan.operations import apply_edits
from moeworks.where import PHASES, Requests, Rows

__all__ = ["Model", "Pass", "generate_tokens"]

Array = NDArray[Any]
PROMPT, GENERATED, FORCED = (PHASES.index(phase) for phase in ("prompt", "generated", "forced"))


@dataclass(frozen=True)
class Pass:
    """What a forward pass over n rows gives."""

    rows: Rows
    log_probabilities: Array  # (n, V) of the next token
    ids: dict[int, Array]  # layer → (n, K)
    weights: dict[int, Array]  # layer → (n, K) float32
    logits: dict[int, Array]  # layer → (n, E) float32, unedited


@dataclass(frozen=True)
class Model:
    """A network and the rule of its routers; layers are numbered from 0."""

    network: Network
    contract: Contract

    def read(self, prepared: Sequence[Prepared], edits: Sequence[CompiledEdit]) -> Pass:
        """Run whole texts, one after another; `rows.request` counts within the sequence."""
        lengths = np.array([len(request.tokens) for request in prepared])
        requests = request_table(prepared)
        request = np.repeat(np.arange(len(lengths)), lengths)  # (n,)
        position = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        phase = np.where(position < requests.prompt_tokens[request], PROMPT, FORCED).astype(np.uint8)
        tokens = [np.asarray(request.tokens) for request in prepared]
        residual = np.concatenate([residual_of(self.network, text) for text in tokens])  # (n, d)
        return self.run(Rows(request, position, np.concatenate(tokens), phase), requests, residual, prepared, edits)

    def run(
        self,
        rows: Rows,
        requests: Requests,
        residual: Array,
        prepared: Sequence[Prepared],
        edits: Sequence[CompiledEdit],
    ) -> Pass:
        """Run n rows; their residual, (n, d), already holds what they know of the tokens before them."""
        masks = [None if edit.where.every_token else edit.where.mask(rows, requests, strict=False) for edit in edits]
        replays = Replays(rows, np.array([request.number for request in prepared]))
        ids: dict[int, Array] = {}
        weights: dict[int, Array] = {}
        logits: dict[int, Array] = {}

        def route(layer: int, z: Array) -> Decision:
            values = layer_values(self.network, self.contract, layer)
            active = [
                (edit.layers[layer], mask) for edit, mask in zip(edits, masks, strict=True) if layer in edit.layers
            ]
            if active:
                decision = apply_edits(z, self.contract, active, replay=replays.of(layer, active), **values)
            else:
                decision = decide(z, self.contract, **values)
            # What is recorded is what runs: weights are float32 from here on.
            ids[layer], weights[layer] = decision.ids, decision.weights.astype(np.float32)
            logits[layer] = z.astype(np.float32)
            return Decision(ids[layer], weights[layer])

        predictions = predict(self.network, last_residual(self.network, residual, route, _inside(edits, masks)))
        return Pass(rows, predictions, ids, weights, logits)


def _inside(edits: Sequence[CompiledEdit], masks: Sequence[Array | None]) -> Inside | None:
    """Return what changes inside experts, or None where nothing does.

    Raises:
        Unsupported: a gate is to be changed; these experts have none.
    """
    steps = {
        (layer, index): edit.layers[layer].neurons
        for index, edit in enumerate(edits)
        for layer in edit.layers
        if edit.layers[layer].neurons
    }
    if any(step.site == "gate" for here in steps.values() for step in here):
        raise Unsupported("the experts of the fake engine have no gate; change the site 'up' or 'key'.")
    if not steps:
        return None

    def change(layer: int, site: Site, values: Array) -> Array:
        new = values.copy()  # (n, E, m)
        for (place, index), here in steps.items():
            for step in here:
                if (place, step.site) == (layer, site):
                    new[:, step.expert] = apply_step(step, new[:, step.expert], masks[index])
        return new

    return change


def generate_tokens(
    model: Model,
    prepared: Sequence[Prepared],
    edits: Sequence[CompiledEdit],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> tuple[list[list[int]], list[Pass]]:
    """Continue each prompt; return the new tokens, the closing one included, and every forward pass.

    The last token of a text is never put in, so that it has no row. Temperature 0 is greedy. A request draws from its
    own generator, so that its text does not depend on the batch.
    """
    texts = [list(request.tokens) for request in prepared]
    new: list[list[int]] = [[] for _ in prepared]
    draws = [np.random.default_rng([seed, request.number]) for request in prepared]
    passes = [model.read(prepared, edits)]
    last = np.cumsum([len(request.tokens) for request in prepared]) - 1  # (m,) rows that predict what comes next
    going = list(range(len(prepared)))
    for step in range(max_new_tokens):
        predictions = passes[-1].log_probabilities[last]  # (going, V)
        for request, prediction in zip(going, predictions, strict=True):
            new[request].append(_pick(prediction, temperature, draws[request]))
            texts[request].append(new[request][-1])
        going = [request for request in going if new[request][-1] != END]
        if not going or step == max_new_tokens - 1:
            break
        rows = Rows(
            request=np.array(going),
            position=np.array([len(texts[request]) - 1 for request in going]),
            token=np.array([texts[request][-1] for request in going]),
            phase=np.full(len(going), GENERATED, np.uint8),
        )
        residual = np.stack([residual_of(model.network, np.asarray(texts[request]))[-1] for request in going])
        passes.append(model.run(rows, request_table(prepared), residual, prepared, edits))
        last = np.arange(len(going))
    return new, passes


def _pick(log_probabilities: Array, temperature: float, generator: np.random.Generator) -> int:
    if temperature == 0:
        return int(log_probabilities.argmax())
    noise = generator.gumbel(size=len(log_probabilities))
    return int((log_probabilities / temperature + noise).argmax())
