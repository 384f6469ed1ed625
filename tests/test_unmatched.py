"""An operation without a rule is told of where relevance arrives at it, and nowhere else."""

import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import lrphooks
from lrphooks import Composite, LRPError, UnmatchedError, UnmatchedWarning, audit, explain, lrp, lrp_targets
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon, ZPlus
from small_networks import equal

EXACT = Composite([(AnyLinear, Epsilon(0))])
WARN = Composite(EXACT.entries, unmatched="warn")
X = torch.linspace(-1, 1.5, 12, dtype=torch.float64).reshape(3, 4)
LABELS = torch.tensor([0, 2, 1])


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


def in_thread(z):
    found = []
    thread = threading.Thread(target=lambda: found.append(z * z))
    thread.start()
    thread.join()
    return found[0]


#: What computes a loss beside the logits, by what the message names.
LOSSES = {
    "operation cross_entropy": lambda z: F.cross_entropy(z, LABELS),
    "operation mse_loss": lambda z: F.mse_loss(z, torch.ones_like(z)),
    "operation binary_cross_entropy_with_logits": lambda z: F.binary_cross_entropy_with_logits(z, torch.ones_like(z)),
    "operation entr": lambda z: torch.special.entr(z.exp()).sum() + torch.special.entr(z + 3.0).sum(),
    "autograd function Squared": lambda z: Squared.apply(z).sum(),
    "operations out of sight": lambda z: in_thread(z).sum(),
    "operation scatter_reduce": lambda z: torch.scatter_reduce(z, 0, torch.zeros(3, 3).long(), z, "prod").sum(),
    "operation cholesky_inverse": lambda z: torch.cholesky_inverse(z + 3 * torch.eye(3)).sum(),
    "operation layer_norm": lambda z: F.layer_norm(z, (3,), z[0]).sum(),
}


class Both(nn.Module):
    """Returns the logits and a loss, as models that are given labels do."""

    def __init__(self, loss, how="dict"):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()
        self.loss, self.how = loss, how

    def forward(self, x):
        logits = self.net(x)
        if self.how == "alone":
            return logits
        loss = checkpoint(self.loss, logits, use_reentrant=False) if self.how == "checkpoint" else self.loss(logits)
        return {"loss": loss, "logits": logits}


def on_logits(output):
    return output["logits"][:, 0]


def on_loss(output):
    return output["loss"].reshape(1)


def in_a_context(model, x, target, composite):
    leaf = x.clone().requires_grad_()
    with composite.context(model):
        output = model(leaf)
    target(output).sum().backward()
    return leaf.grad


WAYS = {
    "lrp": lrp,
    "explain": lambda *args: explain(*args, record="net.0").relevance,
    "lrp_targets": lambda m, x, target, c: lrp_targets(m, x, [target, on_logits], c)[0],
    "context": in_a_context,
}


