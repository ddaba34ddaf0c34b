"""`moeworks train`: unlearn texts in one expert, and see which experts a task selects once the routers are tuned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moeworks.cli.options import BatchSize, Device, Dtype, Json, Model, Seed, command_line, has_terminal, open_engine

app = typer.Typer(name="train", help="Methods that train a few parameters of a frozen model.", no_args_is_help=True)
Steps = Annotated[int, typer.Option("--steps", min=1, help="Optimiser steps.")]
Rate = Annotated[float, typer.Option("--learning-rate", help="Of the optimiser.")]


@app.command("unlearn")
def unlearn(
    model: Model,
    forget: Annotated[
        str,
        typer.Option(
            "--forget",
            metavar="DATA",
            help="As of record; of a probe, its contrast side.",
            show_default=False,
        ),
    ],
    retain: Annotated[
        str,
        typer.Option(
            "--retain",
            metavar="DATA",
            help="What to keep; of a probe, its other side.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Folder for the unlearned model and its report.", show_default=False),
    ],
    loss: Annotated[
        Literal["ga", "gdiff", "npo", "rmu"], typer.Option("--loss", help="How texts are forgotten.")
    ] = "npo",
    expert: Annotated[
        str, typer.Option("--expert", metavar="L.E", help="Train this expert, not the one of largest affinity.")
    ] = "",
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Take the affinity from this trace of the forget texts (--logits).")
    ] = None,
    steps: Steps = 100,
    optimiser: Annotated[Literal["adamw", "sgd"], typer.Option("--optimiser")] = "adamw",
    learning_rate: Rate = 1e-3,
    retain_weight: Annotated[
        float | None, typer.Option("--lambda", min=0, help="Weight of the retain loss; by --loss unless given.")
    ] = None,
    alpha: Annotated[float, typer.Option("--alpha", min=0, help="Weight of the router anchor.")] = 1.0,
    anchor_tokens: Annotated[
        Literal["all", "forget"], typer.Option("--anchor-tokens", help="Whose tokens the router is anchored for.")
    ] = "all",
    beta: Annotated[float, typer.Option("--beta", help="Of --loss npo.")] = 0.1,
    steering: Annotated[float, typer.Option("--steering", help="Length that --loss rmu steers to.")] = 6.5,
    batch_size: BatchSize = 4,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=2, help="Texts are cut to so many.")] = None,
    held_out: Annotated[float, typer.Option("--held-out", help="Share of documents that is not trained on.")] = 0.2,
    measured: Annotated[int, typer.Option("--measured", min=1, help="At most so many texts behind a figure.")] = 128,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Train a random expert of the layer too, for comparison.")
    ] = True,
    weakens_safety: Annotated[
        bool, typer.Option("--weakens-safety", help="Say so if a safety behaviour is meant to be forgotten.")
    ] = False,
    save_every: Annotated[int, typer.Option("--save-every", min=1, help="Steps between checkpoints.")] = 50,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output.")] = False,
    device: Device = "",
    dtype: Dtype = "",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Make a model forget texts by training the one expert they turn to and its router (SEUF)."""
    from moeworks.cli.output import print_json
    from moeworks.trace import Trace
    from moeworks.train import unlearn as run
    from moeworks.train.report import REPORT
    from moeworks.train.save import check_output

    check_output(output, mark=REPORT, overwrite=overwrite)  # before a model is loaded
    report = run(
        open_engine(model, "", device=device, dtype=dtype),
        forget=forget,
        retain=retain,
        output=output,
        loss=loss,
        expert=expert or None,
        trace=None if trace is None else Trace.open(trace),
        steps=steps,
        optimiser=optimiser,
        learning_rate=learning_rate,
        retain_weight=retain_weight,
        alpha=alpha,
        beta=beta,
        steering=steering,
        anchor_tokens=anchor_tokens,
        batch_size=batch_size,
        max_tokens=max_tokens,
        held_out=held_out,
        measured=measured,
        control=control,
        weakens_safety=weakens_safety,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        save_every=save_every,
        progress=has_terminal(),
        command=command_line(),
    )
    if json:
        print_json(report)
    else:
        print(report.words())
        print(f"Written to {output}; its report is {output / REPORT}.")


