"""The program itself: it says where it is, ends with one line, and a killed server leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import openai
import pytest
from httpx2 import Client

from helpers.servers import signature
from moeworks.plan import save_plan
from moeworks.serve import open_model

COMMAND = "import torch; torch.set_num_threads(1); from moeworks.cli import main; main()"


@contextmanager
def program(*arguments, port=0):
    """Run `moeworks serve fake`; yield the process and its address."""
    words = [sys.executable, "-c", COMMAND, "serve", "fake", "--port", str(port), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MOEWORKS_API_KEY": "secret"}
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stderr.readline()
            assert line.startswith("serving fake at http://127.0.0.1:"), line + process.stderr.read()
            yield process, line.split()[3].removesuffix("/v1,")
        finally:
            process.kill()


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.json"
    save_plan(signature(open_model("fake").identity, 3), path)
    return path


@pytest.mark.slow  # starts the program twice
def test_killed_in_the_middle_of_a_stream_and_started_again(plan):
    with program("--plan", f"three={plan}") as (process, url):
        port = int(url.rsplit(":", 1)[1])
        with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
            stream = client.completions.create(
                model="three", prompt="Hi", max_tokens=900, stream=True, logit_bias={"256": -100}
            )
            next(iter(stream))
            process.send_signal(signal.SIGKILL)
            with pytest.raises(Exception, match=r"(?i)peer|connection|incomplete"):
                for _ in stream:
                    pass
    with program("--plan", f"three={plan}", port=port) as (process, url):
        with openai.OpenAI(base_url=f"{url}/v1", api_key="secret") as client:
            assert [model.id for model in client.models.list()] == ["base", "three"]
            assert client.completions.create(model="three", prompt="Hi", max_tokens=2).choices[0].text
        with Client(base_url=url, headers={"host": "evil.example"}) as web:
            assert web.get("/health").status_code == 400  # a name that a page in a browser made point here
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (out, err, process.returncode) == ("", "stopped\n", 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--plan", "x"], "write --plan name=plan.json"),
        (["--plan", "x=/nowhere/plan.json"], "cannot read /nowhere/plan.json"),
        (["--host", "0.0.0.0"], "--api-key"),
    ],
)
def test_mistakes_are_one_sentence(arguments, sentence, capsys, monkeypatch):
    from moeworks.cli import main

    monkeypatch.delenv("MOEWORKS_API_KEY", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "fake", "--port", "0", *arguments])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_a_port_that_is_taken_is_named(capsys):
    from moeworks.cli import main

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
        main(["serve", "fake", "--port", str(taken.getsockname()[1])])
    assert "choose another --port" in capsys.readouterr().err
