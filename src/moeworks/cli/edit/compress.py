"""`moeworks edit compress`: experts as factors, their errors first, and a checkpoint or adapter only if asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeworks.cli.options import Json, Model, has_terminal, named_values, one_of

if TYPE_CHECKING:
    from moeworks.edit.compress.measure import Measured

FORMS = ("dense", "factors", "lora")


def command(
    model: Model,
    method: Annotated[
        str, typer.Option("--method", help="mole, base_delta, ternary, mobe or compressed_experts.", show_default=False)
    ],
    rank: Annotated[int | None, typer.Option("--rank", min=0, help="Rank of the method, where it has one.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="Another option of the method; repeatable."),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option("--statistics", metavar="STATS", help="Scored with --rows: outputs are compared on kept rows."),
    ] = None,
    layer: Annotated[
        list[int] | None, typer.Option("--layer", help="Only this layer; repeatable. All unless given.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write; nothing is written without it.")
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--as",
            help="What to write: dense (factors multiplied out, stock, no smaller), lora (base_delta alone: a "
            "stock base and a PEFT adapter), factors (our own format, smaller, read by load_compressed alone).",
        ),
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output.")] = False,
    json: Json = False,
) -> None:
    """Replace experts by factors and print what that costs, layer by layer; write only with -o and --as.

    Errors are relative: of the weights in the Frobenius norm, and of the routed output on the statistics' kept rows.
    Rows that a method fits its factors on flatter it.
    """
    from moeworks.cli.output import print_json
    from moeworks.edit.checkpoint import open_checkpoint
    from moeworks.edit.compress.factors import COMPRESSIONS
    from moeworks.edit.compress.run import check_form, compress, write_compressed, write_dense, write_lora
    from moeworks.edit.statistics_file import Statistics
    from moeworks.engines.progress import Progress
    from moeworks.errors import BadData

    if output is not None and not form:
        raise BadData(f"say what -o is to hold with --as: {', '.join(FORMS)}; --help says what each is.")
    if form:
        one_of(form, FORMS, "--as")
    one_of(method, COMPRESSIONS.names(), "--method")
    check_form(method, form)
    options: dict[str, Any] = named_values(option)
    if rank is not None:
        options["rank"] = rank
    checkpoint = open_checkpoint(model)
    seen = None if statistics is None else Statistics.open(statistics)
    chosen = sorted(set(layer)) if layer else checkpoint.layers
    found = []
    with Progress("Compressing", "layers", total=len(chosen), show=has_terminal() and not json) as bar:
        for compressed in compress(checkpoint, method=method, statistics=seen, layers=chosen, options=options):
            keep = output is not None and form != "dense"
            found.append(compressed if keep else compressed._replace(factors=None))  # type: ignore[arg-type]
            bar.advance(1)
    measured = [compressed.measured for compressed in found]
    if not json:
        _print(measured)
    written: list[Path] = []
    if output is not None:
        show = has_terminal() and not json
        if form == "dense":
            applied = write_dense(
                checkpoint,
                output,
                method=method,
                options=options,
                layers=chosen,
                statistics=seen,
                overwrite=overwrite,
                progress=show,
            )
            written = [applied.output]
        elif form == "lora":
            written = list(write_lora(checkpoint, found, output, overwrite=overwrite, progress=show))
        else:
            written = [write_compressed(checkpoint, found, output, overwrite=overwrite)]
    if json:
        print_json({"method": method, "options": options, "layers": measured, "written": [str(p) for p in written]})
        return
    for path in written:
        print(f"Written to {path}.")


def _print(measured: list[Measured]) -> None:
    from moeworks.cli.output import print_table

    names = list(dict.fromkeys(name for layer in measured for name in layer.weight_error))
    rows = [
        (
            layer.layer,
            *[layer.weight_error.get(name) for name in names],
            layer.error,
            layer.output_error,
            f"{layer.bytes_after / layer.bytes_before:.0%}",
        )
        for layer in measured
    ]
    print_table(["layer", *names, "weights", "output", "bytes"], rows)
    before, after = (sum(getattr(layer, f"bytes_{when}") for layer in measured) for when in ("before", "after"))
    print(f"Experts: {before:,} bytes before, {after:,} after ({after / max(before, 1):.0%}). Errors are relative.")
    if measured and not measured[0].rows:
        print("Outputs were not compared: give statistics with kept rows (--statistics, scored with --rows N).")
