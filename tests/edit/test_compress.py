"""Compression operators against numpy's own decompositions and arrays worked by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moeworks.edit.compress import (
    COMPRESSIONS,
    base_delta,
    compressed_experts,
    dense,
    measure,
    mobe,
    module_of,
    mole,
    ranks,
    ternary,
)
from moeworks.edit.compress.experts import WholeExperts
from moeworks.edit.compress.factors import check_options
from moeworks.edit.compress.picture import save_ranks_picture
from moeworks.edit.compress.rank_table import effective_rank, energy_curve, rank_for, stable_rank
from moeworks.edit.compress.ternary import pack, unpack
from moeworks.edit.layer import LayerWeights
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerRows, LayerStatistics
from moeworks.edit.transforms import TRANSFORMS
from moeworks.errors import BadData, BadPlan, Unsupported

E, N, H, ROWS = 4, 6, 8, 40  # experts, neurons, width, rows


def silu_gate(gate: Tensor | None, up: Tensor) -> Tensor:
    return torch.nn.functional.silu(up) if gate is None else torch.nn.functional.silu(gate) * up


def layer(seed: int = 0, *, gated: bool = True, biased: bool = False) -> LayerWeights:
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    extra: dict[str, Any] = {}
    if biased:
        extra = {"gate_bias": random(E, N), "up_bias": random(E, N), "down_bias": random(E, H)}
    return LayerWeights(
        layer=3,
        gate=random(E, N, H) if gated else None,
        up=random(E, N, H),
        down=random(E, H, N),
        router=random(E, H),
        activation=silu_gate,
        **extra,
    )


def statistics(seed: int = 1, *, top_k: int = 2) -> LayerStatistics:
    draw = np.random.default_rng(seed)
    # Rows in few directions: activation-aware factors can use that, plain ones cannot.
    hidden = (draw.normal(size=(ROWS, 3)) @ draw.normal(size=(3, H)) + 0.05 * draw.normal(size=(ROWS, H))).astype("f4")
    logits = draw.normal(size=(ROWS, E)).astype("f4")
    ids = np.argsort(-logits, 1)[:, :top_k]
    chosen = np.exp(np.take_along_axis(logits, ids, 1))
    rows = LayerRows(hidden, ids, (chosen / chosen.sum(1, keepdims=True)).astype("f4"), logits)
    count = np.bincount(ids.ravel(), minlength=E)[None]
    return LayerStatistics(3, np.array([ROWS]), ("all",), {"count": count}, load_rows=lambda: rows)


def by_hand(weights: LayerWeights, rows: LayerRows) -> np.ndarray:
    """Return the routed output row by row, slot by slot."""
    total = np.zeros((ROWS, H))
    for n in range(ROWS):
        for e, g in zip(rows.ids[n], rows.weights[n], strict=True):
            x = torch.tensor(rows.hidden[n])
            gate = None if weights.gate is None else weights.gate[e] @ x
            up = weights.up[e] @ x
            if weights.up_bias is not None and weights.gate_bias is not None and gate is not None:
                gate, up = gate + weights.gate_bias[e], up + weights.up_bias[e]
            out = weights.down[e] @ silu_gate(gate, up)
            if weights.down_bias is not None:
                out = out + weights.down_bias[e]
            total[n] += g * out.numpy()
    return total


def test_ranks_of_known_singular_values() -> None:
    values = torch.tensor([[1.0, 1, 1, 1], [2, 0, 0, 0], [3, 1, 0, 0], [0, 0, 0, 0]])
    # p = (3/4, 1/4): exp(H) = exp(-(.75 ln .75 + .25 ln .25)) = 1.7547653...
    assert effective_rank(values).tolist() == pytest.approx([4, 1, 1.7547653, 0], rel=1e-6)
    assert stable_rank(values).tolist() == pytest.approx([4, 1, 10 / 9, 0])
    curve = energy_curve(values)
    assert curve[0].tolist() == pytest.approx([0.25, 0.5, 0.75, 1])
    assert curve[2].tolist() == pytest.approx([0.9, 1, 1, 1])
    assert rank_for(curve, 0.9).tolist() == [4, 1, 1, 1]
    assert rank_for(curve, 0.99).tolist() == [4, 1, 2, 1]


def test_rank_table_tells_single_from_stacked() -> None:
    """Experts that are one matrix times orthogonal ones have full single rank; stacked they share what they share."""
    weights = layer()
    basis = torch.linalg.qr(torch.randn(H, 2, generator=torch.Generator().manual_seed(5))).Q
    low = replace(weights, up=weights.up @ basis @ basis.T)  # all experts read two directions
    table = ranks([weights, replace(low, layer=4)]).to_pylist()
    assert len(table) == 2 * 3 * (E + 1)
    stacked = {(row["layer"], row["projection"]): row for row in table if row["expert"] is None}
    assert stacked[3, "up"]["rank_99"] > 6
    assert stacked[4, "up"]["rank_99"] <= 2
    for projection, stack in (("gate", weights.gate.reshape(-1, H)), ("down", torch.cat(list(weights.down), 1))):
        own = np.linalg.svd(stack.numpy().astype("f8"), compute_uv=False)
        share = own / own.sum()
        row = stacked[3, projection]
        assert row["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
        assert row["stable_rank"] == pytest.approx((own**2).sum() / own[0] ** 2, rel=1e-6)
        assert (row["rows"], row["columns"]) == tuple(stack.shape)
    one = next(row for row in table if row["layer"] == 3 and row["projection"] == "up" and row["expert"] == 2)
    own = np.linalg.svd(weights.up[2].numpy(), compute_uv=False) ** 2
    assert one["energy_50"] == pytest.approx(own[:3].sum() / own.sum(), rel=1e-5)


def test_picture_of_ranks(tmp_path: Any) -> None:
    path = save_ranks_picture([layer(), replace(layer(1), layer=4)], tmp_path / "ranks.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_latent_experts_are_the_joint_optimum(rank: int) -> None:
    """The relative error is that of numpy's truncated SVD of the stacked matrix, group by group."""
    weights = layer()
    rebuilt = dense(mole(weights, rank=rank, groups=[[0, 2], [3, 1]]), weights)
    for group in ([0, 2], [3, 1]):
        for name in ("gate", "up", "down"):
            own, found = (getattr(w, name)[group].numpy().astype("f8") for w in (weights, rebuilt))
            stack, kept = (
                np.concatenate(list(m), 1) if name == "down" else np.concatenate(list(m)) for m in (own, found)
            )
            lost = np.linalg.svd(stack, compute_uv=False)[rank:]
            assert np.square(stack - kept).sum() == pytest.approx(np.square(lost).sum(), rel=1e-4)


