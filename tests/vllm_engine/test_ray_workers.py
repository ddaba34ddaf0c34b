"""vLLM inside workers of Ray: the same trace as vLLM alone, whichever worker recorded which shard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeworks.address import Address
from moeworks.engines import load
from moeworks.examples import Example
from moeworks.plan import empty_plan
from moeworks.plan.schema import Mask

NEEDS_VLLM = True


def test_shards_on_two_workers_are_the_trace_of_one_engine(
    checkpoint: Callable[[str], Path], engine_of: Any, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs moeworks[ray]")
    alone = engine_of("qwen3_moe")
    layer = alone.identity.layers[0].layer
    plan = empty_plan(alone.identity, protect="none").model_copy(
        update={"operations": (Mask(experts=(Address(layer, 1), Address(layer, 4))),)}
    )
    examples = [Example(text=f"The river number {i} runs past the mill", labels={"n": str(i)}) for i in range(10)]
    expected = alone.record(examples, tmp_path / "alone", plan=plan, generate=4, batch_size=2)
    workers = load(
        str(checkpoint("qwen3_moe")),
        engine="ray:vllm",
        workers=2,
        shard=2,
        dtype="float32",
        max_model_len=128,
        max_num_seqs=8,
        block_size=32,
    )
    found = workers.record(examples, tmp_path / "found", plan=plan, generate=4, batch_size=2)
    assert found.header.engine == expected.header.engine
    assert found.requests.equals(expected.requests)
    for part, other in zip(found.parts, expected.parts, strict=True):
        for name in ("request", "position", "token", "phase"):
            assert part.table[name].equals(other.table[name]), name
    for shape in alone.identity.layers:
        np.testing.assert_array_equal(found.ids(shape.layer), expected.ids(shape.layer))
        np.testing.assert_allclose(found.weights(shape.layer), expected.weights(shape.layer), atol=1e-6)
    assert not np.isin(found.ids(layer), [1, 4]).any()
