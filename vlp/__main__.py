"""`python -m vlp`: the `vlp` command for launchers that start a module (torchrun, deepspeed)."""

from vlp.cli import main

if __name__ == "__main__":
    main()
