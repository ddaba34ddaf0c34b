"""Code in Python and C and the documentation of Python.

Needs the Debian packages libpython3.11-minimal, libpython3.11-stdlib, glibc-source and python3.11-doc; about 10
seconds, besides fetching. Run alone by `python -m recipes.lab.corpus OUT --only python_code c_code python_manual`.
"""

from __future__ import annotations

import ast
import hashlib
import re

from recipes.lab.corpus.chunks import code_chunks, join
from recipes.lab.corpus.clean import clean, looks_like
from recipes.lab.corpus.packages import Packages, deb_members, first_member, tar_members
from recipes.lab.corpus.records import Collector, Record

__all__ = ["c_code", "python_code", "python_manual", "rst_paragraphs"]

PYTHON_CAP, C_CAP, MANUAL_CAP = 9_000_000, 7_000_000, 5_000_000  # bytes
PYTHON_START = re.compile(r"(class |def |async def |@|if __name__)")
NO_PYTHON = re.compile(r"/(encodings/(?!__init__)|lib2to3/tests|pydoc_data/|idlelib/|_sysconfigdata)")  # tables, tests
C_START = re.compile(r"^(?:[A-Za-z_].*|/\*.*|#if.*)$")
C_FOLDERS = """stdlib stdio-common string posix malloc libio time io misc math inet resolv nss elf locale iconv nptl
wcsmbs argp sunrpc nscd intl dirent socket signal login"""
NO_MANUAL = ("whatsnew/2", "whatsnew/changelog", "license", "c-api/stable")
MARKUP = (
    # directives that are no prose with what they contain, the heads of the others, fields
    (
        r"(?m)^\.\. (?!note|warning|versionadded|versionchanged|deprecated|seealso)[^\n]*\n"
        r"(?:[ \t]+[^\n]*\n|\n(?=[ \t]))*",
        "\n",
    ),
    (r"(?m)^[ \t]*\.\. ?[\w-]*:*:?.*$", ""),
    (r"(?m)^[ \t]*:[\w ]+:.*$", ""),
    # roles, links, substitutions, literals, emphasis, references, footnotes
    (r":[\w:+-]+:`~?!?\.?([^`<]*?)(?:\s*<[^`>]*>)?`", r"\1"),
    (r"`([^`<]*?)\s*<[^`>]*>`__?", r"\1"),
    (r"\|[\w-]+\|", ""),
    (r"``([^`]*)``", r"\1"),
    (r"\*\*?([^*\n]+)\*\*?", r"\1"),
    (r"`([^`\n]*)`_?", r"\1"),
    (r"\[[#\w]+\]_", ""),
)
UNDERLINE = re.compile(r'\s*([=\-~^"*#+.])\1{2,}\s*$')
TABLE = re.compile(r"\s*(\+[-=]+\+|\|.*\|\s*$|={3,} )")
SESSION = re.compile(r"\s*(>>>|\.\.\. )")


def python_code(packages: Packages, collector: Collector) -> None:
    """Add the modules of the standard library that this Python can parse."""
    files = {}
    for name in ("libpython3.11-minimal", "libpython3.11-stdlib"):
        package = packages.debian(name)
        for member, content in deb_members(package, lambda name: name.endswith(".py")).items():
            files[member] = content, package.source
    total = 0
    for member, (content, source) in sorted(files.items(), key=lambda file: _shuffled(file[0])):
        if NO_PYTHON.search(member):
            continue
        try:
            code = content.decode()
            ast.parse(code)
        except (SyntaxError, ValueError):  # a wrong encoding is a ValueError
            continue
        doc = "pystdlib/" + member.split("/python3.11/")[-1]
        for seq, text in enumerate(code_chunks(_tidy(code), 900, PYTHON_START)):
            if 40 < len(text) < 12000:
                if total > PYTHON_CAP:
                    return
                if collector.add(Record(text, "py", "code_python", source, "PSF-2.0", doc, seq)):
                    total += len(text.encode())


