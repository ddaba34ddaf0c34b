"""The JSON schemas of everything that moeworks writes, made from the classes that read and write it."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from moeworks.artefact import json_schema
from moeworks.errors import BadData, did_you_mean

__all__ = ["SCHEMAS", "SchemaEntry", "json_schema_of"]


class SchemaEntry(NamedTuple):
    """Where a format's class lives and what the format is."""

    module: str
    model: str
    what: str


SCHEMAS = {
    "plan": SchemaEntry("moeworks.plan.schema", "Plan", "A plan file: operations on experts, and their evidence."),
    "edit_plan": SchemaEntry("moeworks.edit.plan", "EditPlan", "An edit plan file: which experts stay, and how."),
    "trace": SchemaEntry("moeworks.trace.format", "TraceHeader", "`trace.json`, the header of a trace's folder."),
    "scores": SchemaEntry("moeworks.find", "ScoresHeader", "The header in a scores file's Arrow metadata."),
    "example": SchemaEntry("moeworks.examples", "Example", "One line of a JSONL data file."),
    "profile": SchemaEntry("moeworks.place.profile", "Profile", "A profile file: how hot experts are, for placement."),
    "probe": SchemaEntry("moeworks.probes", "ProbeHeader", "`probe.json`, the header of a probe's folder."),
    "item": SchemaEntry("moeworks.probes", "Item", "One line of a probe's `items.jsonl`: something to measure."),
    "statistics": SchemaEntry(
        "moeworks.edit.statistics_file", "StatisticsHeader", "`statistics.json`, the header of a statistics folder."
    ),
    "league": SchemaEntry("moeworks.bench.schema", "League", "`league.json`, every method on every probe."),
    "study": SchemaEntry("moeworks.study.schema", "Study", "`study.json`, everything that a report shows."),
}


def json_schema_of(name: str) -> dict[str, Any]:
    """Return the JSON schema of one format."""
    if name not in SCHEMAS:
        raise BadData(f"no format is called '{name}'; {did_you_mean(name, SCHEMAS)}")
    entry = SCHEMAS[name]
    return json_schema(getattr(import_module(entry.module), entry.model))
