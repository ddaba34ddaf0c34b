"""`moeworks edit`: score → plan → preview → apply → verify; one file a command."""

import typer

__all__ = ["app"]

app = typer.Typer(
    name="edit",
    help="Cut, merge, recombine and compress experts: score, plan, preview, apply, verify.",
    no_args_is_help=True,
)
