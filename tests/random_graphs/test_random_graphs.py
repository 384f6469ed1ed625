"""Random graphs: relevance by definition, however it is asked for. ``python -m tests.random_graphs 3000`` runs more."""

import pytest
import torch
from torch import nn

from . import checks
from .checks import failures, runs
from .graph import Graph, Node, code, facts_of, features_of, make, model_of
from .kinds import FEATURES, HOLDS, KINDS
from .shrinking import shrunk


def of(*nodes, image=False, blocks=()):
    """A graph of a layer and more nodes, each a kind, inputs, and a form unless it is the plain one."""
    made = [Node("layer", (0,), "module", 0)]
    for k, (kind, inputs, *form) in enumerate(nodes, 1):
        made.append(Node(kind, inputs, *(form or [next(iter(KINDS[kind].forms))]), k))
    return Graph(5, image, tuple(made), blocks)


#: The smallest graph for each feature.
SMALLEST = {
    "product of three": of(("layer", (1,)), ("mul", (1, 2)), ("mul", (3, 1))),
    "moved gate": of(("layer", (1,)), ("plus one", (2,), "ones"), ("mul", (1, 3))),
    "moved layer": of(("layer and norm", (1,), "cloned"), image=True),
    "seen layer": of(("layer and norm", (1,), "seen"), ("add", (2, 1), "copied"), image=True),
    "constant in place": of(("softplus", (1,)), ("add", (2, 1), "in place")),
    "in place behind checkpoint": of(("layer", (1,)), ("mask", (2,), "in place, fill_"), blocks=((2, 2),)),
    "gate through hooks": of(("sigmoid", (1,)), ("mul", (1, 2), "module")),
    "record and checkpoint": of(("relu", (1,)), blocks=((2, 2),)),
    "copied constant": of(("sigmoid", (1,)), ("move", (2,), "copied into a view"), ("add", (1, 3))),
}
assert list(SMALLEST) == list(FEATURES)


@pytest.mark.parametrize("seed", range(60))
def test_a_random_graph_has_relevance_as_defined(seed):
    graph = make(seed, HOLDS)
    assert failures(graph, allowed=HOLDS) == [] or not runs(graph), code(graph)


@pytest.mark.parametrize("seed", range(60, 72))
def test_the_derivative_of_relevance_is_that_of_finite_differences(seed):
    graph = make(seed, HOLDS)
    assert failures(graph, checks.SMOOTH, HOLDS, audit=False, second=True) == [] or not runs(graph), code(graph)


@pytest.mark.parametrize(
    "feature",
    [
        pytest.param(name, marks=[] if name in HOLDS else [pytest.mark.xfail(strict=True, reason=reason)])
        for name, reason in FEATURES.items()
    ],
)
def test_a_feature_holds(feature):
    graph = SMALLEST[feature]
    assert facts_of(graph) is not None
    assert feature in {*features_of(graph), "record and checkpoint", "gate through hooks"}  # the last two are of ways
    assert failures(graph, allowed=frozenset(FEATURES)) == []


def test_a_seed_makes_one_graph():
    assert [make(seed) for seed in range(20)] == [make(seed) for seed in range(20)]
    assert len({make(seed) for seed in range(20)}) == 20


def test_every_kind_in_every_form_is_made():
    made = {(node.kind, node.form) for seed in range(3000) for node in make(seed, frozenset(FEATURES)).nodes}
    assert made == {(kind, form) for kind in KINDS for form in KINDS[kind].forms}


def test_the_code_of_a_graph_runs_by_itself():
    graph = make(3)
    assert isinstance(model_of(graph), nn.Module)
    assert code(graph).startswith("class Model")


def test_a_planted_fault_is_found_and_shrunk(monkeypatch):
    """The command must be able to fail: gamma in place of epsilon is wrong at a single layer."""
    monkeypatch.setitem(checks.COMPOSITES, "Epsilon", checks.COMPOSITES["Gamma"])
    graph = make(12)
    found = failures(graph, ("Epsilon",))
    assert any("off by" in line for line in found)
    small, lines = shrunk(graph, found, ("Epsilon",), frozenset())
    assert len(small.nodes) == 1
    assert lines


def test_the_oracle_knows_its_way_without_rules():
    """For LRP-0, where nothing is a product or a norm, relevance is the gradient times the input."""
    graph = of(("relu", (1,)), ("layer", (2,)), ("add", (1, 3)), ("mean", (4,)), ("flip", (5,)))
    model, x = model_of(graph), checks.input_of(graph).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    found = checks.Interpreter(graph, model, x).relevance("AttnLRP", 1)
    assert checks.apart(found, (x * gradient).detach()) < 1e-12
