"""`moeworks place cache`: what a cache of experts hits, by policy and capacity, and whether pinning is worth it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moeworks.cli.options import Json, Seed
from moeworks.cli.place.options import (
    Batch,
    ExpertBytes,
    Hidden,
    PhaseName,
    Precision,
    TraceFolder,
    WhereClause,
    bytes_of_expert,
    clause,
    open_trace,
)

if TYPE_CHECKING:
    from moeworks.place import CacheCurve


def command(
    trace: TraceFolder,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="random, fixed, lru, lfu, lfru, predictor, least_stale, sch, belady_forced, belady; repeatable; all, "
            "unless given.",
            show_default=False,
        ),
    ] = None,
    capacity: Annotated[
        str,
        typer.Option("--capacity", help="What the answer is for: 8 (experts a layer), 2k, 25% or 4GB (all layers)."),
    ] = "2k",
    at: Annotated[
        list[str] | None,
        typer.Option("--at", metavar="CAPACITY", help="More points of the curve; repeatable; a grid, unless given."),
    ] = None,
    where: WhereClause = "",
    phase: PhaseName = None,
    batch: Batch = 1,
    scope: Annotated[
        Literal["layer", "pooled"], typer.Option("--scope", help="A cache for each layer, or one pool for all.")
    ] = "layer",
    prefill: Annotated[
        Literal["tokens", "pass", "bypass"],
        typer.Option("--prefill", help="Prompts token by token, as one event each, or past the cache."),
    ] = "tokens",
    cold: Annotated[
        Literal["miss", "hit", "skip"],
        typer.Option("--cold", help="What an expert's first use counts as while places are free."),
    ] = "miss",
    pin: Annotated[bool, typer.Option("--pin/--no-pin", help="Whether a step's own experts cannot be evicted.")] = True,
    bypass: Annotated[bool, typer.Option("--bypass", help="Policies may leave newcomers out.")] = False,
    between: Annotated[
        Literal["keep", "empty"], typer.Option("--between", help="What becomes of the cache between texts.")
    ] = "keep",
    lookahead: Annotated[
        int, typer.Option("--lookahead", min=1, help="Tokens that sch knows and predictor estimates.")
    ] = 16,
    bandwidth: Annotated[
        str, typer.Option("--bandwidth", metavar="BYTES/S", help="Print times: bytes a second of a load, as in 25GB.")
    ] = "",
    compute: Annotated[
        float, typer.Option("--compute", min=0, help="Milliseconds of a token if everything were there.")
    ] = 0.0,
    recall: Annotated[
        float, typer.Option("--recall", min=0, max=1, help="Share of misses that a prefetch foresees.")
    ] = 0.0,
    distance: Annotated[int, typer.Option("--distance", min=0, help="Layers ahead that it foresees them.")] = 0,
    wasted: Annotated[
        float, typer.Option("--wasted", min=0, help="Experts that it loads in vain a token and layer.")
    ] = 0.0,
    expert_bytes: ExpertBytes = "",
    hidden: Hidden = None,
    precision: Precision = "bfloat16",
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw the curve: a .png or .svg to write.", show_default=False)
    ] = None,
    calibration: Annotated[
        float, typer.Option("--calibration", min=0, max=1, help="Share of documents to learn from; none is measured.")
    ] = 0.5,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Simulate caches of experts, and say whether a pinned set is worth it for this traffic.

    Half of the documents teach (the pinned set, the predictor), the others are measured. Every hit rate stands beside
    chance and Belady's bound; without its batch size and phase no hit rate means anything.
    """
    from moeworks.cli.output import print_json
    from moeworks.errors import BadData
    from moeworks.place import CacheRules, cache_curve
    from moeworks.place.rules import as_policies

    opened = open_trace(trace)
    size = bytes_of_expert(opened.header.model, expert_bytes, hidden, precision)
    if bandwidth and size is None:
        raise BadData("times need the bytes of an expert; give --expert-bytes, or --hidden and --precision.")
    rules = CacheRules(
        scope=scope, capacity=capacity, pin=pin, cold=cold, bypass=bypass, batch=batch, prefill=prefill,
        between=between, lookahead=lookahead,
    )  # fmt: skip
    curve = cache_curve(
        opened, policies=as_policies(policy, rules), capacities=at, rules=rules, where=clause(where, phase),
        expert_bytes=size, calibration_share=calibration, seed=seed,
    )  # fmt: skip
    times = _times(curve, size, bandwidth, compute, recall, distance, wasted) if bandwidth and size else []
    if picture is not None:
        from moeworks.place.picture import save_curve

        save_curve(curve, picture)
    if json:
        print_json({"trace": str(trace), "seed": seed, **curve.as_json(), "times": times})
        return
    _show(curve, times, size)


