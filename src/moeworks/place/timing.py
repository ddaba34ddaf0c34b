"""From misses to milliseconds: how long a token takes when experts that are not there must be loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData, did_you_mean
from moeworks.place.rules import BYTE_UNITS

if TYPE_CHECKING:
    from moeworks.artefact import ModelIdentity

__all__ = ["PRECISIONS", "TokenTime", "expert_bytes", "expert_bytes_of", "parse_bytes", "token_time"]

Array = NDArray[Any]
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]?i?b)?(?:/s)?\s*$", re.IGNORECASE)
# Bits of a weight as it is served; scales of block formats included (mxfp4: one byte for 32, nvfp4: one for 16).
PRECISIONS: Mapping[str, float] = {
    "float32": 32, "bfloat16": 16, "float16": 16, "fp8": 8, "int8": 8, "int4": 4, "mxfp4": 4.25, "nvfp4": 4.5,
}  # fmt: skip


@dataclass(frozen=True)
class TokenTime:
    """The parts of a token's time in seconds, and what they follow from.

    Attributes:
        seconds: compute + waiting.
        compute: what was given.
        loading: all transfers, waited for or not.
        hidden: the part of them that overlaps with computing.
        expert_bytes: of one expert at the served precision.
        bytes_per_token: loaded a token, wasted prefetches included.
    """

    seconds: float
    compute: float
    loading: float
    hidden: float
    expert_bytes: float
    bytes_per_token: float

    def as_json(self) -> dict[str, float]:
        """Return everything as plain data."""
        return asdict(self)


def expert_bytes(neurons: int, hidden: int, *, precision: str = "bfloat16", matrices: int = 3) -> float:
    """Return the bytes of one expert: matrices × neurons × hidden × bits / 8; biases are left out.

    Args:
        neurons: width inside the expert. hidden: width of the residual stream.
        precision: name in `PRECISIONS`, or bits of a weight as a number, such as 4.65 of a GGUF file.
        matrices: 3 with a gate (gate, up, down), else 2.
    """
    if neurons < 1 or hidden < 1:
        raise BadData("neurons and hidden are at least 1.")
    try:
        bits = PRECISIONS[precision] if precision in PRECISIONS else float(precision)
    except ValueError:
        raise BadData(f"no precision is called '{precision}'; {did_you_mean(precision, PRECISIONS)}") from None
    if bits <= 0:
        raise BadData(f"a weight of {bits:g} bits is none.")
    return matrices * neurons * hidden * bits / 8


def parse_bytes(word: str) -> float:
    """Read `25GB`, `800MiB` or a plain number of bytes."""
    found = _SIZE.match(word)
    if found is None:
        raise BadData(f"'{word}' is no number of bytes; write it as 25GB, 800MiB or 26843545600.")
    return float(found[1]) * BYTE_UNITS[(found[2] or "b").lower()]


def expert_bytes_of(model: ModelIdentity | None, *, hidden: int, precision: str, matrices: int = 3) -> float:
    """Return the bytes of one expert of the model that a trace is of; of its largest, where layers differ.

    Raises:
        BadData: the trace does not tell how many neurons its experts have.
    """
    widths = [] if model is None else [layer.neurons for layer in model.layers if layer.neurons]
    if not widths:
        raise BadData("the trace does not tell how many neurons an expert has; give the bytes of an expert.")
    return expert_bytes(max(widths), hidden, precision=precision, matrices=matrices)


def token_time(
    misses: Array | Sequence[float],
    *,
    expert_bytes: float,
    bandwidth: float,
    compute: float = 0.0,
    recall: float = 0.0,
    distance: int = 0,
    wasted: float = 0.0,
) -> TokenTime:
    """Return how long a token takes: computing, plus the transfers that nothing overlaps.

    In each layer, the share `recall` of the misses was foreseen `distance` layers ahead and loads, with the wasted
    prefetches, while these layers compute; the rest is waited for. Transfers of one layer do not delay another's.

    Args:
        misses: (layers,) experts to load a token, as `CacheCounts.misses_per_token`.
        expert_bytes: of one expert. bandwidth: bytes a second.
        compute: seconds of a token without any loading, spread evenly over the layers.
        recall: share of the misses that a prefetch foresees. distance: layers ahead that it knows.
        wasted: experts prefetched in vain a token and layer.
    """
    if bandwidth <= 0 or expert_bytes <= 0:
        raise BadData("bandwidth and the bytes of an expert are above 0.")
    if not 0 <= recall <= 1 or compute < 0 or wasted < 0 or distance < 0:
        raise BadData("recall lies between 0 and 1; compute, wasted and distance are not negative.")
    each = expert_bytes / bandwidth
    loads = np.asarray(misses, float) * each  # (layers,)
    foreseen = recall * loads + (wasted * each if recall > 0 or wasted > 0 else 0.0)
    hidden = np.minimum(foreseen, distance * compute / max(1, len(loads)))
    loading = float((loads * (1 - recall) + foreseen).sum())
    return TokenTime(
        seconds=float(compute + loading - hidden.sum()),
        compute=compute,
        loading=loading,
        hidden=float(hidden.sum()),
        expert_bytes=expert_bytes,
        bytes_per_token=float((np.sum(misses) + wasted * len(loads)) * expert_bytes),
    )
