"""A cut of each layout that families have; tests/families has all. Outside truth: stock code with logits at -inf."""

from __future__ import annotations

import pytest

from moeworks.errors import Unsupported
from moeworks.families.edit_checks import TOLERANCE, check_cut

# One for each layout on disk, router rule and kind of bias; docs/families.md has them all.
FAMILIES = [
    "mixtral",
    "qwen3_moe",
    "olmoe",
    "deepseek_v3",
    "deepseek_v4",
    "gpt_oss",
    "llama4",
    "gemma4",
    "granitemoe",
    "dbrx",
    "ernie4_5_moe",
    "nemotron_h",
    "longcat_flash",
    "zaya",
    "inkling",
]
REFUSED = {
    "doge": "no layer whose experts are understood",
    "ernie4_5_vl_moe": "two sets of experts under one number",
    "jetmoe": r"self_attention\.experts",
    "nllb_moe": "an encoder and a decoder",
    "switch_transformers": "an encoder and a decoder",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_is_the_masked_original(family: str) -> None:
    assert check_cut(family) <= TOLERANCE


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_cut_is_refused_with_the_reason(family: str) -> None:
    with pytest.raises(Unsupported, match=REFUSED[family]):
        check_cut(family)
