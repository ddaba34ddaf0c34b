"""`moeworks inspect`: a model's routers, their contracts, and what they hold; or what a trace says of its routing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moeworks.cli.options import Device, Dtype, EngineName, Json, Seed, named_values, open_engine
from moeworks.cli.trace_show import Tokenizer
from moeworks.diagnostic_names import DiagnosticName

if TYPE_CHECKING:
    from moeworks.trace import Trace

WORTH_TWO_PROCESSES = 200_000  # tokens; below, a second process costs more than it saves


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A model (`lab`, a local folder, a Hub id, `fake`), a trace's folder, or a profile of counts (.json).",
            show_default=False,
        ),
    ],
    engine: EngineName = "",
    device: Device = "",
    dtype: Dtype = "",
    what: Annotated[
        DiagnosticName | None,
        typer.Option("--what", help="Diagnostic of a trace; balance, unless given.", show_default=False),
    ] = None,
    where: Annotated[str, typer.Option("--where", help="Tokens and layers of the trace that count.")] = "",
    label: Annotated[
        str | None,
        typer.Option("--label", help="Label whose values are told apart: divergence, specialisation, committee, srp."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="Value of the label that others are compared with: divergence, u_shape."),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option("--checkpoint", metavar="STEP=TRACE", help="Other trace: saturation, drift; repeatable."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Option of the diagnostic; repeatable.")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Draw the diagnostic of a trace into a .png or .svg file."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Write all diagnostics of a trace, drawn, as one HTML page.",
            show_default=False,
        ),
    ] = None,
    outputs: Annotated[
        str,
        typer.Option(
            "--outputs",
            metavar="DATA",
            help="Of a model: run these texts and look at what experts put out; --label tells values apart.",
            show_default=False,
        ),
    ] = "",
    expert: Annotated[
        str,
        typer.Option("--expert", metavar="L3.E5", help="The card of one expert of a trace.", show_default=False),
    ] = "",
    map_by: Annotated[
        Literal["load", "weight", "specialisation", "score"] | None,
        typer.Option("--map", help="One number for every expert of a trace; score: of a --scores file."),
    ] = None,
    value: Annotated[
        str, typer.Option("--value", help="Value of the --label that a map is of.", show_default=False)
    ] = "",
    scores: Annotated[
        list[Path] | None,
        typer.Option("--scores", metavar="FILE", help="Scores shown on a card (repeatable) or a map."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="Model to load for a card: decodes what the expert points to.")
    ] = "",
    tokenizer: Tokenizer = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Experts of a map that are printed.")] = 20,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Show a model's routers and contracts, proven or why not, or a diagnostic of a trace beside its chance level.

    A model: routers, experts, parameters and bytes. A trace: its sanity first, and nothing else where numbers would be
    wrong; then one number a layer (and label), with the level it has by chance and its interval from resampled
    documents; --json has all columns. --expert shows what one expert fires on, --map compares all.
    """
    if source.endswith(".json") and Path(source).is_file():
        given = (engine, device, dtype, where, label, base, checkpoint, option, picture, what not in (None, "balance"))
        _profile(source, any(given), seed=seed, json=json)
        return
    traced = Path(source, "trace.json").is_file() or Path(source, "progress.json").is_file()
    if expert or map_by is not None:
        _refuse(source, engine=engine, device=device, dtype=dtype)
        _show(
            source, expert, map_by, what=what, where=where, label=label, base=base, checkpoint=checkpoint,
            option=option, picture=picture, value=value, scores=scores or [], model=model, tokenizer=tokenizer,
            top=top, seed=seed, json=json,
        )  # fmt: skip
        return
    if value or scores or model or tokenizer:
        from moeworks.errors import BadData

        raise BadData("--value, --scores, --model and --tokenizer are for --expert or --map; leave them out.")
    if report is not None:
        _report(
            source, report, refused=(what, option, picture, outputs, engine, device, dtype), where=where, label=label,
            base=base, checkpoint=checkpoint or [], seed=seed, json=json,
        )  # fmt: skip
        return
    if traced or what is not None:
        _refuse(source, engine=engine, device=device, dtype=dtype, outputs=outputs)
        _diagnose(
            source, what or "balance", where=where, label=label, base=base, checkpoint=checkpoint or [], seed=seed,
            option=option, picture=picture, json=json,
        )  # fmt: skip
        return
    from moeworks.cli.output import print_json
    from moeworks.errors import BadData
    from moeworks.inspect import inspect

    if where or (label and not outputs) or base or checkpoint or option or picture:
        raise BadData(
            f"{source} is no trace's folder, as --where, --label, --base, --checkpoint, --option and --picture need."
        )
    if outputs:
        _outputs(source, outputs, label or "", engine=engine, device=device, dtype=dtype, seed=seed, json=json)
        return
    found = inspect(open_engine(source, engine, device=device, dtype=dtype))
    if json:
        print_json(found)
    else:
        print(found)