def test_activation_aware_latent_experts_are_the_weighted_optimum() -> None:
    """For the way in: the error W C^(1/2) has the size of numpy's truncated SVD of the stacked weighted matrix."""
    weights, seen = layer(), statistics()
    rebuilt = dense(mole(weights, seen, rank=2, activations=True, damping=0.01), weights)
    x = seen.rows().hidden.astype("f8")
    second = x.T @ x / ROWS
    second += 0.01 * np.trace(second) / H * np.eye(H)
    values, vectors = np.linalg.eigh(second)
    root = vectors * np.sqrt(values) @ vectors.T
    stack, kept = (w.up.reshape(-1, H).numpy().astype("f8") @ root for w in (weights, rebuilt))
    lost = np.linalg.svd(stack, compute_uv=False)[2:]
    assert np.square(stack - kept).sum() == pytest.approx(np.square(lost).sum(), rel=1e-3)
    # What each down projection reads, by hand, weighted by squared combine weights.
    rows, moments = seen.rows(), np.zeros((E, N, N))
    for n in range(ROWS):
        for e, g in zip(rows.ids[n], rows.weights[n], strict=True):
            t = torch.tensor(rows.hidden[n])
            key = silu_gate(weights.gate[e] @ t, weights.up[e] @ t).numpy().astype("f8")
            moments[e] += g**2 * np.outer(key, key)
    moments += 0.01 * np.trace(moments, axis1=1, axis2=2).mean() / N * np.eye(N)
    roots = [np.linalg.cholesky(m) for m in moments]
    stack, kept = (
        np.concatenate([w.down[e].numpy().astype("f8") @ roots[e] for e in range(E)], 1) for w in (weights, rebuilt)
    )
    lost = np.linalg.svd(stack, compute_uv=False)[2:]
    assert np.square(stack - kept).sum() == pytest.approx(np.square(lost).sum(), rel=1e-3)


