"""Experts in fewer numbers: ranks first, then operators with their errors, then what can be written of them.

Each operator is a function `(layer weights, statistics or None, **options) -> Factors`; `measure` says what it costs.
"""

from moeworks.edit.compress.base_delta import base_delta
from moeworks.edit.compress.compressed_experts import compressed_experts
from moeworks.edit.compress.experts import CompressedExperts, module_of
from moeworks.edit.compress.factors import COMPRESSIONS, Factors, dense
from moeworks.edit.compress.folder import load_compressed, load_factors, save_compressed
from moeworks.edit.compress.install import install, install_all
from moeworks.edit.compress.lora import save_lora
from moeworks.edit.compress.measure import Measured, measure, output_error
from moeworks.edit.compress.mobe import mobe
from moeworks.edit.compress.mole import mole
from moeworks.edit.compress.rank_table import effective_rank, energy_curve, ranks, stable_rank
from moeworks.edit.compress.run import compress, write_compressed, write_dense, write_lora
from moeworks.edit.compress.ternary import ternary

__all__ = [
    "COMPRESSIONS",
    "CompressedExperts",
    "Factors",
    "Measured",
    "base_delta",
    "compress",
    "compressed_experts",
    "dense",
    "effective_rank",
    "energy_curve",
    "install",
    "install_all",
    "load_compressed",
    "load_factors",
    "measure",
    "mobe",
    "module_of",
    "mole",
    "output_error",
    "ranks",
    "save_compressed",
    "save_lora",
    "stable_rank",
    "ternary",
    "write_compressed",
    "write_dense",
    "write_lora",
]
