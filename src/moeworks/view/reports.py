"""Studies and league tables as the page reads them: a study's own numbers, its report, a league's page in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import Response

from moeworks.serve.errors import Refused
from moeworks.view.answers import tagged
from moeworks.view.refusals import NotThere
from moeworks.view.security import REPORT_POLICY, sign, signed

if TYPE_CHECKING:
    from moeworks.view.sources import Sources

__all__ = ["add_reports", "league_json", "report_link", "study_json"]


def study_json(sources: Sources, id: str) -> dict[str, Any]:
    """Return a study's document, checked.

    Raises:
        NotThere: there is no such study. BadData: it is not one of this version.
    """
    from moeworks.study import load_study

    return load_study(sources.study(id)).model_dump(mode="json")


def league_json(sources: Sources, id: str) -> dict[str, Any]:
    """Return a league's page as pieces: `{moeworks, blocks: [{kind, …}], command}`.

    A block is a `heading` (`level`, `text`), a `text`, a `list` (`items`) or a `table` (`columns`, `rows` of texts);
    numbers are rounded as `moeworks bench page` writes them. `code` in texts stands between backticks.
    """
    from moeworks.bench.page import page
    from moeworks.bench.schema import load_league

    path = sources.league(id)
    league = load_league(path)
    return {
        "moeworks": league.moeworks,
        "blocks": list(_blocks(page(league))),
        "command": f"moeworks bench page -o {path.parent} --page league.md",
    }


def report_link(id: str, key: str) -> str:
    """Return the address of a study's report; with a key, the address holds a word that opens it and nothing else."""
    return f"/view/report/{quote(id, safe='')}" + (f"?open={sign(key, f'report {id}')}" if key else "")


def add_reports(app: FastAPI, sources: Sources, *, key: str) -> None:
    """Add studies, their reports, and leagues."""

    @app.get("/view/api/studies/{id}")
    def study(id: str, request: Request) -> Response:
        """Give a study's numbers."""
        return tagged(request, _state(sources.study(id)), lambda: study_json(sources, id))

    @app.get("/view/api/league/{id}")
    def league(id: str, request: Request) -> Response:
        """Give a league's tables."""
        return tagged(request, _state(sources.league(id)), lambda: league_json(sources, id))

    @app.get("/view/api/studies/{id}/report")
    def report(id: str) -> Response:
        """Give a study's report to who has the key."""
        return _report(sources, id)

    @app.get("/view/report/{id}")
    def linked_report(id: str, open: str = "") -> Response:
        """Give a study's report to who has its link."""
        if not signed(key, f"report {id}", open):
            raise Refused(401, "this link to a report is not one of this server; open the report from the page.")
        return _report(sources, id)


def _report(sources: Sources, id: str) -> Response:
    path = sources.study(id).with_name("report.html")
    if not path.is_file():
        raise NotThere(f"the study '{id}' has no report.html beside its study.json; run `moeworks study` again.")
    headers = {
        "content-security-policy": REPORT_POLICY,
        "x-frame-options": "SAMEORIGIN",
        "cache-control": "no-store",
    }
    return Response(path.read_bytes(), media_type="text/html", headers=headers)


def _state(path: Any) -> str:
    found = path.stat()
    return f"{found.st_mtime_ns} {found.st_size}"


def _blocks(page: str) -> Iterator[dict[str, Any]]:
    """Cut a page of Markdown, as `bench` writes it, into its blocks; pictures are left out, tables say the same."""
    for block in re.split(r"\n\s*\n", page.strip()):
        lines = block.splitlines()
        heading = re.match(r"(#+) (.*)", lines[0])
        if heading:
            yield {"kind": "heading", "level": len(heading[1]), "text": heading[2]}
            lines = lines[1:]
        if not lines or lines[0].startswith("!["):
            continue
        if lines[0].startswith("|"):
            cells = [
                [cell.strip() for cell in line.removeprefix("| ").removesuffix(" |").split(" | ")] for line in lines
            ]
            yield {"kind": "table", "columns": cells[0], "rows": cells[2:]}
        elif lines[0].startswith("- "):
            yield {"kind": "list", "items": [line.removeprefix("- ") for line in lines]}
        else:
            yield {"kind": "text", "text": " ".join(lines)}
