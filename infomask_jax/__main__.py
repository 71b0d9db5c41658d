"""`python -m infomask_jax`: the verbs of verbs.py, which is imported only where Ctrl-C is already heard."""

from infomask_jax import command


def main() -> None:
    with command.ends():
        from infomask_jax import verbs

        verbs.main()


if __name__ == "__main__":
    main()
