"""The tour of docs/serving.md runs as printed: against a server that its own command starts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.pages import run_page

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
SERVED = re.compile(r"^<!-- served -->\n```(bash|python)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's commands use curl")
def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(PAGE, capsys)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    blocks = [(kind, code.replace("8000", port)) for kind, code in SERVED.findall(PAGE.read_text())]
    (_, start), *rest = blocks
    assert start.startswith("moeworks serve")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(
        ["bash", "-c", f"exec {start}"], stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stderr is not None
            assert f":{port}/v1, plans: no-french" in server.stderr.readline()
            printed = ""
            for kind, code in rest:
                command = ["bash", "-ec", code] if kind == "bash" else [sys.executable, "-c", code]
                ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
                assert ran.returncode == 0, ran.stderr
                printed += ran.stdout
            for words in (
                '"id":"no-french"',
                '"object":"text_completion"',
                "'phase': 0, 'L0.ids'",
                "moeworks_routing_tokens",
                "chance: as many tokens routed evenly",  # what inspect says of the trace
            ):
                assert words in printed
            server.send_signal(signal.SIGINT)
            assert server.stderr.read() == "stopped\n"
        finally:
            server.kill()
