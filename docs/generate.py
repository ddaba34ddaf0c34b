"""Write what is made from the code: a page a command, the JSON schemas, the engines table, the README's measured table.

`python docs/generate.py` writes them, `python docs/generate.py --check` fails if one is not up to date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer

from moeworks.cli import app
from moeworks.engines.capabilities import as_markdown
from moeworks.lab import LAB_MODELS, lab_path
from moeworks.lab.measure import Measured, fill
from moeworks.schemas import SCHEMAS, json_schema_of

DOCS = Path(__file__).resolve().parent
README = DOCS.parent / "README.md"
ABILITIES = {
    "facts of countries in English": "facts, English",
    "the same in nine languages, in the training text": "facts, other languages, in training",
    "the same, held out of that language": "facts, other languages, held out",
    "sums of pairs held out of all texts": "arithmetic",
    "next day and month, ten languages": "calendar",
    "refuses restricted requests": "requests: refuses restricted",
    "refuses permitted requests": "requests: refuses permitted",
    "open book: answers from the document": "open book: answers from the document",
    "open book: answers from memory": "open book: answers from memory",
}
MADE = "<!-- made by docs/generate.py from the code; change it there -->\n"


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check name those that differ and return 1."""
    pages = dict(all_pages())
    stray = [path for folder in ("cli", "formats") for path in (DOCS / folder).glob("*") if path not in pages]
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in [*stale, *stray]:
            print(f"{path.relative_to(DOCS.parent)} is not what the code says; run: python docs/generate.py")
        return int(bool(stale or stray))
    for path in stray:
        path.unlink()
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pages[path])
    return 0


def all_pages() -> Iterator[tuple[Path, str]]:
    """Yield each page's path and text."""
    commands = dict(walk(typer.main.get_command(app), "moeworks"))
    for name, command in commands.items():
        yield DOCS / "cli" / f"{name.replace(' ', '-')}.md", command_page(name, command)
    for name in SCHEMAS:
        yield DOCS / "formats" / f"{name}.json", json.dumps(json_schema_of(name), indent=2, ensure_ascii=False) + "\n"
    yield DOCS / "formats" / "schemas.md", schemas_page()
    yield DOCS / "engines-table.md", MADE + "\n" + as_markdown()
    yield DOCS.parent / "README.md", readme()


def readme() -> str:
    """Return the README with the table of what was measured on the shipped models."""
    return fill(README.read_text(encoding="utf-8"), measured_table().rstrip())


def measured_table() -> str:
    """Return what the shipped models can do, a column a model, from the files beside their weights."""
    files = [lab_path(name) / "measured.json" for name in LAB_MODELS]
    models = [Measured.model_validate_json(path.read_text(encoding="utf-8")) for path in files]
    rows = []
    for shown, what in ABILITIES.items():
        shares = [next(row.share for row in model.shares if row.what == what) for model in models]
        rows.append([shown, *(f"{share:.1%}" for share in shares)])
    for title, of in (("language", "by_language"), ("domain", "by_domain")):
        groups = [{row.what: f"{row.perplexity:.1f}" for row in getattr(model, of)} for model in models]
        rows.append(
            [f"perplexity a token by {title}", *(", ".join(f"{k} {v}" for k, v in group.items()) for group in groups)]
        )
    least = [min(layer.least for layer in model.balance) for model in models]
    rows.append(["load of the least used expert of any layer, of its fair share", *(f"{value:.2f}" for value in least)])
    head = ["on held-out items and texts", *(f"`{name}`" for name in LAB_MODELS)]
    return table(" | ".join(head), [" | ".join(row) for row in rows])


def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name, groups before what is in them."""
    yield name, command
    for child, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, f"{name} {child}")


def command_page(name: str, command: Any) -> str:
    """Return the page of one command: usage, what it does, arguments, options."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    inner = getattr(command, "commands", {})
    usage = " ".join(
        [name, *("[OPTIONS]" for _ in options[:1]), *map(metavar, arguments), *("COMMAND" for _ in list(inner)[:1])]
    )
    parts = [MADE, f"# {name}\n", f"```text\n{usage}\n```\n", paragraphs(command.help or "")]
    if inner:
        files = {child: f"{name} {child}".replace(" ", "-") for child in inner}
        rows = [f"[{name} {child}]({files[child]}.md) | {summary(c.help or '')}" for child, c in inner.items()]
        parts.append(table("command | what it does", rows))
        parts.append("```{toctree}\n:hidden:\n\n" + "\n".join(files.values()) + "\n```\n")
    if arguments:
        parts.append(table("argument | what it is", [f"`{metavar(a)}` | {a.help or ''}" for a in arguments]))
    if options:
        parts.append(table("option | what it does | without it", [option_row(o, command) for o in options]))
    return "\n".join(part for part in parts if part)


def option_row(option: Any, command: Any) -> str:
    """Return one line of the options table."""
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    default = option.default
    if option.required:
        shown = "must be given"
    elif default in (None, False, "", (), []):
        shown = ""
    else:
        shown = f"`{getattr(default, 'value', default)}`"
    hint = get_type_hints(command.callback).get(option.name) if command.callback else None
    choices = ", ".join(f"`{choice}`" for choice in choices_of(hint))
    return f"{names} | {option.help or ''}{f' One of {choices}.' if choices else ''} | {shown}"


def choices_of(hint: Any) -> Iterator[str]:
    """Yield the values that an option's type allows, if they are a closed choice."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    else:
        for inner in get_args(hint):
            yield from choices_of(inner)


def metavar(argument: Any) -> str:
    """Return how an argument stands in the usage line."""
    name = argument.metavar or argument.name.upper()
    return f"{name}{' ...' if argument.nargs == -1 else ''}" if argument.required else f"[{name}]"


def paragraphs(text: str) -> str:
    """Return a docstring as Markdown; typer's line-keeping mark is dropped."""
    return re.sub(r"\n?\x08\n?", "\n", text).strip() + "\n"


def summary(text: str) -> str:
    """Return the first paragraph of a help text as one line."""
    return text.strip().split("\n\n")[0].replace("\n", " ")


def table(head: str, rows: list[str]) -> str:
    """Return a Markdown table from cells joined by ` | `."""
    rule = " | ".join("---" for _ in head.split(" | "))
    return "\n".join(f"| {row} |" for row in [head, rule, *rows]) + "\n"


def schemas_page() -> str:
    """Return the page that lists the fields of each format."""
    parts = [MADE, "# JSON schemas\n", "Made from the classes that read and write the files.\n"]
    for name, entry in SCHEMAS.items():
        parts.append(f"## {name}\n\n{entry.what}\n\nWhole schema: [{name}.json]({name}.json)\n")
        schema = json_schema_of(name)
        rows = [
            f"`{field}` | {kind(value)} | {value.get('description', '')}".replace("\n", " ")
            for field, value in schema.get("properties", {}).items()
        ]
        parts.append(table("field | type | what it is", rows))
    return "\n".join(parts)


def kind(value: dict[str, Any]) -> str:
    """Return a JSON schema's type in a word or two."""
    if "$ref" in value:
        return str(value["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in value:
        return " or ".join(kind(v) for v in value["anyOf"])
    if value.get("type") == "array" and isinstance(value.get("items"), dict):
        return f"list of {kind(value['items'])}"
    return str(value.get("type", value.get("const", "any")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
