"""The page as one HTML file that opens from disk: its modules, its styles, and the answers of its endpoints, within it.

Modules cannot be loaded from file://, so that the import map of `index.html` is written anew with every module as a
`data:` address. What the page would ask a server for stands in `<script data-url>` elements that the page looks into
first. The policy of the page holds here too, as a `meta` element, with nothing that could be fetched from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from moeworks.artefact import replace_file
from moeworks.errors import BadData

if TYPE_CHECKING:
    from moeworks.view.asking import Get
    from moeworks.view.sources import Sources

__all__ = ["MOST_EXPERTS", "MOST_TRACES", "MOST_VALUES", "addresses", "export_page"]

MOST_TRACES, MOST_EXPERTS = 6, 512  # traces in a file; cards of each
MOST_VALUES = 100  # values of labels with a map of their own, of each trace
NAME = "index.html"
IMPORT_MAP = re.compile(r'<script type="importmap">(.*?)</script>', re.DOTALL)
ENTRY = re.compile(r'<script type="module" src="\./static/([^"]+)"></script>')
STYLE = re.compile(r'<link rel="stylesheet" href="\./static/([^"]+)">')


def export_page(sources: Sources, folder: str | Path) -> Path:
    """Write the page with everything that it shows to `folder/index.html` and return that path.

    The file holds the texts of its traces; a model's own answers (generation, recording, evidence) are not in it.

    Args:
        sources: what it shows: at most 6 traces of at most 20,000 rows each, and their first 512 experts' cards.
        folder: made if it is not there; an older page in it is replaced, whole or not at all.

    Raises:
        BadData: there is nothing to show, there are too many traces, or one is too long for a file.
        MoeworksError: the disk refuses.
    """
    from moeworks.view.app import need_packages, static_files
    from moeworks.view.asking import asking

    need_packages(model=False)
    _check(sources)
    with asking(sources) as get:
        asked = {url: get(url) for url in addresses(sources, get)}
    answers = {url: answer for url, answer in asked.items() if answer is not None}
    answers["api/sources"] = _without_model(answers["api/sources"])
    wanted = (".html", ".js", ".css", ".txt")
    files = {name: file.read_text(encoding="utf-8") for name, file in static_files().items() if name.endswith(wanted)}
    target = Path(folder) / NAME
    with replace_file(target) as temporary:
        temporary.write_text(_page(files, answers), encoding="utf-8")
    return target


def addresses(sources: Sources, get: Get) -> Iterator[str]:
    """Yield every address whose answer a file holds, relative to the page, as the page writes it."""
    yield "api/sources"
    yield from (f"api/studies/{id}" for id in sources.ids("study"))
    yield from (f"api/league/{id}" for id in sources.ids("league"))
    traces = sources.ids("trace")
    for id in traces:
        yield from _of_trace(sources, id, get)
    for first in traces:
        for second in traces:
            if first != second and sources.trace(first).layers == sources.trace(second).layers:
                yield f"api/compare/{first}/{second}"
                yield f"api/compare/{first}/{second}/tokens"


def _of_trace(sources: Sources, id: str, get: Get) -> Iterator[str]:
    trace, start = sources.trace(id), f"api/traces/{quote(id, safe='')}"
    yield from (f"{start}/requests", f"{start}/tokens", f"{start}/layers", f"{start}/cache")
    maps: list[dict[str, str]] = [{"by": "load"}, {"by": "weight"}]
    labels = trace.request_table().labels
    values = [(name, value) for name in labels if name != "document" for value in sorted(set(labels[name])) if value]
    maps += [{"by": "specialisation", "label": name, "value": value} for name, value in values[:MOST_VALUES]]
    maps += [{"by": "score", "scores": one} for one in sources.ids("scores") if sources.scores(one).unit == "expert"]
    yield from (f"{start}/map?{urlencode(one)}" for one in maps)
    for one in json.loads(get(f"{start}/layers") or b"[]"):
        if one["possible"]:
            options = {name: one[name] for name in ("label", "base") if one[name]}
            yield f"{start}/layers/{one['what']}" + (f"?{urlencode(options)}" if options else "")
    experts = [(layer, expert) for layer in trace.layers for expert in range(trace.header.shape_of(layer).experts)]
    yield from (f"{start}/experts/L{layer}.E{expert}" for layer, expert in experts[:MOST_EXPERTS])


def _check(sources: Sources) -> None:
    from moeworks.view.tokens import MOST_ROWS

    traces = sources.ids("trace")
    if not (traces or sources.ids("study") or sources.ids("league")):
        raise BadData("there is nothing to export; give a trace, a study or a league.")
    if len(traces) > MOST_TRACES:
        raise BadData(f"a file holds at most {MOST_TRACES} traces, {len(traces)} are given; export fewer at once.")
    for id in traces:
        trace = sources.trace(id)
        if len(trace) > MOST_ROWS:
            raise BadData(
                f"the trace {id} has {len(trace)} rows, a file holds {MOST_ROWS} of each; cut out a part first with "
                f"moeworks trace slice {trace.path} (such as --where lang=ru), or look at all of it with moeworks view."
            )


def _without_model(answer: bytes) -> bytes:
    """Return the list of sources for a page behind which nothing runs."""
    found: dict[str, Any] = json.loads(answer)
    found |= {"probes": [], "can": {"generate": False, "record": False, "evaluate": False}}
    found["studies"] = [{**study, "report": None} for study in found["studies"]]
    return json.dumps(found, ensure_ascii=False).encode()


def _page(files: Mapping[str, str], answers: Mapping[str, bytes]) -> str:
    """Return the HTML of the file."""
    page = files["index.html"]
    modules = json.loads(IMPORT_MAP.findall(page)[0])["imports"]
    entry = next(name for name, path in modules.items() if path == f"./static/{ENTRY.findall(page)[0]}")
    inlined = json.dumps({"imports": {name: _module(files, path) for name, path in modules.items()}})
    start = f'import "{entry}";'
    styles = [files[name].replace("</", "<\\/") for name in STYLE.findall(page)]
    policy = (
        f"default-src 'none'; script-src data: {_source(inlined)} {_source(start)}; "
        f"style-src {' '.join(map(_source, styles))}; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    licences = "\n\n".join(text for name, text in files.items() if name.endswith(".txt"))
    data = [
        f'<script type="application/octet-stream" data-url="{html.escape(url)}">{_base64(answer)}</script>'
        for url, answer in answers.items()
    ]
    head, body = page.split("</head>", 1)
    head = STYLE.sub(lambda _: f"<style>{styles.pop(0)}</style>", head)
    head = IMPORT_MAP.sub(lambda _: f'<script type="importmap">{inlined}</script>', head)
    head = ENTRY.sub(lambda _: f'<script type="module">{start}</script>', head)
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    head = head.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{meta}', 1)
    kept = f'<script type="text/plain">{html.escape(licences)}</script>'  # of the libraries within, as they ask for
    return "\n".join([f"{head}{kept}", *data, f"</head>{body}"])


def _module(files: Mapping[str, str], path: str) -> str:
    return f"data:text/javascript;base64,{_base64(files[path.removeprefix('./static/')].encode())}"


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
