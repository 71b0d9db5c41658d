"""Procedural chest phantom: radiographs with soft opacities whose pixels are known exactly.

The picture is a sum of attenuations shown through the exposure curve ``1 - exp(-exposure * attenuation)``, so that a rib
stays visible through an opacity. Geometry lives in 0..1 (x right, y down; the patient's left is on the right), hence
every size shows the same film. Anatomy, distractors, label, opacities, marker and noise each draw from their own child
of ``SeedSequence([seed, index])``: the label cannot influence anything but the opacities (and, with `shortcut`, the marker).
"""

from dataclasses import dataclass

import cv2
import numpy as np

_CELLS = 64  # grid on which opacity centres are chosen, whatever the image size
_GLYPHS = {  # strokes of the side markers in a unit square
    "L": [[(0, 0), (0, 1), (0.8, 1)]],
    "R": [[(0, 1), (0, 0), (0.7, 0.05), (0.8, 0.25), (0.7, 0.48), (0, 0.5), (0.35, 0.5), (0.8, 1)]],
}
_CORNERS = np.array([(0.10, 0.08), (0.90, 0.08), (0.08, 0.90), (0.92, 0.90)])  # (x, y) of marker centres


@dataclass(frozen=True)
class PhantomConfig:
    """What to draw, and how many images of it."""

    size: int = 64  # image height and width, pixels (ours)
    contrast: float = 0.35  # attenuation added at the heart of an opacity; lung is about 0.35, soft tissue 1 (ours)
    shortcut: float = 0.0  # probability that the side marker betrays the label, 0..1 (ours)
    prevalence: float = 0.5  # probability that an image carries opacities, 0..1 (ours)
    train: int = 2048  # training images (ours)
    val: int = 512  # validation images (ours)
    test: int = 512  # test images (ours)
    seed: int = 0  # seed of the whole set; image `index` is a pure function of (seed, index) (ours)

    def __post_init__(self):
        if self.size < 32:
            raise ValueError(f"size: expected at least 32 pixels, found {self.size}")
        for name in ("shortcut", "prevalence"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a probability in 0..1, found {getattr(self, name)}")
        if not self.contrast >= 0:
            raise ValueError(f"contrast: expected 0 or more, found {self.contrast}")


def render(seed: int, index: int, config: PhantomConfig) -> dict:
    """Draws one film.

    Returns:
      image: uint8 [H, W].
      mask: uint8 [H, W], 255 where the alpha of an opacity exceeds half of its maximum, else 0.
      label: 1 if there is an opacity, else 0.
      boxes: float32 [N, 4], (ymin, xmin, ymax, xmax) in 0..1, one per opacity, tight around its mask.
      lung: uint8 [H, W], 255 in the visible lung field, else 0.
    """
    children = np.random.SeedSequence([seed, index]).spawn(6)
    anatomy, distractors, labels, lesions, marker, noise = (np.random.Generator(np.random.Philox(c)) for c in children)
    size = config.size
    label = int(labels.random() < config.prevalence)

    fine = max(size, 128)  # drawn at least at 128 pixels, then averaged down
    attenuation, lung, to_image = _anatomy(anatomy, fine)
    attenuation += _devices(distractors, fine, to_image)
    attenuation = cv2.GaussianBlur(attenuation, (0, 0), 0.0045 * fine)
    attenuation = cv2.resize(attenuation, (size, size), interpolation=cv2.INTER_AREA)
    lung = cv2.resize(lung, (size, size), interpolation=cv2.INTER_AREA)  # float32 [H, W], soft edge

    mask = np.zeros((size, size), np.uint8)
    boxes = []
    if label:
        for alpha, texture in _opacities(lesions, lung):
            attenuation = attenuation + config.contrast * alpha * texture
            inside = alpha > 0.5 * alpha.max()
            mask[inside] = 255
            rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
            boxes.append((rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))

    exposure, gamma, top = noise.uniform(0.75, 1.35), noise.uniform(0.8, 1.3), noise.uniform(0.88, 1.0)
    film = top * (1 - np.exp(-exposure * attenuation)) ** gamma
    film = np.maximum(film, _marker(marker, size, label, config.shortcut))
    grain = noise.uniform(0.01, 0.022) * noise.standard_normal((size, size), np.float32)
    film = film + grain * (0.4 + 0.6 * np.sqrt(np.clip(film, 0, 1)))
    return {
        "image": np.clip(np.rint(film * 255), 0, 255).astype(np.uint8),
        "mask": mask,
        "label": label,
        "boxes": np.array(boxes, np.float32).reshape(-1, 4) / np.float32(size),
        "lung": np.where(lung > 0.5, 255, 0).astype(np.uint8),
    }


def _step(x: np.ndarray, width: float) -> np.ndarray:
    """Smooth step from 0 to 1 over `width` around x = 0."""
    t = np.clip(x / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _smooth(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth noise of about unit variance, float32 [size, size], the same pattern at every size."""
    return cv2.resize(rng.standard_normal((cells, cells), np.float32), (size, size), interpolation=cv2.INTER_CUBIC)


def _strokes(canvas: np.ndarray, points: np.ndarray, width: float, value: float = 1.0) -> None:
    """Draws polylines, points [N, P, 2] and width in 0..1, on a uint8 canvas; thin lines fade instead of vanishing."""
    pixels = width * len(canvas)
    thickness = max(1, round(pixels))
    fixed = np.rint((np.asarray(points) * len(canvas) - 0.5) * 16).astype(np.int32)
    cv2.polylines(canvas, list(fixed), False, 255 * value * min(1, pixels / thickness), thickness, cv2.LINE_AA, 4)


def _polygon(canvas: np.ndarray, points: np.ndarray, value: float = 1.0) -> None:
    fixed = np.rint((np.asarray(points) * len(canvas) - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], 255 * value, cv2.LINE_AA, 4)


def _bezier(controls: np.ndarray) -> np.ndarray:
    """Cubic Bezier curve through control points [4, 2]: 24 points [24, 2]."""
    t = np.linspace(0, 1, 24)[:, None]
    a, b, c, d = np.asarray(controls, float)
    return (1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t * t * (1 - t) * c + t**3 * d


def _anatomy(rng: np.random.Generator, size: int):
    """Attenuation [size, size], visible lung field in 0..1 [size, size], and the map from body to image points."""
    u = rng.uniform
    angle, zoom, shift = np.deg2rad(u(-5, 5)), u(0.93, 1.07), u(-0.035, 0.035, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def to_image(points):  # body (x from the midline, y) -> image (x, y)
        return (np.asarray(points) - (0, 0.5)) @ turn.T * zoom + 0.5 + shift

    centre = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    px, py = np.meshgrid(centre - np.float32(shift[0]), centre - np.float32(shift[1]))
    cos, sin = np.float32(turn[0, 0] / zoom), np.float32(turn[1, 0] / zoom)
    x = cos * px + sin * py + 0.008 * _smooth(rng, 5, size)  # distance from the midline, [size, size]
    y = cos * py - sin * px + 0.5 + 0.008 * _smooth(rng, 5, size)
    far = np.abs(x)

    # Body: neck, shoulders, torso; thickness falls towards its edge.
    top = u(0.04, 0.1)
    half = u(0.10, 0.125) + u(0.33, 0.46) * _step(y - top - 0.06, 0.17) - 0.04 * _step(y - 0.4, 0.4)
    body = _step(half - far, 0.012)
    attenuation = (
        body * (0.35 + 0.7 * np.sqrt(np.clip(1 - (far / half) ** 2, 0, 1))) * (1 + 0.04 * _smooth(rng, 7, size))
    )

    # Lungs: between a medial and a lateral edge, from the apex down to the diaphragm dome.
    lungs = np.zeros_like(x)
    apex, dome = u(0.13, 0.19), u(0.66, 0.76)
    aeration = u(0.62, 0.78)
    for side in (-1, 1):
        edge = u(0.29, 0.345)
        start, low = apex + u(-0.012, 0.012), dome + side * u(0.0, 0.03)
        across = side * x
        t = np.clip((y - start) / 0.22, 0, 1)
        lateral = edge * (0.86 + 0.3 * (y - start)) * np.sqrt(1 - (1 - t) ** 2)
        medial = u(0.05, 0.075) + 0.02 * (1 - t) ** 2
        floor = low + u(2.2, 3.4) * (across - u(0.14, 0.18)) ** 2
        inside = _step(np.minimum(lateral - across, across - medial), 0.02) * _step(floor - y, u(0.014, 0.03))
        lungs = np.maximum(lungs, inside * (aeration + u(-0.04, 0.04)) / 0.75)
    abdomen = body * _step(y - dome - 1.3 * far**2, 0.14) * np.clip(1 - 1.4 * lungs, 0, 1)

    # Heart, mediastinum with the aortic knob, trachea.
    hx, hy, a, b, tilt = u(0.03, 0.07), dome - u(0.06, 0.1), u(0.15, 0.2), u(0.105, 0.135), u(0.6, 0.95)
    along, beside = np.cos(tilt) * (x - hx) + np.sin(tilt) * (y - hy), np.cos(tilt) * (y - hy) - np.sin(tilt) * (x - hx)
    heart = _step(1 - np.hypot(along / a, beside / b), u(0.14, 0.26))
    knob = _step(1 - np.hypot((x - 0.05) / u(0.035, 0.05), (y - u(0.3, 0.35)) / 0.055), 0.5)
    waist = u(0.055, 0.08) + 0.09 * np.clip(y - 0.4, 0, 0.3) + 0.008 * np.sin(14 * y + u(0, 6))
    middle = _step(waist - far, 0.04) * _step(y - 0.1, 0.2)
    solid = np.maximum(np.maximum(heart, middle), knob)
    field = (lungs > 0) * np.clip(lungs / 0.75, 0, 1) * (1 - solid)  # visible lung
    field = np.clip(1.25 * field, 0, 1)

    # Lung: air, haze, vessels out of the hila.
    haze = (
        u(0.02, 0.12) * _smooth(rng, 3, size) + u(0.01, 0.04) * _smooth(rng, 9, size) + 0.015 * _smooth(rng, 28, size)
    )
    haze += u(-0.15, 0.25) * (y - 0.45) * 2 + u(-0.1, 0.1) * np.sign(x)
    vessels = _vessels(rng, size, to_image)
    attenuation = attenuation * (1 - 0.75 * lungs * (1 - 0.9 * solid))
    attenuation += field * (haze + u(0.1, 0.3) * vessels)
    bulk = np.maximum(u(0.6, 0.8) * (1 - (1 - heart) * (1 - 0.8 * middle) * (1 - 0.6 * knob)), u(0.5, 0.8) * abdomen)
    attenuation += body * bulk
    if rng.random() < 0.4:  # gas in the stomach
        bubble = 1 - np.hypot((x - u(0.12, 0.22)) / u(0.04, 0.09), (y - dome - u(0.1, 0.14)) / u(0.02, 0.05))
        attenuation -= u(0.2, 0.5) * _step(bubble, 0.4) * abdomen
    attenuation -= 0.3 * _step(0.02 - np.abs(x - 0.004), 0.02) * _step(0.34 - y, 0.1) * body  # trachea

    # Bones: spine with its discs, posterior and anterior ribs, clavicles.
    vertebra = 0.75 + 0.25 * np.tanh(3 * np.cos(2 * np.pi * y / u(0.06, 0.072)))
    attenuation += u(0.1, 0.25) * _step(0.04 - far, 0.02) * vertebra * body
    cage = _step(0.37 + 0.1 * (y - 0.5) - far, 0.05) * _step(y - apex, 0.06) * _step(far - 0.04, 0.06) * body
    gap = u(0.075, 0.09)
    wobble = 0.006 * _smooth(rng, 6, size)
    back = (y + wobble - u(0.3, 0.9) * 0.1 * far - u(2.4, 3.6) * far**3 - 0.02 * np.sign(x)) / gap
    front = (y + wobble + u(0.5, 0.75) * (far - 0.3) - u(0.4, 1.2) * (far - 0.2) ** 2) / (1.25 * gap)
    for phase, width, fade, amount in (
        (back + u(0, 1), 0.2, _step(0.95 - y, 0.5), u(0.08, 0.16)),
        (front + u(0, 1), 0.17, _step(far - 0.17, 0.12) * _step(y - apex - 0.14, 0.1), u(0.05, 0.1)),
    ):
        off = np.abs(phase - np.rint(phase))  # 0 on the axis of a rib, 0.5 halfway to the next
        attenuation += amount * cage * fade * _step(width - off, 0.12) * (0.75 + 0.25 * (off / width) ** 2)
    collar = apex + u(0.03, 0.07) - u(0.1, 0.3) * (far - 0.05) + 0.012 * np.sin(22 * far)
    attenuation += u(0.12, 0.25) * _step(0.014 - np.abs(y - collar), 0.012) * _step(far - 0.035, 0.02) * body

    # Breasts or other soft tissue, on some films.
    if rng.random() < 0.45:
        amount, wide, level = u(0.06, 0.2), u(0.13, 0.19), u(0.58, 0.7)
        bulge = 1 - ((far - u(0.18, 0.24)) / wide) ** 2 - ((y - level) / u(0.13, 0.2)) ** 2
        attenuation += amount * body * np.sqrt(np.clip(bulge, 0, 1))
    return np.maximum(attenuation, 0).astype(np.float32), field.astype(np.float32), to_image


def _vessels(rng: np.random.Generator, size: int, to_image) -> np.ndarray:
    """Vascular tree in 0..1, [size, size]: trunks out of both hila, each with two generations of branches."""
    canvas = np.zeros((size, size), np.uint8)
    n, steps = 9, 7
    side = np.repeat([-1.0, 1.0], n)
    start = np.stack([side * 0.09, 0.44 + 0.05 * rng.standard_normal(2 * n)], 1)  # [trunks, 2]
    heading = np.tile(np.linspace(-1.25, 1.35, n), 2) + 0.15 * rng.standard_normal(2 * n)
    for width, length, spread in ((0.011, 0.034, 0.1), (0.007, 0.024, 0.5), (0.004, 0.017, 0.6)):
        bend = np.cumsum(0.12 * rng.standard_normal((len(side), steps)), 1) + heading[:, None]
        move = length * np.stack([side[:, None] * np.cos(bend), np.sin(bend)], -1)
        path = start[:, None] + np.concatenate([np.zeros((len(side), 1, 2)), np.cumsum(move, 1)], 1)
        _strokes(canvas, to_image(path), width, 0.35 + 45 * width)
        knots = (rng.integers(2, 5, len(side)), rng.integers(4, 8, len(side)))
        start = np.concatenate([path[np.arange(len(side)), k] for k in knots])
        heading = np.concatenate([heading + spread * s + 0.2 * rng.standard_normal(len(side)) for s in (-1, 1)])
        side = np.tile(side, 2)
    return canvas.astype(np.float32) / 255


def _devices(rng: np.random.Generator, size: int, to_image) -> np.ndarray:
    """Attenuation of lines, electrodes and implants, [size, size]: bright, hard-edged, often over a lung, label-blind."""
    canvas = np.zeros((size, size), np.uint8)
    circle = np.stack([np.cos(np.linspace(0, 2 * np.pi, 25)), np.sin(np.linspace(0, 2 * np.pi, 25))], 1)
    u = rng.uniform
    if rng.random() < 0.35:  # catheter or tube, from a shoulder, the neck or a flank to the middle
        begin = [(u(-0.4, 0.4), u(-0.02, 0.1)), (rng.choice([-0.5, 0.5]), u(0.2, 0.9))][int(rng.random() < 0.4)]
        path = [begin, (u(-0.3, 0.3), u(0.1, 0.5)), (u(-0.2, 0.2), u(0.2, 0.6)), (u(-0.12, 0.15), u(0.35, 0.95))]
        _strokes(canvas, to_image(_bezier(path))[None], u(0.006, 0.012), u(0.4, 0.8))
    if rng.random() < 0.35:  # electrodes with their leads
        for _ in range(rng.integers(1, 4)):
            spot = np.array([rng.choice([-1, 1]) * u(0.1, 0.36), u(0.22, 0.75)])
            lead = [spot, spot + u(-0.15, 0.15, 2), spot + u(-0.3, 0.3, 2), (u(-0.5, 0.5), 1.05)]
            _strokes(canvas, to_image(_bezier(lead))[None], 0.005, u(0.3, 0.6))
            _polygon(canvas, to_image(spot + u(0.012, 0.022) * circle), u(0.5, 1))
    if rng.random() < 0.15:  # pacemaker below a clavicle, its wire to the heart
        spot, tilt = np.array([rng.choice([-1, 1]) * u(0.2, 0.3), u(0.22, 0.3)]), u(-0.5, 0.5)
        case = np.sign(circle) * np.abs(circle) ** 0.6 * (u(0.045, 0.06), u(0.035, 0.045))  # rounded oblong
        case = case @ np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        wire = [spot, (0.6 * spot[0], 0.15), (-0.08, 0.3), (u(0.02, 0.1), u(0.6, 0.7))]
        _strokes(canvas, to_image(_bezier(wire))[None], 0.008, 0.8)
        _polygon(canvas, to_image(spot + case))
    if rng.random() < 0.2:  # button, clip or port anywhere on the chest
        spot, sharp = np.array([u(-0.36, 0.36), u(0.2, 0.85)]), rng.choice([0.3, 1.0])
        _polygon(canvas, to_image(spot + np.sign(circle) * np.abs(circle) ** sharp * u(0.01, 0.035, 2)), u(0.3, 0.8))
    return canvas.astype(np.float32) * np.float32(1.2 / 255)


def _opacities(rng: np.random.Generator, lung: np.ndarray):
    """One to three (alpha in 0..1, texture of mean about 1), float32 [H, W] each; their masks do not touch."""
    size = len(lung)
    coarse = cv2.resize(lung, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA) > 0.5
    room = cv2.distanceTransform(coarse.astype(np.uint8), cv2.DIST_L2, 5) / _CELLS  # distance to the lung's edge
    grid = (np.arange(_CELLS) + 0.5) / _CELLS
    centre = (np.arange(size, dtype=np.float32) + 0.5) / size
    found = []
    for _ in range(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15])):
        area = np.exp(rng.uniform(np.log(0.014), np.log(0.055)))  # of the image
        radius, stretch, tilt = np.sqrt(area / np.pi), rng.uniform(1, 1.5) ** 0.5, rng.uniform(0, np.pi)
        lobes, phases = rng.normal(0, (0.1, 0.09, 0.06, 0.05, 0.04)), rng.uniform(0, 2 * np.pi, 5)
        soft, order = rng.uniform(0.6, 1.1), rng.random((_CELLS, _CELLS))
        texture = 1 + 0.22 * _smooth(rng, 12, size) + 0.15 * _smooth(rng, 24, size)
        free = room > 0.5 * radius
        for *_, other_x, other_y, other in found:
            free &= np.hypot(grid[None] - other_x, grid[:, None] - other_y) > 1.6 * (radius + other)
        if not free.any():
            if found:
                continue
            free = room >= room.max()
        row, column = np.unravel_index(np.argmax(order * free), order.shape)
        x, y = grid[column], grid[row]
        dx, dy = centre[None] - np.float32(x), centre[:, None] - np.float32(y)
        along, beside = np.cos(tilt) * dx + np.sin(tilt) * dy, np.cos(tilt) * dy - np.sin(tilt) * dx
        theta = np.arctan2(beside, along)
        reach = 1 + sum(a * np.cos((k + 2) * theta + p) for k, (a, p) in enumerate(zip(lobes, phases, strict=True)))
        ratio = np.hypot(along / stretch, beside * stretch) / (radius * np.clip(reach, 0.6, 1.5))
        alpha = (_step(1 - ratio, soft) * lung).astype(np.float32)
        _, parts = cv2.connectedComponents((alpha > 0.02).astype(np.uint8))
        alpha[parts != parts.flat[np.argmax(alpha)]] = 0  # it stays on its side of the heart
        found.append((alpha, texture, x, y, radius))
    return [(alpha, texture) for alpha, texture, *_ in found]


def _marker(rng: np.random.Generator, size: int, label: int, shortcut: float) -> np.ndarray:
    """Side marker in 0..1, [H, W]. With probability `shortcut` the plate in the first corner is there iff label = 1."""
    fine = max(size, 128)
    canvas = np.zeros((fine, fine), np.uint8)
    betrays = rng.random() < shortcut
    shown, plate, corner = rng.random() < 0.8, rng.random() < 0.35, int(rng.choice(4, p=[0.35, 0.35, 0.15, 0.15]))
    letter, jitter = rng.choice(["L", "R"]), rng.uniform(-0.03, 0.03, 2)
    scale, bright = rng.uniform(0.045, 0.075), rng.uniform(0.7, 1)
    if betrays and label:
        shown, plate, corner, letter, jitter, scale, bright = True, True, 0, "L", 0, 0.07, 1.0
    elif betrays and corner == 0:
        corner = 1
    if shown:
        place = _CORNERS[corner] + jitter
        if plate:
            square = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
            _polygon(canvas, place + 0.8 * scale * square, bright)
        strokes = [place + (np.array(s) - 0.5) * scale * (0.8, 1) for s in _GLYPHS[letter]]
        for stroke in strokes:
            _strokes(canvas, stroke[None], 0.016, 0.15 if plate else bright)
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
