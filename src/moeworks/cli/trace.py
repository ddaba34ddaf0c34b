"""`moeworks trace`: look at traces, check them, cut them, join them, hand them on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moeworks.cli import trace_show
from moeworks.cli.options import Dtype, Json, TraceFolder, identity_like

app = typer.Typer(name="trace", help="Look at traces, check, cut, join, import and export them.", no_args_is_help=True)

Output = Annotated[Path, typer.Option("-o", "--output", help="Where to write; must not exist.", show_default=False)]


@app.command("info")
def info(trace: TraceFolder, json: Json = False) -> None:
    """Show what a trace holds: model, rows, layers, labels and how many texts carry each."""
    from moeworks.cli.output import print_json, print_table
    from moeworks.trace import Trace

    opened = Trace.open(trace)
    facts = opened.info()
    if json:
        print_json(facts)
        return
    shapes = facts["layers"]
    if len(set(shapes.values())) == 1:
        facts["layers"] = f"{', '.join(map(str, shapes))}: {next(iter(shapes.values()))} experts each"
    for name, value in facts.items():
        if value not in ("", {}, []):
            print(f"{name:<10}{_words(value)}")
    labels = opened.request_table().labels
    if len(labels) > 1:
        print()
        print_table(
            ["label", "texts", "values"],
            [
                (name, int((values != "").sum()), ", ".join(sorted(set(values.tolist()) - {""})[:12]))
                for name, values in labels.items()
                if name != "document"
            ],
        )


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


app.command("show")(trace_show.command)


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSONL of answers, CSV, Parquet or .pt.", show_default=False)
    ],
    output: Output,
    like: Annotated[
        str,
        typer.Option(
            "--like", metavar="MODEL|TRACE", help="The model, or a trace of it: its layers.", show_default=False
        ),
    ],
    format_: Annotated[
        Literal["vllm", "sglang", "sglang-recorder", "table"],
        typer.Option("--format", help="What wrote the file.", show_default=False),
    ],
    version: Annotated[str, typer.Option("--engine-version", help="Of the engine, for the header.")] = "",
    dtype: Dtype = "",
    json: Json = False,
) -> None:
    """Make a trace of what another engine wrote down of its routing: answers with routed experts, a dump, or a table.

    Answers of vLLM and SGLang hold experts and no weights; what needs weights says so. sglang-recorder reads a dump of
    SGLang's expert-distribution recorder in mode per_token (other modes: moeworks place profile).
    """
    from moeworks.artefact import EngineIdentity
    from moeworks.cli.output import print_json
    from moeworks.trace.importers import import_answers, import_recorder, import_table

    model = identity_like(like)
    if format_ == "table":
        trace = import_table(
            source, output, model=model, engine=EngineIdentity(name="table", version=version, dtype=dtype)
        )
    elif format_ == "sglang-recorder":
        trace = import_recorder(source, output, model=model, version=version, dtype=dtype)
    else:
        trace = import_answers(source, output, model=model, format=format_, version=version, dtype=dtype)
    if json:
        print_json(trace.info())
        return
    print(f"{output}: {len(trace)} tokens of {trace.requests.num_rows} texts, {len(trace.layers)} layers.")
    if trace.header.lacks:
        print(f"Its source lacks {' and '.join(trace.header.lacks)}; those columns hold NaN.")
    if unlinked := trace.header.settings.get("unlinked"):
        print(f"{unlinked} tokens could not be told which text they go on; they have the label linked=no.")


@app.command("verify")
def verify(trace: TraceFolder) -> None:
    """Read every part, compare hashes and row counts with the header; exit code 2 if anything is amiss."""
    from moeworks.trace import Trace

    found = Trace.open(trace).verify()
    print(f"{trace} is whole: {found.rows} rows of {found.requests} texts in {found.parts} parts, {found.bytes} bytes.")


@app.command("slice")
def slice_(
    trace: TraceFolder,
    where: Annotated[str, typer.Option("--where", help="Tokens to keep, as in 'lang=fr phase=prompt'.")],
    output: Output,
) -> None:
    """Write the part of a trace that a where clause selects."""
    from moeworks.trace import Trace
    from moeworks.where import Where

    kept = Trace.open(trace).slice(Where.parse(where), output)
    print(f"{output}: {len(kept)} rows.")


@app.command("concat")
def concat(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE...", help="Folders of traces of the same model.")],
    output: Output,
) -> None:
    """Join traces of the same model into one."""
    from moeworks.trace import Trace
    from moeworks.trace import concat as join

    joined = join([Trace.open(path) for path in traces], output)
    print(f"{output}: {len(joined)} rows.")


@app.command("export")
def export(
    trace: TraceFolder,
    output: Output,
    to: Annotated[str, typer.Option("--to", help="The format: parquet.")] = "parquet",
) -> None:
    """Write a trace in a format that other programs read."""
    from moeworks.trace import Trace
    from moeworks.trace import export as write

    print(write(Trace.open(trace), output, to=to))
