"""The page's views as one JavaScript module, for notebooks: they load one text, without import maps and files."""

from __future__ import annotations

import json
import re
from functools import cache

from moeworks import __version__
from moeworks.errors import MoeworksError
from moeworks.view.app import static_files
from moeworks.view.export import IMPORT_MAP

__all__ = ["linked_modules", "scoped", "widget_module"]

ENTRY = "moeworks/widget"
PLACE = 'JSON.parse("{}")'
IMPORTED = re.compile(r"""\b(?:import|export)\b(?:[^;'"()]*?\bfrom)?\s*"([^"\n]+)\"""")  # `NAMED` of widget-start.js
STYLES = ("style.css", "widget.css")
REM = 14  # px, as the page sets it; a notebook may set another


@cache
def widget_module() -> str:
    """Return the module: its start, and within it the texts of all modules and styles that the widget uses."""
    files = {name: file.read_text(encoding="utf-8") for name, file in static_files().items() if _is_text(name)}
    imports = json.loads(IMPORT_MAP.findall(files["index.html"])[0])["imports"]
    texts = {name: files[path.removeprefix("./static/")] for name, path in imports.items()}
    modules = [
        {"name": name, "text": text, "library": not name.startswith("moeworks/")}
        for name, text in linked_modules({**texts, ENTRY: files["js/widget.js"]}, ENTRY)
    ]
    style = scoped("\n".join(files[name] for name in STYLES))
    data = json.dumps({"modules": modules, "style": style, "version": __version__}, ensure_ascii=False)
    start = files["js/widget-start.js"]
    if start.count(PLACE) != 1:
        raise MoeworksError("the start of the widget has no place for its modules; install moeworks again.")
    libraries = [name for name, text in files.items() if name.endswith(".txt") and "uplot" not in name]
    licences = "\n\n".join(files[name] for name in libraries).replace("*/", "* /")
    return f"{start.replace(PLACE, data)}\n/* Licences of the libraries within:\n\n{licences}\n*/\n"


def linked_modules(texts: dict[str, str], entry: str) -> list[tuple[str, str]]:
    """Return the modules that `entry` needs, itself included, each after those that it imports.

    Raises:
        MoeworksError: modules import each other in a circle, which cannot be linked without an import map.
    """
    order: dict[str, str] = {}
    open_: list[str] = []

    def add(name: str) -> None:
        if name in order:
            return
        if name in open_:
            raise MoeworksError(f"the page's modules import each other in a circle: {' → '.join([*open_, name])}.")
        open_.append(name)
        for other in IMPORTED.findall(texts[name]):
            if other in texts:
                add(other)
        order[open_.pop()] = texts[name]

    add(entry)
    return list(order.items())


def scoped(css: str) -> str:
    """Return the page's styles for a part of another page: of its own size, width and theme."""
    css = re.sub(r":root(\[[^\]]*\]|:not\([^)]*\))?", lambda found: f":host({found[1]})" if found[1] else ":host", css)
    css = re.sub(r"([\d.]+)rem\b", lambda found: f"{float(found[1]) * REM:g}px", css)
    css = re.sub(r"@media \((min|max)-width:", r"@container (\1-width:", css)
    return re.sub(r"([\d.]+)dvh\b", lambda found: f"calc(var(--height) * {float(found[1]) / 100:g})", css)


def _is_text(name: str) -> bool:
    return name.endswith((".html", ".js", ".css", ".txt"))
