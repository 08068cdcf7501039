"""A trained model as a Python object: images and texts in, named arrays out.

    model = VisionLanguageModel.from_pretrained("runs/mine/model")
    features = model.encode(images=["photo.jpg"], texts=["a dog on a sofa"])
    features.pooled                                                            # [1, H]

Shape suffixes: B examples; T tokens of one text; M image tokens of one image; H width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self

from vlp.data.batch import collate
from vlp.data.pictures import Picture, RegionsLike, prepared
from vlp.data.text import TextEncoder
from vlp.errors import CheckpointError, ConfigError
from vlp.models.hub import local_directory
from vlp.models.image import images_of
from vlp.models.model import ModelConfig, Network, read_config
from vlp.models.textsource import has_tokenizer
from vlp.tasks.card import Training
from vlp.tasks.saved import TASK_FILE, SavedTask, read_saved, read_training, save_trained
from vlp.types import Batch, Encoded, Example, Packing

FILES = ("*.json", "*.txt", "*.md", "*.model")
"""What is fetched from the hub beside the weights."""


@dataclass(frozen=True)
class Encodings:
    """What a model makes of pairs of images and texts, in fp32 on the CPU."""

    pooled: NDArray[np.float32]
    """One vector per pair, [B, H]."""
    text: list[NDArray[np.float32]]
    """Per pair its text tokens' states, [T, H]."""
    image: list[NDArray[np.float32]]
    """Per pair its image tokens' states, [M, H]; no rows where there is no image."""
    tokens: list[list[str]]
    """Per pair the text's tokens."""
    taps: dict[str, list[NDArray[np.float32]]] = field(default_factory=dict)
    """Per pair the states on the way, by name: `text.unimodal`, `image.unimodal` are those before the streams meet."""

    def __len__(self) -> int:
        return len(self.text)


