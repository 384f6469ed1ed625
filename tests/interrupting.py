"""Interrupts at any instant, and what they leave behind.

Run it for the experiment with real signals, which come at random: ``python tests/interrupting.py [runs] [seed]``.
"""

# ruff: noqa: T201 -- the experiment reports as it goes

import _thread
import dis
import functools
import inspect
import random
import signal
import sys
import time
import warnings
from contextlib import contextmanager

import torch
from torch import nn
from torch._dynamo import eval_frame
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

import lrphooks
from lrphooks import composites
from lrphooks.engine.eager import EAGER
from lrphooks.engine.interception import THREAD
from lrphooks.torch_private import top_saved_tensors_hooks


def left(model):
    """What is left of contexts, on a model and in the current thread and process."""
    found = {
        "hooks": [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks],
        "hooks on saved tensors": top_saved_tensors_hooks(True),
        "functions in place of calls": [n for n, m in model.named_modules() if "_compiled_call_impl" in vars(m)],
        "flags of hooks": [
            name
            for name, m in model.named_modules()
            if m._forward_hooks_with_kwargs or m._forward_hooks_always_called or m._forward_pre_hooks_with_kwargs
        ],
        "function modes": _get_current_function_mode_stack(),
        "stance": [eval_frame._stance.stance] if eval_frame._stance.stance != "default" else [],
        "contexts": list(THREAD.sessions),
        "forward passes": list(THREAD.runs),
        "users of the stance": list(EAGER._users) + list(EAGER._idle),
        "gradients": [] if torch.is_grad_enabled() else ["off"],
        "inference mode": ["on"] if torch.is_inference_mode_enabled() else [],
    }
    return {what: things for what, things in found.items() if things}


#: Instructions within which Python may let an interrupt in, or which lead to where it does: calls, the beginning of
#: what is called, what follows a return, and jumps back; by the beginnings of their names. Before any other instruction
#: an interrupt waits for the next of these, which ``test_instants_are_all_that_there_are`` measures.
LET_IN = (
    *("CALL", "FOR_ITER", "SEND", "YIELD_FROM", "BEFORE_WITH", "SETUP_WITH", "WITH_EXCEPT_START"),
    *("RETURN", "YIELD_VALUE", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "POP_JUMP_BACKWARD"),
    # Jumps on a condition go back and forth by one name in Python 3.10; since 3.12 they go forth alone.
    *(["POP_JUMP_IF"] if sys.version_info < (3, 11) else []),
)


@functools.cache
def _names(code):
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


class _Interrupt:
    """What brings a signal where it is negated: that is one instruction, at which no signal is dealt with yet."""

    __neg__ = staticmethod(functools.partial(_thread.interrupt_main, signal.SIGUSR1))


_INTERRUPT = _Interrupt()


class Instants:
    """The instants at which Python lets an interrupt in, in files whose names end in some way.

    Those are the beginnings of functions, and places within instructions of some kinds (``names``). ``at`` brings a
    KeyboardInterrupt in the instant of that number: at the beginning of a function it is raised; before an instruction
    there is a signal, so that the interpreter itself chooses where to deal with it, as each release of Python does.
    Which generators go on is up to the instructions that ask for it.
    """

    def __init__(self, files, at=None, names=LET_IN):
        self.files, self.at, self.names = files, at, names
        self.count = 0
        self.where = None

    def __enter__(self):
        self._before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
        # Python 3.12 asks, when tracing begins, whether any frame wants to see instructions.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self._called)
        return self

    def __exit__(self, *exception):
        sys.settrace(None)
        signal.signal(signal.SIGUSR1, self._before)

    def _called(self, frame, event, argument):
        if not frame.f_code.co_filename.endswith(self.files):
            return None
        # Python 3.13 looks at the first where the second is set.
        frame.f_trace = self._inside
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if not frame.f_code.co_flags & inspect.CO_GENERATOR and self._is_it(frame, "at the beginning"):
            raise KeyboardInterrupt
        return self._inside

    def _inside(self, frame, event, argument):
        if event == "opcode":
            name = _names(frame.f_code)[frame.f_lasti]
            if name.startswith(self.names) and self._is_it(frame, name):
                # Nothing may come between this and the instruction.
                return -_INTERRUPT
        return self._inside

    def _is_it(self, frame, what):
        self.count += 1
        if self.count - 1 != self.at:
            return False
        self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}, {what}"
        sys.settrace(None)
        return True


def small():
    """A network and an input."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(2, 4)


class Checkpointed(nn.Sequential):
    """A part that a backward pass runs again."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def small_checkpointed():
    """A network with a checkpoint, and an input."""
    model, x = small()
    return nn.Sequential(nn.Linear(4, 4), Checkpointed(*model)), x


def by_context(model, x):
    """Relevance of output 0 by a context."""
    leaf = x.clone().requires_grad_()
    with composites.AttnLRP().context(model):
        model(leaf)[:, 0].sum().backward()
    return leaf.grad


def after_the_block(model, x):
    """The same with the backward pass after the block, where a checkpoint brings the rules back."""
    leaf = x.clone().requires_grad_()
    with composites.AttnLRP().context(model):
        explained = model(leaf)[:, 0].sum()
    explained.backward()
    return leaf.grad


