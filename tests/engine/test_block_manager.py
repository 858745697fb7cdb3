"""Blocks are never in two hands by mistake, and are found again only by what they hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vip_llava.engine.block_manager import Blocks, KVMemory, StepCache
from vip_llava.engine.prefix_cache import block_key


def test_a_key_is_all_that_was_read_up_to_it() -> None:
    first = block_key(b"", [1, 2])
    others = {
        block_key(b"", [2, 1]),
        block_key(b"", [1, 2], [b"image"]),
        block_key(b"", [1, 2], [b"another"]),
        block_key(first, [1, 2]),
        block_key(b"", [1]),
    }
    assert first == block_key(b"", [1, 2]) not in others
    assert len(others) == 5


def test_the_lowest_blocks_come_first_and_none_when_all_are_used() -> None:
    blocks = Blocks(3)
    assert [blocks.take() for _ in range(4)] == [0, 1, 2, None]
    blocks.release([1])
    assert (blocks.available, blocks.take()) == (1, 1)


def test_a_block_is_found_again_until_its_room_is_needed() -> None:
    blocks = Blocks(3)
    mine = [blocks.take(), blocks.take()]
    keys = [block_key(b"", [1]), block_key(b"", [2])]
    for block, key in zip(mine, keys, strict=True):
        assert block is not None
        blocks.index.add(block, key)
    blocks.release([0, 1])
    assert blocks.available == 3
    assert blocks.index.find([*keys, b"unknown"]) == [0, 1]
    assert blocks.index.find([b"unknown", *keys]) == []
    # The untouched block goes first, then the end of the text that was left.
    assert [blocks.take(), blocks.take()] == [2, 1]
    assert blocks.index.find(keys) == [0]
    blocks.share([0])
    assert blocks.take() is None
    blocks.forget()
    assert blocks.index.find(keys) == []
    blocks.release([0])
    assert blocks.take() == 0


def test_only_so_many_unused_blocks_are_remembered() -> None:
    blocks = Blocks(8, prefix_blocks=2)
    keys = [bytes([number]) for number in range(4)]
    for number, key in enumerate(keys):
        assert blocks.take() == number
        blocks.index.add(number, key)
    blocks.release([0, 1, 2, 3])
    assert blocks.index.find(keys) == [0, 1]
    assert (blocks.index.idle, blocks.available) == (2, 8)
    forgetful = Blocks(2, prefix_blocks=0)
    assert forgetful.take() == 0
    forgetful.index.add(0, b"key")
    forgetful.release([0])
    assert forgetful.index.find([b"key"]) == []


class BlocksMachine(RuleBasedStateMachine):
    """Random users of few blocks; a model of who holds what is kept beside."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = Blocks(6, prefix_blocks=4)
        self.users: list[list[int]] = []
        self.holds: dict[bytes, int] = {}

    @rule(count=st.integers(1, 3))
    def join(self, count: int) -> None:
        taken = [self.blocks.take() for _ in range(count)]
        mine = [block for block in taken if block is not None]
        others = {block for user in self.users for block in user}
        assert not others & set(mine)
        assert len(set(mine)) == len(mine)
        self.holds = {key: block for key, block in self.holds.items() if block not in mine}
        self.users.append(mine)

    @precondition(lambda self: any(self.users))
    @rule(data=st.data(), name=st.integers(0, 5))
    def name(self, data: st.DataObject, name: int) -> None:
        user = data.draw(st.sampled_from([user for user in self.users if user]))
        key = bytes([name])
        self.blocks.index.add(user[0], key)
        if self.blocks.index.find([key]) == [user[0]]:
            self.holds[key] = user[0]

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.holds)))
        found = self.blocks.index.find([key])
        # Forgotten is allowed, another block's contents are not.
        assert found in ([], [self.holds[key]])
        self.blocks.share(found)
        self.users.append(found)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.blocks.release(self.users.pop(data.draw(st.integers(0, len(self.users) - 1))))

    @rule()
    def forget(self) -> None:
        self.blocks.forget()
        self.holds.clear()

    @invariant()
    def every_block_is_used_or_available(self) -> None:
        held = {block for user in self.users for block in user}
        assert self.blocks.used == len(held)
        assert self.blocks.available == 6 - len(held)
        assert self.blocks.index.idle <= 4


TestBlocks = BlocksMachine.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_memory_holds_what_was_written() -> None:
    memory = KVMemory(blocks=2, block_tokens=4)
    assert memory.bytes == 0
    memory.reach(7)
    key, value = torch.randn(1, 2, 3, 5), torch.randn(1, 2, 3, 5)
    cache = StepCache(memory, torch.tensor([6, 0, 3]))
    assert cache.update(key, value, 1) == (key, value)
    keys, values = memory.layer(1)
    assert keys.shape == values.shape == (8, 2, 5)
    assert torch.equal(keys[[6, 0, 3]], key[0].transpose(0, 1))
    assert torch.equal(values[[6, 0, 3]], value[0].transpose(0, 1))
    assert memory.bytes == 2 * 8 * 2 * 5 * 4
    StepCache(memory, torch.tensor([1])).update(key[:, :, :1], value[:, :, :1], 1)
    assert memory.layer(1)[0] is keys
    with pytest.raises(KeyError):
        memory.layer(0)


def test_memory_grows_up_to_its_budget_and_keeps_what_it_holds() -> None:
    memory = KVMemory(blocks=300)
    memory.reach(5)
    states = torch.randn(2, 2, 4)
    memory.write(0, torch.tensor([0, 4]), states, states)
    sizes = []
    for count in (1024, 1025, 3000, 4800):
        memory.reach(count)
        keys, values = memory.layer(0)
        sizes.append(len(keys))
        assert torch.equal(keys[[0, 4]], states)
        assert torch.equal(values[[0, 4]], states)
    assert sizes == [1024, 2048, 4096, 4800]
