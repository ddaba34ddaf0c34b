"""Runs pairs of prompts, and again with part of what the experts of the clean run did put into the corrupt run.

At a layer, routed output = experts(h, S, w): hidden states h, chosen experts S, combine weights w. The clean and the
corrupt run have the same length, so that their rows lie at the same places, and each of the three can be swapped:

    routing   experts(h corrupt, S clean,   w clean)      what the clean decision does on corrupt activations
    output    experts(h clean,   S corrupt, w corrupt)    what clean activations do under the corrupt decision
    joint     experts(h clean,   S clean,   w clean)      the clean run's own routed output

For one expert e the same is done to its share alone: u_e = w_e · y_e(h) of the corrupt run is taken out, and the one of
the arm is put in. Attention, shared experts and the residual stream stay those of the patched run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from moeworks.address import Address
from moeworks.engines.transformers.experts import arguments_of
from moeworks.engines.transformers.layout import Batch
from moeworks.errors import Unsupported

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine
    from moeworks.engines.transformers.tap import Tap
    from moeworks.engines.transformers.tokens import Prepared
    from moeworks.families import Router
    from moeworks.plan import Plan

__all__ = ["Arm", "PairRun", "last_logits"]

Arm = Literal["routing", "output", "joint"]


class _Call(NamedTuple):
    """What the experts of one layer were given in one run."""

    hidden: Tensor  # (n, H) or (batch, width, H), as the family passes it
    ids: Tensor  # (n, k)
    weights: Tensor  # (n, k)


Replace = Callable[[Callable[..., Tensor], _Call], Tensor]


class PairRun:
    """One batch of pairs on the plain model: both runs are made at once, patched ones when asked for.

    Attributes:
        clean, corrupt: (pairs, vocabulary) float32 logits after the last token of the prompts.
    """

    def __init__(self, engine: TransformersEngine, clean: Sequence[Prepared], corrupt: Sequence[Prepared]) -> None:
        """Run both sides.

        Args:
            engine: the engine; a plan that holds around this does not.
            clean, corrupt: prompts, pair by pair of the same number of tokens.

        Raises:
            Unsupported: the experts of a layer are not called with the router's decision.
        """
        self._engine = engine
        self._routers = {router.layer: router for router in engine.routers}
        for router in engine.routers:
            if router.experts_module is None:
                raise Unsupported(
                    f"the experts of '{router.name}' are not called with the router's decision, so that routing and "
                    "output cannot be swapped apart."
                )
        self._clean: dict[int, _Call] = {}
        self._corrupt: dict[int, _Call] = {}
        self._batch = Batch(corrupt)
        self.clean = self._run(Batch(clean), {n: _keep(self._clean, n) for n in self._routers})
        self.corrupt = self._run(self._batch, {n: _keep(self._corrupt, n) for n in self._routers})
        missing = self._routers.keys() - self._corrupt.keys()
        if missing:
            raise Unsupported(f"the experts of layers {sorted(missing)} did not run; the model bypasses them.")

    @property
    def layers(self) -> list[int]:
        """The layers with experts."""
        return sorted(self._routers)

    def running(self, layer: int) -> list[int]:
        """Return the experts that run for a token of either run; the share of any other is 0 in both."""
        valid = self._batch.forward().valid
        found: set[int] = set()
        for call in (self._clean[layer], self._corrupt[layer]):
            ids, weights = call.ids, call.weights
            if valid is not None:
                place = torch.from_numpy(valid).to(ids.device)
                ids, weights = ids[place], weights[place]
            found |= set(ids[weights != 0].tolist())
        return sorted(found)

    def patched(self, arm: Arm, layers: Collection[int]) -> Tensor:
        """Return the corrupt run's last logits, (pairs, vocabulary), the whole routed output of some layers swapped."""
        return self._run(self._batch, {layer: self._swap(layer, arm) for layer in layers})

    def patched_expert(self, arm: Arm, expert: Address) -> Tensor:
        """Return the corrupt run's last logits, (pairs, vocabulary), with the share of one expert swapped."""
        swap = self._swap(expert.layer, arm)

        def replace(own: Callable[..., Tensor], call: _Call) -> Tensor:
            def share(of: _Call) -> _Call:
                return of._replace(weights=of.weights.masked_fill(of.ids != expert.expert, 0))

            rest = call._replace(weights=call.weights.masked_fill(call.ids == expert.expert, 0))
            return own(*rest) + swap(lambda *given: own(*share(_Call(*given))), call)

        return self._run(self._batch, {expert.layer: replace})

    def _swap(self, layer: int, arm: Arm) -> Replace:
        clean = self._clean[layer]

        def replace(own: Callable[..., Tensor], call: _Call) -> Tensor:
            match arm:
                case "routing":
                    return own(call.hidden, clean.ids, clean.weights)
                case "output":
                    return own(clean.hidden, call.ids, call.weights)
                case "joint":
                    return own(*clean)

        return replace

    def _run(self, batch: Batch, replace: dict[int, Replace]) -> Tensor:
        with (
            self._engine.session(None, record=False, plain=True) as tap,
            _experts_replaced([self._routers[layer] for layer in replace], replace),
        ):
            return _last(self._engine, tap, batch)


def last_logits(engine: TransformersEngine, prepared: Sequence[Prepared], plan: Plan | None) -> Tensor:
    """Return the float32 logits after the last token of each prompt under a plan, (prompts, vocabulary)."""
    with engine.session(plan, record=False, plain=plan is None) as tap:
        return _last(engine, tap, Batch(prepared))


def _last(engine: TransformersEngine, tap: Tap, batch: Batch) -> Tensor:
    tap.start(batch)
    with torch.inference_mode():
        logits = engine.model(**batch.tensors(engine.pad_token, engine.model.device), use_cache=False).logits
    last = [len(request.tokens) - 1 for request in batch.prepared]
    result: Tensor = logits[torch.arange(len(last)), last].float()
    return result


def _keep(into: dict[int, _Call], layer: int) -> Replace:
    def replace(own: Callable[..., Tensor], call: _Call) -> Tensor:
        into[layer] = call
        return own(*call)

    return replace


@contextmanager
def _experts_replaced(routers: Sequence[Router], replace: dict[int, Replace]) -> Iterator[None]:
    """Let `replace[layer](own forward, call)` stand for the experts of each layer inside the block."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        for router in routers:
            module = router.experts_module
            assert module is not None  # PairRun has looked
            own = module.forward
            before.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = _forward(own, replace[router.layer])
        yield
    finally:
        for module, forward in reversed(before):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


def _forward(own: Callable[..., Tensor], replace: Replace) -> Callable[..., Tensor]:
    def forward(*args: Any, **kwargs: Any) -> Tensor:
        return replace(own, _Call(*arguments_of(own, args, kwargs)))

    return forward
