"""`moeworks edit unlearn`: a plan that forgets by removal, if a mask shows that it does and breaks nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeworks.cli.options import BatchSize, Device, Dtype, Json, Model, Seed, command_line, has_terminal, open_engine

__all__ = ["command"]


def command(
    model: Model,
    forget: Annotated[
        str,
        typer.Option(
            "--forget",
            metavar="DATA",
            help="Texts to forget, as of record; of a probe, those of its contrast side.",
            show_default=False,
        ),
    ],
    retain: Annotated[
        str,
        typer.Option(
            "--retain", metavar="DATA", help="Texts to keep; of a probe, those of its other side.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The plan to write, if it holds up.", show_default=False)
    ],
    keep: Annotated[float, typer.Option("--keep", help="Share of each layer's experts that stays.")] = 0.9,
    score: Annotated[
        str, typer.Option("--score", help="Score whose difference ranks; one that takes a label.")
    ] = "reap",
    protect: Annotated[
        str, typer.Option("--protect", metavar="EXPERTS", help="Keep: super, none, or addresses as in 'L0.E3'.")
    ] = "super",
    limit: Annotated[
        float, typer.Option("--limit", help="Rise of the retain texts' perplexity that is accepted.")
    ] = 0.05,
    controls: Annotated[int, typer.Option("--controls", min=1, help="Random cuts of the same size.")] = 19,
    weakens_safety: Annotated[
        bool,
        typer.Option("--weakens-safety", help="The probe is of a safety behaviour and forgetting it is meant."),
    ] = False,
    batch_size: BatchSize = 8,
    device: Device = "",
    dtype: Dtype = "",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Rank experts by what the forget texts use and the retain texts do not, and try the cut as a mask first.

    A plan is written only if held-out forget texts lose more than under every random cut and held-out retain texts
    stay within the limit; otherwise the exit code is 1. `moeworks edit apply` then deletes the experts.
    """
    from moeworks.cli.output import print_json
    from moeworks.edit.files import save_edit_plan
    from moeworks.edit.unlearn import unlearn

    found = unlearn(
        open_engine(model, "", device=device, dtype=dtype),
        forget=forget,
        retain=retain,
        keep=keep,
        score=score,
        protect=protect or "none",
        limit=limit,
        controls=controls,
        weakens_safety=weakens_safety,
        batch_size=batch_size,
        seed=seed,
        command=command_line(),
        progress=has_terminal(),
    )
    if found.plan is not None:
        save_edit_plan(found.plan, output)
    if json:
        print_json(found)
    else:
        print(found.words())
        print(f"Written to {output}." if found.plan is not None else "No plan is written.")
    if found.plan is None:
        raise typer.Exit(1)
