"""The configs that are shipped with vlp: found in an installed package as in a checkout."""

from pathlib import Path
from typing import Literal

from vlp.errors import ConfigError, nearest

Kind = Literal["model", "pretrain", "finetune", "deepspeed"]

_FOLDERS: dict[Kind, str] = {
    "model": "configs/model",
    "pretrain": "configs/pretrain",
    "finetune": "configs/finetune",
    "deepspeed": "deepspeed_configs",
}
_PACKAGE = Path(__file__).resolve().parent


def shipped(kind: Kind, name: str) -> Path:
    """The file of a shipped config.

    Args:
        kind: which folder of configs.
        name: the file's name without its suffix, as `zero2`.
    Raises:
        ConfigError: there is none of that name; the message gives the nearest, or lists them.
    """
    found = _files(kind).get(name)
    if found is None:
        raise ConfigError(f"no shipped {kind} config is called '{name}'{nearest(name, names(kind))}")
    return found


def names(kind: Kind) -> tuple[str, ...]:
    """Names of the shipped configs of one kind, sorted."""
    return tuple(sorted(_files(kind)))


def _files(kind: Kind) -> dict[str, Path]:
    suffix = "*.json" if kind == "deepspeed" else "*.yaml"
    return {path.stem: path for path in _folder(kind).glob(suffix)}


def _folder(kind: Kind) -> Path:
    # The wheel holds the configs inside the package; in a checkout they stand beside it. Looking at both places needs
    # no import hook, so `python -m vlp` also works in a checkout that was never installed.
    installed = _PACKAGE / _FOLDERS[kind]
    return installed if installed.is_dir() else _PACKAGE.parent / _FOLDERS[kind]
