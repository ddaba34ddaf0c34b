"""`import moeworks`: nothing heavy is loaded, and every public name is there."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import moeworks
from moeworks.cli.main import app, main


def in_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = in_new_process("import sys, moeworks; print(*sorted(sys.modules), sep='\\n')").split()
    heavy = {"torch", "transformers", "numpy", "scipy", "matplotlib", "pyarrow", "pandas", "datasets", "pydantic"}
    assert not {name.partition(".")[0] for name in loaded} & heavy


@pytest.mark.parametrize(
    "room", ["contract", "trace", "stats", "plan", "where", "artefact", "examples", "find", "data", "compare"]
)
def test_rooms_without_torch(room: str) -> None:
    """The import rule of the design: these rooms need numpy, pyarrow and pydantic (find: scipy) only."""
    loaded = in_new_process(f"import sys, moeworks.{room}; print(*sorted(sys.modules), sep='\\n')").split()
    assert not {name.partition(".")[0] for name in loaded} & {"torch", "transformers", "matplotlib", "datasets"}


def test_the_package_runs_as_a_module() -> None:
    ended = subprocess.run([sys.executable, "-m", "moeworks", "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout.strip().endswith(moeworks.__version__)


@pytest.mark.parametrize("name", moeworks.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(moeworks, name)
    assert name == "__version__" or getattr(value, "__name__", name) == name


def test_verbs_stay_functions_after_their_modules_are_imported() -> None:
    code = (
        "import moeworks, moeworks.find, moeworks.inspect\n"
        "from moeworks.find import Scores\n"
        "print(callable(moeworks.find), callable(moeworks.inspect))"
    )
    assert in_new_process(code) == "True True\n"


def test_types_and_names_agree() -> None:
    """What a type checker sees (the TYPE_CHECKING block) is what __getattr__ gives."""
    tree = ast.parse(Path(moeworks.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module.removeprefix("moeworks.")
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert seen == moeworks._HOMES
    assert sorted([*seen, "__version__"]) == sorted(moeworks.__all__)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'recrod'"):
        _ = moeworks.recrod


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield every command and group of the program as the words that call it."""
    yield words
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*words, name))


def test_every_help_page_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A bracket in a help text that looks like markup would be an error at the terminal alone."""
    for words in commands(typer.main.get_command(app)):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        assert (ended.value.code, words) == (0, words)
        assert "Usage: moeworks" in capsys.readouterr().out
