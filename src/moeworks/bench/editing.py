"""The editing league: every registered way to prune or merge, at 25 % and 50 %, on two calibrations, beside random."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from moeworks import __version__
from moeworks.artefact import replace_file
from moeworks.bench.schema import BudgetName, EditCell, League, Settings, load_league, save_league
from moeworks.edit.calibration import calibration_texts, english_texts
from moeworks.edit.methods import needs_of_method
from moeworks.edit.planning import kind_of, method_function, method_names, plan_edit
from moeworks.errors import BadData, MoeworksError, did_you_mean
from moeworks.examples import Example
from moeworks.probes import load_probe, neutral_texts
from moeworks.study.budget import some_items, some_of_each
from moeworks.study.steps import settings_hash

if TYPE_CHECKING:
    from moeworks.edit.plan import EditPlan
    from moeworks.edit.statistics_file import Statistics
    from moeworks.engines.transformers.engine import TransformersEngine

__all__ = ["CALIBRATIONS", "EDIT_MODELS", "EDIT_SIZES", "KEEPS", "PROBES", "EditSizes", "bench_edit"]

EDIT_MODELS = ("lab",)
KEEPS = (0.75, 0.5)
RANDOM, RANDOM_SEEDS = ("random", "random_neurons"), 3  # of experts, of neurons
# The test texts are of all languages and domains; so are the first texts, and the others are English alone.
CALIBRATIONS = {"matching": calibration_texts, "mismatching": english_texts}
PROBES = ("facts/en", "facts/fr", "facts/zh", "calendar", "requests/prompt")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class EditSizes:
    """How much a budget stands for; None is all there is."""

    calibration: int  # texts
    rows: int  # kept for methods that need activations
    neutral: int | None  # texts that perplexity is measured on
    items: int | None  # of each probe
    bootstrap: int


EDIT_SIZES: dict[BudgetName, EditSizes] = {
    "quick": EditSizes(calibration=40, rows=512, neutral=24, items=12, bootstrap=200),
    "full": EditSizes(calibration=400, rows=4096, neutral=None, items=60, bootstrap=1000),
}


def bench_edit(
    folder: str | Path,
    *,
    models: Sequence[str] = EDIT_MODELS,
    budget: BudgetName = "quick",
    methods: Sequence[str] = (),
    keeps: Sequence[float] = KEEPS,
    calibrations: Sequence[str] = (),
    resume: bool = True,
    progress: Progress | None = None,
) -> League:
    """Plan, carry out in memory and measure every registered method of editing, and write `league.json`.

    Methods, at run time: scores, searches and groupings of experts, and scores of neurons, each with its own defaults
    and super experts protected. `random` and `random_neurons` have three seeds. A cell that is there with the same
    model, texts, sizes and code is read, not made again.

    Args:
        folder: where results are kept.
        models: what `moeworks.load` opens.
        budget: `quick` for a look, `full` for the page.
        methods: only those whose name begins with one of these.
        keeps: shares of the experts, or of their neurons, that stay.
        calibrations: only these of `CALIBRATIONS`.
        resume: False makes every cell again.
        progress: called with what is done, how much, and of how much.

    Raises:
        BadData: no method or calibration has such a name.
    """
    known = method_names()
    chosen = [name for name in known if not methods or name.startswith(tuple(methods))]
    if not chosen:
        raise BadData(f"no method's name begins with '{methods[0]}'; {did_you_mean(methods[0], known)}")
    wrong = [name for name in calibrations if name not in CALIBRATIONS]
    if wrong:
        raise BadData(f"no calibration is called '{wrong[0]}'; {did_you_mean(wrong[0], CALIBRATIONS)}")
    texts = [name for name in CALIBRATIONS if not calibrations or name in calibrations]
    jobs = [
        (name, keep, seed) for keep in keeps for name in chosen for seed in range(RANDOM_SEEDS if name in RANDOM else 1)
    ]
    cells: list[EditCell] = []
    settings: dict[str, Settings] = {}
    total = len(jobs) * len(texts) * len(models)
    for model in models:
        bench = _Bench(Path(folder), model, EDIT_SIZES[budget], resume)
        settings[model] = bench.settings(budget)
        for calibration in texts:
            for name, keep, seed in jobs:
                cells.append(bench.cell(name, keep, calibration, seed))
                if progress is not None:
                    progress("cells", len(cells), total)
    whole = not methods and not calibrations and tuple(keeps) == KEEPS
    return _kept(Path(folder), cells, settings, whole=whole)


class _Bench:
    """One model with its test texts; it is opened, and statistics are collected, when a cell has to be made."""

    def __init__(self, folder: Path, model: str, sizes: EditSizes, resume: bool) -> None:
        self._folder, self._model, self._sizes, self._resume = folder, model, sizes, resume
        self._neutral = list(some_of_each(neutral_texts("held_out"), sizes.neutral))
        self._probes = [some_items(load_probe(name), sizes.items) for name in PROBES]
        self._calibration = cache(self._calibration_texts)
        self._statistics = lru_cache(1)(self._collect)
        self._before: dict[str, float] = {}

    @property
    def engine(self) -> TransformersEngine:
        return _open(self._model)

    def settings(self, budget: BudgetName) -> Settings:
        from moeworks.bench.run import versions

        sizes = self._sizes
        told = {"neutral": sizes.neutral, "items": sizes.items, "calibration": sizes.calibration, "rows": sizes.rows}
        return Settings(
            budget=budget,
            seeds=RANDOM_SEEDS,
            null_seeds=0,
            weights=self.engine.identity.weight_hash,
            versions=versions(),
            sizes=told,
        )

    def cell(self, method: str, keep: float, calibration: str, seed: int) -> EditCell:
        """Return the cell, read or made."""
        key = settings_hash(
            {
                "moeworks": __version__,
                "weights": self.engine.identity.weight_hash,
                "engine": self.engine.engine.model_dump(),
                "method": method,
                "keep": keep,
                "calibration": [text.content() for text in self._calibration(calibration)],
                "seed": seed,
                "neutral": [text.content() for text in self._neutral],
                "probes": [[probe.name, probe.text_hash(), len(probe.items("held_out"))] for probe in self._probes],
                "sizes": vars(self._sizes),
                "code": _code(method),
            }
        )
        path = self._folder / "edit" / f"{key}.json"
        if self._resume and path.is_file():
            try:
                return EditCell.model_validate_json(path.read_bytes())
            except ValidationError:
                pass  # of another version: it is made again
        made = self._made(method, keep, calibration, seed)
        with replace_file(path) as temporary:
            temporary.write_text(made.model_dump_json() + "\n", encoding="utf-8")
        return made

    def _made(self, method: str, keep: float, calibration: str, seed: int) -> EditCell:
        start = time.perf_counter()
        blank = EditCell(
            method=method, kind=kind_of(method), model=self._model, keep=keep, calibration=calibration, seed=seed
        )
        try:
            statistics = self._statistics(calibration)
            planning = time.perf_counter()
            plan = self._plan(method, keep, statistics, seed)
            planned = time.perf_counter() - planning
            found = self._measured(plan, statistics)
        except MoeworksError as error:
            return blank.model_copy(update={"refused": str(error), "seconds": round(time.perf_counter() - start, 3)})
        return blank.model_copy(
            update={**found, "transform": plan.transform, "planning": round(planned, 3)}
            | {"seconds": round(time.perf_counter() - start, 3)}
        )

    def _plan(self, method: str, keep: float, statistics: Statistics, seed: int) -> EditPlan:
        from moeworks.edit.in_memory import read_layer

        routers = {router.layer: router for router in self.engine.routers}
        weights = (lambda layer: read_layer(routers[layer])) if "weights" in needs_of_method(method) else None
        return plan_edit(statistics, method=method, keep=keep, weights=weights, seed=seed)

    def _measured(self, plan: EditPlan, statistics: Statistics) -> dict[str, Any]:
        from moeworks.edit.compare import compare_several
        from moeworks.edit.sides import under

        side = under(self.engine, plan, statistics)
        (found,) = compare_several(self.engine, [side], self._neutral, bootstrap=self._sizes.bootstrap)
        with side.running():
            after = self._accuracies()
        if not self._before:
            self._before = self._accuracies()
        return {
            "divergence": found.divergence,
            "agreement": found.agreement.value,
            "perplexity": {name: group.ratio.value for name, group in found.perplexity.items()},
            "before": {name: group.before for name, group in found.perplexity.items()},
            "probes": {name: (self._before[name], value) for name, value in after.items()},
        }

    def _accuracies(self) -> dict[str, float]:
        """Return each probe's metric on its held-out items, as the engine is at the moment."""
        from moeworks.prove.metrics import measure

        found = {}
        for probe in self._probes:
            metric, items = probe.header.metric, probe.items("held_out")
            values = measure(self.engine, items, metric.name, plan=None, batch_size=32, options=metric.options)
            found[probe.name] = float(values.mean())
        return found

    def _calibration_texts(self, name: str) -> list[Example]:
        return some_of_each(CALIBRATIONS[name](), self._sizes.calibration)

    def _collect(self, calibration: str) -> Statistics:
        import shutil

        from moeworks.edit.collect import COLLECTABLE, collect

        needed = {need for method in method_names() for need in needs_of_method(method)}
        groups = tuple(group for group in COLLECTABLE if group in needed)
        folder = self._folder / f"statistics-{self._model.replace('/', '-')}-{calibration}"
        shutil.rmtree(folder, ignore_errors=True)  # made anew for every run: they are large and quick to make
        return collect(
            self.engine, self._calibration(calibration), folder, groups=groups, rows=self._sizes.rows, seed=0
        )


