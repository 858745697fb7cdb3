"""Which blocks of KV memory hold what: blocks are found again by all that was read up to them.

The key of a block is a hash of its token ids, the images among them and the key of the block in
front, so equal keys mean equal contents and nothing of another request can be met by chance. A
block that nobody uses stays findable until its room is needed; the one longest unused goes first.

This module counts block numbers and hashes. It knows no tensors, no model and no requests.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

__all__ = ["PrefixIndex", "block_key"]


def block_key(previous: bytes, ids: Sequence[int], images: Sequence[bytes] = ()) -> bytes:
    """The key of a block of token ids after the block `previous` (b"" at the start).

    `images`: digests of the views that the block's image tokens stand for.
    """
    count = len(ids).to_bytes(4, "little")
    # In one go: a text has dozens of blocks, and whoever asks waits for the keys of all.
    content = b"".join((previous, count, array("q", ids).tobytes(), *images))
    return hashlib.blake2b(content, digest_size=32).digest()


class PrefixIndex:
    """Keys of full blocks, and the blocks without a user in the order they were left."""

    def __init__(self, limit: int) -> None:
        """`limit`: how many blocks without a user are remembered at most; 0 remembers none."""
        self.limit = limit
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def idle(self) -> int:
        """Blocks that nobody uses and that could be found again."""
        return len(self._idle)

    def add(self, block: int, key: bytes) -> None:
        """Let `block` be found by `key`, unless another block is already."""
        if self.limit and key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known beginning of a chain of keys."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def is_idle(self, block: int) -> bool:
        """Whether nobody uses this block, which is remembered."""
        return block in self._idle

    def use(self, block: int) -> None:
        """Somebody uses the block (again)."""
        self._idle.pop(block, None)

    def leave(self, block: int) -> list[int]:
        """The last user left; returns the blocks that are thereby forgotten and free."""
        if block not in self._key_of:
            return [block]
        self._idle[block] = None
        return [self._forget_oldest() for _ in range(len(self._idle) - self.limit)]

    def evict(self) -> int | None:
        """Forget the block longest unused and return it; None if every one is in use."""
        return self._forget_oldest() if self._idle else None

    def clear(self) -> list[int]:
        """Forget every key; returns the blocks that become free. Those in use stay with their
        users and are no longer found."""
        freed = list(self._idle)
        self._idle.clear()
        self._block_of.clear()
        self._key_of.clear()
        return freed

    def _forget_oldest(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        return block
