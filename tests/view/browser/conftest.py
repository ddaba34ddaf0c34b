"""The page in a real browser: one Chromium a module, one server a session, and no test passes with a console error.

Fixtures: `chromium` (the browser), `site` (a running page with the fake model and two traces), `page` (a fresh page,
not yet opened: `page.goto(site.page)`; errors in its console, of its scripts and of its policy fail the test) and
`new_page` (more of them: `new_page(width=360, dark=True)`). A test that expects an error says
`page.expected.append("part of the message")`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from helpers.page_server import serve_page

torch.set_num_threads(1)


def executables():
    """Yield where a Chromium may be: the environment's word, Debian's, playwright's own (None)."""
    for path in (os.environ.get("CHROMIUM"), "/usr/bin/chromium"):
        if path and shutil.which(path):
            yield path
    yield None


def pytest_collection_modifyitems(items):
    """Try a browser's test once more before it fails: what waits for a frame may wait in vain on a busy machine."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="module")  # a session's driver would keep its event loop running in all tests after these
def chromium():
    """Chromium without a window; the test is skipped, with the reason, where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="the page is tested with playwright (extra dev)")
    with api.sync_playwright() as driver:
        reasons = []
        for path in executables():
            try:
                browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
            except api.Error as error:
                reasons.append(f"{path or 'playwright'}: {str(error).strip().splitlines()[0]}")
                continue
            yield browser
            browser.close()
            return
        pytest.skip(f"no Chromium starts here ({'; '.join(reasons)}); install chromium or set CHROMIUM")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A running page: the fake model and the traces `plain` and `steered`."""
    with serve_page(tmp_path_factory.mktemp("page")) as site:
        yield site


@pytest.fixture
def new_page(chromium):
    """Return a function that makes pages; what any of them complains of fails the test."""
    contexts, pages = [], []

    def make(*, width=1280, height=800, dark=False, **options):
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **options
        )
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.expected, page.complaints = [], []
        page.on("console", lambda message: message.type == "error" and page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(f"{error.name}: {error.message}\n{error.stack}"))
        contexts.append(context)
        pages.append(page)
        return page

    yield make
    unexpected = [
        complaint for page in pages for complaint in page.complaints if not any(e in complaint for e in page.expected)
    ]
    for context in contexts:
        context.close()
    assert not unexpected, "the browser complains:\n" + "\n".join(unexpected)


@pytest.fixture
def page(new_page):
    """A fresh page, 1280 × 800, light."""
    return new_page()


@pytest.fixture
def screenshots():
    """The folder that screenshots are kept in, out/screenshots or that of SCREENSHOTS; None where that is empty."""
    folder = os.environ.get("SCREENSHOTS", Path(__file__).parents[3] / "out" / "screenshots")
    if not str(folder):
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)
