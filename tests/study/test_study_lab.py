"""A study runs on both shipped models, from the recording to the report: two types of router, one language."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moeworks.engines import load
from moeworks.lab import LAB_MODELS
from moeworks.probes import load_probe
from moeworks.study import study
from moeworks.study.budget import BUDGETS


@pytest.mark.slow
@pytest.mark.parametrize("model", LAB_MODELS)
def test_russian_is_found_and_turned_down(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put in: both models read Russian, so that experts pass, and turning them down must cost likelihood."""
    small = replace(BUDGETS["quick"], items=16, neutral=8, permutations=200, bootstrap=100, controls=2, samples=1)
    monkeypatch.setitem(BUDGETS, "quick", small)
    found = study(load(model), [load_probe("language/ru")], tmp_path / "study", amounts=[5], progress=False)
    (result,) = found.probes
    assert result.verdict == "works"
    assert found.header.model is not None
    assert found.header.model.name == model
    assert (tmp_path / "study" / "report.html").stat().st_size > 100_000
