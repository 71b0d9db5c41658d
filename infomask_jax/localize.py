"""Heat map -> regions -> boxes: what is scored and what is drawn come from here.

- Maps are [N,h,w,M]: M = 1, shared by all findings, or one for each. A map covers the whole image: cell (i,j) covers
  rows [i/h,(i+1)/h). It is enlarged bilinearly with half-pixel centres and shrunk by averaging over areas.
- Boxes are [n,4] (ymin,xmin,ymax,xmax) in 0..1 of the image: rows a..b of n are ymin = a/n, ymax = (b+1)/n."""

from typing import NamedTuple

import cv2
import numpy as np

WHOLE = 0.95  # share of an image from which on a detected box is the whole of it
MOSAIC_PIXELS = 1 << 24  # in one connected-components call


class Boxes(NamedTuple):
    """Boxes of several images: `boxes` [n,4] (ymin,xmin,ymax,xmax) in 0..1 and `image` [n], ascending."""

    boxes: np.ndarray
    image: np.ndarray

    def of(self, image: int) -> np.ndarray:
        """Those of one image, [m,4]."""
        return self.boxes[self.image == image]


def four_axes(maps) -> np.ndarray:
    """Maps [N,h,w] or [N,h,w,M] -> [N,h,w,M]."""
    maps = np.asarray(maps)
    return maps[..., None] if maps.ndim == 3 else maps


def of_finding(maps: np.ndarray, k: int) -> np.ndarray:
    """Maps [N,h,w,M] -> those of finding k, [N,h,w]."""
    return maps[..., k if maps.shape[-1] > 1 else 0]


