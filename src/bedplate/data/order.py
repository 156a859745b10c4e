"""Pseudo-random order as a pure function: any element of any epoch's permutation in constant memory.

A Feistel network permutes the numbers below a power of four; walking its cycle until the value is below `size` makes
that a permutation of any size (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").
"""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]

ROUNDS = 4


def keys(seed: int, *parts: np.ndarray | int) -> Numbers:
    """Hash a seed and numbers, broadcast against each other, into uint64 keys."""
    key = _mix(np.array([seed % 2**64], np.uint64))
    for part in parts:
        key = _mix(key + np.asarray(part).astype(np.uint64))
    return key


def permute(index: np.ndarray, size: int, key: Numbers) -> np.ndarray:
    """Map each index in [0, size) to its place in the permutation that its key chooses.

    Args:
        index: (n,) integers in [0, size).
        size: Length of the permutation, at least 1.
        key: (n,) or (1,) uint64; elements with equal keys are permuted by one bijection.

    Returns:
        (n,) int64 in [0, size).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    value = np.asarray(index).astype(np.uint64)
    key = np.broadcast_to(key, value.shape)
    value = _feistel(value, half, key)
    while (outside := value >= size).any():
        value[outside] = _feistel(value[outside], half, key[outside])
    return value.astype(np.int64)


def _feistel(value: Numbers, half: np.uint64, key: Numbers) -> Numbers:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = value >> half, value & mask
    for number in range(ROUNDS):
        left, right = right, left ^ (_mix(key + right * np.uint64(ROUNDS) + np.uint64(number)) & mask)
    return (left << half) | right


def _mix(value: Numbers) -> Numbers:
    """SplitMix64's step (Steele et al. 2014): every bit of the result depends on every bit of the (n,) uint64 value."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
