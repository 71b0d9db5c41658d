"""Controls: predictions that know the frame, at most the true boxes of *other* images, and but for one no pixel.

That one, `brightness`, sees the image and has learned nothing. A method that does not beat them has localized nothing.
Boxes are (ymin,xmin,ymax,xmax) in 0..1.
"""

import cv2
import numpy as np

# x .12-.45 and .55-.88, y .20-.80: one box a lung
LUNG_BOXES = np.array([[0.20, 0.12, 0.80, 0.45], [0.20, 0.55, 0.80, 0.88]])
GRID = 14  # cells a side of the random map and of brightness: as smooth as a usual heat map
MAPS = ("random", "center")
BOXES = ("whole_image", "mean_box", "mean_right_box", "mean_lung_boxes", "lung_boxes")


def random_maps(n: int, seed: int) -> np.ndarray:
    """Uniform noise on a 14 x 14 grid, another for every image, float32 [n,14,14]."""
    return np.random.default_rng(seed).random((n, GRID, GRID), dtype=np.float32)


def brightness(image: np.ndarray) -> np.ndarray:
    """An image [H,W] averaged over 14 x 14 cells, float32: opacities are brighter than the lung around them.

    Strong where all but the lungs is black; on whole films the mediastinum and the shoulders are brighter still.
    """
    return cv2.resize(image.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)


def center_maps(n: int, frame: int) -> np.ndarray:
    """Minus the distance of each pixel centre to the image centre, float32 [n,S,S] (one map, n times in view)."""
    axis = (np.arange(frame) + 0.5) / frame - 0.5
    distance = np.hypot(axis[:, None], axis[None, :]).astype(np.float32)
    return np.broadcast_to(-distance, (n, frame, frame))


def mean_box(boxes: np.ndarray) -> np.ndarray:
    """Arithmetic mean of (x,y,w,h), which is that of the edges: [n,4] -> [1,4], or [0,4] of none."""
    return boxes.mean(0, keepdims=True) if len(boxes) else boxes


def mean_lung_boxes(boxes: np.ndarray) -> np.ndarray:
    """One mean box for each side of the image, left if x + w/2 < .5: [n,4] -> [<=2,4]."""
    left = _on_the_left(boxes)
    return np.concatenate([mean_box(boxes[left]), mean_box(boxes[~left])])


def mean_right_box(boxes: np.ndarray) -> np.ndarray:
    """The mean box of the image's right side alone: [n,4] -> [<=1,4]."""
    return mean_box(boxes[~_on_the_left(boxes)])


def _on_the_left(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 1] + boxes[:, 3]) / 2 < 0.5


def control_boxes(name: str, reference: np.ndarray, owner: np.ndarray, images: np.ndarray) -> list[np.ndarray]:
    """The boxes that control `name` of BOXES predicts for each of `images`.

    Args:
      reference: true boxes [n,4] to average; owner: [n] the image of each, or -1 for a box of the validation split. An
        image's own boxes are left out.
    """
    if name in ("whole_image", "lung_boxes"):
        return [np.array([[0.0, 0, 1, 1]]) if name == "whole_image" else LUNG_BOXES] * len(images)
    average = {"mean_box": mean_box, "mean_right_box": mean_right_box, "mean_lung_boxes": mean_lung_boxes}[name]
    of_others, owners = average(reference), set(owner.tolist())  # most images own none of the boxes
    return [average(reference[owner != image]) if image in owners else of_others for image in images.tolist()]


def snap(boxes: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Edges moved to the nearest line of a grid of (rows, columns) cells, at least one cell: the ceiling of its maps.

    Not a control: it knows the true boxes [n,4]. A box between two lines becomes the cell that holds its centre.
    """
    size = np.array([*grid, *grid])
    edges = np.round(np.asarray(boxes, float).reshape(-1, 4) * size)
    low, high = edges[:, :2], edges[:, 2:]
    centre = np.minimum(np.floor((boxes[:, :2] + boxes[:, 2:]) / 2 * size[:2]), size[:2] - 1)
    empty = low == high
    return np.hstack([np.where(empty, centre, low), np.where(empty, centre + 1, high)]) / size
