"""The league, run: every method on every case, cell by cell; what is done is read, not redone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, TypeVar

from moeworks import __version__
from moeworks.bench.cases import SIZES, Case, Sizes, cases_of
from moeworks.bench.detection import cell_of
from moeworks.bench.methods import Detector, Steerer, detectors, steerers
from moeworks.bench.schema import BudgetName, DetectCell, League, Settings, SteerCell, load_league, save_league
from moeworks.bench.steering import Evaluations, steered
from moeworks.bench.store import Bench
from moeworks.errors import BadData, did_you_mean

__all__ = ["LEAGUE", "MODELS", "bench_detect", "bench_steer", "versions"]

MODELS, PLANTED = ("planted", "lab"), ("planted", "fake")
LEAGUE = "league.json"
Progress = Callable[[str, int, int], None]
Named = TypeVar("Named", Detector, Steerer)
Cell = TypeVar("Cell", DetectCell, SteerCell)


def bench_detect(
    folder: str | Path,
    *,
    models: Sequence[str] = MODELS,
    budget: BudgetName = "quick",
    methods: Sequence[str] = (),
    probes: Sequence[str] = (),
    resume: bool = True,
    progress: Progress | None = None,
) -> League:
    """Score every probe by every registered method and write `league.json`; what it holds of others stays as it is.

    Args:
        folder: where results are kept; a cell that is there with the same settings is read, not redone.
        models: `planted` (torch twins of known truth), `fake` (the same in numpy), or what `moeworks.load` opens.
        budget: `quick` for minutes with a small model, `full` for all probes and more texts.
        methods: only those whose name begins with one of these.
        probes: only those whose name begins with one of these.
        resume: False makes every cell again.
        progress: called with what is done, how much, and of how much.

    Raises:
        BadData: no method or no probe has such a name.
    """
    sizes, chosen = SIZES[budget], _wanted(detectors(), methods)
    cells: list[DetectCell] = []
    weights: dict[str, str] = {}
    for bench, case, advance in _cases(
        folder, models, sizes, budget, probes, len(chosen), resume=resume, every_null=True, progress=progress
    ):
        weights[case.model] = _weights(case, bench)
        for detector in chosen:
            cells.append(cell_of(detector, case, *bench.scores(detector, chosen)))
            advance()
    settings = {model: _settings(budget, sizes, sizes.null_seeds, weights[model]) for model in models}
    return _kept(Path(folder), "detect", cells, settings, whole=not methods and not probes)


def bench_steer(
    folder: str | Path,
    *,
    models: Sequence[str] = MODELS,
    budget: BudgetName = "quick",
    methods: Sequence[str] = (),
    probes: Sequence[str] = (),
    resume: bool = True,
    progress: Progress | None = None,
) -> League:
    """Turn the first experts of every method, and of every policy, on held-out items, and write `league.json`.

    Args and errors are those of `bench_detect`, of which the scores are taken where they are there.
    """
    sizes, chosen = SIZES[budget], _wanted(steerers(), methods)
    among = list({steerer.detector.name: steerer.detector for steerer in chosen}.values())
    cells: list[SteerCell] = []
    weights: dict[str, str] = {}
    for bench, case, advance in _cases(
        folder, models, sizes, budget, probes, len(chosen), resume=resume, every_null=False, progress=progress
    ):
        weights[case.model] = _weights(case, bench)
        evaluations = Evaluations(case, bench.engine, sizes)
        for steerer in chosen:

            def make(steerer: Steerer = steerer, bench: Bench = bench, done: Evaluations = evaluations) -> SteerCell:
                scores, why, _ = bench.scores(steerer.detector, among)
                return steered(steerer, scores, why, done)

            cells.append(bench.steer_cell(steerer, make))
            advance()
    settings = {model: _settings(budget, sizes, sizes.seeds, weights[model]) for model in models}
    return _kept(Path(folder), "steer", cells, settings, whole=not methods and not probes)


def _cases(
    folder: str | Path,
    models: Sequence[str],
    sizes: Sizes,
    budget: BudgetName,
    probes: Sequence[str],
    each: int,
    *,
    resume: bool,
    every_null: bool,
    progress: Progress | None,
) -> Iterator[tuple[Bench, Case, Callable[[], None]]]:
    """Yield each case with what is kept of it and what to call after each of its `each` cells."""
    listed = [
        case for model in models for case in cases_of(model, sizes, probes=probes, every_null=every_null, budget=budget)
    ]
    done = 0
    for case in listed:

        def advance(case: Case = case) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress("cells", done, each * len(listed))

        bench = Bench(Path(folder), case, sizes, resume=resume)
        try:
            with bench.engine.remembering():
                yield bench, case, advance
        finally:
            bench.close()


def _wanted(known: list[Named], names: Sequence[str]) -> list[Named]:
    found = [method for method in known if not names or method.name.startswith(tuple(names))]
    if not found:
        raise BadData(f"no method's name begins with '{names[0]}'; {did_you_mean(names[0], [m.name for m in known])}")
    return found


def _weights(case: Case, bench: Bench) -> str:
    """Return the hash of a real model's weights; planted ones are told by their seeds."""
    return "" if case.truth is not None else bench.engine.identity.weight_hash


def versions() -> dict[str, str]:
    """Return which programs a league is made with."""
    found = {"moeworks": __version__}
    for name in ("numpy", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _settings(budget: BudgetName, sizes: Sizes, null_seeds: int, weights: str) -> Settings:
    return Settings(
        budget=budget,
        seeds=sizes.seeds,
        null_seeds=null_seeds,
        weights=weights,
        versions=versions(),
        sizes=asdict(sizes),
    )


def _kept(
    folder: Path, part: Literal["detect", "steer"], cells: Sequence[Cell], settings: dict[str, Settings], *, whole: bool
) -> League:
    """Put cells into the folder's league, and return it.

    The cells of a model that was run with all methods and probes take the place of all that there were of it; of a
    model that was run in part, each takes the place of its like.
    """
    path = folder / LEAGUE
    before = load_league(path) if path.is_file() else League(moeworks=__version__)
    known: Sequence[DetectCell | SteerCell] = getattr(before, part)
    kept = {(c.model, c.method, c.probe, c.seed): c for c in known if not (whole and c.model in settings)}
    kept |= {(c.model, c.method, c.probe, c.seed): c for c in cells}
    found = {
        "moeworks": __version__,
        part: tuple(sorted(kept.values(), key=lambda cell: cell.model not in PLANTED)),  # planted models first
        f"{part}_settings": {**getattr(before, f"{part}_settings"), **settings},
    }
    league = League.model_validate({**dict(before), **found})
    save_league(league, path)
    return league
