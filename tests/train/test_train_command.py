"""`moeworks train` from the command line, on a planted model in a folder."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from moeworks.cli.main import main
from moeworks.engines.fake import planted_examples, planted_model
from moeworks.engines.transformers import TransformersEngine
from moeworks.find import Scores
from moeworks.train.objective import Objective
from moeworks.train.save import save_model

QUICK = ["--steps", "3", "--max-tokens", "32", "--batch-size", "2", "--no-control", "--expert", "L0.E9"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("planted")
    made = planted_model("single", layers=2)
    save_model(TransformersEngine(made.model, made.tokenizer), root / "model")
    for side, name in (("contrast", "forget"), ("against", "retain")):
        texts = [example for example in planted_examples(16) if example.labels["side"] == side]
        (root / f"{name}.jsonl").write_text("".join(text.model_dump_json() + "\n" for text in texts))
    return root


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return int(left.value.code or 0)


def unlearn(folder: Path, output: Path, *more: object) -> int:
    data = ["--forget", folder / "forget.jsonl", "--retain", folder / "retain.jsonl"]
    return command("train", "unlearn", folder / "model", *data, "-o", output, *QUICK, *more)


def test_unlearn_writes_and_says_what_came_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unlearn(folder, tmp_path / "out") == 0
    shown = capsys.readouterr()
    assert "of memory" in shown.err
    assert "Trained L0.E9 and the router of its layer" in shown.out
    assert "forget perplexity, held out" in shown.out
    assert unlearn(folder, tmp_path / "out") == 2
    assert "is there already" in capsys.readouterr().err
    assert unlearn(folder, tmp_path / "out", "--overwrite", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["result"]["target"]["expert"] == "L0.E9"
    assert report == json.loads((tmp_path / "out" / "unlearn.json").read_text())


def test_ctrl_c_says_how_to_go_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Objective.step

    def pressed(self: Objective, number: int) -> dict[str, float]:
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "step", pressed)
        assert unlearn(folder, tmp_path / "out") == 130
    assert "--resume" in capsys.readouterr().err
    assert unlearn(folder, tmp_path / "out", "--resume") == 0
    assert len(json.loads((tmp_path / "out" / "unlearn.json").read_text())["result"]["history"]) == 3


def test_router_lens_writes_scores(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--epochs", 1, "--max-tokens", 32, "--per-layer", 2, "--ceft", tmp_path / "ceft.json"]
    data, output = folder / "forget.jsonl", tmp_path / "scores.arrow"
    assert command("train", "router-lens", folder / "model", data, "-o", output, *words) == 0
    assert "layer 0: experts 9" in capsys.readouterr().out
    assert Scores.load(output).header.method == "router_lens"
    assert len(json.loads((tmp_path / "ceft.json").read_text())["experts"]["1"]) == 2
