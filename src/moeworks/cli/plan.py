"""`moeworks plan`: read plans in words, check, compare and join them, try them on a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moeworks.cli.options import Json, Model, TraceFolder

app = typer.Typer(name="plan", help="Explain, check, compare and join plans; try one on a trace.", no_args_is_help=True)

Plan = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file.", show_default=False)]


@app.command("explain")
def explain(plan: Plan) -> None:
    """Say in words what a plan does, to which model, and what is known of its effect."""
    from moeworks.plan import explain as words
    from moeworks.plan import load_plan

    print(words(load_plan(plan)))


@app.command("diff")
def diff(first: Plan, second: Plan, json: Json = False) -> None:
    """Say how the second plan differs from the first, expert by expert."""
    from moeworks.cli.output import print_json
    from moeworks.plan import diff as difference
    from moeworks.plan import load_plan

    found = difference(load_plan(first), load_plan(second))
    if json:
        print_json(
            {kind: [change._asdict() for change in getattr(found, kind)] for kind in ("removed", "added", "changed")}
        )
    else:
        print(found)


@app.command("check")
def check(plan: Plan, model: Model) -> None:
    """Check a plan against a model: shape, weight hash, unknown experts, too many of them; all problems at once."""
    from moeworks.engines import load
    from moeworks.plan import check as guard
    from moeworks.plan import load_plan

    read = load_plan(plan)
    guard(read, load(model).identity)
    print(f"{plan} fits {model}.")


@app.command("compose")
def compose(
    plans: Annotated[list[Path], typer.Argument(metavar="PLAN...", help="Plans for the same model, first one first.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The plan to write.", show_default=False)],
) -> None:
    """Join plans for the same model into one; what contradicts itself is refused."""
    from moeworks.plan import compose as join
    from moeworks.plan import explain as words
    from moeworks.plan import load_plan, save_plan

    joined = join(*(load_plan(path) for path in plans))
    save_plan(joined, output)
    print(words(joined))


@app.command("gate")
def gate(
    plan: Plan,
    trace: TraceFolder,
    contrast: Annotated[
        str, typer.Option("--contrast", help="Requests it should open for, as in side=contrast.", show_default=False)
    ],
    against: Annotated[str, typer.Option("--against", help="Requests it should stay shut for.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The plan to write.", show_default=False)],
    kind: Annotated[
        Literal["routing", "key_space"], typer.Option("--kind", help="A linear probe, or a box around one side.")
    ] = "routing",
) -> None:
    """Let a plan apply only to requests whose prompt is routed like those of one side of a plain model's trace.

    Fitted on documents of find, chosen on dev, told on held-out ones, by the label `split` or else by document name.
    """
    from moeworks.find.fit_gate import fit_box_gate, fit_gate
    from moeworks.plan import explain as words
    from moeworks.plan import load_plan, save_plan
    from moeworks.trace import Trace

    read, opened = load_plan(plan), Trace.open(trace)
    fit = fit_gate if kind == "routing" else fit_box_gate
    gated = read.model_copy(update={"gate": fit(opened, contrast=contrast, against=against), "evidence": None})
    save_plan(gated, output)
    print(words(gated))


@app.command("dry-run")
def dry_run(plan: Plan, trace: TraceFolder, json: Json = False) -> None:
    """Apply a plan to the logits of a recorded trace, without a model: which experts would run more, which less."""
    from moeworks.cli.output import print_json
    from moeworks.plan import dry_run as attempt
    from moeworks.plan import load_plan
    from moeworks.trace import Trace

    result = attempt(load_plan(plan), Trace.open(trace))
    if json:
        print_json(result)
    else:
        print(result)
