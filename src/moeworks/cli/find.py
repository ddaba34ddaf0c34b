"""`moeworks find`: score every expert of a trace, or of a model that is run for it, against permuted documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moeworks.cli.options import Device, Dtype, EngineName, Json, Seed, command_line, named_values, open_engine
from moeworks.cli.progress import progress_bar

if TYPE_CHECKING:
    from moeworks.find import Scores


def _list_methods(asked: bool) -> None:
    """Print every method and what it has to be told."""
    if not asked:
        return
    from moeworks.find.in_model import MODEL_SCORES
    from moeworks.find.methods import NEEDED_OPTIONS, trace_methods

    methods = trace_methods()
    names = [*methods, *MODEL_SCORES.names()]
    width = max(map(len, names))
    print("From a trace:")
    for name, method in methods.items():
        needs = " or ".join(NEEDED_OPTIONS[way] for way in method.needs)
        print(f"  {name:<{width}}  {needs}{'; a trace with --logits' if method.reads == 'probabilities' else ''}")
    print("From inside a model, with --probe:")
    for name in MODEL_SCORES.names():
        print(f"  {name}")
    raise typer.Exit


def command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A trace's folder; or, with --probe, a model as in record.", show_default=False
        ),
    ],
    contrast: Annotated[str, typer.Option("--contrast", help="Tokens that show the behaviour, as in lang=fr.")] = "",
    against: Annotated[str, typer.Option("--against", help="Tokens they are compared with, as in lang=en.")] = "",
    label: Annotated[str, typer.Option("--label", help="Label whose values are compared, for methods of many.")] = "",
    target: Annotated[str, typer.Option("--target", help="With --label: the value that is asked for.")] = "",
    marker: Annotated[
        list[str] | None,
        typer.Option("--marker", metavar="±CLAUSE", help="Marker tokens of npmi, as in +token=12; repeatable."),
    ] = None,
    task: Annotated[
        str, typer.Option("--task", help="With multilingual: tokens of a task, to see the overlap of both kinds.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Scores file to write, such as scores.arrow.")
    ] = None,
    where: Annotated[str, typer.Option("--where", help="Tokens and layers that count on both sides.")] = "",
    method: Annotated[
        str, typer.Option("--method", help="Score, by its registered name; see --methods.")
    ] = "risk_difference",
    methods: Annotated[
        bool,
        typer.Option("--methods", help="List all methods and stop.", is_eager=True, callback=_list_methods),
    ] = False,
    aggregate: Annotated[
        Literal["micro", "macro"] | None,
        typer.Option("--aggregate", help="micro pools all tokens of a side, macro averages over documents."),
    ] = None,
    within: Annotated[
        str | None, typer.Option("--within", help="Label, as in domain: permute only among documents of one value.")
    ] = None,
    match: Annotated[
        Literal["token"] | None, typer.Option("--match", help="Weight both sides to the same number of each token id.")
    ] = None,
    downweight: Annotated[
        Literal["committee"] | None,
        typer.Option("--downweight", help="Lower the scores of experts that run everywhere."),
    ] = None,
    permutations: Annotated[
        int | None, typer.Option("--permutations", min=1, help="Permutations of documents; 1000 for most methods.")
    ] = None,
    bootstrap: Annotated[
        int | None, typer.Option("--bootstrap", min=1, help="Resamplings of documents; 200 for most methods.")
    ] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", min=0, max=1, help="False discovery rate; 0.05.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Experts to print.")] = 10,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Option of the method; repeatable.")
    ] = None,
    probe: Annotated[
        str, typer.Option("--probe", help="Probe whose texts the model runs, for methods that look inside it.")
    ] = "",
    engine: EngineName = "",
    device: Device = "",
    dtype: Dtype = "",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Score every expert on a contrast, and say which ones pass a test against permuted documents.

    A score comes with its interval, its p-value and, over all experts, the false discovery rate. "No expert passes" is
    a result. --methods lists all methods and what each needs: two sides, a label, markers, or a model and a probe.
    """
    from moeworks.cli.output import print_json

    settings = {
        "where": where or None, "aggregate": aggregate, "within": within, "match": match, "downweight": downweight,
        "permutations": permutations, "bootstrap": bootstrap, "alpha": alpha,
    }  # fmt: skip
    asked = {
        "contrast": contrast or None, "against": against or None, "label": label or None, "target": target or None,
        "markers": _signs(marker), "task": task or None,
    }  # fmt: skip
    _check_source(source, method, probe, {**asked, **settings})
    options = named_values(option)
    told: dict[str, Any] = {}
    if probe:
        scores = _from_model(source, method, probe, engine, device, dtype, seed, options)
    else:
        given = {name: value for name, value in settings.items() if value is not None}
        scores, told = _from_trace(source, method, asked, {**given, **options}, seed)
    if output is not None:
        scores.save(output)
    if json:
        print_json({"header": scores.header, "experts": scores.table.to_pylist(), **told})
        return
    print(scores.summary(top))
    for row in told.get("counts", ()):
        print(f"  tau {row['tau']:g}: {row['languages']} language, {row['task']} task, {row['both']} both")
    if output is not None:
        print(f"Written to {output}.")


