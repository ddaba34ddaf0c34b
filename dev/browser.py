"""See that there is a Chromium for the tests of the page, found or installed; say so if there is none.

Not an error: the tests are then skipped, each with the reason.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

SECONDS = 300  # for one way of getting it


def main() -> None:
    """Find a browser or install one."""
    if starts():
        return
    print("installing Chromium for the tests of the page (once)", flush=True)
    for commands in ways():
        if all(succeeds(command) for command in commands) and starts():
            return
    print("no Chromium could be installed: the browser tests will be skipped; install chromium or set CHROMIUM")


def ways() -> Iterator[list[list[str]]]:
    """Yield the commands of each way to get a Chromium here."""
    if shutil.which("apt-get") and os.geteuid() == 0:
        yield [["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]]
    yield [[sys.executable, "-m", "playwright", "install", "--only-shell", "chromium"]]


def succeeds(command: list[str]) -> bool:
    """Say whether a command ends well within its time; what it prints is of no interest."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        ran = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
        )
        return ran.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def starts() -> bool:
    """Say whether one of the browsers that the tests look for starts."""
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as driver:
        for path in (os.environ.get("CHROMIUM"), "/usr/bin/chromium", None):
            try:
                driver.chromium.launch(executable_path=path or None, args=["--no-sandbox"]).close()
            except Error:
                continue
            return True
    return False


if __name__ == "__main__":
    main()
