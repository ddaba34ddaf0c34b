"""Cache curves: split documents, chance, knees, the share of admission, whether pinning is worth it, the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.errors import BadData
from moeworks.place import CacheRules, cache_curve, simulate
from moeworks.place.curve import split_documents
from moeworks.place.picture import save_curve
from moeworks.trace import Trace
from moeworks.where import Where


def skewed(path: Path, *, drift: bool, texts: int = 16, length: int = 30, seed: int = 1) -> Trace:
    """One of 8 experts a token. Without drift, 0 and 1 are used in 90 % of tokens, in random order, everywhere.

    With drift, every text has two experts of its own, which a set made from other texts cannot know.
    """
    rng = np.random.default_rng(seed)
    made = []
    for i in range(texts):
        hot = [(2 * i) % 8, (2 * i + 1) % 8] if drift else [0, 1]
        ids = np.where(rng.random(length) < 0.9, rng.choice(hot, length), rng.integers(0, 8, length))
        made.append(Text({}, {0: ids[:, None].tolist()}, document=f"d{i}"))
    return write_texts(path, made, experts=(8,))


def test_pinning_is_worth_it_where_the_same_experts_are_hot_everywhere(tmp_path: Path) -> None:
    """0 and 1 alternate at random, so that a third expert costs LRU a miss more than the pinned set."""
    curve = cache_curve(skewed(tmp_path / "t", drift=False), rules=CacheRules(capacity="2"))
    assert curve.pinning is not None
    assert curve.pinning.verdict == "yes"
    assert curve.pinning.answer.startswith("Yes, for this traffic: with 2 of 8 experts a layer (25 %)")
    assert curve.pinning.difference.low > 0
    assert curve.pinning.headroom == pytest.approx(1, abs=0.05)
    assert curve.pinning.rates["belady"].value >= curve.pinning.rates["fixed"].value
    # 0.9 + 0.1 × 2/8 of requests are for 0 and 1
    assert curve.pinning.rates["fixed"].value == pytest.approx(0.925, abs=0.04)


def test_pinning_is_not_worth_it_where_every_text_has_its_own(tmp_path: Path) -> None:
    curve = cache_curve(skewed(tmp_path / "t", drift=True), rules=CacheRules(capacity="2"))
    assert curve.pinning is not None
    assert curve.pinning.verdict == "no"
    assert curve.pinning.answer.startswith("No: with 2 of 8")
    assert "(below)" in curve.pinning.answer
    assert curve.pinning.difference.high < 0


def test_few_documents_tell_nothing(tmp_path: Path) -> None:
    curve = cache_curve(skewed(tmp_path / "t", drift=False, texts=6), rules=CacheRules(capacity="2"))
    assert curve.pinning is not None
    assert curve.pinning.verdict == "undecided"
    assert "cannot tell" in curve.pinning.answer
    assert np.isnan(curve.pinning.difference.low)


def test_nothing_is_measured_on_what_was_learned_from(tmp_path: Path) -> None:
    """The halves share no document; the counts are those of a simulation of the other half."""
    trace = make_trace(tmp_path / "t", requests=12, requests_per_document=2, topic=1.0)
    learned, measured = split_documents(trace, where=Where(), share=0.5, seed=4)
    assert not set(learned) & set(measured)
    assert sorted([*learned, *measured]) == list(range(6))
    curve = cache_curve(trace, policies=["lru"], capacities=["3"], rules=CacheRules(capacity="3"), seed=4)
    (counts,) = simulate(trace, ["lru"], capacities=["3"], documents=measured)
    assert curve.table["hit_rate"].to_pylist() == [counts.hit_rate]
    assert curve.tokens == counts.tokens == 60
    assert (curve.documents, curve.calibration_documents) == (3, 3)
    assert curve.pinning is None


def test_chance_is_the_share_of_experts_held(tmp_path: Path) -> None:
    """Layers of 8 and 4 experts, 2 and 1 of a token: half of each is a half; 3 of each, weighted by requests."""
    trace = make_trace(tmp_path / "t", requests=10, experts=(8, 4), top_k=(2, 1))
    table = cache_curve(trace, policies=["lru"], capacities=["50%", "3"], rules=CacheRules(capacity="50%")).table
    chance = dict(zip(table["capacity"].to_pylist(), table["chance"].to_pylist(), strict=True))
    assert chance["50%"] == pytest.approx(0.5)
    assert chance["3"] == pytest.approx((2 * 3 / 8 + 1 * 3 / 4) / 3)


def test_random_routing_hits_by_chance_and_has_no_knee(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [Text({}, {0: rng.integers(0, 8, (200, 1)).tolist()}) for _ in range(20)]
    trace = write_texts(tmp_path / "t", texts, experts=(8,))
    curve = cache_curve(trace, policies=["lru", "lfu", "random"])
    for row in curve.table.to_pylist():
        assert row["hit_rate"] == pytest.approx(row["chance"], abs=0.04)
    assert [knee["capacity"] for knee in curve.knees.to_pylist()] == [None] * 3


def test_the_knee_is_where_a_cache_gains_most(tmp_path: Path) -> None:
    """Two hot experts of eight: with two held nearly all is there, six more add little."""
    curve = cache_curve(
        skewed(tmp_path / "t", drift=True),
        capacities=["1", "2", "4", "8"],
        policies=["lru", "belady"],
        rules=CacheRules(capacity="2"),
    )
    knees = {knee["policy"]: knee for knee in curve.knees.to_pylist()}
    assert (knees["lru"]["capacity"], knees["belady"]["held"]) == ("2", 2)
    assert knees["lru"]["low"] <= 2 <= knees["lru"]["high"]
    rows = {row["capacity"]: row for row in curve.table.to_pylist() if row["policy"] == "lru"}
    assert knees["lru"]["gain"] == pytest.approx(rows["2"]["hit_rate"] - rows["2"]["chance"])


def test_the_share_of_admission_by_hand(tmp_path: Path) -> None:
    """a b c a b c … with two places: LRU always misses; keeping every newcomer or not makes the rest of the gap."""
    texts = [Text({}, {0: [[0], [1], [2]] * 4}), Text({}, {0: [[0], [1], [2]] * 4})]
    trace = write_texts(tmp_path / "t", texts, experts=(4,))
    rules = CacheRules(capacity="2")
    curve = cache_curve(trace, policies=["lru", "belady", "belady_forced"], capacities=["2"], rules=rules)
    misses = {row["policy"]: row["misses_per_token"] * 12 for row in curve.table.to_pylist()}
    # Belady may keep a and pass b and c by turns: hits at a, b or c once in two events after the first two.
    assert misses["lru"] == pytest.approx(12)
    (row,) = curve.admission.to_pylist()
    expected = (misses["belady_forced"] - misses["belady"]) / (misses["lru"] - misses["belady"])
    assert row == {"capacity": "2", "best_causal": "lru", "admission_share": pytest.approx(expected)}
    assert 0 <= expected <= 1


def test_the_capacity_of_the_rules_is_always_there_and_sizes_appear_once(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "t", requests=6)
    curve = cache_curve(trace, policies=["lru"], capacities=["25%", "50%"], rules=CacheRules(capacity="1k"))
    assert curve.table["capacity"].to_pylist() == ["1k", "50%"]
    assert set(curve.layers["layer"].to_pylist()) == {0, 1}


def test_one_document_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="1 document has tokens"):
        cache_curve(make_trace(tmp_path / "t", requests=3, requests_per_document=3))


@pytest.mark.parametrize("name", ["c.png", "c.svg"])
@pytest.mark.parametrize("rules", [CacheRules(), CacheRules(scope="pooled", batch=2)])
def test_picture(tmp_path: Path, name: str, rules: CacheRules) -> None:
    curve = cache_curve(skewed(tmp_path / "t", drift=False), rules=rules)
    written = save_curve(curve, tmp_path / name).read_bytes()
    assert written.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    if name.endswith("svg"):
        for words in (b"knee of LRU", b"pinned set", b"chance"):
            assert words in written


def test_everything_as_json(tmp_path: Path) -> None:
    import json

    document: dict[str, Any] = cache_curve(skewed(tmp_path / "t", drift=False)).as_json()
    assert json.loads(json.dumps(document))["pinning"]["verdict"] in ("yes", "no", "undecided")
