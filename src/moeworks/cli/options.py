"""Arguments and options that several commands share, and how a MODEL becomes an engine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moeworks.artefact import ModelIdentity
    from moeworks.engines.base import Engine
    from moeworks.plan import Plan

__all__ = [
    "BatchSize",
    "Data",
    "Device",
    "Dtype",
    "EngineName",
    "Json",
    "Model",
    "OptionalPlan",
    "Seed",
    "TraceFolder",
    "command_line",
    "has_terminal",
    "identity_like",
    "labels_of",
    "named_values",
    "one_of",
    "open_engine",
    "read_plan",
]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="`lab` or `lab-sigmoid` (shipped), a local folder or a Hub id; `fake` is the planted test model.",
        show_default=False,
    ),
]
EngineName = Annotated[
    str, typer.Option("--engine", help="What runs the model: transformers, unless MODEL says another; see doctor.")
]
Device = Annotated[str, typer.Option("--device", help="cpu, unless given: cuda, cuda:1, mps, or auto (all there are).")]
Dtype = Annotated[str, typer.Option("--dtype", help="As stored, unless given: float32, bfloat16 or float16.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Texts run together.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything drawn at random.")]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="File (.txt, .jsonl, .parquet), hf:NAME, hf:NAME/CONFIG, probe:NAME (with :SPLIT), or - for stdin.",
        show_default=False,
    ),
]
OptionalPlan = Annotated[Path | None, typer.Option("--plan", metavar="PLAN", help="A plan file to steer by.")]
TraceFolder = Annotated[Path, typer.Argument(metavar="TRACE", help="A trace's folder.", show_default=False)]


def command_line() -> str:
    """Return the command as typed, for the headers of what it writes."""
    import shlex

    return shlex.join(["moeworks", *sys.argv[1:]])


def has_terminal() -> bool:
    """Whether progress may be shown: only on standard error, and only if somebody looks at it."""
    return sys.stderr.isatty()


def named_values(words: list[str] | None) -> dict[str, Any]:
    """Read repeated NAME=VALUE options; a value that is JSON (a number, true, a list) is taken as such."""
    import json

    from moeworks.errors import BadData

    values: dict[str, Any] = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise BadData(f"'{word}' is not an option of a method; write name=value, as in smoothing=0.5.")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def identity_like(like: str) -> ModelIdentity:
    """Return the identity of a model, or of the model of a trace: what --like names."""
    from moeworks.errors import BadData
    from moeworks.trace import Trace

    traced = Path(like, "trace.json").is_file()
    model = Trace.open(like).header.model if traced else open_engine(like, "", device="", dtype="").identity
    if model is None:
        raise BadData(f"the trace {like} names no model; give a model, or a trace that does.")
    return model


def one_of(word: str, known: Sequence[str], name: str) -> str:
    """Return a word that an option may take, or say which ones it may."""
    from moeworks.errors import BadData, did_you_mean

    if word not in known:
        raise BadData(f"{name} does not take '{word}'; {did_you_mean(word, known)}")
    return word


def labels_of(words: list[str] | None) -> dict[str, str]:
    """Read repeated NAME=VALUE labels."""
    from moeworks.errors import BadData

    labels: dict[str, str] = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not (equals and name and value):
            raise BadData(f"'{word}' is not a label; write name=value, as in lang=fr.")
        labels[name] = value
    return labels


def read_plan(path: Path | None) -> Plan | None:
    """Read the plan that was given, before any model is loaded."""
    if path is None:
        return None
    from moeworks.plan import load_plan

    return load_plan(path)


def open_engine(model: str, engine: str, *, device: str, dtype: str, **more: Any) -> Engine:
    """Load a model; an option that was not given is left to the engine."""
    from moeworks.engines import load

    given = {"device": device, "dtype": dtype, **more}
    return load(model, engine=engine, **{name: value for name, value in given.items() if value})
