"""Opens a dense model, in memory, and shows its feed-forward layers and what reaches them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moeworks.edit.dense.ffn import Ffn, Inputs
from moeworks.errors import BadData, Unsupported, did_you_mean
from moeworks.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["FAMILIES", "Dense", "Text", "collect_inputs", "dense_of", "open_dense", "read_texts"]

FAMILIES = ("llama", "mistral", "qwen3")


@dataclass(frozen=True, eq=False)
class Dense:
    """A dense model of a known family. All of it is held in memory: this is for models that fit."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    settings: Mapping[str, Any]

    @property
    def family(self) -> str:
        """The model type of transformers."""
        return str(self.model.config.model_type)

    @property
    def layers(self) -> list[Any]:
        """The decoder's blocks."""
        return list(self.model.model.layers)

    def ffn(self, layer: int) -> Ffn:
        """Return one feed-forward layer; its weights are the model's own."""
        mlp = self.layers[layer].mlp
        gate, up, down = (getattr(mlp, f"{name}_proj").weight.detach() for name in ("gate", "up", "down"))
        return Ffn(gate, up, down, mlp.act_fn)


@dataclass(frozen=True)
class Text:
    """One text as tokens."""

    tokens: tuple[int, ...]
    domain: str


def open_dense(name: str) -> Dense:
    """Open a dense model from a folder or the Hub.

    Raises:
        BadData: it cannot be opened.
        Unsupported: it is of another family, or has biases where experts have none.
    """
    from moeworks.engines.transformers.loading import load_pretrained

    loaded = load_pretrained(name)
    return dense_of(loaded.model, loaded.tokenizer, name=name, settings=loaded.settings)


def dense_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    name: str = "",
    settings: Mapping[str, Any] | None = None,
) -> Dense:
    """Take a loaded model as a dense one.

    Raises:
        Unsupported: as `open_dense`.
    """
    family = str(model.config.model_type)
    if family not in FAMILIES:
        raise Unsupported(f"'{name or family}' is of family {family}; dense models are taken of {', '.join(FAMILIES)}.")
    if getattr(model.config, "mlp_bias", False):
        raise Unsupported(
            f"the feed-forward layers of '{name or family}' have biases; experts of stock targets have none."
        )
    return Dense(name, model, tokenizer, settings or {})


def read_texts(dense: Dense, examples: Iterator[Example], *, by: str = "", limit: int = 512) -> list[Text]:
    """Return texts as tokens, cut to the model's context, each with the value of a label as its domain.

    Args:
        dense: the model; its tokenizer is used.
        examples: the texts.
        by: label that tells domains apart; none: all are of one.
        limit: texts at most.

    Raises:
        BadData: no text, no tokenizer, or a text without the label.
    """
    from itertools import islice

    from moeworks.engines.transformers.tokens import Reader

    if dense.tokenizer is None:
        raise BadData("this model was given without a tokenizer, so that texts cannot be read.")
    context = int(dense.model.config.max_position_embeddings)
    reader = Reader(dense.tokenizer, context, bool(dense.settings.get("add_bos", False)))
    texts = []
    for prepared in reader.read(islice(examples, limit)):
        if by and by not in prepared.labels:
            raise BadData(f"a text has no label '{by}'; {did_you_mean(by, prepared.labels)}")
        texts.append(Text(prepared.tokens, prepared.labels[by] if by else ""))
    if not texts:
        raise BadData("there is no text to look at.")
    return texts


@torch.no_grad()
def collect_inputs(dense: Dense, texts: Sequence[Text], *, rows: int = 2048, seed: int = 0) -> list[Inputs]:
    """Return rows of every layer's input, as many of each text, drawn at random, the last token always among them.

    Texts run one at a time, so that there is no padding. Memory is layers × rows × H × 4 bytes.

    Args:
        dense: the model.
        texts: what runs.
        rows: of all texts together, about; one of each text at least.
        seed: of the draw; all layers give the same rows.
    """
    draw = torch.Generator().manual_seed(seed)
    domains = tuple(sorted({text.domain for text in texts}))
    each = max(rows // len(texts), 1)
    kept: list[list[Tensor]] = [[] for _ in dense.layers]
    domain: list[Tensor] = []
    last: list[Tensor] = []
    chosen = torch.empty(0, dtype=torch.long)

    def keep(layer: int) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            kept[layer].append(args[0][0, chosen.to(args[0].device)].float().cpu())

        return hook

    handles = [block.mlp.register_forward_pre_hook(keep(layer)) for layer, block in enumerate(dense.layers)]
    try:
        for text in texts:
            length = len(text.tokens)
            drawn = torch.randperm(length - 1, generator=draw)[: each - 1] if length > 1 else torch.empty(0).long()
            chosen = torch.cat([drawn.sort().values, torch.tensor([length - 1])])
            domain.append(torch.full((len(chosen),), domains.index(text.domain)))
            last.append(chosen == length - 1)
            dense.model(torch.tensor([text.tokens], device=dense.model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    labels, ends = torch.cat(domain), torch.cat(last)
    return [Inputs(torch.cat(found), labels, domains, ends) for found in kept]
