"""The editing league on a tiny model: every method has its cells, random has seeds, what is there is read again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers.models import tiny_engine
from moeworks.bench import editing
from moeworks.bench.edit_table import edit_tables, read_editing
from moeworks.bench.page import page
from moeworks.bench.schema import EditCell, load_league
from moeworks.edit.calibration import english_texts
from moeworks.edit.compare import compare
from moeworks.edit.planning import method_names, plan_edit
from moeworks.edit.sides import under
from moeworks.edit.statistics_file import Statistics
from moeworks.errors import BadData
from moeworks.lab import lab_path
from moeworks.plan.evidence import Interval


def make_small(monkeypatch, engine):
    sizes = editing.EditSizes(calibration=6, rows=16, neutral=5, items=2, bootstrap=20)
    monkeypatch.setattr(editing, "_open", lambda model: engine)
    monkeypatch.setattr(editing, "EDIT_SIZES", {"quick": sizes})
    monkeypatch.setattr(editing, "PROBES", ("facts/en",))
    monkeypatch.setattr(editing, "CALIBRATIONS", dict.fromkeys(("matching", "mismatching"), english_texts))


@pytest.fixture
def tiny(monkeypatch):
    engine = tiny_engine("softmax")
    make_small(monkeypatch, engine)
    return engine


def test_cells_hold_what_the_comparison_says(tiny, tmp_path):
    league = editing.bench_edit(tmp_path, methods=("reap", "random"), keeps=(0.5,), calibrations=("matching",))
    wanted = [name for name in method_names() if name.startswith(("reap", "random"))]
    assert {cell.method for cell in league.edit} == set(wanted)
    assert [cell.seed for cell in league.edit if cell.method == "random"] == [0, 1, 2]
    (cell,) = (cell for cell in league.edit if cell.method == "reap")
    statistics = Statistics.open(next(tmp_path.glob("statistics-*-matching")))
    plan = plan_edit(statistics, method="reap", keep=0.5)
    texts = editing.some_of_each(editing.neutral_texts("held_out"), 5)
    found = compare(tiny, under(tiny, plan), texts)
    assert cell.divergence.value == pytest.approx(found.divergence.value, rel=1e-5)
    assert cell.perplexity["all"] == pytest.approx(found.perplexity["all"].ratio.value, rel=1e-5)
    assert set(cell.probes) == {"facts/en"}
    assert load_league(tmp_path / "league.json") == league


def test_what_is_there_is_read_and_other_cells_stay(tiny, tmp_path, monkeypatch):
    first = editing.bench_edit(tmp_path, methods=("frequency",), keeps=(0.5,), calibrations=("matching",))
    monkeypatch.setattr(editing._Bench, "_made", lambda *arguments: pytest.fail("made again"))
    assert editing.bench_edit(tmp_path, methods=("frequency",), keeps=(0.5,), calibrations=("matching",)) == first
    monkeypatch.undo()
    make_small(monkeypatch, tiny)
    more = editing.bench_edit(tmp_path, methods=("frequency",), keeps=(0.75,), calibrations=("mismatching",))
    assert {(cell.keep, cell.calibration) for cell in more.edit} == {(0.5, "matching"), (0.75, "mismatching")}
    assert "frequency" in page(more)
    assert "`lab` was trained anew since" in page(more)  # the tiny model, which is not the shipped one
    shipped = json.loads((lab_path() / "measured.json").read_text())["weight_hash"]
    same = {"lab": more.edit_settings["lab"].model_copy(update={"weights": shipped})}
    assert "trained anew" not in page(more.model_copy(update={"edit_settings": same}))


def test_what_cannot_be_run_says_why(tiny, tmp_path):
    league = editing.bench_edit(tmp_path, methods=("difference",), keeps=(0.5,), calibrations=("matching",))
    (cell,) = league.edit
    assert "say two values of the label" in cell.refused
    assert "Not run: `difference`" in edit_tables(league.edit)
    with pytest.raises(BadData, match="no method's name"):
        editing.bench_edit(tmp_path, methods=("nothing-such",))
    with pytest.raises(BadData, match="no calibration"):
        editing.bench_edit(tmp_path, calibrations=("other",))


def cell(method, calibration, ratio, seed=0, **labels):
    return EditCell(
        method=method, kind="score", model="m", keep=0.5, calibration=calibration, seed=seed,
        divergence=Interval(value=ratio - 1, low=0, high=1), perplexity={"all": ratio, **labels},
        before={}, probes={"p": (0.5, 0.4)},
    )  # fmt: skip


def test_tables_and_reading():
    cells = [
        *(cell("random", "matching", 2.0 + seed, seed, **{"lang=fr": 2.0 + seed}) for seed in (0, 1, 2)),
        cell("good", "matching", 1.5, **{"lang=fr": 1.7, "lang=de": 1.2}),
        cell("bad", "matching", 2.5, **{"lang=fr": 1.1}),
        cell("good", "mismatching", 4.0, **{"lang=fr": 9.0}),
    ]
    table = edit_tables(cells)
    assert "| `good` | cut | 0.5 | 1.5 | fr 1.7 | -0.1 | 3 | 4 | fr 9 | -0.1 |" in table
    assert "| `random` | cut | 2 (1 to 3) | 3 (2 to 4) | fr 3 |" in table
    assert table.index("`good`") < table.index("`bad`") < table.index("`random`")
    assert np.char.find(table, "| method | de | fr |") >= 0
    reading = read_editing(cells, model="`m`")
    assert "experts: 1 of 2 methods are better than all 3 random choices" in reading
    assert "that of `good`, times 1.5 (random 3)" in reading
