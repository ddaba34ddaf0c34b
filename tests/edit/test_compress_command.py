"""`edit ranks`, `edit compress` and `edit upcycle` as they are typed, on the lab model and a small dense one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import moeworks
from moeworks.cli.main import app
from moeworks.edit.collect import collect
from moeworks.examples import Example
from moeworks.lab import lab_path

TEXTS = ["The ship left the harbour at dawn.", "Le navire a quitté le port.", "def add(a, b):\n    return a + b"]


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["edit", *map(str, words)])


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("statistics") / "stats"
    collect(moeworks.load("lab"), [Example(text=text) for text in TEXTS], folder, rows=30)
    return folder


def test_ranks_as_table_csv_and_picture(tmp_path: Path) -> None:
    result = run("ranks", "lab", "--layer", 2, "-o", tmp_path / "r.csv", "--picture", tmp_path / "r.png")
    assert result.exit_code == 0, result.output
    assert "all stacked" in result.output
    with (tmp_path / "r.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 3 * 33
    assert (tmp_path / "r.png").stat().st_size > 10_000
    found = json.loads(run("ranks", "lab", "--layer", 2, "--json").output)
    assert found[1]["effective_rank"] == pytest.approx(float(rows[1]["effective_rank"]))
    assert "layers with experts: 0, 1" in str(run("ranks", "lab", "--layer", 9).exception)


def test_errors_first_and_nothing_is_written(statistics: Path) -> None:
    words = ("compress", "lab", "--method", "mole", "--layer", 2, "--statistics", statistics, "--json")
    plain = json.loads(run(*words, "--rank", 64).output)
    aware = json.loads(run(*words, "--rank", 64, "--option", "activations=true").output)
    (one,), (other,) = plain["layers"], aware["layers"]
    assert plain["written"] == []
    assert one["rows"] == 30
    assert other["output_error"] < 0.8 * one["output_error"]
    assert other["error"] > one["error"]
    assert one["bytes_after"] == 2 * (3 * 32 * 96 * 64 + 3 * 256 * 64) + 8 * 32
    shown = run("compress", "lab", "--method", "ternary", "--layer", 2)
    assert "(12%)" in shown.output or "(13%)" in shown.output
    assert "Outputs were not compared" in shown.output


def test_three_ways_of_writing_are_one_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    words = ("compress", "lab", "--method", "base_delta", "--rank", 8, "--layer", 1)
    for form in ("dense", "factors", "lora"):
        result = run(*words, "-o", tmp_path / form, "--as", form)
        assert result.exit_code == 0, result.exception
    tokens = torch.arange(100, 140)[None]
    with torch.no_grad():
        dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").float()(tokens).logits
        factors = moeworks.edit.load_compressed(tmp_path / "factors").float()(tokens).logits
        before = AutoModelForCausalLM.from_pretrained(lab_path()).float()(tokens).logits
    # bfloat16 rounds the products that `dense` stores, nothing else differs
    assert float((dense - factors).abs().mean()) < 0.01 * float((dense - before).abs().mean())
    assert (
        json.loads((tmp_path / "factors" / "moeworks_format.json").read_text())["evidence"]["layers"][0]["layer"] == 1
    )
    assert (tmp_path / "lora" / "base" / "config.json").is_file()
    peft = pytest.importorskip("peft")
    based = AutoModelForCausalLM.from_pretrained(tmp_path / "lora" / "base")
    with torch.no_grad():
        adapted = peft.PeftModel.from_pretrained(based, tmp_path / "lora" / "adapter").float()(tokens).logits
    assert float((adapted - factors).abs().mean()) < 0.01 * float((dense - before).abs().mean())


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    cases: list[tuple[str, tuple[object, ...]]] = [
        ("needs the option 'rank'", ("--method", "mole")),
        ("did you mean 'ternary'", ("--method", "ternry")),
        ("say what -o is to hold with --as", ("--method", "ternary", "-o", tmp_path / "x")),
        (
            "cannot be multiplied out",
            ("--method", "compressed_experts", "--option", "main=2", "-o", tmp_path / "x", "--as", "dense"),
        ),
        ("only 'base_delta' gives an adapter", ("--method", "ternary", "-o", tmp_path / "x", "--as", "lora")),
    ]
    for message, words in cases:
        result = run("compress", "lab", "--layer", 1, *words)
        assert message in str(result.exception)
        assert isinstance(result.exception, moeworks.MoeworksError)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("dense") / "qwen3"
    tokenizer = AutoTokenizer.from_pretrained(lab_path())
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **sizes, **heads)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_upcycling_is_measured_then_written(dense: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    data = tmp_path / "texts.jsonl"
    data.write_text(
        "".join(json.dumps({"text": text, "labels": {"kind": str(i % 2)}}) + "\n" for i, text in enumerate(TEXTS * 4))
    )
    result = run("upcycle", dense, "--experts", 4, "-o", tmp_path / "copies")
    assert result.exit_code == 0, result.exception
    assert "qwen3_moe: 4 experts of 64 neurons, 2 a token, weights that sum to 1; router: random" in result.output
    assert "does not compute" not in result.output
    assert moeworks.load(str(tmp_path / "copies")).identity.layers[0].experts == 4
    assert len(AutoTokenizer.from_pretrained(tmp_path / "copies")) == 8192
    words = ("upcycle", dense, "--experts", 3, "--shared", 1, "--top-k", 1, "--data", data, "--method", "cmoe")
    result = run(*words, "--target", "dots1")
    assert result.exit_code == 0, result.exception
    assert "dots1: 3 experts and 1 shared of 16 neurons" in result.output
    assert "held-out text" in result.output
    found = json.loads(run(*words, "--json").output)
    assert found["family"] == "glm4_moe"
    assert found["text"]["divergence"] > 0
    assert found["output"] is None
    domains = run(
        "upcycle", dense, "--experts", 3, "--shared", 1, "--method", "unified", "--data", data, "--by", "kind"
    )
    assert domains.exit_code == 0, domains.exception
    assert "Routers follow their labels" in domains.output
