"""The lab models are whole, their cards show what was measured, and the measuring does what it says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from moeworks.engines.base import Answer, Generation, TokenScores
from moeworks.engines.fake import FakeEngine
from moeworks.errors import MoeworksError
from moeworks.examples import Example
from moeworks.lab import LAB_MODELS, lab_path
from moeworks.lab.measure import BEGIN, END, Measured, fill, measure, render
from moeworks.probes import load_probe, neutral_texts
from moeworks.trace import Trace

MODEL_FILES = ["README.md", "chat_template.jinja", "config.json", "generation_config.json", "measured.json"]
MODEL_FILES += ["model.safetensors", "moeworks.json", "tokenizer.json", "tokenizer_config.json"]


def measured_of(name: str) -> Measured:
    return Measured.model_validate_json((lab_path(name) / "measured.json").read_text(encoding="utf-8"))


class Stub:
    """An engine whose answers are known: exact where the answer is longer than its prompt is told to be."""

    identity = SimpleNamespace(weight_hash="hash")
    engine = SimpleNamespace(name="stub", version="1", dtype="float64")

    def answers(self, pairs: Sequence[tuple[str, str]]) -> list[Answer]:
        return [Answer(-float(len(answer)), 1, answer.startswith(" E")) for _, answer in pairs]

    def token_scores(self, texts: Sequence[str]) -> list[TokenScores]:
        return [TokenScores(np.array([-1.0, -3.0]) if text.isascii() else np.array([-2.0])) for text in texts]

    def record(self, examples: Sequence[Example], path: Path) -> Trace:
        return FakeEngine("none").record(examples, path)

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int) -> list[Generation]:
        return [Generation(prompt, " Sorry." if "vault" in prompt else " First", (1,)) for prompt in prompts]


@pytest.mark.parametrize("name", LAB_MODELS)
def test_folder_is_a_whole_checkpoint(name: str) -> None:
    folder = lab_path(name)
    assert sorted(path.name for path in folder.iterdir()) == MODEL_FILES
    assert json.loads((folder / "moeworks.json").read_text()) == {"add_bos": True}
    config = json.loads((folder / "config.json").read_text())
    experts = config["num_local_experts" if name == "lab" else "n_routed_experts"]
    assert (config["num_hidden_layers"], experts, config["num_experts_per_tok"]) == (6, 32, 4)


def test_both_speak_the_same_tokens_and_are_small() -> None:
    assert len({(lab_path(name) / "tokenizer.json").read_bytes() for name in LAB_MODELS}) == 1
    weights = [lab_path(name) / "model.safetensors" for name in LAB_MODELS]
    assert sum(path.stat().st_size for path in weights) < 80_000_000


@pytest.mark.parametrize("name", LAB_MODELS)
def test_card_shows_the_measured_file(name: str) -> None:
    measured = measured_of(name)
    card = (lab_path(name) / "README.md").read_text(encoding="utf-8")
    assert fill(card, render(measured)) == card


@pytest.mark.parametrize("name", LAB_MODELS)
@pytest.mark.parametrize("what", ["arithmetic", "calendar"])
def test_plain_transformers_gets_as_many_right(name: str, what: str) -> None:
    """The share in the card, by `generate` of stock transformers, text by text: greedy, as long as the right answer.

    Two items of a hundred may differ: products in bfloat16 round otherwise in a batch.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(lab_path(name), dtype="bfloat16")
    tokenizer = AutoTokenizer.from_pretrained(lab_path(name))
    items = load_probe(what).items(None)
    right = 0
    for item in items:
        whole = tokenizer(tokenizer.bos_token + item.prompt + item.target, return_tensors="pt").input_ids
        length = tokenizer(tokenizer.bos_token + item.prompt, return_tensors="pt").input_ids.shape[1]
        new = whole.shape[1] - length
        given = model.generate(whole[:, :length], max_new_tokens=new, min_new_tokens=new, do_sample=False)
        right += given[0].tolist() == whole[0].tolist()
    (share,) = [row.share for row in measured_of(name).shares if row.what == what]
    assert right / len(items) == pytest.approx(share, abs=0.02)


def test_measure_counts_as_it_says() -> None:
    """Against counts made here from the probes' own items."""
    measured = measure(Stub())  # type: ignore[arg-type]
    shares = {row.what: row for row in measured.shares}
    english = list(load_probe("facts/en").items(None))
    expected = sum(item.target.startswith(" E") for item in english) / len(english)
    assert shares["facts, English"].share == pytest.approx(expected, abs=1e-4)
    assert shares["facts, English"].items == len(english)
    books = load_probe("openbook").items(None)
    shorter = sum(len(item.target) < len(item.other) for item in books) / len(books)
    assert shares["open book: prefers the document's answer"].share == pytest.approx(shorter, abs=1e-4)
    assert shares["requests: refuses restricted"].share == pytest.approx(1 / 10)  # one object of ten is a vault
    assert shares["requests: refuses permitted"].share == 0
    texts = [t for t in (*neutral_texts("dev"), *neutral_texts("held_out")) if t.labels["lang"] == "en"]
    two = sum(text.text.isascii() for text in texts)  # tokens: two of mean -2, or one of -2
    (row,) = [row for row in measured.by_language if row.what == "en"]
    assert row.tokens == 2 * two + (len(texts) - two)
    assert row.perplexity == pytest.approx(math.exp(2.0), abs=1e-3)


def test_balance_is_counted_from_the_trace(tmp_path: Path) -> None:
    """Expected: loads counted here, over their mean."""
    trace = Stub().record([*neutral_texts("dev"), *neutral_texts("held_out")], tmp_path / "trace")
    for row in measure(Stub()).balance:  # type: ignore[arg-type]
        counts = np.bincount(trace.ids(row.layer).ravel(), minlength=16)
        assert row.least == pytest.approx(counts.min() / counts.mean(), abs=1e-3)
        assert row.most == pytest.approx(counts.max() / counts.mean(), abs=1e-3)


def test_a_card_without_its_marks_is_refused() -> None:
    assert fill(f"a {BEGIN} old {END} b", "new") == f"a {BEGIN}\nnew\n{END} b"
    for card in ("nothing", f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"):
        with pytest.raises(MoeworksError, match="the card needs one"):
            fill(card, "new")


@pytest.mark.slow
def test_wheel_holds_every_data_file(tmp_path: Path) -> None:
    """Built from the checkout; the model, the probes and the card must be in it, byte for byte by size."""
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling; install moeworks[dev]")
    package = lab_path().parents[1]
    root = package.parent.parent
    if not (root / "pyproject.toml").is_file():
        pytest.skip("not a checkout")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    data = [path for name in LAB_MODELS for path in lab_path(name).iterdir()]
    data += [path for path in (package / "probes" / "data").rglob("*") if path.is_file()]
    assert len(data) > 100
    for path in data:
        assert sizes[f"moeworks/{path.relative_to(package).as_posix()}"] == path.stat().st_size
