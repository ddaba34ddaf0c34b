"""`moeworks edit plan`: from statistics to a plan of which experts stay, and what that costs in routing mass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moeworks.cli.options import Json, Seed, command_line, named_values

if TYPE_CHECKING:
    from moeworks.edit.plan import EditPlan
    from moeworks.edit.statistics_file import Statistics

__all__ = ["command"]

CAREFUL = 0.5  # below this share a dose curve is asked for first


def command(
    statistics: Annotated[
        Path | None,
        typer.Argument(
            metavar="STATS", help="A folder of `moeworks edit score`; not needed by aimer.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The plan to write; - prints it.", show_default=False)
    ] = None,
    method: Annotated[str, typer.Option("--method", help="How experts are valued; see --list.")] = "reap",
    keep: Annotated[float, typer.Option("--keep", help="Share of the experts (or neurons) that stay.")] = 0.75,
    budget: Annotated[
        str, typer.Option("--budget", help="How they are shared out over layers; see --list.")
    ] = "uniform",
    protect: Annotated[
        str,
        typer.Option(
            "--protect", metavar="EXPERTS", help="Keep: super (super experts), none, or as in 'L0.E3, L2.E4-7'."
        ),
    ] = "super",
    label: Annotated[
        str | None, typer.Option("--label", metavar="VALUE", help="Look at text of this value alone.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="VALUE", help="Of difference and divergence: the other value.")
    ] = None,
    domains: Annotated[
        str, typer.Option("--domains", metavar="VALUES", help="Mix these values, as in math,code; or all.")
    ] = "",
    mix: Annotated[
        Literal["sum", "l2", "max"] | None, typer.Option("--mix", help="How domains are mixed; the method's own way.")
    ] = None,
    multiple_of: Annotated[
        int, typer.Option("--multiple-of", min=1, help="Counts (or widths of neurons) are a multiple of this.")
    ] = 1,
    expert_parallel: Annotated[
        int, typer.Option("--expert-parallel", min=1, help="Devices that share a layer's experts.")
    ] = 1,
    uneven: Annotated[
        bool, typer.Option("--uneven", help="Allow layers of unequal counts, which stock checkpoints cannot hold.")
    ] = False,
    layers: Annotated[str, typer.Option("--layers", metavar="NUMBERS", help="Cut these alone, as in 3,5-9.")] = "",
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="For methods that read weights: lab, folder or Hub id."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Option of the method; repeatable.")
    ] = None,
    budget_option: Annotated[
        list[str] | None,
        typer.Option("--budget-option", metavar="NAME=VALUE", help="Option of the budget; repeatable."),
    ] = None,
    transform: Annotated[
        str | None, typer.Option("--transform", help="How layers are made, if not in the method's own way.")
    ] = None,
    transform_option: Annotated[
        list[str] | None,
        typer.Option("--transform-option", metavar="NAME=VALUE", help="Option of the transform; repeatable."),
    ] = None,
    extra_layers: Annotated[
        Literal["same", "drop"], typer.Option("--extra-layers", help="Layers for multi-token prediction.")
    ] = "same",
    recut: Annotated[
        Path | None, typer.Option("--recut", metavar="PLAN", help="Cut this plan's ranking at --keep; no statistics.")
    ] = None,
    random: Annotated[
        int | None, typer.Option("--random", metavar="SEED", help="Write the plan's random control instead.")
    ] = None,
    seed: Seed = 0,
    measured: Annotated[
        bool, typer.Option("--yes-i-measured", help=f"Keep less than {CAREFUL:g} without a measured dose curve.")
    ] = False,
    listing: Annotated[
        bool, typer.Option("--list", help="List methods and budgets, what each needs, and stop.")
    ] = False,
    json: Json = False,
) -> None:
    """Choose which experts stay, by a method and a budget, and say what goes.

    The plan is a file to review; `preview` tries it, `apply` carries it out. Report it beside random ones (--random 0,
    1, 2): no score foretells what removing an expert does.
    """
    if listing:
        _list(json)
        return
    from moeworks.edit.files import load_edit_plan, save_edit_plan
    from moeworks.edit.replan import random_plans
    from moeworks.edit.replan import recut as cut_again
    from moeworks.errors import BadData

    if output is None:
        raise BadData("say where the plan goes, with -o FILE, or - to print it.")
    earlier = load_edit_plan(recut) if recut is not None else None
    _check_dose(keep, earlier, measured)
    opened = _open(statistics)
    if earlier is not None:
        plan = cut_again(earlier, keep=keep)
    else:
        plan = _plan(
            opened,
            model,
            method=method,
            keep=keep,
            budget=budget,
            protect=protect or "none",
            label=label,
            against=against,
            domains=_domains(domains, opened),
            mix=mix,
            multiple_of=multiple_of,
            expert_parallel=expert_parallel,
            uneven=uneven,
            layers=_numbers(layers),
            transform=transform,
            extra_layers=extra_layers,
            seed=seed,
            budget_options=named_values(budget_option),
            transform_options=named_values(transform_option),
            command=command_line(),
            **named_values(option),
        )
    if random is not None:
        plan = random_plans(plan, seeds=(random,))[0]
    save_edit_plan(plan, output)
    if str(output) != "-":
        _tell(plan, opened, output, json)


def _open(folder: Path | None) -> Statistics | None:
    from moeworks.edit.statistics_file import Statistics

    return None if folder is None else Statistics.open(folder)


def _check_dose(keep: float, earlier: EditPlan | None, measured: bool) -> None:
    from moeworks.errors import BadPlan

    evidence = (earlier.evidence if earlier is not None else None) or {}
    if keep < CAREFUL and not measured and "dose" not in evidence:
        raise BadPlan(
            f"keeping {keep:g} of the experts breaks many models (loops, lost languages); plan {CAREFUL:g} first and "
            "measure how much this model can take with: moeworks edit dose --plan PLAN --write-evidence, then cut that "
            "with --recut PLAN. If it is measured already, say --yes-i-measured."
        )


def _plan(statistics: Statistics | None, model: str | None, **asked: Any) -> EditPlan:
    from moeworks.edit.methods import needs_of_method
    from moeworks.edit.planning import plan_edit
    from moeworks.errors import BadData

    needed = needs_of_method(asked["method"])
    if statistics is None and not needed <= {"weights"}:
        raise BadData(
            f"'{asked['method']}' reads statistics; collect them with: moeworks edit score MODEL DATA -o STATS."
        )
    if model is None:
        if "weights" in needed:
            raise BadData(f"'{asked['method']}' reads weights; say of which model, with --model.")
        return plan_edit(statistics, **asked)
    if statistics is not None and "rows" not in needed:
        from moeworks.edit.checkpoint import open_checkpoint

        return plan_edit(statistics, weights=open_checkpoint(model), **asked)
    weights, identity = _loaded(model)
    return plan_edit(statistics, weights=weights, identity=identity, **asked)


def _loaded(model: str) -> tuple[Callable[[int], Any], Any]:
    """Load a model whose experts have to run, or whose rule no statistics tell."""
    from moeworks.edit.in_memory import read_layer
    from moeworks.engines import load

    engine: Any = load(model)
    routers = {router.layer: router for router in engine.routers}
    return lambda layer: read_layer(routers[layer]), engine.identity


def _domains(text: str, statistics: Statistics | None) -> tuple[str, ...]:
    if text == "all" and statistics is not None:
        return tuple(statistics.header.labels)
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> list[int] | None:
    from moeworks.errors import BadData

    if not text:
        return None
    found: list[int] = []
    for word in text.replace(" ", "").split(","):
        first, _, last = word.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or (last and int(last) < int(first)):
            raise BadData(f"'{text}' names no layers; write numbers and ranges, as in 3,5-9.")
        found += range(int(first), int(last or first) + 1)
    return sorted(set(found))


def _tell(plan: EditPlan, statistics: Statistics | None, output: Path, json: bool) -> None:
    from moeworks.cli.output import print_json, print_table
    from moeworks.edit.methods import lost_mass

    mass = lost_mass(plan, statistics) if statistics is not None else {}
    rows = [
        {
            "layer": cut.layer,
            "experts": cut.experts,
            "kept": len(cut.keep),
            "dropped": cut.experts - len(cut.keep),
            **({"mass": mass[cut.layer]} if cut.layer in mass else {}),
        }
        for cut in plan.layers
    ]
    if json:
        print_json({"plan": str(output), "method": plan.method, "budget": plan.budget, "layers": rows})
        return
    names = ["layer", "experts", "kept", "dropped", *(["mass that goes"] if mass else [])]
    print_table(names, [[f"{v:.1%}" if isinstance(v, float) else v for v in row.values()] for row in rows])
    protected = f"{len(plan.protected)} experts protected" if plan.protected else "no expert protected"
    what = "Nothing but the list is made of the others" if plan.pure_cut else f"Layers are made by '{plan.transform}'"
    print(f"{plan.method}, budget {plan.budget}: {sum(plan.counts)} experts stay, {protected}. {what}.")
    print(f"Written to {output}. No score foretells what a cut does: moeworks edit preview MODEL --plan {output}")


def _list(json: bool) -> None:
    from moeworks.cli.output import print_json, print_table
    from moeworks.edit.methods import list_budgets, list_methods

    methods, budgets = list_methods(), list_budgets()
    if json:
        print_json({"methods": [entry._asdict() for entry in methods], "budgets": budgets})
        return
    print_table(["method", "kind", "needs", "what it does"], [list(entry) for entry in methods])
    print()
    print_table(["budget", "what it does"], budgets.items())