def by_nested_contexts(model, x):
    """The same with a context on a part."""
    leaf = x.clone().requires_grad_()
    with composites.AttnLRP().context(model), composites.AttnLRP().context(model[0]):
        model(leaf)[:, 0].sum().backward()
    return leaf.grad


@contextmanager
def rules(model):
    """A context inside of a context manager of the user's own."""
    with composites.AttnLRP().context(model):
        yield


def by_wrapped_context(model, x):
    """The same by a context manager of the user's own."""
    leaf = x.clone().requires_grad_()
    with rules(model):
        model(leaf)[:, 0].sum().backward()
    return leaf.grad


WAYS = {
    "context": by_context,
    "nested contexts": by_nested_contexts,
    "wrapped context": by_wrapped_context,
    "lrp": lambda model, x: lrphooks.lrp(model, x, 0, composites.AttnLRP()),
    "explain": lambda model, x: lrphooks.explain(model, x, 0, composites.AttnLRP(), record="0").relevance,
    "audit": lambda model, x: lrphooks.audit(model, x, 0, composites.AttnLRP()) and None,
}


#: Those that run a checkpoint again, inside of a context and after it.
CHECKPOINTED_WAYS = {"checkpoint": by_context, "checkpoint after the block": after_the_block}


def without_lrphooks(model, x):
    """The plain gradient."""
    leaf = x.clone().requires_grad_()
    model(leaf)[:, 0].sum().backward()
    return leaf.grad


#: Where torch itself enters and leaves a checkpoint.
FILES_OF_CHECKPOINTS = ("torch/utils/checkpoint.py", "torch/autograd/graph.py")


def remove_saving_hooks():
    """Take off the hooks on saved tensors that torch left."""
    while top_saved_tensors_hooks(True):
        torch._C._autograd._pop_saved_tensors_default_hooks()


def innermost(traceback, but=__file__):
    """Return the file, function and instruction that an interrupt came in."""
    places = [(but, "", -1, None)]
    while traceback is not None:
        code, at = traceback.tb_frame.f_code, traceback.tb_lasti
        if code.co_filename != but:
            while at >= 0 and at not in _names(code):
                at -= 2  # what an instruction keeps behind itself
            if _names(code).get(at) == "PRECALL":
                # In Python 3.11 this does the call by itself where it knows how, in place of the next instruction.
                at += 4
            places.append((code.co_filename, code.co_name, at, _names(code).get(at)))
        traceback = traceback.tb_next
    return places[-1]


def _wrong(model, x, expected):
    try:
        with torch.no_grad():
            model(x)
        if not torch.equal(lrphooks.lrp(model, x, 0, composites.AttnLRP()), expected):
            return {"relevance": "differs"}
    except (RuntimeError, KeyboardInterrupt) as error:
        return {"error": repr(error)}
    return {}


def experiment(runs, seed=0):
    """Interrupt explanations by a timer at random moments; print how many were interrupted, and what was left.

    The gradient without lrphooks is the control. Where torch itself enters or leaves a checkpoint, its hooks on saved
    tensors stay with and without lrphooks; those are counted apart.
    """
    fired = []

    def interrupt(number, frame):
        fired.append(True)
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    dice = random.Random(seed)
    ways = [(name, small, way) for name, way in WAYS.items()]
    ways += [(name, small_checkpointed, way) for name, way in CHECKPOINTED_WAYS.items()]
    ways.append(("checkpoint without lrphooks", small_checkpointed, without_lrphooks))
    models = {make: make() for make in (small, small_checkpointed)}
    expected = {make: lrphooks.lrp(*models[make], 0, composites.AttnLRP()) for make in models}
    interrupted, faults = 0, []
    # Of each way: how often it was interrupted, how often Python dropped the interrupt, how often torch left hooks.
    counts = {name: [0, 0, 0] for name, _, _ in ways}
    while interrupted < runs:
        name, make, explain = dice.choice(ways)
        model, x = models[make]
        before = time.perf_counter()
        explain(model, x)
        took = time.perf_counter() - before
        fired.clear()
        where = None
        try:
            signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-6, 1.05 * took))
            explain(model, x)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt as interruption:
            where = innermost(interruption.__traceback__)
        if not fired:
            continue
        interrupted += 1
        # An interrupt in the callback of a weak reference is printed and forgotten.
        counts[name][0 if where else 1] += 1
        found = left(model)
        if set(found) == {"hooks on saved tensors"} and where and where[0].endswith(FILES_OF_CHECKPOINTS):
            counts[name][2] += 1
            found = {}
            remove_saving_hooks()
        found.update(_wrong(model, x, expected[make]))
        if found:
            faults.append((name, found))
            print(interrupted, name, where, found, flush=True)
            torch.set_grad_enabled(True)
            remove_saving_hooks()
            models[make] = make()
        if interrupted % 1000 == 0:
            print(f"{interrupted} interrupted, {len(faults)} left something", flush=True)
    print("way: interrupted, dropped by Python, of both: hooks that torch left")
    for name, numbers in counts.items():
        print(f"{name}: {', '.join(map(str, numbers))}")
    return faults


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    arguments = [int(a) for a in sys.argv[1:]]
    sys.exit(bool(experiment(*(arguments or [20_000]))))
