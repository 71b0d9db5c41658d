"""The scoring frame: maps, boxes and pixel masks on one S x S grid.

Conventions (the whole room shares them)
- Boxes are float [n,4] (ymin,xmin,ymax,xmax) in 0..1 of the image, with continuous edges: pixel i covers [i,i+1)/S.
- Maps [h,w] cover the whole image and are resized and min-maxed as in localize.py.
- A frame pixel is true if its centre lies inside a box, or on a true pixel of the exact mask where the dataset has one.
"""

import numpy as np

from infomask_jax.localize import prepare_map


def prepare_maps(maps: np.ndarray, frame: int | tuple[int, int], names=None) -> np.ndarray:
    """Resize to the frame, then min-max per image (WSOL, Choe et al. 2020): [n,h,w] -> float32 [n,S,S] in 0..1.

    A constant map becomes zeros. A non-finite map is an error that names the image (`names` [n], otherwise its index).

    Args:
      frame: S, or (height, width).
    """
    maps = np.asarray(maps)
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"expected maps [n,h,w], found shape {maps.shape}")
    height, width = (frame, frame) if isinstance(frame, int) else frame
    out = np.empty((len(maps), height, width), np.float32)
    for i, heat in enumerate(maps):
        try:
            out[i] = prepare_map(heat, height, width)
        except ValueError as error:
            raise ValueError(f"image {names[i] if names is not None else f'number {i}'}: {error}") from error
    return out


def rasterise(boxes: np.ndarray, frame: int | tuple[int, int]) -> np.ndarray:
    """Union of boxes [n,4] -> bool [S,S]: pixels whose centre lies inside (edges half open).

    A box so small that it holds no pixel centre keeps the one pixel that holds its own centre.

    Args:
      frame: S, or (height, width).
    """
    height, width = (frame, frame) if isinstance(frame, int) else frame
    mask, size = np.zeros((height, width), bool), np.array([height, width, height, width])
    for box in np.asarray(boxes, float).reshape(-1, 4):
        # Centre (i+.5)/S >= edge  <=>  i >= edge*S - .5; rounding absorbs the error of float32 edges.
        ymin, xmin, ymax, xmax = np.ceil(np.round(box * size - 0.5, 4)).astype(int).clip(0, size)
        if ymin == ymax:
            ymin = min(int((box[0] + box[2]) / 2 * height), height - 1)
            ymax = ymin + 1
        if xmin == xmax:
            xmin = min(int((box[1] + box[3]) / 2 * width), width - 1)
            xmax = xmin + 1
        mask[ymin:ymax, xmin:xmax] = True
    return mask


def resize_mask(mask: np.ndarray, frame: int) -> np.ndarray:
    """Exact mask [H,W] -> bool [S,S]: the source pixel under each frame pixel's centre.

    A mask that would vanish (thinner than a frame pixel) keeps every frame pixel that it touches.
    """
    mask = np.asarray(mask) > 0
    if mask.ndim != 2 or 0 in mask.shape:
        raise ValueError(f"expected a mask [H,W], found shape {mask.shape}")
    rows, cols = (np.floor((np.arange(frame) + 0.5) * size / frame).astype(int) for size in mask.shape)
    out = mask[rows][:, cols]
    if mask.any() and not out.any():
        y, x = np.nonzero(mask)
        out[y * frame // mask.shape[0], x * frame // mask.shape[1]] = True
    return out
