"""Sources: what a page can show, by stable ids, with every wrong path refused in words."""

from __future__ import annotations

import json

import pytest

from helpers.traces import make_trace
from moeworks.engines.fake import FakeEngine
from moeworks.errors import BadData, BadTrace
from moeworks.examples import Example
from moeworks.find import find
from moeworks.plan import empty_plan, save_plan
from moeworks.view.refusals import NotThere
from moeworks.view.sources import Sources


@pytest.fixture
def room(tmp_path):
    trace = make_trace(
        tmp_path / "Fr & ру", requests=12, rows_per_request=20, generated=4, labels={"lang": ["fr", "ru"]},
        spans={"answer": (1, 3)},
    )  # fmt: skip
    scores = find(trace, contrast="lang=ru", against="lang=fr", permutations=50, bootstrap=20)
    scores.save(tmp_path / "ru.scores.arrow")
    save_plan(empty_plan(trace.header.model), tmp_path / "plan.json")
    (tmp_path / "other.json").write_text("{}")
    return tmp_path


def test_ids_are_short_stable_and_unique(room) -> None:
    trace = room / "Fr & ру"
    sources = Sources([trace, trace, room / "ru.scores.arrow", room / "plan.json"])
    assert sources.ids("trace") == ["Fr", "Fr-2"]
    assert sources.name("Fr") == "Fr & ру"
    assert (sources.ids("scores"), sources.ids("plan")) == (["ru.scores"], ["plan"])
    assert sources.trace("Fr").path == trace
    assert sources.scores("ru.scores").header.method == "risk_difference"


def test_a_folder_of_things_is_all_of_them(room) -> None:
    sources = Sources([room])
    assert (sources.ids("trace"), sources.ids("scores"), sources.ids("plan")) == (["Fr"], ["ru.scores"], ["plan"])


def test_everything_is_told_as_json(room) -> None:
    told = json.loads(json.dumps(Sources([room]).as_json(), allow_nan=False))
    (trace,), (scores,), (plan,) = told["traces"], told["scores"], told["plans"]
    assert trace["layers"] == [{"layer": n, "experts": 8, "top_k": 2} for n in (0, 1)]
    assert trace["labels"] == {"lang": {"fr": 6, "ru": 6}}
    assert trace["label_values"] == {"lang": 2}
    assert trace["phases"] == {"prompt": 12 * 16, "generated": 12 * 4}
    assert (trace["rows"], trace["requests"], trace["spans"]) == (240, 12, ["answer"])
    assert (trace["weights"], trace["logits"]) == (True, False)
    assert (scores["contrast"], scores["against"], scores["method"]) == ("lang=ru", "lang=fr", "risk_difference")
    assert scores["trace"] == "Fr"
    assert plan["verdict"] is None
    assert told["model"] is None
    assert told["probes"] == []
    assert told["can"] == {"generate": False, "record": False, "evaluate": False}


def test_an_engine_is_the_model(tmp_path) -> None:
    engine = FakeEngine()
    trace = engine.record([Example(text="capital letters: ABC é")], tmp_path / "live")
    sources = Sources(engine=engine)
    id = sources.add_trace(trace, name="live one")
    model = sources.as_json()["model"]
    assert id == "live-one"
    assert model["hash"] == engine.identity.weight_hash
    assert model["layers"][0]["contract"].startswith("top ")
    assert sources.as_json()["can"]["generate"]
    assert "language/ru" in sources.as_json()["probes"]
    assert sources.engine_of(id) is engine
    assert not sources.decoder(id).reason


def test_an_engine_of_another_model_is_not_that_of_a_trace(room) -> None:
    sources = Sources([room], engine=FakeEngine())
    assert sources.engine_of("Fr") is None
    assert sources.decoder("Fr").reason


def test_what_is_taken_off_is_gone(room) -> None:
    sources = Sources([room])
    sources.remove("Fr")
    assert sources.ids("trace") == []
    with pytest.raises(NotThere, match="no trace 'Fr'"):
        sources.trace("Fr")
    with pytest.raises(NotThere, match="nothing called 'Fr'"):
        sources.remove("Fr")


def test_wrong_paths_are_refused_in_words(room, tmp_path) -> None:
    with pytest.raises(BadData, match="there is no file or folder"):
        Sources([room / "missing"])
    with pytest.raises(BadData, match="nothing that a page shows"):
        Sources([room / "other.json"])
    (room / "empty").mkdir()
    with pytest.raises(BadData, match="nothing that a page shows"):
        Sources([room / "empty"])
    (room / "Fr & ру" / "trace.json").write_text("{")
    with pytest.raises(BadTrace, match="not JSON"):
        Sources([room / "Fr & ру"])


def test_scores_of_neurons_and_of_other_labels_are_listed(room) -> None:
    sources = Sources([room])
    assert sources.as_json()["scores"][0]["unit"] == "expert"
    assert sources.as_json()["scores"][0]["test"] == "labels"
