"""The paper's task on ChestX-ray8's successor: pneumonia of NIH ChestX-ray14, official split, image labels only.

    python -m infomask_jax prepare nih --source DIR --data-dir data --size 256 --findings Pneumonia
    python experiments/nih_pneumonia.py --data-dir data --workdir runs/nih

Hardware: one accelerator and 8 loader cores. It has not been run: time and score are not known. 224 px, width 32,
batches of 64, 20,000 steps and positives weighed 20 to 1 are guesses.
"""

from pathlib import Path

from infomask_jax.command import main
from infomask_jax.config import Config, DataConfig, LossConfig, MachineConfig, ModelConfig, OptimizerConfig

if __name__ == "__main__":
    main(
        Config(
            data_dir=Path("data"),
            workdir=Path("runs/nih"),
            dataset="nih",
            data=DataConfig(image_size=224, batch_size=64),
            model=ModelConfig(width=32, stride=8, evidence_bound=7.0),
            loss=LossConfig(positive_weight=20.0),  # about one image in eighty is positive
            train=OptimizerConfig(steps=20_000),
            machine=MachineConfig(workers=8),
        ),
        __doc__,
    )
