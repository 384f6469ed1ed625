"""What the documents say is what the code does: generated parts, examples and the sinks of each kind of operation."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrphooks
import torchvision_shim  # noqa: F401
from lrphooks import Composite
from lrphooks.cli import main
from lrphooks.cli.program import COMMANDS, parser
from lrphooks.engine.conventions import CONVENTIONS
from lrphooks.rules import Epsilon, Gradient

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = generate
_spec.loader.exec_module(generate)


def steady(text):
    """A text without what depends on rounding: amounts so small that they are its result, and the width of columns."""
    text = re.sub(r"-?\d(\.\d+)?e[-+]\d+|(?<![\d.])0(?![\d.])", "~", text)
    return re.sub(r"-{3,}", "---", re.sub(r" +", " ", text))


def test_the_page_of_operations_is_up_to_date():
    page = (ROOT / "docs" / "any-graph.md").read_text(encoding="utf-8")
    assert steady(generate.generated(page)) == steady(page), "run python docs/generate.py"


def test_every_kind_of_operation_is_on_the_page():
    assert set(generate.KINDS) == {*CONVENTIONS, "linear"}


README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_examples_of_the_readme_run(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith(("tensor(", "SymmetricRelevanceGain("))


@pytest.mark.parametrize("page", ["asking.md"])
def test_the_examples_of_a_page_run_one_after_the_other(page, capsys):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    namespace = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, page, "exec"), namespace)
        assert capsys.readouterr().out


def test_the_audit_of_the_readme_is_what_the_command_prints(capsys):
    assert main(["audit"]) == 0
    (printed,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    assert steady(printed) == steady(capsys.readouterr().out)


COMMAND_LINE = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "printed"), re.findall(r"```console\n\$ lrphooks (.*?)\n(.*?)```", COMMAND_LINE, re.DOTALL)
)
def test_the_commands_of_the_page_print_what_it_says(command, printed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 0
    assert steady(capsys.readouterr().out) == steady(printed)


@pytest.mark.parametrize("command", re.findall(r"^lrphooks (.*)$", COMMAND_LINE, re.MULTILINE))
def test_the_commands_of_the_page_can_be_called(command):
    options = parser().parse_args(shlex.split(command))
    assert options.command == command.split()[0]


def test_the_page_names_every_command():
    assert re.findall(r"^\| `lrphooks (\w+)`", COMMAND_LINE, re.MULTILINE) == [command.name for command in COMMANDS]


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", COMMAND_LINE, re.DOTALL))
def test_the_examples_of_the_page_run(code, capsys):
    exec(compile(code, "command-line.md", "exec"), {})
    assert capsys.readouterr().out == "light ink on dark, centred, 28 x 28 pixels from 0 to 1 7\n"


class Step(nn.Module):
    """One operation between two layers without bias, so that what is absorbed is the operation's."""

    def __init__(self, step):
        super().__init__()
        torch.manual_seed(0)
        self.step = step
        self.first = nn.Linear(4, 4, bias=False)
        self.last = nn.Linear(4, 2, bias=False)
        self.weight, self.bias = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)

    def forward(self, x):
        out = self.step(self, self.first(x))
        return self.last(out).mean(1)


