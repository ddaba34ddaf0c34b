"""EPLB and LLEP by their golden values, imbalance before and after, and the experts that a batch needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.errors import BadData
from moeworks.place.balance import balance_experts
from moeworks.place.batching import expert_aware_batches, experts_per_batch
from moeworks.place.eplb import gpu_loads, imbalance, plain_placement, rebalance
from moeworks.place.llep import least_loaded

LOADS = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ]
)


def test_eplb_golden_values() -> None:
    """The example of the published repository: 16 slots, 4 groups, 2 nodes, 8 GPUs."""
    found = rebalance(LOADS, replicas=16, gpus=8, groups=4, nodes=2)
    assert found.physical_to_logical.tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
    assert imbalance(gpu_loads(LOADS, found)) == pytest.approx([1.2081, 1.2422], abs=5e-5)
    assert found.copies.sum(1).tolist() == [16, 16]
    for layer in range(2):
        for expert in range(12):
            slots = [slot for slot in found.logical_to_physical[layer, expert] if slot >= 0]
            assert len(slots) == found.copies[layer, expert]
            assert (found.physical_to_logical[layer, slots] == expert).all()


def test_eplb_without_groups_by_hand() -> None:
    """Loads 6 2 2 2, one copy more, 5 GPUs: expert 0 gets it; every GPU holds one slot, in slot order."""
    found = rebalance(np.array([[6, 2, 2, 2]]), replicas=5, gpus=5)
    assert found.physical_to_logical.tolist() == [[0, 1, 2, 3, 0]]
    assert gpu_loads(np.array([[6, 2, 2, 2]]), found).tolist() == [[3, 2, 2, 2, 3]]
    even = rebalance(np.array([[6, 2, 2, 2, 0, 0]]), replicas=6, gpus=2, groups=3, nodes=2)  # 3 groups, 2 nodes: global
    assert gpu_loads(np.array([[6, 2, 2, 2, 0, 0]]), even).tolist() == [[6, 6]]


def test_eplb_refuses_what_does_not_divide() -> None:
    for arguments in (
        {"replicas": 13, "gpus": 8},
        {"replicas": 16, "gpus": 8, "groups": 5},
        {"replicas": 8, "gpus": 4},
    ):
        with pytest.raises(BadData):
            rebalance(LOADS, **arguments)
    with pytest.raises(BadData, match="cannot be divided"):
        plain_placement(1, 12, 5)


def test_llep_golden_values() -> None:
    loads = np.array([700, 50, 50, 40, 40, 40, 40, 40])
    found = least_loaded(loads, gpus=4, alpha=1.0, fewest=16)
    assert found.assigned[0].tolist() == [200, 160, 170, 170]
    assert found.loads.tolist() == [250] * 4
    native = np.arange(8) // 2
    for expert in range(1, 8):
        assert found.assigned[expert, native[expert]] == loads[expert]
    assert (found.moved_tokens, found.moved_experts) == (500, 3)
    other = least_loaded(loads, gpus=4, alpha=1.1, fewest=64)
    assert other.assigned[0].tolist() == [225, 85, 195, 195]
    assert other.loads.tolist() == [275, 175, 275, 275]


def test_llep_leaves_even_batches_alone() -> None:
    found = least_loaded(np.array([10, 10, 12, 8]), gpus=2, threshold=1.3)
    assert not found.planned
    assert found.loads.tolist() == [20, 20]


def test_llep_always_finds_a_place() -> None:
    """All tokens on one expert and portions too small to move: the rest is forced to the least loaded."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        loads = rng.integers(0, 50, 8) * (rng.random(8) < 0.4)
        found = least_loaded(loads, gpus=4, alpha=float(rng.uniform(0.5, 1.5)), fewest=int(rng.integers(1, 40)))
        assert found.assigned.sum(1).tolist() == loads.tolist()
        assert (found.assigned >= 0).all()


def test_balance_of_a_trace(tmp_path: Path) -> None:
    """Expert 0 takes every token, 1 to 3 a third each, two GPUs: 0 and 1 carry (1 + 1/3) of 2."""
    ids = [[0, 1 + i % 3] for i in range(60)]
    trace = write_texts(tmp_path / "t", [Text({}, {0: ids}) for _ in range(12)], experts=(4,))
    found = balance_experts(trace, gpus=2, batch_tokens=60, fewest=1, seed=1)
    (row,) = found.table.to_pylist()
    assert row["plain"] == pytest.approx((4 / 3) / 1)
    # packs by falling load, two slots a GPU: 0 with one of the others again, since each GPU must hold two
    assert row["eplb"] == pytest.approx((4 / 3) / 1)
    assert row["batch_plain"] == pytest.approx(4 / 3)
    assert row["batch_llep"] == pytest.approx(1)
    assert row["llep_moved"] == pytest.approx((80 - 60) / 120)
    more = balance_experts(trace, gpus=2, extra=2, batch_tokens=60, seed=1)
    assert more.table["eplb"].to_pylist()[0] == pytest.approx(1, abs=0.12)
    assert more.table["fitted"].to_pylist()[0] <= more.table["plain"].to_pylist()[0]
    assert (found.documents, found.calibration_documents, found.tokens, found.batches) == (6, 6, 360, 6)
    assert row["plain_low"] <= row["plain"] <= row["plain_high"]


def test_chance_of_imbalance_is_that_of_an_even_router(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "t", requests=40, rows_per_request=50)
    for row in balance_experts(trace, gpus=4).table.to_pylist():
        assert 1 < row["chance"] < 1.1
        assert row["plain"] == pytest.approx(row["chance"], abs=0.1)


def test_experts_of_a_batch_by_hand(tmp_path: Path) -> None:
    """Two texts side by side: (0,1)+(0,2) is 3 experts, (2,3)+(2,3) is 2; the third token of the first is alone."""
    texts = [Text({}, {0: [[0, 1], [2, 3], [0, 1]]}), Text({}, {0: [[0, 2], [2, 3]]})]
    trace = write_texts(tmp_path / "t", texts, experts=(4,))
    rows = {row["batch"]: row for row in experts_per_batch(trace, batches=(1, 2)).to_pylist()}
    assert (rows[1]["distinct"], rows[1]["steps"]) == (2, 5)
    assert (rows[2]["distinct"], rows[2]["steps"]) == (2.5, 2)
    assert rows[2]["chance"] == pytest.approx(4 * (1 - 0.5**2))
    used = np.array([3, 2, 3, 2]) / 5
    assert rows[2]["load_chance"] == pytest.approx((1 - (1 - used) ** 2).sum())
    assert rows[2]["aware"] is None


def test_expert_aware_batches_by_hand() -> None:
    """Queues: 1 has three tokens (0, 2, 4), 0 two (1, 3). A batch of two takes two of 1, then 0's, then the rest."""
    chosen = np.array([[1], [0], [1], [0], [1]])
    assert [batch.tolist() for batch in expert_aware_batches(chosen, 2)] == [[0, 2], [1, 3], [4]]


def test_expert_aware_batches_need_fewer_experts(tmp_path: Path) -> None:
    trace = make_trace(tmp_path / "t", requests=32, rows_per_request=12)
    for row in experts_per_batch(trace, batches=(4,), waiting=8).to_pylist():
        assert row["aware"] < row["arrival"]
    with pytest.raises(BadData, match="ever full"):
        experts_per_batch(trace, batches=(64,))
