"""A small integer random generator, the same on every machine and for every library version.

Holds SplitMix64 (Steele, Lea and Flood 2014) and the draws that the scenes need. Never uses floats or the `random` module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

Item = TypeVar("Item")


def text_hash(text: str) -> int:
    """64-bit FNV-1a hash of the UTF-8 bytes of `text`."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & _WORD
    return value


class RandomStream:
    """Random integers of one named purpose.

    Parameters
    ----------
    purpose : str
        What the stream is for; streams of different purposes are unrelated.
    index : int
        Number of the scene within the purpose; every index starts its own stream.
    """

    def __init__(self, purpose: str, index: int = 0) -> None:
        self._state = text_hash(f"{purpose}/{index}")

    def word(self) -> int:
        """The next 64 random bits."""
        self._state = (self._state + _GOLDEN) & _WORD
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
        return z ^ (z >> 31)

    def below(self, n: int) -> int:
        """An integer in 0 .. n - 1."""
        return (self.word() >> 11) % n

    def between(self, low: int, high: int) -> int:
        """An integer in low .. high, both included."""
        return low + self.below(high - low + 1)

    def percent(self, share: int) -> bool:
        """True with a probability of `share` per cent."""
        return self.below(100) < share

    def choice(self, items: Sequence[Item]) -> Item:
        """One of `items`."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[Item], n: int) -> list[Item]:
        """`n` different ones of `items`, in random order (Fisher-Yates)."""
        pool = list(items)
        for i in range(n):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:n]

    def weighted(self, weights: Sequence[int]) -> int:
        """An index, drawn in proportion to the integer `weights`."""
        ticket = self.below(sum(weights))
        for index, weight in enumerate(weights):
            ticket -= weight
            if ticket < 0:
                return index
        raise AssertionError("weights sum to more than the ticket")
