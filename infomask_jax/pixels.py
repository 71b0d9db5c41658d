"""Stored bytes -> pixels -> a square -> standardised, and back to bytes: the one place for it, without JAX and grain.

(Files of users, which may be anything, are decoded by datasets/images.py.)
"""

import cv2
import numpy as np

PANEL = 512  # longer side of a film in a picture of it, pixels


def decode_gray(data: bytes) -> np.ndarray:
    """Stored PNG bytes -> uint8 or uint16 [H, W]."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def encode(image: np.ndarray) -> bytes:
    """uint8 or uint16 [H, W] -> the bytes of a gray PNG of the same depth."""
    done, data = cv2.imencode(".png", image)
    if not done:
        raise ValueError(f"expected uint8 or uint16 [H, W], found {image.dtype} {image.shape}")
    return data.tobytes()


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """[H, W] -> [size, size], same type, as `prepare` stores it: averages over areas of any size where it shrinks,
    linear where it grows."""
    height, width = image.shape
    if height > size or width > size:
        image = cv2.resize(image, (min(width, size), min(height, size)), interpolation=cv2.INTER_AREA)
    if image.shape != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return image


def rescale(image: np.ndarray, size: int) -> np.ndarray:
    """[H, W] -> [size, size], same type, as batches hold it: averages over blocks of whole pixels (2 x 2 from 5/3 of
    the size on, 3 x 3 from 8/3), then linear; `resize` smooths a little better, but takes half as long as decoding."""
    height, width = (round(side / block) for side, block in zip(image.shape, blocks(image.shape, size), strict=True))
    if (height, width) != image.shape:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    if image.shape != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return image


def blocks(lengths, size: int) -> np.ndarray:
    """Pixels on a side of the blocks that `rescale` averages for sides of these lengths to become `size`."""
    return np.maximum((np.asarray(lengths) / size + 1 / 3).astype(int), 1)


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """[H, W] -> float32 [size, size], see `rescale`."""
    return rescale(image.astype(np.float32), size)


def standardise(image: np.ndarray, gain: float = 1.0, out: np.ndarray | None = None) -> np.ndarray:
    """Zero mean and standard deviation `gain` over the image, float32; a constant image becomes zeros."""
    mean, deviation = cv2.meanStdDev(image)
    out = np.empty(image.shape, np.float32) if out is None else out
    np.copyto(out, image)  # and then in place: numpy subtracts from other types in chunks, through a buffer
    out -= np.float32(mean.item())
    out *= np.float32(gain / max(deviation.item(), 1e-3))
    return out


def as_panel(film: np.ndarray) -> np.ndarray:
    """uint8 or uint16 [H, W] -> uint8 in proportion, its longer side PANEL, stretched from black to white."""
    scale = PANEL / max(film.shape)
    height, width = (max(round(side * scale), 1) for side in film.shape)
    film = cv2.resize(film, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return cv2.normalize(film, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
