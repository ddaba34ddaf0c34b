"""`moeworks edit merge-statistics`: add up statistics of one model over several texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeworks.cli.options import Json, command_line

__all__ = ["command"]


def command(
    folders: Annotated[
        list[Path], typer.Argument(metavar="STATS...", help="Two folders of statistics or more.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.", show_default=False)],
    json: Json = False,
) -> None:
    """Add up statistics of the same model: the result is that of one run over all their texts."""
    from moeworks.cli.output import print_json
    from moeworks.edit.statistics_sum import merge_statistics

    merged = merge_statistics(folders, output, command=command_line())
    header = merged.header
    if json:
        print_json({**header.model_dump(mode="json", exclude={"layers"}), "layers": merged.layers})
        return
    print(f"{output}: {sum(header.tokens):,} tokens of {header.texts:,} texts, {len(header.layers)} layers.")
