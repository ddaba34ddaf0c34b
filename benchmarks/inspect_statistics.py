"""Times every statistic of `inspect` on a synthetic trace of 16 layers × 8 of 64 experts; prints JSON.

Two parts. All statistics, each in a process of its own, so that peak memory (ru_maxrss, pages of the memory-mapped
trace included) is that run's; processor seconds are of one core and say more than seconds on a busy machine. And
ratios: SRP, SCH, co-activation, saturation and divergence against the naive way of published analysis scripts, a loop
over tokens in Python with numpy inside, written for this benchmark, on the same tokens and in the same process, ours
after a first call that compiles; once without null and interval, which the scripts do not have, and once with them.
That both give the same numbers is checked.

    python benchmarks/inspect_statistics.py [--rows 10000000] [--documents 20000] [--only srp] [--ratios-only]
        [--together 2]
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moeworks import stats
from moeworks.artefact import EngineIdentity, LayerShape, ModelIdentity
from moeworks.contract import Contract
from moeworks.stats.diagnostics import DIAGNOSTICS, diagnose
from moeworks.trace import RecordedRows, RequestInfo, Trace, TraceHeader, TraceWriter
from moeworks.where import Rows, Where

LAYERS, EXPERTS, TOP_K, VOCABULARY = 16, 64, 8, 32_000
LANGUAGES = ("en", "fr", "de", "es", "it")
SCORES = {"fr": 0.7, "de": 0.6, "es": 0.8, "it": 0.65}
LABELS = {"committee": "domain", "drops": "lang"}


def write_trace(path: Path, rows: int, documents: int, layers: int = LAYERS) -> None:
    """Write tokens of Zipf's law whose experts follow token id, text and the token before."""
    contract = Contract(experts=EXPERTS, top_k=TOP_K, renormalise=True)
    shapes = tuple(LayerShape(layer=n, experts=EXPERTS, top_k=TOP_K, contract=contract) for n in range(layers))
    model = ModelIdentity(name="synthetic", family="synthetic", weight_hash="", tokenizer_hash="", layers=shapes)
    engine = EngineIdentity(name="fake", version="0", dtype="float32")
    rng, length = np.random.default_rng(0), rows // documents
    taste = rng.normal(size=(VOCABULARY, EXPERTS)).astype(np.float32)
    with TraceWriter(path, TraceHeader(moeworks="0", model=model, engine=engine, text_hash="same")) as writer:
        for i in range(documents):
            labels = {"lang": LANGUAGES[i % len(LANGUAGES)], "domain": f"d{i % 8}"}
            info = RequestInfo(request=i, tokens=length, prompt_tokens=length, labels=labels, text_hash=str(i))
            writer.add_request(info)
            token = np.minimum(rng.zipf(1.1, length), VOCABULARY) - 1
            topic = rng.normal(size=EXPERTS).astype(np.float32)
            ids, weights = {}, {}
            for n in range(layers):
                logits = taste[token] / (n + 1) + 0.5 * topic + rng.standard_normal((length, EXPERTS), np.float32)
                ids[n] = logits.argpartition(-TOP_K, axis=1)[:, -TOP_K:]
                weights[n] = rng.random((length, TOP_K), np.float32) + 0.01
            rows_of = Rows(np.full(length, i), np.arange(length), token, np.zeros(length, np.int64))
            writer.write(RecordedRows(rows=rows_of, ids=ids, weights=weights))


def run(path: str, name: str) -> None:
    """Run one statistic and print its times and memory."""
    trace = Trace.open(path)
    started, processor = time.perf_counter(), time.process_time()
    if name == "task_correlation":
        stats.task_correlation(trace, scores=SCORES)
    else:
        checkpoints = {0: trace} if DIAGNOSTICS[name].takes("checkpoints") else None
        diagnose(trace, name, label=LABELS.get(name), checkpoints=checkpoints)
    result = {
        "seconds": round(time.perf_counter() - started, 2),
        "processor_seconds": round(time.process_time() - processor, 2),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(result))