@pytest.mark.parametrize("how", ["dict", "checkpoint"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_beside_the_logits_is_told_of_where_it_is_explained(name, way, how):
    model = Both(LOSSES[name], how)
    wanted = lrp(Both(None, "alone"), X, 0, EXACT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for composite in (EXACT, WARN):
            equal(WAYS[way](model, X, on_logits, composite), wanted)
    message = rf"{name} in the model(?: \(Both\))? \(.*test_unmatched\.py:\d+\).* on shape \(3, 3\)"
    with pytest.raises(UnmatchedError, match=message):
        WAYS[way](model, X, on_loss, EXACT)
    with pytest.warns(UnmatchedWarning, match=message):
        WAYS[way](model, X, on_loss, WARN)


def test_the_message_names_the_line_that_ran_the_operation():
    def loss(z):
        return F.cross_entropy(z, LABELS)

    line = f"{__file__}:{loss.__code__.co_firstlineno + 1}"
    with pytest.raises(UnmatchedError) as error:
        lrp(Both(loss), X, on_loss, EXACT)
    assert line in str(error.value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lrp_targets(Both(loss), X, [on_loss, on_loss, on_logits], WARN)
    assert [f"{w.filename}:{w.lineno}" for w in caught] == [line], "once for all targets, at that line"
    assert line in str(caught[0].message)


def test_the_audit_is_of_what_is_explained():
    model = Both(LOSSES["operation cross_entropy"])
    assert audit(model, X, on_logits, EXACT).unexplained < 1e-14
    with pytest.raises(UnmatchedError, match="operation cross_entropy in the model"):
        audit(model, X, on_loss, EXACT)


@pytest.mark.parametrize("composite", [EXACT, WARN], ids=["error", "warn"])
def test_where_all_that_a_model_returns_comes_from_an_operation_it_is_told_of_at_once(composite):
    model = nn.Sequential(nn.Linear(4, 4), Calls(lambda z: torch.special.entr(z.abs()) * 2.0)).double()
    with composite.context(model):
        if composite is EXACT:
            with pytest.raises(UnmatchedError, match=r"operation entr in module '1' \(Calls\)"):
                model(X.clone().requires_grad_())
        else:
            with pytest.warns(UnmatchedWarning, match=r"operation entr in module '1' \(Calls\)"):
                model(X.clone().requires_grad_())


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_what_goes_into_a_constant_receives_nothing_and_needs_no_rule():
    model = nn.Sequential(nn.Linear(4, 4), Calls(lambda z: z * torch.sigmoid(torch.special.entr(z.abs())))).double()
    twin = nn.Sequential(model[0], Calls(lambda z: z * torch.sigmoid(torch.special.entr(z.abs())).detach()))
    equal(lrp(model, X, 0, EXACT), lrp(twin, X, 0, EXACT))


def test_an_error_of_the_model_after_an_operation_without_a_rule_names_that_first():
    model = nn.Sequential(nn.Linear(4, 4), Calls(lambda z: z.to_sparse().reshape(-1))).double()
    with pytest.raises(UnmatchedError, match="operation to_sparse"):
        lrp(model, X, 0, EXACT)


def test_a_plain_backward_pass_beside_relevance_tells_nothing():
    """Only what carries relevance is told of: not a derivative of relevance, which goes through all that there is."""
    model, leaf = Both(LOSSES["operation cross_entropy"]), X.clone().requires_grad_()
    with EXACT.context(model):
        output = model(leaf)
    (relevance,) = torch.autograd.grad(on_logits(output).sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(relevance.square().sum(), leaf)
    assert second.abs().max() > 0


def test_a_parameter_alone_makes_no_report():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.Parameter(torch.ones(4, dtype=torch.float64))

        def forward(self, x):
            return x * torch.special.entr(self.p + 1.0)

    equal(lrp(Learned(), X, 0, EXACT).sum(1), Learned()(X)[:, 0].detach())


# --- operations of torch.library ---


@torch.library.custom_op("lrphooks_tests::scaled", mutates_args=())
def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    return x * factor


scaled.register_autograd(
    lambda ctx, gradient: (gradient * ctx.factor, None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "factor", inputs[1]),
)
PACKET = torch.ops.lrphooks_tests.scaled
SPELT = {"packet": PACKET, "overload": PACKET.default, "definition": scaled}


@pytest.mark.parametrize("called", SPELT)
@pytest.mark.parametrize("named", SPELT)
def test_an_operation_of_torch_library_is_matched_by_all_its_names(named, called):
    def model(function):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), Calls(function), nn.Linear(4, 3)).double()

    composite = Composite([(SPELT[named], lrphooks.rules.Gradient()), *EXACT.entries])
    hidden = model(lambda z: SPELT[called](z, 3.0))
    equal(lrp(hidden, X, 0, composite), lrp(model(lambda z: z * 3.0), X, 0, EXACT))
    proposed = r"\(torch\.ops\.lrphooks_tests\.scaled, lrphooks\.rules\.Gradient\(\)\)"
    with pytest.raises(UnmatchedError, match=rf"operation lrphooks_tests\.scaled in module '1'.*{proposed}"):
        lrp(hidden, X, 0, EXACT)
    gated = Composite([(SPELT[named], lrphooks.rules.Constant()), *EXACT.entries])
    equal(
        lrp(model(lambda z: z * SPELT[called](z, 3.0)), X, 0, gated),
        lrp(model(lambda z: z * (z * 3.0).detach()), X, 0, EXACT),
    )


# --- operations that run functions of the model's own ---


class Branching(nn.Module):
    """Chooses a layer by the input, in Python or by torch.cond; the branches use values that are not their operands."""

    def __init__(self, *, written_out):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)
        self.written_out = written_out
        self.double()

    def forward(self, x):
        z = self.stem(x)
        if self.written_out:
            return self.a(z) if x.sum() > 0 else F.relu(self.b(z))
        return torch.cond(x.sum() > 0, lambda t: self.a(t), lambda t: F.relu(self.b(t)), (z,))


@pytest.mark.parametrize("rule", [Epsilon(0.1), ZPlus()], ids=repr)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_torch_cond_is_the_branch_that_it_runs(sign, rule):
    composite = Composite([(AnyLinear, rule)])
    found = lrp(Branching(written_out=False), sign * X, 0, composite)
    equal(found, lrp(Branching(written_out=True), sign * X, 0, composite))


def test_torch_cond_of_values_that_its_branches_hold():
    def function(z):
        return torch.ops.higher_order.cond(torch.tensor(True), lambda: z * z.sigmoid(), lambda: z, ())

    def model(f):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), Calls(f)).double()

    equal(lrp(model(function), X, 0, EXACT), lrp(model(lambda z: z * z.sigmoid()), X, 0, EXACT))


def test_a_loop_of_torch_is_its_body_again_and_again():
    def function(z):
        step = lambda i, h: (i + 1, h * torch.sigmoid(h))  # noqa: E731
        return torch.ops.higher_order.while_loop(lambda i, h: i < 3, step, (torch.tensor(0), z), ())[1]

    def written_out(z):
        for _ in range(3):
            z = z * torch.sigmoid(z)
        return z

    def model(f):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), Calls(f)).double()

    equal(lrp(model(function), X, 0, EXACT), lrp(model(written_out), X, 0, EXACT))


def test_other_operations_that_run_functions_are_reported_before_they_do():
    def scan(z):
        return torch.ops.higher_order.scan(lambda h, x: (h + x, h * x), [z[0]], [z], ())[1]

    model = nn.Sequential(nn.Linear(4, 4), Calls(scan)).double()
    message = r"operation higher_order\.scan in module '1' \(Calls\) \(.*\.py:\d+\) on shape .* cannot be seen"
    with pytest.raises(UnmatchedError, match=message):
        lrp(model, X, 0, EXACT)


def test_token_ids_beside_a_mask_of_numbers_are_told_of():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, ids, mask):
            return self.head((self.embedding(ids) * (mask > 0)[..., None]).mean(1))

    ids, mask = torch.tensor([[1, 2, 3]]), torch.ones(1, 3)
    with pytest.raises(LRPError, match=r"torch\.int64, .* token ids, explain their embeddings .*inputs_embeds"):
        lrp(Masked(), (ids, mask), 0, EXACT)
