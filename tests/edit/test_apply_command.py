"""`moeworks edit apply` on the lab model. Outside truth: the mask of the same plan, run on the whole model."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from helpers.checkpoints import plan_of
from moeworks.cli.main import app
from moeworks.edit.files import save_edit_plan
from moeworks.edit.replan import as_mask
from moeworks.engines import load
from moeworks.errors import BadData

KEEP = {0: range(16), 1: range(8, 24), 2: range(0, 32, 2), 3: range(16, 32), 4: range(1, 32, 2), 5: range(4, 20)}


@pytest.fixture(scope="module")
def engine():
    return load("lab", dtype="float32")  # in bfloat16 near-ties would fall either way


@pytest.fixture
def plan(engine, tmp_path):
    made = plan_of("lab", KEEP, identity=engine.identity)
    save_edit_plan(made, tmp_path / "cut.json")
    return made


def command(*words):
    return CliRunner().invoke(app, ["edit", "apply", *map(str, words)], catch_exceptions=True)


def test_the_smaller_model_is_the_masked_one(engine, plan, tmp_path) -> None:
    ran = command("lab", "--plan", tmp_path / "cut.json", "-o", tmp_path / "smaller", "--max-shard-size", "5MB")
    assert ran.exit_code == 0, ran.output
    assert "16 experts in each of 6 layers" in ran.output
    assert f"Written to {tmp_path / 'smaller'}" in ran.output
    smaller = load(str(tmp_path / "smaller"), dtype="float32")
    assert [shape.experts for shape in smaller.identity.layers] == [16] * 6
    tokens = torch.tensor([engine.tokens("The cat sat on the mat and looked at the moon.")])
    with torch.no_grad(), engine.steered(as_mask(plan)):
        masked = engine.model(tokens).logits.float()
    with torch.no_grad():
        torch.testing.assert_close(smaller.model(tokens).logits.float(), masked, rtol=0, atol=2e-5)
        assert (engine.model(tokens).logits.float() - masked).abs().max() > 0.5
    answer = smaller.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert answer == engine.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)


def test_a_dry_run_as_json(plan, tmp_path) -> None:
    ran = command("lab", "--plan", tmp_path / "cut.json", "--dry-run", "--json")
    assert ran.exit_code == 0, ran.output
    forecast = json.loads(ran.output)
    assert set(forecast["counts"].values()) == {16}
    assert forecast["bytes_after"] < forecast["bytes_before"]
    assert [path.name for path in tmp_path.iterdir()] == ["cut.json"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [((), "name the folder to write with -o"), (("-o", "x", "--max-shard-size", "much"), "'much' is no size")],
)
def test_what_it_cannot_do(words, sentence, plan, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = command("lab", "--plan", tmp_path / "cut.json", *words)
    assert isinstance(ran.exception, BadData)
    assert sentence in str(ran.exception)
