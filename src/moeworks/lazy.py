"""Names of a package that are loaded when they are first used, so that importing the package is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["lazily"]


def lazily(
    package: str, homes: Mapping[str, str], *, rooms: Collection[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package.

    A module and a function in it may have one name, as `moeworks.find`: it stays the function once the module is
    imported.

    Args:
        package: its `__name__`.
        homes: public name → the module below the package that has it.
        rooms: names of packages below it that are handed out as they are.
    """

    class Package(ModuleType):
        """The package's own class, which keeps a module from taking a function's place."""

        def __setattr__(self, name: str, value: Any) -> None:
            if not (isinstance(value, ModuleType) and name in homes):
                super().__setattr__(name, value)

    module = sys.modules[package]
    module.__class__ = Package

    def get(name: str) -> Any:
        if name in rooms:
            return import_module(f"{package}.{name}")
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    def names() -> list[str]:
        return sorted({*vars(module), *homes, *rooms})

    return get, names
