"""Routers of vLLM are taken at their word only where their decisions bear it out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from moeworks.engines.vllm.routers import Found, read_router

NEEDS_VLLM = True


def read(router: Any, dtype: torch.dtype) -> Found:
    return read_router(router, output_scale=1.0, hidden=8, dtype=dtype, device=torch.device("cpu"))


def routers() -> dict[str, Any]:
    from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

    bias = torch.linspace(-0.1, 0.1, 32)
    grouped = {"use_grouped_topk": True, "num_expert_group": 4, "topk_group": 2}
    return {
        "softmax": CPURouter(4, 32),
        "softmax, not renormalised": CPURouter(4, 32, renormalize=False),
        "softmax, groups": CPURouter(4, 32, **grouped),
        "sigmoid, bias, groups": CPURouter(
            4, 32, **grouped, scoring_func="sigmoid", e_score_correction_bias=bias, routed_scaling_factor=2.5
        ),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["softmax", "softmax, not renormalised", "softmax, groups", "sigmoid, bias, groups"])
def test_its_rule_is_found(name: str, dtype: torch.dtype) -> None:
    found = read(routers()[name], dtype)
    assert found.contract is not None, found.opaque
    assert (found.contract.groups > 1) == ("groups" in name)
    assert found.contract.renormalise == ("not" not in name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_router_that_decides_otherwise_is_opaque(dtype: torch.dtype) -> None:
    router = routers()["softmax"]
    own = router._compute_routing
    router._compute_routing = lambda *values, **more: (own(*values, **more)[0] * 1.05, own(*values, **more)[1])
    assert "differ" in read(router, dtype).opaque
    router = routers()["sigmoid, bias, groups"]
    router.topk_group = 3
    shadow = routers()["sigmoid, bias, groups"]
    router._compute_routing = lambda *values, **more: shadow._compute_routing(*values, **more)
    assert "differ" in read(router, dtype).opaque


def test_ids_are_logical_where_experts_have_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """EPLB gives experts physical places after our hook: plans and records speak of experts, not of places."""
    import vllm.model_executor.layers.fused_moe.router.base_router as base_router
    from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

    from moeworks.address import Address
    from moeworks.engines.vllm.bank import Bank, merge
    from moeworks.engines.vllm.layer import Layer, hook_router
    from moeworks.engines.vllm.recorder import LayerSizes, StepBuffers
    from moeworks.engines.vllm.step import Step
    from moeworks.plan.compiled import compile_layer
    from moeworks.plan.schema import Promote

    router, cpu = CPURouter(4, 32 + 8), torch.device("cpu")  # eight copies
    found = read_router(router, output_scale=1.0, hidden=8, dtype=torch.float32, device=cpu, experts=32)
    assert found.experts == 32
    assert found.contract is not None, found.opaque
    step, buffers = Step(8, cpu, host_knows=True), StepBuffers(8, [LayerSizes(5, 4, 32, 1.0)], cpu)
    bank = Bank(2, 32, cpu)
    edit = compile_layer([Promote(experts=(Address(5, 3),))], 5, 32)
    assert edit is not None
    bank.write(1, merge([edit], 32))
    layer = Layer(5, 0, found, bank, buffers, step)
    hook_router(router, layer, compiled=False)
    place = torch.arange(32).flip(0)  # where each expert lies

    def mapped(topk_ids: torch.Tensor, **more: Any) -> torch.Tensor:
        return place.to(topk_ids.dtype)[topk_ids.long()]

    monkeypatch.setattr(base_router, "eplb_map_to_physical_and_record", mapped)
    router.eplb_state = SimpleNamespace(
        expert_load_view=place,
        logical_to_physical_map=place,
        logical_replica_count=place,
        should_record_tensor=place,
        num_unpadded_tokens_tensors=[None],
    )
    logits = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    step.fill(np.array([1, 0] * 4), recorded=True, weights=True)
    _, physical = router.select_experts(torch.zeros(8, 8), logits)
    recorded = buffers.ids[:, 0].long()
    assert torch.equal(place[recorded], physical.long())
    assert (recorded[::2] == 3).any(-1).all()
    assert torch.equal(recorded[1::2].sort(-1).values, logits[1::2].topk(4).indices.sort(-1).values)


def test_functions_of_a_model_are_not_guessed() -> None:
    router = routers()["softmax"]
    router.custom_routing_function = lambda **values: None
    assert "function of its own" in read(router, torch.float32).opaque
