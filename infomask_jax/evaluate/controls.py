"""Controls: predictions that know the frame, at most the true boxes of *other* images, and but for `brightness` no
pixel. A method that does not beat them has localized nothing. Boxes are (ymin,xmin,ymax,xmax) in 0..1.
"""

import cv2
import numpy as np

# x .12-.45 and .55-.88, y .20-.80: one box a lung
LUNG_BOXES = np.array([[0.20, 0.12, 0.80, 0.45], [0.20, 0.55, 0.80, 0.88]])
GRID = 14  # cells a side of the random map and of brightness: as smooth as a usual heat map
BOXES = ("whole_image", "mean_box", "mean_right_box", "mean_lung_boxes", "lung_boxes")


def random_maps(n: int, seed: int) -> np.ndarray:
    """Uniform noise, another for every image, float32 [n,14,14]."""
    return np.random.default_rng(seed).random((n, GRID, GRID), dtype=np.float32)


def center_maps(n: int, frame: int) -> np.ndarray:
    """Minus the distance of each pixel centre to the image centre, float32 [n,S,S] (one map, n times in view)."""
    axis = (np.arange(frame) + 0.5) / frame - 0.5
    distance = np.hypot(axis[:, None], axis[None, :]).astype(np.float32)
    return np.broadcast_to(-distance, (n, frame, frame))


def brightness(image: np.ndarray) -> np.ndarray:
    """An image [H,W] averaged over cells, float32 [14,14]: opacities are brighter than the lung around them."""
    return cv2.resize(image.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)


def control_boxes(name: str, reference: np.ndarray, owner: np.ndarray, images: np.ndarray) -> list[np.ndarray]:
    """The boxes that control `name` of BOXES predicts for each of `images`.

    Args:
      reference: true boxes [n,4] to average. owner: [n] the image of each, whose own prediction leaves it out, or -1.
    """
    if name in ("whole_image", "lung_boxes"):
        return [np.array([[0.0, 0, 1, 1]]) if name == "whole_image" else LUNG_BOXES] * len(images)
    of_others, owners = mean_boxes(name, reference), set(owner.tolist())  # most images own none of the boxes
    return [mean_boxes(name, reference[owner != i]) if i in owners else of_others for i in images.tolist()]


def mean_boxes(name: str, boxes: np.ndarray) -> np.ndarray:
    """The mean of boxes [n,4]: of all ("mean_box"), of those with their centre in the right half of the image
    ("mean_right_box"), of each half ("mean_lung_boxes"). [0 to 2,4]."""
    left = (boxes[:, 1] + boxes[:, 3]) / 2 < 0.5
    parts = {"mean_box": [boxes], "mean_right_box": [boxes[~left]], "mean_lung_boxes": [boxes[left], boxes[~left]]}
    return np.reshape([part.mean(0) for part in parts[name] if len(part)], (-1, 4))


def snap(boxes: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """True boxes [n,4] with their edges moved to the nearest line of a grid of (rows, columns): the ceiling of its
    maps. A box between two lines becomes the cell that holds its centre."""
    size = np.array([*grid, *grid])
    edges = np.round(np.asarray(boxes, float).reshape(-1, 4) * size)
    low, high = edges[:, :2], edges[:, 2:]
    centre = np.minimum(np.floor((boxes[:, :2] + boxes[:, 2:]) / 2 * size[:2]), size[:2] - 1)
    empty = low == high
    return np.hstack([np.where(empty, centre, low), np.where(empty, centre + 1, high)]) / size
