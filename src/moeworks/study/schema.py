"""A study as data: everything its report shows, so that the report can be made again from `study.json` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moeworks.address import Address
from moeworks.artefact import Header, problems_of, replace_file
from moeworks.errors import BadData
from moeworks.plan.evidence import Dose, Verdict
from moeworks.plan.schema import Plan

__all__ = [
    "Budget",
    "Command",
    "Divergence",
    "Load",
    "ProbeResult",
    "RoutingTable",
    "Sample",
    "ScoreColumns",
    "ScoreRow",
    "Settings",
    "Study",
    "StudyVerdict",
    "load_study",
    "save_study",
]

VERSION = 1
StudyVerdict = Literal[Verdict, "nothing found"]
Budget = Literal["quick", "full"]
Number = float | None  # None: not defined for this expert, group or layer


class _Frozen(BaseModel):
    # Infinity is a possible perplexity; as a string it survives JSON, which has no number for it.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class ScoreRow(_Frozen):
    """The score of one expert, with its uncertainty and its null."""

    layer: int
    expert: int
    score: Number = Field(description="contrast rate - against rate, or what the method computes")
    contrast_rate: Number = Field(description="share of the contrast's tokens that this expert runs for")
    against_rate: Number = Field(description="share of the other tokens that this expert runs for")
    low: Number = Field(description="lower end of the bootstrap interval of the score")
    high: Number = Field(description="upper end of the bootstrap interval of the score")
    p: Number = Field(description="p-value under permuted labels, whole documents at a time")
    q: Number = Field(description="p-value after Benjamini-Hochberg")
    stability: Number = Field(description="share of bootstrap samples with the expert among the `top` largest scores")
    passes: bool = Field(description="whether the expert passes the false discovery rate")

    @property
    def address(self) -> Address:
        """The expert's address."""
        return Address(self.layer, self.expert)


class ScoreColumns(_Frozen):
    """All scores of one probe, column by column; one entry an expert."""

    layer: tuple[int, ...]
    expert: tuple[int, ...]
    score: tuple[Number, ...]
    contrast_rate: tuple[Number, ...]
    against_rate: tuple[Number, ...]
    low: tuple[Number, ...]
    high: tuple[Number, ...]
    p: tuple[Number, ...]
    q: tuple[Number, ...]
    stability: tuple[Number, ...]
    passes: tuple[bool, ...]

    @model_validator(mode="after")
    def _same_length(self) -> ScoreColumns:
        lengths = {name: len(getattr(self, name)) for name in type(self).model_fields}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns differ in length: {lengths}")
        return self

    def rows(self) -> list[ScoreRow]:
        """Return one row an expert, in the table's order."""
        names = list(type(self).model_fields)
        columns = zip(*(getattr(self, name) for name in names), strict=True)
        return [ScoreRow.model_construct(**dict(zip(names, values, strict=True))) for values in columns]


class Sample(_Frozen):
    """One prompt and what the model writes after it, without and with the plan."""

    prompt: str
    before: str
    after: str


class Command(_Frozen):
    """One step as it would be typed."""

    step: str
    line: str


class ProbeResult(_Frozen):
    """What the study found for one probe."""

    name: str
    behaviour: str = Field(description="what the model does when it shows the behaviour")
    description: str
    metric: str
    contrast: str = Field(description="the tokens that should show the behaviour, as a where clause")
    against: str = Field(description="the tokens they are compared with, as a where clause")
    where: str = Field("", description="which tokens of either side are compared; empty: all")
    method: str
    alpha: float = Field(description="false discovery rate")
    tokens: tuple[int, int] = Field(description="tokens compared for finding: contrast, against")
    documents: tuple[int, int] = Field(description="documents that have them: contrast, against")
    pairs: int = Field(description="documents that have tokens on both sides")
    null: str = Field(description="what was permuted: labels of documents, or sides of pairs")
    permutations: int = Field(description="permutations for the experts with the smallest p")
    smallest_p: float = Field(description="the smallest p that could come out")
    bootstrap: int = Field(description="samples of documents behind intervals and stability; 0 if too few documents")
    top: int = Field(description="stability looks at so many largest scores")
    scores: ScoreColumns
    trials: tuple[Dose, ...] = Field((), description="numbers of experts tried on the dev split")
    amount: int = Field(0, description="number of experts chosen on dev")
    plan: Plan | None = Field(None, description="the plan with its evidence; none where nothing was found")
    plan_words: str = Field("", description="the plan explained, without its evidence")
    samples: tuple[Sample, ...] = ()
    verdict: StudyVerdict
    reasons: tuple[str, ...] = Field(description="the verdict in words")
    commands: tuple[Command, ...] = ()
    seconds: float = 0.0

    @model_validator(mode="after")
    def _evidence_for_verdict(self) -> ProbeResult:
        if self.verdict == "nothing found":
            if self.plan is not None:
                raise ValueError("a probe for which nothing was found has no plan")
        elif self.plan is None or self.plan.evidence is None:
            raise ValueError(f"the verdict '{self.verdict}' needs a plan with evidence")
        return self


