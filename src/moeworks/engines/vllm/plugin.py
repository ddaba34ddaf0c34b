"""vLLM's entry point: `register` runs in every process of vLLM and says where our code comes in."""

from __future__ import annotations

import logging
from typing import Any

from moeworks import __version__
from moeworks.engines.vllm.imports import when_imported
from moeworks.engines.vllm.info import make_folder
from moeworks.engines.vllm.spec import FIELD
from moeworks.engines.vllm.versions import installed, wrong_version

__all__ = ["register"]

_DONE: list[str] = []
_LOG = logging.getLogger("moeworks.vllm")


def register() -> None:
    """Hook moeworks into this process of vLLM; a second call does nothing.

    With a version of vLLM outside of the supported range nothing is hooked but the door, where requests with a
    `moeworks` field are refused with that reason.
    """
    if _DONE:
        return
    _DONE.append(__version__)
    wrong = wrong_version(installed())
    if wrong:
        _LOG.warning("%s", wrong)
        when_imported("vllm.v1.engine.input_processor", lambda module: _close_door(module, wrong))
        return
    make_folder()
    when_imported("vllm.config.vllm", _salt_compile_cache)
    when_imported("vllm.triton_utils.dispatcher", _pass_over_llvmlite)
    when_imported("vllm.v1.worker.worker_base", _hook_workers)
    when_imported("vllm.v1.engine.input_processor", _guard_door)


def _hook_workers(module: Any) -> None:
    """After a worker has loaded its model, before anything is profiled, compiled or captured, look for its routers."""
    wrapper = module.WorkerWrapperBase

    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        from moeworks.engines.vllm.worker import attach

        result = self.worker.load_model(*args, **kwargs)
        self.moeworks = attach(self.worker)
        return result

    def moeworks_take(self: Any, keys: list[str]) -> list[Any]:
        return [self.moeworks.recorder.take(key) for key in keys]

    def moeworks_meter(self: Any) -> Any:
        meter = self.moeworks.meter
        return None if meter is None else meter.sums()

    def moeworks_state(self: Any) -> dict[str, int]:
        return self.moeworks.state()  # type: ignore[no-any-return]

    wrapper.load_model = load_model
    wrapper.moeworks_take = moeworks_take
    wrapper.moeworks_meter = moeworks_meter
    wrapper.moeworks_state = moeworks_state


def _guard_door(module: Any) -> None:
    from moeworks.engines.vllm.admission import guarded

    processor = module.InputProcessor
    processor.process_inputs = guarded(processor.process_inputs)


def _close_door(module: Any, reason: str) -> None:
    """Refuse every request that carries our field."""
    from functools import wraps

    process = module.InputProcessor.process_inputs

    @wraps(process)
    def refusing(self: Any, request_id: Any, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        if FIELD in (getattr(params, "extra_args", None) or {}):
            raise ValueError(reason)
        return process(self, request_id, prompt, params, *args, **kwargs)

    module.InputProcessor.process_inputs = refusing


def _pass_over_llvmlite(module: Any) -> None:
    """Keep vLLM's search of all modules for its kernels out of llvmlite, on whose objects it fails.

    Without this no worker starts in a process where numba has compiled something, ours or not.
    """
    import sys
    from functools import wraps
    from types import SimpleNamespace

    own = getattr(module, "_rebind_kernels", None)
    if own is None or getattr(module, "sys", None) is not sys:
        return

    @wraps(own)
    def rebind(*args: Any, **kwargs: Any) -> Any:
        others = {name: found for name, found in sys.modules.items() if name.partition(".")[0] != "llvmlite"}
        module.sys = SimpleNamespace(modules=others)
        try:
            return own(*args, **kwargs)
        finally:
            module.sys = sys

    module._rebind_kernels = rebind


def _salt_compile_cache(module: Any) -> None:
    """Keep graphs that were compiled with our operator inside apart from those without it."""
    import hashlib

    config = module.VllmConfig
    own = config.compute_hash

    def compute_hash(self: Any, *args: Any, **kwargs: Any) -> str:
        text = f"{own(self, *args, **kwargs)} moeworks {__version__}"
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    config.compute_hash = compute_hash
