"""Cross entropy of a linear a part of the rows at a time: the loss and the gradients of all of them at once."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.unit.task_making import example, facts, hidden
from vlp.data.batch import WEIGHT
from vlp.models import crossentropy
from vlp.models.crossentropy import linear_cross_entropy
from vlp.models.heads import Head, VocabularyHead
from vlp.objectives.mlm import MaskedLanguage, MaskedLanguageConfig
from vlp.seeds import draw
from vlp.types import Encoded, Targets

ROWS, WIDTH, CLASSES = 13, 6, 20


@pytest.fixture(params=[1, 5 * CLASSES, 1 << 24], ids=["a row", "five rows, the last part shorter", "all"])
def most(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(crossentropy, "MOST", request.param)
    return int(request.param)


def made(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows, weight, bias, labels."""
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=draw).to(dtype) for shape in ((ROWS, WIDTH), (CLASSES, WIDTH), (CLASSES,))]
    return *(t.requires_grad_() for t in tensors), torch.randint(CLASSES, (ROWS,), generator=draw)  # type: ignore[return-value]


def plain(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, factor: Tensor | float = 1.0) -> Tensor:
    scores = F.linear(x, weight, bias)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return (F.cross_entropy(scores, labels, reduction="none") * factor).sum()


@pytest.mark.usefixtures("most")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_loss_and_gradients_are_those_of_all_rows_at_once(dtype: torch.dtype) -> None:
    *tensors, labels = made(dtype)
    factor = torch.rand(ROWS, generator=torch.Generator().manual_seed(1))
    total, right = linear_cross_entropy(*tensors, labels, factor)  # type: ignore[misc, arg-type]
    wanted = plain(*tensors, labels, factor)  # type: ignore[misc, arg-type]
    near = {"atol": 1e-12, "rtol": 1e-12} if dtype == torch.float64 else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(total, wanted, **near)
    assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert right == (F.linear(*tensors).argmax(1) == labels).sum()
    found = torch.autograd.grad(3 * total, tensors)
    near = near if dtype.itemsize > 2 else {"atol": 5e-2, "rtol": 5e-2}
    for own, other in zip(found, torch.autograd.grad(3 * wanted, tensors), strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own, other, **near)


@pytest.mark.usefixtures("most")
def test_what_needs_no_gradient_gets_none() -> None:
    x, weight, bias, labels = made()
    total, _ = linear_cross_entropy(x, weight.detach(), bias, labels)
    _, of_weight, _ = total.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert of_weight is None
    total.backward()
    wanted = torch.autograd.grad(plain(x, weight.detach(), bias, labels), (x, bias))
    torch.testing.assert_close((x.grad, bias.grad), wanted)


def test_evaluation_makes_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias, labels = made()
    monkeypatch.setattr(crossentropy._Gradients, "add", None)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            torch.testing.assert_close(linear_cross_entropy(x, weight, bias, labels)[0], plain(x, weight, bias, labels))


def test_of_no_rows_it_is_zero_and_so_are_the_gradients() -> None:
    x, weight, bias, labels = made()
    total, right = linear_cross_entropy(x[:0], weight, bias, labels[:0])
    total.backward()
    assert (total, right) == (0, 0)
    for gradient in (x.grad, weight.grad, bias.grad):
        assert gradient is not None
        assert not gradient.any()


def test_scores_are_held_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossentropy, "MOST", 5 * CLASSES)
    sizes = []
    linear = crossentropy.linear
    monkeypatch.setattr(crossentropy, "linear", lambda x, *rest: sizes.append(len(x)) or linear(x, *rest))
    with torch.no_grad():
        linear_cross_entropy(*made())
    assert sizes == [5, 5, 3]


@pytest.mark.parametrize("average", ["targets", "examples"])
def test_an_objective_takes_it_where_scores_would_be_many(average: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = MaskedLanguage("mlm", MaskedLanguageConfig.parse({"average": average}), facts())
    target = objective.target(hidden(example(words=40)), draw(0, "t"))
    torch.manual_seed(0)
    table = torch.nn.Embedding(facts().text.vocab_size, WIDTH)
    head = Head(VocabularyHead(), WIDTH, 1e-12, table)
    values = {name: torch.from_numpy(value) for name, value in target.values.items()}
    targets = Targets(torch.from_numpy(target.positions), values, 1.0)
    states = torch.randn(42, WIDTH)
    encoded = Encoded(states, states[:0], states[:0])
    whole, metrics = objective.judged(head, encoded, targets)
    wanted = torch.autograd.grad(whole, list(head.parameters()) + list(table.parameters()))
    monkeypatch.setattr(crossentropy, "MOST", 1)
    monkeypatch.setattr(objective, "loss", None)  # not by way of all scores
    parts, own = objective.judged(head, encoded, targets)
    torch.testing.assert_close(parts, whole)
    assert {name: tuple(map(float, pair)) for name, pair in own.items()} == {
        name: tuple(map(float, pair)) for name, pair in metrics.items()
    }
    found = torch.autograd.grad(parts, list(head.parameters()) + list(table.parameters()))
    torch.testing.assert_close(found, wanted)
    assert average == "targets" or WEIGHT in values
