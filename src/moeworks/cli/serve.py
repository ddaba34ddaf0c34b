"""`moeworks serve`: an OpenAI-compatible server in which every plan is a model name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from moeworks.cli.options import Device, Dtype, Model

LIMITS = "Limits"


def command(
    model: Model,
    plan: Annotated[
        list[str] | None,
        typer.Option("--plan", metavar="NAME=PLAN", help="A plan file and the model name it gets; may be repeated."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; others than loopback need a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="MOEWORKS_API_KEY", help="Key that clients must send; health needs none."),
    ] = None,
    keep_traces: Annotated[
        int,
        typer.Option("--keep-traces", min=0, help="Answers whose routes can be downloaded; they are private as text."),
    ] = 0,
    max_body_bytes: Annotated[
        int, typer.Option("--max-body-bytes", min=1024, rich_help_panel=LIMITS, help="Of a request.")
    ] = 4 * 2**20,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", min=1, rich_help_panel=LIMITS, help="Requests at once; more get 503.")
    ] = 256,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=0, rich_help_panel=LIMITS, help="Of a choice; 0: what fits.")
    ] = 0,
    max_choices: Annotated[
        int, typer.Option("--max-choices", min=1, rich_help_panel=LIMITS, help="Of an answer, over all prompts.")
    ] = 16,
    max_plans: Annotated[
        int, typer.Option("--max-plans", min=1, rich_help_panel=LIMITS, help="Plans known by name at once.")
    ] = 64,
    max_record_bytes: Annotated[
        int, typer.Option("--max-record-bytes", min=0, rich_help_panel=LIMITS, help="Of the routes in an answer.")
    ] = 16 * 2**20,
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", min=0.1, rich_help_panel=LIMITS, help="Of a request, waiting included.")
    ] = 600.0,
    grace_seconds: Annotated[
        float,
        typer.Option("--grace-seconds", min=0, rich_help_panel=LIMITS, help="For running requests when stopped."),
    ] = 10.0,
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option("--engine", help="What runs the model; vllm is for many users.")
    ] = "transformers",
    vllm_arg: Annotated[
        list[str] | None,
        typer.Option("--vllm-arg", help="With vllm: an argument of its server, as in --vllm-arg=--max-model-len=512."),
    ] = None,
    device: Device = "",
    dtype: Dtype = "",
) -> None:
    """Serve a model over the OpenAI API; every plan is a model name beside `base`."""
    from moeworks.errors import BadData
    from moeworks.plan import load_plan
    from moeworks.serve import Limits, open_model, serve

    plans = {name: load_plan(path) for name, path in named_files(plan or []).items()}
    options = {name: value for name, value in {"device": device, "dtype": dtype}.items() if value}
    limits = Limits(
        body_bytes=max_body_bytes,
        waiting=max_waiting,
        new_tokens=max_new_tokens,
        choices=max_choices,
        plans=max_plans,
        record_bytes=max_record_bytes,
        seconds=max_seconds,
        grace_seconds=grace_seconds,
    )
    if vllm_arg and engine != "vllm":
        raise BadData("--vllm-arg is for --engine vllm; leave it out.")
    if engine == "vllm":
        if device:
            raise BadData("vLLM chooses its device itself; leave out --device.")
        from moeworks.engines.vllm.server import become_server

        become_server(
            model,
            plans,
            host=host,
            port=port,
            key=api_key or "",
            dtype=dtype,
            limits=limits,
            keep_traces=keep_traces,
            arguments=vllm_arg or (),
        )
    serve(
        open_model(model, **options),
        plans,
        host=host,
        port=port,
        key=api_key,
        limits=limits,
        keep_traces=keep_traces,
    )


def named_files(words: list[str]) -> dict[str, Path]:
    """Read NAME=PLAN, each name once."""
    from moeworks.errors import BadData

    named: dict[str, Path] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not (equals and name and path):
            raise BadData(f"'{word}' names no plan; write --plan name=plan.json.")
        if name in named:
            raise BadData(f"two plans are called '{name}'; give each its own name.")
        named[name] = Path(path)
    return named
