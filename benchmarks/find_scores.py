"""Times every score that reads a trace: decisions (token × layer) a second of one core, without and with its null.

Target: 20 million decisions a second for scores that read choices. The trace is synthetic (top 4 of 32 in 6 layers,
4,000 documents, labels of two, four and a hundred values); time does not depend on what is in it, except for `refine`,
which is off. `sums` is the one pass over the columns that a method needs; `find` is the whole call with 1,000
permutations and 200 resamplings, whose cost is that of documents × experts and not of tokens. Probabilities read
logits, 32 float32 a decision in place of 4 ids and weights. Rates are per second of processor time of one thread, which
other programs disturb less. Each method runs in a process of its own, so that peak memory is its own.

    python benchmarks/find_scores.py [--rows 1000000] [--documents 4000] [--repeats 3]
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

from moeworks.artefact import EngineIdentity, LayerShape, ModelIdentity
from moeworks.contract import Contract
from moeworks.find import find_method, trace_methods
from moeworks.find.amounts import sum_reads
from moeworks.find.groups import enter_groups
from moeworks.find.matching import token_factors
from moeworks.find.sides import Sides, enter
from moeworks.trace import RecordedRows, RequestInfo, Trace, TraceHeader, TraceWriter
from moeworks.where import Rows, Where

LAYERS, EXPERTS, TOP_K, VOCABULARY = 6, 32, 4, 8000
TARGET = 20e6
SIDES: dict[str, Any] = {"contrast": "lang=fr", "against": "lang=en"}
ASKED: dict[str, dict[str, Any]] = {
    "risk_difference": SIDES,
    "npmi": SIDES,
    "functional_map": SIDES,
    "gate_profile": SIDES,
    "stability_selection": SIDES,
    "affinity": SIDES,
    "dominance": {"label": "domain"},
    "multilingual": {"label": "domain", "base": "a"},
    "pearson": {"label": "number"},
    "npmi, markers": {"markers": {"token=5": 1.0, "token=9": -1.0}},
    "risk_difference, matched": {**SIDES, "match": "token"},
}


def write_trace(path: Path, rows: int, documents: int, *, logits: bool) -> None:
    shapes = tuple(
        LayerShape(layer=n, experts=EXPERTS, top_k=TOP_K, contract=Contract(experts=EXPERTS, top_k=TOP_K))
        for n in range(LAYERS)
    )
    model = ModelIdentity(name="synthetic", family="synthetic", weight_hash="", tokenizer_hash="", layers=shapes)
    header = TraceHeader(moeworks="0", model=model, engine=EngineIdentity(name="fake", version="0", dtype="float32"))
    rng = np.random.default_rng(0)
    length = rows // documents
    with TraceWriter(path, header, logits=logits) as writer:
        for i in range(documents):
            labels = {"lang": ("fr", "en")[i % 2], "domain": "abcd"[i % 4], "number": str(i % 100)}
            writer.add_request(
                RequestInfo(request=i, tokens=length, prompt_tokens=length, labels=labels, text_hash=str(i))
            )
            raw = {n: rng.random((length, EXPERTS), np.float32) for n in range(LAYERS)}
            ids = {n: z.argpartition(-TOP_K, axis=1)[:, -TOP_K:] for n, z in raw.items()}
            weights = {n: np.full((length, TOP_K), 0.25, np.float32) for n in range(LAYERS)}
            zeros = np.zeros(length, np.int64)
            writer.write(
                RecordedRows(
                    rows=Rows(zeros + i, np.arange(length), rng.integers(0, VOCABULARY, length), zeros),
                    ids=ids,
                    weights=weights,
                    logits=raw if logits else None,
                )
            )


def sums_rate(trace: Trace, name: str) -> float:
    """Return decisions a second of the pass that a method makes over the columns, entering documents included."""
    asked, what = ASKED[name], trace_methods()[name.partition(",")[0]].reads
    layers = dict.fromkeys(range(LAYERS), EXPERTS)
    started = time.process_time()
    if "label" in asked:
        groups = enter_groups(trace, label=asked["label"], where=Where())
        sum_reads(trace, groups.rows(trace, Where()), groups.tokens, layers, what)
    else:
        sides = Sides(Where.parse(SIDES["contrast"]), Where.parse(SIDES["against"]), Where())
        factors = token_factors(trace, sides) if "match" in asked else None
        entries = enter(trace, sides, factors=factors)
        sum_reads(trace, sides.rows(trace, entries, factors), entries.tokens, layers, what)
    return len(trace) * LAYERS / (time.process_time() - started)


def run(path: str, name: str) -> None:
    trace, method = Trace.open(path), name.partition(",")[0]
    rates = [sums_rate(trace, name) for _ in range(3)] if "markers" not in ASKED[name] else []
    started, worked = time.perf_counter(), time.process_time()
    find_method(trace, method=method, permutations=1000, refine=False, **ASKED[name])
    seconds, work = time.perf_counter() - started, time.process_time() - worked
    result = {
        "reads": trace_methods()[method].reads,
        "sums_decisions_per_second": max(rates, default=None),
        "find_seconds": seconds,
        "find_processor_seconds": work,
        "find_decisions_per_second": len(trace) * LAYERS / work,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", nargs=2, metavar=("TRACE", "METHOD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(*arguments.run)
        return
    alone = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as folder:
        plain, full = Path(folder) / "plain", Path(folder) / "full"
        write_trace(plain, arguments.rows, arguments.documents, logits=False)
        write_trace(full, arguments.rows // 4, arguments.documents // 4, logits=True)
        results = {}
        for name in ASKED:
            path = full if name == "affinity" else plain
            command = [sys.executable, __file__, "--run", str(path), name]
            outputs = [
                json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=alone).stdout)
                for _ in range(arguments.repeats)
            ]
            best = min(outputs, key=lambda output: output["find_seconds"])
            passes = [output["sums_decisions_per_second"] for output in outputs]
            results[name] = best | {"sums_decisions_per_second": max(passes) if passes[0] else None}
    report = {
        "benchmark": "find_scores",
        "target": {"sums_decisions_per_second of runs": TARGET},
        "conditions": {
            "rows": arguments.rows,
            "rows with logits (affinity)": arguments.rows // 4,
            "documents": arguments.documents,
            "layers": LAYERS,
            "experts": EXPERTS,
            "top_k": TOP_K,
            "permutations": 1000,
            "bootstrap": 200,
            "best_of": arguments.repeats,
            "threads": 1,
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
