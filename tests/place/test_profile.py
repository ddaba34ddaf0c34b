"""The profile of a trace by hand, and every export read back as its reader reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.decisions import Text, write_texts
from helpers.traces import make_trace
from moeworks.errors import BadData
from moeworks.place.eplb import rebalance
from moeworks.place.exports import (
    COUNT_FORMATS,
    export_counts,
    export_placement,
    export_routing,
    read_counts,
    read_placement,
    read_routing,
)
from moeworks.place.profile import GAPS, load_profile, profile_trace, save_profile
from moeworks.schemas import json_schema_of
from moeworks.where import Where

TEXTS = [
    Text({}, {1: [[0, 1], [0, 2], [3, 1], [0, 2]]}, {1: [[0.5, 0.5]] * 3 + [[1, 0]]}, document="a", generated=1),
    Text({}, {1: [[0, 1]]}, document="b"),
]


@pytest.mark.parametrize("part_bytes", [1, 1 << 20])
def test_by_hand(tmp_path: Path, part_bytes: int) -> None:
    """Reuse in text a: 0 after 1 token, 1 after 2, then (generated) 0 after 2; the slot of weight 0 did not run."""
    found = profile_trace(write_texts(tmp_path / "t", TEXTS, experts=(4,), part_bytes=part_bytes))
    (layer,) = found.layers
    prompt, generated = layer.phases
    assert (prompt.phase, prompt.tokens, prompt.runs) == ("prompt", 4, (3, 3, 1, 1))
    assert (generated.phase, generated.tokens, generated.runs) == ("generated", 1, (1, 0, 0, 0))
    assert prompt.reuse[:3] == (1, 1, 0)
    assert generated.reuse[:3] == (0, 1, 0)
    assert len(prompt.reuse) == len(GAPS) + 1
    assert (prompt.first, generated.first) == (6, 0)  # 0 1 2 3 of text a, 0 1 of text b
    assert layer.together == ((4, 2, 1, 0), (2, 3, 0, 1), (1, 0, 1, 0), (0, 1, 0, 1))
    assert layer.runs().tolist() == [4, 3, 1, 1]
    assert found.documents == 2


def test_long_gaps_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One use at 0 and one at 1500, another expert between: later than 1024; chunks of two rows change nothing."""
    ids = [[0], *[[1]] * 1499, [0]]
    trace = write_texts(tmp_path / "t", [Text({}, {0: ids})], experts=(2,), part_bytes=4000)
    whole = profile_trace(trace)
    assert whole.layers[0].phases[0].reuse == (1498, *[0] * 10, 1)
    monkeypatch.setattr("moeworks.place.profile._CELLS", 4)
    assert profile_trace(trace) == whole


def test_saved_and_read(tmp_path: Path) -> None:
    found = profile_trace(make_trace(tmp_path / "t", generated=4, experts=(8, 6)), where=Where(layer=(1,)))
    path = save_profile(found, tmp_path / "p.json")
    assert load_profile(path) == found
    document = json.loads(path.read_text())
    assert document["format"] == "moeworks.profile"
    import jsonschema

    jsonschema.validate(document, json_schema_of("profile"))


def test_bad_profiles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    save_profile(profile_trace(make_trace(tmp_path / "t")), path)
    document = json.loads(path.read_text())
    for change, message in (
        ({"version": 2}, "version 2"),
        ({"format": "moeworks.plan"}, "no profile"),
        ({"layers": [{**document["layers"][0], "experts": 5}]}, "altered"),
        ({"documents": -1}, "altered"),
    ):
        path.write_text(json.dumps({**document, **change}))
        with pytest.raises(BadData, match=message):
            load_profile(path)
    path.write_text("{")
    with pytest.raises(BadData, match="not JSON"):
        load_profile(path)
    with pytest.raises(BadData, match="cannot read"):
        load_profile(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("table", "p.csv"),
        ("sglang", "p.json"),
        ("ktransformers", "p.pt"),
        ("exllamav3", "p.json"),
        ("exllamav3", "p.npz"),
    ],
)
def test_counts_go_out_and_come_back(tmp_path: Path, to: str, name: str) -> None:
    """Layers 1 and 3 of a model of five."""
    trace = make_trace(tmp_path / "t", layers=(1, 3), generated=4)
    profile = profile_trace(trace)
    path = export_counts(profile, tmp_path / name, to=to, hidden_layers=5)  # type: ignore[arg-type]
    found = read_counts(path, form=to)  # type: ignore[arg-type]
    expected = profile.counts()
    if name.endswith("npz"):
        expected = dict(enumerate(expected.values()))
    assert found.keys() == expected.keys()
    for layer, runs in expected.items():
        assert np.array_equal(found[layer], runs)


