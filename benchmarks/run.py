"""Runs all benchmarks one after another and writes docs/benchmarks.md: results and conditions.

python benchmarks/run.py            # about five minutes on two idle cores
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"


def run(script: str, *arguments: str) -> dict[str, Any]:
    """Return the JSON that a benchmark prints."""
    print(f"{script} …", file=sys.stderr, flush=True)
    command = [sys.executable, str(HERE / script), *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(output[output.index("{") :])
    return result


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def ratios(title: str, arms: dict[str, dict[str, Any]], targets: dict[str, float]) -> str:
    rows = [
        (
            name,
            f"{arm['ratio']:.3f}",
            "{:.3f} to {:.3f}".format(*arm["quartiles"]),
            targets.get(name, ""),
            arm["milliseconds"],
        )
        for name, arm in arms.items()
    ]
    return f"### {title}\n\n" + table(
        ("what", "× bare model", "middle half of the rounds", "target at most", "ms"), rows
    )


def processor() -> str:
    """Return the processor's own name for itself, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    overhead = run("engine_overhead.py")
    prefill, decode = (overhead[name] for name in overhead if name != "conditions")
    permutations, opening, startup = run("find_permutations.py"), run("trace_open.py"), run("startup.py")
    passes = [
        arm["sums_decisions_per_second"]
        for arm in run("find_scores.py")["results"].values()
        if arm["reads"] != "probabilities" and arm["sums_decisions_per_second"]
    ]
    memory = startup["record_memory"]
    caches = run("place_cache.py")["results"]
    served = run("serve_overhead.py")
    page_ = run("view_page.py", "--logits")
    collecting = run("edit_statistics.py")["results"]
    inspected = run("inspect_statistics.py", "--rows", "200000", "--documents", "400", "--together", "2",
                    "--ratio-rows", "50000")  # fmt: skip
    all_at_once = inspected["together"]
    fixed, refined = permutations["results"]["fixed"], permutations["results"]["refine"]
    others = [
        ("risk difference, 1,000 document permutations, 1 M tokens × 6 layers × 32 experts",
         f"{fixed['find_seconds']:.2f} s, {fixed['peak_megabytes']:.0f} MB", "10 s, 1024 MB"),
        (f"the same with small p-values refined ({refined['permutations_drawn']:,} permutations)",
         f"{refined['find_seconds']:.2f} s, {refined['peak_megabytes']:.0f} MB", "10 s, 1024 MB"),
        ("counting, decisions (token × layer) a second on one core",
         f"{permutations['counting_decisions_per_second'] / 1e6:.0f} million", ""),
        ("the slowest pass of a score that reads choices or weights, decisions a second of one core",
         f"{min(passes) / 1e6:.0f} million", "at least 20 million"),
        *(
            (f"simulated cache, {policy}: requests a second of one core; against plain Python",
             f"{arm['million_requests_a_second']:.0f} million; {arm['times_faster']:.0f} × faster", "")
            for policy, arm in caches.items() if "times_faster" in arm
        ),
        (f"all {all_at_once['statistics']} statistics of `inspect`, {inspected['conditions']['rows']:,} tokens × "
         "16 layers × 8 of 64, two processes; of one core",
         f"{all_at_once['seconds']:.0f} s; {all_at_once['processor_seconds']:.0f} s, "
         f"{all_at_once['peak_megabytes_of_largest_process']} MB the larger process", "60 s, 2048 MB at 10 M tokens"),
        *(
            (f"{name.replace('_', ' ')}, {arm['tokens']:,} tokens: against the published way in plain Python",
             f"{arm['ratio']:.0f} × faster; {arm['ratio_with_null_and_interval']:.0f} × with chance and interval",
             "at least 20 ×")
            for name, arm in inspected["ratios"].items()
        ),
        *(
            (f"collecting: the reference way (every expert on every token) against all cheap statistics, {name}",
             f"{arm['reference_times_as_long_as_cheap']} × as long, "
             f"{arm['extra_work_of_reference_over_cheap']} × the extra work",
             f"at least {arm['target_at_least']:g} × the extra work")
            for name, arm in collecting.items()
        ),
        (f"opening a trace of {opening['rows']:,} tokens ({opening['megabytes']:.0f} MB)",
         f"{opening['open_first_seconds']:.4f} s", "0.1 s"),
        ("reading all its ids", f"{opening['read_all_ids_seconds']:.2f} s", ""),
        ("writing it", f"{opening['write_rows_per_second'] / 1e6:.2f} million tokens a second", ""),
        ("`import moeworks`", f"{startup['import_seconds']:.2f} s", "0.5 s"),
        ("`moeworks --help`", f"{startup['help_seconds']:.2f} s", "0.8 s"),
        *(
            (f"peak memory of a process that records {run_['texts']:,} texts ({run_['rows']:,.0f} tokens)",
             f"{run_['peak_after_megabytes']} MB", "the same for all")
            for run_ in memory
        ),
        (f"`moeworks view`: first token of a trace of {page_['conditions']['rows']:,} tokens painted",
         f"{page_['first_token_ms']['median'] / 1000:.2f} s, the first time "
         f"{page_['first_token_ms']['first_round'] / 1000:.2f} s", "2 s"),
        ("scrolling through it, frames a second; a page that only scrolls, beside it",
         f"{page_['scrolling']['frames_a_second']} (95 in a hundred within {page_['scrolling']['p95_ms']} ms); "
         f"{page_['scrolling_a_bare_page']['frames_a_second']}", "at least 30"),
    ]  # fmt: skip
    page = "\n\n".join(
        [
            "# Benchmarks",
            "Written by `make bench`. Ratios come from arms that ran in turn in one process, as the median over "
            "rounds of arm / bare model; times are of this one machine and only for orientation.",
            f"Date {datetime.date.today()}; {processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
            f"Python {platform.python_version()}; {overhead['conditions']['engine']['version']}, "
            f"{overhead['conditions']['engine']['dtype']}, {overhead['conditions']['threads']} threads, "
            f"{overhead['conditions']['rounds']} rounds, three times as many in decode.",
            "## What recording and steering cost",
            ratios(
                "Prefill: 8 texts of 256 tokens, lab model",
                prefill,
                {
                    "record ids and weights, written": 1.05,
                    "record with logits": 1.10,
                    "ten experts demoted": 1.05,
                    "empty plan": 1.02,
                },
            ),
            "The peers are transformers' own `output_router_logits=True`, which keeps logits and neither ids nor "
            "weights, and a plain nnsight trace that saves what the routers return.",
            ratios(
                "Decode: one text, token by token, lab model",
                decode,
                {"record ids and weights": 1.10, "ten experts demoted": 1.10, "empty plan": 1.02},
            ),
            "## What the embedded server costs",
            ratios(
                f"One request after another, {served['conditions']['tokens']} tokens each, lab model",
                served["serve"],
                {"whole answer": 1.10},
            ),
            "Here the bare model is `engine.generate`, and for the last arm `engine.generate` with the same plan; "
            "client and server share one process.",
            "## What collecting statistics for editing costs",
            *(
                ratios(
                    f"{name}: {arm['tokens']:,} tokens, {arm['layers']} layers, "
                    f"{arm['top_k']} of {arm['experts']} experts",
                    arm["arms"],
                    {"cheap": 1.6},
                )
                for name, arm in collecting.items()
            ),
            "## Everything else",
            table(("what", "measured", "target at most"), others),
        ]
    )
    PAGE.write_text(page + "\n")
    print(PAGE.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
