"""`moeworks place balance` and `place batch`: loads of GPUs before and after placement, experts that a batch needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moeworks.cli.options import Json, Seed
from moeworks.cli.place.options import PhaseName, TraceFolder, WhereClause, clause, open_trace, shown


def command(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A trace's folder, or a profile of recorded counts.", show_default=False),
    ],
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs that experts are spread over.", show_default=False)],
    extra: Annotated[int, typer.Option("--extra", min=0, help="Slots beyond one an expert, over all GPUs.")] = 0,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines.")] = 1,
    groups: Annotated[
        int | None,
        typer.Option("--groups", min=1, help="Groups of experts; the router's, unless given.", show_default=False),
    ] = None,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", min=1, help="Tokens of one batch.")] = 4096,
    alpha: Annotated[float, typer.Option("--alpha", min=0, help="LLEP: a GPU takes at most this × the mean.")] = 1.0,
    fewest: Annotated[int, typer.Option("--fewest", min=0, help="LLEP: smaller portions are not moved.")] = 1024,
    threshold: Annotated[float, typer.Option("--threshold", min=0, help="LLEP: leave batches below alone.")] = 1.0,
    where: WhereClause = "",
    phase: PhaseName = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write EPLB's placement here.", show_default=False)
    ] = None,
    to: Annotated[
        Literal["sglang", "vllm", "vllm-ascend"], typer.Option("--to", help="Format of the placement.")
    ] = "sglang",
    hidden_layers: Annotated[
        int | None,
        typer.Option("--hidden-layers", min=1, help="Layers of the model, dense ones too.", show_default=False),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure GPU imbalance (largest / mean load) as experts stand, with EPLB's copies, and with LLEP batch by batch.

    EPLB sees half of the documents; the others are measured. Of a profile (place profile) with recorded forward passes
    it sees the first half of them, and there are no batches to measure.
    """
    from moeworks.cli.output import print_json, print_table
    from moeworks.errors import BadData
    from moeworks.place.balance import balance_experts, balance_profile

    if source.is_dir():
        found = balance_experts(
        open_trace(source), gpus=gpus, extra=extra, groups=groups, nodes=nodes, where=clause(where, phase),
        batch_tokens=batch_tokens, alpha=alpha, fewest=fewest, threshold=threshold, seed=seed,
    )  # fmt: skip
    else:
        from moeworks.place.profile import load_profile

        if where or phase:
            raise BadData("--where and --phase select tokens of a trace; a profile has none any more.")
        found = balance_profile(load_profile(source), gpus=gpus, extra=extra, groups=groups, nodes=nodes, seed=seed)
    if output is not None:
        from moeworks.place.exports import export_placement

        export_placement(found.placements, output, to=to, hidden_layers=hidden_layers)
    if json:
        print_json(found.as_json())
        return
    print_table(
        ["layer", "plain", "eplb", "fitted", "chance", "batch plain", "batch eplb", "batch llep", "moved", "copies"],
        [
            [
                row["layer"],
                *(shown(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in ("plain", "eplb")),
                *(
                    shown(row[name])
                    for name in ("fitted", "chance", "batch_plain", "batch_eplb", "batch_llep", "llep_moved")
                ),
                f"{row['llep_copies']:.1f}" if found.batches else "-",
            ]
            for row in found.table.to_pylist()
        ],
    )
    unit = "documents" if found.batches else "blocks of forward passes"
    batches = (
        f"; batches of {found.batch_tokens} tokens ({found.batches}); moved: LLEP's share of tokens, copies: weights "
        "it sends a batch"
    )
    print(
        f"\nLargest / mean load of {gpus} GPUs, 1 is even; eplb: placed by {found.calibration_documents} other {unit}, "
        f"fitted: by the {found.documents} measured ones themselves, chance: an even router"
        f"{batches if found.batches else ''}."
    )


def batch(
    trace: TraceFolder,
    size: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Texts together; repeatable; 1 to 16, unless given.")
    ] = None,
    waiting: Annotated[
        int, typer.Option("--waiting", min=1, help="Batches' worth of tokens that expert-aware batching chooses from.")
    ] = 4,
    where: WhereClause = "",
    phase: PhaseName = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Count the distinct experts that a step of a batch needs, and how many fewer if batches are chosen by expert."""
    from moeworks.cli.output import print_json, print_table
    from moeworks.place.batching import experts_per_batch

    table = experts_per_batch(
        open_trace(trace), batches=size or (1, 2, 4, 8, 16), waiting=waiting, where=clause(where, phase), seed=seed
    )
    if json:
        print_json({"trace": str(trace), "waiting": waiting, "seed": seed, "rows": table.to_pylist()})
        return
    print_table(
        ["layer", "batch", "distinct", "chance", "load chance", "arrival", "aware", "steps"],
        [
            [
                row["layer"],
                row["batch"],
                shown(row["distinct"], row["low"], row["high"]),
                *(shown(row[name]) for name in ("chance", "load_chance", "arrival", "aware")),
                row["steps"],
            ]
            for row in table.to_pylist()
        ],
    )
    print(
        "\nDistinct experts a step; chance: independent tokens over even experts, load chance: over experts as they "
        f"are used; arrival and aware: batches out of {waiting} batches' waiting tokens, in order and by expert, if "
        "routes are known beforehand."
    )
