"""The training loop: steps, optimiser, clipping, a progress bar, checkpoints, and Ctrl-C between two steps."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from moeworks.engines.progress import Progress
from moeworks.errors import BadData, RunFailed, did_you_mean
from moeworks.train.slices import Trained
from moeworks.train.state import State

__all__ = ["Optimisation", "OptimiserName", "fit"]

OptimiserName = Literal["adamw", "sgd"]


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How the leaves move. Constant learning rate; no weight decay, which would pull an expert to 0.

    Attributes:
        steps: optimiser steps.
        optimiser: `adamw` with torch's own betas, or `sgd` with momentum.
        learning_rate: of all steps.
        momentum: of sgd.
        clip: the gradient's norm is cut to this.
    """

    steps: int
    optimiser: OptimiserName = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.optimiser not in get_args(OptimiserName):
            raise BadData(
                f"no optimiser is called '{self.optimiser}'; {did_you_mean(self.optimiser, ['adamw', 'sgd'])}"
            )
        if self.steps < 1 or not self.learning_rate > 0 or not self.clip > 0:
            raise BadData("training needs at least one step, and a learning rate and a clip above 0.")

    @property
    def memories(self) -> int:
        """How many numbers the optimiser keeps for each that is trained."""
        return 2 if self.optimiser == "adamw" else 1


def fit(
    trained: Trained,
    step: Callable[[int], dict[str, float]],
    optimisation: Optimisation,
    *,
    what: str = "training",
    resumed: State | None = None,
    save: Callable[[int, list[dict[str, float]], dict[str, torch.Tensor]], None] | None = None,
    save_every: int = 50,
    progress: bool = False,
) -> list[dict[str, float]]:
    """Run all steps that are left and return the losses of every one; the trained values are in the model afterwards.

    Args:
        trained: what is moved.
        step: adds the gradients of step n to the leaves and returns its named losses.
        optimisation: how they move.
        what: shown beside the bar.
        resumed: the state to go on from.
        save: keeps (steps done, losses, tensors), every `save_every` steps and when Ctrl-C is pressed.
        save_every: see there.
        progress: show a bar on standard error.

    Raises:
        RunFailed: a loss or a gradient is not finite.
        KeyboardInterrupt: Ctrl-C; the step in hand was finished and saved.
    """
    optimiser = _optimiser(trained, optimisation)
    start, history = 0, list[dict[str, float]]()
    if resumed is not None:
        start, history = resumed.step, list(resumed.history)
        _fill(trained, optimiser, resumed.tensors)
    trained.write()
    with (
        trained.unfrozen(),
        torch.enable_grad(),
        _interruption() as interrupted,
        Progress(what, "steps", total=optimisation.steps, show=progress) as bar,
    ):
        bar.advance(start)
        for number in range(start, optimisation.steps):
            optimiser.zero_grad()
            losses = step(number)
            norm = float(torch.nn.utils.clip_grad_norm_(trained.leaves, optimisation.clip))
            if not all(map(math.isfinite, (norm, *losses.values()))):
                shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
                raise RunFailed(
                    f"{what}: step {number + 1} is not finite ({shown}, gradient norm {norm:.4g}); take a smaller "
                    "learning rate, fewer steps, or a bounded loss (npo)."
                )
            optimiser.step()
            trained.write()
            history.append({"step": number + 1, **losses, "gradient_norm": norm})
            bar.advance(1)
            done = number + 1
            due = done % save_every == 0 and done < optimisation.steps
            stop = interrupted()
            if save is not None and (stop or due):
                save(done, history, _tensors(trained, optimiser))
            if stop:
                raise KeyboardInterrupt
    return history


def _optimiser(trained: Trained, optimisation: Optimisation) -> torch.optim.Optimizer:
    if optimisation.optimiser == "adamw":
        return torch.optim.AdamW(trained.leaves, lr=optimisation.learning_rate, weight_decay=0.0)
    return torch.optim.SGD(trained.leaves, lr=optimisation.learning_rate, momentum=optimisation.momentum)


def _tensors(trained: Trained, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for place, leaf in enumerate(trained.leaves):
        tensors[f"leaf.{place}"] = leaf.detach()
        for name, value in optimiser.state[leaf].items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimiser.{place}.{name}"] = value
    return tensors


@torch.no_grad()
def _fill(trained: Trained, optimiser: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    for name, value in tensors.items():
        kind, place, *rest = name.split(".")
        leaf = trained.leaves[int(place)]
        if kind == "leaf":
            leaf.copy_(value)
        else:
            # AdamW's own step counter stays on the CPU.
            optimiser.state[leaf][rest[0]] = value.clone() if rest[0] == "step" else value.to(leaf.device)


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed; a second press stops at once.

    Outside of the main thread no signal can be caught, and the function always says no.
    """
    pressed: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def press(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
