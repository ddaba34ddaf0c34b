"""The next layer's gate as a predictor: a later router asked early, on an earlier router's hidden state."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, Unsupported
from moeworks.place.predict import Prediction, gather_guesses

if TYPE_CHECKING:
    from moeworks.engines.base import Engine
    from moeworks.examples import Example
    from moeworks.families.router import Router

__all__ = ["predict_by_gate"]

Array = NDArray[Any]


def predict_by_gate(
    engine: Engine,
    examples: Iterable[Example],
    *,
    distance: int = 1,
    expert_bytes: float | None = None,
    bootstrap: int = 200,
    seed: int = 0,
) -> Prediction:
    """Measure how well the router `distance` layers on foresees its own choice from an earlier layer's input.

    The router of layer l + distance is run on the normalised hidden state that the router of layer l sees, when layer l
    is routed: before its experts have run, so that their time is won too. Published speculative gates take the residual
    after them (Mixtral-offloading; some recompute the norm), which knows more and leaves less time. Nothing is trained;
    chance is guesses by the load of half of the documents, and recall is that on the other half.

    Args:
        engine: the transformers engine. examples: texts, run one by one.
        distance: routers ahead. expert_bytes: bytes of an expert, for wasted bytes.
        bootstrap, seed: of resampled documents, of the split and of guesses.

    Raises:
        Unsupported: another engine, or routers that do not decide from one hidden state alone.
        BadData: distance beyond the layers, fewer than two documents, no text.
    """
    routers: list[Router] = getattr(engine, "routers", [])
    if not routers:
        raise Unsupported("the next layer's gate needs the routers of a loaded model; use the transformers engine.")
    if not 1 <= distance < len(routers):
        raise BadData(f"a distance of {distance} is not among {len(routers)} routers; give 1 to {len(routers) - 1}.")
    for router in routers:
        if (
            router.decision != "output"
            or router.form is None
            or (router.contract is not None and router.contract.hashed)
        ):
            raise Unsupported(f"the router '{router.name}' does not decide from a hidden state that it is given alone.")
    watch = _Watch(routers, distance)
    documents: list[str] = []
    try:
        watch.attach()
        with TemporaryDirectory() as folder:
            for number, example in enumerate(examples):
                watch.begin()
                engine.record([example], Path(folder) / str(number), batch_size=1)
                documents.append(example.document or f"\0{number}")
    finally:
        watch.detach()
    if not documents:
        raise BadData("there is no text to run.")
    _, of_text = np.unique(documents, return_inverse=True)
    return gather_guesses(
        watch.texts, of_text, [router.layer for router in routers[distance:]],
        [router.experts for router in routers[distance:]], name="gate", distance=distance, expert_bytes=expert_bytes,
        bootstrap=bootstrap, seed=seed,
    )  # fmt: skip


class _Watch:
    """Hooks on all routers; for each text and target layer: guessed ids, ids and weights, (n, k) each."""

    def __init__(self, routers: list[Router], distance: int) -> None:
        self.routers, self.distance = routers, distance
        self.texts: list[list[tuple[Array, Array, Array]]] = []
        self.guessed: dict[int, Array] = {}
        self.handles: list[Any] = []

    def attach(self) -> None:
        """Put the hooks where they belong."""
        for place, router in enumerate(self.routers):
            self.handles.append(router.module.register_forward_pre_hook(self._before(place)))
            self.handles.append(router.module.register_forward_hook(self._after(place)))

    def detach(self) -> None:
        """Leave the model as it was."""
        for handle in self.handles:
            handle.remove()

    def begin(self) -> None:
        """A new text begins."""
        self.texts.append([(np.zeros((0, 1), int),) * 3 for _ in self.routers[self.distance :]])

    def _before(self, place: int) -> Any:
        def look(module: Any, inputs: Any) -> None:
            target = place + self.distance
            if target < len(self.routers):
                later = self.routers[target]
                # `forward` itself, so that hooks on the later router, a recorder's too, see nothing of this.
                _, _, ids = later.read(later.module.forward(*inputs))
                self.guessed[target] = ids.reshape(-1, ids.shape[-1]).cpu().numpy()

        return look

    def _after(self, place: int) -> Any:
        def look(module: Any, inputs: Any, output: Any) -> None:
            if place in self.guessed:
                _, weights, ids = self.routers[place].read(output)
                flat = ids.reshape(-1, ids.shape[-1])
                mine = (self.guessed.pop(place), flat.cpu().numpy(), weights.reshape(flat.shape).float().cpu().numpy())
                rows = self.texts[-1][place - self.distance]
                joined = mine if not len(rows[0]) else tuple(map(np.concatenate, zip(rows, mine, strict=True)))
                self.texts[-1][place - self.distance] = joined  # type: ignore[assignment]

        return look
