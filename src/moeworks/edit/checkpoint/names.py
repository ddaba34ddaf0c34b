"""The table of tensor names: which tensor of a layer belongs to an expert, to the router, or to neither.

Names are those after the number of the layer. One table serves files of all families and the parameters of a loaded
model, since both spell experts and routers alike.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

__all__ = ["EXPERT_PARTS", "Match", "Role", "is_extra", "is_other", "match", "split"]

Role = Literal[
    "numbered",  # of one expert, which the name says
    "gate",
    "up",
    "down",
    "fused",  # gate and up in one
    "gate_bias",
    "up_bias",
    "down_bias",
    "fused_bias",
    "flat_gate",  # rows of all experts one below the other
    "flat_up",
    "flat_down",
    "side",  # scales and packed blocks of quantised experts, experts first
    "router",
    "router_bias",
    "selection_bias",
    "expert_scale",
    "table",
    "whole",  # has nothing to do with the number of experts
]

# What stands behind `experts.N.`: gate, up and down under their names.
EXPERT_PARTS: dict[str, Role] = {
    "gate_proj": "gate",
    "w1": "gate",
    "up_proj": "up",
    "w3": "up",
    "down_proj": "down",
    "w2": "down",
    "gate_up_proj": "fused",
}

_STACKED = r"(gate_up_proj|down_proj|up_proj|gate_proj|w13_weight|w2_weight)(\.weight)?"

# The first row that fits the end of a name holds. `E` is the number of experts, `I` neurons of each, `H` wide outside.
_TABLE: tuple[tuple[str, Role], ...] = (
    (r"shared_(experts?|mlp|expert_gate)\..+", "whole"),
    (r"shared_w\d+_weight(_scale)?", "whole"),
    (r"(pre|post)_expert_(norm|proj)\..+", "whole"),
    (r"router\.(scale|norm\.weight)", "whole"),
    (r"gate\.(down_proj|router_mlp\.(fc\d|norm))\.\w+", "whole"),
    (r"gate\.(router_states_scale|global_scale)", "whole"),
    (r"experts\.(?P<expert>\d+)\.(?P<part>.+)", "numbered"),
    (r"experts\.(gate_up_proj|w13_weight|gate_up_proj\.weight|fc1\.weight)", "fused"),
    (r"experts\.(down_proj|w2_weight|down_proj\.weight|fc2\.weight)", "down"),
    (r"experts\.up_proj(\.weight)?", "up"),
    (r"experts\.gate_proj(\.weight)?", "gate"),
    (r"experts\.(gate_up_proj_bias|gate_up_proj\.bias)", "fused_bias"),
    (r"experts\.(down_proj_bias|down_proj\.bias)", "down_bias"),
    (r"experts\.(up_proj_bias|up_proj\.bias)", "up_bias"),
    (r"experts\.(gate_proj_bias|gate_proj\.bias)", "gate_bias"),
    (rf"experts\.{_STACKED}[._](blocks|\w*scales?\w*|qweight|qzeros|g_idx|\w*packed)", "side"),
    (r"experts\.mlp\.w1", "flat_gate"),
    (r"experts\.mlp\.v1", "flat_up"),
    (r"experts\.mlp\.w2", "flat_down"),
    (r"(mlp|block_sparse_moe|^)\.?input_linear\.weight", "fused"),
    (r"(mlp|block_sparse_moe|^)\.?output_linear\.weight", "down"),
    (r"(router|gate)(\.(layer|proj|gate|wg|classifier|linear))?\.weight", "router"),
    (r"gate\.router_mlp\.out_proj\.weight", "router"),
    (r"router(\.(layer|proj|gate|wg|classifier|linear))?\.bias", "router_bias"),
    (r"gate\.router_mlp\.out_proj\.bias", "router_bias"),
    (r"e_score_correction_bias|expert_bias|balancing_biases|gate\.bias", "selection_bias"),
    (r"router\.per_expert_scale", "expert_scale"),
    (r"gate\.tid2eid", "table"),
)
_ROWS = tuple((re.compile(rf"(?P<block>(?:[^.]+\.)*?)(?:{pattern})"), role) for pattern, role in _TABLE)

# Parts of a layer that may be as long as there are experts by chance, and are no experts.
_ELSEWHERE = re.compile(
    r"(^|\.)(self_attn|self_attention|cross_attention|attn|attention|linear_attn|mamba|conv|short_conv|indexer|"
    r"\w*norm\w*|hc_\w+|\w*hyper_connection\w*|\w*residual\w*|\w*sconv\w*|per_layer_\w+|layer_scalar|ple_\w+)(\.|$)"
)
_ATTENTION = re.compile(r"(^|\.)(self_attn|self_attention|attn|attention)\.")
_LAYER = re.compile(r"^(?P<stem>(?:[^.]+\.)*?)(?P<layer>\d+)\.(?P<rest>.+)$")
_EXTRA = re.compile(r"(^|\.)(mtp\w*|nextn\w*|\w*_mtp)\.")
_OTHER = re.compile(r"(^|\.)(vis(ion|ual)\w*|audio\w*|talker|code2wav|code_predictor|encoder)\.")


class Match(NamedTuple):
    """What a name says: the role, what stands before it, and for one expert's tensor which and which part."""

    role: Role
    block: str
    expert: int = -1
    part: str = ""


def split(name: str) -> tuple[str, int, str] | None:
    """Return what stands before the layer's number (with its dot), the number and the rest; None outside layers."""
    found = _LAYER.match(name)
    return None if found is None else (found["stem"], int(found["layer"]), found["rest"])


def is_extra(stem: str) -> bool:
    """Whether layers under this name are for multi-token prediction."""
    return _EXTRA.search(stem) is not None


def is_other(stem: str) -> bool:
    """Whether layers under this name belong to another model than the text decoder: vision, audio, speech."""
    return _OTHER.search(stem) is not None


def match(rest: str) -> Match | None:
    """Return the role of a tensor by its name within a layer; None if the table does not know it."""
    for pattern, role in _ROWS:
        found = pattern.fullmatch(rest)
        if found is None:
            continue
        groups = found.groupdict()
        if role not in ("whole", "numbered") and _ATTENTION.search(rest):
            return None  # experts of attention, which share their number with the others
        return Match(
            role, found["block"], int(groups["expert"]) if groups.get("expert") else -1, groups.get("part") or ""
        )
    named = re.search(r"expert|router", rest)
    return Match("whole", "") if named is None and _ELSEWHERE.search(rest) else None