def _report(
    source: str,
    path: Path,
    *,
    refused: tuple[object, ...],
    where: str,
    label: str | None,
    base: str | None,
    checkpoint: list[str],
    seed: int,
    json: bool,
) -> None:
    from moeworks.cli.options import command_line, has_terminal
    from moeworks.cli.output import print_json
    from moeworks.errors import BadData
    from moeworks.report.routing_report import save_trace_report
    from moeworks.trace import Trace
    from moeworks.where import Where

    if any(refused):
        raise BadData("--report writes every diagnostic; it goes with --where, --label, --base and --checkpoint alone.")
    opened = Trace.open(source)
    workers = min(2, os.cpu_count() or 1) if len(opened) >= WORTH_TWO_PROCESSES else 1
    say = (lambda name: print(f"{name} …", file=sys.stderr, flush=True)) if has_terminal() else (lambda _: None)
    save_trace_report(
        opened, path, where=Where.parse(where), label=label, base=base, checkpoints=_checkpoints(checkpoint), seed=seed,
        workers=workers, command=command_line(), say=say,
    )  # fmt: skip
    if json:
        print_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB.")


def _checkpoints(words: list[str]) -> dict[int, Trace]:
    from moeworks.errors import BadData
    from moeworks.trace import Trace

    found = {}
    for word in words:
        step, equals, path = word.partition("=")
        if not (equals and path and step.isdecimal()):
            raise BadData(f"'{word}' is not a checkpoint; write step=TRACE, as in 1000=traces/step-1000.")
        found[int(step)] = Trace.open(path)
    return found


def _profile(source: str, options: bool, *, seed: int, json: bool) -> None:
    from moeworks.cli.output import print_json, print_table
    from moeworks.errors import BadData
    from moeworks.place.profile import load_profile
    from moeworks.place.recorded import profile_balance
    from moeworks.stats.diagnostics import DIAGNOSTICS, shown

    if options:
        raise BadData(f"{source} is a profile, counts without tokens: only its balance can be told, without options.")
    profile = load_profile(source)
    table = profile_balance(profile, seed=seed)
    if json:
        print_json({"what": "balance", "profile": source, "lacks": profile.lacks, "seed": seed,
                    "rows": table.to_pylist()})  # fmt: skip
        return
    print_table(*shown("balance", table))
    print(f"\n{DIAGNOSTICS['balance'].reading}.")


def _outputs(
    source: str, data: str, label: str, *, engine: str, device: str, dtype: str, seed: int, json: bool
) -> None:
    from tempfile import TemporaryDirectory

    from moeworks.cli.output import print_json, print_table
    from moeworks.data import read_examples
    from moeworks.stats.diagnostics import cells
    from moeworks.stats.outputs import COLLAPSE_READING, DOMAINS_READING, measure_outputs
    from moeworks.train.engine import opened

    opened_engine = opened(open_engine(source, engine, device=device, dtype=dtype), "Looking at outputs of experts")
    with TemporaryDirectory() as folder:
        found = measure_outputs(opened_engine, read_examples(data), Path(folder) / "statistics", label=label, seed=seed)
    if json:
        domains = None if found.domains is None else found.domains.to_pylist()
        print_json({"what": "outputs", "data": data, "label": label, "seed": seed,
                    "collapse": found.collapse.to_pylist(), "domains": domains})  # fmt: skip
        return
    print_table(
        *cells(
            ("layer", "spread [low high]", "chance", "p", "largest", "smallest", "silent [silent_low silent_high]",
             "experts", "tokens"),
            found.collapse,
        )
    )  # fmt: skip
    print(f"\n{COLLAPSE_READING}.")
    if found.domains is not None:
        print()
        print_table(
            *cells(
                ("layer", "value", "degraded", "degraded_chance", "specific", "mass [low high]", "chance", "p"),
                found.domains,
            )
        )
        print(f"\n{DOMAINS_READING}.")


