"""A trained model as a Python object: images and texts in, named arrays out.

    model = VisionLanguageModel.from_pretrained("runs/mine/model")
    features = model.encode(images=["photo.jpg"], texts=["a dog on a sofa"])
    features.pooled                                                            # [1, H]

Shape suffixes: B examples; T tokens of one text; M image tokens of one image; H width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Self

from vlp.data.batch import collate
from vlp.data.given import count_of, pairs_of
from vlp.data.pictures import Picture, RegionsLike, prepared
from vlp.data.text import TextEncoder
from vlp.errors import CheckpointError, ConfigError, DataError
from vlp.models.hub import local_directory
from vlp.models.image import images_of
from vlp.models.model import ModelConfig, Network, read_config
from vlp.models.textsource import has_tokenizer
from vlp.objectives.itc import SIDES
from vlp.tasks.abilities import comparer_of, matcher_of
from vlp.tasks.card import Training
from vlp.tasks.registry import make_task
from vlp.tasks.saved import TASK_FILE, SavedTask, read_saved, read_training, save_trained
from vlp.tasks.task import Setting, Task
from vlp.tasks.vqa import ANSWER, VqaTask
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


@dataclass(frozen=True)
class Answered:
    """One of the answers that a model chooses from."""

    answer: str
    score: float
    """0 to 1: what share of people would give it (loss `bce`), or its probability among all answers."""


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

    @cached_property
    def trained_task(self) -> Task | None:
        """The task that it was trained for, with its objectives; None where that or the tokenizer is not known."""
        if self.task is None or self.text is None:
            return None
        return make_task(self.task.task, Setting(self.config, self.text, 0, self.task.without))

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
            images: pictures, arrays [height, width, 3] of uint8, or paths of JPEG, PNG or WebP files; a path goes
                exactly through training's transform. None in the list, or no list, leaves the image out.
            texts: one per image; without them each text is empty. What is longer than the model reads is cut.
            regions: for a model that reads regions: per image a `Regions`, its arrays by name (`features` [R, D] and
                `boxes` [R, 4] as shares of the image, perhaps `confidence` [R]), or the path of an npz of them.
            batch_size: pairs that run at once.
        Raises:
            ConfigError: lists of unequal lengths, or inputs that the model does not read.
            DataError: a file is no image, or arrays are not what they must be.
        """
        examples = self._examples("encode", images, texts, regions)
        found = Encodings(np.zeros((0, self.config.width("example")), np.float32), [], [], [])
        pooled = [found.pooled]
        with self._still():
            for batch in self._batches(examples, batch_size):
                pooled.append(_collect(self(batch), batch, found))
        for example in examples:
            found.tokens.append([] if self.text is None else self.text.tokens(example.token_ids_T.tolist()))
        return Encodings(np.concatenate(pooled), found.text, found.image, found.tokens, found.taps)

    def answer(
        self,
        image: Picture | None,
        question: str,
        k: int = 5,
        *,
        regions: RegionsLike | None = None,
    ) -> list[Answered]:
        """The best answers to a question about an image, the best first.

        Args:
            image: as in `encode`; for a model that reads regions alone, None.
            k: how many of them; all, where it has fewer.
        Raises:
            ConfigError: the model was not fine-tuned to answer, or does not read what is given.
            DataError: the image cannot be used.
        """
        task = self.trained_task
        if not isinstance(task, VqaTask):
            raise ConfigError(f"answer: the model {self._known_for()} and has no answers; fine-tune it for vqa")
        most = count_of("answer: k", k)
        example = task.prompted(self._example("answer", image, question, regions))
        if example.image is None and task.setting.without != "image":
            raise ConfigError("answer: there is no image; give what the question is about")
        with self._still():
            encoded = self(collate([example], self.images.form, {}))
            scores_A = self.network.heads[ANSWER](encoded.pooled_BH)[0].float()
        shares_A = scores_A.sigmoid() if task.config.answer.loss == "bce" else scores_A.softmax(0)
        best = shares_A.topk(min(most, len(shares_A)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Answered(task.config.answers[number], score) for number, score in pairs]

    def match(
        self,
        images: Sequence[Picture] | None = None,
        texts: Sequence[str] = (),
        *,
        regions: Sequence[RegionsLike] | None = None,
        batch_size: int = 32,
    ) -> NDArray[np.float32]:
        """How well each image goes with each text, [images, texts].

        A model with a head for matching looks at each pair and gives the log odds of a match (above 0: rather yes); a
        dual encoder compares vectors and gives their cosine.

        Args:
            images, regions: one of each per image, as the model reads them; see `encode`.
            batch_size: pairs (of a dual encoder: images or texts) that run at once.
        Raises:
            ConfigError: the model has neither head, or does not read what is given.
        """
        matcher, comparer = matcher_of(self.trained_task), comparer_of(self.trained_task)
        if matcher is None and comparer is None:
            raise ConfigError(
                f"match: the model {self._known_for()} and has no head for matching; pre-train with matching, or "
                "fine-tune for retrieval"
            )
        if matcher is None and comparer is not None:
            for reason in filter(None, map(comparer.blind, SIDES)):
                raise ConfigError(f"match: {reason}")
        if images is None and regions is None:
            raise ConfigError("match: give images (or regions, for a model that reads them), and texts")
        told = self._examples("match", None, texts, None)
        shown = self._examples("match", images, None, regions)
        for number, example in enumerate(shown):
            if example.image is None:
                raise ConfigError(f"match: pair {number + 1} has no image; give one for each row")
        heads = self.network.heads
        with self._still():
            if matcher is not None:
                pairs = [replace(text, image=image.image) for image in shown for text in told]
                odds = [matcher.log_odds(heads, self(batch)) for batch in self._batches(pairs, batch_size)]
                found = torch.cat([torch.zeros(0), *(each.cpu() for each in odds)])
                return _array(found.view(len(shown), len(told)))
            assert comparer is not None
            sides = []
            for which, examples in enumerate((told, shown)):
                vectors = (comparer.vectors(heads, self(b), b)[which] for b in self._batches(examples, batch_size))
                sides.append(torch.cat([torch.zeros(0, comparer.width), *(each.cpu() for each in vectors)]))
            return _array(sides[1] @ sides[0].T)

    def _batches(self, examples: Sequence[Example], size: int) -> Iterator[Batch]:
        size = count_of("batch_size", size)
        for start in range(0, len(examples), size):
            weights = next(self.network.parameters())
            yield collate(examples[start : start + size], self.images.form, {}).to(weights.device, weights.dtype)

    def _known_for(self) -> str:
        return f"was trained for '{self.task.task.name}'" if self.task else "does not say what it was trained for"

    @contextmanager
    def _still(self) -> Iterator[None]:
        """In eval mode and without gradients; afterwards as before."""
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(was_training)

    def batch(
        self,
        images: Sequence[Picture | None] | None = None,
        texts: Sequence[str] | None = None,
        *,
        regions: Sequence[RegionsLike | None] | None = None,
    ) -> Batch:
        """Pairs as one packed batch, for `forward`; arguments as in `encode`."""
        return collate(self._examples("batch", images, texts, regions), self.images.form, {})

    def _examples(
        self,
        door: str,
        images: Sequence[Picture | None] | None,
        texts: Sequence[str] | None,
        regions: Sequence[RegionsLike | None] | None,
    ) -> list[Example]:
        """The pairs of three lists; messages begin with the door that they came in by."""
        pairs = pairs_of(door, images=images, texts=texts, regions=regions)
        return [self._example(door, *pair, number) for number, pair in enumerate(pairs)]

    def _example(
        self, door: str, image: Picture | None, text: str, regions: RegionsLike | None, number: int = 0
    ) -> Example:
        if self.text is None:
            raise ConfigError(
                f"{door}: the model was saved without a tokenizer; give from_pretrained(..., tokenizer=DIR)"
            )
        where = f"pair {number + 1}"
        if not isinstance(text, str):
            raise ConfigError(f"{door}: the text of {where} is of type {type(text).__name__}; give a str")
        try:
            token_ids_T, special_T, word_T = self.text.encode(text)
        except DataError as error:
            raise DataError(f"{door}: the text of {where}, {error}") from None
        shown = prepared(self.images, image, regions, where)
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