class VisionLanguageModel(nn.Module):
    """A network with its tokenizer and its transforms.

    Args:
        network: embeddings, encoder, pooler and heads.
        text: the tokenizer; without it `encode` takes no texts.
        task: what it was trained for, if that is known.
        history: how it was trained, if that is known.
    """

    def __init__(
        self,
        network: Network,
        text: TextEncoder | None = None,
        *,
        task: SavedTask | None = None,
        history: Training | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.text = text
        self.task = task
        self.history = history
        self.images = images_of(network.config.image)

    @property
    def config(self) -> ModelConfig:
        """What the network is made of."""
        return self.network.config

    # ----------------------------------------------------------------------------------------------- disk and hub

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, tokenizer: str | Path | None = None, revision: str | None = None
    ) -> Self:
        """A model that a run or `save_pretrained` wrote, in eval mode on the CPU.

        Args:
            source: the directory, or a hub id such as `owner/name`.
            tokenizer: a directory or hub id, for a model that was saved without one.
            revision: a branch, tag or commit of the hub's repository.
        Raises:
            CheckpointError: there is no such model, or its files are damaged or do not fit each other.
            ConfigError: its tokenizer cannot be used.
        """
        directory = local_directory(source, FILES, revision)
        config = read_config(directory)
        words = tokenizer if tokenizer is not None else directory if has_tokenizer(directory) else None
        text = None if words is None else TextEncoder(words, config.text.max_length, config.text.add_tokens)
        if text is not None and text.vocab_size != config.text.vocab_size:
            raise CheckpointError(
                f"{source}: the model has {config.text.vocab_size} words, and its tokenizer {text.vocab_size} ({words})"
            )
        task = read_saved(directory) if (directory / TASK_FILE).exists() else None
        return cls(Network.from_pretrained(directory), text, task=task, history=read_training(directory)).eval()

    def save_pretrained(self, directory: str | Path, *, name: str = "") -> None:
        """Write weights (safetensors, fp32), config, tokenizer, records and a card: what `from_pretrained` reads.

        Args:
            name: what the card calls the model (default: the directory's name).
        """
        weights = self.network.state_dict()
        save_trained(Path(directory), self.config, weights, self.task, self.text, self.history, name)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        revision: str | None = None,
        message: str = "Upload a vlp model",
    ) -> str:
        """Upload what `save_pretrained` writes to a repository of the hub, which is made if there is none.

        Args:
            repo_id: `owner/name`.
            private: whether a repository that is made is private.
            token: of the account (default: that of `hf auth login`).
            revision: the branch to write to.
            message: of the commit.
        Returns:
            the address of the commit.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=made.repo_id)
            commit = api.upload_folder(
                repo_id=made.repo_id, folder_path=folder, commit_message=message, revision=revision
            )
        return str(commit.commit_url)

    # ----------------------------------------------------------------------------------------------------- running

    def forward(self, batch: Batch) -> Encoded:
        """Encode a prepared batch: packed states with a graph, where and as the weights are.

        Args:
            batch: from a task's `collate`, a loader or `batch`; it is moved to the weights' device and type.
        """
        weights = next(self.network.parameters())
        return self.network(batch.to(weights.device, weights.dtype))  # type: ignore[no-any-return]

    def encode(
        self,
        images: Sequence[Picture | None] | None = None,
        texts: Sequence[str] | None = None,
        *,
        regions: Sequence[RegionsLike | None] | None = None,
        batch_size: int = 32,
    ) -> Encodings:
        """Encode pairs; the first image goes with the first text, and so on. Nothing is dropped out, and no pair's
        result depends on the others.

        Args:
            images: pictures, or paths of JPEG, PNG or WebP files; a path goes exactly through training's transform.
                None in the list, or no list, leaves the image out.
            texts: one per image; without them each text is empty.
            regions: for a model that reads regions: per image a `Regions`, its arrays by name (`features` [R, D] and
                `boxes` [R, 4] as shares of the image, perhaps `confidence` [R]), or the path of an npz of them.
            batch_size: pairs that run at once.
        Raises:
            ConfigError: lists of unequal lengths, or inputs that the model does not read.
            DataError: a file is no image, or arrays are not what they must be.
        """
        examples = self._examples(images, texts, regions)
        found = Encodings(np.zeros((0, self.config.width("example")), np.float32), [], [], [])
        pooled = [found.pooled]
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                for start in range(0, len(examples), batch_size):
                    part = examples[start : start + batch_size]
                    batch = collate(part, self.images.form, {})
                    pooled.append(_collect(self(batch), batch, found))
        finally:
            self.train(was_training)
        for example in examples:
            found.tokens.append([] if self.text is None else self.text.tokens(example.token_ids_T.tolist()))
        return Encodings(np.concatenate(pooled), found.text, found.image, found.tokens, found.taps)

    def batch(
        self,
        images: Sequence[Picture | None] | None = None,
        texts: Sequence[str] | None = None,
        *,
        regions: Sequence[RegionsLike | None] | None = None,
    ) -> Batch:
        """Pairs as one packed batch, for `forward`; arguments as in `encode`."""
        return collate(self._examples(images, texts, regions), self.images.form, {})

    def _examples(
        self,
        images: Sequence[Picture | None] | None,
        texts: Sequence[str] | None,
        regions: Sequence[RegionsLike | None] | None,
    ) -> list[Example]:
        given = {"images": images, "texts": texts, "regions": regions}
        for name, values in given.items():
            if isinstance(values, (str, Path, Image.Image, Mapping)):
                raise ConfigError(f"encode: {name} should be a list, with one item per pair")
        sizes = {name: len(values) for name, values in given.items() if values is not None}
        if not sizes:
            raise ConfigError("encode: give images, texts or regions")
        if len(set(sizes.values())) > 1:
            listed = " and ".join(f"{size} {name}" for name, size in sizes.items())
            raise ConfigError(f"encode: there are {listed}; give one of each per pair")
        if self.text is None:
            raise ConfigError(
                "encode: the model was saved without a tokenizer; give from_pretrained(..., tokenizer=DIR)"
            )
        total = next(iter(sizes.values()))
        nothing: list[None] = [None] * total
        pairs = zip(images or nothing, texts or [""] * total, regions or nothing, strict=True)
        return [self._example(*pair, number) for number, pair in enumerate(pairs)]

    def _example(self, image: Picture | None, text: str, regions: RegionsLike | None, number: int) -> Example:
        assert self.text is not None
        token_ids_T, special_T, word_T = self.text.encode(text)
        shown = prepared(self.images, image, regions, f"pair {number + 1}")
        return Example(str(number), token_ids_T, special_T, word_T, shown)


def _collect(encoded: Encoded, batch: Batch, found: Encodings) -> NDArray[np.float32]:
    """Add a batch's states to the lists; returns its pooled vectors."""
    found.text.extend(_parts(encoded.text_NH, batch.text.packing))
    found.image.extend(_parts(encoded.image_MH, batch.image.packing))
    for name, states in encoded.taps.items():
        packing = batch.image.packing if name.startswith("image") else batch.text.packing
        found.taps.setdefault(name, []).extend(_parts(states, packing))
    return _array(encoded.pooled_BH)


def _parts(states: Tensor, packing: Packing) -> Iterator[NDArray[np.float32]]:
    for part in torch.split(states, list(packing.lengths)):
        yield _array(part)


def _array(states: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = states.float().cpu().numpy().copy()  # an example's own, not a view of its batch
    return array
