"""One step of SEUF: gradients of forget + lambda × retain + alpha × anchor, one pass for each set of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import Unsupported
from moeworks.families import Router
from moeworks.train.batches import TrainingBatch, in_order, training_batch
from moeworks.train.losses import (
    Forget,
    anchor_loss,
    control_vector,
    gradient_ascent,
    next_token_loss,
    npo,
    rmu_forget,
    rmu_retain,
    router_probabilities,
    token_log_probabilities,
)
from moeworks.train.measure import language_logits
from moeworks.train.slices import Trained

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["Objective", "Weights"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The options of the objective.

    Attributes:
        loss: the forget loss.
        retain: lambda. `alpha`: of the anchor. `beta`: of NPO. `steering`: RMU's c.
        anchor_tokens: which routed tokens are anchored: those of both sets, or those of the forget texts only.
        batch_size: texts of each set in a step.
        seed: of the order of texts, and of RMU's direction.
    """

    loss: Forget
    retain: float
    alpha: float = 1.0
    beta: float = 0.1
    steering: float = 6.5
    anchor_tokens: Literal["all", "forget"] = "all"
    batch_size: int = 4
    seed: int = 0


class _Passed(NamedTuple):
    """One forward pass with its graph."""

    logits: Tensor  # (b, w, V)
    probabilities: Tensor  # (n, E) of the target's router, real rows only
    hidden: Tensor  # (n, H) after the target's layer, real rows only


@dataclass
class Objective:
    """Computes the gradients of one step after another."""

    engine: TransformersEngine
    router: Router
    expert: int
    trained: Trained
    forget: Sequence[Prepared]
    retain: Sequence[Prepared]
    weights: Weights
    _reference: dict[int, float] = field(default_factory=dict)

    def prepare(self, steps: int) -> None:
        """Take from the model before training what NPO compares with: each forget text's log-probability."""
        if self.weights.loss != "npo":
            return
        needed = {r.number: r for step in range(steps) for r in self._batch(self.forget, step)}
        ordered = sorted(needed.values(), key=lambda request: len(request.tokens))
        size = self.weights.batch_size
        with self.trained.undone(), torch.no_grad():
            for start in range(0, len(ordered), size):
                batch = training_batch(self.engine, ordered[start : start + size])
                log_probabilities = token_log_probabilities(
                    language_logits(self.engine, batch), batch.inputs["input_ids"]
                )
                sums = (log_probabilities * batch.counted).sum(-1).tolist()
                self._reference |= {r.number: value for r, value in zip(ordered[start:], sums, strict=False)}

    def step(self, number: int) -> dict[str, float]:
        """Add the gradients of step `number` to the leaves and return its losses."""
        weights = self.weights
        prepared = self._batch(self.forget, number)
        kept = self._batch(self.retain, number)
        with_retain = weights.retain != 0 or (weights.alpha != 0 and weights.anchor_tokens == "all")
        forget_batch = training_batch(self.engine, prepared)
        retain_batch = training_batch(self.engine, kept) if with_retain else None
        anchored = forget_batch.tokens
        if retain_batch is not None and weights.anchor_tokens == "all":
            anchored += retain_batch.tokens

        passed = self._run(forget_batch)
        loss = self._forget_loss(passed, forget_batch, prepared)
        anchor = anchor_loss(passed.probabilities, self.expert)
        share = forget_batch.tokens / anchored
        self.trained.accumulate(loss + weights.alpha * share * anchor)
        losses = {"forget": float(loss.detach()), "anchor": share * float(anchor.detach())}
        if retain_batch is not None:
            del passed, loss, anchor  # their graph is not needed any more
            passed = self._run(retain_batch)
            total = torch.zeros((), device=passed.logits.device)
            if weights.retain:
                kept_loss = self._retain_loss(passed, retain_batch)
                losses["retain"] = float(kept_loss.detach())
                total = total + weights.retain * kept_loss
            if weights.anchor_tokens == "all":
                anchor = anchor_loss(passed.probabilities, self.expert)
                losses["anchor"] += (1 - share) * float(anchor.detach())
                total = total + weights.alpha * (1 - share) * anchor
            self.trained.accumulate(total)
        return losses

    def _batch(self, requests: Sequence[Prepared], step: int) -> list[Prepared]:
        return in_order(requests, step, self.weights.batch_size, seed=self.weights.seed)

    def _forget_loss(self, passed: _Passed, batch: TrainingBatch, prepared: Sequence[Prepared]) -> Tensor:
        if self.weights.loss == "rmu":
            hidden = passed.hidden
            control = control_vector(hidden.shape[1], seed=self.weights.seed, device=hidden.device)
            return rmu_forget(hidden, control, self.weights.steering)
        log_probabilities = token_log_probabilities(passed.logits, batch.inputs["input_ids"])
        if self.weights.loss == "npo":
            reference = torch.tensor([self._reference[r.number] for r in prepared], device=log_probabilities.device)
            return npo(log_probabilities, reference, batch.counted, self.weights.beta)
        return gradient_ascent(log_probabilities, batch.counted)  # GDIFF is GA with a retain weight

    def _retain_loss(self, passed: _Passed, batch: TrainingBatch) -> Tensor:
        if self.weights.loss == "rmu":
            with self.trained.undone(), torch.no_grad():
                frozen = self._run(batch).hidden
            return rmu_retain(passed.hidden, frozen)
        return next_token_loss(token_log_probabilities(passed.logits, batch.inputs["input_ids"]), batch.counted)

    def _run(self, batch: TrainingBatch) -> _Passed:
        contract = self.router.contract
        assert contract is not None
        with _watched(self.engine.model, self.router) as seen:
            logits = language_logits(self.engine, batch)
        if "logits" not in seen:
            raise Unsupported(f"the router of layer {self.router.layer} does not show its logits.")
        probabilities = router_probabilities(seen["logits"].reshape(-1, self.router.experts)[batch.real], contract)
        hidden = seen["hidden"].reshape(len(batch.real), -1)  # several streams of hidden states count as one wide one
        return _Passed(logits, probabilities, hidden[batch.real])


@contextmanager
def _watched(model: nn.Module, router: Router) -> Iterator[dict[str, Tensor]]:
    """Keep a router's logits and the hidden states after its layer, with their graph."""
    seen: dict[str, Tensor] = {}

    def see(logits: Tensor | None, weights: Tensor, ids: Tensor) -> None:
        if logits is not None:
            seen["logits"] = logits

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        seen["hidden"] = output[0] if isinstance(output, tuple) else output

    handles = [*router.attach(see), _layer_of(model, router).register_forward_hook(after)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _layer_of(model: nn.Module, router: Router) -> nn.Module:
    """Return the decoder layer that a router is part of: the first element of a list of modules on its way."""
    words = router.name.split(".")
    for length in range(1, len(words) + 1):
        if isinstance(model.get_submodule(".".join(words[: length - 1])), nn.ModuleList):
            return model.get_submodule(".".join(words[:length]))
    raise Unsupported(f"the router '{router.name}' lies in no list of layers.")
