"""Initial weights from a pre-trained text model, matched with our layers by name, every tensor accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.errors import CheckpointError, ConfigError
from vlp.models.encoder import Block
from vlp.models.heads import VocabularyHead
from vlp.models.model import Network
from vlp.models.tensorfile import first_of
from vlp.models.text import TextWeightsConfig
from vlp.models.textsource import KEY, PretrainedText

Make = Callable[[list[Tensor], Tensor], Tensor]
"""Our parameter out of theirs, and as it is now."""


@dataclass
class Accounting:
    """What became of every tensor."""

    loaded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Ours by name, and theirs that it was made of."""
    unused: dict[str, str] = field(default_factory=dict)
    """Theirs by name, and why nothing was made of it."""
    new: list[str] = field(default_factory=list)
    """Of ours on the text's way, what starts new."""

    def sentence(self, source: str) -> str:
        """One line for a log."""
        used = {name for names in self.loaded.values() for name in names}
        said = f"text starts from {source}: {len(used)} tensors loaded"
        if self.unused:
            reasons = list(self.unused.values())
            said += ", unused: " + "; ".join(f"{reasons.count(each)} {each}" for each in dict.fromkeys(reasons))
        return said + (f"; new: {', '.join(self.new)}" if self.new else "")


def start_text(model: Network, pretrained: PretrainedText, wanted: TextWeightsConfig) -> Accounting:
    """Put pre-trained weights into a model's text embedding, blocks, pooler and vocabulary heads.

    Raises:
        ConfigError: layers are asked for that do not exist or cannot be ours.
        CheckpointError: tensors are missing, of another shape or without a place, or the layers compute something else
            (heads, eps, activation); the first are named.
    """
    matching = _Matching(model, pretrained, wanted)
    matching.embedding()
    matching.blocks()
    matching.pooler()
    matching.heads()
    return matching.finish()


