"""A progress bar with rate and time left on standard error, where somebody watches; or a function that is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["Progress", "Show"]

Show = bool | Callable[[int, int | None], None]


class Progress:
    """Counts up; without a total it shows rate and elapsed time, with one the time left too.

    The rate is of what is counted, or of `rated` where `advance` says how much of that was done. `show` may be a
    function: it is called with how much is done and of how much (None where that is not known), and no bar is shown.
    """

    def __init__(self, what: str, unit: str, *, total: int | None = None, rated: str = "", show: Show = True) -> None:
        self._task = None
        self._bar = None
        self._tell = show if callable(show) else None
        self._done, self._total = 0, total
        if show and self._tell is None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,.0f} " + unit),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(what, total=total, rate="")
        self._rated = rated or unit
        self._work = 0

    def advance(self, amount: int, *, rated: int | None = None) -> None:
        """Add to the count, and to the work that the rate is of."""
        self._done += amount
        if self._tell is not None:
            self._tell(self._done, self._total)
        if self._bar is None or self._task is None:
            return
        self._work += amount if rated is None else rated
        self._bar.advance(self._task, amount)
        elapsed = self._bar.tasks[self._task].elapsed
        self._bar.update(self._task, rate=f"{self._work / elapsed:,.1f} {self._rated}/s" if elapsed else "")

    def __enter__(self) -> Self:
        if self._tell is not None:
            self._tell(0, self._total)
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
