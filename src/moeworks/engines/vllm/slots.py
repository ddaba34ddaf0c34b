"""Which slot of the bank belongs to which edits: shared by digest, counted, given back when requests finish."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from moeworks.errors import RunFailed

__all__ = ["Slots"]

Key = tuple[str, tuple[int, ...]]  # digest of a spec, numbers of the clauses that hold


@dataclass
class Slots:
    """Slots 1 to `total` - 1; slot 0 is neutral and never given away.

    Attributes:
        total: slots of the bank.
        write: called with a slot and its key when it gets contents.
        clear: called with a slot whose contents are given up.

    A slot that nobody uses any more keeps its contents while there are free ones: the next request under the same plan
    finds it filled.
    """

    total: int
    write: Callable[[int, Key], None]
    clear: Callable[[int], None]
    _slots: dict[Key, int] = field(default_factory=dict)
    _users: dict[int, int] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)
    _idle: OrderedDict[int, Key] = field(default_factory=OrderedDict)  # filled and unused, the longest first

    def __post_init__(self) -> None:
        self._free = list(range(self.total - 1, 0, -1))

    @property
    def used(self) -> int:
        """Slots that some request holds."""
        return len(self._users)

    def take(self, key: Key) -> int:
        """Return the slot of a key, filled; each call must be paired with `give_back`."""
        slot = self._slots.get(key)
        if slot is None:
            if not self._free and self._idle:
                old, unused = self._idle.popitem(last=False)
                del self._slots[unused]
                self.clear(old)
                self._free.append(old)
            if not self._free:
                raise RunFailed(f"all {self.total - 1} slots of the plan bank are in use; this is a fault of moeworks.")
            slot = self._free.pop()
            self.write(slot, key)
            self._slots[key] = slot
        self._idle.pop(slot, None)
        self._users[slot] = self._users.get(slot, 0) + 1
        return slot

    def give_back(self, slot: int) -> None:
        """Release one use of a slot."""
        self._users[slot] -= 1
        if self._users[slot]:
            return
        del self._users[slot]
        self._idle[slot] = next(key for key, place in self._slots.items() if place == slot)
