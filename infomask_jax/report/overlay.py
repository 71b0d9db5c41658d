"""The picture of one film: the film, and a heat map over it for each finding, with predicted boxes."""

from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from infomask_jax.localize import resize_map
from infomask_jax.report.figures import PREDICTED

load_font = cache(lambda: ImageFont.load_default(14))
STRIP, COLUMNS = 24, 4  # height of a panel's caption, pixels; panels in a row


def overlay(film: np.ndarray, name: str, maps: list[tuple[str, np.ndarray, np.ndarray]]) -> bytes:
    """PNG of a film, uint8 [H, W] of `as_panel`, beside its maps, each with its caption above (`name`: the film's).
    `maps`: of each finding, the caption, the map [h, w] in 0..1, drawn as it is (not stretched), and boxes [n, 4]."""
    (height, width), gray = film.shape, np.repeat(film[..., None], 3, axis=-1)
    panels = [(name, gray)]
    for caption, heat, boxes in maps:
        heat = resize_map(heat, height, width).clip(0, 1).astype(np.float32)
        color = cv2.applyColorMap((heat * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)
        alpha = 0.15 + 0.5 * heat
        panel = cv2.blendLinear(gray, np.ascontiguousarray(color[..., ::-1]), 1 - alpha, alpha)
        for ymin, xmin, ymax, xmax in np.reshape(boxes, (-1, 4)) * (height, width, height, width):
            corners = (round(xmin), round(ymin)), (max(round(xmax) - 1, 0), max(round(ymax) - 1, 0))
            cv2.rectangle(panel, *corners, tuple(bytes.fromhex(PREDICTED[1:])), 2)
        panels.append((caption, panel))
    columns = min(len(panels), COLUMNS)
    page = Image.new("RGB", (columns * width, -(-len(panels) // columns) * (height + STRIP)), "white")
    font, pen = load_font(), ImageDraw.Draw(page)
    for i, (caption, panel) in enumerate(panels):
        left, top = i % columns * width, i // columns * (height + STRIP)
        caption = " ".join(caption.split())
        while pen.textlength(caption, font) > width - 8 and len(caption) > 1:
            caption = caption[:-2] + "…"
        pen.text((left + 4, top + 4), caption, "black", font)
        page.paste(Image.fromarray(panel), (left, top + STRIP))
    return cv2.imencode(".png", np.asarray(page)[..., ::-1])[1].tobytes()
