"""The plug-in in a worker: finds the routers of a loaded model, allocates the bank, and follows its runner's steps."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.artefact import LayerShape
from moeworks.engines.vllm.bank import Bank, merge
from moeworks.engines.vllm.info import WorkerInfo, write_info
from moeworks.engines.vllm.layer import Layer, hook_router
from moeworks.engines.vllm.meter import METER, StepMeter
from moeworks.engines.vllm.recorder import Copy, Kept, LayerSizes, Recorder, StepBuffers
from moeworks.engines.vllm.refusals import MAX_STEPS
from moeworks.engines.vllm.routers import Found, read_router
from moeworks.engines.vllm.slots import Key, Slots
from moeworks.engines.vllm.spec import FIELD, MAX_VARIANTS, Spec, clauses_of, variants
from moeworks.engines.vllm.step import Step
from moeworks.engines.vllm.unsupported import why_unsupported
from moeworks.plan.compiled import LayerEdit, compile_layer
from moeworks.trace.format import RouterValues
from moeworks.where import Where

__all__ = ["RECORD_BYTES", "Attached", "attach"]

RECORD_BYTES = "MOEWORKS_VLLM_RECORD_BYTES"  # environment variable: bytes of rows that may wait in a worker


@dataclass(eq=False)
class Request:
    """A request under a plan or being recorded."""

    slots: NDArray[np.int64]  # by number of its sets of clauses
    kinds: NDArray[np.uint8]  # (length,) which set holds at each position
    kept: Kept | None

    @property
    def steady(self) -> bool:
        """Whether every step is like the one before: one set of clauses for all tokens, nothing recorded."""
        return self.kept is None and (len(self.slots) == 1 or bool((self.kinds == self.kinds[0]).all()))


class Attached:
    """What the plug-in holds in one worker.

    Args:
        worker: a worker of vLLM whose model is loaded.
    """

    def __init__(self, worker: Any) -> None:
        config, runner = worker.vllm_config, worker.model_runner
        self.requests: dict[str, Request] = {}
        self.layers: dict[int, Layer] = {}
        self._length = int(config.model_config.max_model_len)
        self._records = _is_recording_rank(config.parallel_config)
        tokens = int(config.scheduler_config.max_num_batched_tokens)
        total = 1 + MAX_VARIANTS * int(config.scheduler_config.max_num_seqs)
        device = runner.device
        compiled = not config.model_config.enforce_eager
        graphs = device.type != "cpu" and compiled
        self.step = Step(tokens, device, host_knows=not graphs)
        self.refused = why_unsupported(config, runner)
        modules = [] if self.refused else _runners(runner)
        found = {number: _read(module, config, device) for number, module in modules}
        sizes = [LayerSizes(number, one.top_k, one.experts, one.output_scale) for number, one in found.items()]
        buffers = StepBuffers(tokens, sizes, device)
        for place, (number, module) in enumerate(modules):
            bank = Bank(total, found[number].experts, device)
            self.layers[number] = Layer(number, place, found[number], bank, buffers, self.step)
            hook_router(module.router, self.layers[number], compiled=compiled)
        self.slots = Slots(total, self._write, self._clear)
        self.recorder = Recorder(buffers, int(os.environ.get(RECORD_BYTES, 256 * 2**20)))
        self._copies: list[Copy] = []
        self._rows = 0  # tokens of the step that runs
        self._steady: tuple[list[str], NDArray[Any], NDArray[np.int64]] | None = None  # names, counts and slots
        self.meter: StepMeter | None = None
        if os.environ.get(METER) and self._records:
            self.watch()
        parallel = config.parallel_config
        self.info = WorkerInfo(
            layers=tuple(map(_shape, self.layers.values())),
            values=tuple(value for value in map(_values, self.layers.values()) if value is not None),
            pipeline_ranks=int(parallel.pipeline_parallel_size),
            refused=self.refused,
            bank_bytes=sum(layer.bank.nbytes for layer in self.layers.values()),
            slots=total,
        )
        if self._records:
            write_info(self.info, config.instance_id, _pipeline_rank())

    def watch(self) -> None:
        """Sum up what every token is routed to from now on, whether it is recorded or not."""
        self.meter = StepMeter(self.recorder.buffers, {number: one.found.bias for number, one in self.layers.items()})

    # ------------------------------------------------------------------ requests

    def enter(self, name: str, params: Any, prompt_tokens: int) -> None:
        """Take in a request once, however often it is announced."""
        text = (getattr(params, "extra_args", None) or {}).get(FIELD)
        if text is None or name in self.requests:
            return
        spec, key, clauses = _read_spec(text)
        prompt = prompt_tokens if spec.prompt_tokens is None else spec.prompt_tokens
        sets, kinds = variants(clauses, prompt=prompt, given=prompt_tokens, length=self._length)
        slots = np.zeros(len(sets), np.int64)
        for number, chosen in enumerate(sets):
            if chosen:
                slots[number] = self.slots.take((key, chosen))
        kept = self.recorder.start(spec.record) if spec.record is not None and self._records else None
        self.requests[name] = Request(slots, kinds, kept)

    def leave(self, names: Any) -> None:
        """Let go of finished requests."""
        for name in names:
            request = self.requests.pop(name, None)
            if request is None:
                continue
            for slot in request.slots[request.slots > 0]:
                self.slots.give_back(int(slot))
            if request.kept is not None:
                self.recorder.finish(request.kept)

    # ------------------------------------------------------------------ steps

    def begin(self, names: list[str], counts: Any, positions: Any) -> None:
        """Fill the token → slot map of a step.

        Args:
            names: requests in the order of their rows.
            counts: (requests,) tokens of each in this step.
            positions: (requests,) position of the first of them.
        """
        self._copies = []
        metered = self.meter is not None
        if not self.requests:
            if metered:
                self._rows = int(np.sum(counts))
                self.step.watch()
            else:
                self.step.end()
            return
        if self._steady is not None and names == self._steady[0] and np.array_equal(counts, self._steady[1]):
            self._rows = len(self._steady[2])
            self.step.fill(self._steady[2], recorded=metered, weights=metered, logits=metered)
            return
        ends = np.cumsum(counts)
        self._rows = int(ends[-1])
        steady = True
        slots = np.zeros(int(ends[-1]), np.int64)
        for name, end, count, position in zip(names, ends.tolist(), counts, positions, strict=False):
            request = self.requests.get(name)
            if request is None:
                continue
            steady = steady and request.steady
            start, count, position = end - int(count), int(count), int(position)
            slots[start:end] = request.slots[request.kinds[position : position + count]]
            if request.kept is not None:
                self._copies.append(Copy(request.kept, start, position, count))
        self._steady = (names, np.array(counts), slots) if steady else None
        wanted = [copy.kept.recording for copy in self._copies]
        self.step.fill(
            slots,
            recorded=metered or bool(wanted),
            weights=metered or any(one.weights for one in wanted),
            logits=metered or any(one.logits for one in wanted),
        )

    def end(self) -> None:
        """Copy what was recorded and make the map neutral."""
        if self._copies:
            self.recorder.add(self._copies)
            self._copies = []
        if self.meter is not None and self._rows:
            self.meter.add(self._rows)
        self._rows = 0
        if self.step.busy:
            self.step.end()

    # ------------------------------------------------------------------ bank

    def _write(self, slot: int, key: Key) -> None:
        clauses = clauses_of(Spec.loads(key[0]).operations)
        chosen = key[1]
        for number, layer in self.layers.items():
            edits: list[LayerEdit] = []
            for clause in chosen:
                edit = compile_layer(clauses[clause][1], number, layer.found.experts)
                if edit is not None:
                    edits.append(edit)
            layer.bank.write(slot, merge(edits, layer.found.experts) if edits else None)

    def _clear(self, slot: int) -> None:
        for layer in self.layers.values():
            layer.bank.clear(slot)

    def state(self) -> dict[str, int]:
        """Return counts for tests and metrics."""
        return {
            "requests": len(self.requests),
            "slots_used": self.slots.used,
            "slots": self.slots.total,
            "waiting": self.recorder.waiting,
            "bytes": self.recorder.nbytes,
            "dropped_rows": self.recorder.dropped,
            "steps": MAX_STEPS,
        }


def attach(worker: Any) -> Attached:
    """Hook the routers and the runner of a worker whose model was just loaded."""
    from moeworks.engines.vllm.runners import follow

    attached = Attached(worker)
    if not attached.refused:
        follow(worker.model_runner, attached)
    return attached


@lru_cache(maxsize=256)
def _read_spec(text: str) -> tuple[Spec, str, tuple[Where, ...]]:
    """Return a spec, the text that stands for what it does (requests share slots by it), and its clauses."""
    spec = Spec.loads(text)
    clauses = tuple(where for where, _ in clauses_of(spec.operations))
    return spec, Spec(operations=spec.operations).dumps(), clauses


def _runners(runner: Any) -> list[tuple[int, Any]]:
    """Return the MoE layers of this rank's model with their global numbers."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
    from vllm.model_executor.models.utils import extract_layer_index

    found = [(extract_layer_index(m.layer_name), m) for m in runner.model.modules() if isinstance(m, MoERunner)]
    return sorted(found, key=lambda pair: pair[0])


def _read(module: Any, config: Any, device: Any) -> Found:
    return read_router(
        module.router,
        output_scale=float(module.routed_scaling_factor),
        hidden=int(module.moe_config.hidden_dim),
        dtype=config.model_config.dtype,
        device=device,
        experts=getattr(module.moe_config, "num_logical_experts", None),
    )


def _shape(layer: Layer) -> LayerShape:
    found = layer.found
    return LayerShape(
        layer=layer.number, experts=found.experts, top_k=found.top_k, contract=layer.contract, opaque=found.opaque
    )


def _values(layer: Layer) -> RouterValues | None:
    bias = layer.found.bias
    return RouterValues.of(
        layer.number, None if bias is None else bias.detach().float().cpu().numpy().reshape(-1), None
    )


def _is_recording_rank(parallel: Any) -> bool:
    """Whether this rank keeps decisions: they are the same on all tensor-parallel ranks."""
    if int(parallel.tensor_parallel_size) == 1:
        return True
    from vllm.distributed import get_tensor_model_parallel_rank

    return bool(get_tensor_model_parallel_rank() == 0)


def _pipeline_rank() -> int:
    from vllm.distributed import get_pp_group

    return int(get_pp_group().rank_in_group)