@app.command("router-lens")
def router_lens(
    model: Model,
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Texts of the task, as of record.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The scores to write.", show_default=False)],
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the texts.")] = 3.0,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the low-rank updates.")] = 8,
    alpha: Annotated[
        float, typer.Option("--alpha", help="Of the low-rank updates; their factor is alpha / rank.")
    ] = 32.0,
    learning_rate: Rate = 5e-4,
    batch_size: BatchSize = 8,
    samples: Annotated[int, typer.Option("--samples", min=1, help="At most so many texts.")] = 2000,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=2, help="Texts are cut to so many.")] = 300,
    per_layer: Annotated[int, typer.Option("--per-layer", min=1, help="Experts of a layer that are named.")] = 8,
    ceft: Annotated[
        Path | None, typer.Option("--ceft", help="Also write which experts to fine-tune, as PEFT-like JSON.")
    ] = None,
    device: Device = "",
    dtype: Dtype = "",
    seed: Seed = 0,
) -> None:
    """Tune the routers on a task, count which experts then run, and undo the tuning (RouterLens)."""
    from moeworks.train import ceft_settings, top_experts
    from moeworks.train import router_lens as run
    from moeworks.train.engine import opened

    engine = opened(open_engine(model, "", device=device, dtype=dtype), "RouterLens")
    scores = run(
        engine,
        data,
        epochs=epochs,
        rank=rank,
        alpha=alpha,
        learning_rate=learning_rate,
        batch_size=batch_size,
        samples=samples,
        max_tokens=max_tokens,
        per_layer=per_layer,
        seed=seed,
        progress=has_terminal(),
        command=command_line(),
    )
    scores.save(output)
    print(scores.summary())
    for layer, experts in top_experts(scores, per_layer).items():
        print(f"  layer {layer}: experts {', '.join(map(str, experts))}")
    if ceft is not None:
        from json import dumps

        from moeworks.artefact import replace_file

        with replace_file(ceft) as temporary:
            temporary.write_text(dumps(ceft_settings(scores, engine, per_layer=per_layer), indent=2) + "\n")
    print(f"Written to {output}." if ceft is None else f"Written to {output} and {ceft}.")


@app.command("expert-drift")
def expert_drift(
    before: Model,
    after: Annotated[str, typer.Argument(metavar="AFTER", help="The later snapshot.", show_default=False)],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Texts of the earlier task, as of record.", show_default=False)
    ],
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the texts.")] = 3.0,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of the low-rank updates.")] = 8,
    learning_rate: Rate = 5e-4,
    batch_size: BatchSize = 8,
    samples: Annotated[int, typer.Option("--samples", min=1, help="At most so many texts.")] = 2000,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=2, help="Texts are cut to so many.")] = 300,
    held_out: Annotated[float, typer.Option("--held-out", help="Share of documents that is measured.")] = 0.3,
    device: Device = "",
    dtype: Dtype = "",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Tell what a later model lost of an earlier task: wrong experts picked, or experts overwritten (SAME).

    Its routers alone are retrained on the task; what stays lost on held-out documents is drift of the experts. The
    earlier model is retrained the same way as a control.
    """
    from dataclasses import asdict

    from moeworks.cli.output import print_json
    from moeworks.train import expert_drift as run

    found = run(
        open_engine(before, "", device=device, dtype=dtype),
        open_engine(after, "", device=device, dtype=dtype),
        data, epochs=epochs, rank=rank, learning_rate=learning_rate, batch_size=batch_size, samples=samples,
        max_tokens=max_tokens, held_out=held_out, seed=seed, progress=has_terminal(),
    )  # fmt: skip
    if json:
        print_json(asdict(found))
        return
    print(found.words())
