"""Opens a checkpoint from `lab`, a folder or a Hub id without loading it, and reads one layer of experts at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moeworks.artefact import LayerShape, ModelIdentity
from moeworks.edit.checkpoint.convert import unpack
from moeworks.edit.checkpoint.files import Reader, WeightFiles, read_files
from moeworks.edit.checkpoint.keys import Settings, read_settings
from moeworks.edit.checkpoint.layout import LayerLayout, layout_of
from moeworks.edit.checkpoint.names import is_extra, is_other, split
from moeworks.edit.layer import LayerWeights
from moeworks.errors import BadData, Unsupported
from moeworks.lab import LAB_MODELS, lab_path

__all__ = ["FORMAT_FILE", "Checkpoint", "open_checkpoint"]

FORMAT_FILE = "moeworks_format.json"  # of a checkpoint whose layers have unequal numbers of experts
# Gate and up take turns in the fused projection; all others in transformers have one after the other.
_INTERLEAVED = frozenset({"gpt_oss", "inkling2", "inkling2_text"})
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.py", "LICENSE*", "NOTICE*"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Checkpoint:
    """A checkpoint on disk, read from headers and config alone until a layer is asked for.

    Attributes:
        name: what the user typed.
        folder: where its files are.
        config: its config.json.
        settings: what that says of experts.
        files: its tensors.
        layouts: layer number → where experts and router of the decoder's layer lie.
        extra: the same for layers of multi-token prediction, by the beginning of their names.
        counts: layer → experts, where they are unequal; else empty.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    settings: Settings
    files: WeightFiles
    layouts: Mapping[int, LayerLayout]
    extra: Mapping[str, LayerLayout]
    counts: Mapping[int, int]

    @property
    def family(self) -> str:
        """The model type, such as qwen3_moe."""
        return str(self.config.get("model_type", ""))

    @property
    def layers(self) -> list[int]:
        """Global numbers of the decoder's layers that have experts, ascending."""
        return sorted(self.layouts)

    @property
    def interleaved(self) -> bool:
        """Whether gate and up take turns in fused projections."""
        return self.family in _INTERLEAVED

    def layout(self, layer: int) -> LayerLayout:
        """Return where a layer's experts lie.

        Raises:
            BadData: it has none.
        """
        if layer not in self.layouts:
            known = ", ".join(map(str, self.layers))
            raise BadData(f"layer {layer} of {self.name} has no experts; layers with experts: {known}.")
        return self.layouts[layer]

    def read_layer(self, layer: int) -> LayerWeights:
        """Return the weights of one layer's experts and router, in the dtype they are stored in.

        Raises:
            BadData: the layer has no experts.
            Unsupported: they are quantised, or their form is not certain.
        """
        reader = Reader(self.files)
        try:
            return self.unpack(self.layout(layer), reader)
        finally:
            reader.close()

    def unpack(self, layout: LayerLayout, reader: Reader) -> LayerWeights:
        """Return the weights that lie as `layout` says."""
        from moeworks.edit.activation import FamilyActivation

        self.check_form(layout)
        weights = unpack(layout, reader.get, interleaved=self.interleaved)
        return replace(weights, activation=FamilyActivation(self.config, layout.layer))

    def check_form(self, layout: LayerLayout) -> None:
        """Refuse fused projections of a model type that nobody has looked at: their halves may take turns.

        Raises:
            Unsupported: transformers does not know the model type.
        """
        if "fused" in layout.stacked and not _known(self.family):
            raise Unsupported(
                f"the experts of '{self.family}' have gate and up in one tensor, and whether these take turns is not "
                "known; only whole experts can be cut from it."
            )

    def identity(self, *, weight_hash: str = "") -> ModelIdentity:
        """Return the identity as far as the files tell it: shapes, no contract; a hash only if it is given."""
        shapes = tuple(
            LayerShape(
                layer=layer,
                experts=layout.width if self._counts_extra(layout) else layout.experts,
                top_k=self.settings.top_k[0].value,
                contract=None,
                opaque="it was read from files and has not run",
            )
            for layer, layout in sorted(self.layouts.items())
        )
        return ModelIdentity(
            name=self.name, family=self.family, weight_hash=weight_hash, tokenizer_hash="", layers=shapes
        )

    def _counts_extra(self, layout: LayerLayout) -> bool:
        """Whether rows beyond the experts can be chosen, as LongCat's and ZAYA's can; Inkling's are of shared ones."""
        bias = layout.stacked.get("selection_bias")
        return layout.extra > 0 and bias is not None and layout.shapes[bias][-1] == layout.width


