"""Image-blind controls: predictions that know the frame, and at most the true boxes of *other* images, but no pixel.

A method that does not beat them has localized nothing. Boxes are (ymin,xmin,ymax,xmax) in 0..1.
"""

import cv2
import numpy as np

# x .12-.45 and .55-.88, y .20-.80: one box a lung
LUNG_BOXES = np.array([[0.20, 0.12, 0.80, 0.45], [0.20, 0.55, 0.80, 0.88]])
NOISE_GRID = 14  # cells a side of the random map: as smooth as a usual heat map
NAMES = ("random", "center", "mean_box", "mean_lung_boxes", "lung_boxes")


def random_maps(n: int, frame: int, seed: int) -> np.ndarray:
    """Uniform noise on a 14 x 14 grid, another for every image, resized to float32 [n,S,S]."""
    noise = np.random.default_rng(seed).random((n, NOISE_GRID, NOISE_GRID), dtype=np.float32)
    resized = [cv2.resize(cells, (frame, frame), interpolation=cv2.INTER_LINEAR) for cells in noise]
    return np.stack(resized) if n else np.zeros((0, frame, frame), np.float32)


def center_map(frame: int) -> np.ndarray:
    """Minus the distance of each pixel centre to the image centre, float32 [S,S]."""
    axis = (np.arange(frame) + 0.5) / frame - 0.5
    return -np.hypot(axis[:, None], axis[None, :]).astype(np.float32)


def mean_box(boxes: np.ndarray) -> np.ndarray:
    """Arithmetic mean of (x,y,w,h), which is that of the edges: [n,4] -> [1,4], or [0,4] of none."""
    return boxes.mean(0, keepdims=True) if len(boxes) else boxes


def mean_lung_boxes(boxes: np.ndarray) -> np.ndarray:
    """One mean box for each side of the image, left if x + w/2 < .5: [n,4] -> [<=2,4]."""
    left = (boxes[:, 1] + boxes[:, 3]) / 2 < 0.5
    return np.concatenate([mean_box(boxes[left]), mean_box(boxes[~left])])


def control_boxes(name: str, reference: np.ndarray, owner: np.ndarray, images: np.ndarray) -> list[np.ndarray]:
    """The boxes that control `name` predicts for each of `images`.

    Args:
      reference: true boxes [n,4] to average; owner: [n] the image of each, or -1 for a box of the validation split. An
        image's own boxes are left out.
    """
    if name == "lung_boxes":
        return [LUNG_BOXES] * len(images)
    average = {"mean_box": mean_box, "mean_lung_boxes": mean_lung_boxes}[name]
    return [average(reference[owner != image]) for image in images]
