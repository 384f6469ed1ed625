"""The kinds of nodes: how many inputs, and in which forms a model may write one.

A form is one line of Python: ``{o}`` is what it makes, ``{a}``, ``{b}`` and ``{c}`` are its inputs, ``{m}`` and ``{n}``
its modules. The first form of a kind is the plain one. In forms whose name begins with ``in place`` the first input is
written over.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of node: the number of its inputs, its forms by name, and the domain that it is for (None for both)."""

    arity: int
    forms: dict[str, str]
    image: bool | None = None


KINDS = {
    "layer": Kind(1, {
        "module": "{o} = self.{m}({a})",
        "function": "{o} = {apply}({a}, self.{m}.weight, self.{m}.bias{padding})",
    }),
    "layer and norm": Kind(1, {
        "modules": "{o} = self.{n}(self.{m}({a}))",
        "contiguous": "{o} = self.{n}(self.{m}({a}).contiguous())",
        "cloned": "{o} = self.{n}(self.{m}({a}).clone())",
        "channels last": "{o} = self.{n}(self.{m}({a}).contiguous(memory_format=torch.channels_last))",
        "transposed": "{o} = self.{n}(self.{m}({a}).mT).mT",
        "seen": "{o} = self.{m}({a}); {o}.sum(); {o} = self.{n}({o})",
    }, image=True),
    "relu": Kind(1, {
        "function": "{o} = F.relu({a})",
        "clamp": "{o} = {a}.clamp(min=0)",
        "in place": "{o} = F.relu({a}, inplace=True)",
        "in place, method": "{o} = {a}.relu_()",
    }),
    "silu": Kind(1, {
        "function": "{o} = F.silu({a})",
        "by hand": "{o} = {a} * torch.sigmoid({a})",
        "in place": "{o} = F.silu({a}, inplace=True)",
    }),
    "gelu": Kind(1, {
        "function": "{o} = F.gelu({a})",
        "by hand": "{o} = 0.5 * {a} * (1 + torch.erf({a} / 2**0.5))",
    }),
    "tanh": Kind(1, {
        "function": "{o} = torch.tanh({a})",
        "in place": "{o} = {a}.tanh_()",
    }),
    "sigmoid": Kind(1, {
        "function": "{o} = torch.sigmoid({a})",
        "by hand": "{o} = 1 / (1 + torch.exp(-{a}))",
        "copied": "{o} = torch.empty_like({a}).copy_(torch.sigmoid({a}))",
    }),
    "softplus": Kind(1, {
        "function": "{o} = F.softplus({a})",
        "by hand": "{o} = torch.log1p(torch.exp({a}))",
    }),
    "plus one": Kind(1, {
        "number": "{o} = 1 + {a}",
        "number last": "{o} = {a} + 1.0",
        "ones": "{o} = {a} + torch.ones_like({a})",
        "in place": "{o} = {a}.add_(1)",
    }),
    "scale": Kind(1, {
        "times": "{o} = 2.0 * {a}",
        "over": "{o} = {a} / 0.5",
        "in place": "{o} = {a}.mul_(2.0)",
    }),
    "move": Kind(1, {
        "view": "{o} = {a}.reshape(-1).view({a}.shape)",
        "clone": "{o} = {a}.clone()",
        "transpose": "{o} = {a}.mT.contiguous().mT",
        "chunk": "{o} = torch.cat({a}.chunk(2, 1), 1)",
        "getitem": "{o} = {a}[:, :, :]",
        "expand": "{o} = {a}[None].expand(2, *{a}.shape)[0]",
        "unbind": "{o} = torch.stack({a}.unbind(1), 1)",
        "copied": "{o} = torch.empty_like({a}).copy_({a})",
        "copied into a view": "{o} = {a}.new_empty(2, *{a}.shape); {o}[1].copy_({a}); {o} = {o}[1]",
    }),
    "flip": Kind(1, {
        "flip": "{o} = {a}.flip(1)",
        "index": "{o} = {a}[:, torch.arange({a}.shape[1] - 1, -1, -1)]",
    }),
    "mask": Kind(1, {
        "times": "{o} = {a} * (torch.arange({a}.shape[-1]) != 1)",
        "masked_fill": "{o} = {a}.masked_fill(torch.arange({a}.shape[-1]) == 1, 0.0)",
        "written into a copy": "{o} = {a}.clone(); {o}[..., 1] = 0.0",
        "in place": "{o} = {a}; {o}[..., 1] = 0.0",
        "in place, fill_": "{o} = {a}; {o}[..., 1].fill_(0.0)",
    }),
    "mean": Kind(1, {
        "mean": "{o} = {a}.mean({dims}, keepdim=True).expand_as({a})",
        "sum": "{o} = ({a}.sum({dims}, keepdim=True) / {count}).expand({a}.shape).contiguous()",
    }),
    "softmax": Kind(1, {
        "method": "{o} = {a}.softmax(-1)",
        "function": "{o} = F.softmax({a}, dim=-1)",
    }),
    "norm": Kind(1, {
        "function": "{o} = F.layer_norm({a}, {a}.shape[-1:])",
        "by hand": "{o} = ({a} - {a}.mean(-1, True)) / ({a}.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()",
    }),
    "add": Kind(2, {
        "sum": "{o} = {a} + {b}",
        "function": "{o} = torch.add({b}, {a})",
        "copied": "{o} = {a}.clone(); {o} += {b}",
        "copied into memory": "{o} = torch.empty_like({a}).copy_({a}).add_({b})",
        "in place": "{o} = {a}.add_({b})",
        "in place, statement": "{o} = {a}; {o} += {b}",
    }),
    "sub": Kind(2, {
        "difference": "{o} = {a} - {b}",
        "in place": "{o} = {a}.sub_({b})",
    }),
    "mul": Kind(2, {
        "product": "{o} = {a} * {b}",
        "function": "{o} = torch.mul({b}, {a})",
        "module": "{o} = self.times({a}, {b})",
        "copied": "{o} = {a}.clone(); {o} *= {b}",
    }),
    "maximum": Kind(2, {
        "function": "{o} = torch.maximum({a}, {b})",
        "where": "{o} = torch.where({a} > {b}, {a}, {b})",
    }),
    "splice": Kind(2, {
        "cat": "{o} = torch.cat([{b}[..., :2], {a}[..., 2:]], -1)",
        "written into a copy": "{o} = {a}.clone(); {o}[..., :2] = {b}[..., :2]",
        "narrow, copy_": "{o} = {a}.clone(); {o}.narrow(-1, 0, 2).copy_({b}[..., :2])",
        "in place": "{o} = {a}; {o}[..., :2] = {b}[..., :2]",
    }),
    "attend": Kind(3, {
        "fused": "{o} = F.scaled_dot_product_attention({a}, {b}, {c})",
        "by hand": "{o} = ({a} @ {b}.mT / {a}.shape[-1] ** 0.5).softmax(-1) @ {c}",
    }),
}  # fmt: skip

#: What does not hold yet, each with the reason. The generator leaves it out unless it is asked for (``--with``,
#: ``--all``). Where one holds, a test fails that expects it to fail: put its name into HOLDS then, or delete it.
FEATURES = {
    "product of three": "a product of three is 1/4, 1/4, 1/2 by where the brackets stand",
    "moved gate": "1 + s is no gate behind a view, a copy or where it is written in place or with a tensor of ones",
    "moved layer": "a BatchNorm is not merged into a layer behind a copy",
    "seen layer": "a layer before a BatchNorm whose output is consumed twice has its stabilizer counted twice",
    "constant in place": "a constant that is written over passes its derivative on",
    "in place behind checkpoint": "writing over what a checkpointed layer made raises",
    "gate through hooks": "backward hooks on a module hide what is known of its arguments",
    "record and checkpoint": "record and backward hooks around checkpoints raise",
    "copied constant": "with parameters=True, a constant that is copied into a view passes its derivative on",
}

#: Features that hold by now.
HOLDS: frozenset[str] = frozenset(
    (
        "product of three",
        "moved gate",
        "moved layer",
        "seen layer",
        "constant in place",
        "gate through hooks",
        "record and checkpoint",
    )
)