def open_checkpoint(name: str | Path) -> Checkpoint:
    """Open `lab`, a folder with config.json and safetensors, or a Hub id, which is downloaded.

    Raises:
        BadData: there is no such checkpoint, it is not whole, or its config does not fit its files.
        Unsupported: it is no mixture of experts whose layout is understood; the message names what is not.
    """
    folder = _folder(str(name))
    config = _config(folder)
    if config.get("is_encoder_decoder"):
        raise Unsupported(
            f"{name} has an encoder and a decoder with experts under one number of experts; cutting the decoder alone "
            "cannot be written."
        )
    marks = _marks(folder)
    if marks is not None:
        config = {**config, "model_type": marks["model_type"]}
    settings = read_settings(config, str(name))
    files = read_files(folder)
    counts = {int(layer): int(count) for layer, count in (marks or {}).get("experts", {}).items()}
    layouts, extra = _layouts(files, settings, counts, str(name))
    return Checkpoint(
        name=str(name),
        folder=folder,
        config=config,
        settings=settings,
        files=files,
        layouts=layouts,
        extra=extra,
        counts=counts,
    )


def _folder(name: str) -> Path:
    if name in LAB_MODELS:
        return lab_path(name)
    if name.startswith((".", "/", "~")) or Path(name).is_dir():
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise BadData(f"{folder} has no config.json; give the folder of a model that transformers can load.")
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise BadData(
            f"cannot open the model '{name}': {reason}. Give `lab`, a folder with config.json and weights, or a Hub id."
        ) from error


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(f"the config.json of {folder} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise BadData(f"the config.json of {folder} holds no JSON object.")
    return config


def _marks(folder: Path) -> dict[str, Any] | None:
    path = folder / FORMAT_FILE
    if not path.is_file():
        return None
    marks = json.loads(path.read_text(encoding="utf-8"))
    if marks.get("format") != "moeworks.uneven" or marks.get("version") != 1:
        raise BadData(f"{path} is of a format that this version of moeworks does not know.")
    return dict(marks)


def _layouts(
    files: WeightFiles, settings: Settings, counts: Mapping[int, int], name: str
) -> tuple[dict[int, LayerLayout], dict[str, LayerLayout]]:
    """Return the decoder's layers with experts by number, and those for multi-token prediction by prefix."""
    grouped: dict[tuple[str, int], dict[str, tuple[int, ...]]] = {}
    outside: list[str] = []
    for tensor, stored in files.tensors.items():
        place = split(tensor)
        if place is None:
            outside += [tensor] if "experts." in tensor and "shared" not in tensor else []
        elif not is_other(place[0]):
            grouped.setdefault(place[:2], {})[tensor] = stored.shape
    if outside:
        raise Unsupported(f"{name} has experts outside its layers: {', '.join(outside[:5])}; they are not understood.")
    layouts: dict[int, LayerLayout] = {}
    extra: dict[str, LayerLayout] = {}
    stems: set[str] = set()
    for (stem, layer), shapes in grouped.items():
        beyond = is_extra(stem) or (settings.layers is not None and layer >= settings.layers)
        count = settings.experts if beyond else counts.get(layer, settings.experts)
        found = layout_of(layer, f"{stem}{layer}.", shapes, count)
        if found is not None and beyond:
            extra[found.prefix] = found
        elif found is not None:
            layouts[layer] = found
            stems.add(stem)
    if len(stems) > 1:
        raise Unsupported(
            f"{name} has several stacks of layers with experts ({', '.join(sorted(stems))}) under one number of "
            "experts; cutting one alone cannot be written."
        )
    if not layouts:
        raise Unsupported(f"{name} has no layer whose experts are understood; nothing can be edited.")
    return layouts, extra


def _known(family: str) -> bool:
    """Whether transformers has this model type; asked only where it matters, since the import takes seconds."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return family in CONFIG_MAPPING_NAMES
