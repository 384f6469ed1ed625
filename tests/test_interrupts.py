"""A KeyboardInterrupt at any instant leaves nothing: no hooks, no function mode, no stance, no context."""

import gc
import sys
from collections import Counter

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import lrphooks
from interrupting import (
    CHECKPOINTED_WAYS,
    FILES_OF_CHECKPOINTS,
    WAYS,
    Instants,
    innermost,
    left,
    remove_saving_hooks,
    small,
    small_checkpointed,
    without_lrphooks,
)
from lrphooks import LRPError, composites
from lrphooks.engine.eager import EAGER

#: Where blocks are entered and left, and the functions of torch and Python that do so.
FILES = (
    *(f"lrphooks/engine/{name}.py" for name in ("contexts", "eager", "ending", "hooks", "interception", "session")),
    "lrphooks/forward.py",
    "torch/overrides.py",
    "/contextlib.py",
)

#: Each way, and which of its instants are tried: a prime number of steps apart, so that all kinds come up.
CASES = {
    "context": (small, WAYS["context"], 1),
    "nested contexts": (small, WAYS["nested contexts"], 5),
    "wrapped context": (small, WAYS["wrapped context"], 5),
    "lrp": (small, WAYS["lrp"], 5),
    "explain": (small, WAYS["explain"], 7),
    "audit": (small, WAYS["audit"], 7),
    "checkpoint": (small_checkpointed, CHECKPOINTED_WAYS["checkpoint"], 7),
    "checkpoint after the block": (small_checkpointed, CHECKPOINTED_WAYS["checkpoint after the block"], 1),
}

#: The instructions within which Python lets an interrupt in; None is the beginning of a function, before the first.
INSTRUCTIONS = {
    (3, 10): {None, "CALL_FUNCTION", "CALL_METHOD", "CALL_FUNCTION_KW", "CALL_FUNCTION_EX", "JUMP_ABSOLUTE"}
    | {"POP_JUMP_IF_FALSE", "POP_JUMP_IF_TRUE", "YIELD_VALUE"},
    (3, 11): {"RESUME", "CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD"}
    | {f"POP_JUMP_BACKWARD_IF_{condition}" for condition in ("FALSE", "TRUE", "NONE", "NOT_NONE")},
    (3, 12): {"RESUME", "CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD"},
    (3, 13): {"RESUME", "CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD"},
}


def hooks_stay_with_the_traceback():
    """Whether this torch leaves a checkpoint waiting where its function raises, until the traceback dies."""

    def interrupted(x):
        raise KeyboardInterrupt

    try:
        checkpoint(interrupted, torch.ones(1, requires_grad=True), use_reentrant=False)
    except KeyboardInterrupt:
        return bool(left(torch.nn.Module()))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # generators that end while interrupted
@pytest.mark.parametrize("name", CASES)
def test_an_interrupt_at_any_instant_leaves_nothing(name):
    make, explain, step = CASES[name]
    model, x = make()
    expected = lrphooks.lrp(model, x, 0, composites.AttnLRP())
    explain(model, x)
    with Instants(FILES) as instants:
        explain(model, x)
    assert instants.count > 500
    assert not left(model)
    kept_by_torch = "checkpoint" in name and hooks_stay_with_the_traceback()
    came = 0
    for at in range(0, instants.count, step):
        interrupted, at_once = Instants(FILES, at), {}
        try:
            with interrupted:
                explain(model, x)
        except KeyboardInterrupt as interruption:
            came += 1
            at_once = left(model)
            ran = codes(interruption.__traceback__)
            # It may come in torch's own code, between the setting of the hooks, in a generator, and the function that
            # they are for.
            between = ran[-1].co_filename == checkpoint.__wrapped__.__code__.co_filename
            if between or (kept_by_torch and checkpoint.__wrapped__.__code__ in ran):
                at_once.pop("hooks on saved tensors", None)
        # A context manager of the user's own lives as long as the traceback, and so does the block inside of it.
        assert not at_once or name == "wrapped context", (at, interrupted.where)
        assert not left(model), (at, interrupted.where)
        with torch.no_grad():
            model(x)
        if at % 11 == 0:
            assert torch.equal(lrphooks.lrp(model, x, 0, composites.AttnLRP()), expected), (at, interrupted.where)
    assert came == len(range(0, instants.count, step))


def codes(traceback):
    """The code that each frame of a traceback ran."""
    found = []
    while traceback is not None:
        found.append(traceback.tb_frame.f_code)
        traceback = traceback.tb_next
    return found


