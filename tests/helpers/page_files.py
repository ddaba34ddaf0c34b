"""A study and a league for tests of the page, written to a folder."""

from __future__ import annotations

from pathlib import Path

from helpers.studies import build_study
from moeworks.bench.schema import DetectCell, League, Settings, save_league
from moeworks.report import save_report
from moeworks.study import save_study

__all__ = ["study_and_league"]


def study_and_league(folder: Path) -> list[Path]:
    """Write a study with its report, and a league of two methods, and return their paths."""
    (folder / "study").mkdir(parents=True)
    study = build_study()
    save_study(study, folder / "study" / "study.json")
    save_report(study, folder / "study" / "report.html")
    cells = tuple(
        DetectCell(
            method=method,
            model="fake",
            probe="single",
            kind="planted",
            seed=0,
            sought=("L0.E1",),
            claims=claims,
            top=("L0.E1",),
            budget=1,
            reads="runs",
            null="documents",
        )
        for method, claims in (("risk_difference", ("L0.E1",)), ("lift", ()))
    )
    sizes = {"documents": 10, "experts": 3, "permutations": 50, "controls": 2}
    settings = {"fake": Settings(budget="quick", seeds=1, null_seeds=1, sizes=sizes)}
    save_league(League(moeworks="0.1.0", detect=cells, detect_settings=settings), folder / "league.json")
    return [folder / "study", folder / "league.json"]
