"""What is trained and what is not: one expert and its router move, all else stays equal to the bit, in every layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.models import lab_tokenizer
from moeworks.engines.transformers import TransformersEngine
from moeworks.engines.transformers.tokens import Prepared
from moeworks.errors import BadData, Unsupported
from moeworks.families.expert_weights import expert_weights
from moeworks.families.tiny import tiny_model
from moeworks.train.loop import Optimisation, fit
from moeworks.train.measure import anchorable, measure
from moeworks.train.objective import Objective, Weights
from moeworks.train.slices import Trained, expert_parts, low_rank_parts, router_parameters, router_parts

# stacked, sigmoid with bias and groups, rows of one matrix, transposed and interleaved with biases, transposed, in the
# holder, without a gate, more classes than experts, a router of many layers, several residual streams
FAMILIES = [
    "qwen3_moe",
    "deepseek_v3",
    "dbrx",
    "gpt_oss",
    "aria",
    "jetmoe",
    "nemotron_h",
    "longcat_flash",
    "zaya",
    "gemma4",
]


def requests(count: int, seed: int) -> list[Prepared]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        length = int(torch.randint(6, 14, (1,), generator=generator))
        tokens = tuple(torch.randint(3, 120, (length,), generator=generator).tolist())
        found.append(Prepared(number, tokens, length, (), {}, str(number), "", 0))
    return found


def opened(family: str, dtype: torch.dtype = torch.float32) -> TransformersEngine:
    torch.set_num_threads(1)
    return TransformersEngine(tiny_model(family, dtype=dtype), lab_tokenizer(), name=family)


def objective(engine: TransformersEngine, layer: int, expert: int, **weights: Any) -> Objective:
    router = anchorable(engine)[layer]
    trained = Trained(engine.model, [*expert_parts(router, expert), *router_parts(router)])
    options = Weights(**{"loss": "gdiff", "retain": 1.0, "batch_size": 3} | weights)
    return Objective(engine, router, expert, trained, requests(6, 0), requests(6, 1), options)


def state(engine: TransformersEngine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_expert_and_its_router_move_and_nothing_else(family: str) -> None:
    engine = opened(family)
    target = measure(engine, requests(6, 0), batch_size=6).affinity.target().address
    task = objective(engine, target.layer, target.expert)
    router = task.router
    before = state(engine)
    flags = [parameter.requires_grad for parameter in engine.model.parameters()]
    views = {
        name: view.clone() for name, view in vars(expert_weights(router)).items() if isinstance(view, torch.Tensor)
    }
    fit(task.trained, task.step, Optimisation(steps=2, learning_rate=1e-2))

    others = [expert for expert in range(len(views["down"])) if expert != target.expert]
    for name, view in views.items():
        now = getattr(expert_weights(router), name)
        assert not torch.equal(now[target.expert], view[target.expert]), name
        assert torch.equal(now[others], view[others]), name
    routed = list(router_parameters(router).values())
    allowed = {id(part.parameter) for part in task.trained.parts}
    for name, parameter in engine.model.named_parameters():
        same = torch.equal(parameter, before[name])
        assert same or id(parameter) in allowed, name
        assert not (same and parameter.ndim == 2 and any(parameter is own for own in routed)), name
    for name, buffer in engine.model.named_buffers():
        assert name not in before or torch.equal(buffer, before[name]), name  # selection biases among them
    assert [parameter.requires_grad for parameter in engine.model.parameters()] == flags
    assert all(parameter.grad is None for parameter in engine.model.parameters())
    task.trained.restore()
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.model.state_dict().items())


@pytest.mark.parametrize("family", ["qwen3_moe", "dbrx", "gpt_oss"])
def test_gradients_are_those_of_the_whole_model(family: str) -> None:
    engine = opened(family)
    layer = engine.routers[1].layer
    task = objective(engine, layer, 2, alpha=0.0)
    with task.trained.unfrozen():
        task.step(0)
    batches = [task._batch(texts, 0) for texts in (task.forget, task.retain)]
    total = torch.zeros(())
    for sign, batch in zip((-1, 1), batches, strict=True):
        losses, count = torch.zeros(()), 0
        for request in batch:  # one text after another, no padding
            tokens = torch.tensor([request.tokens])
            logits = engine.model(input_ids=tokens).logits
            losses = losses + torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:], reduction="sum")
            count += len(request.tokens) - 1
        total = total + sign * losses / count
    total.backward()
    for part in task.trained.parts:
        assert part.parameter.grad is not None
        torch.testing.assert_close(part.leaves[0].grad, part.parameter.grad[part.rows], rtol=2e-3, atol=2e-6)


def test_anchor_is_over_real_tokens_of_both_sets() -> None:
    engine = opened("deepseek_v3")
    task = objective(engine, 2, 1)
    with task.trained.unfrozen():
        found = task.step(0)["anchor"]
    seen: list[torch.Tensor] = []
    handles = task.router.attach(lambda logits, weights, ids: seen.append(logits))
    for texts in (task.forget, task.retain):
        for request in task._batch(texts, 0):
            with torch.no_grad():
                engine.model(input_ids=torch.tensor([request.tokens]))
    for handle in handles:
        handle.remove()
    scores = torch.cat(seen).sigmoid().double().numpy()
    shares = scores / scores.sum(-1, keepdims=True)
    shares[:, 1] -= 1
    assert found == pytest.approx((shares**2).sum(-1).mean(), rel=1e-4)


def test_padding_is_not_measured() -> None:
    engine, texts = opened("deepseek_v3"), requests(6, 0)
    together, alone = (measure(engine, texts, batch_size=size) for size in (6, 1))
    for layer, ids in together.ids.items():
        assert len(ids) == sum(len(request.tokens) for request in texts)
        assert (ids == alone.ids[layer]).mean() > 0.99  # near-ties may fall the other way
    assert together.quality.tokens == alone.quality.tokens == sum(len(request.tokens) - 1 for request in texts)
    assert together.quality.loss == pytest.approx(alone.quality.loss, rel=1e-5)
    assert together.affinity.mean.ravel().tolist() == pytest.approx(alone.affinity.mean.ravel().tolist(), rel=1e-4)


def test_retain_texts_are_not_anchored_unless_asked() -> None:
    engine = opened("qwen3_moe")
    one, other = (objective(engine, 1, 1, retain=0.0, anchor_tokens=tokens) for tokens in ("all", "forget"))
    values = []
    for task in (one, other):
        with task.trained.unfrozen():
            values.append(task.step(0))
    assert values[0]["forget"] == pytest.approx(values[1]["forget"])
    assert values[0]["anchor"] != pytest.approx(values[1]["anchor"])


def test_half_precision_moves_by_float32_steps() -> None:
    """A step below the resolution of bfloat16 is not lost: it adds up in the float32 copy."""
    engine = opened("qwen3_moe", torch.bfloat16)
    task = objective(engine, 1, 1)
    before = task.trained.leaves[0].detach().clone()
    fit(task.trained, task.step, Optimisation(steps=2, learning_rate=1e-6))
    assert task.trained.leaves[0].dtype == torch.float32
    assert not torch.equal(task.trained.leaves[0], before)
    task.trained.restore()
    assert all(torch.equal(part.parameter[part.rows], part.original) for part in task.trained.parts)


def test_undone_shows_the_model_before_training() -> None:
    engine = opened("qwen3_moe")
    task = objective(engine, 1, 1)
    before = state(engine)
    fit(task.trained, task.step, Optimisation(steps=1, learning_rate=1e-2))
    after = state(engine)
    with task.trained.undone():
        assert all(torch.equal(tensor, before[name]) for name, tensor in engine.model.state_dict().items())
    assert all(torch.equal(tensor, after[name]) for name, tensor in engine.model.state_dict().items())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_low_rank_update_is_what_it_says() -> None:
    engine = opened("qwen3_moe")
    router = engine.routers[0]
    (part,) = low_rank_parts(router, rank=3, alpha=6.0, generator=torch.Generator().manual_seed(0))
    down, up = part.leaves
    assert down.shape == (3, 32)
    assert up.shape == (8, 3)
    assert torch.equal(part.value(), part.original)  # B is 0
    trained = Trained(engine.model, [part])
    goal = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        up.copy_(torch.randn(8, 3, generator=torch.Generator().manual_seed(2)))
    with trained.unfrozen():
        free = [parameter for parameter in engine.model.parameters() if parameter.requires_grad]
        assert len(free) == 1
        assert free[0] is router.module.weight
        trained.write()
        torch.testing.assert_close(router.module.weight.detach(), part.original + 2.0 * up @ down)
        trained.accumulate((router.module.weight * goal).sum())
    torch.testing.assert_close(up.grad, 2.0 * goal @ down.detach().T)  # the chain rule, by hand
    torch.testing.assert_close(down.grad, 2.0 * up.detach().T @ goal)
    trained.restore()
    assert torch.equal(router.module.weight, part.original)


def test_what_cannot_be_trained_says_why() -> None:
    engine = opened("qwen3_moe")
    with pytest.raises(BadData, match="there is no expert 8"):
        expert_parts(engine.routers[0], 8)
    doge = opened("doge")
    with pytest.raises(Unsupported, match="product keys"):
        anchorable(doge)
    with pytest.raises(Unsupported, match="no stacked tensors"):
        expert_parts(doge.routers[0], 0)


def test_layers_that_route_by_token_id_are_no_target() -> None:
    engine = opened("deepseek_v4")
    hashed = [router.layer for router in engine.routers if router.contract is not None and router.contract.hashed]
    assert hashed
    assert not set(hashed) & set(anchorable(engine))
    assert measure(engine, requests(3, 0), batch_size=3).affinity.target().address.layer not in hashed


def test_experts_without_weights_are_no_target() -> None:
    engine = opened("longcat_flash")  # two of ten classes are the identity
    affinity = measure(engine, requests(6, 0), batch_size=6).affinity
    assert affinity.documents.shape[2] == 10
    assert affinity.target().address.expert < 8
    assert not torch.from_numpy(affinity.mean[:, :8]).isnan().any()
