"""`moeworks doctor`: what is installed, what works here and what does not."""

from __future__ import annotations

from typing import Annotated

import typer

from moeworks.cli.options import Json


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]", help="With --trainer: `lab`, a local folder or a Hub id.", show_default=False
        ),
    ] = "",
    trainer: Annotated[
        bool, typer.Option("--trainer", help="Tell whether training MODEL applies a balance loss at all.")
    ] = False,
    json: Json = False,
) -> None:
    """Show versions, engines and families, what is missing and how to get it; ready to paste into a report.

    Nothing in it names this machine, its user or its folders. With MODEL and --trainer, one training step is tried on
    random tokens, and what the model's own loss does for its routers is told.
    """
    from moeworks.cli.output import print_json
    from moeworks.doctor import doctor

    if trainer or model:
        _trainer(model, trainer=trainer, json=json)
        return
    diagnosis = doctor()
    if json:
        print_json(diagnosis)
    else:
        print(diagnosis)


def _trainer(model: str, *, trainer: bool, json: bool) -> None:
    from dataclasses import asdict

    from moeworks.cli.output import print_json
    from moeworks.errors import BadData

    if not (trainer and model):
        raise BadData("MODEL and --trainer belong together: moeworks doctor MODEL --trainer.")
    from moeworks.engines.transformers.loading import load_pretrained
    from moeworks.watch import training_setup

    found = training_setup(load_pretrained(model, dtype="float32").model)
    if json:
        print_json({**asdict(found), "balanced": found.balanced})
    else:
        print(found)
