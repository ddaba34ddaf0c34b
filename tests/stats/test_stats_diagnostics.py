"""Diagnostics by name, in Python and on the command line: what is printed, and one sentence for each mistake."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from helpers.traces import make_trace
from moeworks.cli import main
from moeworks.errors import BadData
from moeworks.stats import DIAGNOSTICS, diagnose
from moeworks.stats.diagnostics import DiagnosticName, shown

LABELS = {"lang": ["en", "fr"], "domain": ["x", "y", "z"], "tongue": ["en", "fr", "de", "es", "it", "pt"]}
SCORES = {"fr": 0.7, "de": 0.6, "es": 0.8, "it": 0.65, "pt": 0.5}


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "trace"
    layers, header = (0, 1, 2), {"text_hash": "same"}
    return make_trace(path, requests=24, rows_per_request=60, layers=layers, labels=LABELS, topic=0.5, header=header)


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    path.write_text(json.dumps(SCORES))
    return path


@pytest.fixture
def run(capsys):
    """Run one command line; return exit code, standard output, standard error."""

    def run_words(*words: object):
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        return (stopped.value.code, *capsys.readouterr())

    return run_words


def arguments(trace, what, scores):
    """What each diagnostic needs to be told beside the trace."""
    needed = {
        "saturation": {"checkpoints": {7: trace}},
        "drift": {"checkpoints": {7: trace}},
        "committee": {"label": "domain"},
        "token_dependence": {"fewest": 1},
        "vocabulary_specialisation": {"fewest": 2},
        "task_correlation": {"label": "tongue", "scores": str(scores)},
    }
    return needed.get(what, {})


def words_of(given):
    """The same as options of the command line."""
    words = []
    for name, value in given.items():
        if name == "checkpoints":
            words += [w for step, other in value.items() for w in ("--checkpoint", f"{step}={other.path}")]
        else:
            words += ["--label", value] if name == "label" else ["--option", f"{name}={value}"]
    return words


def test_names_agree():
    assert get_args(DiagnosticName) == tuple(DIAGNOSTICS)


@pytest.mark.parametrize("what", DIAGNOSTICS)
def test_every_diagnostic_has_the_columns_that_are_printed(trace, what, scores):
    """And the number lies in its interval wherever there is one; intervals of resampled maxima are wide, not exact."""
    table = diagnose(trace, what, **arguments(trace, what, scores))
    headings, lines = shown(what, table)
    assert len(lines) == table.num_rows
    assert all(len(line) == len(headings) for line in lines)
    for low in (name for name in table.column_names if name.endswith("low") and not name.startswith("jaccard")):
        high = low.removesuffix("low") + "high"
        assert all(a <= b or a != a for a, b in zip(table[low].to_pylist(), table[high].to_pylist(), strict=True))


@pytest.mark.parametrize("what", DIAGNOSTICS)
def test_command_line_gives_the_same_table(trace, run, what, scores):
    words = ["inspect", trace.path, "--what", what, *words_of(arguments(trace, what, scores))]
    code, out, err = run(*words, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["what"] == what
    table = diagnose(trace, what, **arguments(trace, what, scores))
    plain = [{k: None if v != v else v for k, v in row.items()} for row in table.to_pylist()]  # JSON has no NaN
    assert found["sanity"] == {"passes": True, "failed": []}
    assert found["rows"] == plain
    code, out, _ = run(*words)
    assert code == 0
    assert out.startswith("sanity: ")
    assert out.splitlines()[2].split()[0] == table.column_names[0]
    assert out.rstrip().endswith(DIAGNOSTICS[what].reading + ".")


def test_a_trace_alone_shows_its_balance(trace, run):
    assert run("inspect", trace.path)[1] == run("inspect", trace.path, "--what", "balance")[1]


def test_clause_seed_and_options_reach_the_diagnostic(trace, run):
    words = ["--where", "layer=1 lang=fr", "--option", "factors=[3.0]", "--label", "domain"]
    code, out, _ = run("inspect", trace.path, "--what", "drops", *words, "--json")
    rows = json.loads(out)["rows"]
    assert code == 0
    assert {(row["layer"], row["factor"], row["tokens"] if not row["value"] else 0) for row in rows} == {
        (1, 3.0, 12 * 60),
        (1, 3.0, 0),
    }
    seeded = [run("inspect", trace.path, "--what", "token_overlap", "--seed", seed, "--json")[1] for seed in (0, 0, 1)]
    rows = [json.loads(out)["rows"] for out in seeded]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--what", "committee"], "name it; labels here: domain, lang"),
        (["--what", "saturation"], "give at least one, as step=TRACE"),
        (["--what", "saturation", "--checkpoint", "trace"], "'trace' is not a checkpoint; write step=TRACE"),
        (["--what", "balance", "--label", "lang"], "the diagnostic 'balance' takes no label"),
        (["--what", "drops", "--base", "en"], "the diagnostic 'drops' takes no base"),
        (["--what", "drops", "--option", "factor=1"], "has no option 'factor'; did you mean 'factors'"),
        (["--what", "drops", "--option", "texts_per_batch=two"], "is not of the kind of its default, 1"),
        (["--what", "drops", "--option", 'factors=["a"]'], "is not of the kind of its default"),
        (["--what", "divergence", "--label", "domain"], "no token with domain=en is selected"),
        (["--device", "cpu"], "--device is for a model"),
        (["--where", "lang=de"], "no token matches the clause 'lang=de'"),
    ],
)
def test_mistakes_are_one_sentence(trace, run, words, message):
    code, out, err = run("inspect", trace.path, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("moeworks: ")


def test_a_model_is_no_trace(run):
    assert "fake is not a folder" in run("inspect", "fake", "--what", "balance")[2]
    assert "fake is no trace's folder" in run("inspect", "fake", "--label", "lang")[2]


def test_unknown_name(trace):
    with pytest.raises(BadData, match="no diagnostic is called 'balanc'; did you mean 'balance'"):
        diagnose(trace, "balanc")
