"""What all our pages share: the template environment with its filters, and the style sheet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from moeworks.report.words import number, percent, plain, signed

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["environment", "style_sheet"]


def environment() -> Environment:
    """Return the environment of our templates: everything is escaped, nothing undefined is passed over."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("moeworks.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "number": number,
        "signed": signed,
        "percent": percent,
        "plain": plain,
        "count": "{:,}".format,
    }
    return made


def style_sheet() -> Markup:
    """Return the style sheet, to be put into the page."""
    return Markup((Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8"))
