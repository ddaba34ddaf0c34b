"""`moeworks edit`: score → plan → preview → apply → verify; one file a command."""

import typer

from moeworks.cli.edit import apply, compress, dose, export, plan, preview, ranks, repair, unlearn, verify

__all__ = ["app"]

app = typer.Typer(
    name="edit",
    help="Cut, merge, recombine and compress experts: score, plan, preview, apply, verify.",
    no_args_is_help=True,
)
for name, function in (
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
):
    app.command(name)(function)
