"""Modified weights are kept between forward passes while the values they come from are the same, however changed."""

import pytest
import torch
from torch import nn

from counting import Work
from lrphooks import lrp
from lrphooks.engine import cache
from lrphooks.engine.cache import fingerprint
from lrphooks.engine.session import Session
from lrphooks.rules import AlphaBeta, Gamma, ZPlus
from small_networks import every_layer

RULES = [ZPlus(), Gamma(0.25), AlphaBeta(2, 1)]
#: The larger one has more values than are copied.
WIDTHS = [6, 160]


def small(width):
    layers = (
        nn.Conv2d(3, width, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(9 * width, 20),
    )
    nn.init.uniform_(layers[1].weight, 0.5, 1.5)
    layers[1].running_mean.normal_()
    return nn.Sequential(*layers).double().eval().requires_grad_(False), torch.randn(2, 3, 5, 5).double()


def explained(model, x):
    leaf = x.clone().requires_grad_()
    model(leaf).sum().backward()
    return leaf.grad


CHANGES = {
    "in place": lambda p: p.mul_(-1.5),
    "data": lambda p: p.data.mul_(-1.5),
    "a few values of data": lambda p: p.data.view(-1)[:60].add_(1.0),
    "swapped data": lambda p: p.data.copy_(p.data.flip(0)),
    "other data": lambda p: setattr(p, "data", p.data * -1.5),
    "numpy": lambda p: p.detach().numpy().__imul__(-1.5),
    "signs": lambda p: p.data.neg_(),
}


def test_a_weight_laid_out_anew_in_the_same_memory_is_seen():
    model = (
        nn.Sequential(nn.ReLU(), nn.Conv2d(3, 5, 3), nn.Conv2d(5, 3, 3), nn.Flatten()).double().requires_grad_(False)
    )
    x = torch.randn(2, 3, 7, 7).double()
    with every_layer(ZPlus()).context(model):
        before = explained(model, x)
        model[1].weight.data = model[1].weight.data.permute(0, 3, 1, 2)
        after = explained(model, x)
    with every_layer(ZPlus()).context(model):
        assert torch.equal(after, explained(model, x))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("place", ["0.weight", "1.weight", "1.running_mean", "4.weight", "4.bias"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_change_is_seen_by_the_next_pass(rule, width, place, change):
    model, x = small(width)
    composite = every_layer(rule)
    tensor = dict([*model.named_parameters(), *model.named_buffers()])[place]
    with composite.context(model):
        before = explained(model, x)
        assert torch.equal(explained(model, x), before)
        change(tensor)
        after = explained(model, x)
    with composite.context(model):
        expected = explained(model, x)
    assert torch.equal(after, expected)
    assert not torch.equal(after, before), "this case changes nothing"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_an_unchanged_weight_is_modified_once(rule, width):
    model, x = small(width)
    with every_layer(rule).context(model):
        counts = []
        for _ in range(3):
            with Work() as work:
                explained(model, x)
            counts.append(sum(work.operations.get(name, 0) for name in ("clamp", "rsqrt", "abs")))
    assert counts[1] == counts[2] < counts[0]


def test_nothing_is_kept_after_the_context():
    model, x = small(6)
    context = every_layer(ZPlus()).context(model)
    with context:
        explained(model, x)
        assert context._weights.entries
    assert not context._weights.entries


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_single_call_takes_no_fingerprints(rule, monkeypatch):
    """There is no second pass to compare with. A second one that runs all the same computes its weights anew."""

    def refused(tensors):
        raise AssertionError("a fingerprint was taken")

    monkeypatch.setattr(cache, "fingerprint", refused)
    model, x = small(160)
    assert lrp(model, x, 0, every_layer(rule)).any()
    with Session(every_layer(rule), model, once=True):
        explained(model, x)
        model[4].weight.data.neg_()
        found = explained(model, x)
    with Session(every_layer(rule), model, once=True):
        assert torch.equal(explained(model, x), found)


def test_fingerprints_tell_values_apart():
    for size in (10, 1 << 14, (1 << 14) + 1, 100_003):
        weight, beside = torch.randn(size), torch.randn(3)
        (print_,) = fingerprint([weight, beside])
        assert torch.equal(print_, fingerprint([weight.clone(), beside.clone()])[0])
        assert print_.numel() <= max(1 << 14, size // 10) + 3
        for index in (0, size // 2, size - 1):
            other = weight.clone()
            other[index] += 0.01
            assert not torch.equal(print_, fingerprint([other, beside])[0])
        assert not torch.equal(print_, fingerprint([-weight, beside])[0])
        assert not torch.equal(print_, fingerprint([weight.flip(0), beside])[0])
        assert not torch.equal(print_, fingerprint([weight, -beside])[0])


def test_fingerprints_of_several_dtypes():
    weight, gain = torch.randn(4, 3), torch.randn(4, dtype=torch.float64)
    print_ = fingerprint([weight, gain])
    assert [each.dtype for each in print_] == [torch.float32, torch.float64]
    assert torch.equal(torch.cat([each.double() for each in print_]), torch.cat((weight.double().flatten(), gain)))


def test_what_has_no_fingerprint():
    for weight in (torch.randn(200, 200).half(), torch.randn(400, 200)[:, ::2], torch.randn(3, 4).to_sparse()):
        assert fingerprint([torch.randn(3), weight]) is None