class _Matching:
    """Our parameters against their tensors; nothing is written before all of it fits."""

    def __init__(self, model: Network, pretrained: PretrainedText, wanted: TextWeightsConfig) -> None:
        self.model, self.pretrained, self.wanted = model, pretrained, wanted
        self.names, self.tensors = pretrained.names, pretrained.tensors
        self.own = dict(model.named_parameters())
        self.account = Accounting()
        self.values: dict[str, Tensor] = {}
        self.wrong: list[str] = []

    def embedding(self) -> None:
        config = self.model.config.text
        makers: dict[str, Make] = {"word": _rows, "position": self._positions, "segment": _segments}
        for kind, make in makers.items():
            ours, theirs = f"parts.{kind}.table", self.names.embedding.get(f"parts.{kind}.table", "")
            if f"text.{ours}.weight" not in self.own:
                continue
            if kind in self.wanted.new:
                self.account.new.append(f"text.{ours}")
                self._leave(theirs, "of a part that starts new")
            elif theirs:
                self._take(f"text.{ours}.weight", [f"{theirs}.weight"], make)
            else:
                self.wrong.append(f"it has no {kind} table (to start a new one write {KEY}.new: [{kind}])")
        for ours in ("combine.norm", "linear"):
            if f"text.{ours}.weight" in self.own and ours in self.names.embedding:
                self._layers("text", {ours: self.names.embedding[ours]})
            elif f"text.{ours}.weight" in self.own:
                self.account.new.append(f"text.{ours}")
        if "text.combine.norm.weight" in self.own:
            self._same("model.text.layer.eps", config.layer.eps, self.pretrained.setting("layer_norm_eps"))

    def blocks(self) -> None:
        blocks, depth, source = list(_text_blocks(self.model)), self.pretrained.depth, self.pretrained.source
        layers = self.wanted.layers
        if layers is None and self.names.differs:
            raise ConfigError(
                f"{KEY}.source: the layers of '{source}' differ from ours: {self.names.differs}; write {KEY}.layers: "
                "[] to start from its words alone, or name layers whose attention and norms shall start ours"
            )
        if layers is None:
            layers = tuple(range(min(depth, len(blocks))))
        if len(layers) > len(blocks):
            raise ConfigError(
                f"{KEY}.layers names {len(layers)} layers, but text looks at text in {len(blocks)} blocks only"
            )
        for layer in layers:
            if layer is not None and not 0 <= layer < depth:
                raise ConfigError(f"{KEY}.layers: '{source}' has {depth} layers, counted from 0, so no layer {layer}")
        for (number, block), layer in zip(blocks, [*layers, *[None] * (len(blocks) - len(layers))], strict=True):
            if layer is None:
                self.account.new.append(f"encoder.blocks.{number}")
            else:
                self._block(number, block, self.pretrained.layer(layer))

    def _block(self, number: int, block: Block, start: str) -> None:
        names = self.names
        for sublayer in ("self", "joint", "ffn"):
            if sublayer not in block.sublayers:
                continue
            owner = "both" if sublayer in block.config.share else "text"
            ours = f"encoder.blocks.{number}.sublayers.{sublayer}.weights.{owner}"
            if sublayer == "ffn":
                self._layers(ours, {own: start + theirs for own, theirs in names.ffn.items()})
                self.account.new += [f"{ours}.{own}" for own in ("up", "down") if own not in names.ffn]
                continue
            whole = {own: start + theirs for own, theirs in names.attention.items() if own not in ("key", "value")}
            self._layers(ours, whole)
            for kind in ("weight", "bias"):
                halves = [f"{start}{names.attention[half]}.{kind}" for half in ("key", "value")]
                if self._lacks(halves[0]):
                    continue
                self._take(f"{ours}.attention.key_value.{kind}", halves, lambda given, _: torch.cat(given))
        for theirs, reason in names.left.items():
            self._leave(start + theirs, reason)
        if "ffn" not in block.sublayers:
            for theirs in names.ffn.values():
                self._leave(start + theirs, "of feed-forward networks that the block does not have")
        self._check_block(f"encoder.blocks.{number}", block)

    def _check_block(self, where: str, block: Block) -> None:
        layer, setting = block.config.layer(self.model.config.final["text"]), self.pretrained.setting
        self._same(f"heads of {where}", layer.heads, setting("num_attention_heads"))
        self._same(f"eps of {where}", layer.eps, setting("layer_norm_eps"))
        if "up" in self.names.ffn:
            self._same(f"activation of {where}", layer.activation, self.pretrained.activation)
        self._same(f"norm of {where}", layer.norm, self.names.norm)
        self._same(f"positions of {where}", "absolute", setting("position_embedding_type", "absolute"))

    def pooler(self) -> None:
        config, theirs = self.model.config.pooler, self.names.pooler
        if config.linear and theirs and f"{theirs}.weight" in self.tensors and config.activation == "tanh":
            self._layers("pooler.linear", {"text": theirs})
            return
        self.account.new += ["pooler"] if config.linear else []
        self._leave(theirs, "of a pooler that is not ours")

    def heads(self) -> None:
        theirs = self.names.vocabulary
        for name, config in self.model.config.heads.items():
            if not isinstance(config, VocabularyHead) or config.inner_of is not None:
                continue
            same = config.tied and config.norm == "last" and config.activation == self.pretrained.activation
            if not same or self.names.differs or f"{theirs['transform.linear']}.weight" not in self.tensors:
                self.account.new.append(f"heads.{name}")
                continue
            self._layers(f"heads.{name}", {own: theirs[own] for own in ("transform.linear", "transform.norm")})
            bias = theirs["bias"] if theirs["bias"] in self.tensors else f"{theirs['bias']}.bias"
            self._take(f"heads.{name}.bias", [bias], _rows)

    def finish(self) -> Accounting:
        """Write the weights, unless something does not fit."""
        used = {name for names in self.account.loaded.values() for name in names}
        self.account.unused = {name: why for name, why in self.account.unused.items() if name not in used}
        for name in self.tensors:
            if name not in used and name not in self.account.unused:
                reason = self._reason(name, used)
                if reason is None:
                    self.wrong.append(f"{name} has no place in our layers")
                else:
                    self.account.unused[name] = reason
        if self.wrong:
            raise CheckpointError(f"{KEY}: '{self.pretrained.source}' does not fit the model: {first_of(self.wrong)}")
        with torch.no_grad():
            for name, value in self.values.items():
                self.own[name].copy_(value)
        return self.account

    def _reason(self, name: str, used: set[str]) -> str | None:
        """Why a tensor is not used; None if it ought to be."""
        for start, reason in self.names.unused.items():
            if name.startswith(start):
                return reason
        if name.startswith(tuple(self.names.vocabulary.values())):
            return "of a head that guesses words"
        if name.startswith(tuple(self.names.embedding.values())):
            return "of a part that the model's text does not have"
        pattern = re.escape(self.names.layer).replace(r"\{layer\}", r"\d+").replace(r"\{group\}", r"\d+")
        layer = re.match(pattern, name)
        if layer and not any(other.startswith(layer[0]) for other in used):
            return "of layers that start no block"
        return None

    # ------------------------------------------------------------------------------------------- tensor by tensor

    def _layers(self, ours: str, names: Mapping[str, str]) -> None:
        """Linears and norms as they are, by our names below `ours`."""
        for own, theirs in names.items():
            if self._lacks(f"{theirs}.weight"):
                self.account.new.append(f"{ours}.{own}")
            for kind in ("weight", "bias"):
                if not self._lacks(f"{theirs}.{kind}"):
                    self._take(f"{ours}.{own}.{kind}", [f"{theirs}.{kind}"], lambda given, _: given[0])

    def _lacks(self, theirs: str) -> bool:
        """Whether the architecture may do without this bias or norm; ours then starts as norms and biases do."""
        without = theirs in self.names.absent or (bool(self.names.differs) and theirs.endswith(".bias"))
        return without and theirs not in self.tensors

    def _take(self, ours: str, theirs: list[str], make: Make) -> None:
        """One parameter of ours out of tensors of theirs."""
        missing = [name for name in theirs if name not in self.tensors]
        if missing:
            self.wrong.append(f"{missing[0]} is missing, which should start our {ours}")
            return
        self.account.loaded[ours] = tuple(theirs)
        made = make([self.tensors[name] for name in theirs], self.own[ours].detach())
        if made.shape != self.own[ours].shape:
            self.wrong.append(f"{theirs[0]} gives {list(made.shape)}, and our {ours} is {list(self.own[ours].shape)}")
        self.values[ours] = made

    def _positions(self, given: list[Tensor], own_PE: Tensor) -> Tensor:
        """Their rows from the first token's on; rows before it, which no token takes, only where both have as many."""
        wanted = self.model.config.text.max_length
        first, theirs = len(own_PE) - wanted, self.pretrained.first_position
        before = given[0][:theirs] if first == theirs else own_PE[:first]
        return torch.cat([before, self._places(given[0][theirs:], own_PE[first:])])

    def _places(self, rows_PE: Tensor, own_PE: Tensor) -> Tensor:
        wanted = len(own_PE)
        if wanted <= len(rows_PE):
            return rows_PE[:wanted]
        match self.wanted.more_positions:
            case "interpolate":
                stretched = F.interpolate(rows_PE.float().T[None], size=wanted, mode="linear", align_corners=True)
                return stretched[0].T
            case "repeat":
                return rows_PE.repeat(-(-wanted // len(rows_PE)), 1)[:wanted]
            case "new":
                return _rows([rows_PE], own_PE)
        self.wrong.append(
            f"it has {len(rows_PE)} positions, and model.text.max_length is {wanted} (say how to start the others: "
            f"{KEY}.more_positions)"
        )
        return own_PE

    def _leave(self, start: str, reason: str) -> None:
        """Account for what begins so as unused."""
        if start:
            self.account.unused |= {name: reason for name in self.tensors if name.startswith(f"{start}.")}

    def _same(self, what: str, ours: Any, theirs: Any) -> None:
        if ours != theirs:
            self.wrong.append(f"{what} is {ours}, and theirs is {theirs}")


def _rows(given: list[Tensor], own: Tensor) -> Tensor:
    """Theirs row by row; rows that only we have stay new, rows that only they have are left."""
    rows = min(len(own), len(given[0]))
    if own.shape[1:] != given[0].shape[1:]:
        return given[0]  # to be refused
    return torch.cat([given[0][:rows].to(own.dtype), own[rows:]])


def _segments(given: list[Tensor], own: Tensor) -> Tensor:
    """Theirs row by row; rows that only we have start as their last one."""
    missing = max(0, len(own) - len(given[0]))
    return torch.cat([given[0][: len(own)], given[0][-1:].repeat(missing, 1)])


def _text_blocks(model: Network) -> Iterator[tuple[int, Block]]:
    """The blocks in which text looks at text, with their numbers."""
    for number, block in enumerate(model.encoder.blocks):
        assert isinstance(block, Block)
        if "text" in block.config.streams and {"self", "joint"} & set(block.sublayers):
            yield number, block