def _show(
    source: str,
    expert: str,
    map_by: Literal["load", "weight", "specialisation", "score"] | None,
    *,
    what: str | None,
    where: str,
    label: str | None,
    base: str | None,
    checkpoint: list[str] | None,
    option: list[str] | None,
    picture: Path | None,
    value: str,
    scores: list[Path],
    model: str,
    tokenizer: Path | None,
    top: int,
    seed: int,
    json: bool,
) -> None:
    from moeworks.cli.inspect_expert import show_expert, show_map
    from moeworks.errors import BadData

    strange: dict[str, Any] = {
        "what": what, "base": base, "checkpoint": checkpoint, "option": option, "picture": picture,
    }  # fmt: skip
    if expert:
        strange |= {"map": map_by, "where": where, "label": label, "value": value}
    else:
        strange |= {"model": model, "tokenizer": tokenizer}
    named = [f"--{name}" for name, given in strange.items() if given]
    if named:
        raise BadData(f"{', '.join(named)} does not go with --{'expert' if expert else 'map'}; leave it out.")
    if expert:
        show_expert(source, expert, scores=scores, model=model, tokenizer=tokenizer, seed=seed, json=json)
    elif map_by is not None:
        show_map(
            source, map_by, label=label or "", value=value, scores=scores, where=where, top=top, seed=seed, json=json
        )


def _refuse(source: str, **given: str) -> None:
    from moeworks.errors import BadData

    named = [f"--{name}" for name, value in given.items() if value]
    if named:
        raise BadData(f"{', '.join(named)} is for a model, but {source} is looked at as a trace; leave it out.")


def _diagnose(
    source: str,
    what: str,
    *,
    where: str,
    label: str | None,
    base: str | None,
    checkpoint: list[str],
    option: list[str] | None,
    picture: Path | None,
    seed: int,
    json: bool,
) -> None:
    from moeworks.cli.output import print_json, print_table
    from moeworks.errors import RunFailed
    from moeworks.stats.diagnostics import DIAGNOSTICS, diagnose, shown
    from moeworks.stats.sanity import refusal, sanity, sentence
    from moeworks.trace import Trace
    from moeworks.where import Where

    trace, options, clause = Trace.open(source), named_values(option), Where.parse(where)
    checkpoints = _checkpoints(checkpoint)
    checks = sanity(trace, where=clause, seed=seed)
    if what != "sanity":
        for one in (checks, *(sanity(other, seed=seed) for other in checkpoints.values())):
            if reason := refusal(one):
                raise RunFailed(reason)
    table = diagnose(trace, what, where=clause, label=label, base=base, checkpoints=checkpoints, seed=seed, **options)
    if picture is not None:
        from moeworks.report.diagnostic_pictures import save_diagnostic

        save_diagnostic(what, table, picture, source=source)
    if json:
        facts = {"trace": source, "model": trace.header.model and trace.header.model.name, "where": where}
        found = [row for row in checks.to_pylist() if row["result"] == "fail"]
        print_json(
            {"what": what, **facts, "options": options, "seed": seed, "sanity": {"passes": not found, "failed": found},
             "rows": table.to_pylist()}
        )  # fmt: skip
    else:
        print(f"{sentence(checks)}.\n")
        print_table(*shown(what, table))
        print(f"\n{DIAGNOSTICS[what].reading}.")
        if picture is not None:
            print(f"Drawn in {picture}.")
    if reason := refusal(checks):
        raise RunFailed(reason)
