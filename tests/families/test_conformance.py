"""Every family that the installed transformers has, on tiny random models. Outside truth: the routers and experts."""

from __future__ import annotations

import pytest
import torch

from moeworks.families import discover
from moeworks.families.conformance import FamilyReport, check_family, families, page
from moeworks.families.tiny import tiny_model

OPAQUE = {"doge", "inkling", "nllb_moe", "switch_transformers"}
NOT_RECORDED = {"doge", "nllb_moe", "switch_transformers"}
NOT_EDITED = {"doge", "nllb_moe", "switch_transformers"}
NOT_CUT = {*NOT_EDITED, "ernie4_5_vl_moe", "jetmoe"}
pytestmark = pytest.mark.families


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices; threads would only wait for one another
    yield
    torch.set_num_threads(before)


def test_all_that_were_known_are_there() -> None:
    assert len(families()) >= 72
    assert set(families()) >= {"qwen3_moe", "deepseek_v4", "gpt_oss", "gemma4", "llama4", "dbrx", "jetmoe"}


@pytest.mark.parametrize("family", families())
def test_family(family: str) -> None:
    report = check_family(family)
    assert report.layers
    assert (report.proven == "yes") == (family not in OPAQUE), report.proven
    assert (report.recorded == "yes") == (family not in NOT_RECORDED), report.recorded
    assert (report.steered == "yes") == (family not in OPAQUE), report.steered
    assert (report.replayed == "yes") == (family not in OPAQUE), report.replayed
    assert (report.edited == "yes") == (family not in NOT_EDITED), report.edited
    assert (report.cut == "yes") == (family not in NOT_CUT), report.cut


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v4", "gpt_oss", "lfm2_moe", "zaya", "llama4", "phimoe"])
def test_low_precision(family: str) -> None:
    routers = discover(tiny_model(family, dtype=torch.bfloat16))
    assert [router.opaque for router in routers] == [""] * len(routers)


def test_page_lists_every_reason() -> None:
    good = FamilyReport("good", "Good", (0,), "top 2 of 8; softmax", *["yes"] * 6)
    words = ("no | way", "yes", "no plan", "no plan", "yes", "no cut")
    bad = FamilyReport("bad", "Bad", (0,), "", *words, {"vision": "a tower"})
    text = page([good, bad])
    assert "2 families; 1 proven, 2 recorded, 1 steered, 1 replayed, 2 edited, 1 cut" in text
    assert "`bad`, not steered or replayed: no plan" in text
    assert "`bad`: 1, because a tower" in text
