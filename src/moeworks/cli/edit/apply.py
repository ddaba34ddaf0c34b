"""`moeworks edit apply`: write the checkpoint that an edit plan describes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moeworks.cli.options import Json, Model, has_terminal

__all__ = ["command"]


def command(
    model: Model,
    plan: Annotated[Path, typer.Option("--plan", metavar="PLAN", help="The edit plan.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of the new checkpoint.", show_default=False)
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option("--statistics", help="What the plan was made from, for merges that need it.", show_default=False),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", help="Of a weight file, such as 5GB; as the source's unless given.")
    ] = "",
    pad: Annotated[
        bool, typer.Option("--pad", help="Fill poorer layers up with experts that are never chosen.")
    ] = False,
    layout: Annotated[
        Literal["rows", "copies"],
        typer.Option("--layout", help="Merged experts: one router row each, or all members with the same weights."),
    ] = "rows",
    format: Annotated[
        Literal["stock", "uneven"],
        typer.Option("--format", help="uneven allows unequal numbers of experts; stock programs do not read it."),
    ] = "stock",
    tables: Annotated[
        Literal["refuse", "replace"],
        typer.Option("--tables", help="Where a table of token ids names experts that go (DeepSeek-V4)."),
    ] = "refuse",
    expert_parallel: Annotated[
        int, typer.Option("--expert-parallel", min=1, help="The number of experts must be a multiple of this.")
    ] = 1,
    hash_override: Annotated[
        str, typer.Option("--hash-override", metavar="HASH", help="The plan's weight hash, if other weights are meant.")
    ] = "",
    compare: Annotated[
        bool,
        typer.Option("--compare/--no-compare", help="See that the weights are the plan's, if they fit into memory."),
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, or why it cannot be, and write nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what an interrupted run has finished.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output.")] = False,
    json: Json = False,
) -> None:
    """Write a smaller, merged or recombined checkpoint, shard by shard; whatever cannot be is refused first."""
    from dataclasses import asdict

    from moeworks.cli.output import print_json
    from moeworks.edit.apply import Applied, apply, check_apply
    from moeworks.edit.files import load_edit_plan
    from moeworks.edit.statistics_file import Statistics
    from moeworks.errors import BadData

    edit_plan = load_edit_plan(plan)
    if output is None and not dry_run:
        raise BadData("name the folder to write with -o, or look first with --dry-run.")
    seen = None if statistics is None else Statistics.open(statistics)
    limit = _bytes(max_shard_size) if max_shard_size else None
    if output is None or dry_run:
        forecast = check_apply(
            model,
            edit_plan,
            statistics=seen,
            max_shard_bytes=limit,
            layout=layout,
            pad=pad,
            format=format,
            tables=tables,
            expert_parallel=expert_parallel,
            hash_override=hash_override or None,
            compare=compare,
        )
    else:
        forecast = apply(
            model,
            edit_plan,
            output,
            statistics=seen,
            max_shard_bytes=limit,
            overwrite=overwrite,
            resume=resume,
            layout=layout,
            pad=pad,
            format=format,
            tables=tables,
            expert_parallel=expert_parallel,
            hash_override=hash_override or None,
            compare=compare,
            progress=has_terminal(),
        )
    if json:
        print_json(asdict(forecast))
        return
    counts = " or ".join(map(str, sorted(set(forecast.counts.values()))))
    left = forecast.bytes_after / forecast.bytes_before
    print(
        f"{counts} experts in each of {len(forecast.counts)} layers; {forecast.bytes_before / 1e9:.3f} GB become "
        f"{forecast.bytes_after / 1e9:.3f} GB ({left:.0%}) in {forecast.shards} file{'s' * (forecast.shards > 1)}."
    )
    for note in forecast.notes:
        print(note)
    if isinstance(forecast, Applied):
        resumed = f" {forecast.resumed_shards} of its files were there already." if forecast.resumed_shards else ""
        print(f"Written to {forecast.output}.{resumed}")
    else:
        print("Nothing speaks against it; nothing was written.")


def _bytes(words: str) -> int:
    """Return the bytes that a size such as 5GB or 500MB means, in powers of ten."""
    import re

    from moeworks.errors import BadData

    found = re.fullmatch(r"(?i)\s*(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB)?\s*", words)
    if found is None or float(found[1]) <= 0:
        raise BadData(f"'{words}' is no size; write a number and a unit, as in 5GB or 500MB.")
    return int(float(found[1]) * 1000 ** ("B", "KB", "MB", "GB", "TB").index((found[2] or "B").upper()))
