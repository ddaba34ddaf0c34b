"""What `moeworks view` makes of what was typed, the first look at a model, and the program from start to end."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from httpx2 import Client

from helpers.page_server import page_texts
from helpers.traces import make_trace
from moeworks.cli import main
from moeworks.engines.fake import FakeEngine
from moeworks.errors import BadData, BadTrace
from moeworks.find import Scores
from moeworks.plan import empty_plan, save_plan
from moeworks.trace import Trace
from moeworks.view import first_look as module
from moeworks.view.first_look import first_look, first_texts
from moeworks.view.opening import gather, is_model

torch.set_num_threads(1)
COMMAND = "import torch; torch.set_num_threads(1); from moeworks.cli import main; main()"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "moeworks" / "first-look"


@pytest.fixture
def engine():
    return FakeEngine("single")


@pytest.fixture
def quick(monkeypatch):
    """Few permutations, so that twelve languages take a moment."""
    monkeypatch.setattr(module, "PERMUTATIONS", 20)
    monkeypatch.setattr(module, "BOOTSTRAP", 5)


def test_models_are_told_from_files(tmp_path):
    make_trace(tmp_path / "trace")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert [is_model(word) for word in ("lab", "lab-sigmoid", "fake", "fake:pair", "owner/name")] == [True] * 5
    assert is_model(str(tmp_path / "model"))
    assert not is_model(str(tmp_path / "trace"))
    for word in (str(tmp_path / "nowhere"), "./nowhere", "nowhere/", "scores.arrow"):
        with pytest.raises(BadData, match=r"nowhere|scores"):
            is_model(word)


def test_files_alone_open_no_model(tmp_path, monkeypatch):
    make_trace(tmp_path / "trace")
    monkeypatch.setattr("moeworks.view.opening._open", lambda *_: pytest.fail("no model was asked for"))
    sources = gather([str(tmp_path / "trace")])
    assert (sources.ids("trace"), sources.engine) == (["trace"], None)


def test_a_model_beside_a_trace_reads_nothing_first(tmp_path, engine, monkeypatch):
    make_trace(tmp_path / "trace")
    monkeypatch.setattr("moeworks.view.opening._open", lambda *_: engine)
    monkeypatch.setattr(module, "first_look", lambda *_, **__: pytest.fail("there is a trace"))
    sources = gather(["fake", str(tmp_path / "trace")])
    assert (sources.ids("trace"), sources.engine) == (["trace"], engine)
    assert gather(["fake"], texts=0).ids("trace") == []


def test_mistakes_are_said_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("moeworks.view.opening._open", lambda *_: pytest.fail("too late"))
    with pytest.raises(BadData, match="one model, not lab and fake"):
        gather(["lab", "fake"])
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(BadData, match="nothing that a page shows"):
        gather(["lab", str(tmp_path / "text.txt")])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "trace.json").write_text("{}")
    with pytest.raises(BadTrace, match="broken"):
        gather(["lab", str(tmp_path / "broken")])


def test_first_texts_are_labelled_and_for_finding():
    texts = first_texts(3)
    languages = [text.labels["lang"] for text in texts]
    assert len(set(languages)) == 12
    assert {languages.count(name) for name in languages} == {3}
    assert all(set(text.labels) == {"lang", "domain"} for text in texts)
    from moeworks.probes import load_probe

    held_out = {text.content() for text in load_probe("language/ru").texts("held_out")}
    assert not held_out & {text.content() for text in texts}


@pytest.mark.usefixtures("quick")
def test_the_first_look_is_made_once(engine, cache, monkeypatch):
    said = []
    paths = first_look(engine, texts=4, say=said.append)
    assert len(said) == 1
    assert "48 texts in 12 languages" in said[0]
    trace = Trace.open(paths[0])
    assert len(trace.requests) == 48
    assert trace.header.logits
    scores = {path.stem: Scores.load(path) for path in paths[1:]}
    assert len(scores) == 12
    header = scores["language-ru"].header
    assert (header.contrast, header.against) == ("lang=ru", "lang=en")
    assert header.command == f"moeworks find {paths[0]} --contrast lang=ru --against lang=en"
    assert oct(cache.stat().st_mode & 0o777) == "0o700"  # texts are private
    del trace
    monkeypatch.setattr(FakeEngine, "record", lambda *_, **__: pytest.fail("it is there"))
    assert first_look(engine, texts=4, say=said.append) == paths
    assert len(said) == 1


@pytest.mark.usefixtures("quick")
def test_an_interrupted_first_look_leaves_nothing_and_a_damaged_one_is_made_again(engine, cache, monkeypatch):
    whole = FakeEngine.record

    def stopped(self, *arguments, **options):
        whole(self, *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "record", stopped)
        with pytest.raises(KeyboardInterrupt):
            first_look(engine, texts=2)
    assert list(cache.iterdir()) == []
    paths = first_look(engine, texts=2)
    part = next(paths[0].glob("part-*"))
    os.truncate(part, 100)
    assert first_look(engine, texts=2) == paths
    assert len(Trace.open(paths[0])) > 0
    paths[3].write_bytes(b"no scores")
    assert Scores.load(first_look(engine, texts=2)[3]).header.hash


@pytest.mark.usefixtures("quick")
def test_another_model_or_number_of_texts_is_another_first_look_and_old_ones_go(engine, cache, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    first = first_look(engine, texts=1)[0].parent
    os.utime(first, (1, 1))
    second = first_look(engine, texts=2)[0].parent
    os.utime(second, (2, 2))
    third = first_look(FakeEngine("pair"), texts=1)[0].parent
    assert len({first, second, third}) == 3
    assert sorted(cache.iterdir()) == sorted([second, third])


@pytest.mark.usefixtures("quick")
def test_without_a_cache_folder_it_goes_with_the_process(engine, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    paths = first_look(engine, texts=1)
    assert Path(tempfile.gettempdir()) in paths[0].parents
    assert len(Trace.open(paths[0]).requests) == 12


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--plan", "x"], "write --plan name=plan.json"),
        (["--plan", "x=/nowhere/plan.json"], "cannot read /nowhere/plan.json"),
        (["--host", "0.0.0.0"], "--api-key"),
        (["/nowhere/trace"], "there is no file or folder /nowhere/trace"),
        (["lab", "fake"], "one model"),
        (["--league", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, capsys, monkeypatch):
    monkeypatch.delenv("MOEWORKS_API_KEY", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["view", "--no-open", *arguments])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1


@pytest.mark.slow  # starts the program
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_program_from_start_to_end(tmp_path, how):
    engine = FakeEngine("single")
    engine.record(page_texts(), tmp_path / "trace", logits=True)
    plan = tmp_path / "plan.json"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    from moeworks.serve import open_model

    save_plan(empty_plan(open_model("fake").identity, protect="none"), plan)
    words = ["view", "fake", str(tmp_path / "trace"), "--plan", f"mine={plan}", "--port", "0", "--no-open"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MOEWORKS_API_KEY": "secret", "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", COMMAND, *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as it:
        try:
            line = it.stderr.readline()
            assert line.startswith("the page is at http://127.0.0.1:"), line + it.stderr.read()
            address = line.split()[4]
            assert address.endswith("/view/#key=secret")
            url = address.split("/view/")[0]
            with Client(base_url=url, headers={"authorization": "Bearer secret"}, timeout=60) as web:
                found = web.get("/view/api/sources").json()
                assert [one["id"] for one in found["plans"]] == ["mine"]
                assert web.get("/", follow_redirects=True).text.startswith("<!doctype html>")
                assert web.post("/view/api/record", json={"text": "Hello"}).status_code == 200
                body = {"model": "mine", "prompt": "Hi", "max_tokens": 2, "temperature": 0}
                assert web.post("/v1/completions", json=body).json()["choices"][0]["text"]
            assert len(list(temporary.glob("moeworks-page-*"))) == 1
            it.send_signal(how)
            out, err = it.communicate(timeout=30)
            assert (out, err, it.returncode) == ("", "stopped\n", 0)
            assert not list(temporary.glob("moeworks-page-*"))
        finally:
            it.kill()
