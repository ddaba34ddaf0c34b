"""The page on the lab model: a small multilingual trace as the first look records it, and the scores of Russian."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.page_server import Site
from helpers.servers import in_thread
from moeworks.find import find
from moeworks.serve import open_model
from moeworks.view.app import build_page
from moeworks.view.first_look import TRACE, first_texts
from moeworks.view.sources import Sources

__all__ = ["serve_lab"]

LANGUAGES = ("ar", "en", "fr", "ru", "zh")


@contextmanager
def serve_lab(folder: Path) -> Iterator[Site]:
    """Serve the page with the lab model, its trace `languages` and the scores `language-ru`."""
    engine = open_model("lab")
    texts = [text for text in first_texts() if text.labels["lang"] in LANGUAGES]
    trace = engine.record(texts, folder / TRACE, logits=True)
    scores = find(trace, contrast="lang=ru", against="lang=en", permutations=1000, bootstrap=50)
    scores.save(folder / "language-ru.arrow")
    sources = Sources([folder / TRACE, folder / "language-ru.arrow"], engine=engine)
    app = build_page(sources)
    with in_thread(app) as url:
        yield Site(url, sources, app)
