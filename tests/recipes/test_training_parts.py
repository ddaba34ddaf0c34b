"""The parts of the lab model's training compute what plain autograd, torch's own Muon and stock routers compute."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from recipes.lab.model import LanguageModel, ModelSettings  # noqa: E402  after the check that torch is there
from recipes.lab.optimiser import Optimiser, orthogonal  # noqa: E402
from recipes.lab.products import ROUND, chunked_cross_entropy, routed_experts  # noqa: E402
from recipes.lab.router import Router, RouterSettings, balance_loss, z_loss  # noqa: E402
from recipes.lab.train import MODELS, RunSettings, checkpoint_steps  # noqa: E402

TOKENS, K, EXPERTS, HIDDEN, WIDTH = 150, 3, 8, 16, 10


def test_routed_experts_equal_a_dense_einsum_with_its_gradients() -> None:
    """Expected: every expert computes every token, weights outside the choice are 0; gradients by autograd."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, HIDDEN, generator=generator, requires_grad=True)
    ids = torch.randn(TOKENS, EXPERTS - 1, generator=generator).topk(K).indices  # the last expert gets no token
    weights = torch.rand(TOKENS, K, generator=generator).requires_grad_()
    gate_up = torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=generator, requires_grad=True)
    down = torch.randn(EXPERTS, HIDDEN, WIDTH, generator=generator, requires_grad=True)
    towards = torch.randn(TOKENS, HIDDEN, generator=generator)
    assert TOKENS * K / EXPERTS % ROUND  # otherwise nothing would be filled up

    mixed = routed_experts(x, weights, ids, gate_up, down)
    gate, up = torch.einsum("eoh,nh->neo", gate_up, x).chunk(2, -1)
    outputs = torch.einsum("ehw,new->neh", down, torch.nn.functional.silu(gate) * up)
    expected = (outputs * torch.zeros(TOKENS, EXPERTS).scatter(1, ids, weights).unsqueeze(-1)).sum(1)

    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)
    inputs = (x, weights, gate_up, down)
    for own, plain in zip(
        torch.autograd.grad((mixed * towards).sum(), inputs),
        torch.autograd.grad((expected * towards).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-3)


def test_chunked_cross_entropy_equals_torchs() -> None:
    """700 tokens: two whole chunks and a part of one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(700, HIDDEN, generator=generator, requires_grad=True)
    weight = torch.randn(50, HIDDEN, generator=generator, requires_grad=True)
    targets = torch.randint(0, 50, (700,), generator=generator)
    own = chunked_cross_entropy(x, weight, targets)
    plain = torch.nn.functional.cross_entropy(x @ weight.t(), targets)
    torch.testing.assert_close(own, plain)
    for one, other in zip(
        torch.autograd.grad(own * 3, (x, weight)), torch.autograd.grad(plain * 3, (x, weight)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_muon_equals_torchs_own() -> None:
    """Outside implementation: torch.optim.Muon, which takes one matrix after the other; five steps of both."""
    module = torch.nn.Module()
    module.tall, module.wide = (torch.nn.Parameter(torch.randn(shape)) for shape in ((24, 16), (16, 24)))
    module.embedding = torch.nn.Parameter(torch.randn(30, 16))
    other = copy.deepcopy(module)
    own = Optimiser(module, muon_rate=0.02, adam_rate=1e-3, newton_schulz=5)
    theirs = torch.optim.Muon([other.tall, other.wide], lr=0.02, weight_decay=0.05, momentum=0.95, nesterov=True)
    adam = torch.optim.AdamW([other.embedding], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(5):
        for mine, peer in zip(module.parameters(), other.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            peer.grad = mine.grad.clone()
        own.step(1.0)
        theirs.step()
        adam.step()
    torch.testing.assert_close(module.tall, other.tall, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(module.wide, other.wide, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(module.embedding, other.embedding)


def test_four_steps_leave_singular_values_near_one() -> None:
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrices, steps=4, dtype=torch.float32))
    assert 0.6 < values.min() < values.max() < 1.3


@pytest.mark.parametrize("name", ["lab", "lab-sigmoid"])
def test_router_equals_the_stock_one(name: str) -> None:
    """Outside implementation: transformers' routers of Qwen3-MoE and GLM-4-MoE with the same matrix and bias."""
    from transformers import Glm4MoeConfig, Qwen3MoeConfig
    from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeTopkRouter
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

    settings = MODELS[name].router
    generator = torch.Generator().manual_seed(1)
    router = Router(HIDDEN, settings)
    router.load_bias.copy_(torch.randn(settings.experts, generator=generator) * 0.1 * (settings.edit != "none"))
    shared = {"hidden_size": HIDDEN, "num_experts_per_tok": settings.top_k, "norm_topk_prob": True}
    if name == "lab":
        stock = Qwen3MoeTopKRouter(Qwen3MoeConfig(**shared, num_experts=settings.experts))
    else:
        groups = {"n_group": settings.groups, "topk_group": settings.kept_groups}
        config = Glm4MoeConfig(
            **shared, **groups, n_routed_experts=settings.experts, routed_scaling_factor=settings.scale
        )
        stock = Glm4MoeTopkRouter(config)
        stock.e_score_correction_bias.copy_(router.load_bias)
    with torch.no_grad():
        stock.weight.copy_(router.score.weight)
    x = torch.randn(500, HIDDEN, generator=generator)
    decision = router(x)
    _, weights, ids = stock(x)
    order, theirs = decision.ids.argsort(-1), ids.argsort(-1)
    assert torch.equal(decision.ids.gather(1, order), ids.gather(1, theirs))
    torch.testing.assert_close(decision.weights.gather(1, order), weights.gather(1, theirs).float())
    assert decision.counts.sum() == 500 * settings.top_k


def test_load_bias_moves_against_the_load() -> None:
    """Loads 3, 1, 2 have the mean 2: down, up, unmoved; without a load bias nothing moves."""
    router = Router(HIDDEN, RouterSettings(experts=3, top_k=1, transform="sigmoid", edit="load_bias"))
    router.update_load_bias(torch.tensor([3, 1, 2]), 0.5)
    assert router.load_bias.tolist() == [-0.5, 0.5, 0.0]
    plain = Router(HIDDEN, RouterSettings(experts=3, top_k=1))
    plain.update_load_bias(torch.tensor([3, 1, 2]), 0.5)
    assert plain.load_bias.tolist() == [0.0, 0.0, 0.0]


def test_losses_of_a_router_by_hand() -> None:
    """Equal logits: every P is 1/4, so that the balance loss is 1 whatever is chosen; z is (log 4)^2."""
    router = Router(HIDDEN, RouterSettings(experts=4, top_k=2))
    torch.nn.init.zeros_(router.score.weight)
    decision = router(torch.randn(10, HIDDEN))
    assert balance_loss(decision).item() == pytest.approx(1.0)
    assert z_loss(decision).item() == pytest.approx(1.3862944**2)


def test_rate_warms_up_stays_and_falls() -> None:
    settings = RunSettings(tokens=1000 * 32 * 64, warm_up=10, falling=0.25)
    steps = settings.steps(64)
    assert steps == 1000
    rates = [settings.rate(step, steps) for step in (0, 9, 500, 750, 875, 999)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 1.0, 0.51, 0.02 + 0.98 / 250])
    longer = RunSettings(tokens=2000 * 32 * 64, warm_up=10, falling=0.25)
    assert all(longer.rate(step, 2000) == settings.rate(step, steps) for step in range(750))  # a run can be made longer


