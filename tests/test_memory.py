"""Which tensors share memory, against the bytes themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pama_ops import _memory

ROOM = 96
DTYPES = [torch.float16, torch.float32, torch.float64]


@st.composite
def strided(draw: st.DrawFn, memory: torch.Tensor) -> torch.Tensor:
    """A tensor of any dtype, sizes, strides and offset in some bytes."""
    dtype = draw(st.sampled_from(DTYPES))
    sizes = draw(st.lists(st.integers(1, 4), max_size=3))
    room = ROOM // dtype.itemsize - 1
    strides = []
    for size in sizes:
        strides.append(draw(st.integers(0, min(room // max(size - 1, 1), 13))))
        room -= (size - 1) * strides[-1]
    return memory.view(dtype).as_strided(sizes, strides, draw(st.integers(0, room)))


def places(x: torch.Tensor) -> list[set[int]]:
    """The bytes of each element."""
    spots = torch.arange(ROOM).as_strided(x.shape, x.stride(), x.storage_offset()).flatten()
    unit = x.itemsize
    return [set(range(unit * k, unit * k + unit)) for k in spots.tolist()]


@given(data=st.data())
def test_shared_memory_is_told_exactly(data):
    memory = torch.zeros(ROOM, dtype=torch.uint8)
    x, y = data.draw(strided(memory)), data.draw(strided(memory))
    mine, other = places(x), places(y)
    assert _memory.overlaps_itself(x) == (len({min(k) for k in mine}) < len(mine))
    shared = bool(set.union(*mine) & set.union(*other))
    assert _memory.sharing([y, x]) == ((0, 1) if shared else None)


def test_large_views_that_interleave_are_told_apart_at_once():
    wide = torch.empty(1 << 20, 96)
    cube, flat = wide.view(1 << 10, 1 << 10, 96), wide.flatten()
    apart = [
        [wide[:, :40], wide[:, 40:]],
        [wide[:, k] for k in range(5)],
        [wide[::2], wide[1::2, :95]],
        [wide[::2, ::3], wide[1::4], wide[3::4], wide[::2, 1::3], wide[::2, 2::3]],
        [cube[:, :7], cube[:, 7:, :3], cube[:, 7:, 3:].transpose(0, 2)],
        [wide[::2, :40], wide[1::3, 40:]],
        [flat[0::4], flat[1::6]],
        [flat[j::800] for j in range(0, 60, 2)] + [flat[j::1200] for j in range(1, 60, 2)],
    ]
    for views in apart:
        assert _memory.sharing(views) is None
        assert not any(map(_memory.overlaps_itself, views))
    together = [
        [wide[:, :40], wide[:, 40:], wide[77::1000, 39:41]],
        [wide[::2, :40], wide[1::2, 40:], wide[4::3, 39:]],
        [flat[0::4], flat[1::4], flat[2::6]],
    ]
    assert [*map(_memory.sharing, together)] == [(0, 2)] * 3


@pytest.mark.parametrize("form", [((2, 3), (2, 2)), ((3, 2), (3, 3)), ((4, 3), (2, 3))])
def test_what_overlaps_itself_in_part_is_told(form):
    assert _memory.overlaps_itself(torch.empty(40).as_strided(*form))
