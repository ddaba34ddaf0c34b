"""`moeworks record`: run texts through a model and write down what its routers decide."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moeworks.cli.options import (
    BatchSize,
    Data,
    Device,
    Dtype,
    EngineName,
    Json,
    Model,
    OptionalPlan,
    Seed,
    command_line,
    has_terminal,
    labels_of,
    open_engine,
    read_plan,
)


def command(
    model: Model,
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the trace to write.", show_default=False)],
    logits: Annotated[bool, typer.Option("--logits", help="Record the routers' logits too.")] = False,
    generate: Annotated[int, typer.Option("--generate", min=0, help="Tokens to generate after each text.")] = 0,
    where: Annotated[str, typer.Option("--where", help="Keep only these tokens, as in 'phase=generated'.")] = "",
    plan: OptionalPlan = None,
    sample: Annotated[
        float | None, typer.Option("--sample", min=0, max=1, help="Keep this share of the tokens; the rest is counted.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Stop after so many texts.")] = None,
    long: Annotated[
        Literal["truncate", "split", "error"],
        typer.Option("--long", help="What becomes of a text that is longer than the model's context."),
    ] = "truncate",
    text_column: Annotated[str, typer.Option("--text-column", help="Column of the data that holds the text.")] = "text",
    per: Annotated[
        Literal["line", "paragraph", "file"], typer.Option("--per", help="What one text of a plain text file is.")
    ] = "line",
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="Label for every text; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a recording that was interrupted.")] = False,
    batch_size: BatchSize = 8,
    engine: EngineName = "",
    ray_workers: Annotated[
        int, typer.Option("--ray-workers", min=0, help="Workers of --engine ray or ray:vllm; 2, unless given.")
    ] = 0,
    ray_shard: Annotated[
        int, typer.Option("--ray-shard", min=0, help="Texts a worker records at a time; 32 batches, unless given.")
    ] = 0,
    device: Device = "",
    dtype: Dtype = "",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run texts through a model and record which experts its routers choose, token by token.

    Memory does not grow with the data. What is written survives a crash: the same line with --resume goes on.
    With --engine ray, or ray:vllm, shards of the data are recorded on several workers and joined into one trace.
    """
    from moeworks.cli.output import print_json
    from moeworks.errors import BadData
    from moeworks.record import record
    from moeworks.where import Where

    labels, clause, steering = labels_of(label), Where.parse(where), read_plan(plan)
    if (ray_workers or ray_shard) and engine.partition(":")[0] != "ray":
        raise BadData("--ray-workers and --ray-shard go with --engine ray or ray:vllm.")
    trace = record(
        lambda: open_engine(model, engine, device=device, dtype=dtype, workers=ray_workers, shard=ray_shard),
        data,
        output,
        where=clause,
        sample=sample,
        limit=limit,
        text_column=text_column,
        per=per,
        labels=labels,
        plan=steering,
        logits=logits,
        generate=generate,
        batch_size=batch_size,
        long=long,
        resume=resume,
        seed=seed,
        progress=has_terminal(),
        command=command_line(),
    )
    if json:
        print_json(trace.info())
    else:
        print(f"{output}: {len(trace)} tokens of {trace.requests.num_rows} texts, {len(trace.layers)} layers.")
        for what, count in trace.header.dropped.items():
            if count:
                print(f"Left out: {count} ({what.replace('_', ' ')}).")
