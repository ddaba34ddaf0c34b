"""Searches of sets and the reconstruction loss, against outputs written out and enumerations by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from helpers.contracts import CASES, Case
from helpers.cuts import layer_of
from helpers.written_out import Setting
from moeworks.artefact import LayerShape
from moeworks.edit.layer import LayerWeights
from moeworks.edit.scores import EDIT_SCORES, SEARCHES
from moeworks.edit.scores.reconstruction import LayerLoss
from moeworks.edit.statistics import LayerRows
from moeworks.errors import BadData, Unsupported


def without(*gone: int) -> list[int]:
    return [expert for expert in range(8) if expert not in gone]


@pytest.mark.parametrize("name", CASES)
def test_errors_are_those_of_the_layer_without_the_experts(name: str) -> None:
    setting = Setting(CASES[name])
    loss = LayerLoss(setting.statistics, setting.weights, setting.shape)
    gone = [0, 4] if CASES[name].contract.groups == 2 else [1, 5, 6]
    errors, _ = loss.errors(gone)
    expected = ((setting.output() - setting.output(without(*gone))) ** 2).sum(1)
    np.testing.assert_allclose(errors, expected, rtol=1e-5, atol=1e-5)
    assert expected.max() > 0.01


@pytest.mark.parametrize("name", CASES)
def test_rows_that_do_not_choose_an_expert_stay_where_the_loss_says_so(name: str) -> None:
    setting = Setting(CASES[name])
    loss = LayerLoss(setting.statistics, setting.weights, setting.shape)
    if not loss.local:
        return
    for expert in range(8):
        away = ~(setting.ids == expert).any(1)
        np.testing.assert_allclose(loss.errors({expert})[0][away], 0, atol=1e-9)


def test_some_rules_are_not_local() -> None:
    far = {name for name, case in CASES.items() if not _local(case)}
    assert {"softmax not renormalised", "softmax with bias (ERNIE)", "softmax with floor", "sparsemixer"} <= far
    assert "softmax renormalised" not in far
    setting = Setting(CASES["softmax not renormalised"])
    loss = LayerLoss(setting.statistics, setting.weights, setting.shape)
    away = ~(setting.ids == 3).any(1)
    assert loss.errors({3})[0][away].max() > 1e-4  # deletion inflates everybody's weights


def _local(case: Case) -> bool:
    setting = Setting(case)
    return LayerLoss(setting.statistics, setting.weights, setting.shape).local


@pytest.mark.parametrize("name", ["softmax renormalised", "softmax not renormalised", "softmax with bias (ERNIE)"])
def test_naee_finds_the_best_subset(name: str) -> None:
    setting = Setting(CASES[name])
    found = SEARCHES.get("naee")(setting.statistics, 5, weights=setting.weights, shape=setting.shape)
    whole = setting.output()
    losses = {keep: np.linalg.norm(whole - setting.output(list(keep))) for keep in combinations(range(8), 5)}
    assert found.keep == min(losses, key=losses.__getitem__)
    assert found.loss == pytest.approx(min(losses.values()), rel=1e-4)
    assert sorted(found.order[:5]) == list(found.keep)
    assert sorted(found.order) == list(range(8))


def test_naee_adds_the_norms_of_batches() -> None:
    setting = Setting(CASES["softmax renormalised"])
    found = SEARCHES.get("naee")(setting.statistics, 4, weights=setting.weights, shape=setting.shape, batch=15)
    change = setting.output() - setting.output(list(found.keep))
    parts = [np.linalg.norm(change[start : start + 15]) for start in (0, 15, 30)]
    assert found.loss == pytest.approx(sum(parts), rel=1e-4)


def test_protected_experts_and_groups_narrow_the_subsets() -> None:
    setting = Setting(CASES["softmax renormalised"])
    free = SEARCHES.get("naee")(setting.statistics, 3, weights=setting.weights, shape=setting.shape)
    lost = next(expert for expert in range(8) if expert not in free.keep)
    bound = SEARCHES.get("naee")(setting.statistics, 3, weights=setting.weights, shape=setting.shape, protected={lost})
    assert lost in bound.keep
    grouped = Setting(CASES["sigmoid with bias, groups, scale"])
    for method in ("naee", "naee_greedy"):
        kept = SEARCHES.get(method)(grouped.statistics, 6, weights=grouped.weights, shape=grouped.shape).keep
        assert sum(expert < 4 for expert in kept) == 3
    with pytest.raises(BadData, match="2 groups"):
        SEARCHES.get("naee")(grouped.statistics, 5, weights=grouped.weights, shape=grouped.shape)
    with pytest.raises(BadData, match="70 subsets"):
        SEARCHES.get("naee")(setting.statistics, 4, weights=setting.weights, shape=setting.shape, limit=69)


@pytest.mark.parametrize("name", ["softmax renormalised", "softmax not renormalised"])
def test_greedy_removes_the_cheapest_each_time(name: str) -> None:
    setting = Setting(CASES[name])
    found = SEARCHES.get("naee_greedy")(setting.statistics, 5, weights=setting.weights, shape=setting.shape)
    gone: list[int] = []
    whole = setting.output()
    for _ in range(6):  # to top-k
        gone.append(min(without(*gone), key=lambda e: float(np.linalg.norm(whole - setting.output(without(*gone, e))))))
    assert list(found.order[2:]) == gone[::-1]
    assert found.keep == tuple(without(*gone[:3]))
    assert found.loss == pytest.approx(np.linalg.norm(whole - setting.output(without(*gone[:3]))), rel=1e-4)


def test_a_wide_beam_is_enumeration() -> None:
    for seed in range(6):  # a seed where greedy and the best differ must be among these
        setting = Setting(CASES["softmax renormalised"], seed)
        call = {"weights": setting.weights, "shape": setting.shape}
        best = SEARCHES.get("naee")(setting.statistics, 4, **call)
        wide = SEARCHES.get("naee_greedy")(setting.statistics, 4, beam=100, **call)
        greedy = SEARCHES.get("naee_greedy")(setting.statistics, 4, **call)
        assert wide.keep == best.keep
        assert greedy.loss >= best.loss - 1e-9
        if greedy.keep != best.keep:
            return
    raise AssertionError("greedy was optimal everywhere; the test tells nothing")


def test_remove_independently_by_hand() -> None:
    setting = Setting(CASES["softmax not renormalised"])
    score = EDIT_SCORES.get("remove_independently")
    call = {"layers": [setting.weights], "shapes": [setting.shape]}
    whole = setting.output()
    changed = [setting.output(without(expert)) for expert in range(8)]
    mse = [((whole - other) ** 2).mean() for other in changed]
    np.testing.assert_allclose(score([setting.statistics], **call)[0], mse, rtol=1e-4, atol=1e-6)
    cosine = [
        1 - ((whole * other).sum(1) / np.linalg.norm(whole, axis=1) / np.linalg.norm(other, axis=1)).mean()
        for other in changed
    ]
    np.testing.assert_allclose(score([setting.statistics], **call, measure="cosine")[0], cosine, rtol=1e-4, atol=1e-6)


def test_ranked_choice_by_hand() -> None:
    # k = 1, four experts. Rankings: A 0>1>2>3 (×3), B 1>0>…, C 2>1>… (×2), D 3>2>…
    # votes 3,1,2,1 → 3 goes (equal votes: the larger number), D votes 2 → 3,1,3 → 1 goes (B → 0) → 4,3 → 2 goes
    logits = np.array(
        [[4, 3, 2, 1]] * 3 + [[3, 4, 2, 1]] + [[1, 3, 4, 2]] * 2 + [[1, 2, 3, 4]],
        np.float32,
    )
    ids = logits.argmax(1)[:, None]
    rows = LayerRows(np.zeros((7, 2), np.float32), ids, np.ones((7, 1), np.float32), logits)
    statistics = layer_of(count=[3, 1, 2, 1], load_rows=lambda: rows)
    case = Case(Setting(CASES["identity"]).case.contract.__class__(experts=4, top_k=1, renormalise=True))
    shape = LayerShape(layer=0, experts=4, top_k=1, contract=case.contract)
    layer = LayerWeights(layer=0, up=torch.zeros(4, 1, 2), down=torch.zeros(4, 2, 1), router=torch.zeros(4, 2))
    vote = SEARCHES.get("ranked_choice")
    found = vote(statistics, 2, weights=layer, shape=shape)
    assert found.keep == (0, 2)
    assert found.order == (0, 2, 1, 3)
    assert vote(statistics, 2, weights=layer, shape=shape, protected={1, 3}).keep == (1, 3)


def test_what_cannot_be_made_again_is_refused() -> None:
    setting = Setting(CASES["softmax renormalised"])
    other = Setting(CASES["softmax renormalised"], seed=5)
    mixed = layer_of(count=np.ones(8), load_rows=lambda: setting.rows()._replace(logits=other.logits))
    with pytest.raises(BadData, match="decided otherwise"):
        LayerLoss(mixed, setting.weights, setting.shape)
    with pytest.raises(BadData, match="--rows"):
        LayerLoss(layer_of(count=np.ones(8)), setting.weights, setting.shape)
    with pytest.raises(Unsupported, match="rule is not known"):
        LayerLoss(setting.statistics, setting.weights, setting.shape.model_copy(update={"contract": None}))
    beyond = layer_of(count=np.ones(8), load_rows=lambda: setting.rows()._replace(ids=setting.ids + 7))
    with pytest.raises(Unsupported, match="no expert that has weights"):
        LayerLoss(beyond, setting.weights, setting.shape)
