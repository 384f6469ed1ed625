"""What does not hold yet: delete a line, or a composite from one, when it does.

``python -m tests.metamorphic`` prints the lines anew.
"""

import pytest

from .networks import LRP_0

#: A function, a spelling, composites. ``all``: under all; ``rules``: under those that are not LRP-0 on every layer;
#: ``first``: under those with a rule for the first layer.
FAILURES = """
hardswish | (x + 3).clip_(0, 6).div_(6).mul_(x) | all
hardswish | x * relu(x + 3).clamp(max=6) / 6 | all
hardswish | x * relu6(x + 3).view_as(x) / 6 | all
hardsigmoid gate | a * relu6(u + 3)[..., None, None] / 6 | all
hardsigmoid gate | a * (u + 3).clamp(0, 6).div(6) | all
hardsigmoid gate | a * (u / 6 + 0.5).clamp(0, 1) | all
hardsigmoid gate | a * hardtanh(u + 3, 0, 6) / 6 | all
hardsigmoid gate | a * (relu6_(u + 3) / 6).expand_as(a) | all
hardsigmoid gate | a.mul(1 / 6).mul_(relu6(u + 3)) | all
a * (1 + s) | (1 + s)[..., None, None] | all
a * (1 + s) | torch.add(s, 1) | all
a * (1 + s) | (1 + s).view | all
a * (1 + s) | (1 + s).reshape | all
a * (1 + s) | (1 + s).unflatten | all
a * (1 + s) | (1 + s).expand_as(a) | all
a * (1 + s) | (1 + s).expand.contiguous | all
a * (1 + s) | (1 + s).repeat | all
a * (1 + s) | cat of (1 + s), chunked | all
a * (1 + s) | cat of the two halves of (1 + s) | all
a * (1 + s) | stack of (1 + s) | all
a * (1 + s) | s + torch.ones(1) | all
a * (1 + s) | s + torch.ones_like(s) | all
a * (1 + s) | torch.ones_like(s) + s | all
a * (1 + s) | s + torch.tensor(1.0) | all
a * (1 + s) | ones.add_(s) | all
a * (1 + s) | s.clone().add_(1) | all
a * (1 + s) | s.clone() += 1 | all
a * (1 + s) | 1 - (-s) | all
a * (1 + s) | s - (-1) | all
a * (1 + s) | torch.rsub(-s, 1) | all
a * (1 + s) | 2 * (0.5 + 0.5 * s) | all
a * (1 + s) | (2 + 2 * s) / 2 | all
a * (1 + s) | (1 + s).clone() | all
a * (1 + s) | (1 + s).t().contiguous().t() | all
a * (1 + s) | (1 + s).flip.flip | all
a * (1 + s) | (1 + s).to(double) | all
a * (1 + s) | (1 + s)[:, [0, 1, 2, 3]] | all
a * (1 + s) | 0.5 + s + 0.5 | all
a * (1 + s) | -(-1 - s) | all
a * (1 + s) | F.pad and narrow of (1 + s) | all
a * (1 + s) | copied into memory | all
a * (1 + s) | a.clone().mul_(1 + s) | all
a * (1 + s) | torch.mul(1 + s, a) | all
a * (1 + tanh(s)) | a * (1 + s.tanh()).view(-1, 6) | all
a * (1 + tanh(s)) | a * (s.tanh() + ones) | all
gelu | (1 + erf(…)).view.view * x / 2 | all
dense layer without bias | (W @ x.T).T | rules
dense layer without bias | matmul(W, x.mT).mT | rules
dense layer without bias | x @ W[None].mT | rules
dense layer without bias | x @ W.T.expand | rules
dense layer without bias | mm, weight first | rules
dense layer without bias | bmm, repeated | rules
dense layer without bias | bmm, weight first | rules
dense layer without bias | baddbmm with zeros | rules
dense layer without bias | einsum bnc,oc->bno | rules
dense layer without bias | einsum oc,bnc->bno | rules
dense layer without bias | einsum bnc,co->bno | rules
dense layer without bias | einsum oc,bnc->obn | rules
dense layer without bias | einsum ...c,oc | rules
dense layer without bias | einsum with heads | rules
dense layer without bias | einsum into two axes | rules
dense layer without bias | tensordot | rules
dense layer without bias | tensordot, weight first | rules
dense layer without bias | inner | rules
dense layer without bias | inner, weight first | rules
dense layer without bias | multi_dot | rules
dense layer without bias | mv | rules
dense layer without bias | W @ row | rules
dense layer without bias | one layer an output | rules
dense layer first | (W @ x.T).T | rules
dense layer first | matmul(W, x.mT).mT | rules
dense layer first | x @ W[None].mT | rules
dense layer first | x @ W.T.expand | rules
dense layer first | mm, weight first | rules
dense layer first | bmm, repeated | rules
dense layer first | bmm, weight first | rules
dense layer first | baddbmm with zeros | rules
dense layer first | einsum bnc,oc->bno | rules
dense layer first | einsum oc,bnc->bno | rules
dense layer first | einsum bnc,co->bno | rules
dense layer first | einsum oc,bnc->obn | rules
dense layer first | einsum ...c,oc | rules
dense layer first | einsum with heads | rules
dense layer first | einsum into two axes | rules
dense layer first | tensordot | rules
dense layer first | tensordot, weight first | rules
dense layer first | inner | rules
dense layer first | inner, weight first | rules
dense layer first | multi_dot | rules
dense layer first | mv | rules
dense layer first | W @ row | rules
dense layer first | row @ W.T | EpsilonPlusFlat
dense layer first | two layers of half the outputs | EpsilonPlusFlat
dense layer first | one layer an output | rules
dense layer first | token by token | EpsilonPlusFlat
dense layer | (x @ W.T).add_(b) | rules
dense layer | (W @ x.T).T + b | rules
dense layer | (W @ x.T + b[:, None]).T | rules
dense layer | addmm, b of all rows | rules
dense layer | addmm, weight first | rules
dense layer | addmv | rules
dense layer | baddbmm | rules
dense layer | einsum + b | rules
dense layer | tensordot + b | rules
dense layer of one row | mv | rules
dense layer of one row | addmv | rules
dense layer of one row | bmm of columns | rules
dense layer of one row | W @ columns | rules
dense layer of one row | einsum | rules
experts | bmm, gathered | rules
experts | matmul, gathered | rules
experts | matmul, gathered, first | rules
experts | einsum, gathered | rules
experts | index_select | rules
heads | x[:, None] @ W.mT | rules
heads | einsum | rules
heads | matmul with three axes | rules
convolution | + b | rules
convolution | outputs in two parts | first
convolution | rows one by one | first
convolution as a dense layer | F.unfold | rules
convolution as a dense layer | tensor.unfold, einsum | rules
grouped convolution | two convolutions | first
grouped convolution | groups as rows of one | first
shared encoder | a loop | first
shared encoder | a loop backwards | first
shared encoder | called twice | first
parallel stems | b, then a | first
parallel stems | b, deeper layers, then a | first
convolution and BatchNorm | clone | rules
convolution and BatchNorm | z * 1 | rules
convolution and BatchNorm | 1.0 * z | rules
convolution and BatchNorm | z / 1 | rules
convolution and BatchNorm | z.neg().neg() | rules
convolution and BatchNorm | 2 * z / 2 | rules
convolution and BatchNorm | z.mul(2).mul_(0.5) | rules
convolution and BatchNorm | unsqueeze, squeeze | rules
convolution and BatchNorm | transpose, transpose | rules
convolution and BatchNorm | transpose of a copy | rules
convolution and BatchNorm | norm of the transpose | rules
convolution and BatchNorm | norm of the permuted | rules
convolution and BatchNorm | channels last | rules
convolution and BatchNorm | channels last, back | rules
convolution and BatchNorm | to(channels last) | rules
convolution and BatchNorm | input channels last, contiguous | rules
convolution and BatchNorm | NHWC and back | rules
convolution and BatchNorm | flatten, unflatten | rules
convolution and BatchNorm | view of the pixels | rules
convolution and BatchNorm | flip, flip | rules
convolution and BatchNorm | norm of the flipped | rules
convolution and BatchNorm | z[:] | rules
convolution and BatchNorm | z[..., [0, 1, 2, 3]] | rules
convolution and BatchNorm | rows, stacked | rules
convolution and BatchNorm | rows, cat | rules
convolution and BatchNorm | copied into memory | rules
convolution and BatchNorm | written into memory | rules
convolution and BatchNorm | seen by others | AttnLRP(1e-3) Epsilon
convolution and BatchNorm | seen by others before | AttnLRP(1e-3) Epsilon
convolution and BatchNorm | rows one by one | first
convolution and BatchNorm | rows one by one at the norm | rules
dense layer and BatchNorm | tokens as rows, all the way | rules
dense layer and BatchNorm | token by token | rules
product of three | (a * b) * c | all
product of three | a * (b * c) | all
product of three | (c * a) * b | all
product of three | einsum, twice | all
product of three | (a * b).view.view * c | all
product of three | (a * b) * 2 * c / 2 | all
product of three | -(a * b) * -c | all
product of three | (a * b).clone().mul_(c) | all
product of three | (a * b).contiguous().t().t() * c | all
product of three | cat, chunked | all
product of three | addcmul | all
product of three | mask between | all
product of three | parameter between | all
product of three | halves of a sum | all
product of four | a * b * c * d | all
product of four | a * (b * (c * d)) | all
product of four | a * (b * c) * d | all
product of four | einsum of three and a product | all
chain of matrices | (a @ b) @ c | all
chain of matrices | a @ (b @ c) | all
chain of matrices | bmm | all
chain of matrices | (cᵀ @ (a @ b)ᵀ)ᵀ | all
linear attention | chunks of 1 | all
linear attention | chunks of 2 | all
linear attention | chunks of 3 | all
linear attention | chunks of 4 | all
linear attention | a state of zeros | all
linear attention | einsum | all
linear attention | cumsum of outer products | all
attention, softmax written out | exp * (1 / sum) | AttnLRP AttnLRP(1e-3)
softplus plus activation | softplus(b).add_(a) | all
softplus plus activation | softplus(b) += a | all
softplus plus activation | copied, then += | all
a module that multiplies, thrice | times(times(a, b), c) | all
a module that multiplies, thrice | times(a, times(b, c)) | all
a module that multiplies, thrice | the first two in a checkpoint | all
a module that multiplies, thrice | the last two in a checkpoint | all
a module that adds a constant | written in place, in a checkpoint | all
a layer and silu | in place behind a checkpoint | rules
a layer and tanh | in place behind a checkpoint | rules
a layer and a slice | fill_ of a view, behind a checkpoint | rules
a block that runs twice | in a checkpoint | first
a block that runs twice | in two checkpoints | first
a block that runs twice | the second in a checkpoint | first
a block that runs twice | in a checkpoint in a checkpoint | first
convolution, checkpoint, BatchNorm | the norm in a checkpoint | AttnLRP(1e-3) Epsilon
"""

