"""Bytes of an expert and time per token, by hand."""

import numpy as np
import pytest

from helpers.traces import make_identity
from moeworks.errors import BadData
from moeworks.place.timing import expert_bytes, expert_bytes_of, parse_bytes, token_time


def test_bytes_of_an_expert() -> None:
    """Qwen3-30B-A3B: 3 × 768 × 2048 weights, 9,437,184 bytes in bfloat16; a quarter in int4."""
    assert expert_bytes(768, 2048) == 9_437_184
    assert expert_bytes(768, 2048, precision="int4") == 9_437_184 / 4
    assert expert_bytes(768, 2048, precision="4.65") == pytest.approx(3 * 768 * 2048 * 4.65 / 8)
    assert expert_bytes(10, 10, precision="fp8", matrices=2) == 200
    for precision in ("fp7", "-1"):
        with pytest.raises(BadData):
            expert_bytes(768, 2048, precision=precision)
    with pytest.raises(BadData, match="does not tell how many neurons"):
        expert_bytes_of(make_identity(), hidden=8, precision="int4")


def test_sizes_as_typed() -> None:
    assert [parse_bytes(word) for word in ("25GB", "1.5 MiB", "800", "3gb/s", "2TB")] == [
        25e9,
        1.5 * 2**20,
        800,
        3e9,
        2e12,
    ]
    with pytest.raises(BadData):
        parse_bytes("25 apples")


def test_time_by_hand() -> None:
    """Two layers, 3 and 1 experts of 10 MB at 1 GB/s: 40 ms of loads beside 20 ms of computing."""
    misses = np.array([3.0, 1.0])
    plain = token_time(misses, expert_bytes=1e7, bandwidth=1e9, compute=0.02)
    assert (plain.seconds, plain.loading, plain.hidden) == pytest.approx((0.06, 0.04, 0))
    assert plain.bytes_per_token == pytest.approx(4e7)
    # Half is foreseen one layer ahead: 15 and 5 ms, of which 10 ms (one layer's computing) and 5 ms are hidden.
    ahead = token_time(misses, expert_bytes=1e7, bandwidth=1e9, compute=0.02, recall=0.5, distance=1)
    assert ahead.hidden == pytest.approx(0.015)
    assert ahead.seconds == pytest.approx(0.06 - 0.015)
    # One expert in vain a layer: 20 ms more; 25 and 15 ms foreseen, 10 ms hidden of each.
    wasted = token_time(misses, expert_bytes=1e7, bandwidth=1e9, compute=0.02, recall=0.5, distance=1, wasted=1)
    assert (wasted.loading, wasted.hidden) == pytest.approx((0.06, 0.02))
    assert wasted.seconds == pytest.approx(0.06)
    assert wasted.bytes_per_token == pytest.approx(6e7)


def test_what_cannot_be_is_refused() -> None:
    for arguments in ({"bandwidth": 0.0}, {"recall": 1.5}, {"compute": -1.0}):
        with pytest.raises(BadData):
            token_time([1.0], **{"expert_bytes": 1.0, "bandwidth": 1.0, **arguments})
