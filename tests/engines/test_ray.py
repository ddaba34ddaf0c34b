"""Recording on workers of Ray: the trace of one piece row for row, whoever dies on the way; all else refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moeworks.engines import capabilities, load
from moeworks.engines.fake import planted_examples
from moeworks.engines.ray import cluster
from moeworks.engines.ray import engine as ray_engine
from moeworks.errors import BadData, BadPlan, BadTrace, MissingExtra, MoeworksError, RunFailed, Unsupported
from moeworks.plan import Demote, empty_plan
from moeworks.trace import Trace

ray = pytest.importorskip("ray", reason="needs moeworks[ray]")
SHARD = 3


@pytest.fixture(scope="module")
def running() -> Iterator[None]:
    """One Ray for all tests that do not kill it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        num_cpus=3,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=100 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def same_rows(one: Trace, other: Trace) -> None:
    """Every row, of texts and of tokens, in the same order, to the bit."""
    assert one.requests.equals(other.requests)
    assert len(one) == len(other)
    whole = [[part.table for part in trace.parts] for trace in (one, other)]
    names = whole[0][0].column_names
    assert names == whole[1][0].column_names
    for name in names:
        first, second = ([v for table in tables for v in table[name].to_pylist()] for tables in whole)
        assert first == second, name
    about = ("model", "engine", "settings", "seed", "text_hash", "tokens", "dropped", "layers", "weights", "logits")
    for name in about:
        assert getattr(one.header, name) == getattr(other.header, name), name


def workers(**options: Any) -> Any:
    return load("fake:single", engine="ray", **{"workers": 2, "shard": SHARD, **options})


@pytest.mark.slow
def test_the_trace_is_that_of_one_piece(running: None, tmp_path: Path) -> None:
    """Plan, labels, spans, documents, generated tokens, logits; a last shard that is not full."""
    inner = load("fake:single")
    examples = planted_examples(8)
    examples[2] = examples[2].model_copy(update={"document": "named"})
    plan = empty_plan(inner.identity).model_copy(update={"operations": (Demote(experts=tuple(inner.planted)),)})
    options: dict[str, Any] = {"plan": plan, "logits": True, "generate": 2, "batch_size": 2, "keep_text": True}
    alone = inner.record(examples, tmp_path / "alone", **options)
    found = workers().record(iter(examples), tmp_path / "found", **options)
    same_rows(alone, found)
    found.verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "found"]  # no shards are left


@pytest.mark.slow
def test_what_a_worker_says_is_said(running: None, tmp_path: Path) -> None:
    inner = load("fake:single")
    foreign = empty_plan(inner.identity.model_copy(update={"weight_hash": "of something else"})).model_copy(
        update={"operations": (Demote(experts=tuple(inner.planted)),)}
    )
    with pytest.raises(BadPlan, match="of something else"):
        workers().record(planted_examples(2), tmp_path / "t", plan=foreign)
    assert not (tmp_path / "t").exists()


