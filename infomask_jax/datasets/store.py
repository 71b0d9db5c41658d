"""Examples on disk: opened whole or not at all, read at random, held against what is asked for; build.py writes."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf.message import DecodeError
from rich.console import Console
from rich.table import Table
from tensorflow_datasets.proto import tf_example_pb2

from infomask_jax.datasets import groups, lookup, schema
from infomask_jax.system import read_json
from infomask_jax.text import shown

VERSION = "1.2.0"  # of the stored example; raise it when fields or their meaning change
REQUESTS = {"synthetic": "synthetic", "implanted": "synthetic --backgrounds DIR"}  # what `prepare` is asked for
REQUESTS |= {name: f"{name} --source DIR" for name in ("rsna", "nih", "folder")}
NOT_OPTIONS = ("data_dir", "overwrite", "allow_missing", "skip_bad", "workers")  # do not change what a good one gives
COUNTS = {"images": int, "patients": int, "boxes": int, "boxed images": int, "labels": [[int]]}
FACTS = {  # metadata.json, for `read_json`
    **{"name": str, "findings": [str], "fingerprint": str, "size": int, "options": {}, "tables": {str: str}},
    **{"splits": {str: int}, "summary": {str: COUNTS}, "missing": int, "skipped": int, "notes?": [str]},
    "groups?": {str: {str: {str: [[int, int]]}}},
}
TOLD = 12  # rows of a summary of groups
LEAST = 10  # of either label in val and test, below which a summary warns
FEW = 50  # positives in train, below which a summary warns
INFO = {"splits": [{"name": str, "numBytes": str, "shardLengths": [str]}]}  # dataset_info.json


def features(findings: Sequence[str]) -> tfds.features.FeaturesDict:
    """Of an example, see schema.py. (features.json says the same, and names classes to import: it is never read.)"""
    shapes = {"labels": (len(findings),), "boxes": (None, 4), "box_labels": (None,)}
    types = {**schema.DTYPES, **dict.fromkeys(("image", "mask", "lung"), np.object_)}
    tensors = {name: tfds.features.Tensor(shape=shapes.get(name, ()), dtype=dtype) for name, dtype in types.items()}
    texts = {name: tfds.features.Text() for name in ("image_id", "patient_id", "view")}
    return tfds.features.FeaturesDict(tensors | texts)


@dataclass(frozen=True)
class Source:
    """Random access to the stored examples of a split: `len(source)`, `source[i]` (see schema.py). OSError naming the
    file where a record is damaged."""

    records: Sequence  # serialized examples
    fields: dict[str, tfds.features.TensorInfo]  # those that are read
    shards: tuple[tuple[Path, int], ...]  # the files, and how many records are in each

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i) -> dict:
        if not 0 <= i < len(self.records):
            raise IndexError(f"expected 0..{len(self.records) - 1}, found {i}")
        try:
            stored = tf_example_pb2.Example.FromString(self.records[int(i)]).features.feature
        except (RuntimeError, ValueError, IndexError, DecodeError) as error:
            ends = np.cumsum([count for _, count in self.shards])
            path = self.shards[np.searchsorted(ends, i, side="right")][0]
            reason = str(error).partition("\n")[0]
            raise OSError(f"{path} is damaged ({reason}); prepare it again: {_command(path.parent)}") from error
        example = {name: _value(stored[name], info) for name, info in self.fields.items()}
        for name in example.keys() & {"image_id", "patient_id", "view"}:
            example[name] = example[name].decode()
        return example


def _value(feature, info: tfds.features.TensorInfo):
    """A field of a stored example as the parser of TFDS gives it (no ragged ones), in a third of the time."""
    values = getattr(feature, feature.WhichOneof("kind")).value
    if info.shape == ():
        return values[0]
    return np.array(list(values), info.np_dtype).reshape([-1 if n is None else n for n in info.shape])


@dataclass(frozen=True)
class Prepared:
    """A data set on disk."""

    name: str
    directory: Path
    findings: tuple[str, ...]
    fingerprint: str  # of all pixels, labels, boxes, ids and splits, the same on every machine
    size: int  # side of the stored images, pixels
    options: dict  # what it was prepared with
    splits: dict[str, int]  # examples in each
    summary: dict[str, dict]  # counts, by split

    @property
    def beside(self) -> str:
        """on-NAME-FINGERPRINT: where a run that was trained on other data keeps its results on this one."""
        return f"on-{self.name}-{self.fingerprint[:8]}"

    def source(self, split: str, fields: Sequence[str] | None = None) -> Source:
        """The examples of a split, or these fields of them (faster). ValueError where there is no such split."""
        if split not in self.splits:
            raise ValueError(f"{self.directory}: expected one of {', '.join(self.splits)}; found split {split!r}")
        paths = sorted(self.directory.glob(f"{self.name}-{split}.array_record-*"))
        info = read_json(self.directory / "dataset_info.json", INFO)
        lengths = next(each["shardLengths"] for each in info["splits"] if each["name"] == split)
        shards = tuple(zip(paths, map(int, lengths), strict=True))
        records = ArrayRecordDataSource([f"{path}[0:{count}]" for path, count in shards])
        known = features(self.findings)
        return Source(records, {name: known[name].get_tensor_info() for name in fields or known}, shards)


def load(name: str, data_dir: str | Path) -> Prepared:
    """Opens a prepared data set. Where it is not whole, FileNotFoundError says how to prepare it; ValueError for a name
    that no data set has."""
    directory = Path(data_dir).absolute() / name / VERSION
    if name not in REQUESTS:
        raise ValueError(f"dataset: expected one of {', '.join(REQUESTS)}; found {name!r}")
    if not directory.is_dir():
        older = sorted(path.parent.name for path in directory.parent.glob("*/metadata.json"))
        found = f"that of another version of this package, {', '.join(older)}" if older else "none"
        command = _command(directory).removesuffix(" --overwrite")
        raise FileNotFoundError(f"{directory}: expected a prepared data set, found {found}; run: {command}")
    try:
        facts = read_json(directory / "metadata.json", FACTS)
        for path, field, expected, found in _checks(directory, name, facts):
            if expected != found:
                raise ValueError(f"{path}: {field}: expected {expected!r}, found {found!r:.200}")
    except (OSError, ValueError) as error:
        text = f"{directory}: expected a whole data set, found {error}; run: {_command(directory)}"
        raise FileNotFoundError(text) from error
    facts |= {"directory": directory, "findings": tuple(facts["findings"])}
    return Prepared(**{field.name: facts[field.name] for field in dataclasses.fields(Prepared)})


def _command(directory: Path) -> str:
    """What prepares the data set in DATA/NAME/VERSION again."""
    data_dir, name = directory.parents[1], directory.parent.name
    return f"python -m infomask_jax prepare {REQUESTS[name]} --data-dir {data_dir} --overwrite"


def _checks(directory: Path, name: str, facts: dict) -> Iterator[tuple]:
    """(file, field, expected, found) of all that `prepare` makes agree."""
    path, info_path = directory / "metadata.json", directory / "dataset_info.json"
    info = {split["name"]: split for split in read_json(info_path, INFO)["splits"]}
    findings, splits = facts["findings"], facts["splits"]
    yield path, "name", name, facts["name"]
    yield path, "findings", sorted({*findings}), sorted(findings) or None
    yield path, "findings", [shown(finding) for finding in findings], findings
    yield path, "size", max(facts["size"], 1), facts["size"]
    yield path, "splits", [split for split in schema.SPLITS if split in splits], [*splits] or None
    yield path, "summary", sorted(splits), sorted(facts["summary"])
    yield info_path, "splits", sorted(splits), sorted({*info} & {*splits})
    for split, count in splits.items():
        files = [file.stat().st_size for file in directory.glob(f"{name}-{split}.array_record-*")]
        lengths = info[split]["shardLengths"]
        whole = all(map(str.isdecimal, lengths)) and sum(map(int, lengths)) == count
        yield info_path, f"bytes of {split}", info[split]["numBytes"], str(sum(files))
        yield info_path, f"files of {split}", len(lengths), len(files)
        yield info_path, f"shardLengths of {split}", lengths if whole else f"{count} in all", lengths
        yield path, f"summary.{split}.labels", [3] * len(findings), [*map(len, facts["summary"][split]["labels"])]


def as_options(options) -> dict:
    """The fields of an options dataclass that decide what is stored, as JSON has them."""
    values = {k: v for k, v in dataclasses.asdict(options).items() if k not in NOT_OPTIONS}
    return json.loads(json.dumps({k: str(v.absolute()) if isinstance(v, Path) else v for k, v in values.items()}))


def differences(prepared: Prepared, options) -> list[str]:
    """How a prepared data set differs from what the options ask for: options, tables changed since, images left out."""
    defaults = {f.name: f.default for f in dataclasses.fields(options)}  # of options that it is older than
    new = as_options(options)
    old = {k: json.loads(json.dumps(defaults[k], default=str)) for k in new} | prepared.options
    keys = [key for key in old if old.get(key) != new.get(key)]
    lines = [f"{key}: prepared with {old.get(key)!r}, asked for {new.get(key)!r}" for key in keys]
    facts = read_json(prepared.directory / "metadata.json", FACTS)
    tables = facts["tables"].items()
    lines += [f"{path} has changed since" for path, digest in tables if digest_of(path) not in (digest, "")]
    for count, option in (("missing", "allow_missing"), ("skipped", "skip_bad")):
        if facts[count] and not getattr(options, option, True):
            lines.append(f"prepared with {facts[count]} {count}, asked for without --{option.replace('_', '-')}")
    return lines


def print_summary(prepared: Prepared) -> None:
    """Prints what is in a data set, split by split."""
    caption = "findings: present / absent / unknown; boxes: of all findings, kept or not"
    table = Table(caption=caption, caption_justify="left")
    table.add_column(prepared.name)
    for split in prepared.splits:
        table.add_column(split, justify="right")
    summary = prepared.summary.values()
    for count in ("images", "patients", "boxes", "boxed images"):
        table.add_row(count, *(f"{s[count]:,}" for s in summary), end_section=count == "boxed images")
    for k, finding in enumerate(prepared.findings):
        table.add_row(finding, *("{:,} / {:,} / {:,}".format(*s["labels"][k]) for s in summary))
    console, facts = Console(markup=False), read_json(prepared.directory / "metadata.json", FACTS)
    console.print(table)
    rows, warnings = groups.table(prepared.findings, facts.get("groups", {}))
    if rows:
        title, caption = "Beside the label", "share of the positives / of the negatives, where they differ in train"
        table = Table("", "", *schema.SPLITS, title=title, caption=caption, caption_justify="left")
        for row in rows[:TOLD]:
            table.add_row(*row)
        console.print(table)
    lines = [*facts.get("notes", []), *warnings, *_lacks(prepared)]
    lines += [f"{len(rows) - TOLD} more rows are not shown: prepare fewer --findings"] * (len(rows) > TOLD)
    lines += [f"{prepared.directory}: {prepared.size} x {prepared.size}, fingerprint {prepared.fingerprint[:16]}"]
    if facts["skipped"]:
        lines.insert(0, f"{facts['skipped']:,} problems were skipped: see {prepared.directory / 'skipped.csv'}")
    if facts["missing"]:
        lines.insert(0, f"{facts['missing']:,} images listed in the release are missing and were left out.")
    console.print(*lines, sep="\n", soft_wrap=True, highlight=False)


def _lacks(prepared: Prepared) -> Iterator[str]:
    """What cannot be trained or scored on a data set, a line each."""
    for split, use in (("val", "thresholds will be fixed, not tuned"), ("test", "films are classified, not localized")):
        if split not in prepared.splits:
            yield f"There is no film in {split}: {use if split == 'val' else 'nothing can be scored'}."
        elif not prepared.summary[split]["boxed images"]:
            yield f"No film of {split} has a box: {use}."
        counts = prepared.summary[split]["labels"] if split in prepared.splits else []
        for finding, (present, absent, _) in zip(prepared.findings, counts, strict=False):
            if min(present, absent) < LEAST:
                yield f"{finding}: {split} has {present} films with it and {absent} without, too few to say much."
    labels = prepared.summary["train"]["labels"] if "train" in prepared.splits else [[0, 0, 0]] * len(prepared.findings)
    for finding, (present, absent, _) in zip(prepared.findings, labels, strict=True):
        if not (present and absent):
            yield f"{finding}: train has {present} films with it and {absent} without: it cannot be learned."
        elif present < FEW:
            yield f"{finding}: train has only {present} films with it: its scores will say little."


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file, or of the names and sizes of the images in a folder; empty where it is gone."""
    path = Path(path)
    if path.is_dir():
        files = itertools.chain(*lookup.index_images(path, "name").values())
        listing = sorted((ascii(file.relative_to(path).as_posix()), file.lstat().st_size) for file in files)
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
