"""What the embedded server adds to `generate`, lab model, requests one after another; prints JSON.

In every round each arm answers the same prompt with the same number of tokens, in turn, and a ratio is the median over
rounds of arm / `engine.generate` of that round. Target: 1.10 for whole answers without a plan.

    python benchmarks/serve_overhead.py [--rounds 15] [--tokens 96]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import openai
import torch

from helpers.servers import in_thread, signature
from moeworks.engines import load
from moeworks.serve import build_app

PROMPT = "In the morning the old woman went down to the river with a basket, and there she met a man who said that"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine: Any = load("lab")
    plan = signature(engine.identity, 3)
    app = build_app(engine, {"three": plan})
    ends = {str(engine.model.generation_config.eos_token_id): -100}  # no answer ends early
    bias = {(int(token),): float(value) for token, value in ends.items()}
    with in_thread(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600) as client:

        def ask(model: str, stream: bool = False, **field: Any) -> None:
            answer = client.completions.create(
                model=model,
                prompt=PROMPT,
                max_tokens=options.tokens,
                temperature=0,
                logit_bias=ends,
                stream=stream,
                extra_body={"moeworks": field} if field else None,
            )
            if stream:
                assert sum(1 for _ in answer) > options.tokens // 2
            else:
                assert answer.usage.completion_tokens == options.tokens

        def generate(plan: Any) -> None:
            (found,) = engine.generate([PROMPT], plan=plan, max_new_tokens=options.tokens, sequence_bias=bias)
            assert len(found.tokens) == options.tokens

        arms: dict[str, tuple[Callable[[], None], str]] = {
            "generate": (lambda: generate(None), "generate"),
            "whole answer": (lambda: ask("base"), "generate"),
            "streamed": (lambda: ask("base", stream=True), "generate"),
            "whole answer with ids": (lambda: ask("base", record={}), "generate"),
            "generate with a plan": (lambda: generate(plan), "generate with a plan"),
            "whole answer with a plan": (lambda: ask("three"), "generate with a plan"),
        }
        for run, _ in arms.values():
            run()
        times: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(options.rounds):
            order = list(arms)[number % len(arms) :] + list(arms)[: number % len(arms)]
            for name in order:
                start = time.perf_counter()
                arms[name][0]()
                times[name].append(time.perf_counter() - start)
    report: dict[str, Any] = {}
    for name, (_, against) in arms.items():
        ratios = sorted(a / b for a, b in zip(times[name], times[against], strict=True))
        low, _, high = statistics.quantiles(ratios, n=4)
        report[name] = {
            "ratio": round(statistics.median(ratios), 4),
            "against": against,
            "quartiles": [round(low, 4), round(high, 4)],
            "milliseconds": round(1000 * statistics.median(times[name]), 1),
        }
    conditions = {"rounds": options.rounds, "tokens": options.tokens, "machine": platform.machine(), "threads": 1}
    print(json.dumps({"serve": report, "conditions": conditions}, indent=2))


if __name__ == "__main__":
    main()
