"""Parts of a model that are called past the model, and inputs that cannot be explained: told of, never silent."""

import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import lrphooks
from lrphooks import Composite, LRPError
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon, Pass
from small_networks import equal, relevance

EPSILON = Composite([(AnyLinear, Epsilon(0.1))])


class Net(nn.Module):
    """A stem and a head, as vision models have them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5)), nn.Linear(5, 3)
        self.double()

    def forward_features(self, x):
        return self.stem(x)

    def forward(self, x):
        return self.head(self.forward_features(x).tanh())


X = torch.linspace(-1, 1.5, 8, dtype=torch.float64).reshape(2, 4)
H = torch.linspace(-1, 1.5, 10, dtype=torch.float64).reshape(2, 5)


@pytest.fixture
def net():
    return Net()


def leaf(x=X):
    return x.clone().requires_grad_()


@pytest.mark.parametrize(
    "call",
    [
        lambda net, x: net.forward(x),
        lambda net, x: net.head(net.forward_features(x)),
        lambda net, x: net.stem[0](x),
        lambda net, x: net.stem(x * 2.0),
        lambda net, x: nn.Sequential(net)[0].forward(x),
    ],
    ids=["forward", "methods", "layer", "of a value", "forward of a part"],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_called_past_the_model_is_refused(net, call, frozen):
    net.requires_grad_(not frozen)
    message = r"module '(stem\.0|head)' \(Linear\) was called inside a context on the whole model \(Net\).*model\(x\)"
    with pytest.raises(LRPError, match=message), EPSILON.context(net):
        call(net, leaf())
    # A wrapper around the model that goes past its call.
    wrapper = nn.Sequential(net)
    wrapper.forward = lambda x: net.forward(x)
    with pytest.raises(LRPError, match=message), EPSILON.context(net):
        wrapper(leaf())


def test_a_value_that_is_to_have_a_gradient_counts_too(net):
    with EPSILON.context(net):
        hidden = net.stem(X)
        hidden.retain_grad()
        with pytest.raises(LRPError, match="'head'"):
            net.head(hidden)


def test_a_module_with_a_rule_of_its_own_is_a_layer(net):
    net.stem[1] = nn.Tanh()
    composite = Composite([("stem.1", Pass()), *EPSILON.entries])
    with pytest.raises(LRPError, match=r"'stem\.1' \(Tanh\)"), composite.context(net):
        net.stem[1](leaf(H))


class Other(nn.Module):
    """Another model that shares layers."""

    def __init__(self, stem):
        super().__init__()
        self.stem, self.out = stem, nn.Linear(5, 2).double()

    def forward(self, x):
        return self.out(self.stem(x))


class Squared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4).double()

    def forward(self, weight):
        return self.layer(weight)


def test_no_false_alarms(net):
    """What goes on beside the explanation is nobody's business."""
    other = Other(net.stem)
    parametrize.register_parametrization(net.stem[0], "weight", Squared())
    before = leaf()
    explained_later = checkpoint(net.stem, before, use_reentrant=False)
    expected = relevance(EPSILON, net, X)
    plain = torch.autograd.grad(other(probe := leaf()).sum(), probe)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with EPSILON.context(net):
            with torch.no_grad():
                net.stem(leaf())
                assert net.forward_features(X).shape == (2, 5)
            # Parameters require a gradient, but nobody gave a value to explain.
            hidden = net.head(net.stem(X))
            assert net.stem[0].weight.shape == (5, 4)
            # A hidden value that is explained by another context.
            net.stem[1](leaf(H))
            found = leaf()
            other(found).sum().backward()
            # A checkpoint of before runs again.
            explained_later.sum().backward()
            y = leaf()
            output = net(y)
            output.backward(torch.ones_like(output))
        hidden.sum().backward()
    equal(found.grad, plain)
    reference = leaf()
    with EPSILON.context(net):
        output = net(reference)
    output.sum().backward()
    equal(y.grad, reference.grad)
    assert expected.isfinite().all()


def test_a_part_under_a_context_of_its_own_is_explained(net):
    expected = relevance(EPSILON, net.head, H)
    y = leaf(H)
    with EPSILON.context(net), EPSILON.context(net.head):
        output = net.head(y)
        output.backward(torch.linspace(-1, 1.5, 6, dtype=torch.float64).reshape(2, 3) * 0 + 1)
        net(leaf())
    again = leaf(H)
    with EPSILON.context(net.head):
        net.head(again).sum().backward()
    equal(y.grad, again.grad)
    assert expected.shape == H.shape


# --- an input that the model's own layers made ---


def test_an_input_made_by_layers_of_the_model_is_refused(net):
    """An encoder that was run before the whole."""

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, hidden=None):
            return self.net.head((self.net.stem(x) if hidden is None else hidden).tanh())

    whole = Whole()
    hidden = whole.net.stem(leaf())
    message = r"of shape \(2, 5\), was computed by layers of the same model.*x\.detach\(\)\.requires_grad_\(\)"
    with EPSILON.context(whole), pytest.raises(LRPError, match=message):
        whole(None, hidden)
    # From there on it is a leaf, and explained.
    rest = hidden.detach().requires_grad_()
    with EPSILON.context(whole):
        whole(None, rest).sum().backward()
    head = leaf(hidden.detach())
    with EPSILON.context(top := nn.Sequential(nn.Tanh(), net.head)):
        top(head).sum().backward()
    equal(rest.grad, head.grad)


