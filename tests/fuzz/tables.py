"""Damaged tables, through the readers of `prepare` and of `evaluate --boxes`."""

import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
from fuzz import mutators
from fuzz.workers import Bad

from infomask_jax.datasets import folder, nih, rsna, schema
from infomask_jax.datasets.schema import BadData
from infomask_jax.score_files import box_tables

SIDE = 24  # of the films, pixels
CELLS = (
    *("", "0", "1", "-1", "2", "1.0", "0.5", "nan", "inf", "-inf", "1e400", "1e308", "0x10", "1_0", "١", "½", " 1 "),
    *(
        "../0.png",
        "/etc/passwd",
        "..\\0.png",
        "C:\\0.png",
        ".",
        "a" * 5000,
        "0.png\x00",
        "x\ny",
        "=1+1",
        "\x1b[2J",
        "é",
    ),
    *(
        "e\u0301",
        "\u202e",
        "mass",
        "Pneumonia",
        "Lung Opacity",
        "train",
        "val",
        "No Finding",
        "Mass|Mass",
        '"',
        "\ufeff",
    ),
)


def start(source: Path, tables: dict[str, str]) -> None:
    """A release: twelve films under every name that the tables use, and the tables."""
    (source / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        data = cv2.imencode(".png", rng.integers(0, 255, (SIDE, SIDE), np.uint8))[1].tobytes()
        (source / "images" / f"{i:08d}_000.png").write_bytes(data)
    for name, text in tables.items():
        (source / name).write_text(text, encoding="utf-8")


def releases() -> dict[str, dict[str, str]]:
    """{kind: {file name: text}} of whole releases of each kind, and of a table of boxes of our own format."""
    ids = [f"{i:08d}_000" for i in range(12)]
    names = [f"{i}.png" for i in ids]
    boxed = [i for i in range(12) if i % 2]
    own = ["image,patient,split,view,mass,effusion"]
    own += [
        f"{n},p{i},{('train', 'val', 'test')[i % 3]},PA,{i % 2},{('', '0', '1')[i % 3]}" for i, n in enumerate(names)
    ]
    boxes = ["image,finding,x,y,w,h"] + [f"{names[i]},mass,{i},2,{5 + i % 3},7.5" for i in boxed]
    labels, classes = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    for i, name in enumerate(ids):
        labels.append(f"{name},{100 + i},50,200,300.5,1" if i % 2 else f"{name},,,,,0")
        classes.append(f"{name},{'Lung Opacity' if i % 2 else ('Normal', 'No Lung Opacity / Not Normal')[i // 2 % 2]}")
    split = ["patientId,split,matched,view"] + [
        f"{n},{('train', 'val', 'test')[i % 3]},1,PA" for i, n in enumerate(ids)
    ]
    entries = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"]
    entries += [f"{n},{'Mass|Nodule' if i % 2 else 'No Finding'},0,{i},50,M,PA" for i, n in enumerate(names)]
    drawn = ["Image Index,Finding Label,Bbox [x,y,w,h],,,"] + [f"{names[i]},Mass,{100 + i},50,200,300.5" for i in boxed]
    score = ["image,finding,x,y,w,h,image_width,image_height,patient"]
    score += [
        f"{n},mass,3,{i},5,6.5,{SIDE},{SIDE},p{i}" if i % 2 else f"{n},mass,,,,,,,p{i}" for i, n in enumerate(names)
    ]
    found = {
        "folder": {"labels.csv": own, "boxes.csv": boxes},
        "rsna": {rsna.TABLES[0]: labels, rsna.TABLES[1]: classes, "split.csv": split},
        "nih": {"Data_Entry_2017.csv": entries, "BBox_List_2017.csv": drawn, "test_list.txt": names[8:]}
        | {"train_val_list.txt": names[:8]},
        "boxes": {"own.csv": score},
    }
    return {kind: {name: "\n".join(rows) + "\n" for name, rows in tables.items()} for kind, tables in found.items()}


def damaged_text(rng: np.random.Generator, text: str) -> bytes:
    """A table with cells, rows or columns changed, another encoding or separator, or bytes damaged."""
    kind = rng.choice(["cell", "cell", "cell", "row", "column", "header", "encoding", "bytes", "unit", "text"])
    rows = [line.split(",") for line in text.splitlines()]
    at, column = int(rng.integers(1, len(rows))), int(rng.integers(len(rows[0])))
    if kind == "cell":
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(rows)))
            other = rows[int(rng.integers(len(rows)))][-1] if rng.random() < 0.2 else CELLS[rng.integers(len(CELLS))]
            rows[at][int(rng.integers(len(rows[at])))] = other
    elif kind == "row":
        rows = mutators.rearranged(rng, rows, 0 if rng.random() < 0.1 else 1)
    elif kind == "column":
        for row in rows:
            cell = row.pop(min(column, len(row) - 1))
            if rng.random() < 0.02:
                row.append(cell)
    elif kind == "header":
        rows[0][column] = str(rng.choice([*rows[0], "", "Image", "patient_id", "x ", "h]", "mass"]))
    elif kind == "unit":  # boxes as shares of the image
        for row in rows[1:]:
            row[:] = [f"{float(cell) / 1024:.4f}" if cell.replace(".", "").isdigit() and "." not in cell[1:3]
                      and i > 1 else cell for i, cell in enumerate(row)]  # fmt: skip
    text = "\n".join(",".join(row) for row in rows) + "\n"
    if kind == "encoding":
        return text.encode(str(rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-7", "cp037"])))
    if kind == "bytes":
        return mutators.damage(rng, text.encode())
    if kind == "text":
        whole = (text.replace(",", ";"), text.replace(",", "\t"), text.replace("\n", "\r\n"), text.replace("\n", "\r"))
        return (*whole, text * 2, "", "\n\n", '"' + text, text.replace("1", "1" * 200_000, 1))[rng.integers(9)].encode()
    return text.encode()


class Tables:
    """Checks tables; `make` gives (kind, {file name: bytes or None})."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-tables-"))
        self.releases = releases()
        for kind, tables in self.releases.items():
            start(self.folder / kind, tables)
            if (found := self.check((kind, {}), None)[0]) != "accepted":
                raise RuntimeError(f"the whole tables of {kind} are {found}")

    def close(self) -> None:
        shutil.rmtree(self.folder)

    def make(self, rng: np.random.Generator) -> tuple[str, dict]:
        kind = list(self.releases)[rng.integers(4)]
        tables = self.releases[kind]
        name = list(tables)[rng.integers(len(tables))]
        return kind, {name: None if rng.random() < 0.01 else damaged_text(rng, tables[name])}

    def check(self, case: tuple[str, dict], decoded) -> tuple[str, str]:
        kind, changed = case
        source = self.folder / kind
        try:
            for name, data in changed.items():
                (source / name).unlink() if data is None else (source / name).write_bytes(data)
            return read_boxes(source) if kind == "boxes" else read_release(kind, source)
        finally:
            for name in changed:
                (source / name).write_text(self.releases[kind][name], encoding="utf-8")


def read_release(kind: str, source: Path) -> tuple[str, str]:
    """Refused, or with items that could be stored. Raises Bad."""
    read, options = {
        "folder": (folder.read, folder.Folder(source)),
        "rsna": (rsna.read, rsna.Rsna(source)),
        "nih": (nih.read, nih.Nih(source)),
    }[kind]
    problems = []
    try:
        release = read(options, problems)
    except BadData as error:
        names_a_file(str(error), [source.name, "--"])
        return "refused", ""
    for problem in problems:
        names_a_file(str(problem), [path.name for path in source.iterdir()] + [path.name for path in release.tables])
    if any(problem.row is None and problem.image_id is None for problem in problems):
        return "refused", ""  # no --skip-bad goes on from there
    blamed, seen, small = {problem.image_id for problem in problems}, set(), []
    for item in release.items:
        if item.image_id in blamed:
            continue
        path = item.path.resolve()
        if path in seen or not path.is_relative_to(source.resolve()):
            raise Bad("wrong", f"{item.image_id!r} twice, or outside the folder")
        seen.add(path)
        if len(item.labels) != len(release.findings) or not set(item.labels) <= {-1, 0, 1}:
            raise Bad("wrong", f"labels {item.labels} of {release.findings}")
        if item.split not in schema.SPLITS or not item.patient_id:
            raise Bad("wrong", f"split {item.split!r}, patient {item.patient_id!r}")
        drawn = [(box.finding, box.xywh) for box in item.boxes]
        if len(set(drawn)) < len(drawn):
            raise Bad("wrong", f"a box twice: {drawn}")
        for finding, xywh in drawn:
            small.append(max(xywh))
            if finding in release.findings and item.labels[release.findings.index(finding)] != 1:
                raise Bad("wrong", f"a box of {finding}, which the image has not: {item.labels}")
            try:
                unit = schema.unit_box(xywh, *(item.frame or (SIDE, SIDE)))  # as `prepare` does next
            except ValueError:
                continue
            in_unit(unit)
    if small and max(small) <= 1 and not problems:
        raise Bad("wrong", "boxes of 0 to 1 taken as pixels")
    return ("refused", "") if problems else ("accepted", "equal")


def read_boxes(source: Path) -> tuple[str, str]:
    """Refused, or with boxes inside their images. Raises Bad."""
    try:
        table = box_tables.read([source / "own.csv"])
    except BadData as error:
        names_a_file(str(error), ["own.csv"])
        return "refused", ""
    for image, boxes in table.boxes.items():
        safe(image)
        for finding, box in boxes:
            in_unit(box)
            if not finding or finding in table.negative.get(image, ()):
                raise Bad("wrong", f"{image!r} both with and without {finding!r}")
    return "accepted", "equal"


def safe(name: str) -> None:
    """Raises Bad if the name of an image leads out of its folder, or cannot be printed."""
    path = Path(name)
    if not name or not name.isprintable() or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise Bad("wrong", f"an image named {name!r}")


def in_unit(box: np.ndarray) -> None:
    """Raises Bad unless 0 <= min < max <= 1."""
    if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise Bad("wrong", f"a box at {box}")


def names_a_file(message: str, names) -> None:
    """Raises Bad unless a message names one of the files and can be printed."""
    if not any(name in message for name in names):
        raise Bad("message", f"names no file: {message[:200]!r}")
    if not message.replace("\n", "").replace("\t", "").replace("\xa0", "").isprintable():
        raise Bad("message", f"not printable: {message[:200]!r}")
