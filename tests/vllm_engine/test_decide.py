"""Decisions for rows of a mixed batch equal the numpy reference, for every kind of router and operation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moeworks.address import Address
from moeworks.contract import Contract, margins, selection_scores
from moeworks.engines.vllm.bank import EVERY, Bank, merge
from moeworks.engines.vllm.decide import decide_rows, logits_decide
from moeworks.engines.vllm.fused import Fused
from moeworks.plan.compiled import compile_layer
from moeworks.plan.operations import apply_edits
from moeworks.plan.schema import Add, Demote, Mask, Operation, Promote, Scale, TopK

E, K = 16, 4
CONTRACTS = {
    "softmax": Contract(experts=E, top_k=K, renormalise=True),
    "softmax, not renormalised": Contract(experts=E, top_k=K),
    "top-k first": Contract(experts=E, top_k=K, order="top_k_first"),
    "sigmoid, bias, groups": Contract(
        experts=E, top_k=K, score="sigmoid", bias=True, groups=4, groups_kept=2, renormalise=True, scale=2.5
    ),
    "softmax, groups": Contract(experts=E, top_k=K, groups=4, groups_kept=2, group_score="max"),
    "softmax, bias": Contract(experts=E, top_k=K, bias=True, renormalise=True),
    "sqrt softplus, bias": Contract(experts=E, top_k=K, score="sqrt_softplus", bias=True, renormalise=True),
}


def experts(*numbers: int) -> tuple[Address, ...]:
    return tuple(Address(0, number) for number in numbers)


CLAUSES: dict[str, list[Operation]] = {
    "promote": [Promote(experts=experts(3, 2), margin=0.5)],
    "demote": [Demote(experts=experts(0, 5, 9), margin=0.2)],
    "add": [
        Add(experts=experts(1, 2), strength=1.5, unit="logit"),
        Add(experts=experts(2, 7), strength=-0.7, unit="std"),
        Add(experts=experts(8), strength=0.3, unit="spread"),
    ],
    "mask": [Mask(experts=experts(4, 11, 12))],
    "no refill": [Mask(experts=experts(1, 6), refill=False)],
    "no refill, total kept": [Mask(experts=experts(1, 6, 10), refill=False, renormalise=True)],
    "scale": [Scale(experts=experts(0, 3, 15), factor=2.0)],
    "scale, total kept": [Scale(experts=experts(0, 3, 15), factor=0.25, renormalise=True)],
    "fewer": [TopK(k=2)],
    "one": [TopK(k=1)],
    "all at once": [
        Add(experts=experts(5), strength=1.0, unit="std"),
        Promote(experts=experts(3)),
        Demote(experts=experts(8)),
        Mask(experts=experts(0)),
        Mask(experts=experts(14), refill=False),
        Scale(experts=experts(3), factor=0.5),
        TopK(k=3),
    ],
}
TOGETHER = [("promote", "demote"), ("add", "mask"), ("fewer", "scale"), ("no refill", "scale"), ("mask", "demote")]


def dense(weights: np.ndarray, ids: np.ndarray) -> np.ndarray:
    out = np.zeros((len(ids), E))
    np.add.at(out, (np.arange(len(ids))[:, None], ids), weights)
    return out


@pytest.mark.parametrize("way", ["by selection scores", "by logits where these decide", "in one pass"])
@pytest.mark.parametrize("name", CONTRACTS)
def test_a_mixed_batch_equals_the_reference(name: str, way: str) -> None:
    contract = CONTRACTS[name]
    if way == "in one pass":
        pytest.importorskip("numba")
        if not logits_decide(contract):
            return  # it is never asked to
    rng = np.random.default_rng(0)
    sets = [(), *((clause,) for clause in CLAUSES), *TOGETHER]
    rows = 40 * len(sets)
    logits = rng.normal(size=(rows, E)).astype(np.float32)
    bias = rng.normal(size=E).astype(np.float32) * 0.1 if contract.bias else None
    slots = rng.permutation(np.repeat(np.arange(len(sets)), 40))
    edits = {clause: compile_layer(operations, 0, E) for clause, operations in CLAUSES.items()}
    bank = Bank(len(sets), E, torch.device("cpu"))
    for slot, chosen in enumerate(sets):
        bank.write(slot, merge([edit for clause in chosen if (edit := edits[clause]) is not None], E))
    kinds = EVERY if way == "by selection scores" else EVERY - {"tight"}
    given = None if bias is None else torch.from_numpy(bias)
    if way == "in one pass":
        weights, ids = torch.full((rows, K), torch.nan), torch.full((rows, K), -1, dtype=torch.int32)
        for part in (np.arange(0, rows, 2), np.arange(1, rows, 2)):
            assert Fused(bank, contract).decide(torch.from_numpy(logits), weights, ids, part, slots[part])
        assert (ids.sort(-1).values.diff(dim=-1) > 0).all()  # no expert twice
    else:
        weights, ids = decide_rows(
            torch.from_numpy(logits), bank.gather(torch.from_numpy(slots), kinds), contract, bias=given
        )

    expected = np.zeros((rows, E))
    near = margins(selection_scores(logits, contract, bias=bias), contract) < 1e-5
    for slot, chosen in enumerate(sets):
        here = slots == slot
        reference = apply_edits(
            logits[here],
            contract,
            [(edits[clause], None) for clause in chosen],
            bias=None if bias is None else bias,
        )
        expected[here] = dense(reference.weights, reference.ids)
    found = dense(weights.numpy(), ids.numpy())
    assert np.isfinite(found).all()
    assert np.abs(found - expected)[~near].max() < 2e-6
    assert near.mean() < 0.01
    for slot, chosen in enumerate(sets[1:], 1):  # each plan does something on its rows
        here = slots == slot
        plain = apply_edits(logits[here], contract, [], bias=bias)
        assert np.abs(found[here] - dense(plain.weights, plain.ids)).max() > 1e-3, chosen


@pytest.mark.parametrize("name", CONTRACTS)
def test_kinds_that_are_not_there_may_be_passed_over(name: str) -> None:
    contract = CONTRACTS[name]
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(64, E, generator=generator)
    bias = torch.randn(E, generator=generator) * 0.1 if contract.bias else None
    slots = torch.randint(0, 2, (64,), generator=generator)
    for clause, operations in CLAUSES.items():
        bank = Bank(2, E, torch.device("cpu"))
        edit = compile_layer(operations, 0, E)
        assert edit is not None
        bank.write(1, merge([edit], E))
        every = decide_rows(logits, bank.gather(slots, EVERY), contract, bias=bias)
        some = decide_rows(logits, bank.gather(slots, bank.kinds[1]), contract, bias=bias)
        assert torch.equal(every[1], some[1]), clause
        assert (every[0] - some[0]).abs().max() < 1e-6, clause


def test_a_cleared_slot_is_neutral() -> None:
    bank = Bank(2, E, torch.device("cpu"))
    edit = compile_layer(CLAUSES["all at once"], 0, E)
    assert edit is not None
    bank.write(1, merge([edit], E))
    assert bank.touched[1]
    bank.clear(1)
    fresh = Bank(2, E, torch.device("cpu"))
    for name, value in vars(bank).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(fresh, name)), name
    assert not bank.kinds


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_pass_takes_logits_as_they_are(dtype: torch.dtype) -> None:
    """In half precision, or with columns of shared experts beside; rows that are not named stay; other types refuse."""
    pytest.importorskip("numba")
    contract = CONTRACTS["softmax"]
    bank = Bank(2, E, torch.device("cpu"))
    edit = compile_layer(CLAUSES["all at once"], 0, E)
    assert edit is not None
    bank.write(1, merge([edit], E))
    logits = torch.randn(8, E + 2, generator=torch.Generator().manual_seed(3)).to(dtype)[:, :E]
    rows, slots = np.array([1, 4, 6]), np.ones(3, np.int64)
    weights, ids = torch.full((8, K), 7.0), torch.full((8, K), 9)
    fused = Fused(bank, contract)
    assert fused.decide(logits, weights, ids, rows, slots)
    expected = decide_rows(logits[rows], bank.gather(torch.from_numpy(slots), bank.kinds[1]), contract)
    assert torch.equal(ids[rows], expected[1])
    assert (weights[rows] - expected[0]).abs().max() < 1e-6
    others = [row for row in range(8) if row not in rows]
    assert (weights[others] == 7).all()
    assert (ids[others] == 9).all()
    assert not fused.decide(logits, weights.half(), ids, rows, slots)


def test_a_margin_of_nothing_still_promotes() -> None:
    """Promoted to just the token's largest logit, an expert is chosen all the same."""
    contract = Contract(experts=E, top_k=1, renormalise=True)
    edit = compile_layer([Promote(experts=experts(15), margin=0.0)], 0, E)
    assert edit is not None
    row = merge([edit], E)
    assert "tight" in row.kinds
    bank = Bank(2, E, torch.device("cpu"))
    bank.write(1, row)
    logits = torch.randn(64, E, generator=torch.Generator().manual_seed(2))
    slots = torch.ones(64, dtype=torch.int64)
    _, ids = decide_rows(logits, bank.gather(slots, bank.kinds[1]), contract)
    assert (ids == 15).all()
