"""Training speed of the lab model: the recipe against plain PyTorch, and what each change brings.

python benchmarks/lab_training.py            # about six minutes on two idle cores; prints JSON

The plain way is what a first script does: float32, a loop of `linear` over the experts, logits of all tokens at once,
five Newton-Schulz steps, 16 texts a step. The arms take turns, so that a slower moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from recipes.lab import model as model_module
from recipes.lab.optimiser import Optimiser
from recipes.lab.train import MODELS, Run, RunSettings


def plain_experts(x: Tensor, weights: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    tokens = order // ids.shape[1]
    counts = torch.bincount(flat, minlength=len(gate_up)).tolist()
    outputs = []
    for expert, rows in enumerate(x.index_select(0, tokens).split(counts)):
        gate, up = functional.linear(rows, gate_up[expert]).chunk(2, -1)
        outputs.append(functional.linear(functional.silu(gate) * up, down[expert]))
    mixed = torch.cat(outputs) * weights.flatten()[order].unsqueeze(1).to(x.dtype)
    return torch.zeros_like(x).index_add(0, tokens, mixed)


def plain_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy((x @ weight.t()).float(), targets)


@dataclass(frozen=True)
class Arm:
    """One way to train; each arm of the list adds one change to the one before."""

    name: str
    own_gradients: bool = False  # experts and loss of recipes/lab/products.py
    half: bool = False
    newton_schulz: int = 5
    rows: int = 16
    fused: bool = False


PLAIN = Arm("plain PyTorch, as the first script")
ARMS = [
    PLAIN,
    gradients := replace(PLAIN, name="+ hand-written gradients of experts and loss", own_gradients=True),
    halved := replace(gradients, name="+ bfloat16 products", half=True),
    fewer := replace(halved, name="+ 4 Newton-Schulz steps", newton_schulz=4),
    larger := replace(fewer, name="+ 32 texts a step", rows=32),
    replace(larger, name="+ fused norms and rotations (torch.compile): the recipe", fused=True),
]


@contextmanager
def parts(arm: Arm, fused: dict[str, Callable[..., Tensor]]) -> Iterator[None]:
    """Put the arm's functions into the model for one block."""
    replaced = dict(fused) if arm.fused else {}
    if not arm.own_gradients:
        replaced |= {"routed_experts": plain_experts, "chunked_cross_entropy": plain_cross_entropy}
    before = {name: getattr(model_module, name) for name in replaced}
    for name, function in replaced.items():
        setattr(model_module, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(model_module, name, function)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = RunSettings()
    fused = {name: torch.compile(getattr(model_module, name)) for name in ("_norm", "_rotated")}
    runs = {}
    for arm in ARMS:
        run = Run(replace(MODELS["lab"], half=arm.half), settings)
        run.optimiser = Optimiser(
            run.model, muon_rate=0.02, adam_rate=3e-3, newton_schulz=arm.newton_schulz, half=arm.half
        )
        runs[arm.name] = run
    generator = torch.Generator().manual_seed(0)
    speeds: dict[str, list[float]] = {arm.name: [] for arm in ARMS}
    for round_ in range(arguments.rounds + 2):  # two to warm up
        for arm in ARMS:
            tokens = torch.randint(0, 8192, (arm.rows, 257), generator=generator)
            with parts(arm, fused):
                started = time.perf_counter()
                runs[arm.name].train_step(tokens[:, :-1], tokens[:, 1:], 0.1)
                seconds = time.perf_counter() - started
            if round_ >= 2:
                speeds[arm.name].append(arm.rows * 256 / seconds)
        print(f"round {round_ - 1} of {arguments.rounds}", file=sys.stderr)
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    result = {
        "conditions": {"threads": arguments.threads, "rounds": arguments.rounds, "torch": torch.__version__},
        "arms": {
            name: {
                "tokens_per_second_per_core": round(speed / arguments.threads),
                "ratio": round(speed / middle[PLAIN.name], 3),
                "quartiles": [round(q / middle[PLAIN.name], 3) for q in statistics.quantiles(speeds[name], n=4)[::2]],
            }
            for name, speed in middle.items()
        },
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
