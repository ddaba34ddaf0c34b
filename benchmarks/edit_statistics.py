"""What collecting statistics costs, as ratios to the bare model in one run; prints JSON.

Arms run in turn within each round and a ratio is the median over rounds of arm / bare, as in `engine_overhead.py`.
Every arm has run once before (its products are proved then). Target: all cheap statistics together at most 1.6.

The reference way evaluates every expert on every token, as the released REAP observer does; it is written here as
kindly as possible: it keeps no expert's outputs and takes the router's own decision. How many times as long it takes as
we do is bounded by the share of the experts in the whole pass (its own ratio to the bare model is what a collector that
cost nothing would reach), so the extra work of both beside the bare model is compared too. Target for that: at least
E / k x 0.5.

    python benchmarks/edit_statistics.py [--rounds 7] [--dtype float32] [--threads 2] [--cpu-time]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from moeworks.edit.collect import Run, attached, columns_of, run_batch
from moeworks.edit.collecting.corpus import Corpus, read_corpus
from moeworks.edit.collecting.taps import Layout, Tap, new_gather
from moeworks.engines.transformers import TransformersEngine
from moeworks.engines.transformers.experts import open_experts
from moeworks.engines.transformers.lean import lean
from moeworks.examples import Example
from moeworks.lab import lab_path
from moeworks.probes import neutral_texts

ARMS = {
    "cheap": ("cheap",),
    "cheap and router": ("cheap", "router"),
    "cheap, router and sets": ("cheap", "router", "sets"),
    "cheap, router and means": ("cheap", "router", "means"),
    "cheap, router, means and neurons": ("cheap", "router", "means", "neurons"),
    "cheap and everywhere": ("cheap", "everywhere"),
}
REFERENCE = "reference: every expert on every token"


def many_experts(dtype: str) -> TransformersEngine:
    """A random Qwen3-MoE with 128 experts, 8 of them a token, and the lab model's tokenizer."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=8192,
        hidden_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        moe_intermediate_size=96,
        intermediate_size=384,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=3,
    )
    model = Qwen3MoeForCausalLM(config).to(getattr(torch, dtype))
    return TransformersEngine(model, AutoTokenizer.from_pretrained(lab_path()), name="qwen3_moe 128 experts")


def bare(engine: TransformersEngine, corpus: Corpus) -> None:
    batch = corpus.batch(corpus.batches(8)[0])
    with torch.inference_mode():
        engine.model(**batch.tensors(engine.pad_token, engine.model.device), **lean(engine.model))


def collecting(
    engine: TransformersEngine, corpus: Corpus, folder: Path, groups: tuple[str, ...]
) -> tuple[list[Tap], Callable[[], None]]:
    names, layout = columns_of(groups), Layout()
    run = Run(corpus, folder, names, groups, 0, 0, False)
    taps = [
        Tap(engine.model, router, new_gather(router, 1, names, sets="sets" in groups), layout)
        for router in engine.routers
    ]
    return taps, lambda: run_batch(engine, corpus, corpus.batches(8)[0], layout, taps, run)


class Observer:
    """Sums g |y| over each expert's own tokens by evaluating all experts on all tokens."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.sums = {router.layer: torch.zeros(router.experts) for router in engine.routers}
        self._opened = [(router, open_experts(router)) for router in engine.routers]
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for router, experts in self._opened:
            module = router.experts_module
            assert module is not None
            self._handles.append(
                module.register_forward_hook(
                    lambda module, args, output, layer=router.layer, experts=experts: self._see(layer, experts, *args)
                )
            )

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _see(self, layer: int, experts: Any, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> None:
        dense = torch.zeros(len(ids), experts.weights.experts).scatter_add_(1, ids, weights.float())
        for expert in range(experts.weights.experts):
            out = experts.outputs(expert, experts.rule(*experts.project(expert, hidden)))
            norms = torch.linalg.vector_norm(out.float(), dim=-1)
            self.sums[layer][expert] += norms @ dense[:, expert]


def measure(engine: TransformersEngine, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    texts = [example.text for example in neutral_texts("held_out")]
    examples = [Example(text=" ".join(texts[i::8])) for i in range(8)]
    with tempfile.TemporaryDirectory() as name:
        corpus = read_corpus(engine.reader, examples, Path(name) / "texts")
        arms: dict[str, tuple[list[Tap], Callable[[], None]]] = {"bare": ([], lambda: bare(engine, corpus))}
        for arm, groups in ARMS.items():
            arms[arm] = collecting(engine, corpus, Path(name), groups)
        observer = Observer(engine)
        arms[REFERENCE] = ([], lambda: bare(engine, corpus))
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for number in range(rounds):
            order = list(arms)
            for arm in order[number % len(order) :] + order[: number % len(order)]:
                taps, run = arms[arm]
                with attached(taps):
                    if arm == REFERENCE:
                        with observer:
                            seconds = timed(run, clock)
                    else:
                        if taps:
                            run()  # a first pass after hooks were put on proves what is read
                        seconds = timed(run, clock)
                times[arm].append(seconds)
    router = engine.routers[0]
    ratios = {arm: [t / b for t, b in zip(values, times["bare"], strict=True)] for arm, values in times.items()}
    slower = [r / c for r, c in zip(times[REFERENCE], times["cheap"], strict=True)]
    added = {arm: statistics.median(ratios[arm]) - 1 for arm in ("cheap", REFERENCE)}
    extra = round(added[REFERENCE] / added["cheap"], 1) if added["cheap"] > 0 else None  # none: lost in the noise
    return {
        "arms": {
            arm: {
                "ratio": round(statistics.median(values), 3),
                "quartiles": [round(q, 3) for q in statistics.quantiles(values)[::2]],
                "milliseconds": round(1000 * statistics.median(times[arm]), 1),
            }
            for arm, values in ratios.items()
        },
        "experts": router.experts,
        "top_k": router.top_k,
        "tokens": corpus.tokens,
        "layers": len(engine.routers),
        "reference_times_as_long_as_cheap": round(statistics.median(slower), 2),
        "extra_work_of_reference_over_cheap": extra,
        "target_at_least": router.experts / router.top_k * 0.5,
    }


def timed(run: Callable[[], None], clock: Callable[[], float]) -> float:
    started = clock()
    run()
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="time of the processor, for a busy machine")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    torch.set_num_threads(arguments.threads)
    lab = TransformersEngine.load("lab", dtype=arguments.dtype)
    results = {
        "lab model": measure(lab, arguments.rounds, clock),
        "random Qwen3-MoE, 128 experts": measure(many_experts(arguments.dtype), arguments.rounds, clock),
    }
    conditions = {
        "engine": lab.engine.model_dump(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "rounds": arguments.rounds,
        "clock": clock.__name__,
        "texts": "8 of 256 tokens in one batch",
    }
    print(json.dumps({"results": results, "conditions": conditions}, indent=1))


if __name__ == "__main__":
    main()
