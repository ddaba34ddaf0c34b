"""Follows the steps of vLLM's model runners, both generations: who comes, which tokens run, who leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moeworks.errors import Unsupported

if TYPE_CHECKING:
    from moeworks.engines.vllm.worker import Attached

__all__ = ["follow"]


def follow(runner: Any, attached: Attached) -> None:
    """Wrap the methods of one runner that announce requests and steps.

    Raises:
        Unsupported: the runner has none of the methods of the generations that are known.
    """
    if hasattr(runner, "prepare_inputs") and hasattr(runner, "add_requests"):
        _follow_second(runner, attached)
    elif hasattr(runner, "_prepare_inputs") and hasattr(runner, "input_batch"):
        _follow_first(runner, attached)
    else:
        raise Unsupported(f"{type(runner).__name__} is a model runner of vLLM that moeworks does not know.")
    _follow_steps(runner, attached)


def _follow_first(runner: Any, attached: Attached) -> None:
    """Model runner V1: `_prepare_inputs` runs right after the batch was brought up to date."""
    prepare = runner._prepare_inputs

    def prepared(scheduler_output: Any, num_scheduled_tokens: Any, *args: Any, **kwargs: Any) -> Any:
        result = prepare(scheduler_output, num_scheduled_tokens, *args, **kwargs)
        batch = runner.input_batch
        names = list(batch.req_ids[: batch.num_reqs])
        for new in scheduler_output.scheduled_new_reqs:
            attached.enter(new.req_id, new.sampling_params, len(new.prompt_token_ids or ()))
        attached.begin(names, num_scheduled_tokens, batch.num_computed_tokens_cpu[: batch.num_reqs])
        return result

    runner._prepare_inputs = prepared


def _follow_second(runner: Any, attached: Attached) -> None:
    """Model runner V2: requests are announced once, and their order in the batch is its own."""
    add, prepare = runner.add_requests, runner.prepare_inputs

    def added(scheduler_output: Any) -> Any:
        for new in scheduler_output.scheduled_new_reqs:
            prompt = getattr(new, "prompt_len", None)
            attached.enter(new.req_id, new.sampling_params, prompt or len(new.prompt_token_ids or ()))
        return add(scheduler_output)

    def prepared(*args: Any, **kwargs: Any) -> Any:
        batch = prepare(*args, **kwargs)
        count = batch.num_reqs
        attached.begin(
            list(batch.req_ids[:count]), batch.num_scheduled_tokens[:count], batch.num_computed_tokens_np[:count]
        )
        return batch

    runner.add_requests, runner.prepare_inputs = added, prepared


def _follow_steps(runner: Any, attached: Attached) -> None:
    execute = runner.execute_model

    def executed(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("dummy_run"):
            return execute(scheduler_output, *args, **kwargs)
        attached.leave(scheduler_output.finished_req_ids)
        try:
            return execute(scheduler_output, *args, **kwargs)
        finally:
            attached.end()

    runner.execute_model = executed
