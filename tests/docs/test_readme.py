"""The commands and the Python of README and pages run as printed, and print what is shown (numbers may differ)."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.pages import blocks, check_shown, run_page

README = Path(__file__).parents[2] / "README.md"
EXTENDING = README.parent / "docs" / "extending.md"
PAGES = [page for page in sorted(EXTENDING.parent.glob("*.md")) if page != EXTENDING and blocks(page)]


def test_there_is_something_to_run() -> None:
    kinds = [block.kind for block in blocks(README)]
    assert kinds.count("bash") >= 4
    assert "python" in kinds
    assert README.read_text().count("```bash") == kinds.count("bash"), "a bash block without <!-- run -->"


def test_shown_lines_are_compared() -> None:
    """The comparison itself: numbers are free, words are not, and order counts."""
    check_shown("a 1.5 b\n...\nc", "a 22 b\nx\nc\n")
    check_shown("  with the plan: this", "  with the plan: that\n")
    with pytest.raises(AssertionError):
        check_shown("a 1.5 b", "a 1.5 c\n")
    with pytest.raises(AssertionError):
        check_shown("b\na", "a\nb\n")


@pytest.mark.slow
def test_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(README, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, capsys)


def test_extending_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's example asserts itself that its score finds the planted expert."""
    from moeworks.find import SCORES

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SCORES, "_functions", dict(SCORES._functions))
    (block,) = blocks(EXTENDING)
    exec(compile(block.code, str(EXTENDING), "exec"), {})
    assert "log_ratio" in SCORES.names()