class Divergence(_Frozen):
    """How differently the router treats groups of texts, by group and layer."""

    label: str = Field(description="the label that makes the groups, such as lang")
    base: str = Field(description="the group that the others are compared with")
    groups: tuple[str, ...]
    layers: tuple[int, ...]
    raw: tuple[tuple[Number, ...], ...] = Field(description="(groups, layers): Jensen-Shannon divergence / ln 2")
    normalised: tuple[tuple[Number, ...], ...] = Field(
        description="(groups, layers): divergence / (ln E - mean entropy), arXiv 2510.04694"
    )
    entropy: tuple[tuple[Number, ...], ...] = Field(description="(groups, layers): routing entropy / ln E")
    base_entropy: tuple[Number, ...] = Field(description="(layers,): the same of the base group")


class Load(_Frozen):
    """How evenly one layer's experts are used."""

    layer: int
    experts: int
    evenness: float = Field(description="entropy of the experts' shares / ln E; 1 is perfectly even")
    busiest: float = Field(description="the busiest expert's share of all choices, times the number of experts")
    idle: int = Field(description="experts that no token chose")


class RoutingTable(_Frozen):
    """One diagnostic of routing, or why there is none; its columns are those of `moeworks.stats`."""

    what: str = Field(description="name of the diagnostic, as of `moeworks inspect --what`")
    label: str = Field("", description="the label whose values it tells apart; empty: none")
    base: str = Field("", description="the value that the others are compared with; empty: none")
    reason: str = Field("", description="why there is no table")
    columns: dict[str, tuple[Any, ...]] | None = Field(None, description="column → values; null is not known")


class Settings(_Frozen):
    """What the study was asked to do."""

    budget: Budget
    seed: int
    amounts: tuple[int, ...]
    probes: tuple[str, ...]


class Study(_Frozen):
    """A whole study: all probes on one model."""

    header: Header
    settings: Settings
    probes: tuple[ProbeResult, ...]
    divergence: tuple[Divergence, ...] = ()
    load: tuple[Load, ...] = ()
    load_tokens: int = Field(0, description="tokens that `load` was counted over")
    routing: tuple[RoutingTable, ...] = Field((), description="diagnostics of one trace of the study")
    routing_texts: str = Field("", description="which texts `routing` is of")
    versions: dict[str, str] = Field(default_factory=dict, description="programs it ran with")
    seconds: float = 0.0


def save_study(study: Study, path: str | Path) -> Path:
    """Write a study as JSON, whole or not at all."""
    target = Path(path)
    with replace_file(target) as temporary:
        temporary.write_text(study.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return target


def load_study(path: str | Path) -> Study:
    """Read `study.json`, or a study's folder that holds one.

    Raises:
        BadData: the file is missing, is not a study, or is one of another version.
    """
    source = Path(path)
    if source.is_dir():
        source = source / "study.json"
    if not source.is_file():
        raise BadData(f"{source} does not exist; `moeworks study` writes it when all probes are done.")
    try:
        study = Study.model_validate_json(source.read_bytes())
    except ValidationError as error:
        raise BadData(f"{source} is not a study: {problems_of(error)}") from None
    if (study.header.format, study.header.version) != ("moeworks.study", VERSION):
        raise BadData(
            f"{source} is {study.header.format} version {study.header.version}; "
            f"this moeworks reads moeworks.study version {VERSION}."
        )
    return study
