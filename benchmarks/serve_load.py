"""Thousands of requests from 64 clients at once, plans and none mixed: contamination, memory, slots; prints JSON.

Under plan `expert-N` expert N runs for every token in every layer, and the routes in each answer are looked at: an
answer that lacks its own expert, or has what no plan asked for, is counted as contaminated.

    python benchmarks/serve_load.py fake --requests 10000
    python benchmarks/serve_load.py lab --requests 1000 --tokens 8
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import openai
import torch

from helpers.servers import Served, in_thread, signature
from moeworks.serve import build_app, open_model
from serve.client_suite import ids_of


def resident() -> float:
    """Return the memory of this process, megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=["fake", "lab"])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=3)
    parser.add_argument("--plans", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine: Any = open_model(options.model)
    plans = {f"expert-{number}": signature(engine.identity, number) for number in range(options.plans)}
    app = build_app(engine, plans)
    prompts = [f"{word} said the Old man" for word in ("Yes", "NO", "Perhaps", "never", "so")]
    with in_thread(app) as url:
        served = Served(url, engine.identity, engine.context, plans)
        local = threading.local()

        def ask(model: str, prompt: str, stream: bool) -> tuple[str, np.ndarray]:
            if not hasattr(local, "client"):
                local.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
            answer = local.client.completions.create(
                model=model,
                prompt=prompt,
                max_tokens=options.tokens,
                temperature=0,
                stream=stream,
                extra_body={"moeworks": {"record": {}}},
            )
            if not stream:
                return answer.choices[0].text, ids_of(answer, served)
            chunks = list(answer)
            about = next(chunk for chunk in chunks if getattr(chunk, "moeworks", None))
            return "".join(choice.text for chunk in chunks for choice in chunk.choices), ids_of(about, served)

        models = ["base", *plans]
        alone = {(model, prompt): ask(model, prompt, False) for model in models for prompt in prompts}
        memory: list[float] = []
        wrong, failed, lock = 0, 0, threading.Lock()

        def one(number: int) -> None:
            nonlocal wrong, failed
            model, prompt = models[number % len(models)], prompts[number // len(models) % len(prompts)]
            try:
                text, ids = ask(model, prompt, stream=number % 7 == 0)
            except openai.OpenAIError:
                with lock:
                    failed += 1
                return
            expected = alone[model, prompt]
            right = text == expected[0] and np.array_equal(ids, expected[1])
            if model != "base":
                right &= bool((ids == int(model.rpartition("-")[2])).any(-1).all())
            with lock:
                wrong += not right
                if number % max(1, options.requests // 10) == 0:
                    memory.append(round(resident(), 1))

        with ThreadPoolExecutor(options.clients) as pool:
            list(pool.map(one, range(options.clients)))  # all threads and clients exist before memory is looked at
            memory.clear()
            memory.append(round(resident(), 1))
            start = time.perf_counter()
            list(pool.map(one, range(options.requests)))
            seconds = time.perf_counter() - start
        memory.append(round(resident(), 1))
        report = {
            "model": options.model,
            "requests": options.requests,
            "clients": options.clients,
            "contaminated": wrong,
            "failed": failed,
            "seconds": round(seconds, 1),
            "requests_per_second": round(options.requests / seconds, 1),
            "megabytes": memory,
            "slots_taken_afterwards": len(app.state.door.tickets),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
