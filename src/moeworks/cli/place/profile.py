"""`moeworks place profile` and `place export`: the heat of a trace as a file, and in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moeworks.cli.options import Json, command_line, identity_like
from moeworks.cli.place.options import PhaseName, WhereClause, clause, open_trace

Output = Annotated[Path, typer.Option("-o", "--output", help="The file to write.", show_default=False)]


def command(
    source: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="A trace's folder, or dumps (.pt) of counts by SGLang's expert-distribution recorder.",
            show_default=False,
        ),
    ],
    output: Output,
    where: WhereClause = "",
    phase: PhaseName = None,
    like: Annotated[
        str,
        typer.Option(
            "--like", metavar="MODEL|TRACE", help="Of dumps: the model, or a trace of it.", show_default=False
        ),
    ] = "",
    json: Json = False,
) -> None:
    """Write how hot each expert is by phase, what runs together and how soon experts are used again, as JSON.

    Of dumps of counts only how hot experts are; several files of mode per_pass, one a rank, are added up.
    """
    from moeworks.cli.output import print_json
    from moeworks.errors import BadData
    from moeworks.place.profile import profile_trace, save_profile

    if source[0].is_dir():
        if len(source) > 1 or like:
            raise BadData("a profile is made of one trace, which knows its model; join traces with trace concat.")
        found = profile_trace(open_trace(source[0]), where=clause(where, phase), command=command_line())
    else:
        from moeworks.place.recorded import profile_recorded

        if not like:
            raise BadData(f"{source[0]} does not say whose counts it holds; name the model, or a trace of it: --like.")
        if where or phase:
            raise BadData("--where and --phase select tokens of a trace; a dump of counts has none.")
        found = profile_recorded(source, model=identity_like(like), command=command_line())
    save_profile(found, output)
    facts = {
        "path": str(output),
        "layers": len(found.layers),
        "documents": found.documents,
        "tokens": {one.phase: one.tokens for one in found.layers[0].phases},
    }
    if json:
        print_json(facts)
        return
    tokens = ", ".join(f"{one.tokens:,} {one.phase}" for one in found.layers[0].phases)
    if found.lacks:
        print(f"{output}: {len(found.layers)} layers, {found.layers[0].phases[0].tokens:,} tokens (runs / k).")
        print(f"Its source lacks {', '.join(found.lacks[:-1])} and {found.lacks[-1]}.")
        return
    print(f"{output}: {len(found.layers)} layers, {tokens} tokens of {found.documents} documents.")


def export(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A profile, or a trace's folder.", show_default=False)
    ],
    output: Output,
    to: Annotated[
        Literal["table", "sglang", "ktransformers", "exllamav3", "llama.cpp"],
        typer.Option("--to", help="Who reads it; see the page on placement for how sure each format is."),
    ],
    phase: PhaseName = None,
    where: WhereClause = "",
    hidden_layers: Annotated[
        int | None,
        typer.Option("--hidden-layers", min=1, help="Layers of the model, dense ones too.", show_default=False),
    ] = None,
    as_decode: Annotated[
        bool, typer.Option("--as-decode", help="llama.cpp: write prompt tokens as decoded ones.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a profile in the format of a serving engine or an offload runtime."""
    from moeworks.cli.output import print_json
    from moeworks.errors import BadData
    from moeworks.place.exports import COUNT_FORMATS, export_counts, export_routing
    from moeworks.place.profile import load_profile, profile_trace

    is_trace = source.is_dir()
    if to == "llama.cpp":
        if not is_trace:
            raise BadData(
                "a llama.cpp profile lists every token's experts; export it from a trace, not from a profile."
            )
        export_routing(open_trace(source), output, where=clause(where, phase), as_decode=as_decode)
        read_by = "the expert-cache forks of llama.cpp: --moe-cache-profile"
    else:
        if where and not is_trace:
            raise BadData("--where selects rows of a trace; a profile has none any more: export from the trace.")
        profile = profile_trace(open_trace(source), where=clause(where, None)) if is_trace else load_profile(source)
        export_counts(profile, output, to=to, phase=phase, hidden_layers=hidden_layers)
        read_by = COUNT_FORMATS[to].read_by
    if json:
        print_json({"path": str(output), "to": to, "read_by": read_by})
        return
    print(f"{output}: for {read_by}.")