STEPS = {
    "linear": [lambda m, h: m.layer(h)],
    "relu": [lambda m, h: h.relu()],
    "shape": [lambda m, h: h.flip(-1).transpose(0, 1).reshape(h.shape)],
    "split": [lambda m, h: sum(h.unbind(1)).unsqueeze(1)],
    "select": [
        lambda m, h: h.amax(1, keepdim=True),
        lambda m, h: h.abs(),
        lambda m, h: h.masked_fill(h < 0, 1.0),
        lambda m, h: h.topk(4, -1).values,
        lambda m, h: F.leaky_relu(h),
    ],
    "combination": [
        lambda m, h: h + m.bias,
        lambda m, h: torch.cat((h, m.bias.expand(len(h), 1, -1)), 1),
        lambda m, h: F.pad(h, (0, 0, 1, 1), value=1.0),
        lambda m, h: h.cumsum(1),
    ],
    "product": [
        lambda m, h: h * h,
        lambda m, h: h @ h.transpose(1, 2) @ h,
        lambda m, h: torch.einsum("bij,bij,bij->bij", h, h, h),
        lambda m, h: torch.lerp(m.bias, h, h.sigmoid()),
        lambda m, h: h.prod(1, keepdim=True),
    ],
    "added product": [
        lambda m, h: torch.addcmul(h, h, h),
        lambda m, h: torch.baddbmm(m.bias, h, h.transpose(1, 2) @ h),
    ],
    "division": [
        lambda m, h: h / (h.abs() + 1),
        lambda m, h: torch.addcdiv(m.bias, h, h.square() + 1),
        lambda m, h: torch.linalg.solve(2 * torch.eye(3).to(h) + h @ h.transpose(1, 2), h),
    ],
    "clamp": [
        lambda m, h: h.clamp(-0.3, 0.4),
        lambda m, h: h.clamp(min=0.1),
        lambda m, h: torch.maximum(h, m.bias),
        lambda m, h: F.hardtanh(h, 0.1, 0.2),
    ],
    "power": [lambda m, h: h**2, lambda m, h: h.square(), lambda m, h: h + h**-2, lambda m, h: h.abs().sqrt()],
    "activation": [lambda m, h: F.gelu(h), lambda m, h: h.tanh(), lambda m, h: F.silu(h), lambda m, h: h.erf()],
    "gate": [lambda m, h: F.glu(torch.cat((h, h), -1))],
    "constant": [
        lambda m, h: h * h.sigmoid(),
        lambda m, h: h + h.exp(),
        lambda m, h: h / h.norm(dim=-1, keepdim=True),
        lambda m, h: h - h.logsumexp(-1, keepdim=True),
    ],
    "moments": [lambda m, h: (h - torch.var_mean(h, -1, keepdim=True)[1]) * torch.var_mean(h, -1, keepdim=True)[0]],
    "shift": [lambda m, h: h.log_softmax(-1)],
    "softmax": [lambda m, h: h.softmax(-1)],
    "attention": [
        lambda m, h: F.scaled_dot_product_attention(h, h, h),
        lambda m, h: F.scaled_dot_product_attention(h, h, h, attn_mask=h @ h.transpose(1, 2)),
    ],
    "normalization": [
        lambda m, h: F.layer_norm(h, (4,), m.weight, m.bias),
        lambda m, h: F.rms_norm(h, (4,), m.weight),
        lambda m, h: F.group_norm(h.transpose(1, 2), 2, m.weight, m.bias).transpose(1, 2),
        lambda m, h: F.instance_norm(h.transpose(1, 2), weight=m.weight, bias=m.bias).transpose(1, 2),
    ],
    "batch norm": [
        lambda m, h: F.batch_norm(h.flatten(0, 1), m.mean, m.var, m.weight, m.bias).reshape(h.shape),
        lambda m, h: F.batch_norm(h.flatten(0, 1), None, None, m.weight, m.bias, training=True).reshape(h.shape),
    ],
}
#: Sinks of the sums that constants are added in.
HELPERS = {"constant": ["constants"], "power": ["constants"]}


@pytest.mark.parametrize("kind", STEPS)
def test_an_operation_absorbs_what_the_page_says(kind):
    composite = Composite([(nn.Linear, Epsilon(1e-3 if kind == "linear" else 0)), (torch.softmax, Gradient())])
    seen = set()
    for number, step in enumerate(STEPS[kind]):
        model, x = Step(step).double(), torch.randn(2, 3, 4, dtype=torch.float64)
        report = lrphooks.audit(model, x, 0, composite)
        assert report.unexplained < 1e-12, (kind, number)
        assert not report.imbalances, (kind, number)
        seen |= {name for name, amount in report.sinks.items() if abs(amount) > 1e-12 * report.scale}
    assert seen == {*generate.KINDS[kind].absorbs, *HELPERS.get(kind, ())}


