"""Cosines between experts: of vectors, from inner products that were added up over text, and of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moeworks.edit.algebra.neurons import Part
from moeworks.edit.layer import LayerWeights
from moeworks.errors import BadData

__all__ = ["cosines", "cosines_of_gram", "weight_cosines"]

Array = NDArray[Any]
CHUNK = 1 << 26  # numbers of one part of the weights held in float64 at once


def cosines(vectors: Array) -> Array:
    """Return the cosine of every two rows, (E, E) float64; with a row of 0 it is 0."""
    wide = np.asarray(vectors, np.float64)
    return cosines_of_gram(wide @ wide.T)


def cosines_of_gram(gram: Array) -> Array:
    """Return cosines from inner products, (E, E) float64; with a vector of length 0 they are 0."""
    wide = np.asarray(gram, np.float64)
    length = np.sqrt(np.clip(np.diagonal(wide), 0, None))
    product = np.outer(length, length)
    quotient = np.divide(wide, product, out=np.zeros_like(wide), where=product > 0)
    return np.asarray(np.clip(quotient, -1, 1))


def weight_cosines(weights: LayerWeights, parts: Sequence[Part] = ("up", "gate")) -> Array:
    """Return the cosine of every two experts' flattened weights, (E, E); biases are left out.

    Neurons are compared as they stand, so experts that differ in the order of their neurons only look unlike.
    Memory is bounded: a block of neurons at a time.
    """
    tensors = [t for t in (getattr(weights, part) for part in parts) if t is not None]
    if not tensors:
        raise BadData(f"layer {weights.layer} has no {' or '.join(parts)} projection to compare.")
    gram = torch.zeros(weights.experts, weights.experts, dtype=torch.float64)
    for tensor in tensors:
        flat = tensor.detach().reshape(weights.experts, -1)  # (E, I * H)
        step = max(1, CHUNK // weights.experts)
        for start in range(0, flat.shape[1], step):
            block = flat[:, start : start + step].double()
            gram += (block @ block.T).cpu()
    return cosines_of_gram(gram.numpy())
