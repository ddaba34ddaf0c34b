"""A study as one self-contained HTML page: no network, no script, the same bytes for the same study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from moeworks.address import Address
from moeworks.artefact import replace_file
from moeworks.errors import BadData
from moeworks.report import pictures, reading
from moeworks.report.diagnostic_words import HOW_TO_READ
from moeworks.report.page import environment, style_sheet
from moeworks.report.routing import divergence
from moeworks.report.routing_report import routing_sections
from moeworks.report.words import VERDICTS, interval, plain, routers
from moeworks.stats.everything import Told
from moeworks.study.schema import ProbeResult, ScoreRow, Study

__all__ = ["render", "save_report"]

MOST_ROWS = 20


def render(study: Study) -> str:
    """Return the study's report as HTML; the same study gives the same bytes.

    Raises:
        BadData: the study's header names no model.
    """
    model = study.header.model
    if model is None:
        raise BadData("this study's header names no model; a report needs one.")
    told = [
        Told(one.what, None if one.columns is None else pa.table(one.columns), one.reason, one.label, one.base, 0.0)
        for one in study.routing
    ]
    limits = pictures.limits(study.probes)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            css=style_sheet(),
            header=study.header,
            model=model,
            engine=study.header.engine,
            headline=reading.headline(study),
            probes=[_probe(result, index, limits[result.method]) for index, result in enumerate(study.probes, start=1)],
            divergences=[
                {
                    "label": found.label,
                    "svg": divergence(found, name=f"divergence-{index}"),
                    "how": reading.how_divergence(found),
                }
                for index, found in enumerate(study.divergence, start=1)
            ],
            load=study.load,
            load_tokens=study.load_tokens,
            sections=routing_sections(told),
            routing_texts=study.routing_texts,
            how_to_read=HOW_TO_READ,
            missing=[(plain(one.what), one.reason) for one in told if one.table is None],
            routers=routers(model),
            settings=study.settings,
            versions=study.versions,
            seconds=study.seconds,
            verdicts=VERDICTS,
            icons={verdict: icon for verdict, (icon, _) in VERDICTS.items()},
            interval=interval,
        )
    )


def save_report(study: Study, path: str | Path) -> Path:
    """Write the report, whole or not at all."""
    target = Path(path)
    html = render(study)
    with replace_file(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return target


def _probe(result: ProbeResult, index: int, limit: float) -> dict[str, Any]:
    """Return what the template needs for one probe."""
    listed = pictures.listed_experts(result.plan)
    evidence = result.plan.evidence if result.plan else None
    protected = result.plan.protected if result.plan else ()
    rows = _rows(result, set(listed))
    name = f"p{index}"
    context: dict[str, Any] = {
        "result": result,
        "evidence": evidence,
        "listed": listed,
        "experts": len(result.scores.layer),
        "passing": sum(result.scores.passes),
        "rows": rows,
        "rows_note": reading.rows_note(len(rows), result),
        "scores": pictures.scores(
            result.scores, name=f"{name}-scores", limit=limit, listed=list(listed), protected=protected
        ),
        "how_scores": reading.how_scores(result, listed=bool(listed), protected=bool(protected)),
        "doses": None,
        "damage": None,
    }
    if evidence is None:
        return context
    context["controls"] = pictures.controls(evidence, name=f"{name}-controls")
    context["how_controls"] = reading.how_controls(evidence)
    if len(evidence.doses) > 1:
        context["doses"] = pictures.dose_curve(evidence.doses, name=f"{name}-doses", chosen=result.amount)
        context["how_doses"] = reading.how_doses(evidence)
    if evidence.damage and evidence.damage.perplexity_before:
        context["damage"] = pictures.damage(evidence.damage, name=f"{name}-damage")
        context["how_damage"] = reading.how_damage(evidence.damage)
    if evidence.mechanism:
        context["mechanism_words"] = reading.mechanism_words(evidence.mechanism)
    return context


def _rows(result: ProbeResult, listed: set[Address]) -> list[ScoreRow]:
    """Return the rows worth showing, strongest first: the plan's experts and those that pass, or the nearest to it."""
    rows = sorted(result.scores.rows(), key=lambda row: (-abs(row.score or 0.0), row.address))
    shown = [row for row in rows if row.address in listed]
    shown += [row for row in rows if row.passes and row.address not in listed][: max(0, MOST_ROWS - len(shown))]
    if not shown:
        shown = sorted(rows, key=lambda row: (1.0 if row.q is None else row.q, -abs(row.score or 0.0)))[:5]
    return sorted(shown, key=lambda row: (-abs(row.score or 0.0), row.address))
