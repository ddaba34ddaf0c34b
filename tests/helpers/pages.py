"""Runs the commands and the Python of a Markdown page and compares what they print with what the page shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from moeworks.cli import main

__all__ = ["blocks", "check_shown", "run_page"]

BLOCK = re.compile(
    r"^<!-- run(?:: (?P<more>.*?))? -->\n"
    r"```(?P<kind>bash|python)\n(?P<code>.*?)^```\n"
    r"(?:```text\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    more: str  # options that make the last command of the block quick enough for a test
    kind: str
    code: str
    shown: str


def blocks(page: Path) -> list[Block]:
    return [Block(*(found[name] or "" for name in Block._fields)) for found in BLOCK.finditer(page.read_text())]


def pattern(line: str) -> re.Pattern[str]:
    """Return what a shown line allows: any number in place of a number, anything in place of `...`.

    What the model writes may be another text where the processor rounds differently; that it is there is checked.
    """
    line = re.sub(r"(with(?:out)? the plan:).*", r"\1...", line)
    parts = re.split(r"(\.\.\.|[-+]?\d+(?:[.,]\d+)*)", line)  # every second one is `...` or a number
    free = {True: ".*", False: r"[-+]?[\d,.e-]+"}
    return re.compile("".join(free[part == "..."] if i % 2 else re.escape(part) for i, part in enumerate(parts)))


def check_shown(shown: str, printed: str) -> None:
    """Every line shown is printed, in this order."""
    lines = iter(printed.splitlines())
    for line in shown.splitlines():
        if line != "...":
            assert any(pattern(line).fullmatch(found) for found in lines), (
                f"not printed in its place: {line}\n{printed}"
            )


def run_page(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run every block that is marked `<!-- run -->`, in the working folder, in order."""
    for block in blocks(page):
        if block.kind == "python":
            exec(compile(block.code, str(page), "exec"), {})
        lines = block.code.strip().splitlines() if block.kind == "bash" else []
        for number, line in enumerate(lines, 1):
            words = shlex.split(line, comments=True) + (shlex.split(block.more) if number == len(lines) else [])
            assert words[0] == "moeworks"
            with pytest.raises(SystemExit) as stopped:
                main(words[1:])
            assert stopped.value.code == 0, f"{line}\n{capsys.readouterr().err}"
        check_shown(block.shown, capsys.readouterr().out)
