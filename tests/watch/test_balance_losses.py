"""Balance losses by hand and against transformers' own function; padding never counts."""

import pytest
import torch
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from moeworks.errors import BadData
from moeworks.watch import balance_loss, bias_step, z_loss


def test_both_forms_by_hand():
    """E = 4, k = 2, two tokens choosing {0, 1} and {0, 2}; P = (.4, .3, .2, .1).

    Choices: f = (2, 1, 1, 0) / 4 → 4 (.2 + .075 + .05) = 1.3; tokens: f doubles, and so does the loss.
    """
    p = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.3, 0.3, 0.3, 0.1]])
    ids = torch.tensor([[0, 1], [0, 2]])
    assert balance_loss([p], [ids]).item() == pytest.approx(1.3)
    assert balance_loss([p], [ids], form="transformers").item() == pytest.approx(2.6)


def test_perfect_balance_gives_one_or_k():
    p, ids = torch.full((4, 4), 0.25), torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]])
    assert balance_loss([p], [ids]).item() == pytest.approx(1)
    assert balance_loss([p], [ids], form="transformers").item() == pytest.approx(2)


def test_concatenated_layers_hide_what_single_layers_show():
    """Layer one uses expert 0 alone, layer two expert 1: together even (1), each as uneven as can be (2)."""
    p = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    ids = [torch.tensor([[0]]), torch.tensor([[1]])]
    assert balance_loss(p, ids).item() == pytest.approx(2)
    assert balance_loss(p, ids, over="concatenated").item() == pytest.approx(1)


def test_it_is_transformers_own_loss():
    """Two layers, one text with padding: their function is the outside truth."""
    torch.manual_seed(0)
    logits = [torch.randn(12, 8) for _ in range(2)]
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    theirs = load_balancing_loss_func(tuple(logits), 8, 2, mask)
    p = [one.softmax(-1) for one in logits]
    ids = [one.topk(2).indices for one in p]
    ours = balance_loss(p, ids, mask=mask, form="transformers", over="concatenated")
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert balance_loss(p, ids, form="transformers", over="concatenated").item() != pytest.approx(
        theirs.item(), rel=1e-5
    )


def test_padding_has_no_gradient():
    p = torch.full((3, 4), 0.25, requires_grad=True)
    balance_loss([p], [torch.tensor([[0, 1], [0, 2], [3, 1]])], mask=torch.tensor([1, 1, 0])).backward()
    assert p.grad[2].abs().sum() == 0
    assert p.grad[0].tolist() == pytest.approx([4 * 2 / 4 / 2, 4 / 4 / 2, 4 / 4 / 2, 0])


def test_z_loss_by_hand():
    """logsumexp of two zeros is ln 2, of (ln 3, 0) ln 4; padding is left out."""
    logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]]).log1p().mul(0)  # zeros of the right shape
    logits[1, 0] = torch.log(torch.tensor(3.0))
    ln2, ln4 = torch.log(torch.tensor(2.0)), torch.log(torch.tensor(4.0))
    assert z_loss([logits]).item() == pytest.approx(((ln2**2 + ln4**2) / 2).item())
    assert z_loss([logits], mask=torch.tensor([0, 1])).item() == pytest.approx((ln4**2).item())


def test_bias_step_by_hand():
    """Loads (3, 1, 0, 0), mean 1: the first goes down, the second stays, the others go up."""
    bias = torch.zeros(4)
    load = bias_step(bias, torch.tensor([[0], [0], [0], [1], [2]]), rate=0.5, mask=torch.tensor([1, 1, 1, 1, 0]))
    assert load.tolist() == [3, 1, 0, 0]
    assert bias.tolist() == [-0.5, 0, 0.5, 0.5]


def test_what_is_no_distribution_is_refused():
    ids = torch.tensor([[0, 1]])
    with pytest.raises(BadData, match="do not sum to 1"):
        balance_loss([torch.tensor([[2.0, -1.0]])], [ids])
    with pytest.raises(BadData, match="the mask has 3 tokens"):
        balance_loss([torch.tensor([[0.5, 0.5]])], [ids], mask=torch.ones(3))
    with pytest.raises(BadData, match="1 layers of probabilities and 0 of ids"):
        balance_loss([torch.tensor([[0.5, 0.5]])], [])
