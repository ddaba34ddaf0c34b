"""The engine `ray`: records shards of a corpus on several workers, each with an engine of its own, into one trace."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from moeworks.engines.base import Engine
from moeworks.engines.capabilities import why_not
from moeworks.engines.progress import Progress
from moeworks.errors import BadData, BadTrace, Unsupported, need
from moeworks.examples import Example
from moeworks.plan import Plan
from moeworks.plan.files import plan_hash
from moeworks.trace import Trace, concat

__all__ = ["RayEngine"]

WORKERS = 2
WINDOWS = 32  # batches of a shard: the transformers engine sorts so many together, so that its batches stay the same


class RayEngine:
    """Records, and nothing else; everything else of an engine is refused by name.

    Args:
        model: as `moeworks.load` takes it.
        inner: the engine in each worker, such as `transformers` or `vllm`.
        workers: how many.
        shard: texts of a shard; 0 for 32 batches, with which every batch is that of a recording in one piece.
        options: of loading the engine inside.
    """

    def __init__(self, model: str, *, inner: str, workers: int, shard: int, options: dict[str, Any]) -> None:
        self.model, self.inner, self.workers, self.shard, self.options = model, inner, workers, shard, options

    @classmethod
    def load(cls, model: str, *, inner: str = "", workers: int = 0, shard: int = 0, **options: Any) -> Self:
        """Check what can be checked without a model; workers load it.

        Raises:
            MissingExtra: Ray is not installed.
            Unsupported: the engine inside cannot run here, or is this one again.
            BadData: no workers, or shards without texts.
        """
        inner = inner or ("fake" if model.partition(":")[0] == "fake" else "transformers")
        if inner.partition(":")[0] == "ray":
            raise Unsupported("workers of Ray run transformers or vllm, not ray again.")
        from moeworks.engines.registry import ENGINES  # which imports this module when it is asked for it

        ENGINES.get(inner)  # an unknown name is known before workers start
        if reason := why_not(inner):
            raise Unsupported(f"engine {inner}, in workers of Ray, cannot run {model}: {reason}.")
        if not all(importlib.util.find_spec(name) for name in ("ray", "pandas")):
            raise need("ray", "ray", "recording on several workers")
        if workers < 0 or shard < 0:
            raise BadData("workers and texts of a shard are counts; give 1 or more, or leave them out.")
        return cls(model, inner=inner, workers=workers or WORKERS, shard=shard, options=options)

    def __getattr__(self, name: str) -> Any:
        """Refuse what else an engine has."""
        if name in dir(Engine) or name in Engine.__annotations__:
            raise Unsupported(
                f"engine ray records a corpus on many workers and does nothing else ({name}); use {self.inner} itself."
            )
        raise AttributeError(name)

    def record(
        self,
        examples: Iterable[Example],
        path: str | Path,
        *,
        plan: Plan | None = None,
        logits: bool = False,
        generate: int = 0,
        batch_size: int = 8,
        long: Literal["truncate", "split", "error"] = "truncate",
        sample: float | None = None,
        seed: int = 0,
        resume: bool = False,
        overwrite: bool = False,
        keep_text: bool = False,
        progress: bool = False,
        total: int | None = None,
        command: str = "",
        **generation: Any,
    ) -> Trace:
        """Record the examples and write one trace to the folder `path`; see `TransformersEngine.record`.

        The texts go to shards in a folder beside, `path` with `.shards` at its end, where each worker writes the trace
        of the shard it has. A worker that dies is started again with its shard. Shards that are whole survive this
        process too: the same call with `resume` goes on. The folder is removed once the trace is whole.

        Raises:
            BadTrace: a trace is there already, or an unfinished recording that is not to be resumed or was another.
            Unsupported: `sample`, or sampled generation: both draw by number of the request, which shards begin anew.
            RunFailed: workers died again and again.
        """
        from moeworks.engines.ray.cluster import mapped
        from moeworks.engines.ray.shards import Shards

        target = Path(path)
        if sample is not None or generation.get("do_sample"):
            what = "sample" if sample is not None else "do_sample"
            raise Unsupported(f"{what}: draws go by the number of a text, which shards begin anew; leave it out.")
        _check_target(target, overwrite)
        options: dict[str, Any] = {
            "plan": None if plan is None else plan.model_dump_json(exclude_none=True),
            "logits": logits,
            "generate": generate,
            "batch_size": batch_size,
            "long": long,
            "seed": seed,
            "keep_text": keep_text,
            "command": command,
            **generation,
        }
        size = self.shard or WINDOWS * batch_size
        settings = {
            "model": self.model,
            "engine": self.inner,
            **{name: str(value) for name, value in self.options.items()},
            **options,
            "plan": None if plan is None else plan_hash(plan),
            "shard": size,
        }
        del settings["command"]  # says --resume when it is resumed
        shards = Shards.open(target.with_name(f"{target.name}.shards"), settings, resume=resume, overwrite=overwrite)
        texts = 0

        def counted() -> Iterable[Example]:
            nonlocal texts
            for example in examples:
                texts += 1
                yield example

        count = shards.cut(counted(), size)
        todo = [number for number in range(count) if not shards.done(number)]
        with Progress("recording", "texts", total=texts, rated="tokens", show=progress) as bar:
            bar.advance(texts - sum(_texts(number, size, texts) for number in todo), rated=0)
            running = mapped(
                todo,
                workers=min(self.workers, len(todo)),
                gpu=_wants_gpu(self.inner, str(self.options.get("device", ""))),
                model=self.model,
                engine=self.inner,
                load=self.options,
                record=options,
                folder=str(shards.folder.absolute()),
                threads=_threads(self.workers),
            )
            for number, tokens in running if todo else ():
                bar.advance(_texts(number, size, texts), rated=tokens)
        if target.exists():  # a trace that is to be replaced, or empty
            shutil.rmtree(target)
        trace = concat([Trace.open(shards.trace(number)) for number in range(count)], target, documents="same")
        shards.remove()
        return trace


def _check_target(target: Path, overwrite: bool) -> None:
    """Find out before the work is done that the trace cannot be put in its place."""
    if (target / "trace.json").exists():
        if not overwrite:
            raise BadTrace(f"{target} already holds a whole trace; choose another folder or overwrite it.")
    elif target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise BadTrace(f"{target} is not empty and not a trace; choose another folder.")


def _texts(number: int, size: int, total: int) -> int:
    """Return how many texts a shard has."""
    return min(size, total - number * size)


def _threads(workers: int) -> int:
    """Return the threads of a worker on this machine; 0 where a cluster decides."""
    if os.environ.get("RAY_ADDRESS"):
        return 0
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else max(1, (os.cpu_count() or 1) // workers)


def _wants_gpu(inner: str, device: str) -> bool:
    """Whether each worker takes a GPU: told so, or vLLM where there is one."""
    if device.startswith("cuda"):
        return True
    if device in ("", "auto") and inner == "vllm":
        import torch

        return torch.cuda.is_available()
    return False
