"""Writing cut checkpoints. Outside truth: rows of the source's own tensors, and stock transformers' loading."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from shutil import copyfile

import pytest
import torch

from helpers.checkpoints import plan_of, saved, tensors_of
from moeworks.edit.apply import PLAN_FILE, apply, check_apply, draft_plan
from moeworks.edit.checkpoint import open_checkpoint
from moeworks.edit.files import load_edit_plan
from moeworks.edit.writer import unfinished_folder
from moeworks.errors import BadData
from moeworks.families.edit_checks import load, run

KEEP = {0: (1, 3, 5, 8), 1: (0, 2, 9, 15), 2: (4, 5, 6, 7), 3: (0, 13, 14, 15)}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = saved("qwen3_moe", tmp_path_factory.mktemp("source") / "m", shards=4)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "modeling_own.py").write_text("own = 1\n")
    (folder / "measured.json").write_text("{}")
    return folder


def test_kept_experts_are_copied_and_renumbered(source, tmp_path) -> None:
    applied = apply(source, plan_of(source, KEEP), tmp_path / "out")
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    for layer, kept in KEEP.items():
        prefix = f"model.layers.{layer}.mlp"
        assert torch.equal(after[f"{prefix}.gate.weight"], before[f"{prefix}.gate.weight"][list(kept)])
        for new, old in enumerate(kept):
            for part in ("gate_proj", "up_proj", "down_proj"):
                name = f"{prefix}.experts.{{}}.{part}.weight"
                assert torch.equal(after[name.format(new)], before[name.format(old)])
        assert f"{prefix}.experts.4.up_proj.weight" not in after
    others = {name for name in before if ".experts." not in name and ".mlp.gate." not in name}
    assert others == {name for name in after if ".experts." not in name and ".mlp.gate." not in name}
    assert all(torch.equal(before[name], after[name]) for name in others)
    assert set(applied.counts.values()) == {4}
    assert applied.bytes_after == sum(tensor.nbytes for tensor in after.values())
    assert applied.bytes_before == sum(tensor.nbytes for tensor in before.values())


def test_index_config_and_companions(source, tmp_path) -> None:
    applied = apply(source, plan_of(source, KEEP), tmp_path / "out", max_shard_bytes=40_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files
    assert len(files) == applied.shards > 1
    assert index["metadata"]["total_size"] == applied.bytes_after
    assert applied.largest_shard <= 40_000
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_experts"] == config["num_local_experts"] == 4  # transformers 4 reads one, 5 the other
    assert config["num_experts_per_tok"] == 2
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"
    assert (tmp_path / "out" / "modeling_own.py").is_file()
    assert not (tmp_path / "out" / "measured.json").exists()  # what was measured on the old model
    assert load_edit_plan(tmp_path / "out" / PLAN_FILE) == plan_of(source, KEEP)
    assert (tmp_path / "out" / "README.md").read_text().strip()


def test_shards_are_never_larger_than_the_sources_largest(source, tmp_path) -> None:
    largest = open_checkpoint(source).files.largest_file()
    applied = apply(source, plan_of(source, {layer: range(14) for layer in range(4)}), tmp_path / "out")
    assert applied.shards > 1
    assert applied.largest_shard <= largest


def test_a_plan_that_keeps_everything_copies_everything(source, tmp_path) -> None:
    apply(source, plan_of(source, {0: range(16)}), tmp_path / "out")
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_cut_of_a_cut_is_the_cut_of_both(source, tmp_path) -> None:
    apply(source, plan_of(source, {layer: range(0, 16, 2) for layer in range(4)}), tmp_path / "half")
    apply(tmp_path / "half", plan_of(tmp_path / "half", dict.fromkeys(range(4), (1, 3, 5))), tmp_path / "twice")
    apply(source, plan_of(source, dict.fromkeys(range(4), (2, 6, 10))), tmp_path / "once")
    once, twice = tensors_of(tmp_path / "once"), tensors_of(tmp_path / "twice")
    assert all(torch.equal(tensor, twice[name]) for name, tensor in once.items())


def test_fewer_neurons_are_the_function_with_the_others_at_zero(source, tmp_path) -> None:
    neurons = {layer: tuple(tuple(range(e % 2, 32, 2)) for e in kept) for layer, kept in KEEP.items()}
    plan = plan_of(source, KEEP, neurons=neurons)
    apply(source, plan, tmp_path / "narrow")
    apply(source, plan.model_copy(update={"transform": "zero_neurons"}), tmp_path / "zeroed")
    config = json.loads((tmp_path / "narrow" / "config.json").read_text())
    assert (config["moe_intermediate_size"], config["intermediate_size"]) == (16, 32)
    narrow, zeroed = run(load("qwen3_moe", tmp_path / "narrow")), run(load("qwen3_moe", tmp_path / "zeroed"))
    torch.testing.assert_close(narrow, zeroed, rtol=0, atol=2e-6)


def test_merged_experts_as_copies_keep_all_router_rows(source, tmp_path) -> None:
    groups = {layer: tuple(((e, 1.0), (e + 8, 1.0)) for e in range(8)) for layer in range(4)}
    plan = plan_of(source, {layer: range(8) for layer in range(4)}, groups=groups, transform="mean")
    rows = apply(source, plan, tmp_path / "rows")
    copies = apply(source, plan, tmp_path / "copies", layout="copies")
    before, small, large = tensors_of(source), tensors_of(tmp_path / "rows"), tensors_of(tmp_path / "copies")
    assert set(rows.counts.values()) == {8}
    assert copies.bytes_after == copies.bytes_before
    for layer in range(4):
        prefix = f"model.layers.{layer}.mlp"
        assert torch.equal(large[f"{prefix}.gate.weight"], before[f"{prefix}.gate.weight"])
        for e in range(16):
            name = f"{prefix}.experts.{{}}.down_proj.weight"
            assert torch.equal(large[name.format(e)], small[name.format(e % 8)])
    merged = small["model.layers.0.mlp.experts.0.up_proj.weight"]
    parts = [before[f"model.layers.0.mlp.experts.{e}.up_proj.weight"] for e in (0, 8)]
    torch.testing.assert_close(merged, (parts[0] + parts[1]) / 2)
    load("qwen3_moe", tmp_path / "copies")


def test_a_dry_run_writes_nothing_and_foretells(source, tmp_path) -> None:
    plan = plan_of(source, KEEP)
    before = sorted(tmp_path.iterdir())
    forecast = check_apply(source, plan, max_shard_bytes=50_000)
    assert sorted(tmp_path.iterdir()) == before
    applied = apply(source, plan, tmp_path / "out", max_shard_bytes=50_000)
    for name in ("counts", "bytes_before", "bytes_after", "shards", "largest_shard", "notes"):
        assert getattr(forecast, name) == getattr(applied, name)
    assert set(check_apply(source, draft_plan(source, 0.25)).counts.values()) == {4}


def test_an_output_that_is_there(source, tmp_path) -> None:
    plan = plan_of(source, KEEP)
    apply(source, plan, tmp_path / "out")
    with pytest.raises(BadData, match="is there already"):
        apply(source, plan, tmp_path / "out")
    apply(source, plan_of(source, dict.fromkeys(range(4), (1, 2))), tmp_path / "out", overwrite=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_experts"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(BadData, match=PLAN_FILE):
        apply(source, plan, tmp_path / "mine", overwrite=True)


KILLED = """
    import importlib, os, signal, sys
    from moeworks.edit import writer
    module = importlib.import_module("moeworks.edit.apply")
    module.stock_problems = lambda *configs: []  # it was asked in this process; importing transformers takes seconds
    from moeworks.edit.files import load_edit_plan
    left = int(sys.argv[4])
    whole = writer.replace_file
    def counted(path):
        global left
        if path.name.endswith(".safetensors"):
            left -= 1
            if left < 0:
                (path.parent / f".{path.name}.1.tmp").write_bytes(b"half a shard")
                os.kill(os.getpid(), signal.SIGKILL)
        return whole(path)
    writer.replace_file = counted
    module.apply(sys.argv[1], load_edit_plan(sys.argv[2]), sys.argv[3], max_shard_bytes=40_000)
