"""`python -m vlp.train.build`: check ahead of the first run that training starts here without compiling anything."""

from vlp.train.quiet import import_deepspeed


def build_ops() -> None:
    """Import DeepSpeed and say what it needs. With torch's AdamW and no shared-memory op, nothing is compiled."""
    deepspeed = import_deepspeed()
    print(f"DeepSpeed {deepspeed.__version__} is ready: training compiles nothing at its first start")


if __name__ == "__main__":
    build_ops()
