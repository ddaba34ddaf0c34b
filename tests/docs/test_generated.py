"""Pages that are made from the code are up to date, and links between pages lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_pages_are_up_to_date() -> None:
    ran = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_stale_page_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte less in one page, one page too many: both are named."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    monkeypatch.setattr(generate, "DOCS", tmp_path / "docs")
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    page = tmp_path / "docs" / "cli" / "moeworks-find.md"
    page.write_text(page.read_text()[:-1])
    assert generate.main(["--check"]) == 1
    assert generate.main([]) == 0
    (tmp_path / "docs" / "cli" / "moeworks-gone.md").write_text("")
    assert generate.main(["--check"]) == 1


def test_a_shown_line_becomes_the_printed_one_that_is_like_it() -> None:
    """By hand: numbers are exchanged, order counts, `...` stays, a cut line stays as short, what is gone is named."""
    from docs.refresh import merged

    shown = ["...", "a loss of 1.5 nats", "b of 3 experts (L0.E1, L0.E2...", "...", "gone for good"]
    printed = ["first", "b of 9 others", "a loss of 2.25 nats", "b of 8 experts (L0.E7, L0.E9, L1.E3)", "x"]
    found, missing = merged(shown, printed)
    assert found == ["...", "a loss of 2.25 nats", "b of 8 experts (L0.E7...", "...", "gone for good"]
    assert missing == ["gone for good"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
