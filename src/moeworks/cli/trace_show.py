"""`moeworks trace show`: the tokens of a trace with their routes, as the page's token view has them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeworks.cli.options import Json, TraceFolder

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Tokenizer", "command"]

Tokenizer = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="FOLDER",
        help="Folder of the tokenizer, where the model's own is not found.",
        show_default=False,
    ),
]
_LAYER = ("entropy", "margin", "divergence")


def command(
    trace: TraceFolder,
    request: Annotated[
        int | None, typer.Option("--request", min=0, help="All tokens of this text.", show_default=False)
    ] = None,
    start: Annotated[int, typer.Option("--from", metavar="ROW", min=0, help="First row.")] = 0,
    rows: Annotated[int, typer.Option("--rows", min=1, max=20_000, help="How many rows.")] = 40,
    layer: Annotated[
        list[int] | None,
        typer.Option("--layer", help="Layers shown, all unless given; repeatable.", show_default=False),
    ] = None,
    tokenizer: Tokenizer = None,
    json: Json = False,
) -> None:
    """Show tokens and where they went: text, phase, and of every layer the experts, with one layer all its numbers.

    Each line is a token: the piece of text that it is, and its experts in the router's own order. Of one layer
    (--layer) also weights, entropy, margin and divergence from the trace's mean; --json has them for all.
    """
    from moeworks.errors import BadData
    from moeworks.trace import Trace
    from moeworks.view.tokens import rows_of_request, token_table

    opened = Trace.open(trace)
    if request is not None:
        if start:
            raise BadData("--request names the rows of a text; leave --from out.")
        start, stop = rows_of_request(opened, request)
    else:
        stop = min(start + rows, len(opened))
    table = token_table(
        opened, start=start, stop=stop, layers=layer or None, decoder=decoder_of(opened, tokenizer)
    )  # fmt: skip
    if json:
        _print_json(str(trace), table)
    else:
        _print(table, len(opened))


def decoder_of(trace: Any, tokenizer: Path | None) -> Any:
    """Return the decoder of a trace's tokens: of the tokenizer that was named, else of the one that is found."""
    from moeworks.errors import BadData
    from moeworks.view.decoding import decoder_for, decoder_of_file

    model = trace.header.model
    if tokenizer is None:
        return decoder_for(model)
    found = decoder_of_file(tokenizer, tokenizer_hash=model.tokenizer_hash if model is not None else "")
    if found.reason:
        raise BadData(f"{found.reason}; give the tokenizer that the trace was recorded with, or leave it out.")
    return found


def _told(table: pa.Table) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}


def _print_json(source: str, table: pa.Table) -> None:
    from moeworks.cli.output import print_json

    told = _told(table)
    facts = {"trace": source, "rows_in_all": int(told["rows"]), "entropy": told["entropy"]}
    print_json({**facts, "no_text": told.get("no_text", ""), "rows": table.to_pylist()})


def _print(table: pa.Table, count: int) -> None:
    from json import loads

    from moeworks.cli.output import print_table

    told = _told(table)
    layers = loads(told["layers"])
    one = layers[0] if len(layers) == 1 else None
    extra = [name for name in _LAYER if one is not None and f"L{one}.{name}" in table.column_names]
    heads = ["row", "request", "position", "phase", "token" if "no_text" in told else "text"]
    heads += [f"L{layer}" for layer in layers] + (["weights", *extra] if one is not None else [])
    lines = []
    for row in table.to_pylist():
        shown = str(row["token"]) if "no_text" in told else "…" if row["part"] else repr(row["text"])
        line = [row["row"], row["request"], row["position"], row["phase"], shown]
        line += [" ".join(map(str, row[f"L{layer}.ids"])) for layer in layers]
        if one is not None:
            line += [" ".join(f"{weight:.3f}" for weight in row[f"L{one}.weights"])]
            line += [row[f"L{one}.{name}"] for name in extra]
        lines.append(line)
    print_table(heads, lines)
    print(f"\n{len(lines)} of {count} rows; experts in the router's order.", end=" ")
    if "no_text" in told:
        print(f"No text: {told['no_text']}.")
    else:
        print("…: part of a character that ends in a later token.")
