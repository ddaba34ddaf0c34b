"""`moeworks steer`: turn scores into a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from moeworks.cli.options import command_line, named_values


def command(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="A scores file of find.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The plan to write; - prints it.", show_default=False)],
    demote: Annotated[
        str, typer.Option("--demote", metavar="N", help="Turn down so many experts, in rank order, or all that pass.")
    ] = "0",
    promote: Annotated[
        str, typer.Option("--promote", metavar="N", help="Turn up so many experts, in rank order, or all that pass.")
    ] = "0",
    direction: Annotated[
        Literal["up", "down"] | None,
        typer.Option("--direction", help="Where the behaviour goes; down unless only --promote is given."),
    ] = None,
    op: Annotated[
        Literal["demote", "mask", "add", "scale"] | None,
        typer.Option("--op", help="What is done to the experts: demote, unless the policy says another."),
    ] = None,
    strength: Annotated[float | None, typer.Option("--strength", help="Of --op add and scale.")] = None,
    unit: Annotated[
        Literal["logit", "std", "spread"] | None,
        typer.Option("--unit", help="Unit of --op add's strength: std, unless given."),
    ] = None,
    refill: Annotated[
        bool | None,
        typer.Option("--refill/--no-refill", help="With --op mask: whether the router picks replacements; it does."),
    ] = None,
    renormalise: Annotated[
        bool | None, typer.Option("--renormalise", help="With --op mask or scale: keep each token's total weight.")
    ] = None,
    where: Annotated[str, typer.Option("--where", help="Tokens the plan applies to, as in 'phase=generated'.")] = "",
    protect: Annotated[
        str,
        typer.Option(
            "--protect",
            metavar="EXPERTS",
            help="Never turn these down: super (the model's super experts, if known), none, or as in 'L0.E3, L2.E4-7'.",
        ),
    ] = "super",
    weakens_safety: Annotated[
        bool, typer.Option("--weakens-safety", help="Say so if the plan is meant to weaken a safety behaviour.")
    ] = False,
    neurons: Annotated[
        int, typer.Option("--neurons", metavar="N", help="Scores of neurons: change so many, in rank order.", min=0)
    ] = 0,
    action: Annotated[
        Literal["zero", "scale", "clamp"],
        typer.Option("--action", help="With --neurons; --option factor=2 or value=0 says how far, site=gate where."),
    ] = "zero",
    policy: Annotated[
        str, typer.Option("--policy", help="How scores become experts, and for published ones what is done to them.")
    ] = "risk_difference",
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Option of the policy; repeatable.")
    ] = None,
) -> None:
    """Make a plan of the strongest experts, or neurons, of a scores file, and say in words what it does."""
    from moeworks.errors import BadData
    from moeworks.find import Scores
    from moeworks.plan import explain, save_plan, steer, steer_neurons

    up, down = _count(promote, "--promote"), _count(demote, "--demote")
    shared: dict[str, Any] = {
        "where": where,
        "protect": protect or "none",
        "weakens_safety": weakens_safety,
        "command": command_line(),
        **named_values(option),
    }
    if neurons:
        if up or down or op or policy != "risk_difference":
            raise BadData(
                "--neurons changes neurons; --promote, --demote, --op and --policy are for scores of experts."
            )
        plan = steer_neurons(Scores.load(scores), neurons, action=action, **shared)
    else:
        plan = steer(
            Scores.load(scores),
            promote=up,
            demote=down,
            policy=policy,
            direction=direction,
            op=op,
            strength=strength,
            unit=unit,
            refill=refill,
            renormalise=renormalise,
            **shared,
        )
    save_plan(plan, output)
    if str(output) != "-":
        print(explain(plan))
        print(f"Written to {output}.")


def _count(text: str, name: str) -> Any:
    from moeworks.errors import BadData

    if text != "all" and not text.isdecimal():
        raise BadData(f"{name} is a number of experts or all, not '{text}'.")
    return text if text == "all" else int(text)
