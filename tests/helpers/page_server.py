"""The page for tests: a fake engine's model, traces of labelled texts in several scripts, and a server in a thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.servers import in_thread
from moeworks.address import Address
from moeworks.examples import Example
from moeworks.plan import Demote, empty_plan
from moeworks.serve import open_model
from moeworks.view.app import build_page
from moeworks.view.sources import Sources

__all__ = ["HOSTILE", "Site", "make_site", "page_texts", "serve_page"]

# What a page must show and never run: as a text, a label's name, a label's value and a name of a trace.
HOSTILE = '<script>window.hurt=1</script><img src=x onerror="window.hurt=1">'

TEXTS = {
    "en": ["The king sat in his house by the sea.", "Press the key to open the file.", "A cat sleeps.\n\n  It dreams."],
    "ru": ["Царь сидел в доме у моря.", "Нажмите клавишу, чтобы открыть файл.", "Кошка спит."],
    "ar": ["جلس الملك في بيته عند البحر.", "اضغط المفتاح لفتح الملف.", "القطة تنام."],
    "ja": ["王は海辺の家に座っていた。", "キーを押してファイルを開きます。", "猫が寝ている。"],
}


@dataclass(frozen=True)
class Site:
    """A running page."""

    url: str  # of the server, without a path
    sources: Any
    app: Any
    key: str = ""

    @property
    def page(self) -> str:
        """The page's address."""
        return f"{self.url}/view/" + (f"#key={self.key}" if self.key else "")


def page_texts() -> list[Example]:
    """Return labelled texts in four scripts, the last one hostile."""
    texts = [
        Example(text=text, labels={"lang": lang, "domain": "story" if place == 0 else "help"}, document=f"{place}")
        for lang, group in TEXTS.items()
        for place, text in enumerate(group)
    ]
    return [*texts, Example(text=HOSTILE, labels={"lang": "en", "domain": HOSTILE}, document="hostile")]


def make_site(folder: Path) -> tuple[Any, Any]:
    """Return the fake engine and sources with two traces: `plain`, with generated tokens, and `steered`."""
    engine = open_model("fake")
    plan = empty_plan(engine.identity, protect="none").model_copy(
        update={"operations": (Demote(experts=(Address(0, 1), Address(1, 2), Address(2, 3))),)}
    )
    engine.record(page_texts(), folder / "plain", logits=True, generate=6)
    engine.record(page_texts(), folder / "steered", logits=True, generate=6, plan=plan)
    return engine, [folder / "plain", folder / "steered"]


@contextmanager
def serve_page(
    folder: Path, *, model: bool = True, key: str = "", more: Sequence[Path] = (), **options: Any
) -> Iterator[Site]:
    """Serve the page with two traces, and with the fake model unless told otherwise.

    Args:
        folder: where the traces are written.
        model: whether the fake model is behind the page, or only what it recorded.
        key: of the server.
        more: files and folders to show besides.
        options: of `build_page`.
    """
    engine, traces = make_site(folder)
    sources = Sources([*traces, *more], engine=engine if model else None)
    app = build_page(sources, key=key, **options)
    with in_thread(app) as url:
        yield Site(url, sources, app, key)
