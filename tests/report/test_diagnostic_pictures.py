"""Every diagnostic has a picture whose columns exist; it is the same for the same data and says how to read it."""

from __future__ import annotations

import re

import pytest

from helpers.traces import make_trace
from moeworks.cli import main
from moeworks.errors import BadData
from moeworks.report.diagnostic_panels import PANELS, panels_of
from moeworks.report.diagnostic_pictures import draw_diagnostic, save_diagnostic
from moeworks.report.diagnostic_words import words_of
from moeworks.report.figure import style
from moeworks.stats import DIAGNOSTICS, diagnose

LABELS = {"lang": ["en", "fr"], "domain": ["x", "y", "z"], "tongue": ["en", "fr", "de", "es", "it", "pt"]}
GIVEN = {
    "committee": {"label": "domain"},
    "token_dependence": {"fewest": 1},
    "vocabulary_specialisation": {"fewest": 2},
    "task_correlation": {"label": "tongue", "scores": {"fr": 1, "de": 2, "es": 3, "it": 4, "pt": 5}},
}


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "night run"
    return make_trace(path, requests=24, rows_per_request=40, layers=(0, 1, 2), labels=LABELS, topic=0.5, logits=True,
                      header={"text_hash": "same"})  # fmt: skip


def table_of(trace, what):
    given = dict(GIVEN.get(what, {}))
    scores = given.pop("scores", None)
    if what == "task_correlation":
        from moeworks.stats import task_correlation

        return task_correlation(trace, scores=scores, **given)
    checkpoints = {7: trace} if DIAGNOSTICS[what].takes("checkpoints") else None
    return diagnose(trace, what, checkpoints=checkpoints, **given)


def test_every_diagnostic_has_panels():
    assert set(PANELS) == set(DIAGNOSTICS)


@pytest.mark.parametrize("what", DIAGNOSTICS)
def test_pictures_show_what_is_there(trace, what, tmp_path):
    """Columns exist, every panel shows something, title and reading stand on it, two drawings are the same."""
    table = table_of(trace, what)
    panels = panels_of(what, table.to_pylist())
    for panel in {*PANELS[what], *panels}:
        names = [panel.x] if panel.kind in ("curves", "cells") else []
        names += [n for c in panel.curves for n in (c.column, c.low, c.high, c.chance) if n]
        names += [*panel.series, *([panel.text] if panel.text else []), *([panel.keep[0]] if panel.keep else [])]
        assert set(names) <= set(table.column_names), panel.title
    with style():
        drawn = draw_diagnostic(what, table, source=str(trace.path))
    for axes, panel in zip(drawn.axes, panels, strict=False):
        assert " ".join(axes.get_title(loc="left").split()) == panel.title
        assert axes.lines or axes.collections
        assert any(len(line.get_xdata()) for line in axes.lines) or axes.collections
    files = [save_diagnostic(what, table, tmp_path / f"{i}.svg", source=str(trace.path)) for i in range(2)]
    text = files[0].read_text()
    assert text == files[1].read_text()
    words = " ".join(re.findall(r">([^<>]+)</text>", text))
    assert f"{what.replace('_', ' ')}, night run" in words
    assert DIAGNOSTICS[what].reading.split()[0].split("(")[0] in words


def test_curves_lie_where_the_table_says(trace):
    table = diagnose(trace, "repetition")
    with style():
        drawn = draw_diagnostic("repetition", table)
    line, chance = drawn.axes[0].lines[:2]
    assert line.get_xdata().tolist() == [0, 1, 2]
    assert line.get_ydata().tolist() == table["overlap"].to_pylist()
    assert chance.get_ydata().tolist() == table["overlap_chance"].to_pylist()


def test_of_many_checkpoints_the_first_and_the_last_are_drawn(trace):
    table = diagnose(trace, "saturation", checkpoints=dict.fromkeys(range(1, 13), trace))
    with style():
        drawn = draw_diagnostic("saturation", table)
    labels = [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]
    assert (labels[0], labels[7], labels[-1]) == ("step 1", "step 12", "4 more in the table")


def test_few_values_have_intervals_and_many_a_map():
    rows = [{"value": f"v{n}"} for n in range(6)]
    assert [panel.kind for panel in panels_of("divergence", rows[:5])] == ["curves"] * 3
    assert [panel.kind for panel in panels_of("divergence", rows)] == ["cells"] * 3
    assert panels_of("balance", [{}]) == PANELS["balance"]
    for what in PANELS:  # a caption speaks of as many panels as there are
        for few in (True, False):
            how, panels = words_of(what, few=few).how, panels_of(what, rows[:2] if few else rows)
            assert ("Middle:" in how) <= (len(panels) == 3), what
            assert ("darker" in how) <= any(panel.kind == "cells" for panel in panels), what


def test_no_legend_covers_a_curve(trace):
    """Legends stand below the axes: their upper end is under the axes' lower one."""
    with style():
        drawn = draw_diagnostic("balance", diagnose(trace, "balance"))
        drawn.canvas.draw()
        for axes in drawn.axes:
            assert axes.get_legend().get_window_extent().y1 < axes.get_window_extent().y0


def test_command_line_draws(trace, tmp_path, capsys):
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        with pytest.raises(SystemExit) as stopped:
            main(["inspect", str(trace.path), "--what", "balance", "--picture", str(tmp_path / name)])
        assert stopped.value.code == 0
        assert (tmp_path / name).read_bytes().startswith(start)
        assert f"Drawn in {tmp_path / name}." in capsys.readouterr().out
    with pytest.raises(BadData, match=r"ends in neither \.png nor \.svg"):
        save_diagnostic("balance", diagnose(trace, "balance"), tmp_path / "a.pdf")
