"""Peak memory and time of writing an edited checkpoint, over a sharded random one of a few hundred MB; prints JSON.

Each run is a process of its own, which looks first (`check_apply`, so that everything is imported), lets the kernel
start its peak anew, and then writes: the peak beyond what it held before is given, also in largest source shards. Pages
of the mapped source files that it touches count. A merge needs what its transform makes of one layer beside the shard
that is being filled, whatever size shards have. Linux only.

    python benchmarks/edit_apply.py [--layers 8] [--experts 32] [--hidden 512] [--neurons 512] [--shard-mb 60]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

CASES = {
    "cut, one tensor an expert": ("qwen3_moe", "cut"),
    "cut, all experts in one tensor": ("granitemoe", "cut"),
    "merge in pairs": ("qwen3_moe", "mean"),
}


def write_source(folder: Path, family: str, sizes: argparse.Namespace) -> None:
    """Write a random checkpoint one layer a file, so that the writing needs little memory itself."""
    config: dict[str, Any] = {
        "vocab_size": 1024,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "num_experts_per_tok": 2,
        "num_local_experts": sizes.experts,
        "intermediate_size": sizes.neurons,
        "dtype": "bfloat16",
    }
    if family == "qwen3_moe":
        config |= {"moe_intermediate_size": sizes.neurons, "head_dim": sizes.hidden // 8}
    kind = transformers.AutoConfig.for_model(family, **config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(kind)
    folder.mkdir()
    kind.architectures = [type(model).__name__]
    kind.save_pretrained(folder)
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    total = filled = number = 0

    def close() -> None:
        nonlocal shard, filled, number
        number += 1
        file = f"model-{number:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
        shard, filled = {}, 0

    for name, shape in stored(model, family, sizes):
        tensor = torch.randn(shape).mul_(0.02).bfloat16()
        if filled + tensor.nbytes > sizes.shard_mb * 10**6:
            close()
        shard[name] = tensor
        filled += tensor.nbytes
        total += tensor.nbytes
    close()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def stored(model: Any, family: str, sizes: argparse.Namespace) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and shapes as they are on disk."""
    found: list[tuple[str, tuple[int, ...]]] = []
    for name, tensor in model.state_dict().items():
        if family == "qwen3_moe" and name.endswith("experts.gate_up_proj"):
            base = name.removesuffix("gate_up_proj")
            for e in range(sizes.experts):
                found += [
                    (f"{base}{e}.{part}.weight", (sizes.neurons, sizes.hidden)) for part in ("gate_proj", "up_proj")
                ]
        elif family == "qwen3_moe" and name.endswith("experts.down_proj"):
            base = name.removesuffix("down_proj")
            found += [(f"{base}{e}.down_proj.weight", (sizes.hidden, sizes.neurons)) for e in range(sizes.experts)]
        else:
            found.append((name, tuple(tensor.shape)))
    return found


def memory(what: str) -> int:
    """Return a number of this process's memory, in bytes: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


def run(source: Path, output: Path, transform: str) -> dict[str, float]:
    """Apply a plan that keeps half and return what that took."""
    from moeworks.edit.apply import apply, check_apply, draft_plan
    from moeworks.edit.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(source)
    plan = draft_plan(checkpoint, 0.5)
    if transform != "cut":
        half = checkpoint.settings.experts // 2
        groups = tuple(((e, 1.0), (e + half, 1.0)) for e in range(half))
        cuts = tuple(cut.model_copy(update={"groups": groups}) for cut in plan.layers)
        plan = plan.model_copy(update={"layers": cuts, "transform": transform})
    check_apply(checkpoint, plan)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    done = apply(checkpoint, plan, output)
    return {
        "seconds": time.perf_counter() - start,
        "peak": memory("VmHWM") - before,
        "largest_shard": checkpoint.files.largest_file(),
        "files": len(list(source.glob("*.safetensors"))),
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--neurons", type=int, default=512)
    parser.add_argument("--shard-mb", type=int, default=60)
    parser.add_argument("--child", nargs=3, metavar=("SOURCE", "OUTPUT", "TRANSFORM"))
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(run(Path(chosen.child[0]), Path(chosen.child[1]), chosen.child[2])))
        return
    results = {}
    with tempfile.TemporaryDirectory() as name:
        for number, (case, (family, transform)) in enumerate(CASES.items()):
            source = Path(name) / family
            if not source.exists():
                write_source(source, family, chosen)
            child = [sys.executable, __file__, "--child", str(source), f"{name}/{number}", transform]
            ran = subprocess.run(child, check=True, capture_output=True, text=True)
            written = json.loads(ran.stdout.splitlines()[-1])
            results[case] = {
                "source_mb": round(written["bytes_before"] / 1e6),
                "files": written["files"],
                "layer_mb": round(chosen.experts * 3 * chosen.hidden * chosen.neurons * 2 / 1e6, 1),
                "largest_shard_mb": round(written["largest_shard"] / 1e6, 1),
                "output_mb": round(written["bytes_after"] / 1e6),
                "seconds": round(written["seconds"], 2),
                "peak_mb": round(written["peak"] / 1e6, 1),
                "peak_in_shards": round(written["peak"] / written["largest_shard"], 2),
            }
    print(json.dumps({"python": platform.python_version(), "torch": torch.__version__, "cases": results}, indent=2))


if __name__ == "__main__":
    main()
