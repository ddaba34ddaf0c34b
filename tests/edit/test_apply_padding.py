"""Experts that are never chosen. Outside truth: stock code with dropped experts' logits at -inf."""

from __future__ import annotations

import pytest
import torch

from helpers.checkpoints import plan_of, proved, saved, tensors_of
from moeworks.edit.apply import apply, check_apply
from moeworks.edit.checkpoint import open_checkpoint
from moeworks.edit.padding import NEVER, pad
from moeworks.errors import BadPlan
from moeworks.families.edit_checks import TOLERANCE, load, masked_run, run

MANY = (0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14)  # three of each group of four
FEW = (1, 3, 4, 7, 9, 10, 13, 14)  # two of each


def uneven_plan(family, source):
    layers = open_checkpoint(source).layers
    keep = {layer: MANY if i % 2 else FEW for i, layer in enumerate(layers)}
    return keep, plan_of(source, keep, identity=proved(family, source))


@pytest.mark.parametrize("family", ["glm4_moe", "dots1", "minimax_m2", "lfm2_moe", "exaone_moe", "gpt_oss"])
def test_exact_where_there_is_a_bias(family: str, tmp_path) -> None:
    source = saved(family, tmp_path / "m")
    keep, plan = uneven_plan(family, source)
    with pytest.raises(BadPlan, match="--pad"):
        check_apply(source, plan)
    applied = apply(source, plan, tmp_path / "out", pad=True)
    assert set(applied.counts.values()) == {12}
    dropped = {layer: [e for e in range(16) if e not in kept] for layer, kept in keep.items()}
    whole = masked_run(load(family, source), open_checkpoint(source), dropped)
    difference = (run(load(family, tmp_path / "out")) - whole).abs().max() / whole.abs().max().clamp(min=1)
    assert difference <= TOLERANCE


@pytest.mark.parametrize(
    ("family", "reason"),
    [("qwen3_moe", "no bias"), ("mixtral", "no bias"), ("ernie4_5_moe", "softmax runs over all experts")],
)
def test_refused_where_it_would_change_the_model(family: str, reason: str, tmp_path) -> None:
    source = saved(family, tmp_path / "m")
    _, plan = uneven_plan(family, source)
    with pytest.raises(BadPlan, match=reason):
        check_apply(source, plan, pad=True)


def test_refused_without_a_proved_contract(tmp_path) -> None:
    source = saved("glm4_moe", tmp_path / "m")
    layers = open_checkpoint(source).layers
    plan = plan_of(source, {layer: MANY if i % 2 else FEW for i, layer in enumerate(layers)})
    with pytest.raises(BadPlan, match="no proved contract"):
        check_apply(source, plan, pad=True)


def test_what_is_added(tmp_path) -> None:
    weights = open_checkpoint(saved("glm4_moe", tmp_path / "m", experts=8)).read_layer(1)
    padded = pad(weights.select((0, 1, 4, 5)), 6, groups=(0, 0, 1, 1))
    assert padded.experts == 6
    assert padded.selection_bias is not None
    assert weights.selection_bias is not None
    expected = [*weights.selection_bias[[0, 1]], NEVER, *weights.selection_bias[[4, 5]], NEVER]
    assert padded.selection_bias.tolist() == [float(value) for value in expected]
    assert not padded.router[[2, 5]].any()
    assert not padded.down[[2, 5]].any()
    assert torch.equal(padded.up[[0, 1, 3, 4]], weights.up[[0, 1, 4, 5]])


def test_padding_saves_nothing_over_the_largest_layer(tmp_path) -> None:
    source = saved("lfm2_moe", tmp_path / "m")
    _, plan = uneven_plan("lfm2_moe", source)
    apply(source, plan, tmp_path / "out", pad=True)
    rows = {len(t) for name, t in tensors_of(tmp_path / "out").items() if name.endswith("gate.weight")}
    assert rows == {12}