def together(path: str, workers: int) -> None:
    """Run all statistics in one go, as `inspect TRACE --report` does, and print times and memory of all processes."""
    from moeworks.stats.everything import diagnose_all

    trace = Trace.open(path)
    started = time.perf_counter()
    told = diagnose_all(trace, checkpoints={0: trace}, workers=workers)
    seconds = time.perf_counter() - started
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result = {
        "workers": workers,
        "statistics": sum(one.table is not None for one in told),
        "without": {one.what: one.reason for one in told if one.table is None},
        "seconds": round(seconds, 2),
        "processor_seconds": round(sum(one.ru_utime + one.ru_stime for one in used), 2),
        "peak_megabytes_of_largest_process": round(max(one.ru_maxrss for one in used) / 1024),
        "seconds_of_each": {one.what: round(one.seconds, 2) for one in told},
    }
    print(json.dumps(result))


def naive_srp(ids: np.ndarray, texts: np.ndarray, segments: tuple[int, ...]) -> list[float]:
    found = []
    for m in segments:
        histogram = np.zeros(m + 1)
        for text in np.unique(texts):
            own = ids[texts == text]
            for p in range(len(own) - m + 1):
                f = np.bincount(own[p : p + m].ravel(), minlength=EXPERTS)
                histogram += np.bincount(f, minlength=m + 1)
        a, runs = np.arange(m + 1), (np.arange(m + 1) * histogram).sum()
        found.append(max(2 * (a[i:] * histogram[i:]).sum() / (m * histogram[i:].sum() + runs) for i in a))
    return found


def naive_sch(ids: np.ndarray, texts: np.ndarray, segments: tuple[int, ...], sizes: tuple[int, ...]) -> list[float]:
    found = []
    for m in segments:
        for size in sizes:
            hits = uses = 0
            for text in np.unique(texts):
                own = ids[texts == text].tolist()
                cache: set[int] = set()
                seen: set[int] = set()
                stamp: dict[int, int] = {}
                clock = 0
                future = [0] * EXPERTS
                for row in own[: m - 1]:
                    for e in row:
                        future[e] += 1
                for i, row in enumerate(own):
                    if i + m - 1 < len(own):
                        for e in own[i + m - 1]:
                            future[e] += 1
                    new = 0
                    for e in row:
                        uses += 1
                        fresh = e not in seen
                        hits += e in cache or (fresh and len(seen) + new < size)
                        new += fresh
                    for e in row:
                        seen.add(e)
                        future[e] -= 1
                        clock += 1
                        stamp[e] = clock
                        if e not in cache:
                            if len(cache) == size:
                                cache.remove(min(cache, key=lambda y: (future[y], stamp[y])))
                            cache.add(e)
            found.append(hits / uses)
    return found


def naive_coactivation(ids: np.ndarray) -> np.ndarray:
    counts = np.zeros((EXPERTS, EXPERTS))
    for row in ids:
        for i in row:
            for j in row:
                if i != j:
                    counts[i, j] += 1
    return counts


def naive_saturation(ids: np.ndarray, final: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / TOP_K for a, b in zip(ids.tolist(), final.tolist(), strict=True)]))


def naive_divergence(ids: np.ndarray, weights: np.ndarray, languages: np.ndarray) -> list[float]:
    means = {}
    for language in LANGUAGES:
        rows = np.flatnonzero(languages == language)
        total = np.zeros(EXPERTS)
        for row in rows:
            dense = np.zeros(EXPERTS)
            dense[ids[row]] = weights[row] / weights[row].sum()
            total += dense
        means[language] = total / len(rows)

    def entropy(p: np.ndarray) -> float:
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    p = means["en"]
    return [(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2) / np.log(2) for n, q in means.items() if n != "en"]


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    value = function()
    return time.process_time() - started, value


