"""`moeworks find` with each kind of method: sides, a label, numbers, markers, tasks, and a model with a probe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.traces import make_trace
from moeworks.cli import main
from moeworks.find import Scores, trace_methods
from moeworks.find.in_model import MODEL_SCORES


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)

    def run_words(*words: object) -> Ran:
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        code = stopped.value.code
        assert isinstance(code, int)
        return Ran(code, *capsys.readouterr())

    return run_words


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planted: L0.E3 for French, L1.E5 on the span, L1.E2 for maths."""
    path = tmp_path_factory.mktemp("cli") / "t"
    make_trace(
        path, requests=60, rows_per_request=20, experts=8, labels={
            "lang": ["en", "fr", "de"], "domain": (["maths"] + [""] * 2) * 2 + [""] * 3,
            "tox": [str(i % 7) for i in range(60)],
        },
        spans={"mark": (4, 6)}, logits=True,
        planted={(0, 3): ("lang", "fr", 4.0), (1, 5): ("span", "mark", 4.0), (1, 2): ("domain", "maths", 4.0)},
    )  # fmt: skip
    return path


def passing(ran: Ran) -> list[tuple[int, int]]:
    assert ran.code == 0, ran.err
    return [(row["layer"], row["expert"]) for row in json.loads(ran.out)["experts"] if row["passes"]]


def test_methods_are_listed_without_a_source(run) -> None:
    ran = run("find", "--methods")
    assert ran.code == 0
    for name in (*trace_methods(), *MODEL_SCORES.names()):
        assert f"  {name}" in ran.out
    assert "affinity" in ran.out
    assert "a trace with --logits" in ran.out


def test_a_label(run, trace: Path) -> None:
    ran = run(
        "find", trace, "--method", "dominance", "--label", "lang", "--target", "fr", "--permutations", 300, "--json"
    )
    assert passing(ran) == [(0, 3)]
    told = run("find", trace, "--method", "dominance", "--label", "lang", "--option", "ratio=50", "--permutations", 100)
    assert "No expert passes." in told.out
    assert "50 times the second value's" in told.out


def test_markers(run, trace: Path) -> None:
    ran = run("find", trace, "--method", "npmi", "--marker", "+span=mark", "--permutations", 200, "--json")
    assert passing(ran) == [(1, 5)]
    two = run(
        "find", trace, "--method", "npmi", "--marker", "+span=mark", "--marker", "-position=0:2", "--permutations", 50
    )
    assert "Sum of nPMI: +1 × [span=mark], -1 × [position=0:2]." in two.out


def test_numbers(run, trace: Path) -> None:
    ran = run("find", trace, "--method", "pearson", "--label", "tox", "--permutations", 100)
    assert ran.code == 0
    assert "above    the median of tox" in ran.out


def test_one_side(run, trace: Path) -> None:
    ran = run("find", trace, "--method", "affinity", "--contrast", "lang=fr")
    assert ran.code == 0
    assert "Target: L0.E3" in ran.out
    assert "against  nothing: 0 tokens" in ran.out


def test_languages_and_a_task(run, trace: Path) -> None:
    words = ("find", trace, "--method", "multilingual", "--label", "lang", "--option", "tau=0.3", "--permutations", 300)
    ran = run(*words, "--task", "domain=maths lang=en", "-o", "scores.arrow")
    assert ran.code == 0
    assert "  tau 0.3: 1 language, 1 task, 0 both" in ran.out
    assert Scores.load("scores.arrow").header.method == "multilingual"
    found = json.loads(run(*words, "--task", "domain=maths lang=en", "--json").out)
    assert {"header", "experts", "task", "counts"} == set(found)


def test_controls(run, trace: Path) -> None:
    words = ("find", trace, "--contrast", "lang=fr", "--against", "lang=en", "--permutations", 100, "--json")
    header = json.loads(run(*words, "--match", "token", "--downweight", "committee").out)["header"]
    assert (header["match"], header["downweight"]) == ("token", "committee")
    assert header["tokens"][0] == header["tokens"][1] < 400


def test_stability_selection_takes_its_options(run, trace: Path) -> None:
    words = ("find", trace, "--contrast", "lang=fr", "--against", "lang=en,de", "--method", "stability_selection")
    ran = run(*words, "--option", "most_used=3", "--option", "subsets=20", "--json")
    assert passing(ran) == [(0, 3)]


def test_a_model_with_a_probe(run, monkeypatch: pytest.MonkeyPatch, trace: Path) -> None:
    """The call reaches the method with the engine, the probe and the options; the method is a stand-in."""
    from moeworks.find import find

    seen = {}

    def stand_in(engine, probe, *, split="find", seed=0, command="", factor=1.0):
        seen.update(engine=engine.identity.name, probe=probe.name, split=split, seed=seed, factor=factor)
        from moeworks.trace import Trace

        return find(Trace.open(trace), contrast="lang=fr", against="lang=en", permutations=20)

    MODEL_SCORES.register("stand_in")(stand_in)
    try:
        from moeworks.probes import probe_names

        probe = probe_names()[0]
        ran = run("find", "fake", "--probe", probe, "--method", "stand_in", "--option", "factor=2", "--seed", 3)
    finally:
        del MODEL_SCORES._functions["stand_in"]
    assert ran.code == 0, ran.err
    assert seen == {"engine": "fake:single", "probe": probe, "split": "find", "seed": 3, "factor": 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "dominanse"], "did you mean 'dominance'"),
        (["--method", "dominance"], "needs a label"),
        ([], "needs two sides"),
        (["--method", "activity"], "give a model and a probe"),
        (["--probe", "p"], "reads a trace; record one"),
        (["--probe", "p", "--method", "activity", "--label", "lang"], "--label is of a trace"),
        (["--probe", "p", "--method", "activity", "--marker", "+token=1"], "--marker is of a trace"),
        (["--method", "npmi", "--marker", "+"], "'+' is not a marker"),
        (["--method", "npmi", "--marker", "+token=1", "--marker", "token=1"], "given twice"),
        (["--method", "npmi", "--marker", "+token"], "'token' is not part of a where clause"),
        (["--task", "domain=maths", "--contrast", "lang=fr", "--against", "lang=en"], "--task goes with"),
        (["--method", "dominance", "--label", "lang", "--match", "token"], "does not take 'match'"),
    ],
)
def test_one_sentence_for_each_mistake(run, trace: Path, words: list[str], message: str) -> None:
    ran = run("find", trace, *words)
    assert ran.code == 2
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert message in ran.err