def test_kept_steps_are_log_spaced() -> None:
    """2^4 … 2^15 in twelve steps are the powers themselves."""
    assert checkpoint_steps(2**15, 12) == [2**i for i in range(4, 16)]
    assert checkpoint_steps(3, 12) == [3]


def test_a_model_says_what_it_was_made_with(tmp_path: Path) -> None:
    from recipes.lab.train import Run, read_model

    run = Run(MODELS["toy-sigmoid"], RunSettings(tokens=1))
    run.save(tmp_path / "checkpoint.safetensors")
    model, step = read_model(tmp_path / "checkpoint.safetensors")
    assert isinstance(model, LanguageModel)
    assert step == 0
    assert model.settings.router == MODELS["toy-sigmoid"].router
    with pytest.raises(SystemExit, match=r"is of another run \(run.seed: 0 there, 1 here\)"):
        Run(MODELS["toy-sigmoid"], RunSettings(tokens=2, seed=1)).load(tmp_path / "checkpoint.safetensors")


def test_the_first_loss_is_that_of_guessing() -> None:
    """The head is the small embedding, so that all tokens are about equally likely: log of the vocabulary."""
    torch.manual_seed(0)
    toy = MODELS["toy"]
    model = LanguageModel(ModelSettings(router=toy.router, vocabulary=1024, hidden=64, layers=2, heads=2, context=64))
    ids = torch.randint(0, 1024, (2, 33))
    loss, decisions = model(ids[:, :-1], ids[:, 1:])
    assert loss.item() == pytest.approx(6.93, abs=0.15)
    assert len(decisions) == 2
