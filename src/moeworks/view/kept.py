"""Keeps what was computed of a trace, by the trace's hash, in bounded memory, and computes it once at a time."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from moeworks.trace import Trace

__all__ = ["KEPT", "Kept", "trace_hash"]

T = TypeVar("T")
_SMALL = 16_384  # bytes that a value without a size of its own counts for
_hashes: WeakKeyDictionary[Trace, str] = WeakKeyDictionary()


class Kept:
    """Values by key; those that were not asked for the longest go first once there are too many bytes of them."""

    def __init__(self, most_bytes: int = 128 << 20) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of a key, made by one caller while others wait for it."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return cast(T, self._values[key][0])
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._values:
                    return cast(T, self._values[key][0])
            try:
                value = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            with self._lock:
                self._put(key, value)
            return value

    def _put(self, key: Hashable, value: Any) -> None:
        size = int(getattr(value, "nbytes", _SMALL))
        if size > self.most_bytes // 2 or key in self._values:
            return
        self._values[key] = value, size
        self.bytes += size
        while self.bytes > self.most_bytes:
            _, (_, gone) = self._values.popitem(last=False)
            self.bytes -= gone


KEPT = Kept()


def trace_hash(trace: Trace) -> str:
    """Return the hash of a trace: of its header, which holds the hashes of all its files."""
    if trace not in _hashes:
        _hashes[trace] = hashlib.blake2b(trace.header.model_dump_json().encode(), digest_size=16).hexdigest()
    return _hashes[trace]
