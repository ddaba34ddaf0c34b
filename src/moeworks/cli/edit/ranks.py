"""`moeworks edit ranks`: how much of the experts' weights low ranks hold, before anything is compressed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeworks.cli.options import Json, Model, has_terminal

if TYPE_CHECKING:
    import pyarrow as pa


def command(
    model: Model,
    layer: Annotated[
        list[int] | None, typer.Option("--layer", help="Only this layer; repeatable. All unless given.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Table to write, .csv.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Energy curves to draw, .png.")] = None,
    json: Json = False,
) -> None:
    """Effective rank, stable rank and energy of each projection, of single experts and of all of a layer stacked.

    A random matrix has high ranks too. Where the stack of all experts has a low one, latent experts (`edit compress
    --method mole`) may do; where only the differences have, base_delta may.
    """
    from moeworks.artefact import replace_file
    from moeworks.cli.output import print_json
    from moeworks.edit.checkpoint import open_checkpoint
    from moeworks.edit.compress.picture import save_ranks_picture
    from moeworks.edit.compress.rank_table import ranks
    from moeworks.edit.compress.run import read_layers
    from moeworks.engines.progress import Progress

    checkpoint = open_checkpoint(model)
    chosen = sorted(set(layer)) if layer else checkpoint.layers
    with Progress("Ranks", "layers", total=len(chosen), show=has_terminal() and not json) as bar:

        def counted() -> object:
            for weights in read_layers(checkpoint, chosen):
                yield weights
                bar.advance(1)

        table = ranks(counted())  # type: ignore[arg-type]
    if output is not None:
        import pyarrow.csv

        with replace_file(output) as temporary:
            pyarrow.csv.write_csv(table, temporary)
    if picture is not None:
        save_ranks_picture(read_layers(checkpoint, chosen), picture)
    if json:
        print_json(table.to_pylist())
        return
    _print(table)
    for path in (output, picture):
        if path is not None:
            print(f"Written to {path}.")


def _print(table: pa.Table) -> None:
    from statistics import fmean

    from moeworks.cli.output import print_table

    rows = table.to_pylist()
    found: list[list[object]] = []
    for stack in (row for row in rows if row["expert"] is None):
        single = [
            row
            for row in rows
            if row["expert"] is not None and (row["layer"], row["projection"]) == (stack["layer"], stack["projection"])
        ]
        for what, group in ((f"each of {len(single)}, mean", single), ("all stacked", [stack])):
            full = min(group[0]["rows"], group[0]["columns"])
            numbers = [
                fmean(row[name] for row in group)
                for name in ("effective_rank", "stable_rank", "rank_90", "rank_99", "energy_25", "energy_50")
            ]
            found.append([stack["layer"], stack["projection"], what, full, *numbers])
    columns = ["layer", "projection", "experts", "full", "effective", "stable", "90 %", "99 %", "in 1/4", "in 1/2"]
    print_table(columns, found)
    print(
        "effective and stable are ranks; 90 % and 99 % the ranks that hold so much of the squared weights; in 1/4 and "
        "in 1/2 what these shares of the full rank hold."
    )
