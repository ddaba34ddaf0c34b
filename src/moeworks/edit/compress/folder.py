"""A folder that holds a model with compressed experts: our own plain format, read by `load_compressed` alone.

    moeworks_format.json         format, version, family, and for each layer method, shape and settings; written last
    config.json                  of the model before, as transformers writes it
    rest*.safetensors            every other weight, by the names it has in the loaded model
    experts-00003.safetensors    the factors of layer 3

No weight file has a name that transformers looks for, so that stock transformers refuses the folder instead of filling
the experts with random numbers. No code is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from moeworks.edit.compress.experts import CompressedExperts
from moeworks.edit.compress.factors import Factors
from moeworks.edit.compress.install import install_all
from moeworks.errors import BadData

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["FORMAT", "FORMAT_FILE", "VERSION", "load_compressed", "load_factors", "save_compressed"]

FORMAT_FILE = "moeworks_format.json"
FORMAT = "moeworks.compressed_experts"
VERSION = 1


def save_compressed(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
    evidence: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a loaded model some of whose layers have compressed experts (`install`), whole or not at all.

    Args:
        model: with at least one such layer.
        folder: where to.
        tokenizer: written beside it.
        overwrite: replace a folder of this format.
        evidence: what was measured, kept in the format file.
        settings: what transformers' own files cannot say of the model (`moeworks.json`).

    Raises:
        BadData: no layer has compressed experts, or the folder exists.
    """
    from huggingface_hub import save_torch_state_dict
    from safetensors.torch import save_file

    from moeworks import __version__
    from moeworks.engines.transformers.loading import SETTINGS
    from moeworks.train.save import check_output, whole_folder

    output = Path(folder)
    places = {name: module for name, module in model.named_modules() if isinstance(module, CompressedExperts)}
    if not places:
        raise BadData("no layer of this model has compressed experts; install some first, or use save_pretrained.")
    check_output(output, mark=FORMAT_FILE, overwrite=overwrite)
    with whole_folder(output) as temporary:
        model.config.save_pretrained(temporary)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        if settings:
            (temporary / SETTINGS).write_text(json.dumps(dict(settings)) + "\n", encoding="utf-8")
        ours = tuple(f"{name}." for name in places)
        tied = _tied(model)
        rest = {n: t for n, t in model.state_dict().items() if not n.startswith(ours) and n not in tied}
        save_torch_state_dict(rest, temporary, filename_pattern="rest{suffix}.safetensors", metadata={"format": "pt"})
        layers: dict[str, Any] = {}
        for module in places.values():
            factors = module.factors()
            name = f"experts-{factors.layer:05}.safetensors"
            save_file({n: t.contiguous() for n, t in factors.tensors.items()}, temporary / name)
            layers[str(factors.layer)] = {
                "method": factors.method,
                "experts": factors.experts,
                "neurons": factors.neurons,
                "hidden": factors.hidden,
                "settings": dict(factors.settings),
                "file": name,
            }
        header = {
            "format": FORMAT,
            "version": VERSION,
            "moeworks": __version__,
            "family": model.config.model_type,
            "loader": "moeworks.edit.compress.load_compressed",
            "layers": layers,
            "evidence": dict(evidence or {}),
        }
        (temporary / FORMAT_FILE).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
    return output


def load_factors(folder: str | Path) -> dict[int, Factors]:
    """Return the factors of each layer in a folder that `save_compressed` wrote.

    Raises:
        BadData: it is no such folder.
    """
    from safetensors.torch import load_file

    path = Path(folder)
    header = _header(path)
    found: dict[int, Factors] = {}
    for layer, entry in header["layers"].items():
        shape = {name: entry[name] for name in ("method", "experts", "neurons", "hidden", "settings")}
        found[int(layer)] = Factors(layer=int(layer), tensors=load_file(path / entry["file"]), **shape)
    return found


def load_compressed(folder: str | Path) -> PreTrainedModel:
    """Open a folder that `save_compressed` wrote: a model of the stock class with our experts modules in it.

    The experts as they were are never held.

    Raises:
        BadData: it is no such folder, or weights are missing or left over.
    """
    import torch
    from accelerate import init_empty_weights
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    path = Path(folder)
    factors = load_factors(path)
    config = AutoConfig.from_pretrained(path)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32)
    modules = install_all(model, factors)
    ours = {id(module) for module in modules.values()}
    names = tuple(f"{name}." for name, module in model.named_modules() if id(module) in ours)
    missing = {n for n in model.state_dict() if not n.startswith(names)}
    extra: list[str] = []
    for file in sorted(path.glob("rest*.safetensors")):
        result = model.load_state_dict(state := load_file(file), strict=False, assign=True)
        missing -= set(state)
        extra += result.unexpected_keys
    missing -= _tied(model)
    if missing or extra:
        listed = ", ".join(sorted([*missing, *extra])[:5])
        raise BadData(f"{path}: {len(missing)} weights are missing and {len(extra)} have no place ({listed} …).")
    model.tie_weights()
    _no_empty_weights(model, path)
    return model.eval()


def _header(path: Path) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads((path / FORMAT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(f"{path} has no readable {FORMAT_FILE}; `moeworks edit compress … -o` writes one.") from error
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise BadData(
            f"{path} is '{header.get('format')}' version {header.get('version')}, not '{FORMAT}' version {VERSION}."
        )
    return header


def _tied(model: nn.Module) -> set[str]:
    """Return names of weights that are another one's under a second name."""
    seen: dict[tuple[int, ...], str] = {}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for name, tensor in model.state_dict(keep_vars=True).items():
        first = seen.setdefault((id(tensor),), name)
        if first != name and first not in tied:
            tied.add(name)
    return tied


def _no_empty_weights(model: nn.Module, path: Path) -> None:
    both: list[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    empty = [name for name, tensor in both if tensor.device.type == "meta"]
    if empty:
        raise BadData(f"{path} holds no values for {', '.join(empty[:5])}.")