def _from_trace(
    source: str, method: str, asked: dict[str, Any], settings: dict[str, Any], seed: int
) -> tuple[Scores, dict[str, Any]]:
    """Return the scores of a trace, and what else is told of them."""
    from moeworks.errors import BadData
    from moeworks.find.languages import find_languages
    from moeworks.find.methods import find_method
    from moeworks.trace import Trace

    trace, task = Trace.open(source), asked.pop("task")
    common: dict[str, Any] = {"seed": seed, "command": command_line()}
    with progress_bar("permutations") as progress:
        if task is None:
            return find_method(trace, method=method, **asked, **settings, **common, progress=progress), {}
        if method != "multilingual" or not asked["label"] or any(asked[n] for n in ("contrast", "against", "target")):
            raise BadData("--task goes with --method multilingual and --label, without sides and target.")
        found = find_languages(trace, label=asked["label"], task=task, **settings, **common, progress=progress)
        return found.languages, {"task": found.task.table.to_pylist(), "counts": found.counts.to_pylist()}


def _from_model(
    source: str, method: str, probe: str, engine: str, device: str, dtype: str, seed: int, options: dict[str, Any]
) -> Scores:
    from moeworks.find.in_model import find_in_model
    from moeworks.probes import load_probe

    texts = load_probe(probe)
    model = open_engine(source, engine, device=device, dtype=dtype)
    return find_in_model(model, texts, method=method, seed=seed, command=command_line(), **options)


def _check_source(source: str, method: str, probe: str, asked: dict[str, Any]) -> None:
    """Refuse a method that reads the other kind of source, before anything is loaded."""
    from moeworks.errors import BadData, did_you_mean
    from moeworks.find.in_model import MODEL_SCORES
    from moeworks.find.methods import trace_methods

    known, inside = trace_methods(), MODEL_SCORES.names()
    if method not in known and method not in inside:
        raise BadData(f"no method is called '{method}'; {did_you_mean(method, [*known, *inside])}")
    if probe and method not in inside:
        raise BadData(
            f"the method '{method}' reads a trace; record one (moeworks record {source} probe:{probe}:find -o trace) "
            "and give its folder."
        )
    if not probe and method not in known:
        raise BadData(f"the method '{method}' looks inside a model; give a model and a probe (--probe).")
    if probe:
        for name, value in asked.items():
            if value is not None:
                raise BadData(
                    f"--{'marker' if name == 'markers' else name} is of a trace; a probe says itself what it compares."
                )


def _signs(words: list[str] | None) -> dict[str, float] | None:
    """Read ±CLAUSE markers."""
    from moeworks.errors import BadData

    signs: dict[str, float] = {}
    for word in words or ():
        clause = word.lstrip("+-").strip()
        if not clause or len(word) - len(word.lstrip("+-")) > 1:
            raise BadData(f"'{word}' is not a marker; write +CLAUSE or -CLAUSE, as in +token=12.")
        if clause in signs:
            raise BadData(f"the marker '{clause}' is given twice.")
        signs[clause] = -1.0 if word.startswith("-") else 1.0
    return signs or None
