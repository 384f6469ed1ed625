"""A context leaves the forward value, the model and the rest of the program as they are, whatever goes wrong in it."""

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from lrphooks import Composite, LRPError, composites
from lrphooks.matching import AnyLinear
from lrphooks.rules import AlphaBeta, Epsilon, Gamma, Pass, ZPlus
from small_networks import NETWORKS, PRESETS, Vgg, network, on_first, relevance, weighting

EPSILON = Composite([(AnyLinear, Epsilon())])


def snapshot(model):
    """Everything of a model that a context must leave alone, comparable with ``==``."""
    modules = {}
    for name, module in model.named_modules():
        hooks = {k: [(i, id(f)) for i, f in v.items()] for k, v in vars(module).items() if k.endswith("_hooks")}
        flags = {k: sorted(v) for k, v in vars(module).items() if "_with_kwargs" in k or "always_called" in k}
        inplace = getattr(module, "inplace", None)
        modules[name] = (id(module), type(module), sorted(vars(module)), hooks, flags, module.training, inplace)
    tensors = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        data = tensor.detach().clone().numpy().tobytes()
        grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.numpy().tobytes())
        extra = sorted(vars(tensor))
        tensors[name] = (id(tensor), tensor.data_ptr(), data, tensor.requires_grad, tensor.is_leaf, grad, extra)
    return modules, tensors, list(model.state_dict())


def alone(act, *args):
    """Run a function in a thread of its own, so that what it leaves behind there disturbs no other test."""

    def task():
        act(*args)
        assert not _get_current_function_mode_stack(), "a function mode of the context is still active"

    with ThreadPoolExecutor(1) as pool:
        pool.submit(task).result()


# --- the forward value -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NETWORKS)
def test_forward_is_bit_identical_under_every_preset(name, train):
    """Same bits as the plain model, and the same buffers after: running statistics, random state."""
    for preset, make in PRESETS.items():
        model, x = network(name, dtype=torch.float32, train=train)
        twin = copy.deepcopy(model)
        torch.manual_seed(7)
        expected = twin(x.clone().requires_grad_())
        state = torch.get_rng_state()
        torch.manual_seed(7)
        with make().context(model):
            found = model(x.clone().requires_grad_())
        assert torch.equal(found, expected), preset
        assert torch.equal(torch.get_rng_state(), state), preset
        for (key, buffer), other in zip(model.named_buffers(), twin.buffers(), strict=True):
            assert torch.equal(buffer, other), (preset, key)


