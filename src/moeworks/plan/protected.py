"""Super experts that are known of a model, so that plans can leave them alone: records by the hash of its weights.

Records of the lab models are part of the package; those of other models lie in the user's cache folder
(`$XDG_CACHE_HOME/moeworks/super-experts`, else `~/.cache/moeworks/super-experts`), one JSON file for each weight hash,
written by `moeworks.find.super_experts`. They are results that were measured, never guesses.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeworks.address import Address, parse_addresses
from moeworks.artefact import ModelIdentity, problems_of, replace_file
from moeworks.errors import BadData, MoeworksError

__all__ = ["Protect", "SuperExpertRecord", "cache_folder", "known_super_experts", "protection", "remember"]

Protect = Literal["super", "none"] | str | Iterable[Address]


class SuperExpertRecord(BaseModel):
    """What was measured of one model's super experts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["moeworks.super_experts"] = "moeworks.super_experts"
    version: Literal[1] = 1
    model: str = Field(description="the model's name when it was measured")
    weight_hash: str
    experts: tuple[str, ...] = Field(description="addresses of the super experts, the strongest first")
    settings: dict[str, Any] = Field(description="rule and thresholds, number of tokens, hash of the texts")

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The super experts."""
        return tuple(parse_addresses(self.experts))


def cache_folder() -> Path:
    """Return the folder of what was measured of the user's models, which need not be there."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "moeworks" / "super-experts"


def known_super_experts(weight_hash: str) -> SuperExpertRecord | None:
    """Return what is known of a model's super experts, the user's own measurement first; None if nothing is.

    Raises:
        BadData: the record is there and cannot be read.
    """
    name = f"{weight_hash}.json"
    shipped = Path(str(files("moeworks.lab"))) / "super-experts" / name
    for path in (cache_folder() / name, shipped):
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise BadData(f"cannot read {path}: {error.strerror}; mend it, or pass protect='none'.") from None
        try:
            record = SuperExpertRecord.model_validate_json(text)
        except (ValidationError, MoeworksError) as error:
            reason = problems_of(error) if isinstance(error, ValidationError) else str(error)
            raise BadData(f"{path} is no record of super experts ({reason}); delete it and measure again.") from None
        if record.weight_hash == weight_hash:
            return record
    return None


def remember(record: SuperExpertRecord, folder: str | Path | None = None) -> Path:
    """Write a record to the user's cache folder, or to another, and return its file."""
    path = Path(folder or cache_folder()) / f"{record.weight_hash}.json"
    with replace_file(path) as temporary:
        temporary.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return path


def protection(identity: ModelIdentity, protect: Protect) -> tuple[tuple[Address, ...], str]:
    """Return the experts that a plan protects, and how that came about, for its provenance.

    Args:
        identity: the model.
        protect: `super` for the super experts that are known of it, `none`, or addresses.
    """
    if protect == "none":
        return (), "none"
    if protect != "super":
        given = parse_addresses(protect) if isinstance(protect, str) else tuple(protect)
        return tuple(given), "as given"
    record = known_super_experts(identity.weight_hash)
    if record is None:
        return (), "super experts: not measured"
    return record.addresses, f"super experts: {', '.join(record.experts) or 'measured, there are none'}"
