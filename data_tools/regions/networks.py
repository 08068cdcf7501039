"""What makers of region features share: weights from files, their fingerprint, the device, photos decoded ahead."""

from __future__ import annotations

import hashlib
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vlp.data.imagefile import ImageFault
from vlp.data.samples import Fault
from vlp.errors import ConfigError

_SEED = 0
"""Of untrained weights: a run that is continued must have the same."""

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` takes a GPU if there is one.

    Raises:
        ConfigError: no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name}: {str(error).splitlines()[0]}; say cpu, cuda, cuda:1, or auto") from None
    return device


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name: safetensors, or a state dict that `torch.save` wrote. Runs no code of it.

    Raises:
        ConfigError: not such a file.
    """
    wanted = "give a .safetensors file, or a state dict that torch.save wrote"
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"--weights {path}: no such file") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--weights {path}: cannot be read ({reason}); {wanted}") from None
    for name in ("model", "state_dict"):  # as training scripts put it beside the optimizer's
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"--weights {path}: holds no state dict; {wanted}")
    return {str(name): value for name, value in state.items()}


def load_into(network: nn.Module, state: dict[str, Tensor], path: Path, network_name: str) -> None:
    """Load weights, all of them and no others.

    Raises:
        ConfigError: missing or surplus tensors, or of another shape; the first names are given.
    """
    # Counters of batch norms are in some files and not in others; nothing reads them.
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    own = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is surplus" for name in state if name not in own]
    wrong += [
        f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise ConfigError(f"--weights {path}: does not fit {network_name}: {'; '.join(wrong[:3])}")
    network.load_state_dict(state, strict=False)


def made_untrained(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        return make()


def fingerprint(network: nn.Module) -> str:
    """BLAKE2b over names, types and numbers of a network's weights, 16 bytes in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(network.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def decoded(decode: Callable[[], _Made]) -> _Made | Fault:
    """What a decoding of an image gives, or what is wrong with the image."""
    try:
        return decode()
    except Fault as fault:
        # Without Pillow's words, of which there are many: a report counts by reason.
        return Fault(fault.member, fault.reason.partition(" (")[0])
    except ImageFault as error:
        return Fault("image", str(error))
    except Exception:  # Pillow's parsers raise whatever they stumble over
        return Fault("image", "does not decode")


def ahead(make: Callable[[_Item], _Made], items: Iterable[_Item], threads: int) -> Iterator[_Made]:
    """`make` of each item, in order, made by threads a few items before it is asked for.

    Decoding releases Python's lock, so the network does not wait for photos.
    """
    waiting: deque[Future[_Made]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
