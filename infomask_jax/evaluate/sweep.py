"""Boxes of the regions of a map at every threshold, from one tree.

The 8-connected regions {s > tau} of a map form a tree as tau falls: a region appears at a local maximum, grows, and
merges with others at saddles (the max-tree of Salembier et al. 1998). `sweep` builds that tree once and reads off the
bounding box of every region at every threshold: exactly those of one connected-components call per threshold.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import maximum_filter
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import minimum_spanning_tree

from infomask_jax.evaluate.boxes import overlap
from infomask_jax.localize import Boxes


class Sweep(NamedTuple):
    """Every bounding box that a region of one map has, and for which thresholds (positions, both ends included)."""

    boxes: np.ndarray  # float [r,4], (ymin,xmin,ymax,xmax) in 0..1
    pixels: np.ndarray  # int [r], of the region inside the box
    first: np.ndarray  # int [r]
    last: np.ndarray  # int [r]


def iou_curves(maps: np.ndarray, true: Boxes, thresholds: np.ndarray) -> np.ndarray:
    """Of prepared maps float32 [n,S,S], at each of `thresholds` [T], [2,n,T]: the best IoU of any region's box with any
    true box, and that of the region with the most pixels (of equal ones the topmost, then the leftmost); 0 where there
    is no region."""
    each = partial(_iou_curve, thresholds=thresholds)
    with ThreadPoolExecutor(cv2.getNumberOfCPUs()) as pool:  # numpy releases the interpreter lock most of the time
        curves = list(pool.map(each, maps, map(true.of, range(len(maps)))))
    return np.reshape(curves, (-1, 2, len(thresholds))).swapaxes(0, 1)


def _iou_curve(s: np.ndarray, own: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """`iou_curves` of one map with its true boxes [g,4], stacked: [2,T]."""
    size, found = len(thresholds), sweep(s, thresholds)
    iou = overlap(found.boxes[:, None], own[None])[0].max(1, initial=0.0)
    rank = np.empty(len(iou), np.int64)  # by pixels, then position; 0 stands for no region
    rank[np.lexsort((-found.boxes[:, 1], -found.boxes[:, 0], found.pixels))] = np.arange(1, len(iou) + 1)
    largest = np.r_[0.0, iou[np.argsort(rank)]][range_max(rank, found.first, found.last, size)]
    return np.stack([range_max(iou, found.first, found.last, size), largest])


def sweep(s: np.ndarray, thresholds: np.ndarray) -> Sweep:
    """Boxes of the regions {s > tau} of one finite map [H,W], 0 or more, at every tau of `thresholds` [T], ascending.

    A pixel's level is the number of thresholds that it passes. Steepest ascent sends every pixel to a local maximum.
    The pixels of one maximum are connected above every threshold, so only maxima have to be merged, and a maximum
    spanning tree of their saddles says where.
    """
    height, width = s.shape
    s = np.ascontiguousarray(s, np.float32) + np.float32(0)  # + 0 turns -0.0 into 0.0
    level = np.searchsorted(np.asarray(thresholds, np.float32), s.ravel(), side="left")
    peak = _local_maximum(s)
    peaks = np.flatnonzero((peak == np.arange(s.size)) & (level > 0))
    if not len(peaks):
        return Sweep(np.zeros((0, 4)), *np.zeros((3, 0), int))
    number = np.zeros(s.size, np.int32)
    number[peaks] = np.arange(len(peaks))
    basin = np.where(level > 0, number[peak], -1)
    parent, formed = _merge_tree(*_saddles(basin.reshape(s.shape), level.reshape(s.shape)), level[peaks])

    jumps = [parent]  # the ancestors 1, 2, 4, 8 ... steps above each node, until all are at the root
    while (further := jumps[-1][jumps[-1]]).min() < len(parent) - 1:
        jumps.append(further)
    inside = np.flatnonzero(level > 0)
    node, level = basin[inside].astype(np.int64), level[inside]
    for jump in reversed(jumps):  # to the last node above the pixel that forms at the pixel's level or before
        further = jump[node]
        node = np.where(formed[further] >= level, further, node)

    # Pixels in order of node, then falling level: the box of a node grows along its own pixels, in groups of a level.
    levels = len(thresholds) + 1
    group, pixel = np.divmod(np.sort((node * levels + (levels - 1 - level)) * s.size + inside), s.size)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    node, fallen = np.divmod(group[starts], levels)
    at = levels - 1 - fallen
    ends = np.flatnonzero(np.diff(node, append=-1))  # the last group of each node
    y, x = np.divmod(pixel, width)
    edges = np.stack([np.minimum.reduceat(v, starts) for v in (y, x, -1 - y, -1 - x)])  # [4,groups], all to minimise
    apart = node * (2 * max(height, width) + 1)  # so that each node's minimum begins anew
    edges = np.minimum.accumulate(edges - apart, axis=1) + apart
    pixels = np.r_[starts[1:], len(pixel)]  # running count, from the first node on
    own_pixels = np.diff(pixels[ends], prepend=0)
    pixels = pixels - np.repeat(pixels[ends] - own_pixels, np.diff(ends, prepend=-1))
    inherited, inherited_pixels = _inherit(jumps, node[ends], edges[:, ends], own_pixels)
    top, left, bottom, right = np.minimum(edges, inherited[:, node])
    below = np.r_[at[1:], 0]  # level of the node's next group
    below[ends] = formed[parent[node[ends]]]  # or the level at which the node merges
    boxes = np.stack([top / height, left / width, -bottom / height, -right / width], axis=1)
    return Sweep(boxes, pixels + inherited_pixels[node], below, at - 1)


def range_max(values: np.ndarray, first: np.ndarray, last: np.ndarray, size: int) -> np.ndarray:
    """The largest value whose range first..last covers each of `size` positions; 0 where none does. [r] -> [size]. A
    range is the union of two blocks of 2^k positions; blocks are then halved level by level."""
    k = np.log2(last - first + 1).astype(int) if len(first) else np.zeros(0, int)
    table = np.zeros((size.bit_length(), size), values.dtype)
    np.maximum.at(table, (k, first), values)
    np.maximum.at(table, (k, last + 1 - (1 << k)), values)
    for level in range(len(table) - 1, 0, -1):
        half = 1 << (level - 1)
        np.maximum(table[level - 1], table[level], out=table[level - 1])
        np.maximum(table[level - 1, half:], table[level, :-half], out=table[level - 1, half:])
    return table[0]


def _local_maximum(s: np.ndarray) -> np.ndarray:
    """The maximum that steepest ascent reaches from each pixel [H,W] -> [H*W]; of equal pixels the later is higher."""
    bits = int(s.size - 1).bit_length()
    # Non-negative floats sort like their bits, 31 of them, so that a value and its position share one integer.
    ranked = (s.view(np.int32).astype(np.int64) << bits) + np.arange(s.size).reshape(s.shape)
    step = (maximum_filter(ranked, 3) & ((1 << bits) - 1)).ravel()
    while not np.array_equal(further := step[step], step):
        step = further
    return step


def _saddles(basin: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of basins that touch, each once, and the highest level at which they do: a, b, saddle, each [pairs]."""
    count, bits = int(basin.max()) + 1, int(level.max()).bit_length()
    here = [np.s_[:, :-1], np.s_[:-1, :], np.s_[:-1, :-1], np.s_[:-1, 1:]]
    there = [np.s_[:, 1:], np.s_[1:, :], np.s_[1:, 1:], np.s_[1:, :-1]]
    keys = []
    for p, q in zip(here, there, strict=True):
        touch = (basin[p] != basin[q]) & (np.minimum(basin[p], basin[q]) >= 0)
        a, b = basin[p][touch].astype(np.int64), basin[q][touch].astype(np.int64)
        pair = np.minimum(a, b) * count + np.maximum(a, b)
        keys.append((pair << bits) | np.minimum(level[p][touch], level[q][touch]))
    keys = np.sort(np.concatenate(keys))
    pair = keys >> bits
    last = np.flatnonzero(np.r_[pair[1:] != pair[:-1], True][: len(pair)])
    a, b = np.divmod(pair[last], count)
    return a, b, keys[last] & ((1 << bits) - 1)


