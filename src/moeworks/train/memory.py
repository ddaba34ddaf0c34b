"""How much memory a training will take, said before it starts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

from moeworks.train.slices import Trained

if TYPE_CHECKING:
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["Memory", "announce", "estimate"]


class Memory(NamedTuple):
    """Bytes that are held at once; `activations` and `logits` are estimates, the others are counted."""

    model: int  # parameters
    trained: int  # float32 values, their gradients, the optimiser's memory, and the originals
    gradients: int  # of the whole tensors that the trained rows lie in
    activations: int  # kept for the way back
    logits: int  # predictions and their gradient

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self)

    def words(self, what: str) -> str:
        """Return one sentence."""
        parts = ", ".join(f"{name} {_amount(size)}" for name, size in self._asdict().items())
        return f"{what} will take about {_amount(self.total)} of memory: {parts}."


def estimate(
    engine: TransformersEngine, trained: Trained, *, tokens: int, width: int, memories: int, from_layer: int
) -> Memory:
    """Estimate the memory of one step.

    Args:
        engine: holds the model.
        trained: what is trained.
        tokens: rows of the largest batch, padding included.
        width: positions of its longest text; attention is quadratic in it.
        memories: numbers that the optimiser keeps for each trained one.
        from_layer: the first layer that gradients reach; layers below keep nothing.
    """
    config = engine.model.config.get_text_config()
    size = engine.model.dtype.itemsize
    hidden = int(config.hidden_size)
    layers = int(getattr(config, "num_hidden_layers", engine.routers[-1].layer + 1))
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    inner = max((_expert_width(engine, place) for place in range(len(engine.routers))), default=hidden)
    top_k = max(router.top_k for router in engine.routers)
    # A layer keeps: the residual, its norms, q, k, v and the mixing (about 12 H), two attention maps, and for each
    # chosen expert its input, gate, up, their product, and its output.
    row = 12 * hidden + 2 * heads * width + top_k * (4 * inner + 2 * hidden)
    return Memory(
        model=sum(parameter.nbytes for parameter in engine.model.parameters()),
        trained=sum(leaf.numel() for leaf in trained.leaves) * 4 * (2 + memories)
        + sum(part.original.nbytes for part in trained.parts),
        gradients=sum(part.parameter.nbytes for part in trained.parts),
        activations=tokens * row * size * max(1, layers - from_layer),
        logits=tokens * int(config.vocab_size) * (size + 2 * 4),
    )


def announce(sentence: str) -> None:
    """Say it where people read progress: on standard error."""
    print(sentence, file=sys.stderr)


def _expert_width(engine: TransformersEngine, place: int) -> int:
    from moeworks.errors import Unsupported
    from moeworks.families.expert_weights import expert_weights

    try:
        return int(expert_weights(engine.routers[place]).down.shape[2])
    except Unsupported:  # RouterLens trains routers only, so the experts may be of any kind
        return int(engine.model.config.get_text_config().hidden_size)


def _amount(size: int) -> str:
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.3g} {units[0]}"