#: A surrounding, a function.
SURROUNDED = """
in a checkpoint | a block that runs twice
in a checkpoint in a checkpoint | a block that runs twice
as a module with a backward hook | dense layer first
as a module with a backward hook | dense layer of one row
as a module with a backward hook | convolution
as a module with a backward hook | grouped convolution
as a module with a backward hook | shared encoder
as a module with a backward hook | parallel stems
as a module with a backward hook | convolution and BatchNorm
as a module with a backward hook | dense layer and BatchNorm
as a module with a backward hook | a block that runs twice
as a module with a backward hook | two blocks
as a module with a backward hook | convolution, checkpoint, BatchNorm
as a module with a backward hook | two dense layers
as a module with a backward pre-hook | dense layer first
as a module with a backward pre-hook | dense layer of one row
as a module with a backward pre-hook | convolution
as a module with a backward pre-hook | grouped convolution
as a module with a backward pre-hook | shared encoder
as a module with a backward pre-hook | parallel stems
as a module with a backward pre-hook | convolution and BatchNorm
as a module with a backward pre-hook | dense layer and BatchNorm
as a module with a backward pre-hook | a block that runs twice
as a module with a backward pre-hook | two blocks
as a module with a backward pre-hook | convolution, checkpoint, BatchNorm
as a module with a backward pre-hook | two dense layers
as a module with a backward hook in a checkpoint | dense layer first
as a module with a backward hook in a checkpoint | dense layer of one row
as a module with a backward hook in a checkpoint | convolution
as a module with a backward hook in a checkpoint | grouped convolution
as a module with a backward hook in a checkpoint | shared encoder
as a module with a backward hook in a checkpoint | parallel stems
as a module with a backward hook in a checkpoint | convolution and BatchNorm
as a module with a backward hook in a checkpoint | dense layer and BatchNorm
as a module with a backward hook in a checkpoint | a block that runs twice
as a module with a backward hook in a checkpoint | two blocks
as a module with a backward hook in a checkpoint | convolution, checkpoint, BatchNorm
as a module with a backward hook in a checkpoint | two dense layers
backward hooks on all modules | dense layer first
backward hooks on all modules | dense layer of one row
backward hooks on all modules | convolution
backward hooks on all modules | grouped convolution
backward hooks on all modules | shared encoder
backward hooks on all modules | parallel stems
backward hooks on all modules | convolution and BatchNorm
backward hooks on all modules | dense layer and BatchNorm
backward hooks on all modules | a module that multiplies, a sigmoid
backward hooks on all modules | a module that multiplies, 1 + s
backward hooks on all modules | a module that multiplies, 1 + tanh
backward hooks on all modules | a module that adds a constant
backward hooks on all modules | a block that runs twice
backward hooks on all modules | two blocks
backward hooks on all modules | convolution, checkpoint, BatchNorm
backward hooks on all modules | two dense layers
backward pre-hooks on all modules | dense layer first
backward pre-hooks on all modules | dense layer of one row
backward pre-hooks on all modules | convolution
backward pre-hooks on all modules | grouped convolution
backward pre-hooks on all modules | shared encoder
backward pre-hooks on all modules | parallel stems
backward pre-hooks on all modules | convolution and BatchNorm
backward pre-hooks on all modules | dense layer and BatchNorm
backward pre-hooks on all modules | a module that multiplies, a sigmoid
backward pre-hooks on all modules | a module that multiplies, 1 + s
backward pre-hooks on all modules | a module that multiplies, 1 + tanh
backward pre-hooks on all modules | a module that adds a constant
backward pre-hooks on all modules | a block that runs twice
backward pre-hooks on all modules | two blocks
backward pre-hooks on all modules | convolution, checkpoint, BatchNorm
backward pre-hooks on all modules | two dense layers
the whole network in a checkpoint | a block that runs twice
the whole network in a checkpoint | two dense layers
"""

