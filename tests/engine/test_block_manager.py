"""A block has no unexpected users and is found only by its contents."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vip_llava.engine.block_manager import BlockPool, block_hash
from vip_llava.engine.kv_cache import KVCache, StepCache


def test_a_hash_covers_everything_up_to_the_block() -> None:
    first = block_hash(b"", [1, 2])
    others = {
        block_hash(b"", [2, 1]),
        block_hash(b"", [1, 2], [b"image"]),
        block_hash(b"", [1, 2], [b"another"]),
        block_hash(first, [1, 2]),
        block_hash(b"", [1]),
    }
    assert first == block_hash(b"", [1, 2]) not in others
    assert len(others) == 5


def test_the_lowest_blocks_come_first_and_none_when_all_are_used() -> None:
    pool = BlockPool(3)
    assert [pool.take() for _ in range(4)] == [0, 1, 2, None]
    pool.release([1])
    assert (pool.num_available, pool.take()) == (1, 1)


def test_a_block_is_found_until_it_is_needed() -> None:
    pool = BlockPool(3)
    mine = [pool.take(), pool.take()]
    hashes = [block_hash(b"", [1]), block_hash(b"", [2])]
    for block, contents in zip(mine, hashes, strict=True):
        assert block is not None
        pool.cache(block, contents)
    pool.release([0, 1])
    assert (pool.num_available, pool.count_idle([0, 1, 2])) == (3, 2)
    assert pool.find([*hashes, b"unknown"]) == [0, 1]
    assert pool.find([b"unknown", *hashes]) == []
    # The free block first, then the end of the released sequence.
    assert [pool.take(), pool.take()] == [2, 1]
    assert pool.find(hashes) == [0]
    pool.share([0])
    assert pool.take() is None
    pool.clear()
    assert pool.find(hashes) == []
    pool.release([0])
    assert pool.take() == 0


def test_the_number_of_idle_blocks_is_limited() -> None:
    pool = BlockPool(8, max_idle=2)
    hashes = [bytes([number]) for number in range(4)]
    for number, contents in enumerate(hashes):
        assert pool.take() == number
        pool.cache(number, contents)
    pool.release([0, 1, 2, 3])
    assert pool.find(hashes) == [0, 1]
    assert (pool.num_idle, pool.num_available) == (2, 8)
    disabled = BlockPool(2, max_idle=0)
    assert disabled.take() == 0
    disabled.cache(0, b"hash")
    disabled.release([0])
    assert disabled.find([b"hash"]) == []


class PoolMachine(RuleBasedStateMachine):
    """Random users of few blocks, beside a model of their contents."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6, max_idle=4)
        self.users: list[list[int]] = []
        self.contents: dict[bytes, int] = {}

    @rule(count=st.integers(1, 3))
    def take(self, count: int) -> None:
        taken = [self.pool.take() for _ in range(count)]
        mine = [block for block in taken if block is not None]
        others = {block for user in self.users for block in user}
        assert not others & set(mine)
        assert len(set(mine)) == len(mine)
        self.contents = {key: block for key, block in self.contents.items() if block not in mine}
        self.users.append(mine)

    @precondition(lambda self: any(self.users))
    @rule(data=st.data(), name=st.integers(0, 5))
    def cache(self, data: st.DataObject, name: int) -> None:
        user = data.draw(st.sampled_from([user for user in self.users if user]))
        contents = bytes([name])
        self.pool.cache(user[0], contents)
        if self.pool.find([contents]) == [user[0]]:
            self.contents[contents] = user[0]

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        contents = data.draw(st.sampled_from(sorted(self.contents)))
        found = self.pool.find([contents])
        # It may have been evicted, but another block must not be found.
        assert found in ([], [self.contents[contents]])
        self.pool.share(found)
        self.users.append(found)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.users.pop(data.draw(st.integers(0, len(self.users) - 1))))

    @rule()
    def clear(self) -> None:
        self.pool.clear()
        self.contents.clear()

    @invariant()
    def every_block_is_used_or_available(self) -> None:
        held = {block for user in self.users for block in user}
        assert self.pool.num_used == len(held)
        assert self.pool.num_available == 6 - len(held)
        assert self.pool.num_idle <= 4


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_the_kv_cache_holds_what_was_written() -> None:
    cache = KVCache(1)
    assert cache.bytes == 0
    cache.reserve(7)
    key, value = torch.randn(1, 2, 3, 5), torch.randn(1, 2, 3, 5)
    step = StepCache(cache, torch.tensor([6, 0, 3]))
    assert step.update(key, value, 1) == (key, value)
    keys, values = cache.layer(1)
    assert keys.shape == values.shape == (16, 2, 5)
    assert torch.equal(keys[[6, 0, 3]], key[0].transpose(0, 1))
    assert torch.equal(values[[6, 0, 3]], value[0].transpose(0, 1))
    assert cache.bytes == 2 * 16 * 2 * 5 * 4
    StepCache(cache, torch.tensor([1])).update(key[:, :, :1], value[:, :, :1], 1)
    assert cache.layer(1)[0] is keys
    with pytest.raises(KeyError):
        cache.layer(0)


def test_the_kv_cache_grows_up_to_its_limit_and_keeps_its_contents() -> None:
    cache = KVCache(300)
    cache.reserve(5)
    states = torch.randn(2, 2, 4)
    cache.write(0, torch.tensor([0, 4]), states, states)
    sizes, generations = [], []
    for count in (1024, 1025, 3000, 4800):
        cache.reserve(count)
        keys, values = cache.layer(0)
        sizes.append(len(keys))
        generations.append(cache.generation)
        assert torch.equal(keys[[0, 4]], states)
        assert torch.equal(values[[0, 4]], states)
    assert sizes == [1024, 2048, 4096, 4800]
    assert len(set(generations)) == 4
