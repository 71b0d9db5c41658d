"""Procedural chest phantom: radiographs with soft opacities whose pixels are known exactly. A film shows a sum of
attenuations through the curve 1 - exp(-exposure * attenuation), so that ribs stay visible through an opacity. Points
are complex numbers x + iy in 0..1 (y down; the patient's left is on the right), so every size shows the same film. Each
part draws from its own child of a seed, so the label changes nothing but the opacities (and a marker, if it is to).
"""

from dataclasses import dataclass

import cv2
import numpy as np

_CELLS = 64  # grid on which opacity centres are chosen, whatever the image size
_CORNERS = np.array([0.10 + 0.08j, 0.90 + 0.08j, 0.08 + 0.90j, 0.92 + 0.90j])  # marker centres
_L = np.array([0, 1j, 0.8 + 1j]) - 0.4 - 0.5j  # strokes of the two letters, centred, of height 1
_R = np.array([1j, 0, 0.7 + 0.05j, 0.8 + 0.25j, 0.7 + 0.48j, 0.5j, 0.35 + 0.5j, 0.8 + 1j]) - 0.4 - 0.5j
_ROUND = np.exp(1j * np.linspace(0, 2 * np.pi, 33))
_SQUARE = _ROUND / np.maximum(abs(_ROUND.real), abs(_ROUND.imag)) ** 0.85  # with rounded corners


