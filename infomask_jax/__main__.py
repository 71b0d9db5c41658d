"""`infomask` and `python -m infomask_jax`: the verbs of verbs.py, imported only where Ctrl-C is already heard."""

import sys
from pathlib import Path

from infomask_jax import command


def main() -> None:
    with command.ends():
        from infomask_jax import verbs

        called = Path(sys.argv[0])
        verbs.main("python -m infomask_jax" if called.stem == "__main__" else called.stem)


if __name__ == "__main__":
    main()
