"""The vision tower's operations written as they are defined, in float64."""

from __future__ import annotations

import math

import numpy as np
import torch

from tests.kernels.compare import Array


def patches(crops: torch.Tensor, patch: int, width: int) -> Array:
    """(N, G * G, width), every number placed by itself; the float32 operations of the definition, so equal bits."""
    pixels = crops.cpu().numpy()
    N, side, _, channels = pixels.shape
    G = side // patch
    out = np.zeros((N, G * G, width))
    value = ((np.arange(256, dtype=np.float32) / np.float32(255)) - np.float32(0.5)) / np.float32(0.5)
    for row in range(G):
        for col in range(G):
            number = 0
            for c in range(channels):
                for y in range(patch):
                    for x in range(patch):
                        pixel = pixels[:, row * patch + y, col * patch + x, c]
                        out[:, row * G + col, number] = value[pixel]
                        number += 1
    return out


def attention(qkv: Array, heads: int) -> Array:
    N, P, width = qkv.shape
    K = width // (3 * heads)
    parts = qkv.reshape(N, P, 3, heads, K)
    out = np.empty((N, P, heads, K))
    for n in range(N):
        for h in range(heads):
            scores = parts[n, :, 0, h] @ parts[n, :, 1, h].T / math.sqrt(K)
            odds = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[n, :, h] = odds @ parts[n, :, 2, h] / odds.sum(axis=1, keepdims=True)
    return out.reshape(N, P, heads * K)


def joined_map(features: Array, tiling: tuple[int, int], G: int, margin: int) -> Array:
    """(G * G, 2C): the global crop's features beside the pooled map of the tiles."""
    local = pooled(stitched(features[1:], tiling, G, margin), G)
    return np.concatenate((features[0], local), axis=1)


def stitched(local: Array, tiling: tuple[int, int], G: int, margin: int) -> Array:
    """Cell by cell: each tile gives the patches it keeps, at the place where they lie in the whole."""
    rows, cols = tiling
    tiles = local.reshape(rows, cols, G, G, -1)

    def kept(i: int, count: int) -> range:
        return range(margin if i else 0, G - (margin if i < count - 1 else 0))

    return np.array(
        [[tiles[i, j, y, x] for j in range(cols) for x in kept(j, cols)] for i in range(rows) for y in kept(i, rows)]
    )


def pooled(whole: Array, G: int) -> Array:
    height, width = whole.shape[:2]
    out = np.empty((G, G, whole.shape[2]))
    for i in range(G):
        for j in range(G):
            top, bottom = i * height // G, math.ceil((i + 1) * height / G)
            left, right = j * width // G, math.ceil((j + 1) * width / G)
            cells = [whole[y, x] for y in range(top, bottom) for x in range(left, right)]
            out[i, j] = sum(cells) / len(cells)
    return out.reshape(G * G, -1)
