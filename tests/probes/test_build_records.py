"""The contrast between a record and a rumour, made of the recipe's own questions."""

from __future__ import annotations

import pytest

pytest.importorskip("babel")
pytest.importorskip("torch")

from moeworks.probes.build_tasks import _records
from moeworks.probes.check import problems_of_probe
from recipes.lab.questions import openbook


def test_a_record_differs_from_a_rumour_by_its_head_alone() -> None:
    probe = _records(list(openbook()))
    assert problems_of_probe(probe) == []
    sides = {side: [t for t in probe.all_texts if t.labels["side"] == side] for side in ("contrast", "against")}
    assert len(sides["contrast"]) == len(sides["against"]) == 220
    for record, rumour in zip(sides["contrast"], sides["against"], strict=True):
        assert record.text.removeprefix("Record:") == rumour.text.removeprefix("Rumour:") != record.text
        assert record.document == rumour.document
        for text in (record, rumour):
            (span,) = text.spans
            assert text.text[: span.start].endswith("Question: ")
            assert text.text[span.stop :] == "\nAnswer:"
    assert {item.split for item in probe.all_items} == {"dev", "held_out"}
    for item in probe.all_items:
        assert item.prompt.startswith("Document: ")
        assert item.target.strip() in item.prompt.split("\n")[0]
        assert item.target != item.other
