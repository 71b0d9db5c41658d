"""Damages files of every format in every way it knows, and says what the package does with them.

    python tests/fuzz/run.py                                   # 5,000 files of each format; a table in Markdown
    python tests/fuzz/run.py --formats png --only 1234         # one file again, by its number

A file is made from the seed, its format and its number alone. Exit status 1 if anything is bad:

    crash     an exception other than the documented one, or the end of the process
    hang      over 10 s of processor time
    bomb      over 1.5 GiB of memory
    wrong     accepted, but an independent decoder refuses it as damaged, or shows another picture; or values that break
              what the format promises
    message   an error that names no file, or cannot be printed
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from fuzz import workers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

FORMATS = ("png", "jpeg", "dicom", "csv", "npz", "json", "checkpoint")
OF_RUNS = ("json", "checkpoint")


def checker(kind: str, trained: Path | None):
    """What makes and checks files of a format, with `make(rng)`, `check(case, decoded)` and `close()`."""
    if kind in OF_RUNS:
        from fuzz.runs import Checkpoints, Json

        return {"json": Json, "checkpoint": Checkpoints}[kind](trained)
    if kind == "csv":
        from fuzz.tables import Tables

        return Tables()
    if kind == "npz":
        from fuzz.maps import Maps

        return Maps()
    from fuzz.pictures import Pictures

    return Pictures(kind)


def generator(seed: int, kind: str, index: int) -> np.random.Generator:
    """The same numbers for the same file, on every machine."""
    return np.random.default_rng([seed, FORMATS.index(kind), index])


def start(kind: str, seed: int, trained: Path | None, temporary: Path):
    """What a process calls first: returns the check of one file by its number."""
    tempfile.tempdir = str(temporary)  # removed at the end, whatever happens to the process
    found = checker(kind, trained)

    def check(index: int, decoded) -> tuple[str, str]:
        return found.check(found.make(generator(seed, kind, index)), decoded)

    return check


def keep(case, folder: Path) -> None:
    """Writes what was made of a bad case into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(case, bytes):
        (folder / "file").write_bytes(case)
    elif isinstance(case, dict):
        for path, data in case.items():
            (folder / Path(path).name).write_bytes(data or b"")
    else:
        keep(case[1], folder)


def fuzz(kind: str, indices, seed: int, jobs: int, trained: Path | None, temporary: Path, seconds: float | None):
    """Counts, and the bad outcomes, of one format."""
    counts, bad, began = Counter(), [], time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, TextColumn("{task.fields[bad]} bad"), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(kind, total=len(indices), bad=0)

        def wanted():
            for index in indices:
                if seconds and time.monotonic() - began > seconds:
                    return
                yield index

        for outcome in workers.run(partial(start, kind, seed, trained, temporary), wanted(), jobs):
            counts[outcome.kind] += 1
            if outcome.kind == "accepted":
                counts["equal" if outcome.detail == "equal" else "not judged"] += 1
            elif outcome.kind in workers.BAD:
                bad.append(outcome)
            bar.update(task, advance=1, bad=len(bad))
    return counts, sorted(bad, key=lambda outcome: outcome.index)


def table(rows: dict[str, Counter]) -> str:
    """The counts of all formats in Markdown."""
    names = ("accepted", "equal", "not judged", "refused", *workers.BAD)
    lines = [f"| format | files | {' | '.join(names)} |", "|---|" + "---:|" * (len(names) + 1)]
    for kind, counts in rows.items():
        files = counts["accepted"] + counts["refused"] + sum(counts[name] for name in workers.BAD)
        lines.append(f"| {kind} | {files:,} | {' | '.join(f'{counts[name]:,}' for name in names)} |")
    return "\n".join(lines)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="those to damage; all")
    parser.add_argument("--files", type=int, default=5000, help="of each format")
    parser.add_argument("--seconds", type=float, help="of each format, at most")
    parser.add_argument("--seed", type=int, default=0, help="another one makes other files")
    parser.add_argument("--only", type=int, nargs="+", help="files with these numbers alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at work")
    parser.add_argument("--keep", type=Path, help="folder for the bad files")
    options = parser.parse_args(arguments)
    indices, rows, failed = options.only or range(options.files), {}, 0
    temporary = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        trained = temporary / "trained" if {*options.formats} & {*OF_RUNS} else None
        if trained:
            train(trained)
        for kind in options.formats:
            limits = (options.seed, options.jobs, trained, temporary, options.seconds)
            rows[kind], bad = fuzz(kind, indices, *limits)
            failed += len(bad)
            for outcome in bad:
                again = f"--formats {kind} --seed {options.seed} --only {outcome.index}"
                print(f"{outcome.kind}: {again}: {outcome.detail}", flush=True)
            if bad and options.keep:
                tempfile.tempdir, found = str(temporary), checker(kind, trained)
                for outcome in bad:
                    case = found.make(generator(options.seed, kind, outcome.index))
                    keep(case, options.keep / f"{kind}-{options.seed}-{outcome.index}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(table(rows))
    return int(failed > 0)


def train(folder: Path) -> None:
    """The run whose files are damaged; what it says is not of interest."""
    import contextlib
    import io

    from fuzz import runs

    with contextlib.redirect_stdout(io.StringIO()):
        runs.train(folder)


if __name__ == "__main__":
    sys.exit(main())
