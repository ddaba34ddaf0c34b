"""From a model's name to compressed layers, one after another, and the three ways in which they can be written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from moeworks import __version__
from moeworks.artefact import Header
from moeworks.edit.apply import Applied, apply
from moeworks.edit.checkpoint import Checkpoint, open_checkpoint
from moeworks.edit.compress.factors import COMPRESSIONS, Factors, check_options
from moeworks.edit.compress.folder import save_compressed
from moeworks.edit.compress.install import install_all
from moeworks.edit.compress.lora import experts_names, save_lora
from moeworks.edit.compress.measure import Measured, measure
from moeworks.edit.layer import LayerWeights
from moeworks.edit.plan import FORMAT, VERSION, EditPlan, LayerCut
from moeworks.edit.statistics_file import Statistics
from moeworks.edit.transforms import TRANSFORMS
from moeworks.errors import BadData, Unsupported
from moeworks.train.save import check_output

__all__ = ["Compressed", "compress", "read_layers", "write_compressed", "write_dense", "write_lora"]


class Compressed(NamedTuple):
    """One layer's factors and what they cost."""

    factors: Factors
    measured: Measured


def compress(
    source: str | Path | Checkpoint,
    *,
    method: str,
    statistics: Statistics | None = None,
    layers: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Compressed]:
    """Factorise layer by layer and measure; one layer's weights are held at a time and nothing is written.

    Args:
        source: `lab`, a folder, a Hub id, or an open checkpoint.
        method: a registered operator.
        statistics: of the same model; with kept rows, outputs are compared and activations can be used.
        layers: only these; all with experts unless given.
        options: of the method.

    Raises:
        BadPlan: options that the method does not take.
        BadData: a layer without experts, or statistics of another model.
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    function = COMPRESSIONS.get(method)
    check_options(function, options or {})
    if statistics is not None:
        _same_model(checkpoint, statistics)

    def each() -> Iterator[Compressed]:
        for weights in read_layers(checkpoint, layers):
            seen = None if statistics is None else statistics.layer(weights.layer)
            factors = function(weights, seen, **(options or {}))
            yield Compressed(factors, measure(weights, factors, seen))

    return each()


def read_layers(checkpoint: Checkpoint, layers: Sequence[int] | None = None) -> Iterator[LayerWeights]:
    """Yield the experts of a checkpoint's layers, one held at a time; all of them unless some are named.

    Raises:
        BadData: a layer has no experts; said before the first is read.
    """
    chosen = list(checkpoint.layers if layers is None else layers)
    for number in chosen:
        checkpoint.layout(number)
    return map(checkpoint.read_layer, chosen)


def check_form(method: str, form: str) -> None:
    """Refuse to write a method in a form that it has not, before anything is computed.

    Raises:
        Unsupported: `dense` of a method that cannot be multiplied out, `lora` of one that makes no low-rank additions.
    """
    if form == "dense" and method not in TRANSFORMS.names():
        raise Unsupported(f"'{method}' cannot be multiplied out into weights of experts; write it as factors.")
    if form == "lora" and method != "base_delta":
        raise Unsupported("only 'base_delta' gives an adapter; its differences are low-rank additions to one base.")


def write_dense(
    checkpoint: Checkpoint,
    output: str | Path,
    *,
    method: str,
    options: Mapping[str, Any],
    layers: Sequence[int] | None = None,
    statistics: Statistics | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Applied:
    """Write the factors multiplied out: a stock checkpoint of the old size, for measuring quality in any engine.

    It is `apply` with a plan that keeps all experts and has the method as its transform.

    Raises:
        BadPlan, BadData, Unsupported: as `apply`, and where the method cannot be multiplied out.
    """
    check_form(method, "dense")
    plan = keep_all(checkpoint, transform=method, options=options, layers=layers)
    return apply(checkpoint, plan, output, statistics=statistics, overwrite=overwrite, progress=progress)


def write_compressed(
    checkpoint: Checkpoint, compressed: Sequence[Compressed], output: str | Path, *, overwrite: bool = False
) -> Path:
    """Write factors in our own format (see `folder`); the whole model is held in memory for it.

    Raises:
        BadData: the output exists.
        Unsupported: the family's experts cannot be replaced by factors.
    """
    from moeworks.edit.compress.folder import FORMAT_FILE
    from moeworks.engines.transformers.loading import load_pretrained

    check_output(Path(output), mark=FORMAT_FILE, overwrite=overwrite)
    loaded = load_pretrained(str(checkpoint.folder))
    install_all(loaded.model, {found.factors.layer: found.factors for found in compressed})
    evidence = {"layers": [asdict(found.measured) for found in compressed]}
    return save_compressed(
        loaded.model,
        output,
        tokenizer=loaded.tokenizer,
        overwrite=overwrite,
        evidence=evidence,
        settings=loaded.settings,
    )


def write_lora(
    checkpoint: Checkpoint,
    compressed: Sequence[Compressed],
    output: str | Path,
    *,
    overwrite: bool = False,
    progress: bool = False,
) -> tuple[Path, Path]:
    """Write `output/base`, a stock checkpoint whose experts are their layer's base, and `output/adapter` for PEFT.

    Raises:
        BadData: the output exists.
        Unsupported: the factors are no `base_delta`, or no exact adapter is known for the family's layout of experts.
    """
    config, layers = _config(checkpoint), [found.factors.layer for found in compressed]
    factors = [found.factors for found in compressed]
    for found in factors:
        check_form(found.method, "lora")
    experts_names(config, layers)  # refuses before the base is written
    check_output(Path(output) / "adapter", mark="adapter_config.json", overwrite=overwrite)
    base = factors[0].settings["base"]
    if base == "count":
        raise BadData("a base weighted by counts is not written again without the statistics; use base=mean.")
    plan = keep_all(checkpoint, transform="base_delta", options={"rank": 0, "base": base}, layers=layers)
    written = apply(checkpoint, plan, Path(output) / "base", overwrite=overwrite, progress=progress)
    adapter = save_lora(factors, Path(output) / "adapter", config=config, base=str(written.output), overwrite=overwrite)
    return written.output, adapter


def keep_all(
    checkpoint: Checkpoint, *, transform: str, options: Mapping[str, Any], layers: Sequence[int] | None = None
) -> EditPlan:
    """Return a plan that keeps every expert and makes the layers anew by a transform."""
    identity = checkpoint.identity()
    cuts = []
    for number in checkpoint.layers if layers is None else sorted(layers):
        experts = identity.layer(number).experts
        cuts.append(LayerCut(layer=number, experts=experts, keep=tuple(range(experts))))
    return EditPlan(
        method=transform,
        keep=1.0,
        transform=transform,
        transform_options=dict(options),
        layers=tuple(cuts),
        description="All experts stay; each is replaced by what the compression keeps of it, multiplied out.",
        header=Header(format=FORMAT, version=VERSION, moeworks=__version__, model=identity),
    )


def _same_model(checkpoint: Checkpoint, statistics: Statistics) -> None:
    """Refuse statistics of a model of another shape."""
    model = statistics.model
    if model is not None and model.shape != checkpoint.identity().shape:
        raise BadData(f"the statistics in {statistics.folder} are of {model.name}, which has other layers or experts.")


def _config(checkpoint: Checkpoint) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(checkpoint.folder)
