from __future__ import annotations

import os

import pytest
import torch

import pama_ops as po

COLUMNS = 2**31 + 40
GIB = 2**30


@pytest.mark.slow
def test_gram_and_combine_of_a_tensor_over_2_to_the_31_elements():
    """Gram matrix and combination reach every element where 32-bit indices would wrap.

    Both gradients are views of one storage, a column apart, so that the second lies at an odd
    address. All numbers are small integers: the expected results are exact.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 10 * GIB:
        pytest.skip(f"needs 10 GiB of free memory for two tensors of 4 GiB, has {free / GIB:.1f}")
    storage = torch.zeros(COLUMNS + 1, dtype=torch.bfloat16)
    places = [0, 1, 2**30, 2**31 - 1, 2**31, 2**31 + 1, COLUMNS - 1, COLUMNS]
    for value, place in enumerate(places, start=1):
        storage[place] = value
    grads = [storage[:-1], storage[1:]]

    at = dict(zip(places, range(1, len(places) + 1), strict=True))
    rows = [
        {k - shift: float(x) for k, x in at.items() if 0 <= k - shift < COLUMNS} for shift in (0, 1)
    ]
    expected = [[sum(x * b.get(k, 0.0) for k, x in a.items()) for b in rows] for a in rows]
    assert po.gram(grads).tolist() == expected

    out = po.combine(grads, torch.tensor([2.0, -1.0]))
    combined = out[0] if isinstance(out, list) else out
    columns = sorted({k for row in rows for k in row})
    wanted = [2 * rows[0].get(k, 0.0) - rows[1].get(k, 0.0) for k in columns]
    assert combined[columns].tolist() == wanted
    assert int(combined.count_nonzero()) == sum(x != 0 for x in wanted)
