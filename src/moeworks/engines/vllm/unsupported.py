"""Ways of running vLLM under which rows or experts could be mixed up: refused by name, whatever the plan."""

from __future__ import annotations

from typing import Any

__all__ = ["why_unsupported"]


def why_unsupported(config: Any, runner: Any) -> str:
    """Return why nothing can be steered or recorded in this worker, or an empty text.

    Args:
        config: vLLM's own configuration.
        runner: its model runner, with the model loaded.
    """
    parallel = config.parallel_config
    if config.speculative_config is not None:
        return "speculative decoding runs draft tokens that may be thrown away; start without it"
    if int(parallel.data_parallel_size) > 1:
        return "data-parallel ranks exchange tokens before their experts; run separate servers instead"
    if getattr(parallel, "enable_dbo", False) or int(getattr(parallel, "num_ubatches", 1) or 1) > 1:
        return "dual-batch overlap splits a step's tokens; start without --enable-dbo"
    if int(getattr(parallel, "prefill_context_parallel_size", 1)) > 1:
        return "prefill context parallelism splits a step's tokens; start without it"
    if int(getattr(parallel, "decode_context_parallel_size", 1)) > 1:
        return "decode context parallelism was never tried; start without it"
    return _why_not_this_model(config, runner)


def _why_not_this_model(config: Any, runner: Any) -> str:
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    modules = [module for module in runner.model.modules() if isinstance(module, MoERunner)]
    kinds = {type(module).__name__ for module in modules}
    if "TransformersMoERunner" in kinds:
        return "vLLM runs this model through its Transformers backend, whose experts take finished weights"
    whole = int(config.parallel_config.pipeline_parallel_size) == 1
    if not modules and whole:
        return "vLLM runs this model without the MoE layers that moeworks knows, or it is dense"
    if any(module.is_monolithic for module in modules):
        return (
            "the expert kernel chosen by vLLM routes inside itself (monolithic), where no decision can be seen or "
            "changed; choose another with --moe-backend, such as triton"
        )
    foreign = {type(module.router).__name__ for module in modules if not isinstance(module.router, BaseRouter)}
    if foreign:
        return f"routers of kind {', '.join(sorted(foreign))} are not known"
    if type(modules[0].router).__name__ == "RoutingSimulatorRouter" if modules else False:
        return "routing is simulated (VLLM_MOE_ROUTING_SIMULATION_STRATEGY); unset it"
    return ""
