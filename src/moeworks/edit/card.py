"""The model card of an edited checkpoint as text: what was done, how, what was measured, how to load it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import isfinite
from pathlib import Path, PurePath
from typing import Any

from moeworks import __version__
from moeworks.edit.comparison import ALL, Comparison
from moeworks.edit.plan import EditPlan
from moeworks.edit.preview import Preview
from moeworks.plan.evidence import Interval

__all__ = ["front_matter", "is_hub_id", "model_card", "source_metadata"]

_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
_TEMPLATE = "card.md.j2"


def model_card(
    plan: EditPlan,
    *,
    name: str = "",
    base_model: str = "",
    metadata: Mapping[str, Any] | None = None,
    bytes_before: int | None = None,
    bytes_after: int | None = None,
    comparison: Comparison | None = None,
    command: str = "",
    repaired: bool = False,
) -> str:
    """Return the text of README.md for what a plan makes of a model.

    Args:
        plan: what was done; its evidence is told.
        name: of the new model; by default the original's with the method and the share that is left.
        base_model: the original's Hub id; by default the plan's model where that is one. A folder's path is not told.
        metadata: front matter of the original's card, of which licence, languages and task are inherited.
        bytes_before: weights of the original.
        bytes_after: weights of the result.
        comparison: what was measured of the result; by default what the plan holds of it.
        command: how it was made.
        repaired: whether routers were tuned afterwards.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("moeworks.edit", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,  # this is Markdown
    )
    given = plan.model.name if plan.model is not None else ""
    base = base_model or (given if is_hub_id(given) else "")
    called = base.rpartition("/")[2] or PurePath(given).name or "model"
    evidence = plan.evidence or {}
    preview = Preview.model_validate(evidence["preview"]) if "preview" in evidence else None
    if comparison is None and "verify" in evidence:
        comparison = Comparison.model_validate(evidence["verify"])
    shown = comparison or (preview.comparison if preview is not None else None)
    return environment.get_template(_TEMPLATE).render(
        front=front_matter(plan, base_model=base, metadata=metadata or {}),
        name=name or f"{called}-{plan.method}-{100 * plan.keep:.3g}",
        base=base,
        called=called,
        plan=plan,
        what=_what(plan),
        layers=_layers(plan),
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        shown=shown,
        measured_on="the checkpoint itself" if comparison is not None else "the plan, before it was carried out",
        rows=_rows(shown, preview) if shown is not None else [],
        labels=[(key, found) for key, found in shown.perplexity.items() if key != ALL] if shown is not None else [],
        probes=preview.probes if preview is not None else (),
        interval=_interval,
        command=command or plan.header.command,
        repaired=repaired,
        version=__version__,
    )


def front_matter(plan: EditPlan, *, base_model: str, metadata: Mapping[str, Any]) -> str:
    """Return the YAML block that the Hub reads, without its dashes."""
    from huggingface_hub import ModelCardData

    inherited = {key: metadata[key] for key in _INHERITED if metadata.get(key)}
    done = "pruning" if plan.transform == "cut" else "merge"
    text: str = ModelCardData(
        base_model=base_model or None,
        library_name="transformers",
        tags=["mixture-of-experts", "moe", f"expert-{done}", "moeworks", plan.method],
        **inherited,
    ).to_yaml()
    return text


def source_metadata(folder: str | Path) -> dict[str, Any]:
    """Return the front matter of the card in a checkpoint's folder; empty where there is none."""
    from huggingface_hub import metadata_load

    readme = Path(folder) / "README.md"
    if not readme.is_file() or not readme.read_text(encoding="utf-8").startswith("---"):
        return {}
    return dict(metadata_load(readme) or {})


def is_hub_id(name: str) -> bool:
    """Return whether a name can be a Hub id, `owner/name`, and no path of this machine."""
    owner, slash, rest = name.partition("/")
    return bool(slash and owner and rest) and "/" not in rest and not owner.startswith((".", "~"))


def _what(plan: EditPlan) -> str:
    """Return what was done in one sentence."""
    before = Counter(cut.experts for cut in plan.layers)
    after = Counter(plan.counts)
    experts = f"{_list(before)} routed experts a layer became {_list(after)}"
    if plan.transform != "cut":
        return f"{experts}: the others were merged into them ({plan.transform}, groups by {plan.method})."
    thin = any(cut.neurons is not None for cut in plan.layers)
    if thin and before == after:
        return f"Every one of {_list(before)} routed experts a layer lost neurons, chosen by {plan.method}."
    and_thin = "; those that stay lost neurons too" if thin else ""
    return f"{experts}: those ranked lowest by {plan.method} were removed{and_thin}. All other weights are unchanged."


def _list(counts: Counter[int]) -> str:
    return " or ".join(str(count) for count in sorted(counts, reverse=True))


def _layers(plan: EditPlan) -> list[tuple[int, int, int, str]]:
    """Return (layer, experts before, after, the old numbers of those that stay)."""
    return [(cut.layer, cut.experts, len(cut.keep), _ranges(cut.keep)) for cut in plan.layers]


def _ranges(numbers: tuple[int, ...]) -> str:
    """Return ascending numbers with neighbours drawn together: 0-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _rows(shown: Comparison, preview: Preview | None) -> list[tuple[str, str, str, str]]:
    """Return the evidence table: (measure, original, this model, random cut of the same size)."""
    random = preview.random if preview is not None else ()
    mean_kl = f"{sum(one.divergence for one in random) / len(random):.4g}" if random else "–"
    mean_rise = f"times {sum(one.perplexity[ALL] for one in random) / len(random):.4g}" if random else "–"
    total = shown.perplexity[ALL]
    rows = [
        ("perplexity", f"{total.before:.4g}", f"{total.after:.4g}, times {_interval(total.ratio)}", mean_rise),
        ("KL to the original, nats a token", "0", _interval(shown.divergence), mean_kl),
        ("same most likely token", "1", _interval(shown.agreement), "–"),
    ]
    if shown.overlap is not None:
        rows.append(("overlap on the original's answers (ESAP)", "1", _interval(shown.overlap), "–"))
    if shown.loops is not None:
        loops = shown.loops
        what = f"generations that end in a loop, of {loops.texts}"
        rows.append((what, _interval(loops.before), _interval(loops.after), "–"))
    if shown.speed is not None:
        rows.append(("tokens a second, forward passes", "1", f"times {shown.speed.ratio:.2f}", "–"))
    return rows


def _interval(interval: Interval) -> str:
    if not (isfinite(interval.low) and isfinite(interval.high)):
        return f"{interval.value:.4g}"  # too few documents for an interval
    return f"{interval.value:.4g} [{interval.low:.4g}, {interval.high:.4g}]"
