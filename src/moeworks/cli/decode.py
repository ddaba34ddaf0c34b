"""`moeworks decode`: what the neurons of experts and the rows of routers point to in the vocabulary."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from moeworks.cli.options import Device, Dtype, EngineName, Json, Model, open_engine


def command(
    model: Model,
    experts: Annotated[
        list[str] | None, typer.Argument(metavar="[EXPERT]...", help="Such as L3.E5 or L3.E0-7; all without any.")
    ] = None,
    neurons: Annotated[str, typer.Option("--neurons", help="Which neurons, as in 0-7,12; all unless given.")] = "",
    vectors: Annotated[
        list[str] | None,
        typer.Option("--vector", help="gate, up (what is read), down (what is written), router; repeatable."),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Tokens for each vector.")] = 5,
    away: Annotated[bool, typer.Option("--away", help="Tokens that a vector points away from most.")] = False,
    engine: EngineName = "",
    device: Device = "",
    dtype: Dtype = "",
    json: Json = False,
) -> None:
    """Name the neurons of experts and the rows of routers by the tokens that their weights point to.

    No text is run: weights are read with the model's unembedding. Early layers decode poorly, and a neuron that is
    negative writes the opposite (--away).
    """
    from moeworks.address import parse_addresses
    from moeworks.cli.output import print_json
    from moeworks.find.inside.decode import VECTORS, decode, decoded_words

    sign: Literal[1, -1] = -1 if away else 1
    table = decode(
        open_engine(model, engine, device=device, dtype=dtype),
        parse_addresses(experts) if experts else None,
        neurons=_numbers(neurons),
        vectors=vectors or VECTORS,  # type: ignore[arg-type]
        top=top,
        sign=sign,
    )
    if json:
        print_json({"decoded": table.to_pylist()})
        return
    for line in decoded_words(table):
        print(line)


def _numbers(text: str) -> list[int] | None:
    """Read `0-7,12`."""
    from moeworks.errors import BadData

    numbers: list[int] = []
    for word in filter(None, text.replace(" ", ",").split(",")):
        first, dash, last = word.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise BadData(f"'{word}' is not a neuron or a range of them; write 17 or 0-7.")
        numbers += range(int(first), int(last or first) + 1)
    return numbers or None
