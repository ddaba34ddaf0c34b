"""Ways to make experts of one dense layer, against planted neurons and arrays worked by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from moeworks.edit.dense import (
    UPCYCLINGS,
    Ffn,
    Inputs,
    cmoe,
    copy,
    evened,
    fit_router,
    from_neurons,
    local_labels,
    mean_hidden_rows,
    merge,
    partition,
    read_me,
    unified,
)
from moeworks.edit.dense.cmoe import activation_rates, representative_scores
from moeworks.edit.dense.domains import importance
from moeworks.edit.dense.partition import balanced_assignment, balanced_kmeans
from moeworks.errors import BadData, BadPlan

NEURONS, H = 12, 8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(seed: int = 0) -> Ffn:
    return Ffn(
        random(NEURONS, H, seed=seed), random(NEURONS, H, seed=seed + 1), random(H, NEURONS, seed=seed + 2), silu
    )


def rows(hidden: Tensor, domain: Tensor | None = None, domains: tuple[str, ...] = ("",)) -> Inputs:
    numbers = torch.zeros(len(hidden), dtype=torch.long) if domain is None else domain
    return Inputs(hidden, numbers, domains, torch.ones(len(hidden), dtype=torch.bool))


def planted(count: int = 300) -> tuple[Ffn, Inputs, list[list[int]], list[int]]:
    """A layer of two neurons that every row needs and three groups of three that one kind of row needs each.

    Direction 0 is in every row, directions 1, 2, 3 tell the kinds apart; a neuron's gate and up look one way.
    """
    looks = [0, 1, 2, 3, 1, 2, 3, 0, 1, 2, 3]  # neuron → direction, shuffled on purpose
    gate = torch.zeros(len(looks), H)
    draw = torch.Generator().manual_seed(3)
    for neuron, direction in enumerate(looks):
        gate[neuron, direction] = 1.0
    gate = gate + 0.01 * torch.randn(gate.shape, generator=draw)
    kind = torch.arange(count) % 3
    hidden = 0.01 * torch.randn(count, H, generator=draw)
    hidden[:, 0] += 1.5
    hidden[torch.arange(count), kind + 1] += 2.0
    ffn = Ffn(gate, gate.clone(), torch.randn(H, len(looks), generator=draw), silu)
    groups = [[n for n, d in enumerate(looks) if d == direction] for direction in (1, 2, 3)]
    return ffn, rows(hidden, kind, ("a", "b", "c")), groups, [0, 7]


def test_all_pieces_together_are_the_layer() -> None:
    ffn, hidden = layer(), random(20, H, seed=9)
    for by in ("contiguous", "random", "kmeans"):
        for experts, shared in ((4, 0), (3, 1), (4, 2)):
            split = partition(ffn, experts=experts, shared=shared, by=by, seed=1)  # type: ignore[arg-type]
            assert sorted([n for e in split.neurons or () for n in e] + list(split.shared_neurons)) == list(range(12))
            ids = torch.arange(experts).expand(20, -1)
            torch.testing.assert_close(split.output(hidden, ids, torch.ones(20, experts)), ffn(hidden))
    assert partition(ffn, experts=3, by="random", seed=1).neurons != partition(ffn, experts=3, by="random").neurons


def test_the_layer_itself_by_hand() -> None:
    ffn, x = layer(), random(H, seed=9)
    out = sum(ffn.down[:, j] * silu(ffn.gate[j] @ x) * (ffn.up[j] @ x) for j in range(NEURONS))
    torch.testing.assert_close(ffn(x[None])[0], out)


def test_pieces_that_are_none_are_refused() -> None:
    with pytest.raises(BadPlan, match="12 neurons cannot be shared out evenly to 4 routed and 1 shared"):
        partition(layer(), experts=4, shared=1)
    with pytest.raises(BadPlan, match="contiguous, random or kmeans, not 'size'"):
        partition(layer(), experts=4, by="size")  # type: ignore[arg-type]
    with pytest.raises(BadPlan, match=r"same number.*listed twice.*0 to 11.*count twice"):
        from_neurons(layer(), [[0, 0], [1], [99]], [1])


def test_balanced_assignment_is_the_best_of_all() -> None:
    distances = np.random.default_rng(0).random((6, 2))
    groups = balanced_assignment(distances)
    best = min(
        sum(distances[n, e] for e, half in enumerate((order[:3], order[3:])) for n in half)
        for order in permutations(range(6))
    )
    assert [len(group) for group in groups] == [3, 3]
    assert sum(distances[n, e] for e, group in enumerate(groups) for n in group) == pytest.approx(best)


def test_clusters_are_found_and_equally_large() -> None:
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(3, 5)) * 10
    points = np.concatenate([centres[i] + draw.normal(size=(4, 5)) * 0.1 for i in (0, 1, 2)])
    found = [balanced_kmeans(points, 3, seed=seed, iterations=10) for seed in range(5)]
    assert all(sorted(map(len, groups)) == [4, 4, 4] for groups in found)
    assert any(sorted(groups) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]] for groups in found)


def test_activation_rates_by_hand() -> None:
    ffn = Ffn(
        torch.tensor([[3.0, 0], [0, 2], [1, 1]]), torch.tensor([[1.0, 0], [0, 5], [1, -1]]), torch.eye(2, 3), silu
    )
    hidden = torch.tensor([[2.0, 0], [0, -7], [1, 1]])
    # unit rows: g = (1,0), (0,1), (s,s), u = (1,0), (0,1), (s,-s), s = 1/sqrt 2; x̂ = (1,0), (0,-1), (s,s)
    # row 1: silu(1) 1 = .731, 0, silu(s) s = .335 / row 2: 0, silu(-1)(-1) = .269, silu(-s) s = -.165
    # row 3: silu(s) s = .335, .335, silu(1) 0 = 0
    assert activation_rates(ffn, hidden, active=1)[:2].tolist() == [[1, 0, 0], [0, 1, 0]]
    assert activation_rates(ffn, hidden, active=2).tolist() == [[1, 0, 1], [0, 1, 1], [1, 1, 0]]
    score = representative_scores(ffn, hidden, [1])
    assert score[:, 0].tolist() == pytest.approx(
        [0, abs(-7 * float(silu(torch.tensor(-7.0)))), float(silu(torch.tensor(1.0)))]
    )


def test_cmoe_finds_planted_neurons() -> None:
    """Eleven neurons do not share out, so one that is always off fills up: shared 3, three experts of 3."""
    ffn, inputs, groups, common = planted()
    filled = Ffn(
        torch.cat([ffn.gate, -ffn.gate[:1]]),
        torch.cat([ffn.up, ffn.up[:1] * 0.5]),
        torch.cat([ffn.down, ffn.down[:, :1]], 1),
        silu,
    )
    split = cmoe(filled, inputs, experts=3, top_k=1, shared=1, active=5)
    assert set(common) <= set(split.shared_neurons)
    assert len(split.shared_neurons) == 3
    found = sorted(sorted(neurons) for neurons in split.neurons or ())
    whole = [group for group in sorted(groups) if not set(group) & set(split.shared_neurons)]
    assert [group for group in found if group in whole] == whole
    assert len(whole) >= 2
    assert split.router is not None
    chosen = (inputs.hidden @ split.router.T).argmax(1)
    for kind, group in enumerate(groups):
        if group in whole:
            expert = (split.neurons or ()).index(tuple(group))
            assert (chosen[inputs.domain == kind] == expert).float().mean() > 0.95


def test_cmoe_shares_exactly_the_common_ones_where_they_fit() -> None:
    ffn, inputs, groups, common = planted()
    ffn = ffn.part([*range(11)])
    # three shared ones of width 3 need nine more: drop one of each group, so that 2 + 3 × 2 = 8 = 4 × 2
    kept = sorted(common + [n for group in groups for n in group[:2]])
    split = cmoe(ffn.part(kept), inputs, experts=3, top_k=1, shared=1, active=4)
    assert [kept[n] for n in split.shared_neurons] == common
    assert sorted([kept[n] for n in e] for e in split.neurons or ()) == sorted(group[:2] for group in groups)


def test_a_planted_router_is_recovered() -> None:
    hidden, truth = random(4000, H, seed=1), random(4, H, seed=2)
    labels = (hidden @ truth.T).softmax(1)
    found, fit = fit_router(hidden, labels, top_k=2, decay=0)
    centred = truth - truth.mean(0)  # a common row changes no probability
    torch.testing.assert_close(found - found.mean(0), centred, rtol=1e-2, atol=1e-2)
    assert fit.divergence == pytest.approx(0, abs=1e-4)
    assert fit.agreement > 0.999
    expected = float((torch.tensor(4.0).log() - torch.special.entr(labels).sum(1)).mean())
    assert fit.chance == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("aim", ["share", "whole"])
def test_labels_of_local_reconstruction_by_hand(aim: Any) -> None:
    ffn, hidden = layer(), random(5, H, seed=9)
    split = partition(ffn, experts=3, shared=1)
    found = local_labels(ffn, split, rows(hidden), 2, aim=aim)
    for n in range(5):
        x = hidden[n : n + 1]
        target = (ffn(x) - split.shared(x)) * (2 / 3 if aim == "share" else 1)  # type: ignore[misc]
        scores = np.array([-float((split.expert(e)(x) - target).square().mean()) for e in range(3)])
        best = np.argsort(-scores)[:2]
        expected = np.zeros(3)
        expected[best] = np.exp(scores[best]) / np.exp(scores[best]).sum()
        np.testing.assert_allclose(found[n].numpy(), expected, rtol=1e-4, atol=1e-7)


def test_even_rows_choose_alike_and_weigh_alike() -> None:
    hidden, router = random(50, H, seed=1) * 3, random(6, H, seed=2)
    small = evened(router, hidden)
    before, after = hidden @ router.T, hidden @ small.T
    assert torch.equal(before.topk(2, 1).indices, after.topk(2, 1).indices)
    assert float(after.abs().max()) == pytest.approx(0.01, rel=1e-4)
    chosen = after.softmax(1).topk(2, 1).values
    weights = chosen / chosen.sum(1, keepdim=True)
    assert float((weights - 0.5).abs().max()) < 0.006
    assert torch.equal(evened(torch.zeros(2, H), None), torch.zeros(2, H))


def test_mean_hidden_rows_by_hand() -> None:
    hidden = torch.tensor([[3.0, 0], [1, 0], [0, 2], [9, 9]])
    inputs = Inputs(hidden, torch.tensor([0, 0, 1, 1]), ("a", "b"), torch.tensor([True, True, True, False]))
    assert mean_hidden_rows(inputs, 2).tolist() == [[1, 0], [0, 1]]  # (3 + 1) / 2 and 2, at unit length
    apart = mean_hidden_rows(inputs, 1, against="b")
    assert apart[0].tolist() == pytest.approx([2 / 8**0.5, -2 / 8**0.5])
    with pytest.raises(BadData, match="one domain for each of 3 experts"):
        mean_hidden_rows(inputs, 3)


def test_domains_get_the_neurons_that_they_need() -> None:
    ffn, inputs, groups, common = planted()
    split = read_me(ffn, inputs, experts=3, top_k=1, shared=1, width=2)
    assert list(split.shared_neurons) == common
    for kind, group in enumerate(groups):
        assert set((split.neurons or ())[kind]) <= set(group)
    assert split.router is not None
    assert ((inputs.hidden @ split.router.T).argmax(1) == inputs.domain).float().mean() > 0.98
    with pytest.raises(BadPlan, match="one expert"):
        read_me(ffn, inputs, experts=3, top_k=2)
    by_hand = np.zeros((3, 11))
    for n, x in enumerate(inputs.hidden):
        key = silu(ffn.gate @ x) * (ffn.up @ x)
        by_hand[int(inputs.domain[n])] += key.abs().numpy() * ffn.down.norm(dim=0).numpy() / 100
    np.testing.assert_allclose(importance(ffn, inputs).numpy(), by_hand, rtol=1e-3, atol=1e-6)


def test_unified_puts_specialists_at_both_ends() -> None:
    ffn, inputs, groups, common = planted()
    two = inputs.domain < 2
    inputs = Inputs(inputs.hidden[two], inputs.domain[two], ("generation", "understanding"), inputs.last[two])
    kept = sorted(common + [n for group in groups[:2] for n in group[:2]])  # 2 common, 2 + 2 special
    split = unified(ffn.part(kept), inputs, experts=2, shared=1)
    assert [kept[n] for n in split.shared_neurons] == common
    assert [[kept[n] for n in e] for e in split.neurons or ()] == [groups[0][:2], groups[1][:2]]
    with pytest.raises(BadData, match="two domains apart; the texts have 3"):
        unified(ffn, planted()[1], experts=11)


def test_copies_and_fine_tunes() -> None:
    ffn, other = layer(), layer(5)
    same = copy(ffn, experts=3)
    assert all(torch.equal(same.gate[e], ffn.gate) and torch.equal(same.down[e], ffn.down) for e in range(3))
    noisy = copy(ffn, experts=3, noise=0.1, seed=4)
    assert float((noisy.up - ffn.up).std()) == pytest.approx(0.1 * float(ffn.up.std()), rel=0.2)
    assert not torch.equal(noisy.up[0], noisy.up[1])
    assert torch.equal(copy(ffn, experts=3, noise=0.1, seed=4).up, noisy.up)
    both = merge(ffn, experts=2, others=[ffn, other])
    assert torch.equal(both.down[1], other.down)
    with pytest.raises(BadData, match="3 experts are made of 3 models, not 2"):
        merge(ffn, experts=3, others=[ffn, other])
    with pytest.raises(BadData, match="differ in shape"):
        merge(ffn, experts=1, others=[ffn.part([0, 1])])
    with pytest.raises(BadPlan, match="nothing to share"):
        copy(ffn, experts=3, shared=1)


@pytest.mark.parametrize("name", ["cmoe", "factorllm", "read_me", "unified"])
def test_methods_that_need_text_say_so(name: str) -> None:
    options: dict[str, Any] = {"top_k": 1} if name == "read_me" else {}
    with pytest.raises(BadData, match="looks at rows of text"):
        UPCYCLINGS.get(name)(layer(), None, experts=3, shared=1, **options)


def test_factorllm_router_follows_its_labels() -> None:
    """Each kind of row needs one piece. Compared with the whole, it is the best; with a third, idle pieces are."""
    ffn, inputs, groups, _ = planted()
    order = [n for group in groups for n in group]
    parts = replace(ffn, gate=ffn.gate[order], up=ffn.up[order], down=ffn.down[:, order])
    split = UPCYCLINGS.get("factorllm")(parts, inputs, experts=3, top_k=1, aim="whole")
    assert split.neurons == ((0, 1, 2), (3, 4, 5), (6, 7, 8))
    assert split.router is not None
    assert ((inputs.hidden @ split.router.T).argmax(1) == inputs.domain).float().mean() > 0.98
    published = UPCYCLINGS.get("factorllm")(parts, inputs, experts=3, top_k=1)
    assert published.router is not None
    assert ((inputs.hidden @ published.router.T).argmax(1) == inputs.domain).float().mean() < 0.02
