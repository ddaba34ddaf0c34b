"""The page opens in a browser without a complaint, and the fixture itself fails a test on one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from looking import until


def test_the_page_opens(page, site):
    page.goto(site.page)
    until(page, "document.body.innerText.length > 20")
    assert page.evaluate("window.hurt") is None


def test_inline_scripts_are_stopped_by_the_policy(page, site):
    page.goto(site.page)
    page.evaluate("document.head.append(Object.assign(document.createElement('script'), {text: 'window.hurt = 1'}))")
    page.expected.append("Content Security Policy")
    assert page.evaluate("window.hurt") is None
    assert any("Content Security Policy" in complaint for complaint in page.complaints)
