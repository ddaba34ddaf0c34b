"""Routers of vLLM are taken at their word only where their decisions bear it out."""

from __future__ import annotations

from typing import Any

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


def test_functions_of_a_model_are_not_guessed() -> None:
    router = routers()["softmax"]
    router.custom_routing_function = lambda **values: None
    assert "function of its own" in read(router, torch.float32).opaque