@dataclass(frozen=True)
class PhantomConfig:
    """What to draw, and how many images of it."""

    size: int = 64  # image height and width, pixels (ours)
    contrast: float = 0.35  # attenuation added at the heart of an opacity; lung is about 0.35, soft tissue 1 (ours)
    shortcut: float = 0.0  # probability that the side marker betrays the label, 0..1 (ours)
    prevalence: float = 0.5  # probability that an image carries opacities, 0..1 (ours)
    train: int = 6144  # training images (ours)
    val: int = 512  # validation images (ours)
    test: int = 512  # test images (ours)
    seed: int = 0  # seed of the whole set; an image is a pure function of it and of its index or background (ours)

    def __post_init__(self):
        bounds = {"size": (32, 4096), "contrast": (0, 10), "shortcut": (0, 1), "prevalence": (0, 1)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # NaN fails too
                raise ValueError(f"{name}: expected {low}..{high}, found {value}")


def render(seed: int, index: int, config: PhantomConfig) -> dict:
    """One film, a pure function of the arguments: `image` and `lung` (255 in the visible lung field), uint8 [H, W];
    `label`, 1 if there is an opacity, else 0; `mask` and `boxes`, see `truth`."""
    children = np.random.SeedSequence([seed, index]).spawn(6)
    anatomy, distractors, labels, lesions, marker, noise = (np.random.Generator(np.random.Philox(c)) for c in children)
    size, label = config.size, int(labels.random() < config.prevalence)
    fine = max(size, 128)  # drawn at least at 128 pixels, then averaged down
    attenuation, lung, to_image = _anatomy(anatomy, fine)
    attenuation += _devices(distractors, fine, to_image)
    attenuation = _shrink(cv2.GaussianBlur(attenuation, (0, 0), 0.0045 * fine), size)
    lung = _shrink(lung, size)  # float32 [H, W], soft edge

    found = opacities(lesions, lung) if label else []
    for alpha, texture, *_ in found:
        attenuation = attenuation + config.contrast * alpha * texture
    mask, boxes = truth(found, size)

    exposure, gamma, top = noise.uniform(0.75, 1.35), noise.uniform(0.8, 1.3), noise.uniform(0.88, 1.0)
    film = top * (1 - np.exp(-exposure * attenuation)) ** gamma
    film = np.maximum(film, _marker(marker, size, label, config.shortcut))
    grain = noise.uniform(0.01, 0.022) * noise.standard_normal((size, size), np.float32)
    film = film + grain * (0.4 + 0.6 * np.sqrt(np.clip(film, 0, 1)))
    return {
        "image": np.clip(np.rint(film * 255), 0, 255).astype(np.uint8),
        "mask": mask,
        "label": label,
        "boxes": boxes,
        "lung": np.where(lung > 0.5, 255, 0).astype(np.uint8),
    }


def truth(found: list, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of opacities: their mask, uint8 [H, W], 255 where an alpha exceeds half of its maximum; and float32 [N, 4], boxes
    (ymin, xmin, ymax, xmax) in 0..1, tight around the mask of each."""
    mask, boxes = np.zeros((size, size), np.uint8), []
    for alpha, *_ in found:
        inside = alpha > 0.5 * alpha.max()
        mask[inside] = 255
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        boxes.append((rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
    return mask, np.array(boxes, np.float32).reshape(-1, 4) / np.float32(size)


def _step(x: np.ndarray, width: float) -> np.ndarray:
    """Smooth step from 0 to 1 over `width` around x = 0."""
    t = np.clip(x / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _smooth(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth noise of about unit variance, float32 [size, size], the same pattern at every size."""
    return cv2.resize(rng.standard_normal((cells, cells), np.float32), (size, size), interpolation=cv2.INTER_CUBIC)


def _shrink(image: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def _grid(size: int) -> np.ndarray:
    """Pixel centres x + iy, complex64 [size, size]."""
    centre = (np.arange(size, dtype=np.float32) + 0.5) / size
    return centre + np.complex64(1j) * centre[:, None]


def _draw(canvas: np.ndarray, points: np.ndarray, value: float, width: float = 0.0) -> None:
    """Draws lines [..., P] of `width` (thin ones fade instead of vanishing), or fills a polygon, on a uint8 canvas."""
    pixels = width * len(canvas)
    thickness = max(1, round(pixels))
    fixed = np.rint((np.stack([points.real, points.imag], -1) * len(canvas) - 0.5) * 16).astype(np.int32)  # 1/16 px
    if width:
        lines = list(fixed.reshape(-1, *fixed.shape[-2:]))
        cv2.polylines(canvas, lines, False, 255 * value * min(1, pixels / thickness), thickness, cv2.LINE_AA, 4)
    else:
        cv2.fillPoly(canvas, [fixed], 255 * value, cv2.LINE_AA, 4)


def _bezier(a: complex, b: complex, c: complex, d: complex) -> np.ndarray:
    t = np.linspace(0, 1, 24)
    return (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t * t * (1 - t) * c + t**3 * d


def _anatomy(rng: np.random.Generator, size: int):
    """Attenuation [size, size], visible lung field in 0..1 [size, size], and the map from body to image points."""
    u = rng.uniform
    turn = u(0.93, 1.07) * np.exp(1j * np.deg2rad(u(-5, 5)))
    shift = 0.5 + 0.5j + u(-0.035, 0.035) + 1j * u(-0.035, 0.035)

    def to_image(points):  # body (x from the midline, y) -> image
        return (points - 0.5j) * turn + shift

    place = (_grid(size) - np.complex64(shift)) / np.complex64(turn) + np.complex64(0.5j)
    x = place.real + 0.008 * _smooth(rng, 5, size)  # distance from the midline, [size, size]
    y = place.imag + 0.008 * _smooth(rng, 5, size)
    far = np.abs(x)

    # Body: neck, shoulders, torso; thickness falls towards its edge.
    top = u(0.04, 0.1)
    half = u(0.10, 0.125) + u(0.33, 0.46) * _step(y - top - 0.06, 0.17) - 0.04 * _step(y - 0.4, 0.4)
    body = _step(half - far, 0.012)
    depth = np.sqrt(np.clip(1 - (far / half) ** 2, 0, 1))
    attenuation = body * (0.35 + 0.7 * depth) * (1 + 0.04 * _smooth(rng, 7, size))

    # Lungs: between a medial and a lateral edge, from the apex down to the diaphragm dome.
    lungs, apex, dome, aeration = np.zeros_like(x), u(0.13, 0.19), u(0.66, 0.76), u(0.62, 0.78)
    for side in (-1, 1):
        edge, start, low = u(0.29, 0.345), apex + u(-0.012, 0.012), dome + side * u(0.0, 0.03)
        across = side * x
        t = np.clip((y - start) / 0.22, 0, 1)
        lateral = edge * (0.86 + 0.3 * (y - start)) * np.sqrt(1 - (1 - t) ** 2)
        medial = u(0.05, 0.075) + 0.02 * (1 - t) ** 2
        floor = low + u(2.2, 3.4) * (across - u(0.14, 0.18)) ** 2
        inside = _step(np.minimum(lateral - across, across - medial), 0.02) * _step(floor - y, u(0.014, 0.03))
        lungs = np.maximum(lungs, inside * (aeration + u(-0.04, 0.04)) / 0.75)
    abdomen = body * _step(y - dome - 1.3 * far**2, 0.14) * np.clip(1 - 1.4 * lungs, 0, 1)

    # Heart, aortic knob, mediastinum; what they leave of the lungs.
    axes = (x - u(0.03, 0.07) + 1j * (y - dome + u(0.06, 0.1))) * np.complex64(np.exp(-1j * u(0.6, 0.95)))
    heart = _step(1 - np.hypot(axes.real / u(0.15, 0.2), axes.imag / u(0.105, 0.135)), u(0.14, 0.26))
    knob = _step(1 - np.hypot((x - 0.05) / u(0.035, 0.05), (y - u(0.3, 0.35)) / 0.055), 0.5)
    waist = u(0.055, 0.08) + 0.09 * np.clip(y - 0.4, 0, 0.3) + 0.008 * np.sin(14 * y + u(0, 6))
    middle = _step(waist - far, 0.04) * _step(y - 0.1, 0.2)
    solid = np.maximum(np.maximum(heart, middle), knob)
    field = np.clip(1.25 * np.clip(lungs / 0.75, 0, 1) * (1 - solid), 0, 1)  # visible lung

    # Air with haze and vessels, solid organs, stomach gas, trachea.
    haze = sum(
        u(*span) * _smooth(rng, n, size) for n, span in ((3, (0.02, 0.12)), (9, (0.01, 0.04)), (28, (0.01, 0.02)))
    )
    haze += u(-0.15, 0.25) * (y - 0.45) * 2 + u(-0.1, 0.1) * np.sign(x)
    attenuation = attenuation * (1 - 0.75 * lungs * (1 - 0.9 * solid))
    attenuation += field * (haze + _vessels(rng, size, to_image) * u(0.1, 0.3))
    bulk = np.maximum(u(0.6, 0.8) * (1 - (1 - heart) * (1 - 0.8 * middle) * (1 - 0.6 * knob)), u(0.5, 0.8) * abdomen)
    attenuation += body * bulk
    if rng.random() < 0.4:
        bubble = 1 - np.hypot((x - u(0.12, 0.22)) / u(0.04, 0.09), (y - dome - u(0.1, 0.14)) / u(0.02, 0.05))
        attenuation -= u(0.2, 0.5) * _step(bubble, 0.4) * abdomen
    attenuation -= 0.3 * _step(0.02 - np.abs(x - 0.004), 0.02) * _step(0.34 - y, 0.1) * body

    # Bones: spine with its discs, posterior and anterior ribs, clavicles.
    vertebra = 0.75 + 0.25 * np.tanh(3 * np.cos(2 * np.pi * y / u(0.06, 0.072)))
    attenuation += u(0.1, 0.25) * _step(0.04 - far, 0.02) * vertebra * body
    cage = _step(0.37 + 0.1 * (y - 0.5) - far, 0.05) * _step(y - apex, 0.06) * _step(far - 0.04, 0.06) * body
    gap, level = u(0.075, 0.09), y + 0.006 * _smooth(rng, 6, size)
    back = (level - u(0.3, 0.9) * 0.1 * far - u(2.4, 3.6) * far**3 - 0.02 * np.sign(x)) / gap
    front = (level + u(0.5, 0.75) * (far - 0.3) - u(0.4, 1.2) * (far - 0.2) ** 2) / (1.25 * gap)
    for phase, width, fade, amount in (
        (back + u(0, 1), 0.2, _step(0.95 - y, 0.5), u(0.08, 0.16)),
        (front + u(0, 1), 0.17, _step(far - 0.17, 0.12) * _step(y - apex - 0.14, 0.1), u(0.05, 0.1)),
    ):
        off = np.abs(phase - np.rint(phase))  # 0 on the axis of a rib, 0.5 halfway to the next
        attenuation += amount * cage * fade * _step(width - off, 0.12) * (0.75 + 0.25 * (off / width) ** 2)
    collar = apex + u(0.03, 0.07) - u(0.1, 0.3) * (far - 0.05) + 0.012 * np.sin(22 * far)
    attenuation += u(0.12, 0.25) * _step(0.014 - np.abs(y - collar), 0.012) * _step(far - 0.035, 0.02) * body

    if rng.random() < 0.45:  # breasts or other soft tissue
        bulge = 1 - ((far - u(0.18, 0.24)) / u(0.13, 0.19)) ** 2 - ((y - u(0.58, 0.7)) / u(0.13, 0.2)) ** 2
        attenuation += u(0.06, 0.2) * body * np.sqrt(np.clip(bulge, 0, 1))
    return np.maximum(attenuation, 0).astype(np.float32), field.astype(np.float32), to_image


def _vessels(rng: np.random.Generator, size: int, to_image) -> np.ndarray:
    """Vascular tree in 0..1, [size, size]: trunks out of both hila, each with two generations of branches."""
    canvas, side = np.zeros((size, size), np.uint8), np.repeat([-1.0, 1.0], 9)  # one entry a trunk
    start = side * 0.09 + 1j * (0.44 + 0.05 * rng.standard_normal(18))
    heading = np.tile(np.linspace(-1.25, 1.35, 9), 2) + 0.15 * rng.standard_normal(18)
    for width, length, spread in ((0.011, 0.034, 0.1), (0.007, 0.024, 0.5), (0.004, 0.017, 0.6)):
        bend = np.cumsum(0.12 * rng.standard_normal((len(side), 7)), 1) + heading[:, None]
        moves = length * (side[:, None] * np.cos(bend) + 1j * np.sin(bend))
        path = np.cumsum(np.concatenate([start[:, None], moves], 1), 1)  # [branches, 8]
        _draw(canvas, to_image(path), 0.35 + 45 * width, width)
        knots = rng.integers(2, 5, len(side)), rng.integers(4, 8, len(side))
        start = np.concatenate([path[np.arange(len(side)), k] for k in knots])
        heading = np.concatenate([heading + spread * s + 0.2 * rng.standard_normal(len(side)) for s in (-1, 1)])
        side = np.tile(side, 2)
    return canvas.astype(np.float32) / 255


def _devices(rng: np.random.Generator, size: int, to_image) -> np.ndarray:
    """Attenuation of lines, electrodes and implants, [size, size]: bright, hard-edged, often over a lung."""
    canvas, u = np.zeros((size, size), np.uint8), rng.uniform

    def point(x0, x1, y0, y1):
        return u(x0, x1) + 1j * u(y0, y1)

    if rng.random() < 0.35:  # catheter or tube, from the neck, a shoulder or a flank to the middle
        start = point(-0.4, 0.4, -0.02, 0.1) if rng.random() < 0.6 else rng.choice([-1, 1]) * 0.5 + 1j * u(0.2, 0.9)
        path = _bezier(start, point(-0.3, 0.3, 0.1, 0.5), point(-0.2, 0.2, 0.2, 0.6), point(-0.12, 0.15, 0.35, 0.95))
        _draw(canvas, to_image(path), u(0.4, 0.8), u(0.006, 0.012))
    for _ in range(rng.integers(1, 4) if rng.random() < 0.35 else 0):  # electrodes with their leads
        spot = rng.choice([-1, 1]) * u(0.1, 0.36) + 1j * u(0.22, 0.75)
        near, further = spot + point(-0.15, 0.15, -0.15, 0.15), spot + point(-0.3, 0.3, -0.3, 0.3)
        _draw(canvas, to_image(_bezier(spot, near, further, u(-0.5, 0.5) + 1.05j)), u(0.3, 0.6), 0.005)
        shape = u(0.012, 0.03) * (_ROUND, _SQUARE)[rng.integers(2)]
        _draw(canvas, to_image(spot + shape), u(0.4, 1))
    if rng.random() < 0.15:  # pacemaker below a clavicle, its wire to the heart
        spot = rng.choice([-1, 1]) * u(0.2, 0.3) + 1j * u(0.22, 0.3)
        wire = _bezier(spot, 0.6 * spot.real + 0.15j, -0.08 + 0.3j, point(0.02, 0.1, 0.6, 0.7))
        case = (u(0.04, 0.05) * _SQUARE.real + 1j * u(0.03, 0.04) * _SQUARE.imag) * np.exp(1j * u(-0.5, 0.5))
        _draw(canvas, to_image(wire), 0.8, 0.008)
        _draw(canvas, to_image(spot + case), 1)
    return canvas.astype(np.float32) * np.float32(1.2 / 255)


def opacities(rng: np.random.Generator, lung: np.ndarray) -> list[tuple]:
    """One to three (alpha in 0..1 [H, W], texture of mean 1 [H, W], centre, radius); their masks do not touch."""
    size, cells, found = len(lung), _grid(_CELLS), []
    inner = (_shrink(lung, _CELLS) > 0.5).astype(np.uint8)
    room = cv2.distanceTransform(inner, cv2.DIST_L2, 5) / _CELLS  # distance to the edge of the lung
    for _ in range(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15])):
        area = np.exp(rng.uniform(np.log(0.014), np.log(0.055)))  # of the image, before the lung clips it
        radius, stretch, tilt = np.sqrt(area / np.pi), rng.uniform(1, 1.5) ** 0.5, rng.uniform(0, np.pi)
        lobes, phases = rng.normal(0, (0.1, 0.09, 0.06, 0.05, 0.04)), rng.uniform(0, 2 * np.pi, 5)
        soft, order = rng.uniform(0.6, 1.1), rng.random((_CELLS, _CELLS))
        texture = 1 + 0.22 * _smooth(rng, 12, size) + 0.15 * _smooth(rng, 24, size)
        free = room > 0.5 * radius
        for *_, other, reach in found:
            free &= abs(cells - other) > 1.6 * (radius + reach)
        if not free.any():
            if found:  # no room for one more
                continue
            free = room >= room.max()
        centre = cells.flat[np.argmax(order * free)]
        axes = (_grid(size) - centre) * np.complex64(np.exp(-1j * tilt))
        angle = np.angle(axes)
        edge = 1 + sum(a * np.cos(k * angle + p) for k, a, p in zip(range(2, 7), lobes, phases, strict=True))
        ratio = np.hypot(axes.real / stretch, axes.imag * stretch) / (radius * np.clip(edge, 0.6, 1.5))
        alpha = (_step(1 - ratio, soft) * lung).astype(np.float32)
        _, parts = cv2.connectedComponents((alpha > 0.02).astype(np.uint8))
        alpha[parts != parts.flat[np.argmax(alpha)]] = 0  # it stays on its side of the heart
        found.append((alpha, texture, centre, radius))
    return found


def _marker(rng: np.random.Generator, size: int, label: int, shortcut: float) -> np.ndarray:
    """Side marker in 0..1, [H, W]. With probability `shortcut` the plate in the first corner is there iff label = 1."""
    canvas, u = np.zeros((max(size, 128),) * 2, np.uint8), rng.uniform
    betrays, shown, plate = rng.random(3) < (shortcut, 0.8, 0.35)
    corner, letter = rng.choice(4, p=[0.35, 0.35, 0.15, 0.15]), (_L, _R)[rng.integers(2)]
    jitter, scale, bright = u(-0.03, 0.03) + 1j * u(-0.03, 0.03), u(0.045, 0.075), u(0.7, 1)
    if betrays and label:
        shown, plate, corner, letter, jitter, scale, bright = True, True, 0, _L, 0, 0.07, 1
    elif betrays and corner == 0:
        corner = 1
    place = _CORNERS[corner] + jitter
    if shown and plate:
        _draw(canvas, place + 0.8 * scale * _SQUARE, bright)
    if shown:
        _draw(canvas, place + scale * letter, 0.15 if plate else bright, 0.016)
    return _shrink(canvas, size).astype(np.float32) / 255
