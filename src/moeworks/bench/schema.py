"""What the league found, as data: a cell per method, probe and seed, in one JSON document with a version."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeworks.artefact import problems_of, replace_file
from moeworks.errors import BadData
from moeworks.plan.evidence import Interval, Verdict

__all__ = [
    "BudgetName",
    "DetectCell",
    "EditCell",
    "Kind",
    "League",
    "Settings",
    "SteerCell",
    "load_league",
    "save_league",
]

BudgetName = Literal["quick", "full"]
# planted: some expert carries the behaviour. uncarried: the behaviour is there and no expert carries it.
# null: the two sides do not differ in anything that routers hear. probe: a real probe, its truth not known.
Kind = Literal["planted", "uncarried", "null", "probe"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class _Cell(_Frozen):
    method: str = Field(description="its name in the table: the registered name, and what is done differently")
    model: str
    probe: str
    kind: Kind
    seed: int
    refused: str = Field("", description="why there is no result; empty where there is one")
    seconds: float = 0.0


class DetectCell(_Cell):
    """One method's scores of one probe, held against the truth where it is known."""

    unit: Literal["expert", "neuron"] = "expert"
    reads: str = Field("", description="runs, weights, probabilities, or the model itself")
    null: str = Field("", description="the null of the method, or none")
    budget: int = Field(0, description="experts that are looked at whether they pass or not")
    top: tuple[str, ...] = Field((), description="so many experts of the largest scores, strongest first")
    claims: tuple[str, ...] = Field((), description="experts of the contrast side that pass")
    other_claims: int = Field(0, description="experts of the other side that pass")
    sought: tuple[str, ...] = Field((), description="experts that carry the behaviour")
    confounded: tuple[str, ...] = Field((), description="experts planted to follow something else")
    neuron_claims: int = Field(0, description="neurons that pass; of scores of neurons")
    neuron_hits: int = Field(0, description="neurons among them that write the behaviour")
    stability: float | None = Field(None, description="mean over the sought, or else over the top")

    @property
    def hits(self) -> int:
        """Sought experts among the claims."""
        return len(set(self.claims) & set(self.sought))

    @property
    def hits_in_top(self) -> int:
        """Sought experts within the budget."""
        return len(set(self.top) & set(self.sought))


class SteerCell(_Cell):
    """One method's plan on the held-out items of one probe."""

    scores: str = Field("", description="the method that the experts come from")
    policy: str = ""
    turned: tuple[str, ...] = Field((), description="experts, or neurons")
    expected: Literal["up", "down"] = "down"
    before: float | None = None
    effect: Interval | None = None
    excess: Interval | None = Field(None, description="effect minus that of the random plans")
    random: tuple[float, ...] = Field((), description="effect of each matched random plan")
    divergence: float | None = Field(None, description="KL on neutral text, nats a token")
    perplexity: float | None = Field(None, description="on neutral text, times what it was")
    active: float | None = Field(None, description="experts that run for a token, over all layers, under the plan")
    active_before: float | None = None
    verdict: Verdict | None = None


class EditCell(_Frozen):
    """One method's plan at one share, made from one calibration text, carried out in memory."""

    method: str
    kind: str = Field(description="score, search, neurons or grouping")
    model: str
    keep: float
    calibration: str = Field(description="matching: of all languages and domains, as the test; mismatching: English")
    seed: int = 0
    transform: str = ""
    divergence: Interval | None = Field(None, description="KL on neutral text, nats a token")
    agreement: float | None = None
    perplexity: dict[str, float] = Field(default_factory=dict, description="by label, times what it was")
    before: dict[str, float] = Field(default_factory=dict, description="perplexity of the whole model by label")
    probes: dict[str, tuple[float, float]] = Field(default_factory=dict, description="metric before and after")
    planning: float = Field(0.0, description="seconds from statistics to plan")
    refused: str = Field("", description="why there is no result; empty where there is one")
    seconds: float = 0.0


class Settings(_Frozen):
    """How the cells of one kind and one model were made."""

    budget: BudgetName
    seeds: int
    null_seeds: int
    weights: str = Field("", description="hash of the model's weights; empty for planted models, one for each seed")
    versions: dict[str, str] = Field(default_factory=dict)
    sizes: dict[str, int | None] = Field(default_factory=dict)


class League(_Frozen):
    """All cells; the two parts, and the models in each, are made apart and may have different settings."""

    format: Literal["moeworks.league"] = "moeworks.league"
    version: Literal[1] = 1
    moeworks: str
    detect_settings: dict[str, Settings] = Field(default_factory=dict, description="by model")
    steer_settings: dict[str, Settings] = Field(default_factory=dict, description="by model")
    detect: tuple[DetectCell, ...] = ()
    steer: tuple[SteerCell, ...] = ()
    edit_settings: dict[str, Settings] = Field(default_factory=dict, description="by model")
    edit: tuple[EditCell, ...] = ()


def save_league(league: League, path: Path) -> None:
    """Write a league as JSON, whole or not at all."""
    with replace_file(path) as temporary:
        temporary.write_text(league.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")


def load_league(path: str | Path) -> League:
    """Read what `save_league` wrote.

    Raises:
        BadData: there is no such file, or it is not a league of this version.
    """
    try:
        return League.model_validate_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise BadData(f"there is no file {path}; make it with: moeworks bench detect.") from None
    except ValidationError as error:
        raise BadData(
            f"{path} is not a league that this moeworks reads: {problems_of(error)}; make it again."
        ) from None
