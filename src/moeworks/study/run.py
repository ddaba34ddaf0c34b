"""A study: several probes through record, find, steer and evaluate, with one report; what is done is not done again."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from moeworks import __version__
from moeworks.artefact import Header, hash_texts
from moeworks.engines.base import Engine
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.probes import Probe, load_probe
from moeworks.prove.resample import FEWEST_DOCUMENTS, document_numbers
from moeworks.study.budget import BUDGETS, some_items
from moeworks.study.probe import Run, folder_name, record_texts, study_probe
from moeworks.study.routers import language_divergence, loads, parallel_texts, routing_tables
from moeworks.study.schema import VERSION, Budget, Divergence, ProbeResult, Settings, Study, save_study
from moeworks.study.steps import Steps
from moeworks.trace import Trace

__all__ = ["study"]

_PROGRAMS = ("torch", "transformers", "vllm", "numpy", "scipy", "pyarrow", "matplotlib")


def study(
    engine: Engine,
    probes: Sequence[Probe | str],
    folder: str | Path,
    *,
    seed: int = 0,
    budget: Budget = "quick",
    amounts: Iterable[int] | None = None,
    neutral: Iterable[Example] | None = None,
    progress: bool = True,
    resume: bool = True,
    command: str = "",
) -> Study:
    """Run every probe through the whole loop and write `study.json` and `report.html` to the folder.

    For each probe: its find split is recorded; experts are scored against permuted documents; if none passes, the
    verdict is "nothing found"; otherwise the number of experts is chosen on dev, and the plan is evaluated on held-out
    texts with random controls, a dose curve and its damage, and a few texts are written without and with it.

    Args:
        engine: the loaded model.
        probes: probes, or names or folders of probes.
        folder: what is made goes here, each probe in a folder of its own. A step that is there with the same settings
            is read, not redone, so that an interrupted study goes on where it stopped.
        seed: of permutations, bootstraps, random experts, and of which documents are taken where there are too many.
        budget: `quick` for minutes on a laptop with a small model, `full` for results to publish.
        amounts: numbers of experts to try on dev; by default those of the budget.
        neutral: texts to measure damage on; by default the built-in ones.
        progress: show on standard error what is being done.
        resume: False does everything again.
        command: how this was asked for, for the header.

    Returns:
        The study, as it stands in `study.json`.

    Raises:
        BadData: no probe, two probes of one name, one with too few items, an amount below 1, or something in the
            folder that no study wrote.
    """
    sizes = BUDGETS[budget]
    loaded = [load_probe(probe) if isinstance(probe, str) else probe for probe in probes]
    tried = tuple(sorted(set(sizes.amounts if amounts is None else amounts)))
    _check([some_items(probe, sizes.items) for probe in loaded], tried)
    target = Path(folder)
    run = Run(
        engine=engine,
        folder=target / "probes",
        sizes=sizes,
        amounts=tried,
        seed=seed,
        neutral=None if neutral is None else tuple(neutral),
        resume=resume,
        progress=progress,
        say=_speaker(progress),
    )
    results: list[ProbeResult] = []
    traces: list[Trace] = []
    with engine.remembering():  # all probes measure damage on the same neutral texts
        for probe in loaded:
            result, trace = study_probe(run, probe)
            run.say(f"{probe.name}: {result.verdict}")
            results.append(result)
            traces.append(trace)
    divergence, seconds, languages = _divergence(run, loaded, target / "routers")
    load, tokens = loads(traces)
    run.say("routers: numbers of routing")
    largest = max(range(len(traces)), key=lambda place: len(traces[place]))
    shown = traces[largest] if languages is None else languages
    routing = routing_tables(shown, sample=sizes.routing_tokens, seed=seed)
    found = Study(
        header=Header(
            format="moeworks.study",
            version=VERSION,
            moeworks=__version__,
            model=engine.identity,
            engine=engine.engine,
            command=command,
            seed=seed,
            text_hash=hash_texts(probe.text_hash() for probe in loaded),
        ),
        settings=Settings(budget=budget, seed=seed, amounts=tried, probes=tuple(probe.name for probe in loaded)),
        probes=tuple(results),
        divergence=divergence,
        load=load,
        load_tokens=tokens,
        routing=routing,
        routing_texts=(
            f"{len(shown):,} tokens of parallel texts in several languages"
            if languages is not None
            else f"{len(shown):,} tokens of the texts that the probe {loaded[largest].name} was found on"
        ),
        versions=_versions(),
        seconds=round(seconds + sum(result.seconds for result in results), 3),
    )
    save_study(found, target / "study.json")
    run.say("writing the report")
    from moeworks.report import save_report  # here, since it needs matplotlib

    save_report(found, target / "report.html")
    return found


def _divergence(run: Run, probes: Sequence[Probe], folder: Path) -> tuple[tuple[Divergence, ...], float, Trace | None]:
    """Return the divergence by language, none without a language probe, the seconds that it took, and its trace."""
    texts = parallel_texts(probes, documents=run.sizes.documents, seed=run.seed)
    if not texts:
        return (), 0.0, None
    steps = Steps(folder, run.settings(), resume=run.resume)

    def record(path: Path, continued: bool) -> None:
        run.say(f"routers: recording {len(texts)} parallel texts")
        record_texts(run, texts, path, continued=continued, logits=True)

    key = {"texts": hash_texts(text.content() for text in texts)}
    trace = steps.run("trace", key, record, Trace.open)
    return (language_divergence(trace),), steps.seconds, trace


def _check(probes: Sequence[Probe], amounts: Sequence[int]) -> None:
    if not probes:
        raise BadData("a study needs at least one probe; see: moeworks probes list.")
    for name, count in Counter(folder_name(probe.name) for probe in probes).items():
        if count > 1:
            raise BadData(f"{count} probes would share the folder '{name}'; give each a name of its own.")
    problems = [f"{probe.name} has no dev items" for probe in probes if not probe.items("dev")]
    for probe in probes:
        found = len(set(document_numbers([item.document for item in probe.items("held_out")])))
        if found < FEWEST_DOCUMENTS:
            problems.append(f"{probe.name} has held-out items from {found} documents, {FEWEST_DOCUMENTS} are needed")
    if problems:
        raise BadData(f"too little to measure on: {'; '.join(problems)}.")
    if not amounts or min(amounts) < 1:
        raise BadData(f"amounts are numbers of experts, 1 or more, not {list(amounts)}.")


def _speaker(progress: bool) -> Callable[[str], None]:
    """Return what tells the user what is being done, with the seconds since the start."""
    if not progress:
        return lambda _: None
    from rich.console import Console

    console, start = Console(stderr=True, highlight=False, markup=False), time.monotonic()
    return lambda text: console.print(f"{time.monotonic() - start:5.0f} s  {text}", soft_wrap=True)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "moeworks": __version__}
    for name in _PROGRAMS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