@pytest.mark.parametrize("rule", [Gamma(), AlphaBeta(2, 1), ZPlus()], ids=repr)
@pytest.mark.parametrize("frozen", [False, True])
def test_forward_is_bit_identical_for_odd_inputs(rule, frozen):
    """Strided, transposed, expanded, unbatched and channels-last inputs."""
    torch.manual_seed(0)
    conv, dense = nn.Conv2d(3, 4, 3).requires_grad_(not frozen), nn.Linear(6, 5).requires_grad_(not frozen)
    cases = [
        (conv, torch.randn(2, 3, 8, 16)[..., ::2]),
        (conv, torch.randn(2, 8, 8, 3).permute(0, 3, 1, 2)),
        (conv, torch.randn(3, 8, 8)),
        (conv, torch.randn(1, 3, 8, 8).expand(4, -1, -1, -1)),
        (dense, torch.randn(6, 7).t()),
        (dense, torch.randn(2, 3, 4, 6)),
        (dense, torch.randn(6)),
    ]
    for model, x in cases:
        x.requires_grad_()
        expected = model(x)
        with Composite([(AnyLinear, rule)]).context(model):
            found = model(x)
        assert torch.equal(found, expected), tuple(x.shape)
        found.sum().backward()
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("preset", [composites.EpsilonPlusFlat, composites.EpsilonAlpha2Beta1Flat])
def test_dropout_before_an_input_rule_is_drawn_once(preset):
    """Relevance that goes past the input's dropout draws no other mask: the random state stays in step."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 30), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30, 4)).double()
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    x.requires_grad_()
    with preset().context(model):
        output = model(x)
        output.sum().backward()
    assert torch.equal(output, expected)
    assert x.grad.isfinite().all()


def test_one_tensor_given_twice_stays_one_tensor():
    """Self-attention, which computes by another path where query, key and value are the same object."""
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 5, 8, requires_grad=True)
    expected = model(x, x, x)[0]
    with composites.AttnLRP().context(model):
        found = model(x, x, x)[0]
    assert torch.equal(found, expected)


# --- the model as found ----------------------------------------------------------------------------------------


class BoomError(Exception):
    pass


class Raises(nn.Module):
    def __init__(self, error=BoomError):
        super().__init__()
        self.inner, self.error = Vgg(), error

    def forward(self, x):
        self.inner.features(x)
        raise self.error


def use(composite, model, x):
    with composite.context(model):
        model(x).sum().backward()


def body_raises(model, x):
    with EPSILON.context(model):
        model(x).sum().backward()
        raise BoomError


def forward_raises(model, x):
    with EPSILON.context(model):
        model(torch.randn(2, 7, 8, 8, requires_grad=True))


def entry_raises(model, x):
    with Composite([("features.*", Epsilon()), ("clasifier.*", Epsilon())]).context(model):
        pass


def rule_raises(model, x):
    with Composite([("features", Pass()), (AnyLinear, Epsilon())]).context(model):
        model(x)


def no_gradient(model, x):
    with EPSILON.context(model), torch.no_grad():
        model(x)


HOOKS = {
    "forward_pre_hook": lambda m, hook: m.register_forward_pre_hook(hook),
    "forward_hook": lambda m, hook: m.register_forward_hook(hook),
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ["vgg", "residual", "gates"])
def test_the_model_is_left_as_found(name, preset):
    """Objects, bytes, gradients, flags, hooks and attributes, after two passes."""
    model, x = network(name, dtype=torch.float32)
    next(model.parameters()).requires_grad_(False)
    last = list(model.parameters())[-1]
    last.grad = torch.ones_like(last)
    model.register_forward_hook(lambda *_: None)
    before = snapshot(model)
    for _ in range(2):
        use(PRESETS[preset](), model, x.clone().requires_grad_())
    assert snapshot(model) == before


@pytest.mark.parametrize(
    "act", [body_raises, forward_raises, entry_raises, rule_raises, no_gradient], ids=lambda f: f.__name__
)
def test_the_model_is_left_as_found_after_an_error(act):
    """And it can be explained afterwards as if nothing had happened."""
    model, x = network("vgg", dtype=torch.float32)
    expected = relevance(EPSILON, copy.deepcopy(model), x)
    before = snapshot(model)

    def task():
        with pytest.raises((BoomError, RuntimeError, LRPError)):
            act(model, x.clone().requires_grad_())
        assert snapshot(model) == before
        assert torch.equal(relevance(EPSILON, model, x), expected)

    alone(task)


@pytest.mark.parametrize("where", ["", "features", "features.2", "classifier.3"])
@pytest.mark.parametrize("kind", HOOKS)
def test_the_model_is_left_as_found_after_a_hook_raises(kind, where):
    model, x = network("vgg", dtype=torch.float32)
    expected = relevance(EPSILON, copy.deepcopy(model), x)

    def hook(*_):
        raise BoomError

    handle = HOOKS[kind](model.get_submodule(where), hook)
    before = snapshot(model)

    def task():
        with EPSILON.context(model):
            with pytest.raises(BoomError):
                model(x.clone().requires_grad_())
            plain_autograd()
        assert snapshot(model) == before

    alone(task)
    handle.remove()
    assert torch.equal(relevance(EPSILON, model, x), expected)


def plain_autograd():
    """A hand-written SiLU has its true derivative, and no rule of a context."""
    y = torch.linspace(-2, 2, 5, requires_grad=True)
    (found,) = torch.autograd.grad((y * y.sigmoid()).sum(), y)
    s = y.detach().sigmoid()
    torch.testing.assert_close(found, s + y.detach() * s * (1 - s))


@pytest.mark.parametrize("error", [BoomError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_nothing_stays_active_after_the_forward_is_interrupted(error):
    """Not only errors: a kernel that is interrupted in the middle of a forward pass goes on in the same process."""
    model = Raises(error)
    before = snapshot(model)

    def task():
        with pytest.raises(error), EPSILON.context(model):
            model(torch.randn(1, 3, 8, 8, requires_grad=True))
        assert snapshot(model) == before
        plain_autograd()

    alone(task)


@pytest.mark.parametrize("error", [BoomError, KeyboardInterrupt])
def test_an_interruption_may_be_caught_inside_the_context(error):
    model, x = network("vgg", dtype=torch.float32)
    expected = relevance(EPSILON, model, x)
    armed = [error]

    def hook(*_):
        if armed:
            raise armed.pop()

    model.features[2].register_forward_hook(hook)

    def task():
        with EPSILON.context(model):
            with pytest.raises(error):
                model(x.clone().requires_grad_())
            plain_autograd()
            y = x.clone().requires_grad_()
            output = model(y)
            output.backward(weighting(output))
        assert torch.equal(y.grad, expected)

    alone(task)


def test_an_optimizer_made_before_still_updates_the_model():
    model, x = network("residual")
    twin = copy.deepcopy(model)
    steps = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin)]
    use(composites.EpsilonPlus(), model, x.clone().requires_grad_())
    for m, step in zip((model, twin), steps, strict=True):
        m(x).square().sum().backward()
        step.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_graph_is_freed_with_its_output():
    """No reference cycle keeps activations until the garbage collector runs."""
    gc.disable()
    try:
        for name in NETWORKS:
            model, x = network(name)
            for preset, make in PRESETS.items():
                inside = []
                first = next(model.children(), model)
                handle = first.register_forward_hook(lambda m, a, out, to=inside: to.append(weakref.ref(out)))
                y = x.clone().requires_grad_()
                with make().context(model):
                    output = model(y)
                    output.sum().backward()
                inside += [weakref.ref(output), weakref.ref(y)]
                handle.remove()
                del output, y
                assert not any(r() is not None for r in inside), (name, preset)
    finally:
        gc.enable()


def test_a_model_copied_inside_a_context_is_an_ordinary_model():
    """As one does for an average of weights: it computes as the original does outside, and can be saved."""
    model, x = network("vgg")
    with EPSILON.context(model):
        model(x.clone().requires_grad_())
        copied = copy.deepcopy(model)
    y, z = x.clone().requires_grad_(), x.clone().requires_grad_()
    copied(y).sum().backward()
    model(z).sum().backward()
    assert torch.equal(y.grad, z.grad)
    assert len(pickle.dumps(copied)) < 2 * len(pickle.dumps(model))


# --- scope -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["nothing", "success", "error"])
def test_a_second_model_and_a_loss_in_the_block_are_plain_autograd(after):
    model, x = network("gates")
    other, _ = network("tokens")
    plain = copy.deepcopy(other)
    y, z = (x.clone().requires_grad_() for _ in range(2))
    F.cross_entropy(plain(z), torch.tensor([0, 1])).backward()
    unused = pytest.warns(UserWarning, match="without a forward pass") if after == "nothing" else nullcontext()
    with unused, composites.EpsilonPlus().context(model):
        if after == "success":
            model(x.clone().requires_grad_())
        elif after == "error":
            with pytest.raises(RuntimeError):
                model(torch.randn(2, 5, 4, 4, dtype=torch.float64, requires_grad=True))
        F.cross_entropy(other(y), torch.tensor([0, 1])).backward()
    assert torch.equal(y.grad, z.grad)
    for p, q in zip(other.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_the_output_may_be_written_in_place():
    """As one does with logits: a temperature, a masked class."""
    model, x = network("vgg")
    y, z = x.clone().requires_grad_(), x.clone().requires_grad_()
    with EPSILON.context(model):
        (model(y) / 2 * torch.tensor([1.0, 0, 1, 1])).sum().backward()
        output = model(z)
        output /= 2
        output[:, 1] = 0
        output.sum().backward()
    torch.testing.assert_close(z.grad, y.grad, rtol=0, atol=1e-15)


def test_a_context_serves_once():
    model, x = network("vgg")
    context = EPSILON.context(model)
    with context as entered:
        assert entered == EPSILON
        model(x.clone().requires_grad_())
    with pytest.raises(LRPError, match=r"entered before.*composite\.context\(model\) anew"), context:
        pass


def test_contexts_may_end_in_any_order():
    model, x = network("vgg")
    before = snapshot(model)
    first, second = EPSILON.context(model), on_first(ZPlus()).context(model)
    first.__enter__()
    second.__enter__()
    with pytest.warns(UserWarning, match=r"context on a model \(Vgg\) ended without a forward pass"):
        first.__exit__(None, None, None)
    y = x.clone().requires_grad_()
    output = model(y)
    output.backward(weighting(output))
    second.__exit__(None, None, None)
    assert snapshot(model) == before
    assert torch.equal(y.grad, relevance(on_first(ZPlus()), model, x))


@pytest.mark.parametrize("how", ["chain", "loop"])
def test_models_explained_in_a_row_are_refused(how):
    """The relevance of the second would be taken for the gradient of the first."""
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    composite = Composite([(AnyLinear, Epsilon())])
    x = torch.randn(2, 4, requires_grad=True)
    with composite.context(first), composite.context(second):
        hidden = first(x) * 1.0
        with pytest.raises(LRPError, match=r"computed by a model that is explained too.*one torch\.nn\.Module"):
            (second if how == "chain" else first)(hidden)
        assert second(x.detach().requires_grad_()).requires_grad
