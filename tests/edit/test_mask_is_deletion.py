"""A cut as a mask decides what the smaller layer decides, for every rule of a contract, in numpy and in torch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.contracts import CASES, Case, sliced
from moeworks.address import Address
from moeworks.contract import combine_weights, decide, margins, selection_scores
from moeworks.engines.transformers.steering import Active, redecide, to_torch
from moeworks.families.torch_contract import TorchDetail
from moeworks.plan.compiled import compile_layer
from moeworks.plan.operations import apply
from moeworks.plan.schema import Mask

KEEP = [0, 1, 3, 4, 6, 7]  # one of each half is gone
GONE = [2, 5]
MASK = Mask(experts=tuple(Address(0, expert) for expert in GONE))
LOGITS = 2 * np.random.default_rng(7).normal(size=(400, 8))


def dense(ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    found = np.zeros((len(ids), 8))
    np.put_along_axis(found, ids, weights, 1)
    return found


def deleted(case: Case) -> np.ndarray:
    """Return the weights, (n, 8), that the layer with the kept experts alone gives, in the old numbers."""
    small = sliced(case, KEEP)
    ids, weights = decide(LOGITS[:, KEEP], small.contract, bias=small.bias, expert_scale=small.expert_scale)
    return dense(np.array(KEEP)[ids], weights)


def no_tie(case: Case) -> np.ndarray:
    small = sliced(case, KEEP)
    return margins(selection_scores(LOGITS[:, KEEP], small.contract, bias=small.bias), small.contract) > 1e-5


@pytest.mark.parametrize("name", CASES)
def test_numpy(name: str) -> None:
    case = CASES[name]
    ids, weights = apply(LOGITS, case.contract, [MASK], layer=0, bias=case.bias, expert_scale=case.expert_scale)
    np.testing.assert_allclose(dense(ids, weights), deleted(case), rtol=1e-12, atol=1e-15)
    own = decide(LOGITS, case.contract, bias=case.bias, expert_scale=case.expert_scale)
    assert np.isin(own.ids, GONE).any(1).mean() > 0.2  # the cut matters on these rows


@pytest.mark.parametrize("name", CASES)
def test_torch(name: str) -> None:
    case = CASES[name]
    bias, scale = (None if v is None else torch.tensor(v, dtype=torch.float32) for v in (case.bias, case.expert_scale))
    detail = TorchDetail(score_dtype=torch.float32)
    arrays = SimpleNamespace(bias=bias, expert_scale=scale)
    router = SimpleNamespace(contract=case.contract, detail=detail, arrays=arrays)
    own = decide(LOGITS.astype(np.float32), case.contract, bias=case.bias, expert_scale=case.expert_scale)
    ids, weights = redecide(
        router,  # type: ignore[arg-type]
        torch.tensor(LOGITS, dtype=torch.float32),
        torch.tensor(own.weights, dtype=torch.float32),
        torch.tensor(own.ids),
        [Active(to_torch(compile_layer([MASK], 0, 8), torch.device("cpu")), None)],
    )
    assert not np.isin(ids.numpy(), GONE).any()
    clear = no_tie(case)  # closed groups filled with zeros tie, and torch breaks ties as it likes
    assert clear.mean() > (0.1 if "fill below" in name else 0.99)
    np.testing.assert_allclose(dense(ids.numpy(), weights.numpy())[clear], deleted(case)[clear], atol=3e-6)


def selection_only(case: Case) -> np.ndarray:
    """Mask what the top-k looks at and nothing else, as steering tools do."""
    choice = selection_scores(LOGITS, case.contract, bias=case.bias)
    choice[:, GONE] = -np.inf
    ids = np.argsort(-choice, 1, kind="stable")[:, : case.contract.top_k]
    return dense(ids, combine_weights(LOGITS, ids, case.contract, expert_scale=case.expert_scale))


def test_masking_the_choice_alone_is_no_deletion_where_a_softmax_is_left_as_it_is() -> None:
    for name in ("softmax not renormalised", "softmax with bias (ERNIE)"):
        assert np.abs(selection_only(CASES[name]) - deleted(CASES[name])).max() > 0.05, name
    same = CASES["softmax renormalised"]
    np.testing.assert_allclose(selection_only(same), deleted(same), atol=1e-12)
