"""What torch does not promise to keep is used in one module alone, which says what it lacks."""

import ast
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import lrphooks
from lrphooks import torch_private

PACKAGE = Path(lrphooks.__file__).parent
MODULE = Path(torch_private.__file__)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


X = torch.ones(1, requires_grad=True)
#: What has private attributes that a module of ours could use without naming torch.
HOLDERS = (torch.Tensor, nn.Linear(1, 1), torch.autograd.Function, X.exp().grad_fn, Double.apply(X).grad_fn)


def private(name):
    return name.startswith("_") and not name.startswith("__")


def of_holders(name):
    return private(name) and any(hasattr(holder, name) for holder in HOLDERS)


def chain(node):
    """Return ["torch", "_C", "_nn"] of torch._C._nn, and nothing of what does not begin with a name."""
    names = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id, *names] if isinstance(node, ast.Name) else []


def uses(source):
    """Return the private names of torch that a module uses: imported, as attributes, as strings, and as keywords."""
    tree = ast.parse(source)
    ours, found = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [alias.name for alias in node.names]
            if node.module.split(".")[0] == "torch":
                found += [f"{node.module}.{n}" for n in names if any(map(private, [*node.module.split("."), n]))]
        elif isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name[:6] == "torch." and any(map(private, a.name.split(".")))]
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            ours.add(node.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            names = chain(node)
            of_torch = bool(names) and names[0] in ("torch", "nn", "F", "Tensor")
            own = len(names) == 2 and names[0] in ("self", "cls", *ours)
            if of_torch or (not own and of_holders(node.attr)):
                found.append(".".join(names) or node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and of_holders(node.value):
            found.append(repr(node.value))
        elif isinstance(node, ast.Call) and chain(node.func)[:1] in (["torch"], ["make_fx"]):
            found += [k.arg for k in node.keywords if k.arg and private(k.arg)]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_other_module_uses_a_private_name_of_torch(path):
    assert uses(path.read_text("utf-8")) == [] or path == MODULE


@pytest.mark.parametrize(
    "source",
    [
        "from torch._ops import OpOverload",
        "from torch.utils.checkpoint import _CheckpointFrame",
        "import torch._dynamo.config",
        "torch._C._nn",
        "nn.Module._call_impl",
        "tensor._version",
        "f(x)._base",
        "y._is_view()",
        "module._forward_hooks",
        "getattr(node, '_forward_cls', None)",
        "setattr(module, '_parameters', {})",
        "torch.overrides._get_current_function_mode_stack()",
        "torch.export.export(model, _strict=True)",
    ],
)
def test_they_would_be_found(source):
    assert uses(source)


def test_the_module_imports_nothing_of_lrphooks():
    for node in ast.walk(ast.parse(MODULE.read_text("utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) else getattr(node, "names", [])
        assert not any("lrphooks" in str(getattr(name, "name", name)) for name in names)


def anew():
    """Run the module again, as another torch would have it imported."""
    spec = importlib.util.spec_from_file_location("torch_private_anew", MODULE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NEEDED = [
    (torch._C, "_current_graph_task_id"),
    (torch._C._autograd, "_top_saved_tensors_default_hooks"),
    (torch._C._autograd, "_unsafe_set_version_counter"),
    (torch._C._functorch, "get_unwrapped"),
    (torch.autograd.grad_mode, "_unsafe_preserve_version_counter"),
]


@pytest.mark.parametrize(("holder", "name"), NEEDED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_name_that_torch_lacks_is_named(monkeypatch, holder, name):
    monkeypatch.delattr(holder, name)
    with pytest.raises(
        ImportError, match=rf"needs torch\.[\w.]*{name}, which torch .* does not have\. Install another"
    ):
        anew()


OPTIONAL = [
    (torch._C, "_is_alias_of"),
    (torch._C, "_len_torch_dispatch_stack"),
    (torch, "_fused_sdp_choice"),
    (torch._C._functorch, "is_legacy_batchedtensor"),
    (torch.utils.checkpoint, "_CheckpointFrame"),
    (torch.utils.checkpoint, "_CachedTorchDispatchMode"),
]


def test_without_what_is_optional_the_answers_are_the_ordinary_ones(monkeypatch):
    for holder, name in OPTIONAL:
        monkeypatch.delattr(holder, name)
    module, x = anew(), torch.randn(2, 3)
    assert module.share_memory(x, x.view(6))
    assert not module.share_memory(x, x.clone())
    assert not module.is_batched(x)
    assert module.attention_kernel(x, x, x, None, 0.0, False) == 0
    with torch.autograd.graph.save_on_cpu():
        assert module.running_checkpoint() is None
    assert module.dispatch_modes() == 0


def test_a_checkpoint_is_known_while_its_forward_pass_runs():
    seen = []

    def inner(x):
        seen.append(torch_private.running_checkpoint())
        with torch.autograd.graph.save_on_cpu():
            seen.append(torch_private.running_checkpoint())
        return x.sin()

    assert torch_private.running_checkpoint() is None
    x = torch.randn(2, requires_grad=True)
    torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=False).sum().backward()
    first, hidden, again, _ = seen
    assert callable(first.recompute_fn)
    assert hidden is None
    assert again is None
    assert torch_private.running_checkpoint() is None
