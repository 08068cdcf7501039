"""How far each parameter lies below the heads: for learning rates that fall layer by layer."""

from __future__ import annotations

from vlp.models.encoder import Block
from vlp.models.model import Network


def heights(model: Network) -> dict[str, int]:
    """Layers between a parameter and the heads, by the parameter's name.

    Heads and pooler have 0, a stream's last block 1, the block before it in that stream 2; a block of both streams
    lies below whatever follows in either. An embedding is one layer below its stream's first block.
    """
    top = {"text": 0, "image": 0}
    found: dict[str, int] = {}
    for number in reversed(range(len(model.encoder.blocks))):
        block = model.encoder.blocks[number]
        assert isinstance(block, Block)
        height = 1 + max(top[stream] for stream in block.config.streams)
        top |= dict.fromkeys(block.config.streams, height)
        found[f"encoder.blocks.{number}."] = height
    found |= {"text.": top["text"] + 1, "image.": top["image"] + 1}
    names = (name for name, _ in model.named_parameters())
    return {name: next((height for start, height in found.items() if name.startswith(start)), 0) for name in names}
