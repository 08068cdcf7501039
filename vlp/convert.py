"""`vlp convert`: published checkpoints into our models, and back."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from vlp import resources
from vlp.config import read_yaml
from vlp.errors import ConfigError, nearest
from vlp.models.convert.checkpoint import Record, convert_from, convert_to, read_checkpoint, read_record
from vlp.models.convert.family import read_official
from vlp.models.convert.registry import family_of, library_name
from vlp.models.model import ModelConfig, count_parameters, meta_model


def convert(
    file: Path, *, source: str | None, target: str | None, config: str | None, official: Path | None, out: Path
) -> None:
    """Convert one way or the other, and say what became of the tensors.

    Raises:
        ConfigError: options that do not go together, or an unknown name.
        CheckpointError: a file that cannot be read, or tensors that do not fit.
    """
    if (source is None) == (target is None):
        raise ConfigError("convert needs --from NAME FILE or --to NAME DIR, one of them")
    if target is not None:
        if config or official:
            raise ConfigError("--to takes the model's own config; remove --config and --official-config")
        export_checkpoint(target, file, out)
        return
    assert source is not None
    import_checkpoint(source, file, config, official, out)


def import_checkpoint(source: str, file: Path, config: str | None, official: Path | None, out: Path) -> None:
    """A published checkpoint into a directory of ours; prints the account."""
    if (config is None) == (official is None):
        raise ConfigError("--from needs --config CONFIG or --official-config FILE, one of them")
    family_of(source, "--from")  # a wrong name is said before a large file is read
    checkpoint = read_checkpoint(file)
    kind = library_name(source, checkpoint.tensors)
    family = family_of(kind, "--from")
    given = None if official is None else read_official(official)
    ours = _model_config(config) if given is None else family.config(given)  # type: ignore[arg-type]
    counts = family.counts(given) if given is not None else {}
    made, record = convert_from(kind, family, checkpoint, ours, counts, out, asked=source)
    _show(out, len(made.their_shapes()), count_parameters(meta_model(made.config)), made.config, record)


def export_checkpoint(target: str, directory: Path, out: Path) -> None:
    """A directory of ours into a published form. What came under the library's names goes back so."""
    family_of(target, "--to")
    record = read_record(directory)
    kind = record.source if record is not None and record.asked == target else target
    tensors = convert_to(kind, family_of(kind, "--to"), directory, out)
    Console().print(f"{out}: {len(tensors)} tensors under the names of {kind}", highlight=False, soft_wrap=True)


def _model_config(name: str) -> ModelConfig:
    """A shipped model config or a file, whose sizes must all be given."""
    if name in resources.names("model"):
        path = resources.shipped("model", name)
    elif Path(name).is_file():
        path = Path(name)
    else:
        raise ConfigError(
            f"--config: no file or shipped model is called '{name}'{nearest(name, resources.names('model'))}"
        )
    config = ModelConfig.parse(read_yaml(path), str(path))
    source = config.image.source
    if "auto" in (config.text.vocab_size, getattr(source, "width", None)):
        raise ConfigError(f"{path}: has sizes that are auto, and a checkpoint says none; give numbers")
    return config


def _show(out: Path, mapped: int, parameters: int, config: ModelConfig, record: Record) -> None:
    console = Console(highlight=False)
    console.print(f"{out}: {mapped} tensors of {record.source} mapped, {parameters:,} parameters", soft_wrap=True)
    console.print(f"heads: {', '.join(config.heads) or 'none'}", end="")
    console.print(f" (not in the file: {', '.join(record.absent_heads)})" if record.absent_heads else "")
    for name, tied in record.tied.items():
        console.print(f"tied: {name} is {tied}", soft_wrap=True)
    for name, reason in record.unused.items():
        console.print(f"unused: {name}: {reason}", soft_wrap=True)
