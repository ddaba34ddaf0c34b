"""What the plug-in costs inside vLLM, lab model, batches of 16 requests; prints JSON. Needs the environment of vLLM.

In every round each arm generates the same tokens in turn, and a ratio is the median over rounds of the processor time
of the bare engine / that of the arm: tokens a second against tokens a second, on a machine that others use too. The
bare engine is the same one with every hook of the plug-in taken out. Targets: idle 0.98, mixed plans 0.95, ids 0.95.
Plans that change decisions also change which experts run, and with them the model's own work: the arm whose plans
change none shows the cost of deciding alone. Metered is what a server does for its metrics.

    .venv-vllm/bin/python benchmarks/vllm_overhead.py [--rounds 15] [--tokens 64]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

for name, value in {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}.items():
    os.environ.setdefault(name, value)

from moeworks.address import Address  # noqa: E402
from moeworks.engines.vllm import VllmEngine  # noqa: E402
from moeworks.plan import Plan, empty_plan  # noqa: E402
from moeworks.plan.schema import Add, Demote, Mask, Operation, Promote  # noqa: E402

REQUESTS = 16
PROMPT = "In the morning the old woman went down to the river with a basket, and there she met a man who said that"
TARGETS = {"idle": 0.98, "mixed plans": 0.95, "recording ids": 0.95}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    engine = VllmEngine.load("lab", max_num_seqs=REQUESTS, block_size=32, enable_prefix_caching=False)
    prompts = [engine.tokens(f"{PROMPT} {number}") for number in range(REQUESTS)]
    chosen = [plans(engine)[number % 4] for number in range(REQUESTS)]

    def generate(fields: list[dict[str, Any] | None]) -> None:
        from vllm import SamplingParams

        params = [
            SamplingParams(
                max_tokens=options.tokens,
                temperature=0.0,
                ignore_eos=True,
                detokenize=False,
                extra_args=None if field is None else {"moeworks": json.dumps(field)},
            )
            for field in fields
        ]
        engine.llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)

    def bare() -> None:
        with unhooked(engine):
            generate([None] * REQUESTS)

    def recorded() -> None:
        keys = [f"k{number}" for number in range(REQUESTS)]
        generate([{"key": key, "record": {}} for key in keys])
        assert all(kept["columns"] for kept in engine.take(keys))

    attached = engine.llm.llm_engine.model_executor.driver_worker.moeworks

    def metered() -> None:
        attached.watch()
        generate([None] * REQUESTS)
        assert attached.meter.sums()
        attached.meter = None

    unchanged = [None if number % 4 == 0 else {"plan": as_json(faint(engine))} for number in range(REQUESTS)]
    documents = [None if plan is None else {"plan": as_json(plan)} for plan in chosen]
    arms: dict[str, Callable[[], None]] = {
        "bare": bare,
        "bare again": bare,
        "idle": lambda: generate([None] * REQUESTS),
        "mixed plans": lambda: generate(documents),
        "plans that change no decision": lambda: generate(unchanged),
        "recording ids": recorded,
        "metered": metered,
    }
    times = measured(arms, options.rounds)
    results = {}
    for name in arms:
        if name == "bare":
            continue
        ratios = [base / mine for base, mine in zip(times["bare"], times[name], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        results[name] = {
            "ratio": round(statistics.median(ratios), 3),
            "quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
            "target": TARGETS.get(name),
            "tokens_per_second": round(REQUESTS * options.tokens / statistics.median(times[name])),
        }
    conditions = {
        "engine": engine.engine.version,
        "dtype": engine.engine.dtype,
        "requests": REQUESTS,
        "prompt_tokens": len(prompts[0]),
        "tokens": options.tokens,
        "rounds": options.rounds,
        "time": "processor time, one thread, eager",
        "machine": platform.machine(),
    }
    print(json.dumps({"conditions": conditions, "results": results}, indent=2))


def plans(engine: VllmEngine) -> list[Plan | None]:
    """No plan, and three that reach every layer."""

    def every(*experts: int) -> tuple[Address, ...]:
        return tuple(Address(shape.layer, expert) for shape in engine.identity.layers for expert in experts)

    kinds: list[Operation] = [
        Promote(experts=every(3)),
        Mask(experts=every(1, 5, 9)),
        Add(experts=every(2, 4), strength=0.5),
    ]
    empty = empty_plan(engine.identity, protect="none")
    return [None, *(empty.model_copy(update={"operations": (kind, Demote(experts=every(7)))}) for kind in kinds)]


def faint(engine: VllmEngine) -> Plan:
    """A plan that is decided for every token and changes nothing: what steering costs beside other experts' work."""
    experts = tuple(Address(shape.layer, 2) for shape in engine.identity.layers)
    operations = (Add(experts=experts, strength=1e-6, unit="logit"),)
    return empty_plan(engine.identity, protect="none").model_copy(update={"operations": operations})


def as_json(plan: Plan) -> Any:
    return json.loads(plan.model_dump_json())


def measured(arms: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the processor seconds of each arm in each round; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.process_time()
            arms[name]()
            if number:
                times[name].append(time.process_time() - started)
    return times


@contextmanager
def unhooked(engine: VllmEngine) -> Iterator[None]:
    """Take every hook of the plug-in out of the engine, down to the door."""
    runner = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner
    processor = type(engine.llm.llm_engine.input_processor)
    held: list[tuple[Any, str, Any]] = []
    for module in runner.model.modules():
        if "_compute_routing" in vars(getattr(module, "router", object)):
            held.append((module.router, "_compute_routing", vars(module.router).pop("_compute_routing")))
    assert len(held) == len(engine.identity.layers)
    for name in ("_prepare_inputs", "execute_model"):
        held.append((runner, name, vars(runner).pop(name)))
    guarded = processor.process_inputs
    processor.process_inputs = guarded.__wrapped__
    try:
        yield
    finally:
        processor.process_inputs = guarded
        for owner, name, value in held:
            setattr(owner, name, value)


if __name__ == "__main__":
    main()
