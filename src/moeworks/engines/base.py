"""What every engine offers: the calls that `prove`, `study` and the command line are written against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from moeworks.artefact import EngineIdentity, ModelIdentity
from moeworks.examples import Example

if TYPE_CHECKING:
    from moeworks.plan import Plan
    from moeworks.trace import Trace

__all__ = ["Answer", "Engine", "Generation", "ModelSize", "TokenScores"]

Array = NDArray[Any]


class Answer(NamedTuple):
    """How likely a given continuation is; exact means that greedy decoding would produce just it."""

    log_probability: float  # natural log, summed over the answer's tokens
    tokens: int
    exact: bool


class Generation(NamedTuple):
    """One generated text."""

    prompt: str
    text: str  # only what was generated, special tokens dropped
    tokens: tuple[int, ...]  # generated token ids, the closing one included


class ModelSize(NamedTuple):
    """How large a model is, as loaded."""

    parameters: int
    expert_parameters: int  # those of routed experts
    bytes: int


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities of one text's own tokens; the first token has none."""

    log_probabilities: Array  # (tokens - 1,) natural log
    divergence: Array | None = None  # (tokens - 1,) KL(unsteered ‖ steered) at the same places, nats

    @property
    def mean(self) -> float:
        """Mean log-probability a token."""
        return float(np.mean(self.log_probabilities))


class Engine(Protocol):
    """A loaded model whose routing can be recorded and steered."""

    identity: ModelIdentity
    engine: EngineIdentity
    context: int  # longest text in tokens

    def record(
        self,
        examples: Iterable[Example],
        path: str | Path,
        *,
        plan: Plan | None = None,
        logits: bool = False,
        generate: int = 0,
        batch_size: int = 8,
        long: Literal["truncate", "split", "error"] = "truncate",
        resume: bool = False,
        progress: bool = False,
        total: int | None = None,
        command: str = "",
        **generation: Any,
    ) -> Trace:
        """Run the examples and write what the routers decided, token by token, to the folder `path`."""
        ...

    def steered(self, plan: Plan | None) -> AbstractContextManager[None]:
        """Apply a plan to everything that runs inside the `with` block; None and an empty plan do nothing."""
        ...

    def generate(
        self,
        prompts: Sequence[str | Example],
        *,
        plan: Plan | None = None,
        max_new_tokens: int = 64,
        batch_size: int = 8,
        **generation: Any,
    ) -> list[Generation]:
        """Continue each prompt; greedy unless `do_sample=True` is given."""
        ...

    def answers(
        self, pairs: Sequence[tuple[str, str]], *, plan: Plan | None = None, batch_size: int = 32
    ) -> list[Answer]:
        """Return how likely each (prompt, answer) pair's answer is after its prompt."""
        ...

    def token_scores(
        self,
        texts: Sequence[str],
        *,
        plan: Plan | None = None,
        divergence: bool = False,
        batch_size: int = 8,
    ) -> Iterator[TokenScores]:
        """Return each text's token log-probabilities under the plan and, if asked, the KL to the plain model."""
        ...

    def applies(self, plan: Plan, prompts: Sequence[str | Example]) -> NDArray[np.bool_]:
        """Return to which prompts a plan applies, (prompts,): those that its gate opens for, or all."""
        ...

    def remembering(self) -> AbstractContextManager[None]:
        """Inside this block the plain model's predictions, which every divergence needs, may be kept and used again.

        The weights must not be changed inside it.
        """
        ...

    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        ...

    def size(self) -> ModelSize:
        """Return how many parameters the model has, how many of them in routed experts, and their bytes."""
        ...
