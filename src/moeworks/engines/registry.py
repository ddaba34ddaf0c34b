"""The engines by name, and the one call that opens a model with one of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

from moeworks.engines.base import Engine
from moeworks.engines.capabilities import why_not
from moeworks.errors import Unsupported
from moeworks.registry import Registry

__all__ = ["ENGINES", "load"]

ENGINES: Registry[Callable[..., Engine]] = Registry("engine", "moeworks.engines")


@ENGINES.register("transformers")
def _transformers(name: str, **options: Any) -> Engine:
    # Threads that spin while they wait slow two runs on the same cores tenfold (measured, see dev/LOG.md) and gain
    # nothing alone. OpenMP reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from moeworks.engines.transformers import TransformersEngine

    return TransformersEngine.load(name, **options)


@ENGINES.register("fake")
def _fake(name: str, **options: Any) -> Engine:
    from moeworks.engines.fake import FakeEngine

    return FakeEngine(name.partition(":")[2] or "single", **options)


@ENGINES.register("vllm")
def _vllm(name: str, **options: Any) -> Engine:
    from moeworks.engines.vllm import VllmEngine

    return VllmEngine.load(name, **options)


@ENGINES.register("ray")
def _ray(name: str, **options: Any) -> Engine:
    from moeworks.engines.ray import RayEngine

    return cast(Engine, RayEngine.load(name, **options))  # all but `record` is refused by name


def load(model: str = "lab", *, engine: str = "", **options: Any) -> Engine:
    """Open a model for recording and steering.

    Args:
        model: `lab` (the embedded model), a local folder, a Hub id; `fake` or `fake:PLANT` for the fake engine.
        engine: `transformers` (the default), `vllm`, `fake`, `ray` (`ray:ENGINE`: what its workers run), or one that an
            installed package offers.
        **options: passed to the engine, such as `dtype="float32"` or `device="cuda"`.
    """
    chosen = engine or ("fake" if model.partition(":")[0] == "fake" else "transformers")
    chosen, colon, inner = chosen.partition(":")
    if reason := why_not(chosen):
        raise Unsupported(f"engine {chosen} cannot run {model}: {reason}.")
    return ENGINES.get(chosen)(model, **({"inner": inner} if colon else {}), **options)
