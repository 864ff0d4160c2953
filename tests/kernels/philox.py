"""Philox-4x32-10 in plain integers, after Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011)."""

from __future__ import annotations

MASK = 0xFFFFFFFF


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    for _ in range(10):
        low, high = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = (
            (high >> 32) ^ counter[1] ^ key[0],
            high & MASK,
            (low >> 32) ^ counter[3] ^ key[1],
            low & MASK,
        )
        key = ((key[0] + 0x9E3779B9) & MASK, (key[1] + 0xBB67AE85) & MASK)
    return counter


def uniform(seed: int, step: int) -> float:
    """In [0, 1): the first word's upper 24 bits; a negative number means its 64-bit two's complement."""
    seed, step = seed % (1 << 64), step % (1 << 64)
    word = philox((step & MASK, step >> 32, 0, 0), (seed & MASK, seed >> 32))[0]
    return (word >> 8) / (1 << 24)