"""


def test_a_killed_run_is_gone_on_with_to_the_same_bytes(source, tmp_path) -> None:
    from moeworks.edit.files import save_edit_plan

    plan = plan_of(source, KEEP)
    save_edit_plan(plan, tmp_path / "plan.json")
    whole = apply(source, plan, tmp_path / "whole", max_shard_bytes=40_000)
    assert whole.shards >= 4
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(source), str(tmp_path / "plan.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run([*command, str(tmp_path / "out"), "2"], env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    folder = unfinished_folder(tmp_path / "out")
    assert len(list(folder.glob("model*.safetensors"))) == 2
    assert not (tmp_path / "out").exists()
    applied = apply(source, plan, tmp_path / "out", max_shard_bytes=40_000)
    assert applied.resumed_shards == 2
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    assert not folder.exists()


def _stop(monkeypatch, source, plan, output) -> None:
    """Start to write a checkpoint and stop when two shards are there."""
    from moeworks.edit import writer

    whole, left = writer.replace_file, [2]

    def counted(path):
        if path.name.endswith(".safetensors"):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return whole(path)

    with monkeypatch.context() as patched:
        patched.setattr(writer, "replace_file", counted)
        with pytest.raises(KeyboardInterrupt):
            apply(source, plan, output, max_shard_bytes=40_000)


def test_another_plan_or_another_source_starts_anew(source, tmp_path, monkeypatch) -> None:
    _stop(monkeypatch, source, plan_of(source, KEEP), tmp_path / "out")
    other = plan_of(source, KEEP | {3: (1, 13, 14, 15)})
    applied = apply(source, other, tmp_path / "out", max_shard_bytes=40_000)
    assert applied.resumed_shards == 0
    gate = tensors_of(tmp_path / "out")["model.layers.3.mlp.gate.weight"]
    assert torch.equal(gate, tensors_of(source)["model.layers.3.mlp.gate.weight"][[1, 13, 14, 15]])


@pytest.mark.parametrize(
    "damage",
    [lambda first, second: first.write_bytes(first.read_bytes()[:-1]), lambda first, second: copyfile(second, first)],
    ids=["cut short", "another shard"],
)
def test_a_kept_shard_that_is_damaged_is_written_again(damage, source, tmp_path, monkeypatch) -> None:
    plan = plan_of(source, KEEP)
    _stop(monkeypatch, source, plan, tmp_path / "out")
    first, second = sorted(unfinished_folder(tmp_path / "out").glob("model*.safetensors"))
    damage(first, second)
    assert apply(source, plan, tmp_path / "out", max_shard_bytes=40_000).resumed_shards == 1
    assert all(tensor.isfinite().all() for tensor in tensors_of(tmp_path / "out").values())


def test_a_folder_of_somebody_else_is_not_touched(source, tmp_path) -> None:
    folder = unfinished_folder(tmp_path / "out")
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(BadData, match="no unfinished checkpoint of ours"):
        apply(source, plan_of(source, KEEP), tmp_path / "out")
    assert (folder / "thesis.txt").read_text() == "mine"
