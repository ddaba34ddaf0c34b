"""`moeworks patch`: what a clean prompt's experts do for a corrupt one, layer by layer, and which tasks they serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeworks.cli.options import (
    BatchSize,
    Device,
    Dtype,
    EngineName,
    Json,
    Model,
    Seed,
    has_terminal,
    one_of,
    open_engine,
)

if TYPE_CHECKING:
    from moeworks.prove.dissociation import Dissociation
    from moeworks.prove.patching import Patching


def command(
    model: Model,
    pairs: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS", help="JSON lines with clean, corrupt, correct, distractor, task.", show_default=False
        ),
    ],
    arm: Annotated[
        list[str] | None,
        typer.Option("--arm", help="From the clean run: routing, output or joint; repeatable. All three unless given."),
    ] = None,
    experts: Annotated[int, typer.Option("--experts", min=0, help="Report so many single experts of each arm.")] = 0,
    dissociate: Annotated[
        int, typer.Option("--dissociate", min=0, metavar="N", help="Ablate the N top experts of each of two tasks.")
    ] = 0,
    smallest: Annotated[
        float, typer.Option("--smallest", min=0, help="Leave out pairs that tell clean from corrupt by fewer logits.")
    ] = 0.1,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="JSON file to write.")] = None,
    engine: EngineName = "",
    device: Device = "",
    dtype: Dtype = "",
    batch_size: BatchSize = 16,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Put the routing, the experts' outputs, or both, of clean prompts into corrupt ones, and see how much comes back.

    An effect of 0 is the corrupt run, 1 the clean one. --dissociate also asks whether the experts behind one kind of
    task (field `task`) leave the other alone.
    """
    from moeworks.artefact import replace_file
    from moeworks.cli.output import print_json
    from moeworks.prove.dissociation import double_dissociation
    from moeworks.prove.pairs import read_pairs
    from moeworks.prove.patching import ARMS, patch

    arms: list[Any] = [one_of(name, ARMS, "--arm") for name in arm or ()]
    read = read_pairs(pairs)
    running = open_engine(model, engine, device=device, dtype=dtype)
    options: dict[str, Any] = {"smallest": smallest, "batch_size": batch_size, "seed": seed}
    patched = patch(running, read, arms=arms or ARMS, experts=experts, progress=has_terminal(), **options)
    found: dict[str, Any] = {"patching": patched}
    if dissociate:
        found["dissociation"] = double_dissociation(running, read, top=dissociate, **options)
    if output is not None:
        from json import dumps

        from pydantic_core import to_jsonable_python

        with replace_file(output) as temporary:
            temporary.write_text(dumps(to_jsonable_python(found, inf_nan_mode="strings"), indent=2) + "\n")
    if json:
        print_json(found)
        return
    _print_patching(patched)
    if dissociate:
        _print_dissociation(found["dissociation"])
    if output is not None:
        print(f"Written to {output}.")


def _print_patching(found: Patching) -> None:
    from moeworks.cli.output import print_table

    print(
        f"{found.pairs} pairs of {found.documents} documents; {found.refused} left out, clean and corrupt say nearly "
        f"the same. Correct minus distractor: {found.clean:+.3g} logits clean, {found.corrupt:+.3g} corrupt."
    )
    rows = [
        (row.arm, row.component, row.effect.value, row.effect.low, row.effect.high)
        for row in sorted(found.effects, key=lambda row: row.arm)
    ]
    print_table(["arm", "component", "effect", "low", "high"], rows)


def _print_dissociation(found: Dissociation) -> None:
    from moeworks.cli.output import print_table

    print()
    for name in found.tasks:
        print(f"{name}: {found.accuracy[name]:.0%} of {found.pairs[name]} right; {', '.join(found.experts[name])}")
    rows = [
        (cell.ablated, cell.measured, cell.accuracy.value, cell.accuracy.low, cell.accuracy.high, cell.margin.value)
        for cell in found.table
    ]
    print_table(["ablated", "measured", "accuracy", "low", "high", "logits"], rows)
    words = {
        "double": "Double dissociation: each set of experts costs its own task more than the other.",
        "single": "One set of experts costs its own task more than the other; the other set does not.",
        "none": "No dissociation: neither set of experts costs its own task for certain more than the other.",
    }
    print(words[found.finding])
