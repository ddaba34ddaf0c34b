"""Merging and recombining: which experts become one (`GROUPINGS`), and how (entries of `TRANSFORMS`)."""

from moeworks.edit.merge.copies import as_copies
from moeworks.edit.merge.dern import dern, dern_recombine
from moeworks.edit.merge.grouping import GROUPINGS, Grouping, group_layer, merged_by
from moeworks.edit.merge.hc_smoe import hc_smoe
from moeworks.edit.merge.m_smoe import adaptive_counts, m_smoe
from moeworks.edit.merge.mc import Factored, mc, mc_analysis, mc_smoe
from moeworks.edit.merge.mean import aligned_mean, plain_mean
from moeworks.edit.merge.merge_moe import merge_moe, merge_moe_merge
from moeworks.edit.merge.ream import ream, ream_merge
from moeworks.edit.merge.sequential import SequentialChange, sequential_change
from moeworks.edit.merge.sub_moe import sub_moe, sub_moe_merge
from moeworks.edit.merge.zipit import fix_dom, zipit

__all__ = [
    "GROUPINGS",
    "Factored",
    "Grouping",
    "SequentialChange",
    "adaptive_counts",
    "aligned_mean",
    "as_copies",
    "dern",
    "dern_recombine",
    "fix_dom",
    "group_layer",
    "hc_smoe",
    "m_smoe",
    "mc",
    "mc_analysis",
    "mc_smoe",
    "merge_moe",
    "merge_moe_merge",
    "merged_by",
    "plain_mean",
    "ream",
    "ream_merge",
    "sequential_change",
    "sub_moe",
    "sub_moe_merge",
    "zipit",
]