@lru_cache(1)
def _open(model: str) -> TransformersEngine:
    from moeworks.edit.sides import side_of
    from moeworks.engines import load

    return side_of(load(model)).engine


@cache
def _code(method: str) -> str:
    """Return the hash of the file that a method is written in: a cell of another version of it is made anew."""
    path = inspect.getsourcefile(inspect.unwrap(method_function(method)))
    return hashlib.blake2b(Path(path).read_bytes() if path else method.encode(), digest_size=8).hexdigest()


def _kept(folder: Path, cells: Sequence[EditCell], settings: dict[str, Settings], *, whole: bool) -> League:
    """Put cells into the folder's league; those of a model that was run whole take the place of all that were there."""
    from moeworks.bench.run import LEAGUE

    path = folder / LEAGUE
    before = load_league(path) if path.is_file() else League(moeworks=__version__)
    kept = {_place(cell): cell for cell in before.edit if not (whole and cell.model in settings)}
    kept |= {_place(cell): cell for cell in cells}
    league = before.model_copy(
        update={
            "moeworks": __version__,
            "edit": tuple(kept.values()),
            "edit_settings": {**before.edit_settings, **settings},
        }
    )
    save_league(league, path)
    return league


def _place(cell: EditCell) -> tuple[str, str, float, str, int]:
    return cell.model, cell.method, cell.keep, cell.calibration, cell.seed
