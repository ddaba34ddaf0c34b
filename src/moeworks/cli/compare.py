"""`moeworks compare`: two traces of the same texts, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moeworks.cli.options import Json, Seed

if TYPE_CHECKING:
    from moeworks.compare import Comparison

Label = Annotated[str | None, typer.Option("--label", help="Label whose values are told apart.", show_default=False)]
WhereClause = Annotated[str, typer.Option("--where", help="Tokens and layers that count.")]
Picture = Annotated[Path | None, typer.Option("--picture", help="Draw it: a .png or .svg to write.")]

COLUMNS = ("layer", "overlap", "low", "high", "chance", "flips", "first_flips", "near_ties")
MORE = ("near_ties_of_all", "margin", "flip_margin", "reordered", "largest_weight_error")


def command(
    first: Annotated[str, typer.Argument(metavar="A", help="A trace's folder: the reference.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="The other trace's folder.", show_default=False)],
    where: WhereClause = "",
    label: Label = None,
    near_tie: Annotated[
        float | None,
        typer.Option(
            "--near-tie",
            help="Margins below this share of a token's largest logit are near-ties; by the dtypes, unless given.",
            show_default=False,
        ),
    ] = None,
    picture: Picture = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare two traces of the same texts: experts, weights, where tokens part first, and probably why.

    Engine against engine, quantised against base, checkpoint against checkpoint. Record A with --logits to learn how
    close the decisions were and which rule would turn one trace into the other.
    """
    from moeworks.compare import compare
    from moeworks.trace import Trace
    from moeworks.where import Where

    found = compare(
        Trace.open(first), Trace.open(second), where=Where.parse(where), label=label, near_tie=near_tie, seed=seed
    )
    show(found, picture=picture, json=json)


def show(found: Comparison, *, picture: Path | None, json: bool) -> None:
    """Print a comparison, and draw it if that is asked for."""
    from moeworks.cli.output import print_json, print_table
    from moeworks.compare import in_words

    if picture is not None:
        from moeworks.compare.picture import save_comparison

        save_comparison(found, picture)
    if json:
        print_json(found.as_json())
        return
    print(in_words(found))
    print()
    columns = [*COLUMNS, *MORE, *(name for name in ("cause", "weight_cause") if any(found.layers[name].to_pylist()))]
    print_table(columns, [[_cell(line[name]) for name in columns] for line in found.layers.to_pylist()])
    if found.labels.num_rows:
        print()
        print_table(found.labels.column_names, [row.values() for row in found.labels.to_pylist()])


def _cell(value: object) -> object:
    return None if isinstance(value, float) and value != value else value
