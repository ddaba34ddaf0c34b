"""Times every diagnostic of routing over 1 M tokens × 6 layers × top 4 of 32 experts; prints JSON.

The trace is synthetic: 4,000 documents, token ids by Zipf's law, choices that follow the token id more in the first
layers than in the last. Each timing runs in a process of its own, so that peak memory is that run's (pages of the
memory-mapped trace count). Processor seconds are of one core and say more than seconds on a busy machine.

    python benchmarks/diagnostics.py [--rows 1000000] [--documents 4000] [--repeats 3] [--only token_dependence]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from moeworks import stats
from moeworks.artefact import EngineIdentity, LayerShape, ModelIdentity
from moeworks.trace import RecordedRows, RequestInfo, Trace, TraceHeader, TraceWriter
from moeworks.where import Rows

LAYERS, EXPERTS, TOP_K, VOCABULARY = 6, 32, 4, 32_000
OPTIONS: dict[str, dict[str, Any]] = {
    "balance": {},
    "token_dependence": {},
    "token_overlap": {},
    "saturation": {},
    "capacity_drops": {"label": "lang"},
    "capacity_drops, batches of 32 texts": {"label": "lang", "texts_per_batch": 32},
    "standing_committee": {"label": "domain"},
    "repetition": {},
    "divergence": {"label": "lang", "base": "en"},
}


def write_trace(path: Path, rows: int, documents: int) -> None:
    shapes = tuple(LayerShape(layer=n, experts=EXPERTS, top_k=TOP_K) for n in range(LAYERS))
    model = ModelIdentity(name="synthetic", family="synthetic", weight_hash="", tokenizer_hash="", layers=shapes)
    header = TraceHeader(moeworks="0", model=model, engine=EngineIdentity(name="fake", version="0", dtype="float32"))
    rng = np.random.default_rng(0)
    length = rows // documents
    taste = rng.normal(size=(VOCABULARY, EXPERTS)).astype(np.float32)
    with TraceWriter(path, header) as writer:
        for i in range(documents):
            labels = {"lang": ("fr", "en")[i % 2], "domain": f"d{i % 8}"}
            writer.add_request(
                RequestInfo(request=i, tokens=length, prompt_tokens=length, labels=labels, text_hash=str(i))
            )
            token = np.minimum(rng.zipf(1.1, length), VOCABULARY) - 1
            ids = {
                n: (taste[token] / (n + 1) + rng.normal(size=(length, EXPERTS))).argpartition(-TOP_K)[:, -TOP_K:]
                for n in range(LAYERS)
            }
            weights = {n: rng.random((length, TOP_K), np.float32) + 0.01 for n in range(LAYERS)}
            rows_of = Rows(np.full(length, i), np.arange(length), token, np.zeros(length, np.int64))
            writer.write(RecordedRows(rows=rows_of, ids=ids, weights=weights))


def run(path: str, name: str) -> None:
    trace = Trace.open(path)
    function = getattr(stats, name.partition(",")[0])
    arguments = ([trace], trace) if name == "saturation" else (trace,)
    started, processor = time.perf_counter(), time.process_time()
    function(*arguments, **OPTIONS[name])
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    result = {
        "seconds": round(seconds, 3),
        "processor_seconds": round(processor, 3),
        "million_decisions_per_processor_second": round(len(trace) * LAYERS / processor / 1e6, 1),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of diagnostics")
    parser.add_argument("--trace", type=Path, help="keep the synthetic trace here, and use it if it is there")
    parser.add_argument("--run", nargs=2, metavar=("TRACE", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(*arguments.run)
        return
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.trace or Path(folder) / "trace"
        if not path.exists():
            write_trace(path, arguments.rows, arguments.documents)
        for name in arguments.only or OPTIONS:
            command = [sys.executable, __file__, "--run", str(path), name]
            outputs = [
                json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                for _ in range(arguments.repeats)
            ]
            results[name] = min(outputs, key=lambda output: output["processor_seconds"])
            print(name, results[name], file=sys.stderr, flush=True)
    report = {
        "benchmark": "diagnostics",
        "conditions": {
            "rows": arguments.rows,
            "documents": arguments.documents,
            "layers": LAYERS,
            "experts": EXPERTS,
            "top_k": TOP_K,
            "best_of": arguments.repeats,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "results": results,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
