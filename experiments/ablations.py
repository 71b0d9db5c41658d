"""Which part of the method does what: variants of one config over seeds, scored together and paired.

    python -m infomask_jax prepare synthetic --data-dir data
    python experiments/ablations.py --base synthetic --data-dir data --workdir runs/ablations --only rivals
    python experiments/ablations.py --base rsna --list

Every run is an ordinary run in WORKDIR/VARIANT/seedS: the same command again continues where it stopped and trains
nothing twice. Writes WORKDIR/ablations.json, ablations.md and figures/; with --scored-dir, which scores the same runs
on fresh images, into WORKDIR/on-NAME-FINGERPRINT/.

Hardware and time: a run takes about 8 minutes of one CPU core, one with one view half of that, so `--only rivals` 40
minutes a seed. Score-CAM and RISE take about 500 passes an image. On several cores train one seed on each, then score
all; a run belongs to one process at a time, any other is refused:

    options="--base synthetic --data-dir data --workdir runs/ablations --only rivals"
    for s in 0 1 2; do taskset -c $s python experiments/ablations.py $options --seeds $s > seed$s.log 2>&1 & done; wait
    python experiments/ablations.py $options --seeds 0 1 2
"""

import dataclasses
from pathlib import Path
from typing import Literal

import nih_findings
import nih_pneumonia
import quickstart
import rsna_pneumonia

from infomask_jax import command
from infomask_jax.presets import CPU, changed

BASES = {
    "synthetic": quickstart.CONFIG,
    "implanted": dataclasses.replace(quickstart.CONFIG, dataset="implanted"),
    "rsna": rsna_pneumonia.CONFIG,
    "nih": nih_pneumonia.CONFIG,
    "findings": nih_findings.CONFIG,
    "rsna-cpu": changed(rsna_pneumonia.CONFIG, rsna_pneumonia.PRESETS["cpu"]),
    "implanted-cpu": changed(quickstart.CONFIG, CPU | {"dataset": "implanted", "train.steps": 296}),
}


@dataclasses.dataclass(frozen=True)
class Ablations:
    """What is trained and scored."""

    base: Literal["synthetic", "implanted", "rsna", "nih", "findings", "rsna-cpu", "implanted-cpu"]
    """The default: the config of quickstart.py (synthetic, implanted), rsna_pneumonia.py, nih_pneumonia.py or
    nih_findings.py; -cpu: with the encoder of --preset cpu."""
    image_size: int | None = None
    """Side of the model's input in place of the base config's, pixels."""
    data_dir: Path = Path("data")
    """Folder given to `prepare`."""
    workdir: Path = Path("runs/ablations")
    """Folder of all runs and of the table."""
    only: str = ""
    """Variants or groups, separated by commas; all if empty. `default` is always among them."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of every variant."""
    split: str = "test"
    """Split to score: train, val or test."""
    scored_dir: Path | None = None
    """Folder given to `prepare` for fresh images of the same data set (phantoms, implanted opacities: of another
    --seed): their split is scored in place of DATA_DIR's, their val tunes thresholds."""
    steps: int | None = None
    """Optimizer steps in place of the base config's."""
    together: bool = False
    """Train the runs that have not begun in lockstep in one process, each batch read once: for an accelerator. Saves
    at the end, and when told to stop."""
    list: bool = False
    """Only list the variants and what they change."""


def main(arguments: Ablations) -> None:
    from infomask_jax import ablation, datasets
    from infomask_jax.report.ablations import command_line

    base = dataclasses.replace(BASES[arguments.base], data_dir=arguments.data_dir, workdir=arguments.workdir)
    given = {"train.steps": arguments.steps, "data.image_size": arguments.image_size}
    base = changed(base, {name: value for name, value in given.items() if value is not None})
    only = tuple(name.strip() for name in arguments.only.split(",") if name.strip())
    if arguments.list:
        for v in ablation.select(ablation.variants(base, 1), only):
            changes = ", ".join(f"{name} {value}" for name, value in v.changes.items())
            print(f"{v.group:13}{v.name:28}{f'skipped: {v.skip}' if v.skip else changes}")
        return
    flags = {f"--{name.replace('_', '-')}": value for name, value in vars(arguments).items() if name != "list"}
    told = command_line("experiments/ablations.py", flags | {"--only": arguments.only or None})
    data = datasets.load(base.dataset, base.data_dir)
    scored = arguments.scored_dir and datasets.load(base.dataset, arguments.scored_dir)
    ablation.run(base, data, only, arguments.seeds, arguments.split, told, arguments.together, scored)


if __name__ == "__main__":
    with command.ends(resumes=True):
        chosen = command.parse(Ablations, description=__doc__)
        from infomask_jax import parallel

        parallel.start(BASES[chosen.base].machine.hosts)
        main(chosen)