@pytest.mark.slow
def test_a_shard_that_kills_its_workers_ends_the_run(
    running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(cluster.Recorder):
        def _opened(self) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(cluster, "Recorder", Dying)
    with pytest.raises(RunFailed, match="4 workers died while they recorded shard 0"):
        workers(shard=100).record(planted_examples(2), tmp_path / "t")


@pytest.mark.slow
def test_more_workers_than_cores_are_refused(running: None, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="3 workers need 4 cores of Ray's count, it has 3"):
        workers(workers=3, shard=1).record(planted_examples(4), tmp_path / "t")


def test_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that are whole are not recorded again; texts and settings must be those of before."""
    examples = [  # some without a document of their own
        example.model_copy(update={"document": ""}) if number % 3 else example
        for number, example in enumerate(planted_examples(10))
    ]
    asked: list[list[int]] = []

    def mapped(shards: Any, *, workers: int, gpu: bool, **recorder: Any) -> Iterator[tuple[int, int]]:
        """Without Ray: in this process, until the second shard, where it fails the first time."""
        asked.append(list(shards))
        work = cluster.Recorder(**recorder)
        for number in shards:
            if number == 2 and len(asked) == 1:
                raise RunFailed("the machine went away.")
            row = work({"shard": [number]})
            assert not row["error"][0]
            yield number, int(row["tokens"][0])

    monkeypatch.setattr(cluster, "mapped", mapped)
    target = tmp_path / "t"
    with pytest.raises(RunFailed, match="went away"):
        workers().record(examples, target)
    with pytest.raises(BadTrace, match="--resume"):
        workers().record(examples, target)
    with pytest.raises(BadTrace, match=r"logits is False there and True here"):
        workers().record(examples, target, logits=True, resume=True)
    with pytest.raises(BadTrace, match="texts of shard 0 were others"):
        workers().record(examples[1:], target, resume=True)
    with pytest.raises(BadTrace, match="more texts than the data"):
        workers().record(examples[:3], target, resume=True)
    (tmp_path / "t.shards" / "000002.by-1-x").mkdir()  # of a worker that died
    found = workers().record(examples, target, resume=True)
    assert asked == [[0, 1, 2, 3], [2, 3]]
    same_rows(load("fake:single").record(examples, tmp_path / "alone"), found)
    assert not (tmp_path / "t.shards").exists()
    with pytest.raises(BadTrace, match="already holds a whole trace"):
        workers().record(examples, target)
    assert len(workers().record(examples[:3], target, overwrite=True).requests) == 3


@pytest.mark.slow
def test_a_worker_is_killed_on_the_way(tmp_path: Path) -> None:
    """The command line with its own Ray, real workers, kill -9 in the middle of a shard: the same trace as without."""
    with open(tmp_path / "texts.jsonl", "w") as stream:
        for number in range(96):
            text = f"The river number {number} runs past the old mill" + " and on" * (number % 7)
            stream.write(json.dumps({"text": text, "lang": "en" if number % 2 else "fr"}) + "\n")
    options = ["--batch-size", "1", "--generate", "3", "--seed", "4"]  # 32 batches a shard: three shards
    command = [sys.executable, "-m", "moeworks", "record", "lab", "texts.jsonl", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "-o", "found", "--engine", "ray"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    killed, seen = 0, set[int]()
    until = time.monotonic() + 240
    while process.poll() is None:
        assert time.monotonic() < until
        for folder in (tmp_path / "found.shards").glob("*.by-*"):
            worker = int(folder.name.partition(".by-")[2].partition("-")[0])
            if not killed and any(folder.iterdir()):  # it records: the model is loaded
                os.kill(worker, signal.SIGKILL)
                killed = worker
            elif killed and worker != killed:
                seen.add(worker)
        time.sleep(0.02)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert killed
    assert seen, "no other worker took over"
    subprocess.run([*command, "-o", "alone"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    same_rows(Trace.open(tmp_path / "alone"), Trace.open(tmp_path / "found"))
    assert not (tmp_path / "found.shards").exists()


def test_what_it_cannot_do_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = workers()
    for name in ("generate", "token_scores", "identity", "steered"):
        with pytest.raises(Unsupported, match=f"does nothing else \\({name}\\); use fake itself"):
            getattr(engine, name)
    assert not hasattr(engine, "no such thing")
    for options in ({"sample": 0.5}, {"generate": 2, "do_sample": True}):
        with pytest.raises(Unsupported, match=f"{list(options)[-1]}: draws go by"):
            engine.record(planted_examples(1), tmp_path / "t", **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(BadTrace, match="not empty and not a trace"):
        engine.record(planted_examples(1), tmp_path / "full", overwrite=True)
    with pytest.raises(Unsupported, match="not ray again"):
        load("lab", engine="ray:ray")
    with pytest.raises(MoeworksError, match="nothing"):
        load("lab", engine="ray:nothing")
    monkeypatch.setattr(ray_engine.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(capabilities, "_is_installed", lambda name: True)
    with pytest.raises(MissingExtra, match=r"moeworks\[ray\]"):
        workers()
    monkeypatch.setattr(capabilities, "_is_installed", lambda name: name not in ("ray", "pandas"))
    with pytest.raises(Unsupported, match=r"ray and pandas not installed: pip install 'moeworks\[ray\]'"):
        workers()


def test_its_options_go_with_it() -> None:
    command = [sys.executable, "-m", "moeworks", "record", "fake", "-", "-o", "t", "--ray-workers", "2"]
    ran = subprocess.run(command, input="text", capture_output=True, text=True)
    assert ran.returncode == 2
    assert "go with --engine ray" in ran.stderr
