"""`moeworks edit score`: collect the statistics that every plan is made from, in one resumable pass over texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from moeworks.cli.options import (
    BatchSize,
    Data,
    Device,
    Dtype,
    Json,
    Model,
    Seed,
    command_line,
    has_terminal,
    open_engine,
)

__all__ = ["command"]


def command(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of statistics to write.", show_default=False)],
    collect: Annotated[
        str,
        typer.Option(
            "--collect",
            metavar="GROUPS",
            help="Out of cheap, router, means, everywhere, neurons, gradients, sets; see edit plan --list.",
        ),
    ] = "cheap,router",
    label: Annotated[
        str | None, typer.Option("--label", metavar="NAME", help="Tell texts apart by this label, such as domain.")
    ] = None,
    rows: Annotated[
        int, typer.Option("--rows", min=0, help="Rows of text to keep, for methods that need activations.")
    ] = 0,
    stream: Annotated[
        bool, typer.Option("--stream", help="One decoder layer in memory at a time, for models larger than memory.")
    ] = False,
    check_plan: Annotated[
        Path | None,
        typer.Option("--check-plan", metavar="PLAN", help="Check first that a plan like this can be applied."),
    ] = None,
    check_keep: Annotated[
        float, typer.Option("--check-keep", help="Without a plan: check first that this share can be kept.")
    ] = 0.75,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Check first that a cut model could be saved.")
    ] = True,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Stop after so many texts.")] = None,
    long: Annotated[
        Literal["truncate", "split", "error"],
        typer.Option("--long", help="What becomes of a text that is longer than the model's context."),
    ] = "truncate",
    text_column: Annotated[str, typer.Option("--text-column", help="Column of the data that holds the text.")] = "text",
    per: Annotated[
        Literal["line", "paragraph", "file"], typer.Option("--per", help="What one text of a plain text file is.")
    ] = "line",
    checkpoint_every: Annotated[
        int, typer.Option("--checkpoint-every", min=1, help="Batches after which the sums are written.")
    ] = 50,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    batch_size: BatchSize = 8,
    device: Device = "",
    dtype: Dtype = "",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run texts through a model and add up, for every expert, what scores, groupings and merges are functions of.

    The folder serves every method at every ratio. Its cost is told first, and a cut that could not be saved is refused
    before anything runs. The same line with --resume goes on after an interruption.
    """
    import itertools

    from moeworks.cli.output import print_json
    from moeworks.data import read_examples
    from moeworks.edit.collect import COLLECTABLE, columns_of
    from moeworks.edit.collect import collect as collect_statistics
    from moeworks.edit.collecting.cost import Cost
    from moeworks.edit.collecting.save_path import check_save_path
    from moeworks.edit.stream import stream as stream_statistics
    from moeworks.errors import BadData

    groups = tuple(dict.fromkeys(word.strip() for word in collect.split(",") if word.strip()))
    if not groups:
        raise BadData(f"--collect names no group; give some of {', '.join(COLLECTABLE)}.")
    columns_of(groups)
    texts = read_examples(data, text=text_column, per=per, limit=limit)
    examples = itertools.chain([next(texts)], texts)  # a wrong name or an empty file is found before a model is loaded
    if check and model != "fake":
        plan = None
        if check_plan is not None:
            from moeworks.edit.files import load_edit_plan

            plan = load_edit_plan(check_plan)
        check_save_path(model, keep=check_keep, plan=plan)

    def announce(cost: Cost) -> None:
        typer.echo(f"moeworks: {cost.sentence()}", err=True)

    options: dict[str, Any] = {
        "label": label,
        "groups": groups,
        "rows": rows,
        "batch_size": batch_size,
        "resume": resume,
        "seed": seed,
        "long": long,
        "command": command_line(),
        "progress": has_terminal(),
        "announce": announce,
    }
    if stream:
        options |= {name: value for name, value in (("dtype", dtype), ("device", device)) if value}
        statistics = stream_statistics(model, examples, output, **options)
    else:
        engine: Any = open_engine(model, "", device=device, dtype=dtype)
        statistics = collect_statistics(engine, examples, output, checkpoint_every=checkpoint_every, **options)
    header = statistics.header
    if json:
        print_json({**header.model_dump(mode="json", exclude={"layers"}), "layers": statistics.layers})
        return
    print(f"{output}: {sum(header.tokens):,} tokens of {header.texts:,} texts, {len(header.layers)} layers.")
    if header.label:
        counts = ", ".join(f"{v} {n:,}" for v, n in zip(header.labels, header.tokens, strict=True))
        print(f"Tokens by {header.label}: {counts}.")
    if header.truncated:
        print(f"Left out: {header.truncated:,} tokens of texts longer than the context.")
    refused: dict[str, str] = {}
    for entry in header.layers:
        for name, reason in entry.refused.items():
            refused.setdefault(name, reason)
    for name, reason in refused.items():
        print(f"Not collected: {name} ({reason}).")
