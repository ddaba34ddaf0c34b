"""Finds the residual stream h before a layer's routed experts and how their output R enters it, and proves both.

EASY-EP compares h with h + R. Where h stands is not declared anywhere, so in the first pass every input of the layer's
own parts is tried: h is the one that gives the layer's output when the output of the block that holds the experts is
added to it. R enters through that block, perhaps times a factor outside the router's weights and beside shared
experts: the block runs once more with experts that give nothing, and the difference must be the experts' output times
one factor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moeworks.families.router import Router

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["ResidualStream", "block_of"]

_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def block_of(model: nn.Module, router: Router) -> nn.Module | None:
    """Return the layer that a router is in: the module that carries its number; None where there is none."""
    before, dot, _ = f".{router.name}.".partition(f".{router.layer}.")
    if not dot:
        return None
    try:
        return model.get_submodule(f"{before}.{router.layer}".lstrip("."))
    except AttributeError:
        return None


@dataclass
class ResidualStream:
    """Reads h in every pass of one layer; `refused` says why it cannot.

    Attributes:
        block: the layer.
        holder: the part of it whose output is added to the residual stream.
        refused: the reason, empty as long as nothing speaks against it.
        factor: of the experts' output on its way into the residual stream.
        silent: whether the experts are to give nothing at the moment.
        paused: whether nobody looks at the moment.
    """

    block: nn.Module | None
    holder: nn.Module
    refused: str = ""
    factor: float | None = None
    silent: bool = False
    paused: bool = False
    _place: nn.Module | None = None  # the part whose input is h
    _inputs: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    _call: tuple[Any, dict[str, Any]] | None = None
    _held: Tensor | None = None  # the holder's output
    _handles: list[RemovableHandle] = field(default_factory=list)

    def attach(self) -> None:
        """Start to watch."""
        if self.block is None or self.holder is self.block:
            self.refused = "its experts are no part of a layer that adds them to the residual stream by itself"
            return
        for part in self.block.children():
            self._handles.append(part.register_forward_pre_hook(self._note, with_kwargs=True))
        self._handles.append(self.holder.register_forward_pre_hook(self._note_call, with_kwargs=True))
        self._handles.append(self.holder.register_forward_hook(self._note_output))

    def begin(self) -> None:
        """Forget what a pass before left."""
        self._inputs, self._call, self._held = [], None, None

    def detach(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def read(self, output: Any, routed: Tensor) -> Tensor | None:
        """Return max(1 - cos(h, h + R), 0) of each row, (n,), in float32; None where it is refused.

        Args:
            output: what the layer gave out.
            routed: (n, H) what the experts module gave out, weighted and summed.
        """
        inputs, self._inputs = self._inputs, []
        call, held = self._call, self._held
        self._call = self._held = None
        if self.refused:
            return None
        if self.factor is None:
            hidden = output[0] if isinstance(output, tuple) else output
            self.refused = self._prove(inputs, hidden, held, call, routed)
            if self.refused:
                self.detach()
                return None
        found = [tensor for part, tensor in inputs if part is self._place]
        if len(found) != 1 or self.factor is None:
            self.refused = "the part of the layer that reads the residual stream before the experts did not run once"
            return None
        h = found[0].reshape(-1, found[0].shape[-1]).float()  # (n, H)
        after = h + self.factor * routed.float()
        return (1 - torch.nn.functional.cosine_similarity(h, after, dim=-1)).clamp(min=0)

    def _prove(self, inputs: list[tuple[nn.Module, Tensor]], output: Any, held: Any, call: Any, routed: Tensor) -> str:
        """Find h and the factor of R, or return the reason why there is no such thing."""
        if not isinstance(output, Tensor) or not isinstance(held, Tensor) or held.shape != output.shape or call is None:
            return "its layer does not give one residual stream out, of the shape of what is added to it"
        rounding = _ROUNDING.get(output.dtype, 3e-2)
        for part, h in reversed(inputs):
            if h.shape == output.shape and _same(h.float() + held.float(), output, h.abs() + held.abs(), rounding):
                self._place = part
                break
        else:
            return "its layer's output is not h + R with h an input of one of its parts (a norm or a factor is between)"
        if held.numel() != routed.numel():
            return "its experts' output is of another width than the residual stream"
        self.silent = True
        try:
            args, kwargs = call
            without = _tensor(self.holder(*args, **kwargs))
        finally:
            self.silent = False
        assert without is not None
        added = (held.float() - without.float()).reshape(routed.shape)
        names = {name: value for name, value in vars(self.holder).items() if "scal" in name.lower()}
        known = [1.0, *(float(value) for value in names.values() if isinstance(value, int | float))]
        size = (held.abs() + without.abs()).float().reshape(routed.shape)
        for factor in dict.fromkeys(known):
            expected = factor * routed.float()
            if _same(expected, added, size + expected.abs(), rounding):
                self.factor = factor
                return ""
        return (
            "its experts' output does not enter the residual stream as it is, nor times a factor that the block names"
        )

    def _note(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.silent or self.paused or (self._place is not None and module is not self._place):
            return
        first = args[0] if args else kwargs.get("hidden_states")
        if isinstance(first, Tensor) and first.ndim >= 2:
            self._inputs.append((module, first))

    def _note_call(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not (self.silent or self.paused) and self.factor is None:
            self._call = args, kwargs

    def _note_output(self, module: nn.Module, args: Any, output: Any) -> None:
        if not (self.silent or self.paused) and self.factor is None:
            self._held = _tensor(output)


def _tensor(output: Any) -> Tensor | None:
    first = output[0] if isinstance(output, tuple) else output
    return first if isinstance(first, Tensor) else None


def _same(values: Tensor, others: Tensor, size: Tensor, rounding: float) -> bool:
    """Whether two tensors agree to rounding of what was added up, row by row."""
    apart = (values.float() - others.float()).abs().amax(-1)
    scale = size.float().amax(-1).clamp(min=torch.finfo(torch.float32).tiny)
    return bool((torch.nan_to_num(apart / scale, nan=0.0) <= rounding).all())