def _merge_tree(a, b, saddle, peak_level) -> tuple[np.ndarray, np.ndarray]:
    """Each node's parent and the level at which it forms, [nodes]: peaks, merges, and the root, of level 0, which is
    its own parent."""
    count = len(peak_level)
    top = int(peak_level.max()) + 1
    tree = minimum_spanning_tree(coo_matrix((top - saddle, (a, b)), shape=(count, count)).tocsr()).tocoo()
    order = np.argsort(tree.data, kind="stable")
    merged_at = (top - tree.data[order]).astype(np.int64)
    root = count + len(order)
    parent = [root] * (root + 1)
    leader, node = list(range(count)), list(range(count))  # union-find over peaks; node of each leader
    for new, (i, j) in enumerate(zip(tree.row[order].tolist(), tree.col[order].tolist(), strict=True), count):
        while leader[i] != i:
            leader[i] = i = leader[leader[i]]
        while leader[j] != j:
            leader[j] = j = leader[leader[j]]
        parent[node[i]] = parent[node[j]] = new
        leader[i], node[j] = j, new
    return np.array(parent), np.concatenate([peak_level, merged_at, [0]])


def _inherit(jumps, owner, own_edges, own_pixels) -> tuple[np.ndarray, np.ndarray]:
    """What each node takes over from the nodes below it: the minimum of their edges [4,nodes], their pixels [nodes].
    After k rounds it has gathered what lies fewer than 2^k steps below it. The root, which would gather itself, is left
    out. `owner`: the nodes that have pixels and edges of their own."""
    size = len(jumps[0])
    edges = np.full((4, size), np.iinfo(np.int64).max)
    edges[:, owner] = own_edges
    pixels = np.zeros(size, np.int64)
    pixels[owner] = own_pixels
    for jump in jumps:
        below = np.flatnonzero(jump < size - 1)
        above = jump[below]
        for row in edges:
            np.minimum.at(row, above, row[below])
        np.add.at(pixels, above, pixels[below])
    inherited = np.full_like(edges, np.iinfo(np.int64).max)
    for row, gathered in zip(inherited, edges, strict=True):
        np.minimum.at(row, jumps[0][:-1], gathered[:-1])
    pixels[owner] -= own_pixels
    return inherited, pixels
