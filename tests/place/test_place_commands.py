"""`moeworks place …`: what is printed and written, JSON for programs, and one sentence for each mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.traces import make_trace
from moeworks.cli import main


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ran]:
    monkeypatch.chdir(tmp_path)
    make_trace("trace", requests=12, rows_per_request=20, generated=8, topic=1.0, logits=True)

    def run_words(*words: object) -> Ran:
        with pytest.raises(SystemExit) as stopped:
            main(["place", *map(str, words)])
        code = stopped.value.code
        assert isinstance(code, int)
        return Ran(code, *capsys.readouterr())

    return run_words


def test_cache(run: Callable[..., Ran], tmp_path: Path) -> None:
    ran = run("cache", "trace", "--phase", "generated", "--expert-bytes", "1MB", "--bandwidth", "1GB", "--compute", 2)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("Is static pinning worth it here? ")
    for words in (
        "Belady's bound",
        "capacity",
        "generated tokens of 6 documents",
        "batch 1",
        "1,000,000 bytes",
        "ms a token",
    ):
        assert words in ran.out
    assert "prompt tokens" not in ran.out
    ran = run("cache", "trace", "--policy", "lru", "--policy", "belady", "--at", "50%", "--picture", "c.png", "--json")
    document = json.loads(ran.out)
    assert {row["policy"] for row in document["rows"]} == {"lru", "belady"}
    assert {row["capacity"] for row in document["rows"]} == {"2k"}  # half of 8 is the same size
    assert document["rules"]["batch"] == 1
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_cache_times_by_hand(run: Callable[..., Ran]) -> None:
    """1 MB at 1 GB/s: a millisecond a miss."""
    words = ("cache", "trace", "--policy", "lru", "--expert-bytes", "1MB", "--bandwidth", "1GB", "--json")
    document = json.loads(run(*words).out)
    misses = sum(row["misses_per_token"] for row in document["layers"])
    assert document["times"][0]["seconds"] == pytest.approx(misses / 1000)


def test_the_other_commands_print_and_give_json(run: Callable[..., Ran]) -> None:
    for words, printed in (
        (("predict", "trace"), "chance: guesses in proportion to load"),
        (("balance", "trace", "--gpus", 4, "--extra", 4, "--batch-tokens", 40), "1 is even"),
        (("batch", "trace", "--batch", 2), "Distinct experts a step"),
        (("swaps", "trace", "--capacity", "50%"), "is not in these numbers"),
    ):
        ran = run(*words)
        assert ran.code == 0, ran.err
        assert printed in ran.out
        assert json.loads(run(*words, "--json").out)["rows"]


def test_profile_and_exports(run: Callable[..., Ran], tmp_path: Path) -> None:
    ran = run("profile", "trace", "-o", "p.json")
    assert "2 layers, 144 prompt, 96 generated tokens of 12 documents" in ran.out
    for to, name, source in (
        ("sglang", "s.json", "p.json"),
        ("exllamav3", "e.npz", "p.json"),
        ("table", "t.csv", "trace"),
        ("llama.cpp", "l.csv", "trace"),
    ):
        ran = run("export", source, "-o", name, "--to", to)
        assert ran.code == 0, ran.err
        assert (tmp_path / name).is_file()
    ran = run("balance", "trace", "--gpus", 4, "-o", "v.json", "--to", "vllm")
    assert len(json.loads((tmp_path / "v.json").read_text())) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cache", "trace", "--policy", "lur"), "did you mean 'lru'"),
        (("cache", "trace", "--bandwidth", "1GB"), "give --expert-bytes"),
        (("cache", "trace", "--hidden", "8"), "does not tell how many neurons"),
        (("cache", "trace", "--phase", "prompt", "--where", "phase=prompt"), "same thing twice"),
        (("cache", "trace", "--phase", "forced"), "0 documents"),
        (("predict", "trace", "--predictor", "markow"), "did you mean 'markov'"),
        (("balance", "trace", "--gpus", "3"), "cannot be divided"),
        (("export", "trace", "-o", "x", "--to", "llama.cpp", "--where", "token=5000"), "no token"),
        (("export", "none.json", "-o", "x", "--to", "sglang"), "cannot read"),
        (("gate", "fake:single", "trace/requests.arrow"), ""),
    ],
)
def test_mistakes_are_one_sentence(run: Callable[..., Ran], words: tuple[str, ...], message: str) -> None:
    ran = run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_no_torch_and_no_picture_without_need() -> None:
    """The room needs numpy, pyarrow and pydantic; numba only when something is simulated."""
    import subprocess
    import sys

    code = (
        "import sys, moeworks.place, moeworks.place.balance, moeworks.place.predict, moeworks.place.profile\n"
        "import moeworks.place.exports, moeworks.place.gate, moeworks.place.swaps\n"
        "print(*sorted(sys.modules), sep='\\n')"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.partition(".")[0] for name in loaded} & {"torch", "transformers", "matplotlib", "numba"}


def test_without_numba_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from moeworks.errors import MissingExtra
    from moeworks.place import kernels, simulate

    monkeypatch.setitem(sys.modules, "numba", None)
    kernels.compiled.cache_clear()
    try:
        with pytest.raises(MissingExtra, match=r"pip install 'moeworks\[fast\]'"):
            simulate(make_trace(tmp_path / "t"), ["lru"])
    finally:
        kernels.compiled.cache_clear()
