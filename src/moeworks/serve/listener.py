"""Hears every token that `generate` chooses: text, stop texts, log-probabilities, and the end of a request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cli.serving.utils import response_events_to_chunks

from moeworks.serve.door import Ticket

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Delta", "Ended", "Listener", "Stopped", "TokenLog", "log_of"]


class Stopped(Exception):
    """A stop text was written; raised through `generate`, as transformers' own streamers do to end it."""


class Ended(Exception):
    """The request was ended from outside."""


@dataclass(frozen=True)
class TokenLog:
    """A token's log-probability under the model, before temperature, and the likeliest alternatives."""

    token: int
    value: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Delta:
    """What a token or a few added to a choice: text, reasoning or tool calls as transformers' parser gives them."""

    choice: int
    items: tuple[Any, ...]
    logs: tuple[TokenLog, ...] = ()


def log_of(logits: Tensor, token: int, top: int) -> TokenLog:
    """Return a token's log-probability from (V,) logits."""
    values = logits.float().log_softmax(-1)
    best = values.topk(top) if top else None
    alternatives = [] if best is None else list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLog(token, float(values[token]), tuple(alternatives))


@dataclass(eq=False)
class Listener:
    """A streamer for `generate` with one sequence.

    Attributes:
        tokenizer: decodes.
        ticket: says when to stop for reasons from outside.
        ends: tokens that close a text.
        stops: texts that end it; they are cut off.
        parser: transformers' parser of reasoning and tool calls, or None.
        emit: takes each `Delta` where the answer is streamed; None: only the end is of interest.
        choice: number of the choice.
        top: alternatives beside each log-probability; None: no log-probabilities.
        logits: (V,) what the model gave last, put here by a hook where log-probabilities are wanted.
    """

    tokenizer: PreTrainedTokenizerBase
    ticket: Ticket
    ends: frozenset[int]
    stops: Sequence[str] = ()
    parser: Any = None
    emit: Callable[[Delta], None] | None = None
    choice: int = 0
    top: int | None = None
    logits: Tensor | None = None
    tokens: list[int] = field(default_factory=list)
    logs: list[TokenLog] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    stopped: bool = False
    _text: str = ""
    _given: int = 0  # characters that went out
    _logged: int = 0
    _sent: int = 0
    _started: bool = False

    def __post_init__(self) -> None:
        from tokenizers.decoders import DecodeStream

        self._decodes = bool(self.stops) or self.emit is not None or self.parser is not None
        self._stream = DecodeStream([], skip_special_tokens=self.parser is None)
        if self.parser is not None:
            self.items += response_events_to_chunks(self.parser.initial_events)

    def put(self, value: Tensor) -> None:
        """Take what `generate` chose; the first call has the prompt."""
        if self.ticket.reason:
            raise Ended(self.ticket.reason)
        if not self._started:
            self._started = True
            return
        for token in value.reshape(-1).tolist():
            self._take(token)

    def end(self) -> None:
        """`generate` is over; `finish` says so, which is called after a stop text too."""

    def _take(self, token: int) -> None:
        self.tokens.append(token)
        if self.top is not None:
            assert self.logits is not None
            self.logs.append(log_of(self.logits, token, self.top))
        if self._decodes and token not in self.ends:
            piece = self._stream.step(self.tokenizer._tokenizer, token)
            if piece:
                self._text += piece
                self._look_for_stop(len(piece))
                self._give(len(self._text) if self.stopped else len(self._text) - self._held())
        self._send()
        if self.stopped:
            raise Stopped

    def _look_for_stop(self, new: int) -> None:
        longest = max(map(len, self.stops), default=0)
        begin = max(0, len(self._text) - new - longest)
        found = [place for stop in self.stops if (place := self._text.find(stop, begin)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True

    def _held(self) -> int:
        """Return how many characters at the end may be the beginning of a stop text."""
        longest = 0
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _give(self, upto: int) -> None:
        text = self._text[self._given : upto]
        self._given = max(self._given, upto)
        if text:
            self.items += [text] if self.parser is None else response_events_to_chunks(self.parser.feed(text))

    def _send(self) -> None:
        if self.emit is None or self._sent == len(self.items):
            return
        self.emit(Delta(self.choice, tuple(self.items[self._sent :]), tuple(self.logs[self._logged :])))
        self._sent, self._logged = len(self.items), len(self.logs)

    def finish(self) -> str:
        """Give out what was held back, and return the whole text, stop text cut off, special tokens dropped."""
        text = str(self.tokenizer.decode(self.tokens, skip_special_tokens=True))
        if self.stopped:
            text = self._text
        elif self.parser is None and text.startswith(self._text):
            self._text = text  # with the end of a character that was never finished
        if self._decodes:
            self._give(len(self._text))
        if self.parser is not None:
            try:
                _, events = self.parser.finalize()
                self.items += response_events_to_chunks(events)
            except (ValueError, RuntimeError):  # it ended in the middle of a tool call: there is none then
                pass
        if self.emit is not None and (self._sent < len(self.items) or self._logged < len(self.logs)):
            self.emit(Delta(self.choice, tuple(self.items[self._sent :]), tuple(self.logs[self._logged :])))
        return text


def last_logits(listener: Listener) -> Callable[[Any, Any, Any], None]:
    """Return a forward hook that shows the listener the model's last logits."""

    def hook(module: Any, args: Any, output: Any) -> None:
        with torch.no_grad():
            listener.logits = output.logits[0, -1]

    return hook
