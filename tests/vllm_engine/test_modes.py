"""Other ways of running vLLM route as transformers does: second model runner, compiled, two ranks, a process apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moeworks.address import Address
from moeworks.compare import compare
from moeworks.examples import Example
from moeworks.plan import empty_plan, save_plan
from moeworks.plan.schema import Mask, Promote, Scale
from moeworks.trace import Trace
from moeworks.where import Where

NEEDS_VLLM = True
AIDS = Path(__file__).parent / "aids"
TEXTS = ["The river runs through the old town and under three bridges.", "Twelve plus thirty is forty two."]
NEW = 5
SECOND = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1", "PYTHONPATH": str(AIDS)}
EAGER: dict[str, Any] = {"enforce_eager": True}
MODES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "second runner": (SECOND, EAGER),
    "compiled": ({"TORCH_COMPILE_DISABLE": "0"}, {"enforce_eager": False}),
    "two tensor-parallel ranks, engine in a process of its own": (
        {"VLLM_CPU_OMP_THREADS_BIND": "0|1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        EAGER | {"tensor_parallel_size": 2},
    ),
    "two ranks with expert parallelism": (
        {"VLLM_CPU_OMP_THREADS_BIND": "0|1", "TEST_EXPERT_PARALLEL": "1", "PYTHONPATH": str(AIDS)},
        EAGER | {"tensor_parallel_size": 2, "enable_expert_parallel": True},
    ),
    "two pipeline ranks": (SECOND | {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}, EAGER | {"pipeline_parallel_size": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_routes_are_those_of_transformers(mode: str, checkpoint: Any, reference_of: Any, tmp_path: Path) -> None:
    environment, options = MODES[mode]
    reference = reference_of("qwen3_moe")
    layers = [shape.layer for shape in reference.identity.layers]
    operations = {
        "promote": Promote(experts=tuple(Address(layer, 5) for layer in layers)),
        "mask": Mask(experts=tuple(Address(layer, e) for layer in layers for e in (1, 4))),
        "scale": Scale(experts=(Address(layers[-1], 3),), factor=0.5, where=Where(phase=("generated",))),
    }
    plans = {}
    for name, operation in operations.items():
        plans[name] = empty_plan(reference.identity, protect="none").model_copy(update={"operations": (operation,)})
        save_plan(plans[name], tmp_path / f"{name}.json")
    work = {
        "options": options,
        "texts": TEXTS,
        "new": NEW,
        "plans": [str(tmp_path / f"{name}.json") for name in plans],
    }
    ran = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).parent / "child.py"),
            str(checkpoint("qwen3_moe")),
            str(tmp_path),
            json.dumps(work),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    examples = [Example(text=text) for text in TEXTS]
    for name in ("none", *plans):
        theirs = reference.record(
            examples, tmp_path / f"{name}-reference", plan=plans.get(name), generate=NEW, logits=True
        )
        result = compare(theirs, Trace.open(tmp_path / name))
        found = result.layers.to_pydict()
        assert result.only_first == result.only_second == result.after_divergence == 0, name
        assert max(found["flips"]) == 0, (name, found)
        assert max(found["largest_weight_error"]) < 1e-4, (name, found)
    facts = json.loads((tmp_path / "facts.json").read_text())
    ranks = options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1)
    assert len(facts["state"]) == ranks
    assert (facts["core"] == "InprocClient") == ("VLLM_ENABLE_V1_MULTIPROCESSING" not in environment)
    assert (facts["operator_calls"] > 0) == (mode == "compiled")
    assert facts["expert_parallel"] == ("expert parallelism" in mode)
