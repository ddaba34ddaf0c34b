"""Profiles and placements in the formats that engines and offload runtimes read, and back."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from moeworks.artefact import replace_file
from moeworks.errors import BadData, did_you_mean, need
from moeworks.place.eplb import Placement
from moeworks.place.profile import Profile
from moeworks.stats.counts import layers_of
from moeworks.where import PHASES, Phase, Where

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = [
    "COUNT_FORMATS",
    "PLACEMENT_FORMATS",
    "CountFormat",
    "PlacementFormat",
    "export_counts",
    "export_placement",
    "export_routing",
    "read_counts",
    "read_placement",
    "read_routing",
]

Array = NDArray[Any]
CountFormat = Literal["table", "sglang", "ktransformers", "exllamav3"]
PlacementFormat = Literal["sglang", "vllm", "vllm-ascend"]
PROMPT = PHASES.index("prompt")


class Format(NamedTuple):
    """What a format is, who reads it, and how sure that is."""

    what: str
    read_by: str
    source: str


COUNT_FORMATS: Mapping[str, Format] = {
    "table": Format("CSV: layer,expert,phase,runs", "any program", "ours"),
    "sglang": Format(
        'JSON {"logical_count": [layers][experts]}, a row for each hidden layer, zeros where it is dense',
        "SGLang `--init-expert-location FILE.json`, which makes an EPLB placement of it",
        "read in SGLang's eplb/expert_location.py; rows for dense layers as in 0.5.23",
    ),
    "ktransformers": Format(
        '.pt with a tensor "logical_count" (1, layers, experts), a row for each hidden layer',
        "KTransformers `--kt-expert-placement-strategy frequency`, with the file as `--init-expert-location`",
        "read in kt-kernel and its SGLang branch; later versions name the file by `--kt-expert-frequency-file`",
    ),
    "exllamav3": Format(
        'JSON {"<module>": [runs]} for .json, or arrays counts_decode and counts_prefill (1, layers, experts) for .npz',
        "ExLlamaV3 `--moe_cpu_profile`",
        "read in the proposal turboderp-org/exllamav3#315, not in a release; the names of the modules are recalled",
    ),
}
PLACEMENT_FORMATS: Mapping[str, Format] = {
    "sglang": Format(
        'JSON {"physical_to_logical_map": [layers][slots]}, a row for each hidden layer',
        "SGLang `--init-expert-location FILE.json` with `--ep-num-redundant-experts`",
        "read in SGLang's eplb/expert_location.py",
    ),
    "vllm": Format(
        "JSON [layers with routers][slots]",
        "vLLM `initial_expert_map_path` of `--eplb-config`",
        "as the proposal vllm-project/vllm#49572 describes it; no release reads a placement (0.33 has none)",
    ),
    "vllm-ascend": Format(
        "JSON moe_layer_count, layer_list of layer_id, device_count, device_list of device_id, device_expert",
        "vLLM Ascend `expert_map_path` of `eplb_config`",
        "its feature guide names the file; the fields are read in its tests and in a generator for it",
    ),
}


def export_counts(
    profile: Profile,
    path: str | Path,
    *,
    to: CountFormat,
    phase: Phase | None = None,
    hidden_layers: int | None = None,
    module: str = "model.layers.{layer}.mlp",
) -> Path:
    """Write how often each expert ran in a format that a placement tool reads; see `COUNT_FORMATS`.

    Args:
        profile: the profile.
        path: the file; its suffix decides between .json and .npz for ExLlamaV3.
        to: the format.
        phase: count only these tokens; offload runtimes decide by decode. All, unless given.
        hidden_layers: layers of the model, dense ones counted; up to the last router, unless given.
        module: how ExLlamaV3 names the module of a layer.

    Raises:
        BadData: unknown format, or layers with different numbers of experts where one table is wanted.
    """
    if to not in COUNT_FORMATS:
        raise BadData(f"counts cannot be written as '{to}'; {did_you_mean(to, COUNT_FORMATS)}")
    target = Path(path)
    counts = profile.counts(phase)
    with replace_file(target) as temporary:
        if to == "table":
            _write_table(profile, temporary, phase)
        elif to == "sglang":
            rows = _all_layers(counts, hidden_layers).tolist()
            temporary.write_text(json.dumps({"logical_count": rows}))
        elif to == "ktransformers":
            _write_tensor(_all_layers(counts, hidden_layers)[None], temporary)
        elif target.suffix == ".npz":
            prompt = np.stack(list(profile.counts("prompt").values()))[None]
            decode = np.stack(list(profile.counts().values()))[None] - prompt
            with temporary.open("wb") as file:  # a name would get the suffix once more
                np.savez_compressed(file, counts_decode=decode, counts_prefill=prompt)
        else:
            temporary.write_text(json.dumps({module.format(layer=n): runs.tolist() for n, runs in counts.items()}))
    return target


def read_counts(path: str | Path, *, form: CountFormat) -> dict[int, Array]:
    """Read such a file back, layer → (E,) int64; layers that never ran are left out where dense ones are zeros.

    The .npz of ExLlamaV3 does not name layers: they are numbered from 0.
    """
    file = Path(path)
    try:
        if form == "table":
            table = pyarrow.csv.read_csv(file)
            layer, expert, runs = (table[name].to_numpy() for name in ("layer", "expert", "runs"))
            counts = {}
            for number in np.unique(layer).tolist():
                mine = layer == number
                counts[number] = np.bincount(expert[mine], weights=runs[mine]).astype(np.int64)
            return counts
        if form == "ktransformers":
            rows = np.asarray(_torch("Reading a .pt file").load(file, weights_only=True)["logical_count"]).sum(0)
        elif form == "sglang":
            rows = np.array(json.loads(file.read_text())["logical_count"], np.int64)
            rows = rows.sum(0) if rows.ndim == 3 else rows
        elif file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                whole = (arrays["counts_decode"] + arrays["counts_prefill"]).sum(0)
            return dict(enumerate(whole))
        else:
            named = json.loads(file.read_text())
            return {_number(name): np.array(runs, np.int64) for name, runs in named.items()}
    except (OSError, KeyError, ValueError, TypeError, pa.ArrowInvalid) as error:
        raise BadData(f"{file} is no {form} table of counts: {error}.") from error
    return {n: row.astype(np.int64) for n, row in enumerate(rows) if row.any()}


def export_placement(
    placements: Mapping[int, Placement], path: str | Path, *, to: PlacementFormat, hidden_layers: int | None = None
) -> Path:
    """Write where copies of experts lie, layer → placement of one layer each; see `PLACEMENT_FORMATS`.

    SGLang wants a row for each hidden layer; dense ones get experts in their own order, which nothing reads.

    Raises:
        BadData: unknown format, no layer, or layers with different numbers of slots.
    """
    if to not in PLACEMENT_FORMATS:
        raise BadData(f"a placement cannot be written as '{to}'; {did_you_mean(to, PLACEMENT_FORMATS)}")
    rows = {layer: one.physical_to_logical[0] for layer, one in placements.items()}
    if len({len(row) for row in rows.values()}) != 1:
        raise BadData("layers with different numbers of slots do not fit one table; place fewer layers.")
    target = Path(path)
    document: Any
    if to == "vllm":
        document = [row.tolist() for row in rows.values()]
    elif to == "sglang":
        slots = len(next(iter(rows.values())))
        experts = next(iter(placements.values())).copies.shape[1]
        trivial = (np.arange(slots) % experts).tolist()
        count = _hidden(rows, hidden_layers)
        document = {"physical_to_logical_map": [rows[n].tolist() if n in rows else trivial for n in range(count)]}
    else:
        gpus = next(iter(placements.values())).gpus
        layers = [
            {
                "layer_id": number,
                "device_count": gpus,
                "device_list": [
                    {"device_id": gpu, "device_expert": mine.tolist()} for gpu, mine in enumerate(row.reshape(gpus, -1))
                ],
            }
            for number, row in enumerate(rows.values())
        ]
        document = {"moe_layer_count": len(layers), "layer_list": layers}
    with replace_file(target) as temporary:
        temporary.write_text(json.dumps(document))
    return target


def read_placement(path: str | Path, *, form: PlacementFormat) -> Array:
    """Read such a file back: the expert in each slot, (rows, slots)."""
    try:
        document = json.loads(Path(path).read_text())
        if form == "sglang":
            document = document["physical_to_logical_map"]
        elif form == "vllm-ascend":
            document = [
                [expert for device in layer["device_list"] for expert in device["device_expert"]]
                for layer in document["layer_list"]
            ]
        return np.array(document, np.int64)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise BadData(f"{path} is no {form} placement: {error}.") from error


def export_routing(trace: Trace, path: str | Path, *, where: Where = Where(), as_decode: bool = False) -> Path:
    """Write a routing profile as llama.cpp's expert-cache experiments read it: rows `pos,layer,id0,id1,…`.

    Prompt tokens have negative positions, as their tool writes them; positions go on over all texts. A slot that did
    not run is left empty. The readers count rows, so that files can be joined. With `as_decode`, prompt tokens get
    positions of decoded ones, for traces of prompts alone and readers that leave prompts out.

    Source: the head of tools/moe-trace of thecodacus/llama.cpp, read by its `--moe-cache-profile`; upstream llama.cpp
    has no such option, and other forks write other columns.

    Raises:
        BadData: no token is selected.
    """
    target = Path(path)
    layers = list(layers_of(trace, where))
    widest = max(trace.header.shape_of(layer).top_k for layer in layers)
    names = ["pos", "layer", *(f"id{slot}" for slot in range(widest))]
    schema = pa.schema([(name, pa.int64()) for name in names])
    options = pyarrow.csv.WriteOptions(include_header=False)
    with replace_file(target) as temporary, pyarrow.csv.CSVWriter(temporary, schema, write_options=options) as writer:
        written = 0
        for table in _routing(trace, layers, where, widest, schema, as_decode):
            writer.write_table(table)
            written += len(table)
        if not written:
            raise BadData(f"no token matches the clause '{where}'.")
    return target


def read_routing(path: str | Path) -> dict[int, dict[int, int]]:
    """Count such a file: layer → expert → rows with it, prompt and decode together."""
    counts: dict[int, dict[int, int]] = {}
    with Path(path).open(newline="") as file:
        for row in csv.reader(file):
            layer = counts.setdefault(int(row[1]), {})
            for word in row[2:]:
                if word:
                    layer[int(word)] = layer.get(int(word), 0) + 1
    return counts


def _routing(trace: Trace, layers: list[int], where: Where, widest: int, schema: Any, as_decode: bool) -> Iterator[Any]:
    requests = trace.request_table()
    prompts = decodes = 0
    for part in trace.parts:
        rows = part.rows()
        kept = np.flatnonzero(where.mask(rows, requests))
        prompt = (rows.phase[kept] == PROMPT) & (not as_decode)
        position = np.where(prompt, -(prompts + np.cumsum(prompt)), decodes + np.cumsum(~prompt) - 1)
        prompts, decodes = prompts + int(prompt.sum()), decodes + int((~prompt).sum())
        grid = np.full((len(kept), len(layers), widest), -1, np.int64)
        for number, layer in enumerate(layers):
            ids = part.ids(layer)[kept].astype(np.int64)
            grid[:, number, : ids.shape[1]] = np.where(part.weights(layer)[kept] != 0, ids, -1)
        flat = grid.reshape(-1, widest)
        columns = [np.repeat(position, len(layers)), np.tile(layers, len(kept))]
        slots = [pa.array(flat[:, slot], mask=flat[:, slot] < 0) for slot in range(widest)]
        yield pa.Table.from_arrays([*map(pa.array, columns), *slots], schema=schema)


def _write_table(profile: Profile, path: Path, phase: Phase | None) -> None:
    lines = [
        (layer.layer, expert, one.phase, runs)
        for layer in profile.layers
        for one in layer.phases
        if phase is None or one.phase == phase
        for expert, runs in enumerate(one.runs)
    ]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("layer", "expert", "phase", "runs"))
        writer.writerows(lines)


def _hidden(rows: Mapping[int, Any], hidden_layers: int | None) -> int:
    count = max(rows) + 1 if hidden_layers is None else hidden_layers
    if count <= max(rows):
        raise BadData(f"a model of {count} layers has no router in layer {max(rows)}.")
    return count


def _all_layers(counts: Mapping[int, Array], hidden_layers: int | None) -> Array:
    """Return one row for each hidden layer, (layers, E) int64, zeros where there is no router."""
    if len({len(runs) for runs in counts.values()}) != 1:
        raise BadData("layers with different numbers of experts do not fit one table; choose layers by a clause.")
    table = np.zeros((_hidden(counts, hidden_layers), len(next(iter(counts.values())))), np.int64)
    for layer, runs in counts.items():
        table[layer] = runs
    return table


def _number(module: str) -> int:
    """Return the layer in the name of a module."""
    numbers = [word for word in module.split(".") if word.isdecimal()]
    if not numbers:
        raise BadData(f"the module '{module}' names no layer.")
    return int(numbers[0])


def _write_tensor(table: Array, path: Path) -> None:
    torch = _torch("Writing a .pt file")
    with path.open("wb") as file:
        torch.save({"logical_count": torch.from_numpy(table)}, file)


def _torch(purpose: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise need("torch", "transformers", purpose) from error
    return torch


assert set(COUNT_FORMATS) == set(get_args(CountFormat))
assert set(PLACEMENT_FORMATS) == set(get_args(PlacementFormat))
