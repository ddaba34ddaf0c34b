"""Golden routing vectors: what stock routers decide for given logits, for authors of engines to test against.

    python -m moeworks.families.golden --write docs/golden

One JSON file for each rule that some family has: the rule as data and in words, logits, selection bias and factors, and
the ids and weights that the family's own router made of them, in float32. Nothing of moeworks is needed to read them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from moeworks.artefact import replace_file
from moeworks.contract import Contract, margins, selection_scores
from moeworks.contract_words import describe
from moeworks.errors import Unsupported
from moeworks.families.discover import discover
from moeworks.families.observe import observe
from moeworks.families.router import Router
from moeworks.families.tiny import families, tiny_model

__all__ = ["FORMAT", "golden", "write_golden"]

FORMAT = "moeworks.golden"
TOKENS = 16
DRAWN = 64  # tokens that are decided; those whose choice hangs on rounding are left out


def golden(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return file name → document for every distinct rule of some families, tried on their tiny random models."""
    found: dict[Contract, dict[str, Any]] = {}
    for family in names:
        try:
            routers = discover(tiny_model(family))
        except Unsupported:
            continue
        for router in routers:
            if router.contract is None or router.contract.hashed:
                continue
            if router.contract in found:
                listed = found[router.contract]["families"]
                listed += [family] if family not in listed else []
                continue
            vectors = _vectors(router, router.contract)
            if vectors is not None:
                found[router.contract] = {"families": [family], **vectors}
    return {_name(contract, document): document for contract, document in found.items()}


def _vectors(router: Router, contract: Contract) -> dict[str, Any] | None:
    """Return what a router decided for random hidden states, clear decisions alone; None if they are too few."""
    observed = observe(router, tokens=DRAWN, seed=1)
    logits = observed.logits.float().numpy()  # (n, E)
    bias = None if observed.bias is None else observed.bias.float().numpy()
    scale = None if observed.expert_scale is None else observed.expert_scale.float().numpy()
    clear = np.flatnonzero(margins(selection_scores(logits, contract, bias=bias), contract) > 1e-3)[:TOKENS]
    if len(clear) < TOKENS // 2:
        return None
    return {
        "format": FORMAT,
        "version": 1,
        "rule": describe(contract),
        "contract": dataclasses.asdict(contract),
        "made_by": f"{type(router.module).__name__} of transformers {transformers.__version__}",
        "selection_bias": None if bias is None else bias.tolist(),
        "expert_scale": None if scale is None else scale.tolist(),
        "logits": logits[clear].tolist(),
        "ids": observed.ids[clear].tolist(),
        "weights": observed.weights[clear].float().tolist(),
    }


def _name(contract: Contract, document: Mapping[str, Any]) -> str:
    """Return a file name that tells rules apart: the first family that has it, and what its contract does."""
    parts = [document["families"][0], contract.score]
    parts += ["bias"] * contract.bias + [f"groups{contract.groups}"] * (contract.groups > 1)
    parts += ["renormalised"] * contract.renormalise + ["top-k-first"] * (contract.order == "top_k_first")
    return re.sub(r"[^\w.-]", "-", "-".join(parts)) + ".json"


def write_golden(folder: Path, names: Iterable[str]) -> list[Path]:
    """Write the files and an index, `README.md`; return the files' paths."""
    documents = golden(names)
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        if old.name not in documents:
            old.unlink()
    paths = []
    for name, document in sorted(documents.items()):
        paths.append(folder / name)
        with replace_file(paths[-1]) as temporary:
            temporary.write_text(_laid_out(document), encoding="utf-8")
    with replace_file(folder / "README.md") as temporary:
        temporary.write_text(_index(documents), encoding="utf-8")
    return paths


def _laid_out(document: Mapping[str, Any]) -> str:
    """Return JSON with one row of a matrix a line, so that changes can be reviewed."""
    lines = []
    for name, value in document.items():
        if isinstance(value, list) and value and isinstance(value[0], list):
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            lines.append(f' "{name}": [\n{rows}\n ]')
        else:
            lines.append(f' "{name}": {json.dumps(value)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _index(documents: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "# Golden routing vectors",
        "",
        "For authors of inference engines: what the routers of stock transformers decide for given logits. Each file",
        "holds one rule, as data (`contract`) and in words (`rule`), 16 rows of raw `logits` (before any score",
        "function), `selection_bias` and `expert_scale` where the rule has them, and the `ids` and `weights` that the",
        "family's own router made of them in float32. Rows whose choice hangs on rounding are left out, so that ids",
        "must be equal as sets; the order of slots is the router's own. Weights must agree to 1e-6. A check needs no",
        "moeworks:",
        "",
        "    case = json.load(open(name))",
        "    ids, weights = my_router(case['logits'], case['selection_bias'], …)",
        "",
        "The fields of `contract` are explained in [moeworks.contract](../../src/moeworks/contract.py), which is numpy",
        "alone and decides all of these files. Made by `python -m moeworks.families.golden --write docs/golden`.",
        "",
        "| file | rule | families |",
        "|---|---|---|",
    ]
    for name, document in sorted(documents.items()):
        lines.append(f"| [{name}]({name}) | {document['rule']} | {', '.join(document['families'])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m moeworks.families.golden", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("families", nargs="*", help="only these")
    parser.add_argument("--write", type=Path, required=True, help="the folder")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="transformers")
    paths = write_golden(arguments.write, arguments.families or families())
    print(f"{len(paths)} files in {arguments.write}")


if __name__ == "__main__":
    main()
