"""Merging on the lab model: planted copies leave its logits, every method leaves it finite and says something of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch

from helpers.merging import Routed, statistics_of
from moeworks import engines
from moeworks.edit.layer import LayerWeights
from moeworks.edit.merge import GROUPINGS, as_copies, group_layer
from moeworks.edit.plan import LayerCut
from moeworks.edit.statistics import LayerStatistics
from moeworks.edit.transforms import TRANSFORMS
from moeworks.engines.transformers.experts import open_experts
from moeworks.families.expert_weights import expert_weights

LAYER = 3
TEXTS = [
    "The river runs past the old mill and the children count the boats.",
    "def total(values):\n    return sum(value * 2 for value in values)",
    "Der Bahnhof liegt am Rand der Stadt, und der letzte Zug fährt um elf.",
    "On Monday the temperature fell to 4 degrees; by Friday it was 19 again.",
    "Les enfants jouent dans le jardin pendant que leur grand-mère prépare le repas.",
]
ORDER = list(np.random.default_rng(0).permutation(96))


@cache
def lab():
    engine = engines.load("lab")
    return engine, next(router for router in engine.routers if router.layer == LAYER)


def read() -> LayerWeights:
    _, router = lab()
    weights = expert_weights(router)
    return LayerWeights(
        layer=LAYER,
        gate=weights.gate.clone(),
        up=weights.up.clone(),
        down=weights.down.clone(),
        router=router.module.weight.detach().clone(),
        activation=open_experts(router).rule,
    )


@contextmanager
def written(layer: LayerWeights) -> Iterator[None]:
    """The model with the experts of a layer of equal shape put in, and afterwards as it was."""
    _, router = lab()
    live, before = expert_weights(router), read()
    try:
        for name in ("gate", "up", "down"):
            getattr(live, name).copy_(getattr(layer, name))
        yield
    finally:
        for name in ("gate", "up", "down"):
            getattr(live, name).copy_(getattr(before, name))


@torch.inference_mode()
def logits() -> torch.Tensor:
    engine, _ = lab()
    parts = []
    for text in TEXTS:
        ids = torch.tensor([engine.tokenizer(text)["input_ids"]])
        parts.append(engine.model(ids).logits[0].float())
    return torch.cat(parts)


def seen() -> tuple[np.ndarray, Routed]:
    """The hidden states that the router of the layer reads, and its own decisions."""
    _, router = lab()
    hidden, decided = [], []
    handles = [
        router.module.register_forward_pre_hook(lambda module, args: hidden.append(args[0].detach().float().clone())),
        *router.attach(lambda *decision: decided.append([part.detach().float().clone() for part in decision])),
    ]
    try:
        logits()
    finally:
        for handle in handles:
            handle.remove()
    z, weights, ids = (torch.cat(parts).numpy() for parts in zip(*decided, strict=True))
    return torch.cat([h.reshape(-1, h.shape[-1]) for h in hidden]).numpy(), Routed(z, ids.astype(int), weights)


@cache
def statistics() -> LayerStatistics:
    hidden, routed = seen()
    return statistics_of(read(), hidden, routed)


def copied(layer: LayerWeights, source: int, target: int, order: list[int]) -> None:
    layer.gate[target], layer.up[target] = layer.gate[source][order], layer.up[source][order]
    layer.down[target] = layer.down[source][:, order]


def test_the_statistics_of_this_test_see_what_the_model_does():
    given = statistics()
    assert given.get("count").sum() == 4 * len(given.rows().hidden)
    np.testing.assert_allclose(given.get("gate").sum(), len(given.rows().hidden), rtol=1e-2)  # bfloat16 weights
    wanted = given.rows().hidden @ read().router.float().numpy().T
    np.testing.assert_allclose(given.rows().logits, wanted, atol=0.05)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mean", {}),
        ("sub_moe", {}),
        ("aligned_mean", {}),
        ("mc", {"rows": 1.0}),
        ("fix_dom", {}),
        ("zipit", {}),
        ("ream", {}),
        ("merge_moe", {"around": "mean"}),
    ],
)
def test_merging_planted_copies_leaves_the_logits(name, options):
    """Experts 30 and 31 are made copies of 4 and 9 whose neurons stand in another order where the method aligns."""
    layer = read()
    reordered = name not in ("mean", "sub_moe", "merge_moe")
    copied(layer, 4, 30, ORDER if reordered else list(range(96)))
    copied(layer, 9, 31, ORDER if reordered else list(range(96)))
    groups = {4: ((4, 0.5), (30, 0.5)), 9: ((9, 0.75), (31, 0.25))}
    keep = tuple(range(30))
    plan = LayerCut(layer=LAYER, experts=32, keep=keep, groups=tuple(groups.get(e, ((e, 1.0),)) for e in keep))
    with written(layer):
        before, (hidden, routed) = logits(), seen()
        assert np.isin([4, 9, 30, 31], routed.ids).all()  # they run
        given = statistics_of(layer, hidden, routed)
    merged = TRANSFORMS.get(name)(layer, plan, given, **options)
    assert merged.experts == 30
    with written(as_copies(layer, merged, plan)):
        after = logits()
    assert torch.equal(after, before)  # what is computed in float32 rounds back to the very weights
    # The same plan without the copies planted is no identity.
    plain = read()
    with written(as_copies(plain, TRANSFORMS.get(name)(plain, plan, statistics(), **options), plan)):
        other = logits()
    assert float((other - logits()).abs().max()) > 0.2


@pytest.mark.parametrize("method", GROUPINGS.names())
def test_half_of_the_layer_by_every_method(method):
    layer, given = read(), statistics()
    grouping = group_layer(method, given, 16, weights=layer)
    plan = grouping.cut(LAYER, 32)
    transform = TRANSFORMS.get(GROUPINGS.get(method).transform)
    merged = transform(layer, plan, given)
    assert merged.experts == 16
    assert all(torch.isfinite(tensor).all() for tensor in merged.per_expert().values())
    assert merged.up.dtype == torch.bfloat16
    again = transform(layer, grouping.cut(LAYER, 32), given)
    assert all(torch.equal(merged.per_expert()[name], again.per_expert()[name]) for name in merged.per_expert())
    if method != "dern":  # whose neurons of one expert may go to several
        before = logits()
        with written(as_copies(layer, merged, plan)):
            after = logits()
        assert torch.isfinite(after).all()
        q, p = after.log_softmax(-1), before.log_softmax(-1)
        divergence = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
        assert 0 < float(divergence) < 1
    assert torch.equal(read().up, layer.up)  # the model is as it was
