"""Spellings that hypothesis makes: moves anywhere, brackets, subscripts and orders of any kind."""

import math
import string
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from lrphooks import lrp

from .networks import COMPOSITES, NO_SUMS, TOLERANCE, difference

#: What changes no value of a tensor of two or more dimensions, whose first counts rows.
MOVES = {
    "clone": lambda z: z.clone(),
    "contiguous": lambda z: z.contiguous(),
    "times 1": lambda z: z * 1,
    "times 2, halved": lambda z: 2 * z / 2,
    "negated twice": lambda z: z.neg().neg(),
    "viewed": lambda z: z.reshape(-1).view(z.shape),
    "transposed twice": lambda z: z.transpose(0, -1).transpose(0, -1),
    "transposed copy": lambda z: z.transpose(0, 1).contiguous().transpose(0, 1),
    "unsqueezed": lambda z: z.unsqueeze(0).squeeze(0),
    "chunks": lambda z: torch.cat(z.chunk(2, 1), 1),
    "rows": lambda z: torch.stack(z.unbind(0)),
    "flipped twice": lambda z: z.flip(1).flip(1),
    "rolled": lambda z: z.roll(1, 1).roll(-1, 1),
    "expanded": lambda z: z[None].expand(3, *z.shape)[1],
    "sliced": lambda z: z[:],
    "padded": lambda z: F.pad(z, (1, 2))[..., 1:-2],
    "double": lambda z: z.to(torch.float64),
    "copied": lambda z: torch.empty_like(z).copy_(z),
    "written": lambda z: z.new_empty(z.shape).index_copy(0, torch.arange(len(z)), z),
    "dropout": lambda z: F.dropout(z, 0.3, training=False),
    "indexed": lambda z: z[torch.arange(len(z))],
    "checkpoint": lambda z: checkpoint(lambda t: t.view(t.shape), z, use_reentrant=False),
}
SLOTS = ("input", "layer", "gate", "gated", "operand", "relu")
SOME = st.sampled_from(sorted(COMPOSITES))
PLAIN = st.sampled_from(NO_SUMS)
QUICK = settings(max_examples=40, deadline=None, derandomize=True, database=None)


class Moving(nn.Module):
    """A layer with its BatchNorm, a gate and a product, and in each slot moves that change nothing."""

    def __init__(self, moves):
        super().__init__()
        torch.manual_seed(3)
        self.moves = moves
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.gate, self.side, self.head = nn.Linear(3, 4), nn.Conv2d(3, 4, 1), nn.Linear(4, 3)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.double().eval()

    def move(self, slot, z):
        for name in self.moves.get(slot, ()):
            z = MOVES[name](z)
        return z

    def forward(self, x):
        x = self.move("input", x)
        z = self.move("relu", F.relu(self.norm(self.move("layer", self.conv(x)))))
        gate = self.move("gate", 1 + self.gate(x.mean((2, 3))))
        z = self.move("gated", z * gate[:, :, None, None]) * self.move("operand", self.side(x))
        return self.head(z.mean((2, 3)))


def relevance(model, x, composite):
    return lrp(model, x, None, COMPOSITES[composite](model))


@pytest.mark.xfail(strict=True, reason="facts are lost by moves")
@QUICK
@given(
    moves=st.dictionaries(
        st.sampled_from(SLOTS), st.lists(st.sampled_from(sorted(MOVES)), min_size=1, max_size=3), min_size=1
    ),
    composite=SOME,
)
def test_moves_change_nothing(moves, composite):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).clamp(-2.9, 2.9)
    expected = relevance(Moving({}), x, composite)
    assert difference(relevance(Moving(moves), x, composite), expected) <= TOLERANCE


class Applied(nn.Module):
    """Dense maps of the input, a function of them, a head."""

    def __init__(self, function, shapes, out):
        super().__init__()
        torch.manual_seed(5)
        self.function, self.shapes = function, shapes
        self.maps = nn.ModuleList(nn.Linear(5, math.prod(shape)) for shape in shapes)
        self.head = nn.Linear(out, 3)
        self.double()

    def forward(self, x):
        operands = [m(x).view(len(x), *s) for m, s in zip(self.maps, self.shapes, strict=True)]
        return self.head(self.function(*operands).flatten(1))


def row(seed=6):
    return torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def agree(function, canonical, shapes, out, composite):
    """Both functions have one value and one relevance."""
    a, b = Applied(function, shapes, out), Applied(canonical, shapes, out)
    assert difference(a(row()).detach(), b(row()).detach()) <= 1e-12
    assert difference(relevance(a, row(), composite), relevance(b, row(), composite)) <= TOLERANCE


#: Trees of operands by number: a leaf is a number, a node a pair.
def trees(leaves):
    """All ways to set brackets around operands in a given order, at random."""
    if len(leaves) == 1:
        return st.just(leaves[0])
    cuts = st.integers(1, len(leaves) - 1)
    return cuts.flatmap(lambda k: st.tuples(trees(leaves[:k]), trees(leaves[k:])))


