"""The text of a trace and the map of its experts as widgets of a notebook: the page's views, without a server.

The widget asks the kernel, over its own channel, what the page would ask its server: JSON, and tables as Arrow bytes,
at most 20,000 rows an answer, so that a trace of any length can be read. Nothing of a trace is kept in the notebook.
"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlencode

from moeworks.address import parse_addresses
from moeworks.errors import BadData, did_you_mean, need

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise need("anywidget", "view", "a widget in a notebook") from error

from moeworks.serve.limits import Limits
from moeworks.trace import Trace
from moeworks.view.app import lone_app, need_packages
from moeworks.view.asking import ask
from moeworks.view.expert_map import MapBy
from moeworks.view.sources import Sources
from moeworks.view.tokens import rows_of_request
from moeworks.view.widget_module import widget_module

if TYPE_CHECKING:
    from moeworks.find import Scores

__all__ = ["Colour", "ExpertMap", "TokenView"]

Colour = Literal["expert", "weight", "entropy", "margin", "load", "divergence", "none"]
MOST_BYTES = 64 << 20  # of one answer
MOST_LETTERS = 4096  # of a question


class _Widget(anywidget.AnyWidget):  # type: ignore[misc, unused-ignore]
    """The views of one trace; `selected` and `row` follow what is chosen in it, and it follows them."""

    selected = traitlets.List(traitlets.Unicode()).tag(sync=True)
    row = traitlets.Int(-1).tag(sync=True)
    height = traitlets.Int(460).tag(sync=True)
    _route = traitlets.Unicode("").tag(sync=True)
    _name = traitlets.Unicode("").tag(sync=True)
    _app: Any = None  # the page's endpoints, made for the first question
    _thread: ThreadPoolExecutor | None = None

    def __init__(self, sources: Sources, view: str, params: dict[str, Any], **traits: Any) -> None:
        self._sources = sources
        (self._id,) = sources.ids("trace")
        given = {"trace": self._id, **{name: value for name, value in params.items() if value not in (None, "")}}
        super().__init__(
            _esm=widget_module(), _route=f"#/{view}?{urlencode(given)}", _name=sources.name(self._id), **traits
        )
        self.on_msg(self._hear)

    @property
    def trace(self) -> Trace:
        """The trace that is shown."""
        return self._sources.trace(self._id)

    @traitlets.validate("selected")
    def _check_selected(self, proposal: Any) -> list[str]:
        found = parse_addresses(",".join(proposal["value"])) if proposal["value"] else []
        for one in found:
            experts = self.trace.header.shape_of(one.layer).experts
            if one.expert >= experts:
                raise BadData(f"there is no expert {one}: layer {one.layer} has {experts}, counted from 0.")
        return [str(one) for one in sorted(found, key=lambda one: (one.layer, one.expert))]

    @traitlets.validate("row")
    def _check_row(self, proposal: Any) -> int:
        row, rows = int(proposal["value"]), len(self.trace)
        if not -1 <= row < rows:
            raise BadData(f"the trace has no row {row}: it has {rows}, counted from 0; -1 chooses none.")
        return row

    def answer(self, url: str) -> tuple[int, bytes]:
        """Return status and body of what the page would get for an address such as `api/sources`."""
        if len(url) > MOST_LETTERS or not url.startswith("api/"):
            return 404, b'{"error": {"message": "the widget asks for data alone."}}'
        if self._thread is None:
            from moeworks.view.routes import add_page

            self._app = lone_app(Limits(), key="")
            self._thread = ThreadPoolExecutor(1)  # the notebook's own thread has an event loop already
            add_page(self._app, self._sources)
        status, body = self._thread.submit(lambda: asyncio.run(ask(self._app, url))).result()
        if len(body) > MOST_BYTES:
            return 413, b'{"error": {"message": "the answer is longer than a widget takes: ask for fewer rows."}}'
        return status, body

    def _hear(self, _: Any, content: Any, buffers: Any) -> None:
        """Answer a question of the widget."""
        del buffers
        status, body = self.answer(str(content.get("url", "")))
        if status == 200:
            self.send({"id": content.get("id"), "status": status}, buffers=[body])
        else:
            self.send({"id": content.get("id"), "status": status, "message": _words(body)})

    def close(self) -> None:
        """End the widget."""
        super().close()
        if self._thread is not None:
            self._thread.shutdown(wait=False)


class TokenView(_Widget):
    """The text of a trace, each token coloured by what a layer did; a token's route; the map of experts beside it.

    Attributes:
        row: the chosen token's row, -1 without one; may be set.
        selected: addresses of experts chosen in the map, such as `["L3.E5"]`; may be set.
        height: of the text, in pixels.
    """

    def __init__(
        self,
        trace: Trace | str | Path,
        *,
        request: int | None = None,
        row: int = -1,
        colour: Colour = "expert",
        layer: int | None = None,
        find: str = "",
        selected: list[str] | None = None,
        tokenizer: str | Path | None = None,
        height: int = 460,
    ) -> None:
        """Make the widget; a notebook shows it when it is the last line of a cell.

        Args:
            trace: the trace, or its folder.
            request: only the text of this request.
            row: the chosen token.
            colour: what the colours say.
            layer: of which layer; by default the one in the middle.
            find: a text to mark.
            selected: experts that are chosen in the map.
            tokenizer: folder or tokenizer.json of a trace whose own is not found.
            height: of the text, in pixels.

        Raises:
            MissingExtra: a package is not installed.
            BadData: the trace has no such request, row, layer or expert.
        """
        need_packages(model=False)
        sources = _sources(trace, tokenizer)
        (id,) = sources.ids("trace")
        if colour not in get_args(Colour):
            raise BadData(f"there is no colour '{colour}'; {did_you_mean(colour, get_args(Colour))}")
        if layer is not None:
            sources.trace(id).header.shape_of(layer)
        if request is not None:
            rows_of_request(sources.trace(id), request)
        params = {"request": request, "colour": colour, "layer": layer, "find": find}
        super().__init__(sources, "tokens", params, row=row, selected=selected or [], height=height)


class ExpertMap(_Widget):
    """The map layers × experts of a trace, to choose from, with an expert's card; its text beside it.

    Attributes:
        selected: addresses of the chosen experts, such as `["L3.E5"]`; may be set.
        row: the chosen token's row in the text, -1 without one; may be set.
        height: of the text, in pixels.
    """

    def __init__(
        self,
        trace: Trace | str | Path,
        *,
        by: MapBy = "load",
        label: str = "",
        value: str = "",
        scores: Scores | str | Path | None = None,
        expert: str = "",
        selected: list[str] | None = None,
        tokenizer: str | Path | None = None,
        height: int = 460,
    ) -> None:
        """Make the widget; a notebook shows it when it is the last line of a cell.

        Args:
            trace: the trace, or its folder.
            by: what the colours say, see `moeworks.view.expert_map`.
            label, value: only texts whose label has this value; of a specialisation, the value told from others.
            scores: scores or their file, for `by="score"`.
            expert: address of the expert whose card is open.
            selected: experts that are chosen.
            tokenizer: folder or tokenizer.json of a trace whose own is not found.
            height: of the text, in pixels.

        Raises:
            MissingExtra: a package is not installed.
            BadData: the trace has no such label, value or expert, or the scores are of another model.
        """
        from moeworks.view.expert_map import expert_map

        need_packages(model=False)
        sources = _sources(trace, tokenizer)
        named = _add_scores(sources, scores)
        (id,) = sources.ids("trace")
        expert_map(  # refuses what there is not; what it finds is kept for the first question
            sources.trace(id), by=by, label=label, value=value, scores=sources.scores(named) if named else None
        )
        params = {"by": by, "label": label, "value": value, "scores": named, "expert": expert}
        super().__init__(sources, "experts", params, selected=selected or [], height=height)


def _sources(trace: Trace | str | Path, tokenizer: str | Path | None) -> Sources:
    sources = Sources(tokenizer=tokenizer)
    opened = trace if isinstance(trace, Trace) else Trace.open(trace)
    sources.add_trace(opened)
    return sources


def _add_scores(sources: Sources, scores: Scores | str | Path | None) -> str:
    if scores is None:
        return ""
    if isinstance(scores, str | Path):
        from moeworks.find import Scores as Read

        return sources.add_scores(Read.load(scores), name=Path(scores).stem)
    return sources.add_scores(scores, name="scores")


def _words(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "The kernel could not answer."
