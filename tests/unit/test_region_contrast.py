"""Telling a region's feature from others'."""

import torch

from vlp.objectives.region_contrast import contrast


def test_cross_entropy_of_the_true_feature_among_the_negatives() -> None:
    scores = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    true, negatives = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]])
    products = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    torch.testing.assert_close(contrast(scores, true, negatives), -products.log_softmax(1)[:, 0])
    assert contrast(scores.bfloat16(), true, negatives).dtype == torch.float32
    assert contrast(scores[:0], true[:0], negatives[:0]).shape == (0,)
