"""The page of a trace: every diagnostic with data on it, numbers those of the tables, bounded, hostile text escaped."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest

from helpers.traces import make_trace
from moeworks.cli import main
from moeworks.errors import BadData, RunFailed
from moeworks.report.diagnostic_words import WORDS
from moeworks.report.routing_report import render_trace, routing_sections, save_trace_report
from moeworks.stats import DIAGNOSTICS, diagnose
from moeworks.stats.everything import READING_ORDER, Told, choose_label, diagnose_all

# Token ids that occur often enough, other traces and task scores are what this trace has not.
WITHOUT = {"task_correlation", "saturation", "drift", "vocabulary_specialisation", "token_dependence"}
LABELS = {"lang": ["en", "fr", "de"], "weather": ["<b>dry</b>", "wet"]}


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "a<script>b"
    return make_trace(path, requests=24, rows_per_request=40, layers=(0, 1, 2), labels=LABELS, topic=0.5, logits=True,
                      header={"text_hash": "same"})  # fmt: skip


def test_every_diagnostic_has_words_and_a_place():
    assert set(WORDS) == set(DIAGNOSTICS)
    assert sorted(name for names in READING_ORDER.values() for name in names) == sorted(DIAGNOSTICS)


def test_label_and_base_are_chosen(trace):
    assert choose_label(trace) == "lang"
    assert choose_label(trace, "weather") == "weather"
    with pytest.raises(BadData, match="no request has a label 'langs'"):
        choose_label(trace, "langs")
    told = {one.what: one for one in diagnose_all(trace, names=["divergence", "coactivation"])}
    assert (told["divergence"].label, told["divergence"].base) == ("lang", "en")
    assert told["coactivation"].label == ""
    given = {one.what: one for one in diagnose_all(trace, names=["divergence"], label="weather", base="wet")}
    assert set(given["divergence"].table["value"].to_pylist()) == {"<b>dry</b>"}


def test_tables_are_those_of_the_diagnostics(trace):
    told = {one.what: one for one in diagnose_all(trace, seed=3)}
    for what in ("balance", "srp", "coactivation"):
        given = {"label": "lang"} if DIAGNOSTICS[what].takes("label") else {}
        assert str(told[what].table.to_pylist()) == str(diagnose(trace, what, seed=3, **given).to_pylist())
    assert {what for what, one in told.items() if one.table is None} == WITHOUT
    assert "no token id occurs 10 times" in told["vocabulary_specialisation"].reason
    assert "another trace" in told["drift"].reason


def test_two_processes_tell_the_same(trace):
    names = ["sanity", "balance", "divergence", "drift"]
    one, two = (diagnose_all(trace, names=names, workers=workers) for workers in (1, 2))
    assert [(a.what, a.reason, a.label, a.base, str(a.table)) for a in one] == [
        (b.what, b.reason, b.label, b.base, str(b.table)) for b in two
    ]


def test_the_page(trace, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(trace.path), "--report", str(tmp_path / "r.html"), "--label", "weather"])
    assert stopped.value.code == 0, capsys.readouterr().err
    html = (tmp_path / "r.html").read_text()
    assert len(html) < 2_000_000
    assert "<script" not in html
    assert "<b>dry" not in html
    assert "&lt;b&gt;dry" in html
    for name, question in ((what, WORDS[what].question) for what in DIAGNOSTICS):
        shown = question.replace("'", "&#39;") in html
        assert shown == (name not in WITHOUT), name
    assert html.count("<svg") == len(DIAGNOSTICS) - len(WITHOUT)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert "by weather" in html
    again = save_trace_report(trace, tmp_path / "again.html", label="weather").read_text()
    assert re.sub(r"<dt>Command.*?</dd>\s*", "", html, flags=re.DOTALL).split() == again.split()


def test_what_the_caption_says_is_the_mean_of_the_table(trace):
    table = diagnose(trace, "repetition")
    (section,) = routing_sections([Told("repetition", table, "", "", "", 0.0)])
    (picture,) = section["pictures"]
    mean = sum(table["overlap"].to_pylist()) / 3
    assert f"{mean:.3f}" in picture["found"]
    assert "by chance 0.250" in picture["found"]  # k / E = 2 / 8
    assert len(picture["rows"]) == 3


def test_long_tables_are_cut_and_say_so(trace):
    table = diagnose(trace, "sch_rolling")
    long = pa.concat_tables([table] * 20)
    (section,) = routing_sections([Told("sch_rolling", long, "", "", "", 0.0)])
    (picture,) = section["pictures"]
    assert len(picture["rows"]) == 200
    assert picture["left_out"] == long.num_rows - 200


def test_a_trace_that_fails_its_checks_has_no_page(trace, tmp_path, monkeypatch):
    monkeypatch.setattr("moeworks.stats.everything.refusal", lambda _: "the trace is wrong")
    with pytest.raises(RunFailed, match="the trace is wrong"):
        save_trace_report(trace, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_options_of_one_diagnostic_are_refused(trace, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["inspect", str(trace.path), "--report", str(tmp_path / "r.html"), "--what", "srp"])
    assert "--report writes every diagnostic" in capsys.readouterr().err
    assert render_trace(trace, []).count("<svg") == 0
