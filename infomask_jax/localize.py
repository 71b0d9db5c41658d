"""Heat map -> regions -> boxes.

Conventions
- A map [h,w] covers the whole image: cell (i,j) covers rows [i/h,(i+1)/h) and columns [j/w,(j+1)/w). It is enlarged
  bilinearly with half-pixel centres (sample i sits at (i+.5)/h, edges are clamped) and shrunk by averaging over areas,
  never shifted or cropped.
- Boxes have continuous edges. Pixel i of an axis with n pixels covers [i,i+1)/n, so a region of rows a..b (inclusive)
  has ymin = a/n and ymax = (b+1)/n, and its height is ymax - ymin: there is no +1 anywhere else.
- Boxes are float32 [n,4] (ymin,xmin,ymax,xmax) in 0..1 of the image; only `detections` speaks source pixels.
- A region is 8-connected: pixels that touch at a corner belong together.
"""

import cv2
import numpy as np


def prepare_map(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize heat [h,w], any finite range, then min-max it: float32 [height,width] in 0..1, what is scored and drawn.

    Its minimum is taken off before as well: OpenCV's weights of an area do not sum to 1 exactly, which would be seen of
    small differences on a large level. A constant map becomes zeros.
    """
    heat = _as_float(heat)
    return normalise(_resize(heat - heat.min(), height, width))


def resize_map(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """heat [h,w], finite -> [height,width]; float32, or float64 of a type that float32 cannot hold. The level of a map
    near the limit of its type is lowered."""
    return _resize(_as_float(heat), height, width)


def _as_float(heat: np.ndarray) -> np.ndarray:
    heat = np.asarray(heat)
    if heat.ndim != 2 or 0 in heat.shape:
        raise ValueError(f"expected one map [h,w], found shape {heat.shape}")
    if not np.isfinite(heat).all():
        raise ValueError("the heat map has non-finite values (NaN, infinity or float16 overflow)")
    heat = np.ascontiguousarray(heat, np.float32 if heat.dtype in (np.float16, np.float32) else np.float64)
    if np.abs(heat).max() > 0.1 * np.finfo(heat.dtype).max:
        heat = heat * heat.dtype.type(0.1)  # its range would overflow
    return heat


def _resize(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    smaller = min(heat.shape[0], height), min(heat.shape[1], width)
    for shape, how in ((smaller, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if heat.shape != shape:
            heat = cv2.resize(heat, shape[::-1], interpolation=how)
    return heat


def normalise(heat: np.ndarray) -> np.ndarray:
    """Min-max of one finite map to 0..1, float32 (WSOL, Choe et al. 2020); a constant map becomes zeros."""
    low, high = heat.min(), heat.max()
    if not high > low:
        return np.zeros(heat.shape, np.float32)
    return ((heat - low) / (high - low)).astype(np.float32)


def boxes_from_map(heat: np.ndarray, threshold: float, frame: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Tight boxes of the connected regions {s >= threshold} of s = the map, resized to `frame`, then min-maxed.

    Args:
      heat: [h,w], any range.
      threshold: in (0,1], of the min-maxed map. A constant map has no region.
      frame: (height, width) in which pixels are thresholded; the scoring frame reproduces the scored boxes.
    Returns: boxes float32 [n,4] in 0..1 and scores float32 [n], the maximum of s in each region; highest score first.
    """
    height, width = frame
    s = prepare_map(heat, height, width)
    count, region, stats, _ = cv2.connectedComponentsWithStats((s >= threshold).astype(np.uint8), connectivity=8)
    peak = np.zeros(count, np.float32)
    np.maximum.at(peak, region.ravel(), s.ravel())
    left, top, wide, high = stats[1:, :4].T  # row 0 is the background
    boxes = np.stack([top / height, left / width, (top + high) / height, (left + wide) / width], axis=1)
    order = np.argsort(-peak[1:], kind="stable")
    return boxes[order].astype(np.float32), peak[1:][order]


def detections(
    names,
    maps,
    sizes,
    threshold: float,
    frame: tuple[int, int],
    category_id: int,
    category: str,
    probabilities=None,
    first: int = 0,
) -> list[dict]:
    """COCO detections of one finding, as pycocotools' `loadRes` takes them, `bbox` [x,y,w,h] in pixels of the source
    image. `image_id` is the image's number, which COCO wants to be an integer; its name is beside it as `file_name`.

    Args:
      names: [N] text. maps: [N,h,w]. sizes: [N,2] (height, width) of the source images.
      probabilities: [N] of the finding; given, a box scores peak * probability, otherwise its peak alone.
      first: number of the first image; the others follow in their order.
    """
    found = []
    for i, (name, heat, (height, width)) in enumerate(zip(names, maps, sizes, strict=True)):
        try:
            boxes, scores = boxes_from_map(heat, threshold, frame)
        except ValueError as error:
            raise ValueError(f"image {name}: {error}") from error
        scale = 1.0 if probabilities is None else float(probabilities[i])
        for (ymin, xmin, ymax, xmax), score in zip(boxes.astype(float), scores, strict=True):
            bbox = [xmin * width, ymin * height, (xmax - xmin) * width, (ymax - ymin) * height]
            found.append(
                {
                    "image_id": first + i,
                    "file_name": str(name),
                    "category_id": int(category_id),
                    "category": category,
                    "bbox": [round(v, 3) for v in bbox],
                    "score": round(float(score) * scale, 6),
                }
            )
    return found


def four_axes(maps):
    """Maps [N,h,w], shared by all findings, or [N,h,w,M] -> [N,h,w,M]."""
    return maps if np.ndim(maps) == 4 else np.asarray(maps)[..., None]


def of_finding(maps, k: int):
    """Maps of finding k, [N,h,w], of maps [N,h,w,M]; M = 1: all findings share them."""
    return maps[..., min(k, maps.shape[-1] - 1)]
