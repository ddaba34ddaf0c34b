"""`moeworks edit preview`: what an edit plan would do, measured on the running model; nothing is written."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from moeworks.cli.edit.options import Data, EditPlanFile, NewTokens, Prompts, StatisticsFolder, WriteEvidence
from moeworks.cli.options import BatchSize, Device, Dtype, Json, Model, Seed, has_terminal, open_engine

__all__ = ["command"]


def command(
    model: Model,
    plan: EditPlanFile,
    data: Data = None,
    probe: Annotated[
        list[str] | None, typer.Option("--probe", help="Measure a probe's metric too, as in facts/fr; repeatable.")
    ] = None,
    statistics: StatisticsFolder = None,
    controls: Annotated[int, typer.Option("--controls", min=0, help="Random plans with the same counts.")] = 3,
    split: Annotated[
        Literal["held_out", "dev"], typer.Option("--split", help="Part of the built-in texts and of the probes.")
    ] = "held_out",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Items at most of each probe.")] = None,
    prompts: Prompts = 0,
    new_tokens: NewTokens = 256,
    speed: Annotated[bool, typer.Option("--speed", help="Measure tokens a second too; a mask saves nothing.")] = False,
    write_evidence: WriteEvidence = False,
    batch_size: BatchSize = 8,
    device: Device = "",
    dtype: Dtype = "",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Try an edit plan without writing it: KL, perplexity by language and domain, probes, beside random plans."""
    from moeworks.cli.edit.options import add_evidence, check_evidence_file, read_data, read_statistics
    from moeworks.cli.output import print_json
    from moeworks.edit.files import load_edit_plan
    from moeworks.edit.preview import preview
    from moeworks.probes import load_probe

    if write_evidence:
        check_evidence_file(plan)
    loaded, probes = load_edit_plan(plan), [load_probe(name) for name in probe or ()]
    found = preview(
        open_engine(model, "", device=device, dtype=dtype),
        loaded,
        probes=probes,
        texts=read_data(data),
        statistics=read_statistics(statistics),
        controls=controls,
        split=split,
        limit=limit,
        prompts=prompts,
        new_tokens=new_tokens,
        speed=speed,
        batch_size=batch_size,
        seed=seed,
        progress=has_terminal(),
    )
    if write_evidence:
        add_evidence(loaded, plan, preview=found.evidence())
    if json:
        print_json(found)
        return
    print(found.words())
    if write_evidence:
        print(f"Written into {plan}.")
