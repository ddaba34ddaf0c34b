"""What is installed, what each engine can do here, what is missing and what cures it; no paths, no host names."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

from moeworks import __version__

__all__ = ["Diagnosis", "Missing", "doctor"]

_MARKED_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")
_GROUPS = tuple(f"moeworks.{kind}" for kind in ("engines", "scores", "policies"))
_PURPOSES = {
    "transformers": "running models: record, steer, evaluate, generate, study",
    "data": "reading Hugging Face data sets (hf:NAME) and the loaders of public probes",
    "tasks": "evaluate --tasks",
    "watch": "routing as Prometheus text",
    "ray": "record --engine ray: a corpus on several workers",
}


@dataclass(frozen=True)
class Missing:
    """One extra that is not wholly installed."""

    extra: str
    packages: tuple[str, ...]
    purpose: str

    @property
    def cure(self) -> str:
        """The command that installs it."""
        return f"pip install 'moeworks[{self.extra}]'"


@dataclass(frozen=True)
class Diagnosis:
    """Everything that `moeworks doctor` prints."""

    moeworks: str
    python: str
    system: str  # operating system and processor type, no names of this machine
    cores: int
    packages: dict[str, str | None]  # name → version; None: not installed
    devices: tuple[str, ...]  # what torch can compute on; empty without torch
    families: int | None  # mixture-of-experts families that the installed transformers has; None without it
    engines: dict[str, dict[str, str]]  # engine → ability → "" or why not
    extensions: dict[str, list[str]]  # entry-point group → names that other packages add
    missing: tuple[Missing, ...]

    def __str__(self) -> str:
        lines = [f"moeworks {self.moeworks}, Python {self.python}, {self.system}, {self.cores} cores"]
        lines += ["", "packages"]
        width = max(map(len, self.packages))
        lines += [f"  {name:<{width}}  {number or 'not installed'}" for name, number in self.packages.items()]
        lines += ["", f"devices: {', '.join(self.devices) or 'none known without torch'}"]
        if self.families is not None:
            lines.append(f"families: {self.families} in this transformers declare routers; docs/families.md has each")
        for engine, abilities in self.engines.items():
            able = [name for name, reason in abilities.items() if not reason]
            lines += ["", f"engine {engine}: {', '.join(able) if able else 'not available'}"]
            reasons: dict[str, list[str]] = {}
            for name, reason in abilities.items():
                if reason:
                    reasons.setdefault(reason, []).append(name)
            for reason, names in reasons.items():
                lines.append(f"  cannot {', '.join(names)}: {reason}" if able else f"  {reason}")
        for group, names in self.extensions.items():
            lines += ["", f"{group} from other packages: {', '.join(names)}"]
        lines += [""]
        lines += [f"missing: {', '.join(m.packages)}, for {m.purpose}; cure: {m.cure}" for m in self.missing] or [
            "nothing is missing"
        ]
        return "\n".join(lines)


def doctor() -> Diagnosis:
    """Look at this installation; torch and transformers are asked too, if they are there."""
    from moeworks.engines.capabilities import TABLE, abilities

    extras = _extras()
    packages = {name: _version(name) for names in extras.values() for name in names}
    missing = tuple(
        Missing(extra, absent, purpose)
        for extra, purpose in _PURPOSES.items()
        if (absent := tuple(name for name in extras.get(extra, ()) if packages[name] is None))
    )
    return Diagnosis(
        moeworks=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cores=os.cpu_count() or 1,
        packages=packages,
        devices=_devices() if packages.get("torch") else (),
        families=_families() if packages.get("torch") and packages.get("transformers") else None,
        engines={engine: abilities(engine) for engine in TABLE},
        extensions=_extensions(),
        missing=missing,
    )


def _extras() -> dict[str, list[str]]:
    """Return our own requirements by extra ('' for what is always needed), as pip sees them."""
    found: dict[str, list[str]] = {"": [], **{extra: [] for extra in _PURPOSES}}
    for line in requires("moeworks") or ():
        name = re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0]
        marked = _MARKED_EXTRA.search(line)
        extra = marked[1] if marked else ""
        if extra in found:
            found[extra].append(name)
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> tuple[str, ...]:
    import torch

    devices = ["cpu"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return tuple(devices)


def _families() -> int:
    from moeworks.families.tiny import families

    return len(families())


def _extensions() -> dict[str, list[str]]:
    """Return what packages other than moeworks register under our entry-point groups."""
    found = {}
    for group in _GROUPS:
        points = [point for point in entry_points(group=group) if not point.value.startswith("moeworks.")]
        if points:
            found[group] = sorted(point.name for point in points)
    return found
