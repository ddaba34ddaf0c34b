"""The tour of docs/serving.md on vLLM's server runs as printed; its client blocks are those of the embedded server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from helpers.servers import signature
from moeworks.examples import Example
from moeworks.plan import save_plan

NEEDS_VLLM = True
PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
BLOCK = r"^<!-- {} -->\n```(bash|python)\n(.*?)^```\n"
MOEWORKS = ".venv-vllm/bin/moeworks"
START = 900  # seconds, on a machine that does other things too


def blocks(mark: str) -> list[tuple[str, str]]:
    return re.findall(BLOCK.format(mark), PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's commands use curl")
def test_the_tour_runs(reference_of: Any, tmp_path: Path) -> None:
    engine = reference_of("lab")
    save_plan(signature(engine.identity, 0), tmp_path / "no-french.json")
    rows = len(engine.reader.encode(Example(text="Le roi"))[0]) + 15  # 16 new tokens, the last of which is not routed
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    ((_, start),) = blocks("vllm server")
    assert start.startswith(f"{MOEWORKS} serve lab --engine vllm")
    _, *clients = blocks("served")  # the first one starts the embedded server
    own = blocks("vllm client")
    assert clients
    assert own
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    log = tmp_path / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            ["bash", "-c", f"exec {_here(start, port)}"], cwd=tmp_path, stdout=out, stderr=out, env=environment
        )
    try:
        until = time.monotonic() + START
        while not _healthy(port):
            assert server.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < until, log.read_text()[-4000:]
            time.sleep(1)
        printed = ""
        for kind, code in (*clients, *own):
            code = _here(code, port)
            command = ["bash", "-ec", code] if kind == "bash" else [sys.executable, "-c", code]
            ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
            assert ran.returncode == 0, ran.stderr
            printed += ran.stdout
        for words in (
            '"id":"no-french"',
            '"object":"text_completion"',
            "'phase': 0, 'L0.ids'",
            "moeworks_routing_tokens",
            "chance: as many tokens routed evenly",  # what inspect says of the trace
            f"{rows} rows",  # of the field in vllm_xargs
        ):
            assert words in printed, (words, printed)
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _here(code: str, port: str) -> str:
    return code.replace("8000", port).replace(f"{MOEWORKS} ", f"{sys.executable} -m moeworks ")


def _healthy(port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
