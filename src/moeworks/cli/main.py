"""The `moeworks` program: its commands, and what becomes of errors and of Ctrl-C."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from moeworks import __version__
from moeworks.cli import (
    bench,
    compare,
    decode,
    doctor,
    edit,
    evaluate,
    find,
    generate,
    inspect,
    patch,
    place,
    plan,
    probes,
    record,
    schema,
    serve,
    stability,
    steer,
    study,
    trace,
    train,
    tune,
    view,
)
from moeworks.errors import MoeworksError

__all__ = ["app", "main"]

THE_LOOP = "The loop"
FILES = "Files and names"

app = typer.Typer(
    name="moeworks",
    help="Record, find, prove and steer routing in mixture-of-experts language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, name, function in (
    (THE_LOOP, "inspect", inspect.command),
    (THE_LOOP, "record", record.command),
    (THE_LOOP, "find", find.command),
    (THE_LOOP, "decode", decode.command),
    (THE_LOOP, "steer", steer.command),
    (THE_LOOP, "tune", tune.command),
    (THE_LOOP, "evaluate", evaluate.command),
    (THE_LOOP, "patch", patch.command),
    (THE_LOOP, "generate", generate.command),
    (THE_LOOP, "study", study.command),
    (THE_LOOP, "compare", compare.command),
    (THE_LOOP, "stability", stability.command),
    (THE_LOOP, "serve", serve.command),
    (THE_LOOP, "view", view.command),
    (FILES, "schema", schema.command),
    (FILES, "doctor", doctor.command),
):
    app.command(name, rich_help_panel=panel)(function)
for group in (trace.app, plan.app, probes.app, edit.app, place.app, train.app, bench.app):
    app.add_typer(group, rich_help_panel=FILES)


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Both options are dealt with before and after: `main` takes --debug out."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave it with its exit code: 0, 1 (failed), 2 (a mistake in what was asked), 130 (Ctrl-C)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = _interrupted(words)
    except MoeworksError as error:
        code = _failed(error, str(error), error.exit_code, debug)
    except Exception as error:
        code = _unexpected(error, debug)
    sys.exit(code)


def _run(words: list[str]) -> int:
    code = app(words, prog_name="moeworks", standalone_mode=False)
    if code == 130:  # typer turns Ctrl-C into this
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _interrupted(words: list[str]) -> int:
    """Say how to go on; `record`, `edit score`, `train unlearn` and `study` keep what they have done so far."""
    if words[:1] == ["record"] or words[:2] in (["train", "unlearn"], ["edit", "score"]):
        again = words if "--resume" in words else [*words, "--resume"]
        _say(f"interrupted; resume with: {shlex.join(['moeworks', *again])}")
    elif words[:1] in (["study"], ["bench"]):
        _say(f"interrupted; what is done stays, go on with: {shlex.join(['moeworks', *words])}")
    else:
        _say("interrupted; nothing half-written was left behind.")
    return 130


def _unexpected(error: Exception, debug: bool) -> int:
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # what typer says of wrong usage
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "moeworks"
        message = str(error.format_message()).replace("Value error, ", "").rstrip(".?")
        if message:  # none: the help was shown, since nothing was asked
            _say(f"{path}: {message[0].lower()}{message[1:]} (see {path} --help).")
        return int(error.exit_code)
    problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _failed(
        error, f"unexpected {problem}; please report it with the output of `moeworks doctor` and of --debug.", 1, debug
    )


def _failed(error: Exception, sentence: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    _say(f"moeworks: {sentence}")
    return code


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