def test_what_the_readers_look_for(tmp_path: Path) -> None:
    """The keys, shapes and rows that each reader was seen to use."""
    torch = pytest.importorskip("torch")
    profile = profile_trace(make_trace(tmp_path / "t", layers=(1, 3), generated=4))
    counts = profile.counts("generated")
    sglang = json.loads(
        export_counts(profile, tmp_path / "s.json", to="sglang", phase="generated", hidden_layers=5).read_text()
    )
    assert np.shape(sglang["logical_count"]) == (5, 8)
    assert sglang["logical_count"][3] == counts[3].tolist()
    assert sglang["logical_count"][0] == [0] * 8
    loaded = torch.load(export_counts(profile, tmp_path / "k.pt", to="ktransformers"), weights_only=True)
    assert tuple(loaded["logical_count"].shape) == (1, 4, 8)
    named = json.loads(export_counts(profile, tmp_path / "e.json", to="exllamav3").read_text())
    assert list(named) == ["model.layers.1.mlp", "model.layers.3.mlp"]
    with np.load(export_counts(profile, tmp_path / "e.npz", to="exllamav3"), allow_pickle=False) as arrays:
        assert arrays["counts_decode"].shape == arrays["counts_prefill"].shape == (1, 2, 8)
        assert arrays["counts_decode"][0, 1].tolist() == counts[3].tolist()


def test_a_table_needs_layers_of_one_width(tmp_path: Path) -> None:
    profile = profile_trace(make_trace(tmp_path / "t", experts=(8, 6)))
    for to in ("sglang", "ktransformers"):
        with pytest.raises(BadData, match="different numbers of experts"):
            export_counts(profile, tmp_path / "x", to=to)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
    with pytest.raises(BadData, match="has no router in layer 1"):
        export_counts(profile_trace(make_trace(tmp_path / "u")), tmp_path / "x", to="sglang", hidden_layers=1)
    with pytest.raises(BadData, match="did you mean 'sglang'"):
        export_counts(profile, tmp_path / "x", to="sglan")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["sglang", "vllm", "vllm-ascend"])
def test_placements_go_out_and_come_back(tmp_path: Path, form: str) -> None:
    loads = np.random.default_rng(0).integers(1, 100, (1, 8))
    placements = {1: rebalance(loads, replicas=12, gpus=4), 3: rebalance(loads[:, ::-1], replicas=12, gpus=4)}
    path = export_placement(placements, tmp_path / "p.json", to=form, hidden_layers=5)  # type: ignore[arg-type]
    found = read_placement(path, form=form)  # type: ignore[arg-type]
    document = json.loads(path.read_text())
    if form == "sglang":
        assert list(document) == ["physical_to_logical_map"]
        assert found.shape == (5, 12)
        found = found[[1, 3]]
    if form == "vllm-ascend":
        assert document["moe_layer_count"] == 2
        assert document["layer_list"][1]["device_count"] == 4
        assert [len(device["device_expert"]) for device in document["layer_list"][0]["device_list"]] == [3] * 4
    assert np.array_equal(found, [one.physical_to_logical[0] for one in placements.values()])
    assert all(set(row) == set(range(8)) for row in found.tolist())


def test_routing_rows(tmp_path: Path) -> None:
    """`pos,layer,ids`: prompts have negative positions, a slot that did not run is empty; rows count to the profile."""
    trace = write_texts(tmp_path / "t", TEXTS, experts=(4,), part_bytes=1)
    lines = export_routing(trace, tmp_path / "r.csv").read_text().splitlines()
    assert lines == ["-1,1,0,1", "-2,1,0,2", "-3,1,3,1", "0,1,0,", "-4,1,0,1"]
    counted = read_routing(tmp_path / "r.csv")
    runs = profile_trace(trace).counts()[1]
    assert counted == {1: {expert: int(count) for expert, count in enumerate(runs)}}
    decoded = export_routing(trace, tmp_path / "d.csv", as_decode=True).read_text().splitlines()
    assert [line.split(",")[0] for line in decoded] == ["0", "1", "2", "3", "4"]
    with pytest.raises(BadData, match="no token"):
        export_routing(trace, tmp_path / "x.csv", where=Where(token=(99,)))


def test_formats_say_who_reads_them() -> None:
    assert all(one.read_by and one.source for one in COUNT_FORMATS.values())
