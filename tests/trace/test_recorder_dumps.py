"""SGLang's recorder dumps, written by hand as SGLang 0.5 writes them, come back as traces and load profiles.

The writer here follows `python/sglang/srt/eplb/expert_distribution.py` of SGLang 0.5 (2026): `_DetailAccumulator` and
`_StatAccumulator` save dictionaries with `torch.save`; ids are of physical slots, 8 a token, -1 where none.
"""

import json
import math

import numpy as np
import pytest

from helpers.traces import make_identity
from moeworks.errors import BadData
from moeworks.place.balance import balance_profile
from moeworks.place.exports import export_counts, read_counts
from moeworks.place.profile import load_profile, save_profile
from moeworks.place.recorded import profile_balance, profile_recorded
from moeworks.stats import balance_of
from moeworks.trace import Trace
from moeworks.trace.importers import import_recorder

torch = pytest.importorskip("torch")
from moeworks.cli.main import app  # noqa: E402

MODEL = make_identity(layers=(1, 2), experts=4, top_k=2)  # layer 0 is dense
MAP = [[0, 1, 2, 3, 0], [3, 2, 1, 0, 3], [0, 1, 2, 3, 1]]  # (hidden layers, 5 slots): expert in each slot


def topk(layer1, layer2, slots=8):
    """(3, T, slots) int32 of physical slots; -1 in the dense layer and after the model's two."""
    array = np.full((3, len(layer1), slots), -1, np.int32)
    array[1, :, :2], array[2, :, :2] = layer1, layer2
    return torch.from_numpy(array)


def one_pass(number, mode, tokens, positions, layer1, layer2, lengths=None):
    ids = topk(layer1, layer2)
    return {
        "forward_pass_id": number,
        "rank": 0,
        "gatherer_key": "primary",
        "input_ids": tokens,
        "positions": positions,
        "extend_seq_lens": lengths,
        "forward_mode": mode,
        "topk_ids_of_layer": ids,
        "misc_objects": [],
        "global_physical_count": torch.zeros((3, 5), dtype=torch.int32),
    }


def save(path, records, placed=MAP):
    torch.save({"records": records, "last_physical_to_logical_map": torch.tensor(placed)}, path)
    return path


def two_texts():
    """Prompts of 3 and 2 tokens, then decode: both, both, then only the second (the first is over)."""
    return [
        one_pass(0, 1, [5, 6, 7, 8, 9], [0, 1, 2, 0, 1], [[0, 1]] * 3 + [[4, 2]] * 2, [[0, 1]] * 5, [3, 2]),
        one_pass(1, 2, [10, 11], [3, 2], [[1, 2], [3, 4]], [[2, 3], [0, 2]]),
        one_pass(2, 4, [], [], np.zeros((0, 2)), np.zeros((0, 2)), []),
        one_pass(3, 2, [12, 13], [4, 3], [[0, 3], [1, 3]], [[4, 0], [3, 4]]),
        one_pass(4, 2, [14], [4], [[2, 1]], [[0, 1]]),
    ]


def test_passes_become_texts_of_logical_experts(tmp_path):
    found = import_recorder(save(tmp_path / "d.pt", two_texts()), tmp_path / "t", model=MODEL, version="0.5.23")
    rows = found.rows()
    assert rows.request.tolist() == [0] * 5 + [1] * 5
    assert rows.token.tolist() == [5, 6, 7, 10, 12, 8, 9, 11, 13, 14]
    assert rows.position.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert rows.phase.tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 1, 1]
    # layer 1 has the map 3 2 1 0 3, layer 2 the map 0 1 2 3 1
    assert found.ids(1).tolist() == [[3, 2]] * 3 + [[2, 1], [3, 0]] + [[3, 1]] * 2 + [[0, 3], [2, 0], [1, 2]]
    assert found.ids(2).tolist() == [[0, 1]] * 3 + [[2, 3], [1, 0]] + [[0, 1]] * 2 + [[0, 2], [3, 1], [0, 1]]
    assert (found.header.lacks, found.header.settings["unlinked"]) == (("weights",), 0)
    assert (found.header.engine.name, found.header.engine.version) == ("sglang", "0.5.23")
    assert np.isnan(found.weights(1)).all()
    found.verify()


def test_what_cannot_be_told_stays_alone(tmp_path):
    """Two open texts wait for position 2, one token comes: it goes on neither, and nothing goes on from it."""
    records = [
        one_pass(0, 1, [1, 2, 3, 4], [0, 1, 0, 1], [[0, 1]] * 4, [[0, 1]] * 4, [2, 2]),
        one_pass(1, 2, [5], [2], [[0, 1]], [[0, 1]]),
        one_pass(2, 2, [6], [3], [[0, 1]], [[0, 1]]),
    ]
    found = import_recorder(save(tmp_path / "d.pt", records), tmp_path / "t", model=MODEL)
    assert found.rows().request.tolist() == [0, 0, 1, 1, 2, 3]
    assert found.header.settings["unlinked"] == 1
    assert found.request_table().labels["linked"].tolist() == ["yes", "yes", "no", "yes"]
    assert found.rows().position.tolist() == [0, 1, 0, 1, 2, 3]


