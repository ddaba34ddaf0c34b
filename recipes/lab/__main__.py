"""From nothing to the shipped models: corpus, tokens, training, export, question sets, traces on the way.

Needs everything the steps need (their headers say what); about three hours for `lab` and two for `lab-sigmoid` on two
cores, most of it training. Stop it at any moment; started again it goes on where it was:

    python -m recipes.lab OUT              # or: make lab

OUT gets `corpus/`, `data/`, `questions/`, a folder a run, `models/lab`, `models/lab-sigmoid` and `snapshots/`. With
`--ship` the two models, the probes made of corpus and questions, the measured cards and the records of super experts
are written into the package; `python docs/refresh.py` then writes what the pages show.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from moeworks import load
from moeworks.find.super_experts import super_experts
from moeworks.plan.protected import remember

__all__ = ["main"]

TOKENS = {"lab": 40_000_000, "lab-sigmoid": 21_000_000}
SHIPPED = {"lab": "model", "lab-sigmoid": "sigmoid"}
LAB = Path(__file__).parents[2] / "src" / "moeworks" / "lab"


def make(out: Path, *, corpus: Path | None, cache: Path, compile_parts: bool) -> None:
    """Run the steps that are not done; a step writes its last file when it is whole."""
    source = corpus or out / "corpus"
    if not (source / "manifest.json").is_file() and corpus is None:
        _run("recipes.lab.corpus", source, "--cache", cache)
    if not (out / "data" / "data.json").is_file():
        _run("recipes.lab.prepare", source, out / "data")
    if not (out / "questions" / "requests_replies.json").is_file():
        _run("recipes.lab.questions", out / "questions")
    for model, tokens in TOKENS.items():
        folder = out / "models" / model
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            fused = ["--compile"] if compile_parts else []
            _run("recipes.lab.train", out / "data", out / model, "--model", model, "--tokens", tokens, *fused)
            _run("recipes.lab.export", out / model / "checkpoint.safetensors", out / "data" / "tokenizer.json", folder)
    for model in TOKENS:
        _run("recipes.lab.snapshots", source, out / model, out / "data" / "tokenizer.json", out / "snapshots" / model)


def ship(out: Path, *, corpus: Path | None) -> None:
    """Put models, probes and measured cards into the package."""
    missing = [str(LAB / name / "README.md") for name in SHIPPED.values() if not (LAB / name / "README.md").is_file()]
    if missing:
        raise SystemExit(f"write the card first, with the two marks that measuring fills between: {', '.join(missing)}")
    for model, name in SHIPPED.items():
        left_out = shutil.ignore_patterns("training.json")
        shutil.copytree(out / "models" / model, LAB / name, ignore=left_out, dirs_exist_ok=True)
        (LAB / name / "model.safetensors").chmod(0o644)  # its writer keeps it from other users
    joined = out / "source"  # what the probes are made of: corpus/ and probes/
    joined.mkdir(exist_ok=True)
    for name, target in (("corpus", corpus or out / "corpus"), ("probes", out / "questions")):
        (joined / name).unlink(missing_ok=True)
        (joined / name).symlink_to(target.resolve())
    _run("moeworks.probes.build", joined)
    shutil.rmtree(LAB / "super-experts", ignore_errors=True)  # those of the weights before
    for model in SHIPPED:
        _run("moeworks.lab.measure", "--model", model)
        remember(super_experts(load(model), keep=False).record, LAB / "super-experts")


def _run(module: str, *arguments: object) -> None:
    """Run a step as a program of its own, so that its memory is given back."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    print(f"== {' '.join(command[1:])}", flush=True)
    ended = subprocess.run(command, check=False).returncode
    if ended:
        raise SystemExit(f"{module} ended with {ended}; start again to go on from here.")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.lab", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="working folder, 2 GB")
    parser.add_argument("--corpus", type=Path, help="a corpus that is built already")
    parser.add_argument("--cache", type=Path, help="packages fetched; by default OUT/packages")
    parser.add_argument("--compile", action="store_true", help="faster; needs a C++ compiler")
    parser.add_argument("--ship", action="store_true", help="write models, probes and cards into the package")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    cache = arguments.cache or arguments.out / "packages"
    make(arguments.out, corpus=arguments.corpus, cache=cache, compile_parts=arguments.compile)
    if arguments.ship:
        ship(arguments.out, corpus=arguments.corpus)


if __name__ == "__main__":
    main()
