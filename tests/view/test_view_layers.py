"""The layer view: the rows are the diagnostics' own, what is not possible says why, and commands give the same."""

from __future__ import annotations

import json
import shlex

import pytest

from helpers.traces import make_trace
from moeworks.cli import main
from moeworks.errors import BadData, RunFailed
from moeworks.place import cache_curve
from moeworks.stats.diagnostics import DIAGNOSTICS, diagnose
from moeworks.view.layers import cache_rows, layer_rows, possible_layers
from moeworks.view.plain import plain


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    return make_trace(
        tmp_path_factory.mktemp("view") / "t", requests=24, rows_per_request=40, layers=(0, 1, 2), logits=True,
        labels={"lang": ["de", "ru", "zh"]}, requests_per_document=3,
    )  # fmt: skip


def told(words: list[str], capsys):
    """What a command prints as JSON."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_every_diagnostic_is_listed_with_what_it_needs(trace) -> None:
    found = {row["what"]: row for row in possible_layers(trace)}
    assert set(found) == set(DIAGNOSTICS)
    assert not found["saturation"]["possible"]
    assert "checkpoints" in found["saturation"]["why_not"]
    assert not found["task_correlation"]["possible"]
    assert found["divergence"]["label"] == "lang"
    assert found["divergence"]["base"] == "de"  # no en here: the first
    assert found["divergence"]["values"] == {"lang": ["de", "ru", "zh"]}
    assert found["specialisation"]["label"] == "lang"  # no domain here
    assert found["srp"]["label"] is None
    assert found["srp"]["labels"] == ["lang"]
    assert found["balance"]["labels"] == []
    for row in found.values():
        assert row["reading"]
        assert row["possible"] == (not row["why_not"])


def test_what_a_trace_without_labels_or_with_one_layer_cannot_give(tmp_path) -> None:
    found = {row["what"]: row for row in possible_layers(make_trace(tmp_path / "t", layers=(3,), top_k=1))}
    assert "no label" in found["divergence"]["why_not"]
    assert "one expert" in found["coactivation"]["why_not"]
    assert "layer to layer" in found["paths"]["why_not"]
    assert found["balance"]["possible"]


@pytest.mark.parametrize("what", ["balance", "confidence", "divergence", "u_shape", "specialisation", "sanity"])
def test_rows_are_those_of_the_diagnostic_and_of_its_command(trace, what, capsys) -> None:
    found = layer_rows(trace, what)
    usual = next(row for row in possible_layers(trace) if row["what"] == what)
    table = diagnose(trace, what, label=usual["label"], base=usual["base"])
    assert found["rows"] == plain(table.to_pylist())
    assert set(found["columns"]) == set(table.column_names)
    assert found["reading"] == DIAGNOSTICS[what].reading
    for column in found["shown"]:
        assert {column["name"], *column["ends"]} <= set(table.column_names)
    words = shlex.split(found["command"])
    assert words[0] == "moeworks"
    assert told(words[1:], capsys)["rows"] == json.loads(json.dumps(found["rows"], allow_nan=False))


def test_label_base_and_options_reach_the_diagnostic_and_the_command(trace) -> None:
    found = layer_rows(trace, "divergence", label="lang", base="zh", permutations=50)
    assert {row["value"] for row in found["rows"]} == {"de", "ru"}
    assert "--base zh" in found["command"]
    assert "--option permutations=50" in found["command"]
    assert layer_rows(trace, "divergence", base="zh")["rows"] != layer_rows(trace, "divergence", base="ru")["rows"]


def test_bad_names_are_refused_in_words(trace) -> None:
    with pytest.raises(BadData, match="did you mean 'balance'"):
        layer_rows(trace, "balanse")
    with pytest.raises(BadData, match="lnag"):
        layer_rows(trace, "divergence", label="lnag")
    with pytest.raises(BadData, match="takes no label"):
        layer_rows(trace, "balance", label="lang")


def test_numbers_that_would_be_wrong_are_not_given(tmp_path, monkeypatch, trace) -> None:
    from moeworks.view import layers

    monkeypatch.setattr(layers, "refusal", lambda table: "These weights are no weights.")
    with pytest.raises(RunFailed, match="no weights"):
        layer_rows(trace, "balance")
    assert layer_rows(trace, "sanity")["rows"]


def test_the_cache_curve_is_that_of_place_cache(trace, capsys) -> None:
    found = cache_rows(trace)
    assert found["rows"] == plain(cache_curve(trace).as_json()["rows"])
    assert told(shlex.split(found["command"])[1:], capsys)["rows"] == json.loads(json.dumps(found["rows"]))
    assert cache_rows(trace, capacity="25%")["rules"]["capacity"] == "25%"
