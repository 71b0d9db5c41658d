"""The shortcut audit of a trained run: how many of its bits lie in the lesion, in the lung beside it, and elsewhere."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from infomask_jax import report
from infomask_jax.config import Config
from infomask_jax.datasets import Prepared, images, lookup
from infomask_jax.evaluate import shares
from infomask_jax.inference import predict, read_examples
from infomask_jax.model import build
from infomask_jax.model.infomask import with_content
from infomask_jax.pixels import decode_gray
from infomask_jax.run import Run
from infomask_jax.system import write_all

METHODS = ("infomask_bits", "vib_bits", "infomask")
TOLERANCE = 0.02  # by which the aspect of a lung file may differ from that of its image


def audit_run(
    folder: Path, data: Prepared, split: str, lungs: Path | None = None, lungs_from_image: bool = False
) -> Path:
    """Write eval/audit_SPLIT.json and .md and figures/audit_SPLIT.png of a run on prepared data, see docs/audit.md;
    print the tables; return the folder, see `Run.place`. Maps are of the images as they are, whatever the run's
    `map_shifts`.

    ValueError if the run has no bottleneck or lungs are missing. lungs, lungs_from_image: see `lung_fields`.
    """
    run, console = Run.open(folder), report.console()
    output, findings = run.place(data, split)
    config, params = run.config, run.params
    if config.model.kind not in ("infomask", "vib"):
        raise ValueError(f"{folder} is a plain classifier: it has no bits to audit; give a run with a bottleneck")
    examples, source = read_examples(data, split, findings), data.source(split)
    lung_of, lung_from = lung_fields(examples, source, data, split, lungs, lungs_from_image)

    unshifted = dataclasses.replace(config, map_shifts=1)
    logits, maps, *_ = predict(unshifted, params, source, len(findings))
    scores = {"auroc": logits}
    if "infomask" in maps:
        openness = maps["infomask"].sum(axis=(1, 2), dtype=float)  # [N, 1 or K]
        scores["auroc_of_openness"] = np.broadcast_to(openness, logits.shape)
        shuffled = make_shuffled(config, len(findings))
        scores["auroc_of_shuffled_mask"] = predict(unshifted, params, source, len(findings), shuffled).logits
    maps = {name: maps[name] for name in METHODS if name in maps}
    names = {"dataset": data.name, "split": split}
    result, means = shares.audit(findings, examples, maps, lung_of, scores=scores, **names, seed=config.seed)
    result["lung_from"] = lung_from

    title, sheets, remarks = report.audit_sheets(result)
    files = {
        output / "eval" / f"audit_{split}.json": json.dumps(result, indent=1, allow_nan=False) + "\n",
        output / "eval" / f"audit_{split}.md": report.as_markdown(title, sheets, remarks),
        output / "figures" / f"audit_{split}.png": report.audit_figure(result, means),
    }
    paths = [*write_all(files), report.write_page(output, run, data)]
    console.print(report.screen(title, sheets, remarks))
    console.print("written:", *map(str, paths), sep="\n  ", soft_wrap=True)
    return output


def lung_fields(
    examples: dict, source, data: Prepared, split: str, lungs: Path | None, from_image: bool
) -> tuple[Callable[[int], np.ndarray], str]:
    """A function of the position in the split that returns its lung, bool [H, W]; and where that is from, in words.

    lungs: folder with IMAGE_ID.png for every image (an id that ends in .png, .jpg or the like: that ending exchanged),
    of any size, over the whole image; nonzero is lung. Without it lung is stored or, `from_image`, what is not black.
    """
    if lungs is not None and from_image:
        raise ValueError("expected --lungs DIR or --lungs-from-image, found both; leave one out")
    if from_image:
        return lambda i: decode_gray(source[i]["image"]) > 0, "pixels that are not black"
    ids = examples["image_id"]
    if lungs is None:
        stored = [bool(source[i]["lung"]) for i in range(len(ids))]
        if not all(stored):
            told = f"stores no lung field for {stored.count(False)} of the {len(ids)} images of {split}"
            hint = "give --lungs DIR with one IMAGE_ID.png an image, or, where all but the lungs is black, "
            raise ValueError(f"{data.directory} {told}: {hint}--lungs-from-image")
        return lambda i: decode_gray(source[i]["lung"]) > 0, "stored"
    locate, paths = lookup.locator(Path(lungs)), []
    for image_id in ids:
        ending = next((s for s in images.SUFFIXES if image_id.lower().endswith(s)), "")
        paths.append(locate(f"{image_id[: len(image_id) - len(ending)]}.png"))
    if len(set(paths)) < len(paths):
        twice = next(path for path, count in Counter(paths).items() if count > 1)
        raise ValueError(f"{twice}: expected the lung of one image, found several ids of {split} for it: rename them")
    if missing := [path.relative_to(lungs).as_posix() for path in paths if not os.path.isfile(path)]:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(f"--lungs {lungs}: expected {len(ids)} files, found that {len(missing)} are missing: {some}")

    def from_file(i: int) -> np.ndarray:
        lung = images.decode(paths[i]) > 0
        (height, width), (rows, columns) = examples["sizes"][i], lung.shape
        aspect = columns / rows
        if all(abs(aspect / allowed - 1) > TOLERANCE for allowed in (width / height, 1.0)):  # prepared ones are square
            raise ValueError(f"{paths[i]}: expected the aspect of {width} x {height} or a square, found {lung.shape}")
        return lung

    return from_file, str(lungs)


def make_shuffled(config: Config, findings: int) -> Callable:
    """A function as `inference.forward` that returns logits alone, with the cells of each image's mask exchanged at
    random.

    The draw is of the seed and the image's pixels, so it does not depend on the batch or a machine's rounding. Empty
    cells, which the model closes whatever the mask says (`close_empty`), take no part.
    """
    model = build(config.model, findings)

    def exchange(key, cells, shown):  # [h * w, M], [h * w]
        drawn = jnp.argsort(jnp.where(shown, jax.random.uniform(key, shown.shape), 1.0))
        return cells.at[jnp.argsort(~shown)].set(cells[drawn])  # both have the empty ones last, in their order

    def predict(params, images):
        apply = partial(model.apply, {"params": params}, train=False)
        out = apply(images)[1]
        pixels = jax.lax.bitcast_convert_type(images, jnp.uint32).sum(axis=(1, 2, 3))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(config.seed), pixels)
        mask, shown = out["mask"], with_content(config.model, out["features"]) > 0
        cells = mask.reshape(len(mask), -1, mask.shape[-1])
        mask = jax.vmap(exchange)(keys, cells, shown.reshape(cells.shape[:2])).reshape(mask.shape)
        logits = apply(None, features=out["features"], mask=mask)[0]
        return logits, {}, jnp.full((len(logits), 2), jnp.nan)

    return predict
