"""Starts vLLM's own OpenAI server with the plug-in, plans and limits: this process becomes that server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from moeworks.engines.vllm.books import FILES, LIMITS, LOCAL, TRACES, limits_as_text
from moeworks.engines.vllm.identity import model_folder
from moeworks.engines.vllm.info import make_folder
from moeworks.engines.vllm.meter import METER
from moeworks.engines.vllm.versions import installed, wrong_version
from moeworks.errors import BadData, Unsupported
from moeworks.plan.files import save_plan
from moeworks.serve.limits import Limits

if TYPE_CHECKING:
    from moeworks.plan import Plan

__all__ = ["become_server", "command_of"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MODULE = "vllm.entrypoints.openai.api_server"


def become_server(
    model: str,
    plans: Mapping[str, Plan] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str = "",
    dtype: str = "",
    limits: Limits | None = None,
    keep_traces: int = 0,
    arguments: Sequence[str] = (),
) -> None:
    """Replace this process by vLLM's server; it ends with Ctrl-C or SIGTERM.

    Args:
        model: `lab`, a folder or a Hub id.
        plans: name → plan; each name is a model of the API beside `base`.
        host, port: where to listen; others than loopback need a key.
        key: what clients must send.
        dtype: of the weights; as stored without.
        limits: bounds of bodies, plans and times.
        keep_traces: answers whose routes are kept for `/moeworks/trace`; 0 keeps none.
        arguments: further ones of vLLM's server, such as `--max-model-len=512`.

    Raises:
        Unsupported: vLLM is not installed or of another version.
        BadData: an address that others can reach, without a key.
    """
    if reason := wrong_version(installed()):
        raise Unsupported(reason)
    if host not in LOOPBACK and not key:
        raise BadData(f"{host} can be reached by others: give a key with --api-key, or use 127.0.0.1.")
    folder = make_folder()
    files: dict[str, str] = {}
    for name, plan in (plans or {}).items():
        file = folder / f"plan-{len(files)}.json"
        save_plan(plan, file)
        files[name] = str(file)
    environment = {
        **os.environ,
        "VLLM_PLUGINS": "moeworks",
        "VLLM_NO_USAGE_STATS": os.environ.get("VLLM_NO_USAGE_STATS", "1"),
        FILES: json.dumps(files),
        LIMITS: limits_as_text(limits or Limits()),
        TRACES: str(keep_traces),
        METER: "1",
    }
    if host in LOOPBACK:
        environment[LOCAL] = "1"
    if key:
        environment["MOEWORKS_API_KEY"] = key
    command = command_of(model, host=host, port=port, dtype=dtype, arguments=arguments)
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)


def command_of(model: str, *, host: str, port: int, dtype: str, arguments: Sequence[str]) -> list[str]:
    """Return the command line of vLLM's server."""
    command = [sys.executable, "-m", MODULE, "--host", host, "--port", str(port), "--model", model_folder(model)]
    command += ["--served-model-name", model]
    if dtype:
        command += ["--dtype", dtype]
    return [*command, *arguments]