def test_instants_are_all_that_there_are():
    """An interrupt before any other instruction comes where one of those that are tried does."""
    model, x = small()
    explain = WAYS["context"]
    explain(model, x)

    def places(step, **names):
        found = set()
        with Instants(FILES, **names) as instants:
            explain(model, x)
        for at in range(0, instants.count, step):
            try:
                with Instants(FILES, at, **names):
                    explain(model, x)
            except KeyboardInterrupt as interruption:  # noqa: PERF203
                found.add(innermost(interruption.__traceback__))
        return found

    tried, others = places(1), places(5, names="")
    assert not others - tried
    assert len(others) > 100
    expected = INSTRUCTIONS[sys.version_info[:2]]
    assert {instruction for *_, instruction in tried} <= expected
    assert len({instruction for *_, instruction in tried}) >= 4, "beginnings, calls and jumps back"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", CHECKPOINTED_WAYS)
def test_a_checkpoint_leaves_no_more_than_without_lrphooks(name):
    """torch's own blocks have instants at which hooks on saved tensors stay for good; no others come from here."""

    def leaving(explain):
        model, x = small_checkpointed()
        explain(model, x)
        with Instants(FILES_OF_CHECKPOINTS) as instants:
            explain(model, x)
        found = Counter()
        for at in range(instants.count):
            interrupted = Instants(FILES_OF_CHECKPOINTS, at)
            try:
                with interrupted:
                    explain(model, x)
            except KeyboardInterrupt:
                pass
            found.update((interrupted.where, what) for what in left(model))
            remove_saving_hooks()
        return found

    plain = leaving(without_lrphooks)
    assert {what for _, what in plain} == {"hooks on saved tensors"}
    assert leaving(CHECKPOINTED_WAYS[name]) == plain


def test_instants_are_found_where_an_interrupt_does_harm():
    """The experiment can fail: a plain ``__exit__`` is not safe in its first instant."""

    class Fragile:
        def __init__(self, model):
            self.session = composites.AttnLRP().context(model)

        def __enter__(self):
            self.session.__enter__()

        def __exit__(self, *exception):
            self.session.__exit__(*exception)

    model, x = small()

    def explain():
        with Fragile(model):
            model(x.clone().requires_grad_())

    with Instants(("test_interrupts.py",)) as instants:
        explain()
    found = []
    for at in range(instants.count):
        try:
            with Instants(("test_interrupts.py",), at):
                explain()
        except KeyboardInterrupt:  # noqa: PERF203
            found.append(left(model))
    assert any(found)
    assert not left(model), "what the traceback held is gone with it"


@pytest.mark.parametrize("what", ["model", "part"])
def test_what_is_left_takes_itself_off(what):
    """As after a second interrupt, which comes while the first is dealt with."""
    model, x = small()
    session = composites.AttnLRP().context(model)
    session.__enter__()
    # Whatever ends the block stops halfway.
    session.block.open = False
    EAGER.remove(session.block)
    assert left(model)
    with torch.no_grad():
        (model if what == "model" else model[0])(x)
    assert not left(model)
    session.block.close()


def test_a_function_mode_that_is_left_does_no_harm():
    """torch's own helpers may put a mode on the stack again, once the traceback that held them dies."""
    model, x = small()
    expected = lrphooks.lrp(model, x, 0)
    modes = []
    model[1].register_forward_hook(lambda *_: modes.extend(left(model)["function modes"]))
    assert torch.equal(lrphooks.lrp(model, x, 0), expected)
    torch.overrides.TorchFunctionMode.__enter__(modes[0])
    try:
        assert left(model)["function modes"] == modes
        y = x.clone().requires_grad_()
        (y * y.sigmoid()).sum().backward()
        s = x.sigmoid()
        torch.testing.assert_close(y.grad, s + x * s * (1 - s))
        assert torch.equal(lrphooks.lrp(model, x, 0), expected)
        assert not [mode for mode in left(model).get("function modes", ()) if mode is modes[0]]
    finally:
        if left(model).get("function modes"):
            torch.overrides.TorchFunctionMode.__exit__(modes[0], None, None, None)


def test_an_interrupted_model_may_be_called_again_inside_the_block():
    model, x = small()
    expected = lrphooks.lrp(model, x, 0, composites.AttnLRP())
    with composites.AttnLRP().context(model):
        with Instants(FILES) as instants:
            model(x.clone().requires_grad_())
        for at in range(0, instants.count, 3):
            leaf = x.clone().requires_grad_()
            try:
                with Instants(FILES, at):
                    model(leaf)
            except KeyboardInterrupt:
                pass
            model(leaf)[:, 0].sum().backward()
            assert torch.equal(leaf.grad, expected), at
    assert not left(model)


def test_an_entered_context_that_is_dropped_is_over():
    model, x = small()
    context = composites.AttnLRP().context(model)
    context.__enter__()
    assert left(model)
    del context
    gc.collect()
    assert not left(model)
    with torch.no_grad():
        model(x)


def test_a_context_that_could_not_be_entered_leaves_nothing():
    model, _ = small()
    with (
        pytest.raises(LRPError),
        composites.Composite([("nothing of that name", lrphooks.rules.Epsilon())]).context(model),
    ):
        pass
    assert not left(model)