def test_an_input_of_other_making_is_explained(net):
    """What is behind it is left out: a value from elsewhere, and embeddings that the model itself looks up."""
    expected = leaf(X * 2.0)
    raw = leaf()
    with EPSILON.context(net):
        net(expected).sum().backward()
        made = raw * 2.0
        (found,) = torch.autograd.grad(net(made).sum(), made)
    equal(found, expected.grad)

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.net = nn.Embedding(7, 4, dtype=torch.float64), net

        def forward(self, embeds):
            return self.net(embeds).sum(1)

    words = Words()
    ids = torch.tensor([[1, 2, 3]])
    reference = leaf(words.embedding(ids).detach())
    with EPSILON.context(words):
        words(reference).sum().backward()
        embeds = words.embedding(ids)
        (found,) = torch.autograd.grad(words(embeds).sum(), embeds)
    equal(found, reference.grad)


class Cached(nn.Module):
    """Keeps what it computed for the next call, as caches of keys and values do, in an object of its own."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()

    def forward(self, x, cache):
        h = self.layer(x)
        if cache.past is not None:
            h = torch.cat([cache.past, h])
        cache.past = h
        return self.head(F.relu(h)).sum(0, keepdim=True)


def test_values_of_an_earlier_pass_are_refused():
    model, cache = Cached(), types.SimpleNamespace(past=None)
    with EPSILON.context(model):
        model(leaf(), cache)
        with pytest.raises(LRPError, match=r"an earlier forward pass of an explained model computed.*cache of keys"):
            model(leaf(), cache)
        # Detached, they are a constant: as one that was computed without rules.
        cache.past = model.layer(X).detach()
        y = leaf()
        model(y, cache).sum().backward()
    z = leaf()
    with EPSILON.context(model):
        model(z, types.SimpleNamespace(past=model.layer(X).detach())).sum().backward()
    equal(y.grad, z.grad)


# --- inputs of no use ---


class Data:
    """As the graphs of graph networks: attributes that are kept in a dict inside."""

    def __init__(self, **values):
        self.__dict__["_store"] = types.SimpleNamespace(mapping=values)

    def __getattr__(self, name):
        try:
            return self.__dict__["_store"].mapping[name]
        except KeyError:
            raise AttributeError(name) from None


class Encoding:
    def __init__(self, **values):
        self.data = values


class OfObject(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3).double()

    def forward(self, data):
        return self.layer(data.x)


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda x: Data(x=x, edge_index=torch.zeros(2, 3)), r"Data\.x"),
        (lambda x: types.SimpleNamespace(x=x), r"SimpleNamespace\.x"),
        (lambda x: Encoding(x=x, mask=torch.ones(2)), r"Encoding\.data\['x'\]"),
    ],
    ids=["graph", "namespace", "encoding"],
)
def test_an_object_that_holds_what_requires_a_gradient(make, name, keyword):
    model, data = OfObject(), make(leaf())
    message = (
        rf"No input of the model requires a gradient itself, but a .* holds tensors that do: {name}\. .*model\({name}"
    )
    with EPSILON.context(model), pytest.raises(LRPError, match=message):
        model(data=data) if keyword else model(data)
    with pytest.raises(TypeError, match=rf"x must be a tensor.*got {type(data).__name__}.*holds {name}"):
        lrphooks.lrp(model, data, 0, EPSILON)


def test_tensors_without_values_of_their_own():
    model = nn.Linear(4, 3)
    meta = torch.empty(2, 4, device="meta")
    with pytest.raises(LRPError, match=r"meta tensors, which have no values.*Load"):
        lrphooks.lrp(model, meta, 0)
    with pytest.raises(LRPError, match=r"the model has parameters that are meta tensors"):
        lrphooks.lrp(nn.Linear(4, 3, device="meta"), torch.randn(2, 4), 0)
    with pytest.raises(LRPError, match=r"module 'inner' has parameters that are meta"):
        EPSILON.context(nn.ModuleDict({"inner": nn.Linear(4, 3, device="meta")})).__enter__()


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.filterwarnings("ignore:.*nested tensors.*prototype")
def test_nested_tensors(layout):
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=layout)
    with pytest.raises(LRPError, match=r"nested tensors, whose rows differ in shape.*to_padded_tensor"):
        lrphooks.lrp(nn.Linear(4, 3), nested, 0)


@pytest.fixture
def mesh(tmp_path):
    """A process group of this process alone."""
    distributed = pytest.importorskip("torch.distributed.tensor")
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_distributed_tensors(mesh):
    from torch.distributed.tensor import distribute_tensor

    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    with pytest.raises(LRPError, match=r"distributed tensors, of which each process.*full_tensor"):
        lrphooks.lrp(model, distribute_tensor(x, mesh), 0)
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh))
    with pytest.raises(LRPError, match=r"the model has parameters that are distributed tensors"):
        lrphooks.lrp(model, x, 0)