def test_activations_help_where_rows_are_narrow() -> None:
    weights, seen = layer(), statistics()
    plain = measure(weights, mole(weights, seen, rank=4), seen)
    aware = measure(weights, mole(weights, seen, rank=4, activations=True), seen)
    assert aware.output_error is not None
    assert plain.output_error is not None
    assert aware.output_error < 0.7 * plain.output_error
    assert aware.error is not None
    assert aware.error > plain.error  # the plain one is the best of the weights


OPERATORS: list[tuple[str, dict[str, Any]]] = [
    ("mole", {"rank": 3, "groups": 2}),
    ("mole", {"rank": 4, "expert_rank": 2, "activations": True}),
    ("base_delta", {"rank": 2}),
    ("base_delta", {"rank": 3, "base": "count"}),
    ("base_delta", {"rank": 1, "base": 2}),
    ("ternary", {}),
    ("mobe", {"bases": 2, "steps": 20}),
    ("mobe", {"bases": 3, "steps": 5, "rank": 4, "bend": "tanh"}),
    ("ternary", {"group_size": 2, "scale": "least_squares"}),
]


@pytest.mark.parametrize(("gated", "biased"), [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize(("name", "options"), OPERATORS)
def test_module_computes_what_its_weights_multiplied_out_do(
    name: str, options: dict[str, Any], gated: bool, biased: bool
) -> None:
    """The stand-in's shortcuts (shared latents, one base) against the plain loop over rows and slots."""
    weights, seen = layer(gated=gated, biased=biased), statistics()
    factors = COMPRESSIONS.get(name)(weights, seen, **options)
    rows = seen.rows()
    module = module_of(factors, silu_gate)
    found = module(torch.tensor(rows.hidden), torch.tensor(rows.ids), torch.tensor(rows.weights))
    rebuilt = dense(factors, weights)
    np.testing.assert_allclose(found.numpy(), by_hand(rebuilt, rows), rtol=2e-4, atol=2e-4)
    own = by_hand(weights, rows)
    measured = measure(weights, factors, seen)
    assert measured.output_error == pytest.approx(
        np.linalg.norm(own - by_hand(rebuilt, rows)) / np.linalg.norm(own), rel=1e-3
    )
    assert measured.weight_error["up"] == pytest.approx(
        float((weights.up - rebuilt.up).norm() / weights.up.norm()), rel=1e-4
    )
    assert measured.bytes_after == sum(t.numel() * t.element_size() for t in module.state_dict().values())


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("name", "options"), [("mole", {"rank": H}), ("base_delta", {"rank": H})])
def test_full_rank_is_exact(name: str, options: dict[str, Any], gated: bool) -> None:
    weights = layer(gated=gated)
    if name == "base_delta" and not gated:
        options = {"rank": N}
    measured = measure(weights, COMPRESSIONS.get(name)(weights, **options), statistics())
    assert measured.error == pytest.approx(0, abs=1e-6)
    assert measured.output_error == pytest.approx(0, abs=1e-5)
    assert measured.rows == ROWS


def test_base_and_delta_by_hand() -> None:
    """Two experts: base is their mean, differences are plus and minus the same matrix, cut by numpy."""
    weights = layer().select([0, 1])
    rebuilt = dense(base_delta(weights, rank=1), weights)
    both = torch.cat([weights.gate, weights.up], 1).numpy().astype("f8")  # (2, 2 N, H)
    half = (both[0] - both[1]) / 2
    u, s, v = np.linalg.svd(half)
    cut = s[0] * np.outer(u[:, 0], v[0])
    found = torch.cat([rebuilt.gate, rebuilt.up], 1).numpy()
    np.testing.assert_allclose(found[0], both.mean(0) + cut, atol=1e-5)
    np.testing.assert_allclose(found[1], both.mean(0) - cut, atol=1e-5)
    same = dense(base_delta(weights, rank=0, base=1), weights)
    assert torch.equal(same.down[0], weights.down[1])
    counted = dense(base_delta(layer(), statistics(), rank=0, base="count"), layer())
    share = statistics().get("count") / statistics().get("count").sum()
    np.testing.assert_allclose(counted.up[2], np.einsum("e,eih->ih", share, layer().up.numpy()), atol=1e-5)


def test_ternary_by_hand() -> None:
    up = torch.tensor([[[0.9, -0.2, 0.1, -2.0], [0.4, 0.39, 0.0, 0.01]]])  # mean |w| = 4 / 8 = 0.5
    weights = LayerWeights(layer=0, up=up, down=up.transpose(1, 2).contiguous(), router=torch.zeros(1, 4))
    codes = torch.tensor([[[1, 0, 0, -1], [1, 1, 0, 0]]])  # 0.9/0.5 → 1, −0.4 → 0, 0.2 → 0, −4 → −1; 0.8, 0.78 → 1
    rebuilt = dense(ternary(weights), weights)
    assert torch.allclose(rebuilt.up, 0.5 * codes)
    assert torch.allclose(rebuilt.down, 0.5 * codes.transpose(1, 2))
    nearest = dense(ternary(weights, scale="least_squares"), weights)
    assert torch.allclose(nearest.up, (0.9 + 2.0 + 0.4 + 0.39) / 4 * codes)
    # Groups of two inputs: means 0.55, 1.05 / 0.395, 0.005
    grouped = dense(ternary(weights, group_size=2), weights)
    expected = torch.tensor([[[0.55, 0, 0, -1.05], [0.395, 0.395, 0, 0.005]]])
    assert torch.allclose(grouped.up, expected, atol=1e-6)


def test_ternary_takes_two_bits() -> None:
    codes = torch.randint(-1, 2, (3, 5, 11), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    packed = pack(codes)
    assert packed.shape == (3, 5, 3)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, 11), codes)
    assert packed[0, 0, 0] == sum((int(codes[0, 0, i]) + 1) << 2 * i for i in range(4))
    weights = layer()
    assert measure(weights, ternary(weights)).bytes_after == 2 * E * N * 2 + E * H * 2 + 3 * E * 4


