"""Studies end to end on the fake engine, whose truth is planted: what is found, what is redone, what is left behind."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from moeworks.engines.fake import FakeEngine, neutral_examples, null_probe, planted_probe
from moeworks.errors import BadData
from moeworks.examples import Example
from moeworks.find import Scores
from moeworks.plan import load_plan
from moeworks.probes import Item
from moeworks.report import render
from moeworks.stats import DIAGNOSTICS
from moeworks.study import Study, load_study, study
from moeworks.study.budget import some_documents, some_items, some_of_each
from moeworks.study.routers import language_divergence, loads
from moeworks.study.samples import prompt_of
from moeworks.trace import Trace

NEUTRAL = neutral_examples(8)
PROBES = (planted_probe(48), null_probe(48))


class Counting(FakeEngine):
    """A fake engine that counts its calls and, if told so, is interrupted at one of them."""

    def __init__(self, plant: str = "single", *, stop: tuple[str, int] | None = None) -> None:
        super().__init__(plant)
        self.calls: Counter[str] = Counter()
        self.stop = stop

    def _count(self, name: str) -> None:
        self.calls[name] += 1
        if self.stop == (name, self.calls[name]):
            raise KeyboardInterrupt

    def record(self, examples: Iterable[Example], path: str | Path, **options: Any) -> Trace:
        self.calls["record"] += 1

        def counted() -> Iterable[Example]:
            for number, example in enumerate(examples):
                if number == 10:
                    self._count("half of record")
                yield example

        return super().record(counted(), path, **options)

    def generate(self, *arguments: Any, **options: Any) -> Any:
        self._count("generate")
        return super().generate(*arguments, **options)

    def token_scores(self, *arguments: Any, **options: Any) -> Any:
        self._count("token_scores")
        return super().token_scores(*arguments, **options)


def run(engine: FakeEngine, folder: Path, **options: Any) -> Study:
    settings = {"neutral": NEUTRAL, "amounts": (1, 3), "progress": False, **options}
    return study(engine, PROBES, folder, **settings)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a small study's time; where the report is not looked at, it is a line of text."""
    monkeypatch.setattr("moeworks.report.save_report", lambda _, path: path.write_text("report"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    folder = tmp_path_factory.mktemp("study")
    return folder, run(FakeEngine(), folder)


# Their chance shuffles tokens part by part, and an interruption moves the ends of the parts of a trace.
SHUFFLED = {"vocabulary_specialisation", "token_dependence", "position_specialisation"}


def without_seconds(found: Study) -> dict[str, Any]:
    document = found.model_dump(exclude={"seconds"})
    for probe in document["probes"]:
        del probe["seconds"]
    for table in document["routing"]:
        if table["what"] in SHUFFLED:
            del table["columns"]
    return document


def test_finds_what_is_planted_and_nothing_else(done: tuple[Path, Study]) -> None:
    """The truth is the engine's own: `planted` carries shouting, and the null probe's sides do not differ."""
    _, found = done
    planted, null = found.probes
    assert planted.verdict == "works"
    assert planted.plan is not None
    (operation,) = planted.plan.operations
    assert operation.op == "demote"
    assert set(FakeEngine().planted) <= set(operation.experts)
    assert planted.amount == len(operation.experts)
    assert [trial.amount for trial in planted.trials] == sorted({trial.amount for trial in planted.trials})
    assert (null.verdict, null.plan, null.samples, null.amount) == ("nothing found", None, (), 0)
    assert "None of 64 experts passes" in null.reasons[0]
    assert not any(null.scores.passes)


@pytest.mark.usefixtures("no_pictures")
def test_without_a_plant_nothing_is_found(tmp_path: Path) -> None:
    """The same probe on a model in which no expert carries it."""
    found = study(FakeEngine("none"), PROBES[:1], tmp_path, neutral=NEUTRAL, progress=False)
    assert [result.verdict for result in found.probes] == ["nothing found"]


def test_files_hold_what_was_returned(done: tuple[Path, Study]) -> None:
    folder, found = done
    assert load_study(folder) == found
    assert (folder / "report.html").read_text(encoding="utf-8") == render(found)
    result = found.probes[0]
    assert load_plan(folder / "probes" / "planted" / "plan.json") == result.plan
    scores = Scores.load(folder / "probes" / "planted" / "scores.arrow")
    for name in ("layer", "expert", "score", "q", "passes"):
        np.testing.assert_array_equal(getattr(result.scores, name), scores.column(name))
    assert (result.tokens, result.documents) == (scores.header.tokens, scores.header.documents)
    assert sum(result.tokens) == len(Trace.open(folder / "probes" / "planted" / "trace"))


def test_samples_are_what_the_engine_generates(done: tuple[Path, Study]) -> None:
    result = done[1].probes[0]
    engine = FakeEngine()
    for sample in result.samples:
        assert engine.generate([sample.prompt], max_new_tokens=24)[0].text == sample.before
        assert engine.generate([sample.prompt], max_new_tokens=24, plan=result.plan)[0].text == sample.after
    assert len(result.samples) == 2


def test_second_run_calls_the_model_for_nothing(done: tuple[Path, Study]) -> None:
    folder, found = done
    before = (folder / "report.html").read_bytes()
    engine = Counting()
    assert run(engine, folder) == found
    assert engine.calls == {}
    assert (folder / "report.html").read_bytes() == before


@pytest.mark.usefixtures("no_pictures")
def test_other_amounts_redo_choice_and_proof_only(tmp_path: Path) -> None:
    first = Counting()
    run(first, tmp_path)
    second = Counting()
    run(second, tmp_path, amounts=(2,))
    assert first.calls["half of record"] - second.calls["half of record"] == 2  # both find splits
    assert second.calls["token_scores"] > 0
    third = Counting()
    run(third, tmp_path, amounts=(2,), resume=False)
    assert third.calls["half of record"] == first.calls["half of record"]


@pytest.mark.usefixtures("no_pictures")
def test_another_model_redoes_everything(tmp_path: Path) -> None:
    run(FakeEngine(), tmp_path)
    engine = Counting("none")
    found = run(engine, tmp_path)
    assert engine.calls["half of record"] == 2
    assert [result.verdict for result in found.probes] == ["nothing found", "nothing found"]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("stop", [("half of record", 1), ("token_scores", 12), ("generate", 2), ("half of record", 2)])
def test_interrupted_study_leaves_nothing_half_written_and_goes_on(
    done: tuple[Path, Study], tmp_path: Path, stop: tuple[str, int]
) -> None:
    engine = Counting(stop=stop)
    with pytest.raises(KeyboardInterrupt):
        run(engine, tmp_path)
    names = [path.name for path in tmp_path.rglob("*")]
    assert not [name for name in names if name.endswith(".tmp")]
    assert "study.json" not in names
    assert "report.html" not in names
    for path in tmp_path.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    for path in tmp_path.rglob("trace/trace.json"):
        Trace.open(path.parent).verify()
    again = Counting()
    found = run(again, tmp_path)
    assert without_seconds(found) == without_seconds(done[1])
    assert len(found.routing) == len(DIAGNOSTICS)
    assert {table.what for table in found.routing if table.columns is not None} >= {"balance", "srp", "coactivation"}
    if stop[0] != "half of record":
        assert engine.calls["record"] + again.calls["record"] <= 6  # two traces, and two for each time of proving


def test_commands_in_the_report_make_the_same_scores_and_plan(
    done: tuple[Path, Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`find` and `steer` as printed, run by the command line on the study's own trace."""
    from moeworks.cli import app

    folder, found = done
    result = found.probes[0]
    (tmp_path / "trace").symlink_to(folder / "probes" / "planted" / "trace")
    monkeypatch.chdir(tmp_path)
    lines = {words[1]: words[1:] for words in (shlex.split(command.line) for command in result.commands)}
    assert list(lines) == ["record", "find", "steer", "evaluate", "generate"]
    for verb in ("find", "steer"):
        outcome = CliRunner().invoke(app, lines[verb])
        assert outcome.exit_code == 0, outcome.output
    np.testing.assert_array_equal(Scores.load("scores.arrow").column("q"), np.array(result.scores.q))
    assert result.plan is not None
    assert load_plan("plan.json").operations == result.plan.operations


@pytest.mark.parametrize(
    ("probes", "options", "message"),
    [
        ((), {}, "at least one probe"),
        ((PROBES[0], PROBES[0]), {}, "would share the folder 'planted'"),
        (PROBES, {"amounts": (0, 3)}, "1 or more"),
        (PROBES, {"amounts": ()}, "1 or more"),
        (("no-such-probe",), {}, "no-such-probe"),
        ((planted_probe(12), null_probe(12)), {}, r"planted has held-out items from \d documents.*null has"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    tmp_path: Path, probes: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadData, match=message):
        study(FakeEngine(), probes, tmp_path / "out", progress=False, **options)
    assert not (tmp_path / "out").exists()


def test_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "probes" / "planted" / "trace" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    with pytest.raises(BadData, match="no study wrote it"):
        run(FakeEngine(), tmp_path)
    assert mine.read_text() == "years of work"


def test_load_study_names_what_is_wrong(done: tuple[Path, Study], tmp_path: Path) -> None:
    with pytest.raises(BadData, match="does not exist"):
        load_study(tmp_path)
    document = json.loads((done[0] / "study.json").read_text(encoding="utf-8"))
    for change, message in (
        ({"header": {**document["header"], "version": 99}}, "version 99"),
        ({"header": {**document["header"], "format": "moeworks.plan"}}, "moeworks.plan"),
        ({"surprise": 1, "load_tokens": "many"}, "surprise.*load_tokens|load_tokens.*surprise"),
    ):
        (tmp_path / "study.json").write_text(json.dumps({**document, **change}))
        with pytest.raises(BadData, match=message):
            load_study(tmp_path)


def test_load_is_that_of_all_traces_together(done: tuple[Path, Study]) -> None:
    """Counted once more with numpy from the traces themselves."""
    folder, found = done
    traces = [Trace.open(folder / "probes" / name / "trace") for name in ("planted", "null")]
    assert loads(traces) == (found.load, found.load_tokens)
    for row in found.load:
        ids = np.concatenate([trace.ids(row.layer).ravel() for trace in traces])
        share = np.bincount(ids, minlength=row.experts) / len(ids)
        used = share[share > 0]
        assert row.evenness == pytest.approx(-(used * np.log(used)).sum() / np.log(row.experts))
        assert row.busiest == pytest.approx(share.max() * row.experts)
        assert row.idle == (share == 0).sum()


def test_divergence_by_language_from_the_logits(tmp_path: Path) -> None:
    """Documents with both languages: mean over them of JS / ln 2 between mean softmaxes, worked again with numpy."""
    texts = [
        Example(text=text, labels={"lang": lang}, document=f"d{number}")
        for number in range(3)
        for lang, text in (("en", f"plain words {number}"), ("xx", f"XQZ {number * 7} ZZQ!"))
    ]
    trace = FakeEngine().record(texts, tmp_path / "trace", logits=True)
    found = language_divergence(trace)
    assert (found.groups, found.base, found.layers) == (("xx",), "en", (0, 1, 2, 3))

    def entropy(p: np.ndarray) -> float:
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    rows = trace.rows()
    for layer in found.layers:
        logits = np.asarray(trace.logits(layer), np.float64)
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        means = [shares[rows.request == request].mean(0) for request in range(6)]
        raw, entropies = [], []
        for document in range(3):
            english, other = means[2 * document], means[2 * document + 1]
            raw.append(entropy((english + other) / 2) - (entropy(english) + entropy(other)) / 2)
            entropies.append((entropy(other), entropy(english)))
        assert found.raw[0][layer] == pytest.approx(np.mean(raw) / np.log(2), rel=1e-5)
        assert found.entropy[0][layer] == pytest.approx(np.mean(entropies, 0)[0] / np.log(16), rel=1e-5)
        assert found.base_entropy[layer] == pytest.approx(np.mean(entropies, 0)[1] / np.log(16), rel=1e-5)


def test_some_documents_keeps_documents_whole_and_depends_on_the_seed() -> None:
    texts = [Example(text=f"{name}{part}", document=name) for name in "abcdefgh" for part in range(3)]
    few = some_documents(texts, 10, seed=0)
    sizes = Counter(text.document for text in few)
    assert set(sizes.values()) == {3}
    assert len(sizes) == 3
    assert few == [text for text in texts if text.document in sizes]
    others = {tuple(text.document for text in some_documents(texts, 10, seed=seed)) for seed in range(10)}
    assert len(others) > 3
    assert some_documents(texts, None, seed=0) == some_documents(texts, 24, seed=0) == texts


def test_some_of_each_takes_every_language_and_domain_before_a_second_of_any() -> None:
    """Ten of the first kind, one of each other: four texts hold each language; domains are spread in the same way."""
    texts = [Example(text=f"en {n}", labels={"lang": "en", "domain": "law"}) for n in range(10)]
    texts += [Example(text=lang, labels={"lang": lang, "domain": "law"}) for lang in ("fr", "de", "it")]
    assert [text.text for text in some_of_each(texts, 4)] == ["en 0", "fr", "de", "it"]
    assert [text.text for text in some_of_each(texts, 5)] == ["en 0", "en 1", "fr", "de", "it"]
    assert some_of_each(texts, None) == texts
    texts = [
        Example(text=f"{lang} {domain}", labels={"lang": lang, "domain": domain}) for lang in "abc" for domain in "xyz"
    ]
    assert [text.text for text in some_of_each(texts, 3)] == ["a x", "b y", "c z"]


def test_some_items_come_from_as_many_documents_as_can_be() -> None:
    """Three items a document, four documents a split: six items hold each document before any third item."""
    items = [
        Item(text=f"{split}{document}{part}", document=document, split=split)  # type: ignore[arg-type]
        for split in ("dev", "held_out")
        for document in "abcd"
        for part in range(3)
    ]
    probe = some_items(replace(PROBES[0], all_items=tuple(items)), 6)
    assert [item.text for item in probe.items("dev")] == ["deva0", "deva1", "devb0", "devb1", "devc0", "devd0"]
    assert len(probe.items("held_out")) == 6
    assert probe.all_texts == PROBES[0].all_texts


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("one two three four five six", "one two"),  # a third is 9 characters, "one two t"
        ("abcdef ghi jkl mno pqr", "abcdef"),  # a third is 7, "abcdef ", whose last space is cut
        ("これは日本語の文章です", "これは"),  # no spaces: a third
        (" abc def", " a"),  # a third is 2; the space before it begins the text
        ("abc def ghi jkl mno pqr", "abc def"),  # a third is 7, a word just ends there
        ("x", "x"),
    ],
)
def test_prompt_of_a_text_is_its_beginning(text: str, prompt: str) -> None:
    assert prompt_of(Item(text=text, split="held_out")) == prompt


def test_prompt_of_an_item_with_a_prompt_is_that() -> None:
    assert prompt_of(Item(prompt="2 + 2 =", target=" 4", split="held_out")) == "2 + 2 ="
