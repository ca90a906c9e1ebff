"""Sums over blocks of codes or data, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor

from .operators import Blocks

# Entries of every sample that are looked at first where one that is not zero is searched.
_FIRST_LOOK = 32


def flat_sum(blocks: Blocks) -> Tensor:
    """Return the sum over all entries of all blocks, per sample."""
    total = blocks[0].flatten(1).sum(1)
    for block in blocks[1:]:
        total = total + block.flatten(1).sum(1)
    return total


def squared_norm(blocks: Blocks) -> Tensor:
    """Return the sum of squares over all blocks, per sample."""
    return flat_sum(tuple(block.square() for block in blocks))


def inner(first: Blocks, second: Blocks) -> Tensor:
    """Return the inner product over all blocks, per sample."""
    return flat_sum(tuple(a * b for a, b in zip(first, second, strict=True)))


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Return one number per sample in a shape that broadcasts against a block."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def entries_at(values: Tensor, index: tuple[Tensor, ...]) -> Tensor:
    """Return the values at some places of a block, of a tensor that broadcasts against it."""
    return values[tuple(i if n > 1 else torch.zeros_like(i) for i, n in zip(index, values.shape, strict=True))]


def used_entries(weights: Tensor, codes: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Return where a block of codes is not zero, with the weights and the values there: few of many entries."""
    index = codes.nonzero(as_tuple=True)
    return index, entries_at(weights, index), codes[index]


def used_rows(block: Tensor) -> Tensor:
    """Return which samples have an entry that is not zero, ``(batch,)``: most show one among their first entries."""
    flat = block.flatten(1)
    used = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    left, first, width = torch.arange(len(flat), device=flat.device), 0, _FIRST_LOOK
    while len(left) and first < flat.shape[1]:
        # All rows as a view: an index would copy whole rows.
        part = flat[:, first : first + width] if not first else flat[left, first : first + width]
        found = (part != 0).any(1)
        used[left[found]] = True
        left, first, width = left[~found], first + width, 4 * width
    return used


def sum_rows(batch: int, rows: Tensor, values: Tensor) -> Tensor:
    """Return the sums of `values` over the samples that `rows` names, ``(batch,)``."""
    return values.new_zeros(batch).index_add_(0, rows, values)


def extreme_rows(blocks: Blocks, largest: bool) -> Tensor:
    """Return the largest (or the smallest) entry of every sample over all blocks; inf or -inf where there are none."""
    sign = 1.0 if largest else -1.0
    best = blocks[0].new_full((len(blocks[0]),), -sign * torch.inf)
    for block in blocks:
        flat = block.flatten(1)
        if flat.shape[1]:
            best = torch.maximum(best, flat.amax(1)) if largest else torch.minimum(best, flat.amin(1))
    return best


def group_sums(block: Tensor, index: Tensor, count: int) -> Tensor:
    """Return the sums over groups of atoms, ``(batch, groups, ...)``.

    Args:
        block: ``(batch, atoms, ...)``.
        index: The group of each atom, ``(atoms,)``.
        count: How many groups there are.
    """
    if count == 1:
        return block.sum(1, keepdim=True)
    return block.new_zeros(len(block), count, *block.shape[2:]).index_add_(1, index, block)