def ratios(rows: int, documents: int) -> dict[str, Any]:
    """Return processor seconds of the naive way and of ours on the same tokens of one layer."""
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_trace(Path(folder) / "trace", rows, documents, layers=1)
        trace = Trace.open(Path(folder) / "trace")
        ids, weights, texts = trace.ids(0), trace.weights(0), trace.rows().request
        languages = np.array([LANGUAGES[i % len(LANGUAGES)] for i in texts])
        segments, few = (4, 16, 64), Where(labels={"lang": ("fr",)})
        part = few.mask(trace.rows(), trace.request_table())
        bare: dict[str, Any] = {"bootstrap": 1}
        arms: dict[str, tuple[Callable[[], Any], Callable[..., Any], dict[str, Any]]] = {
            "srp": (
                lambda: naive_srp(ids, texts, segments),
                lambda **o: [r["srp"] for r in stats.srp(trace, segments=segments, sample=0, **o).to_pylist()][:3],
                bare,
            ),
            "sch_rolling": (
                lambda: naive_sch(ids[part], texts[part], (4, 16), (8, 12, 16, 24)),
                lambda **o: stats.sch_rolling(
                    trace, where=few, segments=(4, 16), capacities=(1, 1.5, 2, 3), sample=0, **o
                )["hit_rate"].to_pylist(),
                bare,
            ),
            "coactivation": (
                lambda: naive_coactivation(ids)[np.triu_indices(EXPERTS, 1)].sum(),
                lambda **o: sum(stats.coactivation(trace, sample=0, top=0, **o)["together"].to_pylist()),
                bare,
            ),
            "saturation": (
                lambda: naive_saturation(ids, ids),
                lambda **o: stats.saturation([trace], trace, **o)["overlap"].to_pylist()[0],
                bare,
            ),
            "divergence": (
                lambda: sorted(naive_divergence(ids, weights.astype(float), languages)),
                lambda **o: sorted(stats.divergence(trace, source="weights", **o)["divergence"].to_pylist()),
                {"bootstrap": 1, "permutations": 1},
            ),
        }  # fmt: skip
        for name, (naive, ours, few_draws) in arms.items():
            ours(**few_draws)  # compiles
            slow, expected = timed(naive)
            quick, found = min((timed(lambda: ours(**few_draws)) for _ in range(3)), key=lambda one: one[0])  # noqa: B023
            whole, _ = timed(ours)
            assert np.allclose(found, expected, atol=1e-6), (name, found, expected)
            tokens = int(part.sum()) if name == "sch_rolling" else rows
            report[name] = {
                "tokens": tokens,
                "naive_seconds": round(slow, 3),
                "ours_seconds": round(quick, 4),
                "ours_with_null_and_interval_seconds": round(whole, 4),
                "ratio": round(slow / quick, 1),
                "ratio_with_null_and_interval": round(slow / whole, 1),
            }
            print(name, report[name], file=sys.stderr, flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--ratio-rows", type=int, default=200_000)
    parser.add_argument("--only", nargs="*", help="names of diagnostics")
    parser.add_argument("--ratios-only", action="store_true", help="leave out the timing of all statistics")
    parser.add_argument("--trace", type=Path, help="keep the synthetic trace here, and use it if it is there")
    parser.add_argument("--together", type=int, metavar="WORKERS", help="all in one go, shared by so many processes")
    parser.add_argument("--run-together", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=2, metavar=("TRACE", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(*arguments.run)
        return
    if arguments.run_together:
        together(arguments.run_together[0], int(arguments.run_together[1]))
        return
    results: dict[str, Any] = {}
    whole: dict[str, Any] = {}
    if not arguments.ratios_only:
        with tempfile.TemporaryDirectory() as folder:
            path = arguments.trace or Path(folder) / "trace"
            if not path.exists():
                write_trace(path, arguments.rows, arguments.documents)
            if arguments.together:
                command = [sys.executable, __file__, "--run-together", str(path), str(arguments.together)]
                whole = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print("together", whole, file=sys.stderr, flush=True)
            for name in () if arguments.together else arguments.only or DIAGNOSTICS:
                command = [sys.executable, __file__, "--run", str(path), name]
                results[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print(name, results[name], file=sys.stderr, flush=True)
    totals = {
        "processor_seconds": round(sum(one["processor_seconds"] for one in results.values()), 1),
        "peak_megabytes": max((one["peak_megabytes"] for one in results.values()), default=0),
    }
    report = {
        "benchmark": "inspect_statistics",
        "conditions": {
            "rows": arguments.rows,
            "documents": arguments.documents,
            "layers": LAYERS,
            "experts": EXPERTS,
            "top_k": TOP_K,
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "total": totals,
        "together": whole,
        "statistics": results,
        "ratios": {} if arguments.only else ratios(arguments.ratio_rows, arguments.ratio_rows // 500),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
