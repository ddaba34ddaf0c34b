"""`moeworks edit`: score → plan → preview → apply → verify; one file a command."""

import typer

from moeworks.cli.edit import (
    apply,
    compress,
    dose,
    export,
    merge_statistics,
    plan,
    preview,
    ranks,
    repair,
    score,
    unlearn,
    upcycle,
    verify,
)

__all__ = ["app"]

app = typer.Typer(
    name="edit",
    help="Cut, merge, recombine and compress experts: score, plan, preview, apply, verify.",
    no_args_is_help=True,
)
for name, function in (
    ("score", score.command),
    ("merge-statistics", merge_statistics.command),
    ("plan", plan.command),
    ("export", export.command),
    ("dose", dose.command),
    ("preview", preview.command),
    ("apply", apply.command),
    ("verify", verify.command),
    ("repair", repair.command),
    ("unlearn", unlearn.command),
    ("ranks", ranks.command),
    ("compress", compress.command),
    ("upcycle", upcycle.command),
):
    app.command(name)(function)
