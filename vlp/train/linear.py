"""torch's linear, which DeepSpeed replaces for the whole process at ZeRO stage 3 and does not put back."""

from __future__ import annotations

import torch

_OWN = torch.nn.functional.linear


def own_linear() -> None:
    """Put torch's own linear back.

    DeepSpeed's multiplies in another order where a weight is used transposed, as by a head that is tied to an embedding
    of features: a run at another stage that follows in the same process would leave its twin by a last bit.
    """
    torch.nn.functional.linear = _OWN