class Function(nn.Module):
    """A function of the input as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def _centred(t):
    return t - t.mean(-1, keepdim=True)


def _plain(function, inputs, seed):
    leaves = [t.clone().requires_grad_() for t in inputs]
    return torch.autograd.grad(function(*leaves), leaves, seed)


def _attention(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, :3])


#: The formulas of the page: an operation of the kind, how many operands, and the modified gradient of each.
FORMULAS = {
    "relu": (torch.relu, 1, lambda a, z, G: [G * (a[0] > 0)]),
    "shape": (lambda a: a.transpose(0, 1), 1, lambda a, z, G: [G.transpose(0, 1)]),
    "split": (lambda a: a.unbind(0)[1].unsqueeze(0), 1, lambda a, z, G: [torch.stack((0 * G[0], G[0], 0 * G[0]))]),
    "select": (lambda a: a.amax(1, keepdim=True), 1, lambda a, z, G: [G * (a[0] == z)]),
    "combination": (torch.sub, 2, lambda a, z, G: [G, -G]),
    "product": (lambda a, b, c: torch.einsum("ij,ij,ij->ij", a, b, c), 3, lambda a, z, G: [G * z / t / 3 for t in a]),
    "added product": (torch.addcmul, 3, lambda a, z, G: [G, G * a[2] / 2, G * a[1] / 2]),
    "division": (torch.div, 2, lambda a, z, G: [G / a[1], 0 * G]),
    "clamp": (lambda a: a.clamp(-0.5, 0.5), 1, lambda a, z, G: [G * z / a[0]]),
    "power": (lambda a: a**3, 1, lambda a, z, G: [G * z / a[0]]),
    "activation": (F.gelu, 1, lambda a, z, G: [G * z / a[0]]),
    "gate": (lambda a, b: F.glu(torch.cat((a, b), -1)), 2, lambda a, z, G: [G * a[1].sigmoid(), 0 * G]),
    "constant": (lambda a, b: a * b.exp(), 2, lambda a, z, G: [G * a[1].exp(), 0 * G]),
    "moments": (lambda a: torch.add(*torch.var_mean(a, -1, keepdim=True)), 1, lambda a, z, G: [G.expand(3, 4) / 4]),
    "shift": (lambda a: a.log_softmax(-1), 1, lambda a, z, G: [G]),
    "softmax": (lambda a: a.softmax(-1), 1, lambda a, z, G: [z * (G - (z * G).sum(-1, keepdim=True))]),
    "attention": (
        _attention,
        4,
        lambda a, z, G: [
            t * share for t, share in zip(_plain(_attention, a, G), (1 / 4, 1 / 4, 1 / 2, 1 / 2), strict=True)
        ],
    ),
    "normalization": (
        lambda a: F.layer_norm(a, (4,), torch.arange(1.0, 5.0).to(a)),
        1,
        lambda a, z, G: [_centred(G * torch.arange(1.0, 5.0) / (a[0].var(-1, False, keepdim=True) + 1e-5).sqrt())],
    ),
    "batch norm": (
        lambda a: F.batch_norm(a, torch.ones(4).to(a), torch.full((4,), 3.0).to(a), torch.arange(4.0).to(a)),
        1,
        lambda a, z, G: [G * torch.arange(4.0) / (3 + 1e-5) ** 0.5],
    ),
}


@pytest.mark.parametrize("kind", FORMULAS)
def test_the_formulas_of_the_page(kind, close):
    function, count, formula = FORMULAS[kind]
    inputs = tuple(torch.randn(3, 4, dtype=torch.float64) for _ in range(count))
    z = function(*inputs)
    G = torch.randn_like(z)
    composite = Composite([(torch.softmax, Gradient())])
    relevance = lrphooks.lrp(Function(function), inputs, lambda out: out * G, composite)
    for a, found, expected in zip(inputs, relevance, formula(inputs, z, G), strict=True):
        close(found, a * expected, scale=1.0)