def c_code(packages: Packages, collector: Collector) -> None:
    """Add the C library of GNU without tables of numbers, with one line for each head on licences."""
    package = packages.debian("glibc-source")
    inner = deb_members(package, re.compile(r"/glibc-[\d.]+\.tar\.xz$").search)

    def wanted(name: str) -> bool:
        parts = name.split("/")
        return len(parts) == 3 and parts[1] in C_FOLDERS.split() and name.endswith(".c")

    files = tar_members(first_member(inner, package, "tar archive of the sources"), wanted, size=200_000)
    named = {member.partition("/")[2]: content for member, content in files.items()}
    total = 0
    for name, content in sorted(named.items(), key=lambda file: _shuffled(file[0])):
        try:
            code = content.decode()
        except UnicodeDecodeError:
            continue
        head = re.match(r"\s*/\*.*?\*/", code, re.S)
        if head and "opyright" in head.group():
            line = clean(head.group()[2:]).split(".")[0].split(" Copyright")[0]
            code = f"/* {line}.  */{code[head.end() :]}"
        if len(re.findall(r"0x[0-9a-fA-F]+", code)) * 12 > len(code) / 3:
            continue
        for seq, text in enumerate(code_chunks(_tidy(code), 900, C_START)):
            if 60 < len(text) < 12000:
                if total > C_CAP:
                    return
                licence, doc = "LGPL-2.1-or-later (glibc)", f"glibc/{name}"
                if collector.add(Record(text, "c", "code_c", package.source, licence, doc, seq)):
                    total += len(text.encode())


def python_manual(packages: Packages, collector: Collector) -> None:
    """Add the documentation of Python."""
    package = packages.debian("python3.11-doc")
    members = deb_members(package, lambda name: name.endswith(".rst.txt"))
    pages = {member.split("_sources/")[1]: content for member, content in members.items()}
    total = 0
    for name, content in sorted(pages.items(), key=lambda page: _shuffled(page[0])):
        page = name.removesuffix(".rst.txt")
        if page.startswith(NO_MANUAL):
            continue
        paragraphs = [each for each in rst_paragraphs(content.decode("utf-8", "replace")) if looks_like("en", each)]
        for seq, text in enumerate(join(paragraphs, 1200)):
            if len(text) > 80:
                if total > MANUAL_CAP:
                    return
                if collector.add(Record(text, "en", "techdoc", package.source, "PSF-2.0", f"pydoc/{page}", seq)):
                    total += len(text.encode())


def rst_paragraphs(page: str) -> list[str]:
    """Return the paragraphs of a page of reStructuredText as plain text, without tables and most directives.

    Docutils does not know the directives and roles of Sphinx, and would need a build to learn them.
    """
    for pattern, replacement in MARKUP:
        page = re.sub(pattern, replacement, page)
    found = []
    for raw in re.split(r"\n[ \t]*\n", page):
        lines = [line for line in raw.split("\n") if line.strip() and not UNDERLINE.match(line)]
        if not lines or any(TABLE.match(line) for line in lines):
            continue
        if SESSION.match(lines[0]) or (len(lines) == 1 and _only_colons(lines[0])):
            found.append("\n".join(line.rstrip() for line in lines))
            continue
        text = clean(" ".join(lines)).replace("::", ":")
        if len(text) > 2:
            found.append(text)
    return found


def _only_colons(line: str) -> bool:
    return line.rstrip().endswith("::") and len(line) < 4


def _shuffled(name: str) -> bytes:
    """Return a key that sorts names in a fixed order without meaning, so that a cap takes some of everything."""
    return hashlib.md5(name.encode()).digest()


def _tidy(code: str) -> str:
    code = code.replace("\r\n", "\n").replace("\f", "")
    width = 4 if "\n    " in code else 8
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(line.rstrip().expandtabs(width) for line in code.split("\n")))
