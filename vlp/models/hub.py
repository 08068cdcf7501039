"""Files from a local directory, or from the Hugging Face hub into its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlp.errors import CheckpointError

WEIGHTS = (("model.safetensors", "model.safetensors.index.json", "model-*.safetensors"), ("pytorch_model*",))
"""Names of weights as transformers writes them, the preferred ones first."""


def local_directory(source: str | Path, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The directory `source`, or a local copy of the hub's repository of that name.

    Args:
        source: a directory, or a hub id such as `bert-base-uncased` or `owner/name`.
        patterns: the files that are wanted (others are not downloaded); weights are wanted in any case.
        revision: a branch, tag or commit of the hub's repository.
    Raises:
        CheckpointError: there is no such directory, and the hub has or gives no such repository.
    """
    if not isinstance(source, (str, Path)):
        raise CheckpointError(f"{source!r} is no directory and no hub id of a model")
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists() and (path / "model" / "config.json").exists():
            raise CheckpointError(f"{source}: is the directory of a run; give {path / 'model'}")
        return path
    name = str(source)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CheckpointError(f"{name}: no such directory; give one that holds a model, or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    found = path
    try:
        for weights in WEIGHTS:
            found = Path(snapshot_download(name, revision=revision, allow_patterns=[*patterns, *weights]))
            if any(list(found.glob(pattern)) for pattern in weights):
                break
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{name}: no such directory, and not to be had from the hub: {reason}") from None
    return found
