"""Writes the examples of a release, by a TFDS builder as ArrayRecord: in DATA/NAME/.building, and moved to
DATA/NAME/VERSION by one rename when all of it has been written."""

import contextlib
import hashlib
import io
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from infomask_jax.datasets import groups, schema, store
from infomask_jax.datasets.schema import BadData, Item, Problem
from infomask_jax.system import lock
from infomask_jax.text import as_csv


class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes shard by shard, so that memory does not grow with the data set. (GeneratorBasedBuilder shuffles: it holds
    up to 1 GB and beyond that needs TensorFlow.)"""

    VERSION = tfds.core.Version(store.VERSION)
    name = "xray"
    pkg_dir_path = Path(__file__).parent
    code_path = None  # nothing is downloaded; to look for checksums beside the code, TFDS needs importlib_resources

    def __init__(self, name: str, findings: Sequence[str], shards: dict[str, list[Callable]], data_dir: Path):
        self.name, self._findings, self._shards = name, findings, shards
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self):
        features = store.features(self._findings)
        return tfds.core.DatasetInfo(builder=self, features=features, metadata=tfds.core.MetadataDict())

    def _shard_iterators_per_split(self, dl_manager):
        return self._shards


def build(
    name: str, options, read: Callable, executor: Executor, make: Callable[[Item], dict], jobs: int
) -> store.Prepared:
    """Reads a release and stores all of it. BadData with all problems of tables and images leaves nothing on disk.

    Args:
      read: (options, problems) -> Release.
      make: Item -> {"pixels": uint8 or uint16 [size, size], "problems": [Problem], "box_findings": name of each box,
        the fields `image`, `mask`, `lung`, `boxes`, `height`, `width` of the example, and `labels` if the item has
        none}; `executor` runs it, at most `jobs` at a time.
    """
    root = options.data_dir.absolute() / name
    scratch, final = root / ".building", root / store.VERSION
    problems: list[Problem] = []
    release = read(options, problems)
    if any(p.row is None and p.image_id is None for p in problems) or (problems and not release.items):
        raise BadData(schema.describe(problems))
    bad = {p.image_id for p in problems}  # decoded all the same, to find whatever else is wrong with them
    items = sorted(release.items, key=lambda i: i.image_id)
    number = {finding: k for k, finding in enumerate(release.findings)}
    written, digests = {split: [] for split in schema.SPLITS}, []

    def examples(part: Sequence[Item]) -> Iterator[tuple[str, dict]]:
        for item, made in _in_order(executor, make, part, jobs):
            problems.extend(made["problems"])
            progress.update(bar, advance=1, bad=len(problems))
            if made["problems"] or item.image_id in bad:
                continue
            example = {name: made[name] for name in ("image", "mask", "lung", "boxes", "height", "width")}
            example |= {name: getattr(item, name) for name in ("image_id", "patient_id", "view")}
            example["labels"] = np.array(made.get("labels", item.labels), np.int8)
            example["box_labels"] = np.array([number.get(f, -1) for f in made["box_findings"]], np.int32)
            digests.append(_fingerprint(example, made["pixels"], item.split))
            kept = {name: example[name] for name in ("patient_id", "boxes", "labels")}
            kept["groups"] = ({"view": item.view} if item.view else {}) | item.about
            written[item.split].append(kept)
            yield item.image_id, example

    _clear(scratch, final)  # of an earlier run that was killed
    scratch.mkdir(parents=True)
    try:
        per_shard = min(max(2**27 // options.size**2, 64), 4096)  # 128 MiB of pixels, of large images more
        shards = {}
        for split in schema.SPLITS:
            if those := [item for item in items if item.split == split]:
                parts = [those[first : first + per_shard] for first in range(0, len(those), per_shard)]
                shards[split] = [partial(examples, part) for part in parts]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        progress = Progress(*columns, TextColumn("{task.fields[bad]} problems"), console=Console(stderr=True))
        with contextlib.redirect_stdout(io.StringIO()), progress:  # TFDS prints
            tfds.disable_progress_bar()
            bar = progress.add_task(f"prepare {name}", total=len(items), bad=len(problems))
            builder = Builder(name, release.findings, shards, scratch)
            try:
                builder.download_and_prepare(download_dir=scratch / "downloads")
            except RuntimeError as error:
                if type(error) is RuntimeError:  # ArrayRecord's, of a full disk and the like
                    raise OSError(f"{root} could not be written: {error}") from error
                raise
        if problems and not getattr(options, "skip_bad", False):
            hint = "Mend them, or pass --skip-bad to leave these images out and list them in skipped.csv."
            raise BadData(f"{schema.describe(problems)}\n{hint}")
        if not digests:
            raise BadData(f"no image is left of {len(release.items)}\n{schema.describe(problems)}")
        summary = {split: _summary(those) for split, those in written.items() if those}
        facts = {
            "name": name,
            "findings": list(release.findings),
            "size": options.size,
            "options": store.as_options(options),
            "tables": {str(path.absolute()): store.digest_of(path) for path in release.tables},
            "missing": release.missing,
            "fingerprint": hashlib.sha256(b"".join(sorted(digests))).hexdigest(),
            "splits": {split: counts["images"] for split, counts in summary.items()},
            "summary": summary,
            "skipped": len(problems),
            "groups": groups.count({split: those for split, those in written.items() if those}),
            "notes": list(release.notes),
        }
        built = scratch / name / store.VERSION
        (built / "metadata.json").write_text(json.dumps(facts, indent=1))
        if problems:
            rows = [(p.file, p.row, p.field, p.reason, p.image_id) for p in problems]
            skipped = as_csv([("file", "row", "field", "reason", "image"), *rows])
            (built / "skipped.csv").write_text(skipped, encoding="utf-8")
        if final.exists():
            final.rename(scratch / "replaced")
        built.rename(final)
    finally:
        _clear(scratch, final)
    return store.load(name, options.data_dir)


def clear(root: Path) -> None:
    """Take away what a `prepare` that was killed has left in `root`, not what another one is building."""
    if (root / ".building").exists():
        with contextlib.suppress(OSError), lock(root, "another prepare is at work here"):
            _clear(root / ".building", root / store.VERSION)


def _clear(scratch: Path, final: Path) -> None:
    """Remove what was being built; what it had already replaced comes back if the new one did not get there."""
    if not final.exists() and (scratch / "replaced").exists():
        (scratch / "replaced").rename(final)
    shutil.rmtree(scratch, ignore_errors=True)


def _in_order(executor: Executor, make: Callable, items: Sequence[Item], jobs: int) -> Iterator[tuple[Item, dict]]:
    """(item, make(item)) in the order of the items, a few ahead of the reader and no more."""
    ahead = deque()
    for item in items:
        ahead.append((item, executor.submit(make, item)))
        if len(ahead) > 4 * jobs:
            item, future = ahead.popleft()
            yield item, future.result()
    for item, future in ahead:
        yield item, future.result()


def _fingerprint(example: dict, pixels: np.ndarray, split: str) -> bytes:
    texts = [example[name] for name in ("image_id", "patient_id", "view", "height", "width")]
    digest = hashlib.sha256(json.dumps(list(map(str, [split, *texts, pixels.shape, pixels.dtype.str]))).encode())
    for array in (pixels, example["labels"], example["boxes"], example["box_labels"]):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def _summary(examples: list[dict]) -> dict:
    boxes, labels = [len(e["boxes"]) for e in examples], np.array([e["labels"] for e in examples])
    counts = {"images": len(examples), "patients": len({e["patient_id"] for e in examples})}
    counts |= {"boxes": sum(boxes), "boxed images": sum(map(bool, boxes))}
    return counts | {
        "labels": [[int((of == v).sum()) for v in (1, 0, -1)] for of in labels.T]
    }  # present, absent, unknown
