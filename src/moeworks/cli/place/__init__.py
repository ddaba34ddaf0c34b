"""`moeworks place`: where experts should lie, simulated on a trace; one file for each kind of question."""

import typer

from moeworks.cli.place import balance, cache, predict, profile, swaps

__all__ = ["app"]

app = typer.Typer(
    name="place",
    help="Caches, prefetching, replicas and batches of experts, simulated on a trace; profiles for other programs.",
    no_args_is_help=True,
)
for name, function in (
    ("cache", cache.command),
    ("predict", predict.command),
    ("gate", predict.gate),
    ("balance", balance.command),
    ("batch", balance.batch),
    ("swaps", swaps.command),
    ("profile", profile.command),
    ("export", profile.export),
):
    app.command(name)(function)
