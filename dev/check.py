"""Run every check and the tests; a line a step, the whole output in a file in out/, the end of what failed here.

Without names, all steps but `slow tests`: README and pages run as printed, the page in a browser, clusters and kills.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TAIL = 60  # lines of a failed step that are shown

PYTEST = ["pytest", "-n", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
STEPS: dict[str, list[str]] = {
    "format": ["ruff", "format", "--check", "."],
    "lint": ["ruff", "check", "."],
    "types": ["mypy"],
    "generated docs": ["docs/generate.py", "--check"],
    "docs build": ["sphinx", "-E", "-W", "--keep-going", "-q", "docs", "docs/_build/html"],
    "tests": [*PYTEST, "-m", "not slow"],
    "slow tests": [*PYTEST, "-m", "slow"],
}


def main(names: list[str]) -> int:
    """Run the steps named, or all but the slow tests; return 1 if any failed."""
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        print(f"no step is called {', '.join(unknown)}; steps: {', '.join(STEPS)}", file=sys.stderr)
        return 2
    log = ROOT / "out" / f"{'-'.join(['check', *names]).replace(' ', '-')}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("")
    failed = [name for name in names or [*STEPS][:-1] if not passes(name, log)]
    if failed:
        print(f"\nfailed: {', '.join(failed)} (whole output: {log.relative_to(ROOT)})")
    return int(bool(failed))


def passes(name: str, log: Path) -> bool:
    """Run one step, log its output, print how it went."""
    words = STEPS[name]
    command = [sys.executable, *(words if words[0].endswith(".py") else ["-m", *words])]
    # Test files run side by side, each on one core: two that share threads slow each other more than they gain.
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
    }
    started = time.perf_counter()
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    seconds = time.perf_counter() - started
    with log.open("a") as file:
        file.write(f"== {name}: {' '.join(words)}\n{ran.stdout}\n")
    print(f"{'ok    ' if ran.returncode == 0 else 'FAILED'} {name} ({seconds:.0f} s)", flush=True)
    lines = ran.stdout.rstrip().splitlines()
    if ran.returncode:
        print("\n".join(f"    {line}" for line in lines[-TAIL:]), flush=True)
    elif words[0] == "pytest" and lines:
        print(lines[-1], flush=True)  # how many passed
    return ran.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
