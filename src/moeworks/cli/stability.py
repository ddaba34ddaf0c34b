"""`moeworks stability`: the same texts alone and in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeworks.cli.compare import Label, Picture, WhereClause, show
from moeworks.cli.options import (
    BatchSize,
    Data,
    Device,
    Dtype,
    EngineName,
    Json,
    Model,
    Seed,
    command_line,
    has_terminal,
    open_engine,
)


def command(
    model: Model,
    data: Data,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Keep both traces in this folder.", show_default=False)
    ] = None,
    generate: Annotated[int, typer.Option("--generate", min=0, help="Tokens to generate after each text.")] = 0,
    limit: Annotated[int, typer.Option("--limit", min=2, help="Stop after so many texts.")] = 64,
    where: WhereClause = "",
    label: Label = None,
    picture: Picture = None,
    batch_size: BatchSize = 8,
    engine: EngineName = "",
    device: Device = "",
    dtype: Dtype = "",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Record the same texts alone and in batches and compare what the routers decide.

    Kernels round differently for other shapes, so that near-ties may flip; anything else that differs is a bug.
    """
    from itertools import islice

    from moeworks.compare import stability
    from moeworks.data import read_examples
    from moeworks.where import Where

    found = stability(
        open_engine(model, engine, device=device, dtype=dtype),
        list(islice(read_examples(data), limit)),
        output,
        batch_size=batch_size,
        generate=generate,
        where=Where.parse(where),
        label=label,
        seed=seed,
        progress=has_terminal(),
        command=command_line(),
    )
    show(found, picture=picture, json=json)
