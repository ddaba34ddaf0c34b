"""Measures the page in a browser: a long trace of real text, the time to its first token, frames while it scrolls."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from helpers.servers import in_thread
from moeworks.artefact import EngineIdentity
from moeworks.contract import decide
from moeworks.engines import load
from moeworks.trace import RecordedRows, RequestInfo, Trace, TraceHeader, TraceWriter
from moeworks.view.app import build_page
from moeworks.view.first_look import first_texts
from moeworks.view.sources import Sources
from moeworks.where import Rows

__all__ = ["BARE", "PLAIN", "WATCH", "first_token", "frames", "long_trace", "scrolled", "served"]

# Put into a page before its own scripts: when the first token is painted, what frames take, what was asked for.
WATCH = """(() => {
  window.watch = { first: null, work: [], rows: 0, questions: 0, most: 0 };
  const seen = new MutationObserver(() => {
    if (!document.querySelector('.t')) return;
    seen.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => { window.watch.first = performance.now(); }));
  });
  seen.observe(document, { childList: true, subtree: true });
  const ask = window.fetch;
  window.fetch = (url, options) => {
    const range = /tokens\\?start=(\\d+)&stop=(\\d+)/.exec(String(url));
    if (range) { window.watch.questions += 1; window.watch.rows += range[2] - range[1]; }
    return ask(url, options);
  };
  const frame = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (handler) => frame((time) => {
    const begin = performance.now();
    handler(time);
    window.watch.work.push(performance.now() - begin);
    window.watch.most = Math.max(window.watch.most, document.getElementsByTagName('*').length);
  });
})()"""
# The time between frames, and what the plainest drawing of as many tokens as a chunk has takes here and now.
FRAMES = """() => {
  window.deltas = [];
  let last = performance.now();
  const tick = (now) => { window.deltas.push(now - last); last = now; window.ticking = requestAnimationFrame(tick); };
  window.ticking = requestAnimationFrame(tick);
}"""
PLAIN = """() => Array.from({ length: 9 }, () => {
  const begin = performance.now();
  const outer = document.createElement('div');
  for (let i = 0; i < 256; i += 1) {
    const span = document.createElement('span');
    span.textContent = ` word ${i}`;
    span.style.setProperty('--c', `rgb(${i} 0 0)`);
    outer.append(span);
  }
  document.body.append(outer);
  outer.getBoundingClientRect();
  outer.remove();
  return performance.now() - begin;
}).sort((a, b) => a - b)[4]"""
# A page that only scrolls: what this machine makes of frames with nothing to do.
BARE = """<!doctype html><title>bare</title><style>.tokens-frame { height: 90vh; overflow: auto }</style>
<div class="tokens-frame"><div style="height: 100000px">nothing</div></div>"""


def long_trace(folder: Path, rows: int = 200_000, *, logits: bool = False) -> Trace:
    """Write a trace of the lab model's shape: tokens of the built-in texts in twelve languages, routes at random."""
    engine: Any = load("lab")
    texts = first_texts()
    pieces = engine.tokenizer([text.content() for text in texts], add_special_tokens=False)["input_ids"]
    rng = np.random.default_rng(0)
    header = TraceHeader(
        moeworks="0.1.0",
        model=engine.identity,
        engine=EngineIdentity(name="none", version="0", dtype="float32"),
        seed=0,
    )
    written = number = 0
    with TraceWriter(folder, header, logits=logits) as writer:
        while written < rows:
            token = np.array(pieces[number % len(texts)])[: rows - written]
            n = len(token)
            raw = {one.layer: rng.normal(size=(n, one.experts)).astype(np.float32) for one in engine.identity.layers}
            found = {one.layer: decide(raw[one.layer], one.contract) for one in engine.identity.layers}
            labels = dict(texts[number % len(texts)].labels)
            writer.add_request(
                RequestInfo(request=number, tokens=n, prompt_tokens=n, labels=labels, document=str(number))
            )
            writer.write(
                RecordedRows(
                    rows=Rows(np.full(n, number), np.arange(n), token, np.zeros(n, np.uint8)),
                    ids={layer: one.ids for layer, one in found.items()},
                    weights={layer: one.weights.astype(np.float32) for layer, one in found.items()},
                    logits=raw if logits else None,
                )
            )
            written, number = written + n, number + 1
    return Trace.open(folder)


@contextmanager
def served(trace: Trace) -> Iterator[str]:
    """Serve a page of one trace, without a model; yields the address of its text."""
    sources = Sources()
    sources.add_trace(trace, name="long")
    with in_thread(build_page(sources)) as url:
        yield f"{url}/view/#/tokens?trace=long&layer=2"


def first_token(page: Any, url: str) -> float:
    """Open the text and return the milliseconds from navigation until its first token was painted."""
    page.goto(url)
    while page.evaluate("window.watch.first") is None:
        page.wait_for_timeout(5)
    return float(page.evaluate("window.watch.first"))


def scrolled(page: Any, *, steps: int = 100, pixels: int = 240) -> list[float]:
    """Turn the wheel over the text, one step a frame, and return the milliseconds between frames meanwhile."""
    box = page.locator(".tokens-frame").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.evaluate(FRAMES)
    for _ in range(steps):
        page.mouse.wheel(0, pixels)
        page.wait_for_timeout(16)
    page.evaluate("cancelAnimationFrame(window.ticking)")
    return [float(delta) for delta in page.evaluate("window.deltas.slice(2)")]


def frames(deltas: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile of times between frames, and frames a second."""
    ordered = sorted(deltas)
    return {
        "median_ms": round(statistics.median(ordered), 1),
        "p95_ms": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 1),
        "frames_a_second": round(1000 * len(ordered) / sum(ordered), 1),
    }
