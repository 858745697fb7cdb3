"""Blocks of the KV cache: which sequence has which, and which can be found by their contents.

`BlockPool` counts users of blocks and remembers what idle blocks hold (the prefix cache).
`BlockManager` allocates blocks of the pool to sequences. The hash of a block covers its token ids,
the images among them and the hash of the block before, so equal hashes mean equal contents.

This module does accounting. It knows no tensors of the cache and no model.
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import OrderedDict, abc

from vip_llava.engine.sequence import Sequence
from vip_llava.kernels import BLOCK_SIZE

__all__ = ["BlockManager", "BlockPool", "block_hash"]


def block_hash(previous: bytes, ids: abc.Sequence[int], images: abc.Sequence[bytes] = ()) -> bytes:
    """The hash of a block of token ids after the block `previous` (b"" at the start).

    `images`: digests of the views that the block's image tokens stand for.
    """
    count = len(ids).to_bytes(4, "little")
    content = b"".join((previous, count, array("q", ids).tobytes(), *images))
    return hashlib.blake2b(content, digest_size=32).digest()


class BlockPool:
    """Blocks 0 to `num_blocks` - 1, each free, used by sequences, or idle.

    An idle block has no user, but its contents can be found by their hash until the block is
    needed. Idle blocks are evicted in the order in which they lost their last user. Not
    thread-safe.
    """

    def __init__(self, num_blocks: int, max_idle: int | None = None) -> None:
        """`max_idle`: limit of idle blocks (None: all blocks). 0 disables the prefix cache."""
        self.num_blocks = num_blocks
        self.max_idle = num_blocks if max_idle is None else max_idle
        # A heap, so that the lowest blocks come first and unneeded memory is never touched.
        self._free = list(range(num_blocks))
        self._users = [0] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that `take` can return: free and idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        """Blocks that have a user."""
        return self.num_blocks - self.num_available

    @property
    def num_idle(self) -> int:
        """Blocks without a user that can be found by their contents."""
        return len(self._idle)

    def take(self) -> int | None:
        """A block for one user, evicting an idle one if none is free; None if all are used."""
        if not self._free and not self._idle:
            return None
        block = heapq.heappop(self._free) if self._free else self._evict()
        self._users[block] = 1
        return block

    def cache(self, block: int, contents: bytes) -> None:
        """Make a used block findable by its hash, unless another block with it is already."""
        if self.max_idle and contents not in self._block_of and block not in self._hash_of:
            self._block_of[contents] = block
            self._hash_of[block] = contents

    def find(self, hashes: abc.Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix of a chain of hashes."""
        found = []
        for contents in hashes:
            block = self._block_of.get(contents)
            if block is None:
                break
            found.append(block)
        return found

    def count_idle(self, blocks: abc.Iterable[int]) -> int:
        """How many of these blocks are idle."""
        return sum(block in self._idle for block in blocks)

    def share(self, blocks: abc.Iterable[int]) -> None:
        """Add a user to each of these blocks, which `find` returned."""
        for block in blocks:
            self._users[block] += 1
            self._idle.pop(block, None)

    def release(self, blocks: abc.Sequence[int]) -> None:
        """Remove a user from each of these blocks, given in the order of the sequence.

        The last block becomes idle first and is thus evicted first: the beginning is what other
        sequences more likely share.
        """
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._hash_of:
                self._idle[block] = None
                while len(self._idle) > self.max_idle:
                    heapq.heappush(self._free, self._evict())
            else:
                heapq.heappush(self._free, block)

    def clear(self) -> None:
        """Forget all contents. Used blocks stay with their users and are not found again."""
        for block in self._idle:
            heapq.heappush(self._free, block)
        self._idle.clear()
        self._block_of.clear()
        self._hash_of.clear()

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._hash_of.pop(block)]
        return block


class BlockManager:
    """Allocates the blocks of its pool to sequences. Not thread-safe; the engine holds a lock."""

    def __init__(self, num_blocks: int, max_idle: int | None = None) -> None:
        """See `BlockPool`."""
        self.pool = BlockPool(num_blocks, max_idle)

    def find_prefix(self, seq: Sequence) -> list[int] | None:
        """Cached blocks that a waiting sequence can start from; None if it does not fit now.

        It fits if all its tokens and one more do.
        """
        cached: list[int] = []
        if self.pool.max_idle:
            # One token at least is left to compute: the next one is sampled from its logits.
            full = (seq.num_tokens - 1) // BLOCK_SIZE
            self._extend_hashes(seq, full)
            cached = self.pool.find(seq.block_hashes[:full])
        needed = -(-(seq.num_tokens + 1) // BLOCK_SIZE) - len(cached)
        fits = needed <= self.pool.num_available - self.pool.count_idle(cached)
        return cached if fits else None

    def allocate(self, seq: Sequence, cached: list[int]) -> None:
        """Give a waiting sequence the blocks that `find_prefix` returned, and all others it needs."""
        self.pool.share(cached)
        seq.block_table = cached
        seq.num_computed = len(cached) * BLOCK_SIZE
        if not seq.output_ids:
            seq.num_cached = seq.num_computed
        self.grow(seq, seq.num_pending + 1)

    def missing(self, seq: Sequence, count: int) -> int:
        """How many blocks a sequence lacks for `count` more tokens."""
        return max(0, -(-(seq.num_computed + count) // BLOCK_SIZE) - len(seq.block_table))

    def grow(self, seq: Sequence, count: int) -> bool:
        """Add blocks for `count` more tokens, as far as there are any; whether it has all now."""
        for _ in range(self.missing(seq, count)):
            block = self.pool.take()
            if block is None:
                return False
            seq.block_table.append(block)
        return True

    def advance(self, seq: Sequence, count: int) -> None:
        """`count` more tokens of a sequence are in the KV cache; cache the blocks they filled."""
        before = seq.num_computed // BLOCK_SIZE
        seq.num_computed += count
        full = seq.num_computed // BLOCK_SIZE
        if self.pool.max_idle and full > before:
            self._extend_hashes(seq, full)
            for at in range(before, full):
                self.pool.cache(seq.block_table[at], seq.block_hashes[at])

    def free(self, seq: Sequence) -> None:
        """Take all blocks from a sequence."""
        self.pool.release(seq.block_table)
        seq.block_table = []
        seq.num_computed = 0
        seq.image_features = None

    @staticmethod
    def _extend_hashes(seq: Sequence, count: int) -> None:
        """Compute the hashes of the first `count` blocks, which must be full."""
        begin = len(seq.block_hashes) * BLOCK_SIZE
        ids = seq.ids(begin, count * BLOCK_SIZE)
        previous = seq.block_hashes[-1] if seq.block_hashes else b""
        for start in range(begin, count * BLOCK_SIZE, BLOCK_SIZE):
            images: list[bytes] = []
            first, last = seq.image_range(start, start + BLOCK_SIZE)
            if last > first:
                per_view = len(seq.image_positions) // len(seq.view_digests)
                images = seq.view_digests[first // per_view : (last - 1) // per_view + 1]
            block = ids[start - begin : start - begin + BLOCK_SIZE]
            previous = block_hash(previous, block, images)
            seq.block_hashes.append(previous)
