"""Every function of torch is accounted for: known, passive, or unknown on purpose and then reported."""

import itertools
import operator
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import get_overridable_functions, resolve_name

from lrphooks import Composite, UnmatchedError
from lrphooks.matching import AnyLinear
from lrphooks.operations import Operation, catalog, identify, lookup
from lrphooks.rules import Epsilon
from references.operations import Sandwich, inputs, values
from references.unknown_operations import INVISIBLE, REPORTED, WITHOUT_DERIVATIVE

FUNCTIONS = {}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # some of them are deprecated
    FUNCTIONS = {resolve_name(f): f for listed in get_overridable_functions().values() for f in listed}


def base(name):
    name = name.rpartition(".")[2]
    return name if name.startswith("__") else name.rstrip("_")


UNKNOWN = {name: f for name, f in FUNCTIONS.items() if lookup(f).kind == "unknown"}


def test_every_function_of_torch_is_accounted_for():
    """A function that a new torch brings needs a kind, or a place in one of the two lists."""
    listed = {*REPORTED.split(), *WITHOUT_DERIVATIVE.split(), *INVISIBLE.split()}
    assert len(FUNCTIONS) > 1200
    assert sorted(name for name in UNKNOWN if base(name) not in listed) == []


def test_no_operation_is_known_under_one_name_and_unknown_under_another():
    known = {base(name) for name, f in FUNCTIONS.items() if lookup(f).kind not in ("unknown", "passive")}
    # torch has functions that only share a name: Tensor.values of sparse tensors, torch.linalg.cond.
    assert known & {base(name) for name in UNKNOWN} == set()


def test_every_name_of_the_catalog_is_a_function_of_torch():
    found = {operation.name for operation in catalog._known().values()}
    missing = {name for name in catalog._KINDS if name not in found and not hasattr(torch.ops.aten, name)}
    assert missing <= {"_foreach_clone", "_foreach_mm"}  # which torch has since 2.12 or 2.13


X = values(3, 3, domain="unit")
BASES = (
    values(3, 3, domain="positive"),
    X @ X.mT + torch.eye(3, dtype=torch.float64),
    values(4, domain="unit").abs(),
    X.abs(),
)
CLASSES = torch.zeros(3, dtype=torch.long)


def attempts(function):
    """Yield calls of a function on one tensor, with arguments that one or another of torch's functions takes."""
    for a in BASES:
        extras = [(), (a,), (a, a), (1,), (2,), (0.5,), (CLASSES,), (2, a), (CLASSES, a), (a, CLASSES)]
        for extra, lead in itertools.product(extras, ((), (2,), "list")):
            arguments = [t.clone() if isinstance(t, torch.Tensor) else t for t in extra]
            if lead == "list":
                yield a, lambda h, e=arguments: function([h, *e])
            else:
                yield a, lambda h, e=arguments, p=lead: function(*p, h, *e)


def differentiable(function):
    """Return a tensor and a call on it whose result has a derivative."""
    for a, call in attempts(function):
        try:
            results = call(a.clone().requires_grad_().clone())
        except (TypeError, RuntimeError, ValueError, IndexError, AttributeError, AssertionError, NotImplementedError):
            continue
        results = results if isinstance(results, tuple | list) else (results,)
        if any(isinstance(r, torch.Tensor) and r.requires_grad for r in results):
            return a, call
    raise AssertionError("no call with a derivative was found: it belongs in WITHOUT_DERIVATIVE")


#: Python functions that no mode sees, but whose operations it sees.
SEEN_INSIDE = {"pca_lowrank": "qr", "svd_lowrank": "qr"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(n for n in UNKNOWN if base(n) in REPORTED.split()))
def test_an_unknown_operation_is_reported(name):
    """With the operation, the module and the line of the model that called it."""
    try:
        a, call = differentiable(UNKNOWN[name])
    except AssertionError:
        # Another spelling of the same operation is the one with a derivative.
        assert any(base(n) == base(name) and n != name for n in UNKNOWN), name
        return
    model = torch.nn.Sequential()
    model.add_module("inner", Sandwich(inputs(), call, (a,)))
    with (
        Composite([(AnyLinear, Epsilon(0))]).context(model),
        pytest.raises(UnmatchedError, match=r"(?s)operation .*module 'inner' \(Sandwich\).*\.py:\d+\)") as caught,
    ):
        model(inputs().requires_grad_())
    assert SEEN_INSIDE.get(base(name), base(name)) in str(caught.value)


def test_the_report_names_the_line_of_the_model():
    def entropic(h):
        return torch.special.entr(h)

    model = Sandwich(inputs(), entropic, (values(2, 3, domain="positive"),))
    with (
        Composite([(AnyLinear, Epsilon(0))]).context(model),
        pytest.raises(UnmatchedError) as caught,
    ):
        model(inputs().requires_grad_())
    line = entropic.__code__.co_firstlineno + 1
    assert f"{__file__}:{line}" in str(caught.value)
    assert "(2, 3)" in str(caught.value)


def test_an_unknown_operation_on_constants_is_silent():
    weight = torch.nn.Parameter(values(2, 3, domain="positive"))
    model = Sandwich(inputs(), lambda h: h * torch.special.entr(weight), (values(2, 3),))
    with Composite([(AnyLinear, Epsilon(0))]).context(model):
        model(inputs().requires_grad_()).backward()


def test_overloads_of_other_libraries_are_unknown():
    assert lookup(torch.ops.prims.sin).kind == "unknown"
    assert lookup(torch.ops.prims.convert_element_type.default).kind == "unknown"


def test_a_library_with_a_name_like_that_of_torch_is_another():
    library = torch.library.Library("latent", "DEF")
    library.define("mul(Tensor x, Tensor y) -> Tensor")
    assert lookup(torch.ops.latent.mul) == Operation("latent.mul", "unknown")


ALIASES = {
    "mul": [torch.mul, torch.multiply, torch.Tensor.mul_, torch.Tensor.__imul__, torch.ops.aten.mul.Tensor],
    "sigmoid": [torch.sigmoid, torch.special.expit, F.sigmoid, torch.sigmoid_, torch.Tensor.sigmoid],
    "softmax": [torch.softmax, F.softmax, torch.special.softmax, torch.ops.aten._softmax.default],
    "matmul": [torch.matmul, torch.linalg.matmul, torch.Tensor.__matmul__],
    "div": [torch.div, torch.divide, torch.true_divide, torch.Tensor.__truediv__, torch.Tensor.__itruediv__],
    "norm": [torch.norm, torch.linalg.norm, torch.Tensor.norm],
    "batch_norm": [F.batch_norm, torch.batch_norm, torch.ops.aten.batch_norm.default],
    "getitem": [torch.Tensor.__getitem__],
}


@pytest.mark.parametrize("name", ALIASES)
def test_all_names_of_an_operation_are_one(name):
    assert {identify(function) for function in ALIASES[name]} == {name}


def test_only_operations_are_matchers():
    for function in (operator.add, len, torch.manual_seed):
        with pytest.raises(TypeError, match="neither an operation that a model runs"):
            Composite([(function, Epsilon())])