def prepare_map(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize heat [h,w], any finite range, then min-max it: float32 [height,width] in 0..1, what is scored and drawn.
    A constant map becomes zeros."""
    heat = _as_float(heat)
    # OpenCV's weights of an area do not sum to 1 exactly, which would be seen of small differences on a large level.
    return normalise(_resize(heat - heat.min(), height, width))


def prepare_maps(maps: np.ndarray, frame: int | tuple[int, int], names=None) -> np.ndarray:
    """`prepare_map` of maps [n,h,w] in a frame (its side, or height and width) -> float32 [n,height,width]. ValueError
    naming the image (of `names`, else by its number) where a map is not finite."""
    maps, (height, width) = np.asarray(maps), np.broadcast_to(frame, 2).tolist()
    out = np.empty((len(maps), height, width), np.float32)
    for i, heat in enumerate(maps):
        try:
            out[i] = prepare_map(heat, height, width)
        except ValueError as error:
            raise ValueError(f"image {names[i] if names is not None else f'number {i}'}: {error}") from error
    return out


def resize_map(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    """heat [h,w], finite -> [height,width]; float32, or float64 of a type that float32 cannot hold."""
    return _resize(_as_float(heat), height, width)


def normalise(heat: np.ndarray) -> np.ndarray:
    """Min-max of one finite map to 0..1, float32 (WSOL, Choe et al. 2020); a constant map becomes zeros."""
    low, high = heat.min(), heat.max()
    return ((heat - low) / (high - low) if high > low else np.zeros_like(heat)).astype(np.float32)


def _as_float(heat: np.ndarray) -> np.ndarray:
    heat = np.asarray(heat)
    if not np.isfinite(heat).all():
        raise ValueError("the heat map has non-finite values (NaN, infinity or float16 overflow)")
    heat = np.ascontiguousarray(heat, np.float32 if heat.dtype in (np.float16, np.float32) else np.float64)
    if np.abs(heat).max() > 0.1 * np.finfo(heat.dtype).max:
        heat = heat * heat.dtype.type(0.1)  # else its range would overflow
    return heat


def _resize(heat: np.ndarray, height: int, width: int) -> np.ndarray:
    smaller = min(heat.shape[0], height), min(heat.shape[1], width)
    for shape, how in ((smaller, cv2.INTER_AREA), ((height, width), cv2.INTER_LINEAR)):
        if heat.shape != shape:
            heat = cv2.resize(heat, shape[::-1], interpolation=how)
    return heat


def region_boxes(maps, threshold: float, images=None, *, frame=None, names=None) -> tuple[Boxes, np.ndarray]:
    """Tight boxes of the connected regions {s >= threshold} of maps [n,h,w], and the maximum of s in each, [boxes].

    Regions are 8-connected. Boxes of an image go from top to bottom, then from left to right.

    Args:
      maps: prepared, or of any range: then `frame` and `names` are as in `prepare_maps`. threshold: in (0,1].
      images: positions of those asked for, among which boxes are numbered; by default all.

    One connected-components call serves many images, stacked with an empty row after each.
    """
    maps, at = np.asarray(maps), np.arange(len(maps)) if images is None else images
    height, width = maps.shape[1:] if frame is None else np.broadcast_to(frame, 2).tolist()
    step = max(1, MOSAIC_PIXELS // (height * width))
    boxes, numbers, peaks = [np.zeros((0, 4))], [np.zeros(0, int)], [np.zeros(0, np.float32)]
    for first in range(0, len(at), step):
        some = at[first : first + step]
        part = maps[first : first + step] if images is None else maps[some]  # of all, without a copy
        if frame is not None:
            part = prepare_maps(part, frame, None if names is None else [names[i] for i in some])
        mosaic = np.zeros((len(part), height + 1, width), bool)
        mosaic[:, :height] = part >= np.float32(threshold)
        picture = mosaic.reshape(-1, width).view(np.uint8)
        count, region, stats, _ = cv2.connectedComponentsWithStats(picture, connectivity=8)
        left, top, wide, high = stats[1:, :4].T  # row 0 is the background
        image, top = np.divmod(top, height + 1)
        order = np.lexsort((left, top, image))
        corners = np.stack([top / height, left / width, (top + high) / height, (left + wide) / width], axis=1)
        peak = np.zeros(count, np.float32)
        np.maximum.at(peak, region.reshape(mosaic.shape)[mosaic], part[mosaic[:, :height]])
        boxes.append(corners[order])
        numbers.append(image[order] + first)
        peaks.append(peak[1:][order])
    return Boxes(np.concatenate(boxes), np.concatenate(numbers)), np.concatenate(peaks)


def detections(names, maps, sizes, threshold, frame, category_id, category, probabilities=None, first=0) -> list[dict]:
    """COCO detections of one finding (pycocotools' `loadRes` takes them), of each image the highest peak first: `bbox`
    [x,y,w,h] in pixels of the source image, `image_id` its number from `first` on, `file_name` its name. A box of the
    whole image places nothing: it is none.

    Args:
      names: [N] text. maps: [N,h,w], any range. sizes: [N,2] (height, width) of the source images.
      threshold, frame: as in `region_boxes`; those of the scores give the scored boxes.
      probabilities: [N] of the finding; given, a box scores peak * probability, otherwise its peak alone.
    """
    boxes, peaks = region_boxes(maps, threshold, frame=frame, names=names)
    corners, out = boxes.boxes.astype(np.float32).astype(float), []
    for at in np.lexsort((-peaks, boxes.image)):
        (ymin, xmin, ymax, xmax), i = corners[at].tolist(), int(boxes.image[at])
        height, width = sizes[i]
        if (ymax - ymin) * (xmax - xmin) > WHOLE:
            continue
        bbox = [xmin * width, ymin * height, (xmax - xmin) * width, (ymax - ymin) * height]
        scale = 1.0 if probabilities is None else float(probabilities[i])
        about = {"image_id": first + i, "file_name": str(names[i]), "category_id": category_id, "category": category}
        score = round(float(peaks[at]) * scale, 6)
        out.append({**about, "bbox": [round(float(v), 3) for v in bbox], "score": score})
    return out
