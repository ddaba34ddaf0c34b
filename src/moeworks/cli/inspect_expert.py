"""`moeworks inspect TRACE --expert` and `--map`: the card of an expert, and one number for each of all experts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeworks.cli.output import print_json, print_table

if TYPE_CHECKING:
    from moeworks.find import Scores
    from moeworks.view.expert_map import MapBy

__all__ = ["show_expert", "show_map"]


def show_expert(
    source: str, address: str, *, scores: list[Path], model: str, tokenizer: Path | None, seed: int, json: bool
) -> None:
    """Print an expert's card; a model that is named is loaded to decode what the expert points to."""
    from moeworks.cli.options import open_engine
    from moeworks.cli.trace_show import decoder_of
    from moeworks.errors import BadData
    from moeworks.trace import Trace
    from moeworks.view.cards import check_expert, expert_card

    trace = Trace.open(source)
    at = check_expert(trace, address)
    files = _scores(scores)
    engine = None
    if model:
        engine = open_engine(model, "", device="", dtype="")
        if trace.header.model is not None and engine.identity.weight_hash != trace.header.model.weight_hash:
            raise BadData(f"{model} is not the model of {source}: its weights are others.")
    card = expert_card(
        trace, at, decoder=decoder_of(trace, tokenizer), engine=engine, scores=files, seed=seed
    )  # fmt: skip
    if json:
        print_json(card)
    else:
        _print_card(card)


def show_map(
    source: str,
    by: MapBy,
    *,
    label: str,
    value: str,
    scores: list[Path],
    where: str,
    top: int,
    seed: int,
    json: bool,
) -> None:
    """Print the map: with JSON every expert, else those of the largest values."""
    from moeworks.errors import BadData
    from moeworks.trace import Trace
    from moeworks.view.expert_map import expert_map, map_in_words
    from moeworks.where import Where

    if len(scores) > 1:
        raise BadData("a map shows one scores file; give --scores once.")
    if bool(scores) != (by == "score"):
        raise BadData("--map score and --scores FILE belong together.")
    table = expert_map(
        Trace.open(source), by=by, label=label, value=value, where=Where.parse(where), seed=seed,
        scores=next(iter(_scores(scores).values()), None),
    )  # fmt: skip
    if json:
        facts = {"trace": source, "by": by, "label": label or None, "value": value or None, "where": where}
        print_json({**facts, "seed": seed, "reading": map_in_words(by), "rows": table.to_pylist()})
        return
    rows = [row for row in table.to_pylist() if row["value"] is not None]
    rows.sort(key=lambda row: (-row["value"], row["layer"], row["expert"]))
    print_table(
        ["expert", "value", "low", "high", "chance", "passes", "protected"],
        [
            [f"L{row['layer']}.E{row['expert']}", row["value"], row["low"], row["high"], row["chance"],
             _word(row["passes"]), _word(row["protected"])]
            for row in rows[:top]
        ],
    )  # fmt: skip
    print(f"\nThe {min(top, len(rows))} largest of {table.num_rows} experts; --json has all. {map_in_words(by)}.")


def _scores(paths: list[Path]) -> dict[str, Scores]:
    from moeworks.find import Scores

    return {str(path): Scores.load(path) for path in paths}


def _print_card(card: dict[str, Any]) -> None:
    protected = ", protected: a super expert" if card["protected"] else ""
    print(
        f"{card['address']}: runs for {_number(card, 'load')} of the tokens, chance {card['chance']:.3f}{protected}\n"
    )
    if card["contexts"]:
        print(f"Largest weights{'; no text: ' + card['no_text'] if card['no_text'] else ''}:")
        for one in card["contexts"]:
            weight = "" if one["weight"] is None else f"{one['weight']:.3f}  "
            text = f"token {one['id']}" if card["no_text"] else _context(one)
            print(f"  {weight}row {one['row']}: {text}")
    for name, values in card["labels"].items():
        print(f"\nRates by {name}; chance {values[0]['chance']:.3f}, if {name} did not matter:")
        for row in values[:12]:
            print(f"  {row['value']}: {_number(row, 'rate')}")
        if len(values) > 12:
            print(f"  and {len(values) - 12} more; see --json")
    if card["partners"]:
        print("\nRuns together with, lift (chance: sets drawn at random at these loads):")
        for row in card["partners"]:
            print(f"  {row['address']}: {_number(row, 'lift')}, chance {row['chance']:.3f}")
    print()
    for row in card["decoded"] or ():
        print(f"{row['vector']} points to {' '.join(map(repr, row['tokens']))}")
    if card["decoded_reason"]:
        print(f"Not decoded: {card['decoded_reason']}.")
    for name, row in card["scores"].items():
        test = "no test" if row["passes"] is None else "passes" if row["passes"] else "does not pass"
        print(f"{name}: {row['contrast']} by {row['method']}, score {_number(row, 'score')}, {test}")
    if card["replicated"]:
        claim = card["replicated"]
        print(
            f"Runs {claim['direction']} for {claim['contrast']} in {len(claim['passing'])} of {claim['of']} tested "
            f"scores; {'survives' if claim['survives'] else 'does not survive'} replication."
        )


def _context(one: dict[str, Any]) -> str:
    before, token, after = (repr(one[name])[1:-1] for name in ("before", "token", "after"))
    return f"{before}[{token}]{after}"


def _number(row: dict[str, Any], name: str) -> str:
    interval = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row[name]:.3f}{interval}"


def _word(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"
