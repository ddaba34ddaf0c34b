"""`moeworks tune`: search counts, strengths and operations on dev, within a quality floor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from moeworks.cli.options import (
    BatchSize,
    Device,
    Dtype,
    EngineName,
    Json,
    Model,
    Seed,
    command_line,
    has_terminal,
    named_values,
    one_of,
    open_engine,
)

if TYPE_CHECKING:
    from moeworks.prove.tune import Tuned


def command(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="A scores file of find.", show_default=False)],
    model: Model,
    probe: Annotated[
        str, typer.Option("--probe", metavar="PROBE", help="Whose metric and dev items decide.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The plan to write; - prints it.", show_default=False)],
    promote: Annotated[
        str, typer.Option("--promote", metavar="N,N,…", help="Numbers to turn up; eighths of the layers unless given.")
    ] = "",
    demote: Annotated[
        str, typer.Option("--demote", metavar="N,N,…", help="Numbers to turn down; 0 to 8 % of experts unless given.")
    ] = "",
    direction: Annotated[Literal["up", "down"], typer.Option("--direction", help="Where the behaviour goes.")] = "down",
    op: Annotated[
        list[str] | None,
        typer.Option("--op", help="demote, mask, add or scale; repeatable. The policy's own unless given."),
    ] = None,
    strength: Annotated[
        list[float] | None, typer.Option("--strength", help="Of add and scale; repeatable, each is tried.")
    ] = None,
    policy: Annotated[str, typer.Option("--policy", help="As in steer.")] = "risk_difference",
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Option of steer's policy; repeatable.")
    ] = None,
    divergence: Annotated[
        float, typer.Option("--max-divergence", help="Floor: KL on neutral text, nats a token.")
    ] = 0.5,
    perplexity: Annotated[
        float, typer.Option("--max-perplexity", help="Floor: times the perplexity of neutral text.")
    ] = 1.5,
    whole_grid: Annotated[
        bool, typer.Option("--whole-grid", help="Try larger numbers also where a smaller one broke the floor.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw effect against damage: a .png or .svg to write.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take the first dev items only.")] = None,
    engine: EngineName = "",
    device: Device = "",
    dtype: Dtype = "",
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Find the numbers of experts and the strength with the most effect that leave neutral text within the floor.

    Nothing of the held-out split is read: measure what was chosen with `moeworks evaluate`.
    """
    from moeworks.cli.output import print_json
    from moeworks.find import Scores
    from moeworks.plan import save_plan
    from moeworks.plan.policies import Op
    from moeworks.probes import load_probe
    from moeworks.prove.tune import tune
    from moeworks.prove.verdict import Limits

    counts = _counts(promote, "--promote"), _counts(demote, "--demote")
    kinds: list[Any] = [one_of(name, get_args(Op), "--op") for name in op or ()]
    found = tune(
        open_engine(model, engine, device=device, dtype=dtype),
        Scores.load(scores),
        load_probe(probe),
        promote=counts[0],
        demote=counts[1],
        ops=kinds or (None,),
        strengths=strength or (None,),
        direction=direction,
        policy=policy,
        limits=Limits(divergence=divergence, perplexity=perplexity),
        early_stop=not whole_grid,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        progress=has_terminal(),
        command=command_line(),
        **named_values(option),
    )
    save_plan(found.plan, output)
    if picture is not None:
        from moeworks.report.front import save_front

        save_front(found, picture)
    if json:
        print_json({"chosen": found.chosen, "skipped": found.skipped, "points": found.points})
    elif str(output) != "-":
        _print(found)
        print(
            f"Written to {output}. Prove it on held-out data: moeworks evaluate {model} --plan {output} --probe {probe}"
        )


def _counts(text: str, name: str) -> list[int] | None:
    from moeworks.errors import BadData

    if not text:
        return None
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise BadData(f"{name} takes numbers of experts with commas between, as in 0,1,2,5, not '{text}'.")
    return [int(word) for word in words]


def _print(found: Tuned) -> None:
    from moeworks.cli.output import print_table

    rows = [
        (
            "→" if number == found.chosen else "front" if point.on_front else "",
            point.demote,
            point.promote,
            point.op if point.strength is None else f"{point.op} {point.strength:g}",
            point.effect.value,
            point.effect.low,
            point.effect.high,
            point.divergence,
            point.perplexity,
            "" if point.within_limits else "breaks the floor",
        )
        for number, point in enumerate(found.points)
    ]
    print_table(["", "down", "up", "op", "effect", "low", "high", "KL", "perplexity ×", ""], rows)
    if found.skipped:
        print(f"{found.skipped} larger settings were not tried, since a smaller one broke the floor.")
