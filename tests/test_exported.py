"""Programs that torch.export decomposed into core ATen operators: the relevance of the model that they come from."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrphooks
from lrphooks import Composite, composites
from lrphooks.matching import AnyLinear
from lrphooks.rules import AlphaBeta, Epsilon, Gamma, ZPlus

RULES = {
    "epsilon": Composite([(AnyLinear, Epsilon(0.1))]),
    "gamma": Composite([(AnyLinear, Gamma(0.25))]),
    "z plus": Composite([(AnyLinear, ZPlus())]),
    "alpha beta": Composite([(AnyLinear, AlphaBeta(2.0, 1.0))]),
    "AttnLRP": composites.AttnLRP(),
    "CPLRP": composites.CPLRP(),
}


class Of(nn.Module):
    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


def conv_net():
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1, groups=2)),
        *(nn.BatchNorm2d(8), nn.ReLU6(), nn.ConvTranspose2d(8, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)),
    )


def padded():
    return nn.Sequential(
        *(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3), nn.Hardswish(), nn.ReplicationPad2d(1), nn.AvgPool2d(2)),
        *(nn.InstanceNorm2d(4, affine=True), nn.GELU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Dropout()),
        *(nn.Upsample(scale_factor=2), nn.PReLU(4), nn.ZeroPad2d(1), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        nn.Linear(16, 4),
    )


def transformer():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return Of(lambda x, encoder, head: head(encoder(x).mean(1)), nn.TransformerEncoder(layer, 2), nn.Linear(8, 4))


def attention():
    def run(x, qkv, out, norm, head):
        q, k, v = qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind()
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return head(norm(x + out(y))[:, -1])

    return Of(run, nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))


def turned():
    """Layers on inputs that do not lie in one piece, which become products of batches with the bias added after."""

    def run(x, first, second, norm, head):
        y = first(x.transpose(0, 1)).relu().transpose(0, 1)
        y = second(norm(y).unsqueeze(2).expand(-1, -1, 3, -1).transpose(1, 2))
        return head(y.mean((1, 2)))

    return Of(run, nn.Linear(8, 6), nn.Linear(6, 6), nn.RMSNorm(6), nn.Linear(6, 4))


def one_dimensional():
    return nn.Sequential(
        *(nn.Conv1d(5, 6, 3), nn.BatchNorm1d(6), nn.LeakyReLU(), nn.ConvTranspose1d(6, 4, 2), nn.GLU(1), nn.Flatten()),
        *(nn.Linear(14, 6), nn.BatchNorm1d(6), nn.ELU(), nn.Linear(6, 4)),
    )


MODELS = {
    "convolutions": (conv_net, (2, 3, 8, 8)),
    "padding and sampling": (padded, (2, 3, 6, 6)),
    "transformer": (transformer, (2, 5, 8)),
    "attention": (attention, (2, 5, 8)),
    "turned": (turned, (2, 5, 8)),
    "one dimension": (one_dimensional, (2, 5, 8)),
}


def made(name):
    make, shape = MODELS[name]
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.normal_(module.bias)
    return model, torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_decomposed_program_has_the_relevance_of_its_model(name, frozen, close):
    model, x = made(name)
    model.requires_grad_(not frozen)
    with warnings.catch_warnings():
        # torch's own, about a class that it uses itself.
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec", category=FutureWarning)
        program = torch.export.export(model, (x,)).run_decompositions().module()
    torch.testing.assert_close(program(x), model(x))
    for rule, composite in RULES.items():
        try:
            close(lrphooks.lrp(program, x, 1, composite), lrphooks.lrp(model, x, 1, composite), 1e-9)
        except AssertionError as error:
            raise AssertionError(f"{rule}: {error}") from error
        assert lrphooks.audit(program, x, 1, composite).unexplained < 1e-10


X = torch.randn(2, 4, 6, dtype=torch.float64)
W, B = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
IMAGE, KERNEL = torch.randn(2, 4, 5, 5, dtype=torch.float64), torch.randn(4, 2, 3, 3, dtype=torch.float64)
Q = torch.randn(2, 2, 3, 4, dtype=torch.float64)
MEAN, VARIANCE = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5
aten = torch.ops.aten
#: Operators beside the functions that they come from.
OPERATORS = {
    "convolution": (
        IMAGE,
        lambda x: aten.convolution(x, KERNEL, B, [2, 2], [1, 1], [1, 1], False, [0, 0], 2),
        lambda x: F.conv2d(x, KERNEL, B, 2, 1, 1, 2),
    ),
    "transposed convolution": (
        IMAGE,
        lambda x: torch.convolution(x, KERNEL, B[:2], [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
        lambda x: F.conv_transpose2d(x, KERNEL, B[:2], 2, 1, 1, 1, 1),
    ),
    "native_layer_norm": (
        X,
        lambda x: torch.native_layer_norm(x, [4, 6], None, None, 1e-3)[0],
        lambda x: F.layer_norm(x, [4, 6], None, None, 1e-3),
    ),
    "native_group_norm": (
        X,
        lambda x: aten.native_group_norm.default(x, W, B, 2, 4, 6, 2, 1e-3)[0],
        lambda x: F.group_norm(x, 2, W, B, 1e-3),
    ),
    "_native_batch_norm_legit_no_training": (
        X,
        lambda x: aten._native_batch_norm_legit_no_training.default(x, W, B, MEAN, VARIANCE, 0.1, 1e-3)[0],
        lambda x: F.batch_norm(x, MEAN, VARIANCE, W, B, False, 0.1, 1e-3),
    ),
    "_native_batch_norm_legit": (
        X,
        lambda x: aten._native_batch_norm_legit.no_stats(x, W, B, True, 0.1, 1e-3)[0],
        lambda x: F.batch_norm(x, None, None, W, B, True, 0.1, 1e-3),
    ),
    "native_batch_norm": (
        X,
        lambda x: torch.native_batch_norm(x, W, B, MEAN, VARIANCE, False, 0.1, 1e-3)[0],
        lambda x: F.batch_norm(x, MEAN, VARIANCE, W, B, False, 0.1, 1e-3),
    ),
    "_softmax": (X, lambda x: aten._softmax.default(x, -1, False), lambda x: F.softmax(x, -1)),
    "_safe_softmax": (X, lambda x: aten._safe_softmax.default(x, -1), lambda x: F.softmax(x, -1)),
    "_log_softmax": (X, lambda x: aten._log_softmax.default(x, -1, False), lambda x: F.log_softmax(x, -1)),
    "_adaptive_avg_pool2d": (
        IMAGE,
        lambda x: aten._adaptive_avg_pool2d.default(x, [2, 2]),
        lambda x: F.adaptive_avg_pool2d(x, 2),
    ),
    "_scaled_dot_product_flash_attention_for_cpu": (
        Q,
        lambda q: aten._scaled_dot_product_flash_attention_for_cpu.default(q, q, q, 0.0, True, scale=0.3)[0],
        lambda q: F.scaled_dot_product_attention(q, q, q, None, 0.0, True, scale=0.3),
    ),
    "_scaled_dot_product_attention_math": (
        Q,
        lambda q: aten._scaled_dot_product_attention_math.default(q, q, q, Q[0, 0] @ Q[0, 0].T)[0],
        lambda q: F.scaled_dot_product_attention(q, q, q, Q[0, 0] @ Q[0, 0].T),
    ),
    "as_tensor": (X, torch.as_tensor, lambda x: x),
    "asarray": (X, lambda x: torch.asarray(x, requires_grad=True), lambda x: x),
    "_to_copy": (X, lambda x: aten._to_copy.default(x, dtype=torch.float64), lambda x: x.clone()),
    "_unsafe_index": (X, lambda x: aten._unsafe_index.Tensor(x, [None, torch.tensor([0, 2])]), lambda x: x[:, [0, 2]]),
    "native_dropout": (X, lambda x: aten.native_dropout.default(x, 0.5, False)[0], lambda x: x * 1),
    "_prelu_kernel": (X, lambda x: aten._prelu_kernel.default(x, W[:, None].abs()), lambda x: F.prelu(x, W.abs())),
    "reflection_pad2d": (IMAGE, lambda x: aten.reflection_pad2d(x, [1] * 4), lambda x: F.pad(x, [1] * 4, "reflect")),
    "replication_pad2d": (
        IMAGE,
        lambda x: aten.replication_pad2d(x, [1] * 4),
        lambda x: F.pad(x, [1] * 4, "replicate"),
    ),
    "grid_sampler_2d": (
        IMAGE,
        lambda x: aten.grid_sampler_2d.default(x, torch.tanh(Q).view(2, 4, 3, 2), 0, 0, False),
        lambda x: F.grid_sample(x, torch.tanh(Q).view(2, 4, 3, 2), align_corners=False),
    ),
    "linear and bias": (
        X,
        lambda x: F.linear(x, nn.Parameter(KERNEL[0, :2].flatten()[:18].view(3, 6))) + nn.Parameter(B[:3]),
        lambda x: F.linear(x, nn.Parameter(KERNEL[0, :2].flatten()[:18].view(3, 6)), nn.Parameter(B[:3])),
    ),
    "matrix and bias": (
        X,
        lambda x: x.matmul(torch.nn.Parameter(KERNEL[0, :2].flatten()[:18].view(6, 3))) + nn.Parameter(B[:3]),
        lambda x: F.linear(x, nn.Parameter(KERNEL[0, :2].flatten()[:18].view(6, 3).T), nn.Parameter(B[:3])),
    ),
}


def rows(x):
    return x.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_has_the_rule_of_the_function_that_it_comes_from(name, close):
    x, operator, function = OPERATORS[name]
    outs = [
        Of(lambda x, first, call=call: rows(first(call(first(x) * 0.5))) + rows(x), nn.Tanh())
        for call in (operator, function)
    ]
    torch.testing.assert_close(outs[0](x), outs[1](x))
    for composite in RULES.values():
        found, expected = (lrphooks.lrp(out, x, 0, composite) for out in outs)
        close(found, expected, 1e-12)