def test_equal_positions_follow_the_order_of_the_batch_and_chunks_stay_apart(tmp_path):
    records = [
        one_pass(0, 1, [1, 2], [0, 0], [[0, 1]] * 2, [[0, 1]] * 2, [1, 1]),
        one_pass(1, 2, [3, 4], [1, 1], [[0, 1]] * 2, [[0, 1]] * 2),
        one_pass(2, 1, [8, 9], [5, 6], [[0, 1]] * 2, [[0, 1]] * 2, [2]),  # behind a cached prefix
        one_pass(3, 3, [7, 5, 6], [7, 2, 2], [[0, 1]] * 3, [[0, 1]] * 3, [1, 1, 1]),  # mixed: all three go on
    ]
    found = import_recorder(save(tmp_path / "d.pt", records), tmp_path / "t", model=MODEL)
    assert found.rows().token.tolist() == [1, 3, 5, 2, 4, 6, 8, 9, 7]
    assert found.rows().phase.tolist() == [0, 1, 1, 0, 1, 1, 0, 0, 1]
    assert found.rows().position.tolist() == [0, 1, 2, 0, 1, 2, 5, 6, 7]


def change(record, **fields):
    return [*two_texts()[:1], {**record, **fields}]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (change(two_texts()[1], forward_mode=5), "forward mode 5"),
        (change(two_texts()[1], positions=[3]), "2 tokens, 1 positions"),
        (change(two_texts()[0], extend_seq_lens=[3, 3]), "do not make 5"),
        (change(two_texts()[0], positions=[0, 2, 3, 0, 1]), "do not follow"),
        (change(two_texts()[1], topk_ids_of_layer=topk([[0, -1]] * 2, [[0, 1]] * 2)), "layer 1 has tokens with fewer"),
        (change(two_texts()[1], topk_ids_of_layer=topk([[1, 3]] * 2, [[1, 4]] * 2)), "same expert twice"),
        (change(two_texts()[1], topk_ids_of_layer=topk([[0, 9]] * 2, [[0, 1]] * 2)), "expert 9"),
        ([], "holds no forward pass"),
    ],
)
def test_what_is_no_routing_of_the_model_is_refused(tmp_path, records, message):
    with pytest.raises(BadData, match=message):
        import_recorder(save(tmp_path / "d.pt", records), tmp_path / "t", model=MODEL)
    assert not (tmp_path / "t").exists()


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


def test_nothing_in_a_file_is_run(tmp_path, capsys):
    torch.save({"records": [Evil()]}, tmp_path / "d.pt")
    with pytest.raises(BadData, match="can run code"):
        import_recorder(tmp_path / "d.pt", tmp_path / "t", model=MODEL)
    assert capsys.readouterr().out == ""
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(BadData, match=r"x\.pt"):
        import_recorder(tmp_path / "x.pt", tmp_path / "t", model=MODEL)
    torch.save({"other": 1}, tmp_path / "y.pt")
    with pytest.raises(BadData, match="neither 'logical_count'"):
        import_recorder(tmp_path / "y.pt", tmp_path / "t", model=MODEL)


def stat(path, counts, rank=0):
    """What modes stat and stat_approx save: logical counts of buffered passes, zeros where the buffer is not full."""
    tensor = torch.tensor(counts, dtype=torch.int32)
    torch.save({"rank": rank, "logical_count": tensor, "average_utilization_rate_over_window": None}, path)
    return path


def passes(count=12, seed=0):
    """(passes, 3 hidden layers, 4 experts): layer 0 dense; each pass routes 10 tokens to 2 experts."""
    rng = np.random.default_rng(seed)
    found = np.zeros((count, 3, 4), np.int64)
    found[:, 1] = rng.multinomial(20, [0.4, 0.3, 0.2, 0.1], count)
    found[:, 2] = rng.multinomial(20, [0.1, 0.2, 0.3, 0.4], count)
    return found


