"""`moeworks edit export`: an edit plan in the files that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

__all__ = ["command"]


def command(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="An edit plan.", show_default=False)],
    to: Annotated[
        Literal["reap-json", "pruned-experts", "jsonl", "peft"],
        typer.Option(
            "--to", help="Kept ids, pruned ids, ranked experts (vllm-ascend), or settings for LoRA on kept ones."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write; - prints it.", show_default=False)],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="For peft: the model whose parameters are named.")
    ] = None,
) -> None:
    """Write an edit plan in another tool's format."""
    from moeworks.edit.exports import export_edit_plan
    from moeworks.edit.files import load_edit_plan

    read, engine = load_edit_plan(plan), None
    if to == "peft" and model is not None:
        from moeworks.engines import load

        loaded: Any = load(model)
        engine = loaded
    export_edit_plan(read, output, to=to, engine=engine)
    if str(output) != "-":
        print(f"Written to {output}.")
