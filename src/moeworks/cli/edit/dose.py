"""`moeworks edit dose`: how many experts a model can spare, before anything is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeworks.cli.edit.options import Data, WriteEvidence
from moeworks.cli.options import BatchSize, Device, Dtype, Json, Model, Seed, has_terminal, open_engine

__all__ = ["command"]


def command(
    model: Model,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="PLAN", help="A plan whose ranking is followed.", show_default=False),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            "--statistics",
            metavar="STATS",
            help="Rank by these; without them and a plan, statistics of the texts for finding are collected first.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="How experts are ranked; a score of `edit plan --list`.")
    ] = "reap",
    data: Data = None,
    keeps: Annotated[
        str, typer.Option("--keep", metavar="SHARES", help="Shares that stay.")
    ] = "1,0.875,0.75,0.625,0.5",
    limit: Annotated[float, typer.Option("--limit", help="Rise of the perplexity that a cut may cost.")] = 0.05,
    controls: Annotated[int, typer.Option("--controls", min=0, help="Random cuts of each size.")] = 3,
    write_evidence: WriteEvidence = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="PNG", help="Draw the curve here.", show_default=False)
    ] = None,
    batch_size: BatchSize = 8,
    device: Device = "",
    dtype: Dtype = "",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Mask more and more of the lowest-ranked experts: dev texts choose how many can go, held-out texts judge.

    DATA is split by document: half for finding (the statistics, where none are given), a fifth for dev, the rest held
    out. Without it the built-in neutral texts are dev and held-out, and texts of the built-in probes are for finding.
    """
    from moeworks.cli.edit.options import add_evidence, check_evidence_file
    from moeworks.cli.output import print_json
    from moeworks.edit.dose import dose
    from moeworks.edit.dose_picture import save_dose_picture
    from moeworks.edit.dose_plan import dose_texts, ranking_plan
    from moeworks.edit.files import load_edit_plan
    from moeworks.errors import BadData

    if plan is not None and statistics is not None:
        raise BadData("a plan has its ranking; give --plan or --statistics, not both.")
    if write_evidence:
        check_evidence_file(plan)
    try:
        shares = [float(word) for word in keeps.split(",")]
    except ValueError:
        raise BadData(f"--keep takes shares separated by commas, as in 1,0.75,0.5, not '{keeps}'.") from None
    texts = dose_texts(data)
    engine = open_engine(model, "", device=device, dtype=dtype)
    ranking = ranking_plan(
        engine, plan=plan, statistics=statistics, method=method, texts=texts.find, seed=seed, progress=has_terminal()
    )
    curve = dose(
        engine,
        ranking,
        keeps=shares,
        limit=limit,
        dev=texts.dev,
        held_out=texts.held_out,
        controls=controls,
        batch_size=batch_size,
        seed=seed,
        progress=has_terminal(),
    )
    if write_evidence and plan is not None:
        add_evidence(load_edit_plan(plan), plan, dose=curve.evidence())
    if picture is not None:
        save_dose_picture(curve, picture)
    if json:
        print_json(curve)
        return
    print(curve.words())
    if picture is not None:
        print(f"Written to {picture}.")
