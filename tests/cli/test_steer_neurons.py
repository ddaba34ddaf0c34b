"""`moeworks steer --neurons` writes the plan that `steer_neurons` makes, and refuses what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from helpers.twins import plant, twin
from moeworks.cli import main
from moeworks.find.in_model import find_in_model
from moeworks.plan import load_plan, steer_neurons


def test_scores_of_neurons_become_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine, _, neuron = twin("neurons")
    scores = find_in_model(engine, plant(), method="neuron_gap")
    path = scores.save(tmp_path / "scores.arrow")

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["steer", str(path), *words])
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, capsys.readouterr().err

    target = str(tmp_path / "plan.json")
    assert run("-o", target, "--neurons", "1", "--action", "scale", "--option", "factor=2") == (0, "")
    plan = load_plan(target)
    assert plan.operations == steer_neurons(scores, 1, action="scale", factor=2.0).operations
    assert plan.operations[0].neurons == (neuron,)
    code, error = run("-o", target, "--demote", "1")
    assert code == 2
    assert "moeworks steer --neurons N" in error
    code, error = run("-o", target, "--neurons", "1", "--demote", "1")
    assert code == 2
    assert "--neurons changes neurons" in error