def test_bases_find_experts_that_are_made_of_them() -> None:
    """Experts planted as A_i tanh(B): the fit finds one basis that makes them all."""
    draw = torch.Generator().manual_seed(3)
    basis = torch.randn(2, H, generator=draw).tanh()
    up = torch.randn(E, N, 2, generator=draw) @ basis
    weights = replace(layer(), gate=None, up=up)
    found = measure(weights, mobe(weights, bases=1, rank=2, bend="tanh", steps=800))
    started = measure(weights, mobe(weights, bases=1, rank=2, bend="tanh", steps=1))
    assert started.weight_error["up"] > 0.5
    assert found.weight_error["up"] < 0.02
    assert found.weight_error["down"] == 0
    assert torch.equal(mobe(weights, bases=2, steps=3).tensors["up"], mobe(weights, bases=2, steps=3).tensors["up"])
    sums = mobe(weights, bases=2, steps=3).tensors["up_shares"].sum(1)
    assert sums.tolist() == pytest.approx([1] * E)


def test_compressed_experts_by_hand() -> None:
    weights, rows = layer(), statistics(top_k=3).rows()
    module = module_of(compressed_experts(weights, main=1), silu_gate)
    hidden, ids, gates = torch.tensor(rows.hidden), torch.tensor(rows.ids), torch.tensor(rows.weights)
    shuffled = [2, 0, 1]  # the order of slots says nothing: weights do
    untrained = module(hidden, ids[:, shuffled], gates[:, shuffled])
    theta = torch.randn(E, H, generator=torch.Generator().manual_seed(7))
    module.theta.copy_(theta)
    trained = module(hidden, ids[:, shuffled], gates[:, shuffled])
    for n in range(ROWS):
        (main, g), *aside = sorted(zip(ids[n].tolist(), gates[n].tolist(), strict=True), key=lambda pair: -pair[1])
        mixed = sum(share * theta[e] for e, share in aside) / sum(share for _, share in aside)
        for found, x in ((untrained[n], hidden[n]), (trained[n], hidden[n] * mixed)):
            out = g * (weights.down[main] @ silu_gate(weights.gate[main] @ x, weights.up[main] @ x))
            np.testing.assert_allclose(found.numpy(), out.numpy(), rtol=1e-4, atol=1e-4)


