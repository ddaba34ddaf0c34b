"""vLLM's own OpenAI server with the plug-in, as `moeworks serve --engine vllm` starts it: the suite of all servers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from moeworks.artefact import ModelIdentity
from moeworks.plan import save_plan
from moeworks.plan.schema import Mask, TopK
from moeworks.where import Where

NEEDS_VLLM = True
pytest.importorskip("fastapi")

from helpers.servers import Served, signature  # noqa: E402
from serve.client_suite import NEW, PROMPT, ClientSuite, client_of, ids_of, runs_always  # noqa: E402

CONTEXT = 128
START = 900  # seconds, on a machine that does other things too


@pytest.fixture(scope="module")
def served(
    checkpoint: Callable[[str], Path], reference_of: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    identity: ModelIdentity = reference_of("qwen3_moe").identity
    folder = tmp_path_factory.mktemp("served")
    plans = {f"expert-{number}": signature(identity, number) for number in range(2)}
    words = []
    for name, plan in plans.items():
        save_plan(plan, folder / f"{name}.json")
        words += ["--plan", f"{name}={folder / name}.json"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = ["--enforce-eager", f"--max-model-len={CONTEXT}", "--max-num-seqs=16", "--block-size=32"]
    given += ["--disable-uvicorn-access-log", "--max-logprobs=20", "--no-async-scheduling"]
    command = [
        sys.executable,
        "-c",
        "from moeworks.cli import main; main()",
        "serve",
        str(checkpoint("qwen3_moe")),
        "--engine",
        "vllm",
        *words,
    ]
    command += [
        "--port",
        str(port),
        "--keep-traces",
        "8",
        "--dtype",
        "float32",
        *(f"--vllm-arg={one}" for one in given),
    ]
    log = folder / "log"
    with log.open("wb") as out:
        environment = {**os.environ, "MOEWORKS_API_KEY": "secret", "OMP_NUM_THREADS": "1"}
        environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + START
        while not _healthy(url):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < until, log.read_text()[-4000:]
            time.sleep(1)
        yield Served(url, identity, CONTEXT, plans, key="secret")
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with client_of(served) as client:
        yield client


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class TestVllm(ClientSuite):
    """The suite, and what is vLLM's own."""

    def test_the_field_travels_in_vllm_xargs_too(self, client: Any, served: Served) -> None:
        import json

        answer = client.completions.create(
            model=served.base,
            prompt=PROMPT,
            max_tokens=NEW,
            temperature=0,
            extra_body={"vllm_xargs": {"moeworks": json.dumps({"plan": "expert-1", "record": {}})}},
        )
        assert runs_always(answer, served, 1)

    def test_what_vllm_cannot_do_gets_400(self, client: Any, served: Served) -> None:
        first = served.identity.layers[0]
        wrong: dict[str, Any] = {
            "top_k": TopK(k=first.top_k + 1),
            "token": Mask(experts=(f"L{first.layer}.E0",), where=Where(token=(3,))),
        }
        for words, operation in wrong.items():
            plan = signature(served.identity, 0).model_copy(update={"operations": (operation,)})
            with pytest.raises(openai.BadRequestError, match=words):
                self.complete(client, served, plan=plan.model_dump(mode="json", exclude_none=True))
        with pytest.raises(openai.BadRequestError, match="one choice"):
            self.complete(client, served, record={}, more={"n": 2})
        assert self.complete(client, served).choices[0].text

    def test_plans_at_run_time(self, client: Any, served: Served) -> None:
        plan = signature(served.identity, 2)
        document = plan.model_dump(mode="json", exclude_none=True)
        added = client.post("/../moeworks/plans", cast_to=object, body={"name": "third", "plan": document})
        assert added["name"] == "third"
        assert runs_always(self.complete(client, served, "third", record={}), served, 2)
        assert client.post("/../moeworks/plans/validate", cast_to=object, body={"plan": "third"})["valid"]
        client.delete("/../moeworks/plans/third", cast_to=object)
        with pytest.raises(openai.NotFoundError, match="third"):
            self.complete(client, served, "third")

    def test_nobody_gets_in_without_the_key(self, served: Served) -> None:
        for path in ("/moeworks/plans", "/v1/models"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{served.url}{path}")
            assert refused.value.code == 401

    def test_routes_are_those_of_transformers(
        self, client: Any, served: Served, reference_of: Any, tmp_path: Any
    ) -> None:
        from moeworks.examples import Example

        engine = reference_of("qwen3_moe")
        answer = self.complete(client, served, "expert-0", record={})
        trace = engine.record([Example(text=PROMPT)], tmp_path / "t", plan=served.plans["expert-0"], generate=NEW)
        expected = np.stack([trace.ids(layer) for layer in trace.layers], 1)
        np.testing.assert_array_equal(np.sort(ids_of(answer, served)), np.sort(expected))
