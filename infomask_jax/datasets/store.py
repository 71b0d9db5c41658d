"""Examples on disk: opened whole or not at all, read at random, held against what is asked for; build.py writes."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from rich.console import Console
from rich.table import Table
from tensorflow_datasets.proto import tf_example_pb2

from infomask_jax.datasets import images, lookup

VERSION = "1.2.0"  # of the stored example; raise it when fields or their meaning change
REQUESTS = {
    "synthetic": "synthetic",
    "implanted": "synthetic --backgrounds DIR",
    "rsna": "rsna --source DIR",
    "nih": "nih --source DIR",
    "folder": "folder --source DIR",
}  # by data set, what `prepare` is asked for
NOT_OPTIONS = (
    "data_dir",
    "overwrite",
    "allow_missing",
    "skip_bad",
    "workers",
)  # do not change what a good release gives


@dataclass(frozen=True)
class Source:
    """Random access to the stored examples of a split: `len(source)`, `source[i]` (see `schema.check`).

    Raises ValueError where an example has no such field, or a single value and several are stored.
    """

    records: Sequence  # serialized examples
    fields: dict[str, tfds.features.TensorInfo]  # those that are read

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i) -> dict:
        if not 0 <= i < len(self.records):
            raise IndexError(f"expected 0..{len(self.records) - 1}, found {i}")
        stored = tf_example_pb2.Example.FromString(self.records[int(i)]).features.feature
        example = {name: _values(stored, name, info) for name, info in self.fields.items()}
        for name in example.keys() & {"image_id", "patient_id", "view"}:
            example[name] = example[name].decode()
        return example


def _values(stored, name: str, info: tfds.features.TensorInfo):
    """A field of a stored example as the parser of TFDS gives it (no ragged ones), in a third of the time."""
    kind = stored[name].WhichOneof("kind") if name in stored else None
    if kind is None:
        raise ValueError(f"expected a field {name} in the example, found {', '.join(sorted(stored))}; prepare it again")
    values = getattr(stored[name], kind).value
    if info.shape == ():
        if len(values) != 1:
            raise ValueError(f"{name}: expected one value, found {len(values)}; prepare it again")
        return values[0]
    return np.array(list(values), info.np_dtype).reshape([-1 if n is None else n for n in info.shape])


@dataclass(frozen=True)
class Prepared:
    """A data set on disk."""

    name: str
    directory: Path
    findings: tuple[str, ...]
    fingerprint: str  # of all pixels, labels, boxes, ids and splits; independent of the machine and its number of cores
    size: int  # side of the stored images, pixels
    options: dict  # what it was prepared with
    splits: dict[str, int]  # examples in each
    summary: dict[str, dict]  # counts, by split

    @property
    def beside(self) -> str:
        """on-NAME-FINGERPRINT: where a run that was trained on other data keeps its results on this one."""
        return f"on-{self.name}-{self.fingerprint[:8]}"

    def source(self, split: str, fields: Sequence[str] | None = None) -> Source:
        """The examples of a split, or only these fields of them (faster); raises ValueError where there is no split."""
        if split not in self.splits:
            raise ValueError(f"{self.directory}: expected one of {', '.join(self.splits)}; found split {split!r}")
        builder = tfds.builder_from_directory(self.directory)
        records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        features = builder.info.features
        return Source(records, {name: features[name].get_tensor_info() for name in fields or features})


def load(name: str, data_dir: str | Path) -> Prepared:
    """Opens a prepared data set; where it is absent or incomplete, FileNotFoundError says how to prepare it. ValueError
    for a name that no data set has."""
    directory = Path(data_dir).absolute() / name / VERSION
    if name not in REQUESTS:
        raise ValueError(f"dataset: expected one of {', '.join(REQUESTS)}; found {name!r}")
    command = f"python -m infomask_jax prepare {REQUESTS[name]} --data-dir {data_dir}"
    if not directory.is_dir():
        older = sorted(path.parent.name for path in directory.parent.glob("*/metadata.json"))
        found = f"that of another version of this package, {', '.join(older)}" if older else "none"
        raise FileNotFoundError(f"{directory}: expected a prepared data set, found {found}; run: {command}")
    try:
        facts = json.loads((directory / "metadata.json").read_text())
        info = json.loads((directory / "dataset_info.json").read_text())
        written = {split["name"]: int(split["numBytes"]) for split in info["splits"]}
        for split in facts["splits"]:
            found = sum(path.stat().st_size for path in directory.glob(f"{name}-{split}.array_record-*"))
            if found != written[split]:
                raise ValueError(f"{found} bytes of {split}, expected {written[split]}")
        fields = {field.name: facts[field.name] for field in dataclasses.fields(Prepared) if field.name in facts}
        return Prepared(**{**fields, "directory": directory, "findings": tuple(facts["findings"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"expected a whole data set, found {error!r}"
        raise FileNotFoundError(f"{directory}: {reason}; run: {command} --overwrite") from error


def as_options(options) -> dict:
    """The fields of an options dataclass that decide what is stored, as JSON has them."""
    values = {k: v for k, v in dataclasses.asdict(options).items() if k not in NOT_OPTIONS}
    return json.loads(json.dumps({k: str(v.absolute()) if isinstance(v, Path) else v for k, v in values.items()}))


def differences(prepared: Prepared, options) -> list[str]:
    """How a prepared data set differs from what the options ask for: options, tables changed since, images left out."""
    old, new = prepared.options, as_options(options)
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    lines = [f"{key}: prepared with {old.get(key)!r}, asked for {new.get(key)!r}" for key in keys]
    facts = json.loads((prepared.directory / "metadata.json").read_text())
    lines += [
        f"{path} has changed since" for path, digest in facts["tables"].items() if digest_of(path) not in (digest, "")
    ]
    for count, option in (("missing", "allow_missing"), ("skipped", "skip_bad")):
        if facts[count] and not getattr(options, option, True):
            lines.append(f"prepared with {facts[count]} {count}, asked for without --{option.replace('_', '-')}")
    return lines


def print_summary(prepared: Prepared) -> None:
    """Prints what is in a data set, split by split."""
    table = Table(caption="findings: present / absent / unknown", caption_justify="left")
    table.add_column(prepared.name)
    for split in prepared.splits:
        table.add_column(split, justify="right")
    summary = prepared.summary.values()
    for count in ("images", "patients", "boxes", "boxed images"):
        table.add_row(count, *(f"{s[count]:,}" for s in summary), end_section=count == "boxed images")
    for k, finding in enumerate(prepared.findings):
        table.add_row(finding, *("{:,} / {:,} / {:,}".format(*s["labels"][k]) for s in summary))
    console = Console(markup=False)
    console.print(table)
    facts = json.loads((prepared.directory / "metadata.json").read_text())
    if facts["missing"]:
        console.print(f"{facts['missing']:,} images listed in the release are missing and were left out.")
    if facts["skipped"]:
        console.print(
            f"{facts['skipped']:,} problems were skipped: see {prepared.directory / 'skipped.csv'}", soft_wrap=True
        )
    shape = f"{prepared.size} x {prepared.size}"
    text = f"{prepared.directory}: {shape}, fingerprint {prepared.fingerprint[:16]}"
    console.print(text, soft_wrap=True, highlight=False)


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file, or of the names and sizes of the images in a folder; empty where it is gone."""
    path = Path(path)
    if path.is_dir():
        files = (file for those in lookup.index_images(path, "name", images.SUFFIXES).values() for file in those)
        listing = sorted((ascii(file.relative_to(path).as_posix()), file.lstat().st_size) for file in files)
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
