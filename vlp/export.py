"""`vlp export`: the model of a run's checkpoint, whatever ZeRO stage and number of ranks wrote it; needs no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlp.config import read_json, read_yaml
from vlp.data.text import TextEncoder
from vlp.errors import CheckpointError, ConfigError
from vlp.models.adapters import merged
from vlp.models.model import ModelConfig
from vlp.models.transfer import TransferConfig
from vlp.tasks.card import Training
from vlp.tasks.saved import SavedTask, save_trained
from vlp.train.checkpointfiles import CHECKPOINTS, completed, read_state, read_weights, step_of

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "config.yaml"
FACTS_FILE = "run.json"
MODEL_DIRECTORY = "model"
TOKENIZER_DIRECTORY = "tokenizer"


def export_run(run: Path, step: int | None = None, *, best: bool = False, out: Path | None = None) -> Path:
    """Write the model of a checkpoint, with its running mean as weights if one was kept.

    Args:
        run: the run's directory.
        step: of the checkpoint; the newest if none is given.
        best: the checkpoint of the best evaluation instead.
        out: where to; by default `model/` in the run's directory.
    Returns:
        The model's directory.
    Raises:
        ConfigError: not a run's directory, or no such checkpoint; those that there are are named.
        CheckpointError: the checkpoint is damaged.
    """
    facts = _facts(run)
    checkpoint = _chosen(run, step, best)
    config = ModelConfig.parse(read_yaml(run / CONFIG_FILE)["model"], str(run / CONFIG_FILE))
    text = TextEncoder(run / TOKENIZER_DIRECTORY, config.text.max_length, config.text.add_tokens)
    training = Training.parse(facts["training"]).model_copy(update={"steps": step_of(checkpoint)})
    directory = out or run / MODEL_DIRECTORY
    transfer = TransferConfig.parse(read_yaml(run / CONFIG_FILE).get("transfer", {}), str(run / CONFIG_FILE))
    weights = model_weights(read_weights(checkpoint), config, transfer)
    save_trained(directory, config, weights, SavedTask.parse(facts["saved"]), text, training, run.resolve().name)
    return directory


def model_weights(weights: dict[str, Tensor], config: ModelConfig, transfer: TransferConfig) -> dict[str, Tensor]:
    """The model's own weights among those of a task's module, adapters merged into what they stand beside."""
    own = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    return own if transfer.adapters is None else merged(own, transfer.adapters, config)


def _facts(run: Path) -> dict[str, Any]:
    if not (run / CONFIG_FILE).is_file():
        raise ConfigError(f"{run}: is not the directory of a run ({CONFIG_FILE} is missing); give its run.dir")
    try:
        facts: dict[str, Any] = read_json(run / FACTS_FILE)
        return facts
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run / FACTS_FILE}: cannot be read: {error}") from None


def _chosen(run: Path, step: int | None, best: bool) -> Path:
    found = {step_of(path): path for path in completed(run / CHECKPOINTS)}
    if not found:
        raise ConfigError(f"{run}: holds no checkpoint; train for checkpoint.every steps first")
    if best:
        step = read_state(found[max(found)])["facts"].get("best_step")
        if step is None:
            raise ConfigError(f"{run}: no evaluation was judged; set evaluation.metric and checkpoint.keep_best")
    chosen = max(found) if step is None else step
    if chosen not in found:
        raise ConfigError(f"{run}: has no checkpoint of step {chosen}; there are {', '.join(map(str, sorted(found)))}")
    return found[chosen]
