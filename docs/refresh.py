"""Write what a page's commands print now into the outputs it shows: python docs/refresh.py [PAGE.md …].

For the day when the shipped model or its probes change. Every block marked `<!-- run -->` is run in full, without the
short cuts that tests take, in a temporary folder; a shown line becomes the printed one that is most like it, in the
same order, and `...` stays. Lines that nothing printed is like are named at the end and, as the sentences around the
blocks, left for a person. Needs the extras of `make check`; minutes a page.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import shlex
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.pages import BLOCK, blocks
from moeworks.cli import main as command

ROOT = Path(__file__).resolve().parent.parent
ALIKE = 0.55  # least similarity of two lines, numbers apart


def main(names: list[str]) -> int:
    """Refresh the pages named, or all that have blocks; return 1 if lines are left for a person."""
    pages = [Path(name).resolve() for name in names] or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    left: list[str] = []
    for page in pages:
        if blocks(page):
            print(page.name, flush=True)
            left += [f"{page.name}: {line}" for line in refresh(page)]
    print("\n".join(["by hand:", *left]) if left else "every shown line was found again")
    return int(bool(left))


def refresh(page: Path) -> list[str]:
    """Rewrite one page; return the shown lines that nothing printed is like."""
    text, before, left = page.read_text(encoding="utf-8"), Path.cwd(), list[str]()

    def ran(found: re.Match[str]) -> str:
        printed = run(found["kind"], found["code"], page)
        if found["shown"] is None:
            return found[0]
        shown, missing = merged(found["shown"].splitlines(), printed.splitlines())
        left.extend(missing)
        start, stop = (place - found.start() for place in found.span("shown"))
        return found[0][:start] + "".join(f"{line}\n" for line in shown) + found[0][stop:]

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            text = BLOCK.sub(ran, text)
        finally:
            os.chdir(before)
    page.write_text(text, encoding="utf-8")
    return left


def run(kind: str, code: str, page: Path) -> str:
    """Run one block and return what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if kind == "python":
            exec(compile(code, str(page), "exec"), {})
        for line in code.strip().splitlines() if kind == "bash" else []:
            try:
                command(shlex.split(line, comments=True)[1:])
            except SystemExit as stopped:
                if stopped.code:
                    raise SystemExit(f"{page.name}: {line} ended with {stopped.code}") from None
    return out.getvalue()


def merged(shown: list[str], printed: list[str]) -> tuple[list[str], list[str]]:
    """Return the shown lines as they are printed now, and those that were not found.

    The choice in order that makes the sum of similarities largest, as in the alignment of two sequences.
    """
    wanted = [line for line in shown if line != "..."]
    alike = [[similarity(line, found) for found in printed] for line in wanted]
    best = [[0.0] * (len(printed) + 1) for _ in range(len(wanted) + 1)]  # of what follows
    for i in reversed(range(len(wanted))):
        for j in reversed(range(len(printed))):
            best[i][j] = max(best[i + 1][j], best[i][j + 1], alike[i][j] + best[i + 1][j + 1] if alike[i][j] else 0)
    place: dict[int, int] = {}
    i = j = 0
    while i < len(wanted) and j < len(printed):
        if alike[i][j] and best[i][j] == alike[i][j] + best[i + 1][j + 1]:
            place[i] = j
            i, j = i + 1, j + 1
        elif best[i][j] == best[i + 1][j]:
            i += 1
        else:
            j += 1
    result, missing, number = [], [], 0
    for line in shown:
        if line == "...":
            result.append(line)
            continue
        result.append(cut(line, printed[place[number]]) if number in place else line)
        if number not in place:
            missing.append(line)
        number += 1
    return result, missing


def similarity(shown: str, printed: str) -> float:
    """Return how alike two lines are, numbers and what a model wrote apart; 0 for too little."""
    one, other = skeleton(shown.removesuffix("...")), skeleton(printed)
    if shown.endswith("..."):
        other = other[: len(one)]
    ratio = 1.0 if one == other else difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()
    return ratio if ratio >= ALIKE else 0.0


def skeleton(line: str) -> str:
    """Return a line with its numbers and what a model wrote made the same."""
    line = re.sub(r"(with(?:out)? the plan:).*", r"\1", line)
    return re.sub(r"[-+]?\d+(?:[.,]\d+)*(?:e-?\d+)?", "0", line)


def cut(shown: str, printed: str) -> str:
    """Return the printed line, as short as the shown one where that ends with an ellipsis."""
    if not shown.endswith("...") or len(printed) <= len(shown):
        return printed
    return printed[: len(shown) - 3].rpartition(" ")[0].rstrip(",;") + "..."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
