"""`moeworks view`: the page that shows traces, and lets one steer a model, in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moeworks.cli.options import Device, Dtype, has_terminal

PAGE = "What is shown besides"


def command(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="A model (`lab`, a folder, a Hub id), traces' folders, or folders that hold traces, scores, plans and "
            "studies. Without any: the lab model.",
            show_default=False,
        ),
    ] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option("--scores", metavar="FILE", rich_help_panel=PAGE, help="A scores file of find; repeatable."),
    ] = None,
    plan: Annotated[
        list[str] | None,
        typer.Option("--plan", metavar="NAME=FILE", rich_help_panel=PAGE, help="A plan and its name; repeatable."),
    ] = None,
    study: Annotated[
        list[Path] | None,
        typer.Option("--study", metavar="DIR", rich_help_panel=PAGE, help="A study's folder; repeatable."),
    ] = None,
    league: Annotated[
        list[Path] | None,
        typer.Option("--league", metavar="DIR", rich_help_panel=PAGE, help="A league of bench; repeatable."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="DIR", rich_help_panel=PAGE, help="Tokenizer of traces without a model."),
    ] = None,
    texts: Annotated[
        int,
        typer.Option(
            "--texts", min=0, help="Texts of each language that a model given without a trace reads first; 0: none."
        ),
    ] = 20,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; others than loopback need a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="8642, or a free one where it is taken; 0: a free one."),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="MOEWORKS_API_KEY", help="Key that the page is opened with.")
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Open no browser; the address is printed.")] = False,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="DIR", help="Write one file that opens from disk, and start no server."),
    ] = None,
    device: Device = "",
    dtype: Dtype = "",
) -> None:
    """Show what routers do in a browser: tokens, experts, layers, comparisons, steering and reports.

    Without a SOURCE it opens the lab model with texts in twelve languages. Ctrl-C stops it. A page can be turned back
    into its texts: it listens on this machine alone unless --host says otherwise, and then wants a key.
    """
    from moeworks.cli.serve import named_files
    from moeworks.plan import load_plan
    from moeworks.view.opening import gather
    from moeworks.view.run import check_host, view

    plans = {name: load_plan(path) for name, path in named_files(plan or []).items()}
    if export is None:
        check_host(host, api_key or "")
    sources = gather(
        source or (),
        more=[*(scores or ()), *(study or ()), *(league or ())],
        tokenizer=tokenizer,
        texts=texts,
        progress=has_terminal(),
        **{name: value for name, value in {"device": device, "dtype": dtype}.items() if value},
    )
    if export is not None:
        from moeworks.view.export import export_page

        for name, one in plans.items():
            sources.add_plan(one, name=name)
        path = export_page(sources, export)
        print(f"Written to {path} ({path.stat().st_size / 2**20:.1f} MB); open it in a browser.")
        return
    view(sources, plans=plans, host=host, port=port, key=api_key or "", open_browser=not no_open)
