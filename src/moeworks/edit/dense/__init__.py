"""From a dense model to a mixture of experts that stock engines load: ways to make experts, routers, targets."""

from moeworks.edit.dense.cmoe import cmoe
from moeworks.edit.dense.copies import bam, copy, merge
from moeworks.edit.dense.domains import read_me, unified
from moeworks.edit.dense.factorllm import factorllm
from moeworks.edit.dense.ffn import Ffn, Inputs, Split, from_neurons
from moeworks.edit.dense.partition import partition
from moeworks.edit.dense.registry import UPCYCLINGS
from moeworks.edit.dense.routers import evened, fit_router, local_labels, mean_hidden_rows
from moeworks.edit.dense.source import Dense, dense_of, open_dense
from moeworks.edit.dense.targets import TARGETS
from moeworks.edit.dense.upcycling import Upcycled, make, upcycle

__all__ = [
    "TARGETS",
    "UPCYCLINGS",
    "Dense",
    "Ffn",
    "Inputs",
    "Split",
    "Upcycled",
    "bam",
    "cmoe",
    "copy",
    "dense_of",
    "evened",
    "factorllm",
    "fit_router",
    "from_neurons",
    "local_labels",
    "make",
    "mean_hidden_rows",
    "merge",
    "open_dense",
    "partition",
    "read_me",
    "unified",
    "upcycle",
]
