"""What the plug-in does in a process before there is any engine: versions, imports, slots, rows that wait."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from moeworks.engines.vllm import plugin
from moeworks.engines.vllm.imports import when_imported
from moeworks.engines.vllm.recorder import Copy, LayerSizes, Recorder, StepBuffers
from moeworks.engines.vllm.slots import Slots
from moeworks.engines.vllm.spec import Recording, variants
from moeworks.engines.vllm.versions import wrong_version
from moeworks.errors import RunFailed
from moeworks.where import Where


@pytest.mark.parametrize("version", ["0.28.0", "0.32.0", "0.33.1.dev3+cpu", "0.32.0rc1"])
def test_versions_inside_the_window(version: str) -> None:
    assert wrong_version(version) == ""


@pytest.mark.parametrize("version", ["0.27.9", "0.34.0", "1.0.0", "", "unknown"])
def test_versions_outside_are_refused_with_the_range(version: str) -> None:
    assert "0.28 to 0.33" in wrong_version(version)
    assert version in wrong_version(version) or version in ("", "unknown")


def test_a_wrong_version_hooks_nothing_but_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    class InputProcessor:
        def process_inputs(self, request_id: str, prompt: str, params: Any) -> str:
            return prompt

    module = ModuleType("vllm.v1.engine.input_processor")
    module.InputProcessor = InputProcessor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(plugin, "_DONE", [])
    monkeypatch.setattr(plugin, "installed", lambda: "0.40.0")
    finders = list(sys.meta_path)
    plugin.register()
    plugin.register()
    assert sys.meta_path == finders
    door = InputProcessor()
    assert door.process_inputs("1", "as it was", SimpleNamespace(extra_args={"other": 1})) == "as it was"
    with pytest.raises(ValueError, match=r"0\.28 to 0\.33; this is vLLM 0\.40\.0"):
        door.process_inputs("1", "x", SimpleNamespace(extra_args={"moeworks": "{}"}))


def test_a_function_runs_once_after_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_later.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[int] = []
    when_imported("imported_later", lambda module: seen.append(module.value))
    assert seen == []
    import imported_later  # type: ignore[import-not-found]  # noqa: F401

    assert seen == [1]
    when_imported("imported_later", lambda module: seen.append(module.value + 1))
    assert seen == [1, 2]
    monkeypatch.delitem(sys.modules, "imported_later")


def test_slots_are_shared_and_counted() -> None:
    written: list[Any] = []
    slots = Slots(3, lambda slot, key: written.append((slot, key)), lambda slot: written.append((slot, None)))
    first, same, other = slots.take(("a", (0,))), slots.take(("a", (0,))), slots.take(("b", (0,)))
    assert first == same != other
    assert 0 not in (first, other)
    with pytest.raises(RunFailed, match="all 2 slots"):
        slots.take(("c", (0,)))
    slots.give_back(first)
    assert slots.used == 2
    slots.give_back(same)
    assert slots.used == 1
    before = len(written)
    assert slots.take(("a", (0,))) == first  # still filled
    assert len(written) == before
    slots.give_back(first)
    assert slots.take(("c", (0,))) == first
    assert written[before:] == [(first, None), (first, ("c", (0,)))]
    slots.give_back(first)
    slots.give_back(other)
    assert slots.used == 0
    assert slots.take(("d", (0,))) == first  # the one that was given back first
    assert slots.take(("b", (0,))) == other


def test_where_a_plan_holds_is_known_for_every_position() -> None:
    clauses = [Where(phase=("generated",)), Where(position=(-2, None)), Where(phase=("forced",))]
    sets, kinds = variants(clauses, prompt=4, given=6, length=9)
    assert [sets[kind] for kind in kinds] == [(), (), (1,), (1,), (1, 2), (1, 2), (0, 1), (0, 1), (0, 1)]
    sets, kinds = variants([], prompt=2, given=2, length=3)
    assert (sets, kinds.tolist()) == ([()], [0, 0, 0])


def recorder(budget: int = 10_000) -> tuple[Recorder, StepBuffers]:
    buffers = StepBuffers(8, [LayerSizes(1, 2, 4, 1.0), LayerSizes(2, 1, 4, 2.5)], torch.device("cpu"))
    return Recorder(buffers, budget), buffers


def step(buffers: StepBuffers, first: int) -> None:
    """Row r decides for experts first + r, with weights of the same number."""
    values = first + torch.arange(8)
    for place, width in enumerate((2, 1)):
        rows = values[:, None].expand(8, width)
        buffers.put(place, rows, rows.float(), torch.zeros(8, 4))


def test_rows_of_many_steps_are_joined_and_seen_once() -> None:
    keeper, buffers = recorder()
    one, other = (keeper.start(Recording(key=key)) for key in ("one", "other"))
    step(buffers, 0)
    keeper.add([Copy(one, 0, 0, 3), Copy(other, 5, 0, 2)])
    step(buffers, 10)
    keeper.add([Copy(one, 0, 0, 4)])  # preempted: its first three tokens run again
    step(buffers, 20)
    keeper.add([Copy(one, 7, 4, 1)])
    kept = keeper.take("one")
    assert kept is not None
    assert (kept["first"], kept["missing"], kept["dropped"]) == (0, 0, 0)
    columns = {n: np.frombuffer(d, t).reshape(s) for n, (t, s, d) in kept["columns"].items()}
    assert columns["L1.ids"].tolist() == [[0, 0], [1, 1], [2, 2], [13, 13], [27, 27]]
    assert columns["L2.weights"].tolist() == [[0.0], [2.5], [5.0], [32.5], [67.5]]  # times the factor on the output
    assert keeper.take("one") is None
    keeper.add([Copy(one, 0, 5, 1)])  # comes after it was fetched
    assert keeper.take("other") is not None
    assert (keeper.nbytes, keeper.waiting) == (0, 0)


def test_a_hole_is_counted() -> None:
    keeper, buffers = recorder()
    kept = keeper.start(Recording(key="k", start=2))
    step(buffers, 0)
    keeper.add([Copy(kept, 0, 5, 2)])
    found = keeper.take("k")
    assert found is not None
    assert (found["first"], found["missing"]) == (5, 3)


def test_without_room_a_request_is_dropped_whole_and_counted() -> None:
    keeper, buffers = recorder(budget=100)  # a row takes 4 ids of 2 bytes and 4 weights of 4
    old = keeper.start(Recording(key="old"))
    step(buffers, 0)
    keeper.add([Copy(old, 0, 0, 4)])
    keeper.finish(old)
    new = keeper.start(Recording(key="new"))
    keeper.add([Copy(new, 0, 0, 3)])  # the finished one that nobody fetched makes room
    assert keeper.take("old") is None
    assert keeper.dropped == 4
    keeper.add([Copy(new, 0, 3, 3)])
    found = keeper.take("new")
    assert found is not None
    assert (found["dropped"], found["columns"]) == (6, {})
    assert keeper.nbytes == 0
