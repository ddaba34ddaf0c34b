"""`moeworks bench`: the league of methods, on planted models and on real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="bench", help="Compare every method on every probe: what finds, and what works.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Option("-o", "--output", help="Folder of the results; what is there is read.")]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="`planted`, `fake` (planted, in numpy), `lab` or any model; repeatable.",
        show_default="planted, lab",
    ),
]
Budget = Annotated[Literal["quick", "full"], typer.Option("--budget", help="How much is computed.")]
Methods = Annotated[str, typer.Option("--methods", help="Only methods whose names begin so, separated by commas.")]
Probes = Annotated[str, typer.Option("--probes", help="Only probes whose names begin so, separated by commas.")]
Page = Annotated[
    Path | None, typer.Option("--page", help="Write the tables, the reading and the pictures here, as Markdown.")
]
Again = Annotated[bool, typer.Option("--again", help="Compute everything again, whatever is there.")]


@app.command("detect")
def detect(
    output: Folder = Path("out/league"),
    model: Models = None,
    budget: Budget = "quick",
    methods: Methods = "",
    probes: Probes = "",
    page: Page = None,
    again: Again = False,
) -> None:
    """Score every probe by every registered method: precision, recall, false discoveries, stability, time."""
    from moeworks.bench import bench_detect

    _run(bench_detect, output, model, budget, methods, probes, page, again)


@app.command("steer")
def steer(
    output: Folder = Path("out/league"),
    model: Models = None,
    budget: Budget = "quick",
    methods: Methods = "",
    probes: Probes = "",
    page: Page = None,
    again: Again = False,
) -> None:
    """Turn the experts of every method, and of every policy, on held-out items: effect, random experts, damage."""
    from moeworks.bench import bench_steer

    _run(bench_steer, output, model, budget, methods, probes, page, again)


@app.command("edit")
def edit(
    output: Folder = Path("out/league"),
    model: Annotated[
        list[str] | None, typer.Option("--model", help="`lab` or any model; repeatable.", show_default="lab")
    ] = None,
    budget: Budget = "quick",
    methods: Methods = "",
    keep: Annotated[str, typer.Option("--keep", help="Shares that stay, separated by commas.")] = "0.75,0.5",
    calibration: Annotated[
        str, typer.Option("--calibration", help="Only this calibration text: matching or mismatching.")
    ] = "",
    page: Page = None,
    again: Again = False,
) -> None:
    """Prune and merge by every registered method: KL, perplexity by language and domain, probes, beside random cuts."""
    from moeworks.bench.editing import EDIT_MODELS, bench_edit
    from moeworks.bench.page import save_page
    from moeworks.bench.run import LEAGUE
    from moeworks.cli.progress import progress_bar
    from moeworks.errors import BadData

    try:
        keeps = tuple(float(word) for word in _words(keep))
    except ValueError:
        raise BadData(f"--keep takes shares separated by commas, as in 0.75,0.5, not '{keep}'.") from None
    with progress_bar("cells") as progress:
        league = bench_edit(
            output,
            models=tuple(model or EDIT_MODELS),
            budget=budget,
            methods=_words(methods),
            keeps=keeps,
            calibrations=_words(calibration),
            resume=not again,
            progress=progress,
        )
    if page is not None:
        save_page(league, page)
        print(f"Written to {page}.")
    print(f"Kept in {output / LEAGUE}.")


@app.command("page")
def show(
    output: Folder = Path("out/league"),
    page: Annotated[Path, typer.Option("--page", help="The page to write.")] = Path("league.md"),
) -> None:
    """Write the page and its pictures anew from what was computed."""
    from moeworks.bench.page import save_page
    from moeworks.bench.run import LEAGUE
    from moeworks.bench.schema import load_league

    save_page(load_league(output / LEAGUE), page)
    print(f"Written to {page}.")


def _run(
    bench: object,
    output: Path,
    model: list[str] | None,
    budget: str,
    methods: str,
    probes: str,
    page: Path | None,
    again: bool,
) -> None:
    from moeworks.bench.page import save_page
    from moeworks.bench.run import LEAGUE, MODELS
    from moeworks.cli.progress import progress_bar

    assert callable(bench)
    with progress_bar("cells") as progress:
        league = bench(
            output,
            models=tuple(model or MODELS),
            budget=budget,
            methods=_words(methods),
            probes=_words(probes),
            resume=not again,
            progress=progress,
        )
    if page is not None:
        save_page(league, page)
        print(f"Written to {page}.")
    print(f"Kept in {output / LEAGUE}.")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
