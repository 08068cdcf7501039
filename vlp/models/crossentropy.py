"""Cross entropy of a linear's scores without ever holding them all: the vocabulary's, where many words are guessed.

Of 4096 guessed words and a vocabulary of 30,522 the scores, their softmax and its gradient are 500 MB each in fp32.
Here a part of the rows is scored at a time and its gradients are made at once, so that nothing is worked out twice:
what stays for backward is the gradient of the rows and that of the weight. Source: Hsu et al. 2024 (arXiv 2410.10989),
section 3.2.

Shape suffixes: K rows; H their width; V classes; P rows of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.models.kernels import product_type
from vlp.models.linear import linear

MOST = 1 << 24
"""Scores that are held at once: 64 MB in fp32, of 549 rows and 30,522 classes."""


def few(rows: int, classes: int) -> bool:
    """Whether all scores can be held at once."""
    return rows * classes <= MOST


def linear_cross_entropy(
    x_KH: Tensor, weight_VH: Tensor, bias_V: Tensor, labels_K: Tensor, factor_K: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross entropy of `linear(x, weight, bias)`, and how many rows score their label highest.

    Args:
        factor_K: what each row's loss is multiplied by, fp32; 1 if not given. No gradient runs to it.
    Returns:
        the sum over rows (a scalar, fp32 at least) and the number of right rows (int64).
    """
    if factor_K is None:
        factor_K = torch.ones(len(labels_K), device=x_KH.device)
    if not torch.is_grad_enabled():  # which forward is not told: it would make gradients for nobody
        x_KH, weight_VH, bias_V = x_KH.detach(), weight_VH.detach(), bias_V.detach()
    return _LinearCrossEntropy.apply(x_KH, weight_VH, bias_V, labels_K, factor_K)  # type: ignore[no-any-return]


class _LinearCrossEntropy(torch.autograd.Function):
    """Makes gradients in forward as if that of the loss were 1; backward multiplies them by what it is."""

    @staticmethod
    def forward(
        ctx: Any, x_KH: Tensor, weight_VH: Tensor, bias_V: Tensor, labels_K: Tensor, factor_K: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.kinds = [t.dtype for t in (x_KH, weight_VH, bias_V)]
        x_KH, weight_VH, bias_V = (t.to(product_type(t)) for t in (x_KH, weight_VH, bias_V))
        exact = torch.promote_types(x_KH.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=x_KH.device)
        right = torch.zeros((), dtype=torch.int64, device=x_KH.device)
        sums = _Gradients(x_KH, weight_VH, bias_V, ctx.needs_input_grad[:3], exact)
        rows = max(1, MOST // len(weight_VH))
        for start in range(0, len(x_KH), rows):
            part = slice(start, start + rows)
            labels_P = labels_K[part]
            logs_PV = linear(x_KH[part], weight_VH, bias_V).to(ctx.kinds[0]).to(exact)
            right += (logs_PV.argmax(1) == labels_P).sum()
            logs_PV = logs_PV.log_softmax(1)
            total += (F.nll_loss(logs_PV, labels_P, reduction="none") * factor_K[part]).sum()
            if any(ctx.needs_input_grad):
                of_scores_PV = logs_PV.exp_()
                of_scores_PV[torch.arange(len(labels_P), device=labels_P.device), labels_P] -= 1
                sums.add(part, of_scores_PV.mul_(factor_K[part, None]))
        ctx.save_for_backward(sums.x_KH, sums.weight_VH, sums.bias_V)
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = zip(ctx.saved_tensors, ctx.kinds, strict=True)
        return *(None if t is None else (t * grads[0]).to(kind) for t, kind in found), None, None


class _Gradients:
    """Those of the rows, the weight and the bias, as far as they are wanted; the last two are sums in `exact`."""

    def __init__(
        self, x_KH: Tensor, weight_VH: Tensor, bias_V: Tensor, wanted: Sequence[bool], exact: torch.dtype
    ) -> None:
        # fp16 has no number below 6e-8, and a share of one word among 30,000 lies near it.
        self._kind = torch.float32 if x_KH.dtype == torch.float16 else x_KH.dtype
        self._rows_KH, self._table_VH = x_KH, weight_VH
        self.x_KH = torch.empty_like(x_KH, dtype=self._kind) if wanted[0] else None
        self.weight_VH = torch.zeros_like(weight_VH, dtype=exact) if wanted[1] else None
        self.bias_V = torch.zeros_like(bias_V, dtype=exact) if wanted[2] else None

    def add(self, part: slice, of_scores_PV: Tensor) -> None:
        """What the gradient of a part's scores makes of them."""
        if self.bias_V is not None:
            self.bias_V += of_scores_PV.sum(0)
        of_scores_PV = of_scores_PV.to(self._kind)
        if self.x_KH is not None:
            self.x_KH[part] = linear(of_scores_PV, self._table_VH.to(self._kind).T)
        if self.weight_VH is not None:
            rows_PH = self._rows_KH[part].to(self._kind)
            if self.weight_VH.dtype == self._kind:
                self.weight_VH.addmm_(of_scores_PV.T, rows_PH)
            else:
                self.weight_VH += of_scores_PV.T @ rows_PH
