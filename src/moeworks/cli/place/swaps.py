"""`moeworks place swaps`: cache-conditional routing, counted and not applied."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from moeworks.cli.options import Json, Seed
from moeworks.cli.place.options import PhaseName, TraceFolder, WhereClause, clause, open_trace, shown


def command(
    trace: TraceFolder,
    strength: Annotated[float, typer.Option("--strength", min=0, help="Bonus of resident experts, lambda.")] = 0.1,
    kept: Annotated[int, typer.Option("--kept", min=0, help="Experts that are never swapped: 1, or 2 if small.")] = 1,
    capacity: Annotated[str, typer.Option("--capacity", help="8 (experts a layer), 2k or 25%.")] = "2k",
    admission: Annotated[
        Literal["recorded", "chosen", "background"],
        typer.Option(
            "--admission", help="What the cache sees: routing as recorded, swapped, or swapped and both kept."
        ),
    ] = "background",
    where: WhereClause = "",
    phase: PhaseName = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Count how often a bonus for resident experts would swap one, from recorded logits, without applying it."""
    from moeworks.cli.output import print_json, print_table
    from moeworks.place.swaps import conditional_swaps

    table = conditional_swaps(
        open_trace(trace), strength=strength, kept=kept, capacity=capacity, admission=admission,
        where=clause(where, phase), seed=seed,
    )  # fmt: skip
    if json:
        print_json(
            {
                "trace": str(trace), "strength": strength, "kept": kept, "capacity": capacity, "admission": admission,
                "seed": seed, "rows": table.to_pylist(),
            }
        )  # fmt: skip
        return
    print_table(
        ["layer", "held", "swaps", "miss rate", "without", "logits given up", "spread"],
        [
            [
                row["layer"],
                row["held"],
                shown(row["swaps"], row["low"], row["high"]),
                shown(row["miss_rate"], row["miss_low"], row["miss_high"]),
                shown(row["plain_miss_rate"], row["plain_low"], row["plain_high"]),
                shown(row["gap"]),
                shown(row["mean_spread"]),
            ]
            for row in table.to_pylist()
        ],
    )
    print(
        "\nShares of slots; without: the same LRU cache and routing as recorded. What swaps do to later layers and "
        "tokens, and to quality, is not in these numbers."
    )