BRACKETS = st.integers(2, 5).flatmap(lambda n: st.permutations(range(n))).flatmap(lambda order: trees(list(order)))


def leaves(tree):
    return leaves(tree[0]) + leaves(tree[1]) if isinstance(tree, tuple) else [tree]


def joined(tree, operands, join):
    """The operands joined as the tree says."""
    if not isinstance(tree, tuple):
        return operands[tree]
    return join(joined(tree[0], operands, join), joined(tree[1], operands, join))


@QUICK
@given(tree=BRACKETS, move=st.sampled_from(sorted(MOVES)), composite=SOME)
def test_brackets_of_a_product(tree, move, composite):
    count = len(leaves(tree))
    agree(
        lambda *operands: joined(tree, operands, lambda a, b: MOVES[move](a * b)),
        lambda *operands: torch.stack(operands).prod(0),
        [(6,)] * count,
        6,
        composite,
    )


@QUICK
@given(tree=BRACKETS, move=st.sampled_from(sorted(MOVES)), composite=PLAIN)
def test_brackets_of_a_sum(tree, move, composite):
    count = len(leaves(tree))
    agree(
        lambda *operands: joined(tree, operands, lambda a, b: MOVES[move](a + b)),
        lambda *operands: torch.stack(operands).sum(0),
        [(6,)] * count,
        6,
        composite,
    )


@QUICK
@given(
    letters=st.permutations(string.ascii_lowercase[:4]),
    order=st.permutations(range(3)),
    out=st.permutations(range(3)),
    weight=st.permutations(range(2)),
    first=st.booleans(),
    composite=SOME,
)
def test_subscripts_of_an_einsum_with_a_parameter(letters, order, out, weight, first, composite):
    """A dense layer (rows, tokens, channels) -> (rows, tokens, outputs), its operands laid out in any order."""
    b, n, c, o = letters
    torch.manual_seed(7)
    W = nn.Parameter(torch.randn(6, 4, dtype=torch.float64))

    def spelt(x):
        left = "".join([b, n, c][i] for i in order)
        right = "".join([o, c][i] for i in weight)
        result = [b, n, o]
        made = "".join(result[i] for i in out)
        a, w = x.permute(*order), W.permute(*weight)
        z = torch.einsum(f"{right},{left}->{made}", w, a) if first else torch.einsum(f"{left},{right}->{made}", a, w)
        return z.permute(*[out.index(i) for i in range(3)])

    agree(spelt, lambda x: F.linear(x, W), [(3, 4)], 18, composite)


@QUICK
@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=5), composite=PLAIN)
def test_chunks_of_linear_attention(sizes, composite):
    """The length is what the chunks add up to; the state begins without a value."""
    length = sum(sizes)

    def chunked(q, k, v):
        state, out = None, []
        for a, b, c in zip(q.split(sizes, 1), k.split(sizes, 1), v.split(sizes, 1), strict=True):
            inside = (a @ b.mT).tril() @ c
            out.append(inside if state is None else inside + a @ state)
            state = b.mT @ c if state is None else state + b.mT @ c
        return torch.cat(out, 1)

    mask = torch.ones(length, length, dtype=torch.float64).tril()
    agree(
        chunked,
        lambda q, k, v: torch.einsum("btd,bsd,bse,ts->bte", q, k, v, mask),
        [(length, 3)] * 3,
        3 * length,
        composite,
    )


@pytest.mark.xfail(strict=True, reason="a number plus an activation gates in few spellings only")
@QUICK
@given(
    parts=st.lists(st.sampled_from([0.5, 0.25, 1.0, 2.0, -0.5]), min_size=1, max_size=3),
    tensors=st.booleans(),
    moves=st.lists(st.sampled_from(sorted(MOVES)), max_size=3),
    composite=SOME,
)
def test_a_number_plus_an_activation(parts, tensors, moves, composite):
    """However the number comes together, as numbers or as tensors, and wherever moves stand."""
    total = sum(parts)
    if total == 0:
        parts, total = [1.0], 1.0

    def gate(s):
        for i, part in enumerate(parts):
            s = s + (torch.full_like(s, part) if tensors else part)
            if i < len(moves):
                s = MOVES[moves[i]](s)
        return s

    agree(lambda a, s: a * gate(s), lambda a, s: a * (total + s), [(6,)] * 2, 6, composite)


@QUICK
@given(
    cuts=st.lists(st.integers(1, 7), max_size=3, unique=True),
    order=st.randoms(use_true_random=False),
    composite=SOME,
)
def test_outputs_of_a_layer_in_any_parts_and_order(cuts, order, composite):
    torch.manual_seed(7)
    W, b = nn.Parameter(torch.randn(8, 6).double()), nn.Parameter(torch.randn(8).double())
    edges = [0, *sorted(cuts), 8]
    ranges = list(pairwise(edges))

    def spelt(x):
        made = {}
        for low, high in order.sample(ranges, len(ranges)):
            made[low] = F.linear(x, W[low:high], b[low:high])
        return torch.cat([made[low] for low, _ in ranges], -1)

    agree(spelt, lambda x: F.linear(x, W, b), [(6,)], 8, composite)
