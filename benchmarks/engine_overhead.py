"""What recording and steering cost on the lab model, as ratios to the bare model in one run; prints JSON.

All arms run in turn within each round, and a ratio is the median over rounds of arm / bare, so that a busy machine
slows both sides alike. Targets: recording ids and weights 1.05 in prefill and 1.10 in decode, with logits 1.10 in
prefill; ten demoted experts 1.05 and 1.10; an attached empty plan 1.02. Beside it two peers: transformers' own
`output_router_logits=True` and a plain nnsight trace that saves the routers' outputs.

    python benchmarks/engine_overhead.py [--rounds 15]  # three times as many in decode [--dtype float32]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import moeworks
from moeworks.artefact import Header
from moeworks.engines.transformers import TransformersEngine
from moeworks.engines.transformers.assemble import rows_of_generation, rows_of_text
from moeworks.engines.transformers.layout import Batch, GenerationBatch
from moeworks.engines.transformers.lean import lean
from moeworks.engines.transformers.recording import _info
from moeworks.examples import Example
from moeworks.plan import Demote, Plan
from moeworks.probes import neutral_texts
from moeworks.trace import TraceHeader, TraceWriter

DECODE = 48  # tokens


def plan_of(engine: TransformersEngine, *operations: Any) -> Plan:
    return Plan(header=Header(format="moeworks.plan", moeworks="0", model=engine.identity), operations=operations)


def nnsight_arm(engine: TransformersEngine, inputs: dict[str, torch.Tensor], lean: dict[str, Any]) -> Callable[[], Any]:
    """A plain nnsight trace that saves what every router returns."""
    from nnsight import NNsight

    wrapped = NNsight(engine.model)

    def run() -> None:
        saved = []
        with torch.inference_mode(), wrapped.trace(**inputs, **lean):
            for layer in wrapped.model.layers:
                saved.append(layer.mlp.gate.output.save())

    return run


def prefill_arms(engine: TransformersEngine, writer: TraceWriter) -> dict[str, Callable[[], Any]]:
    texts = [example.text for example in neutral_texts("held_out")]
    prepared = list(engine.reader.read(iter([Example(text=" ".join(texts[i::8])) for i in range(8)])))
    batch, inputs = Batch(prepared), Batch(prepared).tensors(engine.pad_token, "cpu")
    spared = lean(engine.model)
    counter = iter(range(10**9))

    def forward(**more: Any) -> None:
        with torch.inference_mode():
            engine.model(**inputs, **spared, **more)

    def record(logits: bool) -> None:
        fresh = prepared if logits else [dataclasses.replace(request, number=next(counter)) for request in prepared]
        with engine.session(None, record=True, logits=logits) as tap:
            tap.start(Batch(fresh))
            forward()
            rows = rows_of_text(tap.steps[0])
        if not logits:
            for request in fresh:
                writer.add_request(_info(request, len(request.tokens), request.prompt_tokens, False))
            writer.write(rows)

    ten = plan_of(engine, Demote(experts=[f"L{layer}.E{e}" for layer in range(5) for e in (3, 17)]))

    def under(plan: Plan) -> None:
        with engine.steered(plan):
            forward()

    arms = {
        "bare": forward,
        "record ids and weights, written": lambda: record(False),
        "record with logits": lambda: record(True),
        "ten experts demoted": lambda: under(ten),
        "empty plan": lambda: under(plan_of(engine)),
        "peer: output_router_logits=True": lambda: forward(output_router_logits=True),
    }
    try:
        arms["peer: nnsight trace of the routers"] = nnsight_arm(engine, inputs, spared)
    except ImportError:
        print("nnsight is not installed; its column is left out", flush=True)
    assert batch.width == engine.context
    return arms


def decode_arms(engine: TransformersEngine) -> dict[str, Callable[[], Any]]:
    prepared = list(engine.reader.read(iter([Example(text="The tower stands on a hill and")])))
    options = {"max_new_tokens": DECODE, "min_new_tokens": DECODE, "do_sample": False, "pad_token_id": engine.pad_token}
    inputs = Batch(prepared, pad_left=True).tensors(engine.pad_token, "cpu")

    def generate(**more: Any) -> Any:
        with torch.inference_mode():
            return engine.model.generate(**inputs, **options, **more)

    def record() -> None:
        with engine.session(None, record=True) as tap:
            batch = GenerationBatch(Batch(prepared, pad_left=True))
            tap.start(batch)
            output = generate()
            rows_of_generation(tap.steps, batch, output[:, batch.prompts.width :].tolist(), None)

    ten = plan_of(engine, Demote(experts=[f"L{layer}.E{e}" for layer in range(5) for e in (3, 17)]))

    def under(plan: Plan) -> None:
        with engine.steered(plan):
            generate()

    return {
        "bare": generate,
        "record ids and weights": record,
        "ten experts demoted": lambda: under(ten),
        "empty plan": lambda: under(plan_of(engine)),
    }


def measure(arms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    for arm in arms.values():
        arm()
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        names = list(arms)
        for name in names[number % len(names) :] + names[: number % len(names)]:  # no arm always follows the same one
            started = time.perf_counter()
            arms[name]()
            times[name].append(time.perf_counter() - started)
    ratios = {name: [t / b for t, b in zip(values, times["bare"], strict=True)] for name, values in times.items()}
    return {
        name: {
            "ratio": round(statistics.median(ratios[name]), 4),
            "quartiles": [round(quartile, 4) for quartile in statistics.quantiles(ratios[name])[::2]],
            "milliseconds": round(1000 * statistics.median(values), 1),
        }
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    engine = TransformersEngine.load("lab", dtype=arguments.dtype)
    with tempfile.TemporaryDirectory() as folder:
        header = TraceHeader(moeworks=moeworks.__version__, model=engine.identity, engine=engine.engine)
        writer = TraceWriter(Path(folder) / "trace", header)
        prefill = measure(prefill_arms(engine, writer), arguments.rounds)
        writer.close()
    print(
        json.dumps(
            {
                "prefill, 8 texts of 256 tokens": prefill,
                f"decode, {DECODE} tokens, one text": measure(decode_arms(engine), 3 * arguments.rounds),
                "conditions": {
                    "engine": engine.engine.model_dump(),
                    "threads": torch.get_num_threads(),
                    "python": platform.python_version(),
                    "rounds": arguments.rounds,
                },
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
