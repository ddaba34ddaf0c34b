"""`moeworks edit repair`: tune the routers of an edited model, and nothing else, on text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeworks.cli.options import BatchSize, Device, Dtype, Json, Seed, command_line, has_terminal, open_engine

__all__ = ["command"]


def command(
    edited: Annotated[Path, typer.Argument(metavar="EDITED", help="The edited model's folder.", show_default=False)],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Texts, as of record; probe:NAME:SPLIT.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the repaired model.", show_default=False)],
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher", metavar="MODEL", help="The original: learn from its predictions, not the next token."
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps at most.")] = 200,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Of AdamW.")] = 1e-3,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=2, help="Texts are cut to so many.", show_default="whole")
    ] = None,
    check_every: Annotated[int, typer.Option("--check-every", min=1, help="Steps between looks at dev texts.")] = 20,
    patience: Annotated[int, typer.Option("--patience", min=1, help="Looks without a better loss that end it.")] = 3,
    batch_size: BatchSize = 4,
    device: Device = "",
    dtype: Dtype = "",
    seed: Seed = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output.")] = False,
    json: Json = False,
) -> None:
    """Tune the routers of an edited model on text; dev documents choose when to stop, held-out ones are reported.

    The exit code is 1, and nothing is written, if no step was better than the model as it was.
    """
    from moeworks.cli.output import print_json
    from moeworks.edit.repair import REPORT, repair
    from moeworks.errors import BadData
    from moeworks.train.save import check_output

    if not (edited / "config.json").is_file():
        raise BadData(f"{edited} is no model's folder; give one that `moeworks edit apply` wrote.")
    check_output(output, mark=REPORT, overwrite=overwrite)  # before a model is loaded
    report = repair(
        str(edited) if not device and not dtype else open_engine(str(edited), "", device=device, dtype=dtype),
        data,
        output=output,
        teacher=None if teacher is None else open_engine(teacher, "", device=device, dtype=dtype),
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        max_tokens=max_tokens,
        check_every=check_every,
        patience=patience,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        progress=has_terminal(),
        command=command_line(),
    )
    if json:
        print_json(report)
    else:
        print(report.words())
        if report.best_step:
            print(f"Written to {output}; its report is {output / REPORT}.")
    if not report.best_step:
        raise typer.Exit(1)
