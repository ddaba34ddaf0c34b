"""Vendored libraries: each file is the published one but for what its manifest says, with its licence beside it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

import moeworks.view

STATIC = Path(moeworks.view.__file__).parent / "static"
FOLDERS = (STATIC / "vendor", Path(__file__).parent / "browser" / "vendor")
LIBRARIES = [
    (folder, one) for folder in FOLDERS for one in json.loads((folder / "manifest.json").read_text())["libraries"]
]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(("folder", "library"), LIBRARIES, ids=[one["file"] for _, one in LIBRARIES])
def test_a_file_is_the_published_one(folder, library):
    data = (folder / library["file"]).read_bytes()
    assert digest(data) == library["sha256"]
    if library["changes"] == "none":
        assert library["source_sha256"] == library["sha256"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", library["version"])
    assert all((folder / name).stat().st_size > 100 for name in library["licences"])


def test_what_was_wrapped_holds_the_published_text():
    library = next(one for _, one in LIBRARIES if one["file"] == "apache-arrow.js")
    lines = (STATIC / "vendor" / "apache-arrow.js").read_bytes().split(b"\n")
    inner = b"\n".join(lines[3:-4])
    known = (
        inner + b"\n//# sourceMappingURL=Arrow.esnext.min.js.map\n",
        inner + b"//# sourceMappingURL=Arrow.esnext.min.js.map\n",
    )
    assert library["source_sha256"] in {digest(one) for one in known}


@pytest.mark.parametrize("folder", FOLDERS, ids=["page", "tests"])
def test_every_file_is_in_the_manifest(folder):
    libraries = [one for home, one in LIBRARIES if home == folder]
    named = (
        {"manifest.json"} | {one["file"] for one in libraries} | {name for one in libraries for name in one["licences"]}
    )
    assert {path.name for path in folder.iterdir()} == named


def test_modules_import_each_other_by_bare_names_of_the_map():
    text = (STATIC / "index.html").read_text(encoding="utf-8")
    names = json.loads(re.search(r'<script type="importmap">(.*?)</script>', text, re.S).group(1))["imports"]
    for target in names.values():
        assert (STATIC.parent / target.removeprefix("./")).is_file(), target
    files = [*STATIC.glob("js/*.js"), *STATIC.glob("vendor/*.js")]
    for file in files:
        used = re.findall(
            r"""(?:^|[;}\s])(?:import|export)\b[^'"();]*?\bfrom\s*["']([^"']+)["']|\bimport\(\s*["']([^"']+)["']""",
            file.read_text(encoding="utf-8"),
        )
        for one in used:
            name = one[0] or one[1]
            assert name in names, f"{file.name} imports {name}"