def _times(
    curve: CacheCurve, size: float, bandwidth: str, compute: float, recall: float, distance: int, wasted: float
) -> list[dict[str, Any]]:
    from moeworks.place.timing import parse_bytes, token_time

    policies = dict.fromkeys(curve.layers["policy"].to_pylist())
    rows = curve.layers.to_pylist()
    found = []
    for policy in policies:
        misses = [row["misses_per_token"] for row in rows if row["policy"] == policy]
        time = token_time(
            misses, expert_bytes=size, bandwidth=parse_bytes(bandwidth), compute=compute / 1000, recall=recall,
            distance=distance, wasted=wasted,
        )  # fmt: skip
        found.append({"policy": policy, **time.as_json()})
    return found


def _show(curve: CacheCurve, times: list[dict[str, Any]], size: float | None) -> None:
    from moeworks.cli.output import print_table

    if curve.pinning is not None:
        print(f"Is static pinning worth it here? {curve.pinning.answer}\n")
    rows = curve.table.to_pylist()
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    lines = []
    for capacity in dict.fromkeys(row["capacity"] for row in rows):
        mine = [row for row in rows if row["capacity"] == capacity]
        head = [capacity, f"{mine[0]['held']:g}", f"{100 * mine[0]['chance']:.1f}"]
        lines.append([*head, *(f"{100 * row['hit_rate']:.1f}" for row in mine)])
    print_table(["capacity", "experts a layer", "chance", *policies], lines)
    phases = ", ".join(f"{count:,} {phase}" for phase, count in curve.phases.items())
    rules = curve.rules
    print(
        f"\nHit rates in % of requests, {phases} tokens of {curve.documents} documents, batch {rules.batch}, "
        f"{'one pool' if rules.scope == 'pooled' else 'a cache for each layer'}, prefill {rules.prefill}, first uses "
        f"count as {rules.cold}; --json has intervals and layers."
    )
    if set(curve.phases) == {"prompt"} and rules.prefill == "tokens":
        print(
            "All of these are prompt tokens, read one by one as if they were decoded; real decode may route otherwise."
        )
    for knee in curve.knees.to_pylist():
        if knee["policy"] == "lru":
            print(_knee(knee))
    at = next(one for one in curve.admission.to_pylist() if one["capacity"] == rules.capacity)
    if at["admission_share"] is not None:
        print(
            f"At {rules.capacity}, {100 * at['admission_share']:.0f} % of the gap between {at['best_causal']} and "
            "Belady's bound comes from keeping every newcomer, the rest from evicting the wrong ones."
        )
    if size is not None:
        print(f"\nOne expert has {size:,.0f} bytes as served.")
    if times:
        print_table(
            ["policy", "ms a token", "ms of loads", "overlapped", "MB a token"],
            [
                [
                    one["policy"],
                    *(f"{1000 * one[name]:.3f}" for name in ("seconds", "loading", "hidden")),
                    f"{one['bytes_per_token'] / 1e6:.3f}",
                ]
                for one in times
            ],
        )


def _knee(knee: dict[str, Any]) -> str:
    if knee["capacity"] is None:
        return "LRU has no knee here: it is nowhere 2 points above chance."
    ends = "" if knee["low"] is None else f" (from resampled documents {knee['low']:g} to {knee['high']:g})"
    return (
        f"Knee of LRU, farthest above chance: {knee['held']:g} experts a layer{ends}, {100 * knee['gain']:.1f} points "
        "above."
    )
