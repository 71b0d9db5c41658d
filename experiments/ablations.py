"""Which part of the method does what: variants of one config over seeds, scored together and paired.

    python -m infomask_jax prepare synthetic --data-dir data
    python experiments/ablations.py --base synthetic --data-dir data --workdir runs/ablations --only rivals no_kl_m
    python experiments/ablations.py --base synthetic --workdir runs/betas --vary loss.beta-m 0 1e-3 1e-2 --seeds 0 1 2
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

import nih_findings
import nih_pneumonia
import quickstart
import rsna_pneumonia
import tyro

from infomask_jax import command
from infomask_jax.config import Config
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


def base_config(name: str) -> Config:
    """One of BASES, or that of a run in a folder."""
    if name not in BASES and not (Path(name) / "config.json").exists():
        raise ValueError(f"--base: expected one of {', '.join(BASES)} or the folder of a run, found {name}")
    return BASES[name] if name in BASES else dataclasses.replace(Config.load(name), folds=1, fold=-1)


@dataclasses.dataclass(frozen=True)
class Ablations:
    """What is trained and scored."""

    base: str
    """The default, one of synthetic, implanted, rsna, nih, findings, rsna-cpu, implanted-cpu: the config of
    quickstart.py (synthetic, implanted), rsna_pneumonia.py, nih_pneumonia.py or nih_findings.py; -cpu: with the encoder
    of --preset cpu. Or the folder of a run: its config."""
    dataset: str | None = None
    """Prepared data set in place of the base config's, as folder."""
    image_size: int | None = None
    """Side of the model's input in place of the base config's, pixels."""
    data_dir: Path = Path("data")
    """Folder given to `prepare`."""
    workdir: Path = Path("runs/ablations")
    """Folder of all runs and of the table."""
    only: tuple[str, ...] = ()
    """Variants or groups; none: all, or with --vary none of them. `default` is always among them."""
    vary: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """A setting, as in loss.beta-m, and values after it: a variant for each. May be given several times."""
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

    base = dataclasses.replace(base_config(arguments.base), data_dir=arguments.data_dir, workdir=arguments.workdir)
    given = {"dataset": arguments.dataset, "train.steps": arguments.steps, "data.image_size": arguments.image_size}
    base = changed(base, {name: value for name, value in given.items() if value is not None})
    only = tuple(name for names in arguments.only for name in names.split(",") if name)
    if arguments.list:
        for v in ablation.select(ablation.variants(base, 1), only):
            changes = ", ".join(f"{name} {value}" for name, value in v.changes.items())
            print(f"{v.group:13}{v.name:28}{f'skipped: {v.skip}' if v.skip else changes}")
        return
    flags = {f"--{name.replace('_', '-')}": v for name, v in vars(arguments).items() if name not in ("list", "vary")}
    told = command_line("experiments/ablations.py", flags | {"--only": only})
    told = " ".join([told, *(f"--vary {' '.join(each)}" for each in arguments.vary)])
    data = datasets.load(base.dataset, base.data_dir)
    scored = arguments.scored_dir and datasets.load(base.dataset, arguments.scored_dir)
    ablation.run(base, data, only, arguments.seeds, arguments.split, told, arguments.together, scored, arguments.vary)


if __name__ == "__main__":
    with command.ends(resumes=True):
        chosen = command.parse(Ablations, description=__doc__)
        from infomask_jax import parallel

        parallel.start(base_config(chosen.base).machine.hosts)
        main(chosen)
