"""Hooks on one layer that show each pass to its `LayerGather`: decision, products of the experts, residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moeworks.edit.collecting.gather import OF_LOGITS, OF_OUTPUTS, LayerGather, Seen
from moeworks.edit.collecting.products import ExpertProducts, Products
from moeworks.edit.collecting.residual import ResidualStream, block_of
from moeworks.edit.statistics import COLUMNS
from moeworks.engines.transformers.experts import arguments_of, open_experts
from moeworks.errors import Unsupported
from moeworks.families.router import Router

__all__ = ["Layout", "Rows", "Tap", "looking_away", "new_gather"]

Rows = Callable[[int, Seen], None]  # (layer, pass): keeps chosen rows


@dataclass
class Layout:
    """What the rows of the pass that is running are; whoever runs the model sets it."""

    labels: Tensor | None = None  # (n,) number of the label of each row, padding the number of labels


def new_gather(router: Router, labels: int, names: tuple[str, ...], *, sets: bool) -> LayerGather:
    """Return an empty gather for a router's layer; what the family cannot show is refused with the reason.

    Raises:
        Unsupported: the router's decision cannot be read.
    """
    if router.form is None or not router.experts:
        raise Unsupported(f"layer {router.layer}: no statistics can be collected: {router.opaque or 'no experts'}.")
    gather = LayerGather(router.layer, router.experts, router.top_k, labels, names, sets=sets)
    try:
        gather.inner = open_experts(router)
    except Unsupported as error:
        gather.refuse(OF_OUTPUTS, str(error))
        return gather
    if gather.inner.identity:
        gather.refuse(
            OF_OUTPUTS,
            f"layer {router.layer} has experts that hand their input on and have no weights",
        )
        gather.inner = None
    return gather


@dataclass
class Tap:
    """Watches one layer of a model between `attach` and `detach`; the model's own output goes on untouched."""

    model: nn.Module
    router: Router
    gather: LayerGather
    layout: Layout
    keep_rows: Rows | None = None
    paused: bool = False
    ran: int = 0  # passes seen in the forward pass that is running
    _products: ExpertProducts | None = None
    _residual: ResidualStream | None = None
    _stack: ExitStack = field(default_factory=ExitStack)
    _decision: tuple[Tensor | None, Tensor, Tensor] | None = None
    _waiting: tuple[Seen, Tensor] | None = None

    def attach(self) -> None:
        """Put the hooks on."""
        gather, router = self.gather, self.router
        for handle in router.attach(self._decide):
            self._stack.callback(handle.remove)
        module = router.experts_module
        if module is None:
            if gather.wants(*OF_OUTPUTS) or self.keep_rows is not None:
                gather.refuse(OF_OUTPUTS, f"the experts of layer {router.layer} are no module that is given a decision")
            return
        if gather.inner is not None and gather.wants(*OF_OUTPUTS):
            inside = any(COLUMNS[name][0] == "neurons" for name in gather.names)
            self._products = ExpertProducts(gather.inner, inside)
        block = block_of(self.model, router)
        if gather.wants("turn"):
            self._residual = ResidualStream(block, router.holder)
            self._residual.attach()
            self._stack.callback(self._residual.detach)
            if self._residual.refused:
                gather.refuse(["turn"], f"layer {router.layer}: {self._residual.refused}")
        if gather.wants("turn") and block is not None:
            handle = block.register_forward_hook(lambda module, args, output: self._after_block(output))
            self._stack.callback(handle.remove)
        before = module.__dict__.get("forward")
        own = module.forward
        module.__dict__["forward"] = lambda *args, **kwargs: self._experts(own, args, kwargs)

        def put_back() -> None:
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before

        self._stack.callback(put_back)

    def detach(self) -> None:
        """Take everything off again."""
        self._stack.close()
        self._decision = self._waiting = None

    @property
    def complete(self) -> bool:
        """Whether the layer showed one whole pass since `begin`."""
        return self.ran == 1 and self._waiting is None

    def begin(self) -> None:
        """Say that a new forward pass of the model starts."""
        self.ran = 0
        self._decision = self._waiting = None
        if self._residual is not None:
            self._residual.begin()

    def _decide(self, logits: Tensor | None, weights: Tensor, ids: Tensor) -> None:
        if self.paused or (self._residual is not None and self._residual.silent):
            return
        if logits is None and self.gather.wants(*OF_LOGITS):
            self.gather.refuse(OF_LOGITS, f"the raw logits of layer {self.router.layer} do not show")
        self._decision = logits, weights, ids
        if self.router.experts_module is None:
            self._show(None, None)

    def _experts(self, own: Callable[..., Tensor], args: Any, kwargs: Any) -> Tensor:
        if self.paused:
            return own(*args, **kwargs)
        if self._residual is not None and self._residual.silent:
            return torch.zeros_like(arguments_of(own, args, kwargs)[0])
        products = None
        if self._products is not None:
            output, products = self._products.run(own, args, kwargs)
        else:
            output = own(*args, **kwargs)
        hidden = arguments_of(own, args, kwargs)[0]
        self._show(hidden.reshape(-1, hidden.shape[-1]), products, output)
        return output

    def _show(self, hidden: Tensor | None, products: Products | None, output: Tensor | None = None) -> None:
        labels = self.layout.labels
        assert labels is not None
        if self._decision is None or self.ran:
            raise Unsupported(f"the experts of layer {self.router.layer} and their router do not run once each a pass.")
        logits, weights, ids = self._decision
        if len(ids) != len(labels) or (hidden is not None and len(hidden) != len(labels)):
            raise Unsupported(f"layer {self.router.layer} decides for {len(ids)} rows of {len(labels)}; not all run.")
        self.ran += 1
        if logits is not None and logits.shape[-1] != self.gather.experts:
            self.gather.refuse(OF_LOGITS, f"layer {self.router.layer} has {logits.shape[-1]} logits, not one an expert")
            logits = None
        seen = Seen(labels.to(ids.device), ids, weights, logits, hidden, products, None)
        if self.gather.wants("turn") and output is not None:
            self._waiting = seen, output.reshape(len(labels), -1)
        else:
            self._add(seen)

    def _after_block(self, output: Any) -> None:
        if self.paused or self._waiting is None:
            return
        seen, routed = self._waiting
        self._waiting = None
        assert self._residual is not None
        with torch.no_grad():
            turn = self._residual.read(output, routed)
        if turn is None:
            self.gather.refuse(["turn"], f"layer {self.router.layer}: {self._residual.refused}")
        self._add(seen._replace(turn=turn))

    def _add(self, seen: Seen) -> None:
        self.gather.add(seen)
        if self.keep_rows is not None:
            self.keep_rows(self.router.layer, seen)

    def pause(self, paused: bool) -> None:
        """Look away, or look again."""
        self.paused = paused
        if self._residual is not None:
            self._residual.paused = paused


@contextmanager
def looking_away(taps: Sequence[Tap]) -> Iterator[None]:
    """Let all taps look away for the length of a `with` block."""
    for tap in taps:
        tap.pause(True)
    try:
        yield
    finally:
        for tap in taps:
            tap.pause(False)
