"""How soon the page shows the text of a long trace, and how evenly it scrolls, in a real browser; prints JSON.

Each round opens the page in a fresh context; the time is from the navigation to the first token's painting. Then the
wheel is turned over the text, a step a frame, and over a page that does nothing but scroll, in turn. Targets: 2 s, and
30 frames a second. `--logits` also keeps the routers' logits, as the first look does, so that margins are shown.

    python benchmarks/view_page.py [--rows 200000] [--rounds 5] [--logits]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from playwright.sync_api import sync_playwright

from helpers.page_speed import BARE, WATCH, first_token, frames, long_trace, scrolled, served


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--logits", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    opened: list[float] = []
    text: list[float] = []
    bare: list[float] = []
    path = os.environ.get("CHROMIUM") or ("/usr/bin/chromium" if Path("/usr/bin/chromium").exists() else None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        trace = long_trace(Path(folder) / "trace", options.rows, logits=options.logits)
        with served(trace) as url:
            browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
            for _ in range(options.rounds):
                context = browser.new_context(viewport={"width": 1280, "height": 800})
                page: Any = context.new_page()
                page.add_init_script(WATCH)
                opened.append(first_token(page, url))
                page.wait_for_timeout(500)
                text += scrolled(page)
                watched = page.evaluate("window.watch")
                page.goto("about:blank")
                page.set_content(BARE)
                bare += scrolled(page)
                context.close()
            version = browser.version
            browser.close()
    report = {
        "first_token_ms": {
            "first_round": round(opened[0]),
            "median": round(statistics.median(opened)),
            "largest": round(max(opened)),
            "target_at_most": 2000,
        },
        "scrolling": {**frames(text), "target_frames_a_second": 30},
        "scrolling_a_bare_page": frames(bare),
        "rows_asked_for": watched["rows"],
        "elements_at_most": watched["most"],
        "conditions": {
            "rows": options.rows,
            "logits": options.logits,
            "rounds": options.rounds,
            "browser": f"Chromium {version}, no window, 1280 × 800",
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "machine": platform.machine(),
        },
    }
    print(json.dumps(report, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
