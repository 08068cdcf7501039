"""States and attention weights on a network's way, caught by hooks while it runs; results stay what they are.

Shape suffixes: N text tokens, M image tokens, J = T + M tokens of one example; A heads; S attention sublayers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlp.errors import ConfigError
from vlp.features.kinds import Feature
from vlp.models.attention import Looked, watched
from vlp.models.encoder import Sublayer
from vlp.models.model import Network
from vlp.models.streams import States
from vlp.types import Batch, Packing

_ATTENTION = ("self", "cross", "joint")


@dataclass
class Caught:
    """What one forward left behind."""

    layers: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """Packed states of a stream behind so many blocks, by (stream, number)."""
    sublayers: list[list[Looked]] = field(default_factory=list)
    """Who looked at whom, by attention sublayer in running order (one on two streams looks twice)."""


@contextmanager
def caught(network: Network, features: Sequence[Feature]) -> Iterator[Caught]:
    """Catch what the features need of the forwards within it (the last one stays)."""
    found = Caught()
    numbers = {one.number for one in features if one.name.split(".")[-2:-1] == ["layer"]}
    with ExitStack() as stack:
        if numbers:
            for hook in _layer_hooks(network, numbers, found):
                stack.callback(hook.remove)
        if any(one.form == "map" for one in features):
            for hook in _sublayer_hooks(network, found):
                stack.callback(hook.remove)
            stack.enter_context(watched(lambda looked: found.sublayers[-1].append(looked)))
        yield found


def check_numbers(network: Network, features: Sequence[Feature]) -> None:
    """Refuse layers and attention sublayers that the network does not have.

    Raises:
        ConfigError: the name and what there is are given.
    """
    runs = network.encoder.order
    attention = sum(name in _ATTENTION for block in runs for name in block.sublayers)
    for one in features:
        most = attention if one.form == "map" else len(runs)
        if one.number is not None and one.number > most:
            what = "attention sublayers" if one.form == "map" else "blocks"
            raise ConfigError(f"--what: '{one.name}' cannot be extracted: the model has {most} {what}")


def _layer_hooks(network: Network, numbers: set[int | None], found: Caught) -> Iterator[Any]:
    done = 0

    def keep(states: States) -> None:
        if done in numbers:
            for stream, state in states.apart().items():
                found.layers[stream, done] = state

    def begin(_: object, given: tuple[Tensor, Tensor, Batch]) -> None:
        nonlocal done
        done = 0
        found.layers.clear()
        keep(States(*given))

    def behind(_: object, given: tuple[States], __: object) -> None:
        nonlocal done
        done += 1
        keep(given[0])

    yield network.encoder.register_forward_pre_hook(begin)
    for block in network.encoder.blocks:
        yield block.register_forward_hook(behind)


def _sublayer_hooks(network: Network, found: Caught) -> Iterator[Any]:
    yield network.encoder.register_forward_pre_hook(lambda *_: found.sublayers.clear())
    for module in network.encoder.modules():
        if isinstance(module, Sublayer) and module.name in _ATTENTION:
            yield module.register_forward_pre_hook(lambda *_: found.sublayers.append([]))


def maps(caught: Caught, batch: Batch, number: int | None) -> list[Tensor]:
    """Per example the attention over its text's and then its image's tokens: a row of a map is who looks, a column at
    whom, zero where a sublayer does not let it.

    Args:
        number: one sublayer with all its heads, [A, J, J]; None for all sublayers with the mean over heads, [S, J, J].
    """
    if number is not None:
        return _laid_out(caught.sublayers[number - 1], batch)
    by_sublayer = [_laid_out(each, batch, mean=True) for each in caught.sublayers]
    return [torch.cat(parts) for parts in zip(*by_sublayer, strict=True)]


def _laid_out(looks: Sequence[Looked], batch: Batch, *, mean: bool = False) -> list[Tensor]:
    """One sublayer's maps, [A, J, J], or [1, J, J] where `mean`; a stream with fewer heads leaves zeros."""
    weights = [(looked.weights_BALL.mean(1, keepdim=True) if mean else looked.weights_BALL).cpu() for looked in looks]
    heads = max(each.shape[1] for each in weights)
    sides = [(_in_image(one.queries, batch), _in_image(one.keys, batch)) for one in looks]
    text, result = batch.text.packing.lengths, []
    for example, length in enumerate(batch.joint.lengths):
        map_AJJ = torch.zeros(heads, length, length)
        for looked, weights_BALL, (queries_behind, keys_behind) in zip(looks, weights, sides, strict=True):
            row, column = (text[example] if behind else 0 for behind in (queries_behind, keys_behind))
            rows, columns = looked.queries.lengths[example], looked.keys.lengths[example]
            own_ALL = weights_BALL[example, :, :rows, :columns]
            map_AJJ[: len(own_ALL), row : row + rows, column : column + columns] = own_ALL
        result.append(map_AJJ)
    return result


def _in_image(packing: Packing, batch: Batch) -> bool:
    """Whether the tokens are the image's, which come behind the text's."""
    return packing is batch.image.packing
