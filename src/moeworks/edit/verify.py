"""Verifies an edited checkpoint: files, config, every tensor, stock loading, logits like the plan's, its worth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from moeworks.edit.checkpoint.source import FORMAT_FILE, Checkpoint, open_checkpoint
from moeworks.edit.compare import LABELS, compare
from moeworks.edit.plan import EditPlan
from moeworks.edit.preview import check_model
from moeworks.edit.rewrite import MergeLayout, Options
from moeworks.edit.sides import run_logits, side_of, under
from moeworks.edit.verification import Check, Verification
from moeworks.edit.verify_files import (
    check_beside,
    check_config,
    check_index,
    check_layers,
    check_tensors,
    opened,
)
from moeworks.engines.transformers.engine import TransformersEngine
from moeworks.errors import BadData, BadPlan, MoeworksError
from moeworks.examples import Example
from moeworks.probes import neutral_texts

if TYPE_CHECKING:
    from moeworks.edit.statistics_file import Statistics

__all__ = ["SAMPLE", "TOLERANCE", "check_load", "check_logits", "verify"]

SAMPLE = 12  # texts on which logits are held together


class Tolerance(NamedTuple):
    """How far logits may be apart, as a share of the largest one of the token."""

    share: float
    of_every_token: bool  # or of the median token


# In float32 a mask and a cut differ by rounding alone. With half precision a product with fewer rows is rounded
# elsewhere, near-ties of the router fall the other way, and such a token differs for good: the median says more.
TOLERANCE = {
    torch.float64: Tolerance(1e-6, True),
    torch.float32: Tolerance(1e-4, True),
    torch.bfloat16: Tolerance(2**-5, False),
    torch.float16: Tolerance(2**-7, False),
}


def verify(
    edited: str | Path,
    against: str,
    plan: EditPlan,
    *,
    statistics: Statistics | None = None,
    texts: Iterable[Example] | None = None,
    labels: Sequence[str] = LABELS,
    layout: MergeLayout = "rows",
    pad: bool = False,
    prompts: int = 16,
    new_tokens: int = 256,
    speed: bool = True,
    sample: int = SAMPLE,
    dtype: str = "float32",
    device: str = "cpu",
    batch_size: int = 8,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Verification:
    """Check that a checkpoint is what a plan makes of a model, and measure what it is worth.

    Files and tensors are read one layer at a time; for the logits both models are loaded. What fails does not stop the
    other checks, so far as they make sense.

    Args:
        edited: the folder that `apply` wrote.
        against: the original: `lab`, a folder or a Hub id.
        plan: what was to be done.
        statistics: those that the plan was made from, if its transform needs them.
        texts: to compare on; by default the built-in neutral held-out ones. The first of them hold logits together.
        labels: perplexity is told for each value of these.
        layout, pad: as they were given to `apply`.
        prompts: texts that are continued, for overlap and loops; 0 leaves both out.
        new_tokens: at most so many each.
        speed: measure tokens a second, taking turns.
        sample: texts on which logits are held together.
        dtype: both models are run in it. In float32 logits must agree to 1e-4 of the largest; in half precision near
            ties of routers fall either way, so that only the median token is judged. `auto`: as stored.
        device: where both are run.
        batch_size: texts a forward pass.
        bootstrap: samples.
        seed: of the bootstrap and of the prompts.
        progress: show bars on standard error.

    Raises:
        BadData: the original cannot be opened, or there is no text.
    """
    options = Options(layout=layout, pad=pad)
    original = open_checkpoint(against)
    found, files = opened(edited)
    checks = [files]
    if found is not None:
        checks += _of_files(original, found, plan, options, statistics, progress)
    given = list(neutral_texts("held_out") if texts is None else texts)
    if not given:
        raise BadData("there is no text to compare on; give some (--data).")
    engine, loaded = check_load(edited, dtype=dtype, device=device)
    checks.append(loaded)
    difference, comparison = None, None
    if engine is None:
        checks.append(Check(name="logits", state="not checked", detail="the checkpoint does not load"))
    else:
        whole = TransformersEngine.load(against, dtype=dtype, device=device)
        try:
            rounded = _narrowed(original, whole)
            check_model(plan, side_of(whole), weights=not rounded)
            if rounded:
                plan = plan.model_copy(update={"header": plan.header.model_copy(update={"model": whole.identity})})
            logits, difference = check_logits(whole, engine, plan, given[:sample], statistics, batch_size=batch_size)
        except BadPlan as error:
            logits = Check(name="logits", state="failed", detail=str(error))
        checks.append(logits)
        try:
            comparison = compare(
                whole,
                engine,
                given,
                labels=labels,
                prompts=prompts,
                new_tokens=new_tokens,
                speed=speed,
                batch_size=batch_size,
                bootstrap=bootstrap,
                seed=seed,
                progress=progress,
            )
        except BadData as error:
            checks.append(Check(name="comparison", state="failed", detail=str(error)))
    return Verification(
        edited=Path(edited).name,
        against=against,
        checks=tuple(checks),
        difference=difference,
        comparison=comparison,
        bytes_before=original.files.nbytes,
        bytes_after=None if found is None else found.files.nbytes,
    )


def _narrowed(original: Checkpoint, engine: TransformersEngine) -> bool:
    """Whether weights were rounded when they were loaded, so that their hash is another one."""
    stored = {tensor.dtype for tensor in original.files.tensors.values()}
    half = {torch.bfloat16: {"BF16"}, torch.float16: {"F16"}}.get(engine.model.dtype)
    return half is not None and not stored <= half


def _of_files(
    original: Checkpoint, edited: Checkpoint, plan: EditPlan, options: Options, statistics: Any, progress: bool
) -> list[Check]:
    unknown = sorted({cut.layer for cut in plan.layers} - set(original.layouts))
    if unknown:
        detail = f"the plan names layers {', '.join(map(str, unknown))}, which have no experts in {original.name}"
        return [Check(name="plan", state="failed", detail=detail)]
    checks = [
        check_index(edited),
        check_config(original, edited, plan, options),
        check_layers(original, edited, plan, options),
        check_beside(original, edited),
    ]
    if checks[2].state == "failed":
        checks.append(Check(name="tensors", state="not checked", detail="the layers have other numbers of experts"))
    else:
        checks.append(check_tensors(original, edited, plan, options, statistics, progress=progress))
    return checks


def check_load(
    edited: str | Path, *, dtype: str = "float32", device: str = "cpu"
) -> tuple[TransformersEngine | None, Check]:
    """Load a folder with stock transformers: no key is missing, unexpected or of another shape."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from moeworks.engines.transformers.loading import SETTINGS

    name = "loads"
    folder = Path(edited)
    if (folder / FORMAT_FILE).is_file():
        detail = "it has unequal numbers of experts, a format of moeworks that stock programs do not read"
        return None, Check(name=name, state="failed", detail=detail)
    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            device_map=None if device == "cpu" else device,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        settings = folder / SETTINGS
        engine = TransformersEngine(
            model,
            tokenizer,
            name=folder.name,
            settings=json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {},
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, MoeworksError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return None, Check(name=name, state="failed", detail=f"transformers {transformers.__version__}: {lines[0]}")
    wrong = {kind: sorted(map(str, info.get(kind) or ())) for kind in ("missing_keys", "unexpected_keys")}
    wrong["mismatched_keys"] = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
    told = [f"{kind}: {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}" for kind, keys in wrong.items() if keys]
    told += [str(message) for message in info.get("error_msgs") or ()]
    if told:
        return engine, Check(name=name, state="failed", detail="; ".join(told))
    detail = f"stock transformers {transformers.__version__}, no key missing, unexpected or mismatched"
    return engine, Check(name=name, state="passed", detail=detail)


def check_logits(
    original: TransformersEngine,
    edited: TransformersEngine,
    plan: EditPlan,
    texts: Sequence[Example],
    statistics: Statistics | None = None,
    *,
    batch_size: int = 8,
) -> tuple[Check, float]:
    """Hold the logits of the original under the plan against those of the checkpoint; return the largest difference.

    A pure cut is the original with a mask, anything else the original with its new weights in memory.
    """
    planned, made = under(original, plan, statistics), side_of(edited)
    requests = list(original.reader.read(iter(texts)))
    apart, scale = list[torch.Tensor](), list[torch.Tensor]()
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        with planned.running():
            wanted = run_logits(planned, batch)
        found = run_logits(made, batch)
        if wanted[0].shape != found[0].shape:
            detail = f"logits have the shape {tuple(found[0].shape)}, not {tuple(wanted[0].shape)}"
            return Check(name="logits", state="failed", detail=detail), float("inf")
        for one, other in zip(wanted, found, strict=True):
            apart.append((one.double().cpu() - other.double().cpu()).abs().amax(-1))  # (tokens,)
            scale.append(one.double().cpu().abs().amax(-1))
    dtype = edited.model.dtype
    rule = TOLERANCE[dtype]
    share = torch.cat(apart) / torch.cat(scale).clamp(min=1e-9)  # (tokens,)
    judged = float(share.nan_to_num(float("inf")).max() if rule.of_every_token else share.nanmedian())
    largest = float(torch.cat(apart).nan_to_num(float("inf")).max())
    how = "at most" if rule.of_every_token else "in the median token"
    what = "the mask" if plan.pure_cut else "the edit in memory"
    detail = (
        f"differ from {what} by {how} {judged:.2g} of the largest, allowed are {rule.share:.2g} "
        f"({str(dtype).removeprefix('torch.')}, {len(share)} tokens, largest difference {largest:.2g})"
    )
    return Check(name="logits", state="passed" if judged <= rule.share else "failed", detail=detail), largest