def test_counts_make_a_profile_and_no_trace(tmp_path):
    counts = passes()
    source = stat(tmp_path / "s.pt", np.concatenate([counts, np.zeros((4, 3, 4), int)]).tolist())
    found = profile_recorded(source, model=MODEL)
    assert {n: runs.tolist() for n, runs in found.counts().items()} == {
        1: counts[:, 1].sum(0).tolist(),
        2: counts[:, 2].sum(0).tolist(),
    }
    assert found.layers[0].phases[0].tokens == 120
    assert [len(layer.blocks) for layer in found.layers] == [12, 12]
    assert {"tokens", "phases", "order", "documents"} < set(found.lacks)
    assert load_profile(save_profile(found, tmp_path / "p.json")) == found
    with pytest.raises(BadData, match="no token: it makes a load profile"):
        import_recorder(source, tmp_path / "t", model=MODEL)
    with pytest.raises(BadData, match="does not tell phases apart"):
        found.counts("generated")
    export_counts(found, tmp_path / "e.json", to="sglang")
    assert read_counts(tmp_path / "e.json", form="sglang")[2].tolist() == counts[:, 2].sum(0).tolist()


def test_counts_of_passes_and_ranks_are_added_by_the_map(tmp_path):
    """Slots 0 and 4 of layer 1 hold expert 3: 1 + 5 runs of it in one rank, twice as many in two."""
    physical = torch.tensor([[[0] * 5, [1, 2, 3, 4, 5], [1, 1, 1, 1, 1]]] * 2, dtype=torch.int32)
    records = [{"forward_pass_id": n, "rank": 0, "global_physical_count": one} for n, one in enumerate(physical)]
    files = [save(tmp_path / f"{rank}.pt", records) for rank in (0, 1)]
    one = profile_recorded(files[0], model=MODEL)
    assert one.layers[0].runs().tolist() == [8, 6, 4, 12]  # map 3 2 1 0 3, two passes
    assert one.layers[1].runs().tolist() == [2, 4, 2, 2]  # map 0 1 2 3 1
    assert profile_recorded(files, model=MODEL).layers[0].runs().tolist() == [16, 12, 8, 24]
    with pytest.raises(BadData, match="make a trace of it"):
        profile_recorded(save(tmp_path / "t.pt", two_texts()), model=MODEL)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (passes()[:, 1:2].tolist(), "has 1 layers"),
        (passes()[:, :, :3].tolist(), "counts 3 experts"),
        ((passes() + 1).tolist(), "no router there"),
        ((passes() * 0).tolist(), "counts nothing"),
        ((passes() * [[0], [1], [0]]).tolist(), "nothing in layer 2"),
        ((-passes()).tolist(), "overflowed"),
    ],
)
def test_counts_of_another_model_are_refused(tmp_path, counts, message):
    with pytest.raises(BadData, match=message):
        profile_recorded(stat(tmp_path / "s.pt", counts), model=MODEL)


def test_balance_and_placement_of_recorded_counts(tmp_path):
    counts = passes(40)
    found = profile_recorded(stat(tmp_path / "s.pt", counts.tolist()), model=MODEL)
    first = profile_balance(found).to_pylist()[0]
    assert math.isclose(first["max_violation"], balance_of(counts[:, 1].sum(0)).max_violation)
    assert first["max_violation_low"] < first["max_violation"] < first["max_violation_high"]
    assert 0 < first["max_violation_chance"] < first["max_violation_low"]
    placed = balance_profile(found, gpus=2)
    row = placed.table.to_pylist()[0]
    load = counts[20:, 1].sum(0)  # plain: experts 0, 1 on one GPU, 2, 3 on the other; placed: 0 with 3, 1 with 2
    assert math.isclose(row["plain"], (load[0] + load[1]) * 2 / load.sum())
    assert math.isclose(row["eplb"], max(load[0] + load[3], load[1] + load[2]) * 2 / load.sum())
    assert (placed.calibration_documents, placed.documents) == (20, 20)


def test_commands(tmp_path):
    from typer.testing import CliRunner

    run = CliRunner().invoke
    like = import_recorder(save(tmp_path / "d.pt", two_texts()), tmp_path / "t", model=MODEL).path
    made = run(app, ["trace", "import", str(tmp_path / "d.pt"), "-o", str(tmp_path / "u"), "--like", str(like),
                     "--format", "sglang-recorder"])  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "10 tokens of 2 texts, 2 layers" in made.output
    assert Trace.open(tmp_path / "u").ids(1).tolist() == Trace.open(like).ids(1).tolist()
    source = stat(tmp_path / "s.pt", passes().tolist())
    profile = str(tmp_path / "p.json")
    made = run(app, ["place", "profile", str(source), "-o", profile, "--like", str(like)])
    assert made.exit_code == 0, made.output
    assert "Its source lacks tokens, phases" in made.output
    shown = run(app, ["inspect", profile, "--json"])
    assert [row["layer"] for row in json.loads(shown.output)["rows"]] == [1, 2]
    assert "max_violation" in run(app, ["inspect", profile]).output
    placed = run(app, ["place", "balance", profile, "--gpus", "2", "-o", str(tmp_path / "e.json")])
    assert "placed by 6 other blocks of forward passes" in " ".join(placed.output.split())
    assert json.loads((tmp_path / "e.json").read_text())["physical_to_logical_map"]
