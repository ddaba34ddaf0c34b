"""A model whose decoder layers go through memory one at a time: everything else stays, a layer is loaded and let go of.

The model is built without weights, and each layer's tensors are read from the checkpoint and converted by transformers'
own loader, as `from_pretrained` does for a whole model.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moeworks.edit.checkpoint.source import Checkpoint
from moeworks.engines.transformers.loading import SETTINGS
from moeworks.errors import BadData, Unsupported
from moeworks.families.declarations import declared_routers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Blocks", "open_blocks"]

Part = int | str  # a layer's number, `rest`, or `head`


@dataclass(eq=False)
class Blocks:
    """A model of which only some parts have weights.

    Attributes:
        checkpoint: where the weights are.
        model: the model; what is not loaded is on the meta device.
        tokenizer: its tokenizer.
        settings: what transformers' own files cannot say.
        prefix: name of the list of decoder layers.
        layers: the decoder layers, dense ones too.
        device: where parts are loaded to.
    """

    checkpoint: Checkpoint
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    settings: Mapping[str, Any]
    prefix: str
    layers: list[nn.Module]
    device: torch.device
    _keys: dict[Part, list[str]] = field(default_factory=dict)  # tensors of the checkpoint by part

    def part_of(self, name: str) -> Part:
        """Return the part that a tensor of the model belongs to."""
        if name.startswith(f"{self.prefix}."):
            return int(name.removeprefix(f"{self.prefix}.").partition(".")[0])
        return "head" if name.startswith("lm_head.") else "rest"

    def load(self, part: Part) -> None:
        """Read a part's tensors.

        Raises:
            BadData: the checkpoint lacks some of them.
        """
        from safetensors import safe_open
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        files = self.checkpoint.files
        handles: dict[str, Any] = {}
        found: dict[str, Any] = {}
        for key in self._keys.get(part, ()):
            file = files.tensors[key].file
            if file not in handles:
                handles[file] = safe_open(str(files.folder / file), framework="pt")
            found[key] = handles[file].get_slice(key)
        with _quiet():
            convert_and_load_state_dict_in_model(
                self.model,
                found,
                LoadStateDictConfig(
                    dtype=self.model.dtype,
                    dtype_plan=self.model._get_dtype_plan(self.model.dtype),
                    device_map={"": str(self.device)},
                    weight_mapping=get_model_conversion_mapping(self.model),
                ),
            )
        for module, owner in self._modules(part):
            self._fill_buffers(module, owner)
        lacking = [name for name, tensor in self._tensors(part) if tensor.device.type == "meta"]
        if lacking:
            raise BadData(
                f"the checkpoint {self.checkpoint.name} lacks {', '.join(lacking[:3])}"
                f"{f' and {len(lacking) - 3} more' if len(lacking) > 3 else ''}."
            )

    def free(self, part: Part) -> None:
        """Let go of a part's weights."""
        for module, _ in self._modules(part):
            for shelf in (module._parameters, module._buffers):
                for name, tensor in shelf.items():
                    if tensor is not None:
                        empty = torch.empty_like(tensor, device="meta")
                        shelf[name] = nn.Parameter(empty, False) if shelf is module._parameters else empty  # type: ignore[assignment]

    def weight_hash(self, report: Callable[[str], None]) -> str:
        """Read the whole checkpoint once and return the hash of all weights, `loading.hash_weights` of the whole model.

        Parts are read in the order of their names; `report` is told which one comes.
        """
        digest = hashlib.blake2b(digest_size=16)
        names = sorted(self.model.state_dict())
        tied = {name: self.model.all_tied_weights_keys.get(name, name) for name in names}
        for part, group in itertools.groupby(names, lambda name: self.part_of(tied[name])):
            report(f"layer {part}" if isinstance(part, int) else part)
            if part != "rest":
                self.load(part)
            for name in group:
                value = self.model.get_parameter_or_buffer(tied[name])
                digest.update(f"{name}:{tuple(value.shape)}\n".encode())
                half = value.dtype in (torch.bfloat16, torch.float16)
                data = value.detach().cpu().to(torch.float32 if half else value.dtype).contiguous()
                digest.update(data.reshape(-1).view(torch.uint8).numpy() if data.numel() else b"")
            if part != "rest":
                self.free(part)
        return digest.hexdigest()

    def _modules(self, part: Part) -> Iterator[tuple[nn.Module, Any]]:
        """Yield the modules of a part with the model class that initialises each."""
        from transformers import PreTrainedModel

        owners: dict[str, Any] = {"": self.model}
        for name, module in self.model.named_modules():
            if isinstance(module, PreTrainedModel):
                owners[name] = module
            if name == self.prefix or (part != "rest") != (self.part_of(f"{name}.") != "rest"):
                continue
            if self.part_of(f"{name}.") == part:
                owner = max((known for known in owners if f"{name}.".startswith(f"{known}." if known else "")), key=len)
                yield module, owners[owner]

    def _tensors(self, part: Part) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in itertools.chain(self.model.named_parameters(), self.model.named_buffers()):
            if self.part_of(name) == part:
                yield name, tensor

    def _fill_buffers(self, module: nn.Module, owner: Any) -> None:
        """Compute the buffers that no checkpoint holds (rotary frequencies), as transformers does after loading."""
        own = [n for n in module._non_persistent_buffers_set if _on_meta(module._buffers.get(n))]
        if own:
            for name in own:
                empty = module._buffers[name]
                assert empty is not None
                module._buffers[name] = torch.empty_like(empty, device=self.device)
            with torch.no_grad():
                owner._init_weights(module)


def open_blocks(checkpoint: Checkpoint, *, dtype: str = "auto", device: str = "cpu") -> Blocks:
    """Build a checkpoint's model without weights, and load all but its layers and its head.

    Raises:
        BadData: the model cannot be built, or weights are missing.
        Unsupported: its weights are quantised, or its layers are no numbered list.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    folder = str(checkpoint.folder)
    config = AutoConfig.from_pretrained(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise Unsupported(f"the weights of {checkpoint.name} are quantised; collect from the model they were made of.")
    wanted = (getattr(config, "dtype", None) or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=wanted).eval()
    declared, _ = declared_routers(model)
    prefixes = {name.rpartition(f".{place.layer}.")[0] for place in declared for name in [f"{place.name}."]}
    if len(prefixes) != 1:
        raise Unsupported(f"the layers of {checkpoint.name} are no numbered list, so they cannot be loaded one by one.")
    (prefix,) = prefixes
    layers = list(model.get_submodule(prefix).children())
    if len({id(layer) for layer in layers}) < len(layers):
        raise Unsupported(f"layers of {checkpoint.name} share their modules, so they cannot be loaded one by one.")
    path = checkpoint.folder / SETTINGS
    blocks = Blocks(
        checkpoint=checkpoint,
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        settings=json.loads(path.read_text()) if path.is_file() else {},
        prefix=prefix,
        layers=layers,
        device=torch.device(device),
    )
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state: Any = model.state_dict()
    for key in checkpoint.files.tensors:
        name, _ = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        if name not in state and key in state:  # as transformers does: it was named right before
            name, _ = rename_source_key(key, [], [], model.base_model_prefix, state)
        if name in state:
            blocks._keys.setdefault(blocks.part_of(name), []).append(key)
    blocks.load("rest")
    return blocks


def _on_meta(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and tensor.device.type == "meta"


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
