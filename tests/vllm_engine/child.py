"""Run by tests in a process of its own: records the same texts under several plans with an engine of vLLM."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    from moeworks.engines.vllm import VllmEngine, layer
    from moeworks.examples import Example
    from moeworks.plan import load_plan

    calls, route = [], layer._route
    layer._route = lambda *values: (calls.append(1), route(*values))[1]  # compiled graphs alone call the operator
    checkpoint, folder, work = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    engine = VllmEngine.load(
        checkpoint, dtype="float32", max_model_len=128, max_num_seqs=4, block_size=32, **work["options"]
    )
    examples = [Example(text=text) for text in work["texts"]]
    engine.record(examples, folder / "none", generate=work["new"], logits=True)
    for file in work["plans"]:
        engine.record(examples, folder / Path(file).stem, plan=load_plan(file), generate=work["new"], logits=True)
    runner = engine.llm.llm_engine.engine_core
    (folder / "facts.json").write_text(
        json.dumps(
            {
                "state": engine.state(),
                "core": type(runner).__name__,
                "operator_calls": len(calls),
                "expert_parallel": engine.config.parallel_config.enable_expert_parallel,
            }
        )
    )


if __name__ == "__main__":
    main()
