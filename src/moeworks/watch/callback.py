"""A callback for `transformers.Trainer` that logs the readings of a routing meter beside the loss."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from moeworks.watch.meter import RoutingMeter, metered

__all__ = ["RoutingCallback"]


class RoutingCallback(TrainerCallback):  # type: ignore[misc]  # transformers' class is untyped
    """Logs `routing/NAME` for every reading, over the training steps since the last log; evaluation is left out.

    Add it to any Trainer: `Trainer(…, callbacks=[RoutingCallback()])`. Readings come into `state.log_history` and into
    the logs that later callbacks (TensorBoard, Weights & Biases, …) get. What is read is what the routers of this
    process decided; every process of a distributed run logs its own.
    """

    def __init__(self, *, prefix: str = "routing/") -> None:
        self.prefix = prefix
        self.meter: RoutingMeter | None = None
        self._stack = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the routers and start to count; a run that was broken off leaves nothing behind."""
        self._stack.close()
        self.meter = self._stack.enter_context(metered(kwargs["model"]))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the readings to what is logged, where it is a training step's, and start anew."""
        logs = kwargs.get("logs")
        if self.meter is None or logs is None or "loss" not in logs:
            return
        found = {f"{self.prefix}{name}": value for name, value in self.meter.readings().items()}
        logs.update(found)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(found)
        self.meter.reset()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Forget what evaluation routed."""
        if self.meter is not None:
            self.meter.reset()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop counting and leave the model as it was."""
        self._stack.close()
        self.meter = None
