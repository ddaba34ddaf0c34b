"""Settings of the documentation: Markdown through MyST, the furo theme, the Python API from the docstrings."""

from importlib.util import find_spec

import moeworks

project = "moeworks"
author = "The moeworks authors"
copyright = "The moeworks authors, Apache-2.0"
version = release = moeworks.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "engines-table.md"]  # the latter is part of engines.md
html_theme = "furo"
html_title = "moeworks"
html_static_path: list[str] = []

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_mock_imports = [name for name in ("datasets", "lm_eval") if find_spec(name) is None]  # torch is needed
suppress_warnings = ["ref.python"]  # a verb is a module and a function in it: both are named in cross-references


def as_literals(app, what, name, obj, options, lines):  # type: ignore[no-untyped-def]
    """Turn the `single` backticks of our docstrings into the literals that Sphinx writes with double ones.

    A bar outside of them is a bar, as in |S|, and no substitution.
    """
    import re

    def plain(line: str) -> str:
        parts = re.split(r"(``[^`]+``)", re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line))
        return "".join(part if part.startswith("``") else part.replace("|", r"\|") for part in parts)

    lines[:] = map(plain, lines)


def setup(app):  # type: ignore[no-untyped-def]
    """Enter what Sphinx calls while it builds."""
    app.connect("autodoc-process-docstring", as_literals, priority=400)
