"""`moeworks place predict` and `place gate`: how well the experts of a later layer can be foreseen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moeworks.cli.options import Device, Dtype, EngineName, Json, Model, Seed, open_engine
from moeworks.cli.place.options import (
    ExpertBytes,
    Hidden,
    PhaseName,
    Precision,
    TraceFolder,
    WhereClause,
    bytes_of_expert,
    clause,
    open_trace,
    shown,
)

if TYPE_CHECKING:
    from moeworks.place.predict import Prediction

Distance = Annotated[int, typer.Option("--distance", min=1, help="Layers between what is known and what is foreseen.")]


def command(
    trace: TraceFolder,
    predictor: Annotated[
        list[str] | None,
        typer.Option(
            "--predictor",
            help="load, token, markov, activation_matrix, oracle; repeatable; all, unless given.",
            show_default=False,
        ),
    ] = None,
    distance: Distance = 1,
    width: Annotated[
        int | None,
        typer.Option(
            "--width", min=1, help="Experts prefetched a token and layer; k, unless given.", show_default=False
        ),
    ] = None,
    stored: Annotated[int, typer.Option("--stored", min=1, help="Texts that activation_matrix keeps.")] = 100,
    where: WhereClause = "",
    phase: PhaseName = None,
    expert_bytes: ExpertBytes = "",
    hidden: Hidden = None,
    precision: Precision = "bfloat16",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure prefetch predictors on other documents than they learned from.

    Recall is the share of the experts that ran which had been prefetched; chance guesses in proportion to load.
    """
    from moeworks.place.predict import predict_experts

    opened = open_trace(trace)
    found = predict_experts(
        opened, predictors=predictor, distance=distance, width=width, stored=stored, where=clause(where, phase),
        expert_bytes=bytes_of_expert(opened.header.model, expert_bytes, hidden, precision), seed=seed,
    )  # fmt: skip
    _show(found, json)


def gate(
    model: Model,
    data: Annotated[str, typer.Argument(metavar="DATA", help="Texts, as `record` reads them.", show_default=False)],
    distance: Distance = 1,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Stop after so many texts.")] = None,
    expert_bytes: ExpertBytes = "",
    hidden: Hidden = None,
    precision: Precision = "bfloat16",
    engine: EngineName = "",
    device: Device = "",
    dtype: Dtype = "",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure the next layer's gate: a later router, asked early on the hidden state of an earlier one."""
    from itertools import islice

    from moeworks.data import read_examples
    from moeworks.place.gate import predict_by_gate

    loaded = open_engine(model, engine, device=device, dtype=dtype)
    found = predict_by_gate(
        loaded, islice(read_examples(data), limit), distance=distance,
        expert_bytes=bytes_of_expert(loaded.identity, expert_bytes, hidden, precision), seed=seed,
    )  # fmt: skip
    _show(found, json)


def _show(found: Prediction, json: bool) -> None:
    from moeworks.cli.output import print_json, print_table

    if json:
        print_json(found.as_json())
        return
    rows = found.table.to_pylist()
    with_bytes = any(row["wasted_bytes"] is not None for row in rows)
    print_table(
        ["predictor", "layer", "recall", "chance", "wasted a token", *(["wasted MB"] if with_bytes else [])],
        [
            [
                row["predictor"],
                "all" if row["layer"] is None else row["layer"],
                shown(row["recall"], row["low"], row["high"]),
                shown(row["chance"]),
                f"{row['wasted']:.2f}",
                *([f"{row['wasted_bytes'] / 1e6:.3f}"] if with_bytes else []),
            ]
            for row in rows
        ],
    )
    print(
        f"\nRecall of {'k' if found.width is None else found.width} experts prefetched {found.distance} ahead, "
        f"{found.tokens:,} tokens of {found.documents} documents, learned from {found.calibration_documents} others; "
        "chance: guesses in proportion to load."
    )
