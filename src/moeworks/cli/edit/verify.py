"""`moeworks edit verify`: whether an edited checkpoint is what its plan says, and what it is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moeworks.cli.edit.options import Data, EditPlanFile, NewTokens, Prompts, StatisticsFolder
from moeworks.cli.options import BatchSize, Device, Json, Seed, has_terminal

__all__ = ["command"]


def command(
    edited: Annotated[Path, typer.Argument(metavar="EDITED", help="The folder to verify.", show_default=False)],
    plan: EditPlanFile,
    against: Annotated[
        str, typer.Option("--against", metavar="MODEL", help="The original: lab, folder or Hub id.", show_default=False)
    ],
    data: Data = None,
    statistics: StatisticsFolder = None,
    layout: Annotated[
        Literal["rows", "copies"], typer.Option("--layout", help="How merged experts were written, as of apply.")
    ] = "rows",
    pad: Annotated[bool, typer.Option("--pad", help="Poorer layers were filled up, as of apply.")] = False,
    prompts: Prompts = 16,
    new_tokens: NewTokens = 256,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Measure tokens a second, taking turns.")] = True,
    card: Annotated[
        bool, typer.Option("--card", help="Write the model card, README.md of the folder, with what was measured.")
    ] = False,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    dtype: Annotated[
        str, typer.Option("--dtype", help="Both models are run in it; in half precision logits say less.")
    ] = "float32",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Check that a checkpoint is what its plan makes of a model; the exit code is 1 if it is not.

    Every tensor is compared with the original's under the plan, stock transformers loads the folder, and its logits
    are held against those of the masked original. What it is worth follows: KL, loops, perplexity, size, speed.
    """
    from moeworks.cli.edit.options import read_data, read_statistics
    from moeworks.cli.output import print_json
    from moeworks.edit.files import load_edit_plan
    from moeworks.edit.verify import verify
    from moeworks.edit.verify_card import write_card

    loaded = load_edit_plan(plan)
    found = verify(
        edited,
        against,
        loaded,
        statistics=read_statistics(statistics),
        texts=read_data(data),
        layout=layout,
        pad=pad,
        prompts=prompts,
        new_tokens=new_tokens,
        speed=speed,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        seed=seed,
        progress=has_terminal(),
    )
    if card and found.passed:
        write_card(edited, against, loaded, found)
    if json:
        print_json(found)
    else:
        print(found.words())
        if card and found.passed:
            print(f"Written to {edited / 'README.md'}.")
    if not found.passed:
        raise typer.Exit(1)
