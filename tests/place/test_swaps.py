"""Cache-conditional routing, counted: by hand, against a plain loop, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_header, make_identity, make_trace
from moeworks.artefact import LayerShape, ModelIdentity
from moeworks.contract import Contract
from moeworks.errors import BadData, BadTrace, Unsupported
from moeworks.place.swaps import conditional_swaps


def text(logits: list[list[float]], k: int = 1) -> Text:
    z = np.array(logits)
    return Text({}, {0: np.argsort(-z, axis=1, kind="stable")[:, :k].tolist()}, logits={0: z})


def test_one_swap_by_hand(tmp_path: Path) -> None:
    """Spread 10 each. Second token: 1 beats 0 by 1, but 0 is there and gets 0.2 × 10: one swap of a logit of 1.

    Third: 2 beats 0 by 5: no swap.
    """
    logits = [[10.0, 0, 0, 0], [9, 10, 0, 0], [5, 0, 10, 0]]
    trace = write_texts(tmp_path / "t", [text(logits)], experts=(4,))
    (row,) = conditional_swaps(trace, strength=0.2, kept=0, capacity="1", admission="chosen").to_pylist()
    assert row["swaps"] == pytest.approx(1 / 3)
    assert row["miss_rate"] == pytest.approx(2 / 3)
    assert row["plain_miss_rate"] == 1
    assert (row["gap"], row["mean_spread"]) == pytest.approx((1, 10))
    (kept,) = conditional_swaps(trace, strength=0.2, kept=1, capacity="1").to_pylist()
    assert kept["swaps"] == 0


def plain(logits: np.ndarray, k: int, strength: float, kept: int, size: int, admission: str) -> tuple[int, int]:
    """Return swaps and misses, written from the formula with sets and sorting."""
    cache: list[int] = []  # oldest first
    spreads: list[float] = []
    swaps = misses = 0
    for z in logits:
        spreads.append(float(z.max() - z.min()))
        ranked = [int(e) for e in np.argsort(-z, kind="stable")]
        bonus = strength * float(np.mean(spreads))
        rest = sorted(ranked[kept:], key=lambda e: -(z[e] + bonus * (e in cache)))
        chosen = ranked[:kept] + rest[: k - kept]
        swaps += len(set(ranked[:k]) - set(chosen))
        misses += len(set(chosen) - set(cache))
        away = [e for e in ranked[:k] if e not in chosen]
        seen = {"recorded": ranked[:k], "chosen": chosen, "background": away + chosen}[admission]
        for e in seen:
            if e in cache:
                cache.remove(e)
            elif len(cache) == size:
                cache.pop(0)
            cache.append(e)
    return swaps, misses


@pytest.mark.parametrize("admission", ["recorded", "chosen", "background"])
@pytest.mark.parametrize(("strength", "kept"), [(0.0, 1), (0.1, 1), (0.3, 2), (0.3, 0)])
def test_equals_the_plain_loop(tmp_path: Path, admission: Any, strength: float, kept: int) -> None:
    z = np.random.default_rng(8).normal(size=(60, 8)).astype(np.float32).astype(np.float64)
    texts = [text(z[:25].tolist(), 3), text(z[25:].tolist(), 3)]
    trace = write_texts(tmp_path / "t", texts, experts=(8,), part_bytes=1)
    options: dict[str, Any] = {"strength": strength, "kept": kept, "capacity": "5", "admission": admission}
    (row,) = conditional_swaps(trace, **options).to_pylist()
    swaps, misses = plain(z, 3, strength, kept, 5, admission)
    assert row["swaps"] * 180 == pytest.approx(swaps)
    assert row["miss_rate"] * 180 == pytest.approx(misses)
    if strength == 0:
        assert row["swaps"] == 0
        assert row["miss_rate"] == row["plain_miss_rate"]


def test_rounding_is_no_swap(tmp_path: Path) -> None:
    """The engine chose 1 where the recorded logits are a hair in favour of 0."""
    near = Text({}, {0: [[1], [1]]}, logits={0: np.array([[1.0001, 1.0, 0, 0], [1.0001, 1.0, 0, 0]])})
    trace = write_texts(tmp_path / "t", [near], experts=(4,))
    (row,) = conditional_swaps(trace, strength=0.0, kept=1, capacity="1").to_pylist()
    assert row["swaps"] == 0
    wrong = Text({}, {0: [[2], [2]]}, logits={0: np.array([[1.0, 0.5, 0, 0], [1.0, 0.5, 0, 0]])})
    with pytest.raises(Unsupported, match=r"0\.0% of the tokens only"):
        conditional_swaps(write_texts(tmp_path / "w", [wrong], experts=(4,)), capacity="1")


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match="logits"):
        conditional_swaps(make_trace(tmp_path / "a"))
    trace = make_trace(tmp_path / "b", logits=True)
    for options, message in (
        ({"strength": -1}, "not negative"),
        ({"kept": 3}, "cannot always be kept"),
        ({"capacity": "1"}, "does not hold the 2"),
        ({"admission": "all"}, "admission cannot be"),
    ):
        with pytest.raises(BadData, match=message):
            conditional_swaps(trace, **options)
    biased = LayerShape(layer=0, experts=4, top_k=1, contract=Contract(experts=4, top_k=1, score="sigmoid", bias=True))
    model = ModelIdentity(**{**make_identity().model_dump(), "layers": (biased,)})
    header = make_header(model=model)
    with pytest.raises(Unsupported, match="selection bias"):
        conditional_swaps(write_texts(tmp_path / "c", [text([[1.0, 0, 0, 0]])], experts=(4,), header=header))
