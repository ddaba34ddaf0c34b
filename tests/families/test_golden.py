"""Golden vectors are what stock routers decide now, and the numpy reference decides the same from the files alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from moeworks.contract import Contract, decide
from moeworks.families.golden import golden, write_golden

FOLDER = Path(__file__).parents[2] / "docs" / "golden"
FILES = sorted(FOLDER.glob("*.json"))


def by_expert(ids, weights, experts):
    """(n, E): the weight of each expert, 0 where it was not chosen; the order of slots plays no part."""
    grid = np.zeros((len(ids), experts))
    np.put_along_axis(grid, np.array(ids), np.array(weights), -1)
    return grid


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_reference_decides_the_file(path):
    """The file was made by the family's own torch module; `moeworks.contract` shares no code with it."""
    case = json.loads(path.read_text())
    contract = Contract(**case["contract"])
    bias, scale = (case[name] and np.array(case[name]) for name in ("selection_bias", "expert_scale"))
    found = decide(np.array(case["logits"]), contract, bias=bias, expert_scale=scale)
    seen = by_expert(case["ids"], case["weights"], contract.experts)
    assert np.abs(by_expert(*found, contract.experts) - seen).max() < 1e-6 * max(1, np.abs(seen).max())
    assert len(case["ids"]) >= 8


def test_a_rule_that_is_a_little_different_is_told_apart():
    """Without its bias a biased rule decides otherwise in some row of its file: the vectors can fail."""
    biased = [json.loads(path.read_text()) for path in FILES]
    biased = [case for case in biased if case["contract"]["bias"] and case["contract"]["top_k"] > 1]
    assert biased
    for case in biased:
        contract = Contract(**{**case["contract"], "bias": False, "expert_scale": False})
        plain = decide(np.array(case["logits"]), contract)
        assert any(set(a) != set(b) for a, b in zip(plain.ids.tolist(), case["ids"], strict=True))


def test_the_files_are_those_of_the_installed_transformers(tmp_path):
    """Three rules made anew: sigmoid with groups, softmax, factors of experts."""
    paths = write_golden(tmp_path, ["glm4_moe", "qwen3_moe", "gemma4"])
    assert len(paths) == len(golden(["glm4_moe", "qwen3_moe", "gemma4"])) == 3
    shipped = {json.dumps(json.loads(path.read_text())["contract"]): path for path in FILES}
    for path in paths:
        case = json.loads(path.read_text())
        kept = json.loads(shipped[json.dumps(case["contract"])].read_text())
        assert set(case["families"]) <= set(kept["families"])
    assert "| [" in (tmp_path / "README.md").read_text()