def test_compressed_experts_have_no_weights_to_multiply_out() -> None:
    weights, seen = layer(), statistics()
    factors = compressed_experts(weights, main=2)
    measured = measure(weights, factors, seen)
    assert measured.error is None
    assert measured.output_error == 0  # both chosen experts run
    assert measured.bytes_after == measured.bytes_before + E * H * 4
    with pytest.raises(Unsupported, match="multiplied out"):
        dense(factors, weights)
    with pytest.raises(BadPlan, match="3 main experts of 2"):
        measure(weights, compressed_experts(weights, main=3), seen)


def test_whole_experts_are_the_plain_loop() -> None:
    weights, rows = layer(biased=True), statistics().rows()
    found = WholeExperts.of(weights)(*(torch.tensor(a) for a in (rows.hidden, rows.ids, rows.weights)))
    np.testing.assert_allclose(found.numpy(), by_hand(weights, rows), rtol=1e-4, atol=1e-4)


def test_transform_cuts_then_compresses_with_rows_renumbered() -> None:
    weights, seen = layer(), statistics()
    cut = LayerCut(layer=3, experts=E, keep=(1, 3))
    options = {"rank": 3, "activations": True}
    found = TRANSFORMS.get("mole")(weights, cut, seen, **options)
    rows = seen.rows()
    ids = np.where(rows.ids == 1, 0, np.where(rows.ids == 3, 1, 2))
    gates = np.where(ids < 2, rows.weights, 0)
    kept = replace(seen, load_rows=lambda: LayerRows(rows.hidden, ids, gates, rows.logits[:, [1, 3]]))
    expected = dense(mole(weights.select([1, 3]), kept, rank=3, activations=True), weights.select([1, 3]))
    assert torch.equal(found.down, expected.down)
    assert torch.equal(found.router, weights.router[[1, 3]])
    assert not torch.allclose(found.down, weights.down[[1, 3]], atol=1e-2)
    counted = TRANSFORMS.get("base_delta")(weights, cut, seen, rank=0, base="count")
    n = seen.get("count")[[1, 3]]
    np.testing.assert_allclose(counted.up[0], (n[0] * weights.up[1] + n[1] * weights.up[3]) / n.sum(), atol=1e-5)


def test_bad_options_are_one_sentence() -> None:
    weights, cut = layer(), LayerCut(layer=3, experts=E, keep=(0, 1, 2, 3))
    with pytest.raises(BadPlan, match=r"no option 'ranks'.*needs the option 'rank'"):
        check_options(mole, {"ranks": 2})
    with pytest.raises(BadPlan, match="needs the option 'rank'"):
        TRANSFORMS.get("mole")(weights, cut, None)
    with pytest.raises(BadPlan, match="full rank is 8"):
        mole(weights, rank=9)
    with pytest.raises(BadPlan, match="3 groups"):
        mole(weights, rank=2, groups=3)
    with pytest.raises(BadPlan, match="each of the experts 0 to 3"):
        mole(weights, rank=2, groups=[[0, 1], [1, 2, 3]])
    with pytest.raises(BadData, match="kept rows"):
        mole(weights, rank=2, activations=True)
    with pytest.raises(BadData, match="weighted by counts"):
        base_delta(weights, rank=1, base="count")
    with pytest.raises(BadPlan, match="no expert 4"):
        base_delta(weights, rank=1, base=4)
    with pytest.raises(BadPlan, match="group size of 4"):
        ternary(weights, group_size=4)