FIRST = ("EpsilonPlusFlat", "EpsilonGammaBox", "GammaDecay")


def short(composites, of):
    """The composites among those of a function, as they are written here."""
    names = {"all": of, "rules": tuple(c for c in of if c not in LRP_0), "first": FIRST}
    return next((name for name, group in names.items() if set(group) == set(composites)), " ".join(composites))


def is_listed(composite, listed):
    """Whether a composite is among those that are listed."""
    return (
        composite in listed
        or "all" in listed
        or ("rules" in listed and composite not in LRP_0)
        or ("first" in listed and composite in FIRST)
    )


def read(text):
    """{(function, spelling): composites} of the lines of a table."""
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        function, spelling, composites = (part.strip() for part in line.split(" | "))
        found[function, spelling] = composites.split()
    return found


KNOWN = read(FAILURES)


def marks(function, spelling, composite):
    """The marks of a case: an expected failure where it is listed."""
    expected = is_listed(composite, KNOWN.get((function, spelling), ()))
    return [pytest.mark.xfail(strict=True, reason="listed in metamorphic/failures.py")] if expected else []


def marks_of(surrounding, function):
    """The marks of a function in a surrounding."""
    expected = f"{surrounding} | {function}" in SURROUNDED.splitlines()
    return [pytest.mark.xfail(strict=True, reason="listed in metamorphic/failures.py")] if expected else []
