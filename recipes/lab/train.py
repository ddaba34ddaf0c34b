"""Train a lab model; stop it at any moment, start it again, and it goes on along the same curve.

Needs torch, safetensors and rich, and the files that `prepare` wrote. Two cores of a 2023 server processor do about
4,000 tokens a second: 60 million take a little over four hours. A checkpoint is written every few minutes:

    python -m recipes.lab.train DATA OUT --model lab          # softmax router
    python -m recipes.lab.train DATA OUT --model lab-sigmoid  # sigmoid router with groups, load bias, shared expert

The learning rate warms up, stays, and falls over the last part of the run, so that a run can be made longer while its
rate still stays: give it more `--tokens`. Everything random depends on the seed and the number of the step.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from recipes.lab.data import Data
from recipes.lab.model import LanguageModel, ModelSettings, fuse
from recipes.lab.optimiser import Optimiser
from recipes.lab.router import Decision, RouterSettings, balance_loss, z_loss

__all__ = ["MODELS", "Run", "RunSettings", "checkpoint_steps", "read_model", "train"]

SOFTMAX = RouterSettings(experts=32, top_k=4)
SIGMOID = RouterSettings(
    experts=32,
    top_k=4,
    transform="sigmoid",
    edit="load_bias",
    select="grouped_top_k",
    weight="renormalise_scale",
    combine="sum_and_shared",
    groups=4,
    kept_groups=2,
    scale=2.5,
)
TOY: dict[str, Any] = {"vocabulary": 1024, "hidden": 64, "layers": 2, "heads": 2, "expert_width": 32, "context": 64}
MODELS = {
    "lab": ModelSettings(router=SOFTMAX),
    "lab-sigmoid": ModelSettings(router=SIGMOID),
    "toy": ModelSettings(router=replace(SOFTMAX, experts=8, top_k=2), **TOY),
    "toy-sigmoid": ModelSettings(router=replace(SIGMOID, experts=8, top_k=2), **TOY),
}
BIAS_LATER = 840  # step from which a load bias moves faster


@dataclass(frozen=True)
class RunSettings:
    """How a model is trained. `tokens` alone may change when a run goes on."""

    tokens: int = 60_000_000
    rows: int = 32  # texts in a step
    seed: int = 0
    task_share: float = 0.3
    muon_rate: float = 0.02
    adam_rate: float = 3e-3
    warm_up: int = 60  # steps
    falling: float = 0.25  # the last part of the steps
    balance: float = 0.02
    z: float = 1e-3
    kept: int = 12  # weights kept on the way, at log-spaced steps

    def steps(self, context: int) -> int:
        """Return how many steps make the tokens."""
        return -(-self.tokens // (self.rows * context))

    def rate(self, step: int, steps: int) -> float:
        """Return the share of the full learning rate at a step."""
        left = (steps - step) / max(1, round(steps * self.falling))
        return min(1.0, (step + 1) / self.warm_up, 0.02 + 0.98 * left)


def bias_rate(step: int) -> float:
    """Return the step of a load bias: DeepSeek-V3's 0.001 while scores are alike, 0.004 once they have spread.

    With 0.001 throughout, single experts stay unused for hundreds of our few steps: scores of chosen experts lie
    0.3 above the mean, and the bias takes 300 steps to make up for that.
    """
    return 1e-3 if step < BIAS_LATER else 4e-3


def checkpoint_steps(steps: int, kept: int) -> list[int]:
    """Return log-spaced steps from the 16th (or the first) to the last, each once."""
    first = min(16, steps)
    return sorted({round(first * (steps / first) ** (i / max(1, kept - 1))) for i in range(kept)})


class Run:
    """A model in training, with all that has to be saved."""

    def __init__(self, model: ModelSettings, settings: RunSettings) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.step = settings, 0
        self.model = LanguageModel(model)
        self.optimiser = Optimiser(
            self.model, muon_rate=settings.muon_rate, adam_rate=settings.adam_rate, half=model.half
        )

    def train_step(self, inputs: Tensor, targets: Tensor, factor: float) -> dict[str, Any]:
        """Do one step and return what to log."""
        settings = self.settings
        loss, decisions = self.model(inputs, targets)
        balance = torch.stack([balance_loss(decision) for decision in decisions]).mean()
        z = torch.stack([z_loss(decision) for decision in decisions]).mean()
        biased = self.model.settings.router.edit == "load_bias"
        (loss + settings.balance * (0.01 if biased else 1.0) * balance + (0 if biased else settings.z) * z).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step(factor)
        for block, decision in zip(self.model.layers, decisions, strict=True):
            block.experts.router.update_load_bias(decision.counts, bias_rate(self.step) * factor)
        self.step += 1
        row = {"step": self.step, "loss": loss.item(), "balance": balance.item(), "norm": norm.item()}
        return {**row, "least": _least(decisions)}

    def save(self, path: Path) -> None:
        """Write weights, state of the optimiser and step in one file, atomically."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimiser.{name}": tensor for name, tensor in self.optimiser.state().items()}
        settings = {"model": asdict(self.model.settings), "run": asdict(self.settings)}
        _write(path, tensors, {"step": str(self.step), "settings": json.dumps(settings)})

    def load(self, path: Path) -> None:
        """Go on from a file that `save` wrote; settings other than `tokens` have to be the same."""
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            saved = json.loads(metadata["settings"])
            own = {"model": asdict(self.model.settings), "run": asdict(self.settings)}
            different = [
                f"{part}.{key}: {saved[part].get(key)} there, {value} here"
                for part, values in own.items()
                for key, value in values.items()
                if key != "tokens" and saved[part].get(key) != value
            ]
            if different:
                raise SystemExit(f"{path} is of another run ({'; '.join(different)}); choose another folder.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        self.model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        prefix = "optimiser."
        self.optimiser.load_state({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        self.step = int(metadata["step"])


def train(
    model: ModelSettings,
    settings: RunSettings,
    data: Data,
    out: Path,
    *,
    every: float = 120.0,
    stop_at: int | None = None,
    progress: bool = True,
) -> Run:
    """Train until the tokens are used up, or until step `stop_at`; a checkpoint every `every` seconds."""
    out.mkdir(parents=True, exist_ok=True)
    run = Run(model, settings)
    checkpoint, log = out / "checkpoint.safetensors", out / "log.jsonl"
    if checkpoint.is_file():
        run.load(checkpoint)
    _keep_until(log, run.step)
    steps = settings.steps(model.context)
    last = min(steps, stop_at or steps)
    kept = checkpoint_steps(steps, settings.kept)
    saved = started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress) as bar, open(log, "a", encoding="utf-8", buffering=1) as lines:
        task = bar.add_task("training", total=steps, completed=run.step)
        before = run.step
        while run.step < last:
            row = run.train_step(*data.batch(run.step, settings.rows), settings.rate(run.step, steps))
            lines.write(json.dumps({key: _short(value) for key, value in row.items()}) + "\n")
            if run.step in kept:
                weights = {name: _as_kept(tensor) for name, tensor in run.model.state_dict().items()}
                about = {"step": str(run.step), "settings": json.dumps({"model": asdict(model)})}
                _write(out / f"step-{run.step:05d}.safetensors", weights, about)
            if time.monotonic() - saved > every or run.step == last:
                run.save(checkpoint)
                saved = time.monotonic()
            rate = (run.step - before) * settings.rows * model.context / (time.monotonic() - started)
            bar.update(task, completed=run.step, description=f"loss {row['loss']:.3f}, {rate:,.0f} tokens/s")
    return run


def read_model(path: Path) -> tuple[LanguageModel, int]:
    """Return the model of a checkpoint or of weights kept on the way, in float32, and its step."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        names = [name for name in file.keys() if not name.startswith("optimiser.")]  # noqa: SIM118  not a mapping
        tensors = {name.removeprefix("model."): file.get_tensor(name).float() for name in names}
    saved = json.loads(metadata["settings"])["model"]
    settings = ModelSettings(**{**saved, "router": RouterSettings(**saved["router"]), "half": False})
    model = LanguageModel(settings)
    model.load_state_dict(tensors)
    return model.eval(), int(metadata["step"])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder that prepare wrote")
    parser.add_argument("out", type=Path, help="folder of the run")
    parser.add_argument("--model", choices=sorted(MODELS), default="lab")
    parser.add_argument("--tokens", type=float, default=60e6, help="tokens in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-at", type=int, help="stop after this step, as if interrupted")
    parser.add_argument("--every", type=float, default=120.0, help="seconds between checkpoints")
    parser.add_argument("--threads", type=int, help="default: what torch takes")
    parser.add_argument("--no-half", action="store_true", help="float32 products, for processors without bfloat16")
    parser.add_argument("--compile", action="store_true", help="fuse norms and rotations; needs a C++ compiler")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args()
    if arguments.compile:
        fuse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = RunSettings(tokens=int(arguments.tokens), seed=arguments.seed)
    model = replace(MODELS[arguments.model], half=not arguments.no_half)
    data = Data(arguments.data, context=model.context, task_share=settings.task_share, seed=settings.seed)
    train(
        model,
        settings,
        data,
        arguments.out,
        every=arguments.every,
        stop_at=arguments.stop_at,
        progress=not arguments.quiet,
    )


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    temporary = path.with_suffix(".tmp")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _keep_until(log: Path, step: int) -> None:
    """Drop the lines of steps that the checkpoint does not know, and one that was cut."""
    if log.is_file():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)[:step]
        log.write_text("".join(lines), encoding="utf-8")


def _as_kept(tensor: Tensor) -> Tensor:
    """Weights in bfloat16; a load bias, which is no matrix, stays as it is."""
    return tensor.to(torch.bfloat16) if tensor.dim() >= 2 else tensor


def _least(decisions: list[Decision]) -> float:
    """Return the load of the least used expert of any layer, as a share of its fair share."""
    return min((d.counts.min() * len(d.counts) / d.counts.sum()).item() for d in decisions)


def _short(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
