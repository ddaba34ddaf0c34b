"""Train toy models in about two minutes, kill one, resume it, export it, and compare everything that has to be equal.

Needs what the recipe needs, and the built-in texts of moeworks as its corpus; the folder is made anew:

    python -m recipes.lab.smoke OUT

For both router types: a run that is killed (-9) in the middle of a step and started again ends on the same curve and
the same weights, to the bit, as one that was left alone; its export loads in stock transformers with equal logits; and
it has learnt: the loss falls by at least one nat.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from moeworks.probes import neutral_texts
from recipes.lab.export import export
from recipes.lab.prepare import prepare

__all__ = ["smoke"]

STEPS, ROWS, CONTEXT = 140, 32, 64
KILLED = 50  # lines in the log when the run is killed
PATIENCE = 300  # seconds for one run, however slow the machine


def smoke(out: Path) -> None:
    """Run it all.

    Raises:
        SystemExit: something that has to be equal is not.
    """
    shutil.rmtree(out, ignore_errors=True)
    _corpus(out / "corpus")
    prepare(out / "corpus", out / "data", samples=4000, vocabulary=1024)
    for model in ("toy", "toy-sigmoid"):
        alone, killed = out / model, out / f"{model}-killed"
        _train(model, out / "data", alone)
        _train(model, out / "data", killed, kill=True)
        if len(_losses(killed)) >= STEPS:
            raise SystemExit(f"{model}: the run was over before it could be killed; make it longer.")
        _train(model, out / "data", killed)
        if _losses(killed) != _losses(alone) or len(_losses(alone)) != STEPS:
            raise SystemExit(f"{model}: a killed and resumed run went along another curve.")
        first, second = (load_file(folder / "checkpoint.safetensors") for folder in (alone, killed))
        different = [name for name in first if not first[name].equal(second[name])]
        if different:
            raise SystemExit(f"{model}: after a kill other weights came out: {', '.join(different[:5])}")
        losses = _losses(alone)
        if not losses[-1] < losses[0] - 1:
            raise SystemExit(f"{model} did not learn: the loss went from {losses[0]} to {losses[-1]}.")
        export(killed / "checkpoint.safetensors", out / "data" / "tokenizer.json", out / f"{model}-export")
        print(
            f"{model}: loss {losses[0]:.2f} to {losses[-1]:.2f} in {STEPS} steps; killed and resumed to the same "
            "curve and weights; stock transformers computes the same logits"
        )


def _corpus(folder: Path) -> None:
    """Write the built-in neutral texts in the form of the corpus; the two splits hold different documents."""
    for split, name in (("train", "held_out"), ("heldout", "dev")):
        (folder / split).mkdir(parents=True)
        for text in neutral_texts(name):  # type: ignore[arg-type]
            domain, lang = text.labels["domain"], text.labels["lang"]
            record = {"text": text.text, "domain": domain, "lang": lang, "doc": text.document}
            with gzip.open(folder / split / f"{domain}.{lang}.jsonl.gz", "at", encoding="utf-8") as lines:
                lines.write(json.dumps(record) + "\n")


def _train(model: str, data: Path, out: Path, *, kill: bool = False) -> None:
    """Run the training program; with `kill`, end it as soon as its log shows that it is well under way."""
    command = [sys.executable, "-m", "recipes.lab.train", str(data), str(out), "--model", model, "--quiet"]
    command += ["--tokens", str(STEPS * ROWS * CONTEXT), "--every", "1", "--threads", "2"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    deadline = time.monotonic() + PATIENCE
    with subprocess.Popen(command, env=environment) as process:
        while process.poll() is None:
            if kill and len(_losses(out)) >= KILLED and (out / "checkpoint.safetensors").is_file():
                process.send_signal(signal.SIGKILL)
                process.wait()
                return
            if time.monotonic() > deadline:
                process.kill()
                raise SystemExit(f"training {model} took more than {PATIENCE} seconds.")
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"training {model} failed; run it alone: {' '.join(command)}")


def _losses(run: Path) -> list[float]:
    """Return the losses of the steps that are logged, a line that is still being written left out."""
    log = run / "log.jsonl"
    if not log.is_file():
        return []
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line)["loss"] for line in lines]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder that is made anew")
    arguments = parser.parse_args()
    started = time.monotonic()
    smoke(arguments.out)
    print(f"everything that has to be equal is equal ({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
