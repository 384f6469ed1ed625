"""Interrupts at any instant, and what they leave behind.

Run it for the experiment with real signals, which come at random: ``python tests/interrupting.py [runs] [seed]``.
"""

# ruff: noqa: T201 -- the experiment reports as it goes

import dis
import functools
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


@functools.cache
def _names(code):
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


class Instants:
    """The instants at which Python lets an interrupt in, in files whose names end in some way.

    Those are the beginnings of functions, and what follows a call or a jump back. ``at`` raises KeyboardInterrupt in
    the instant of that number.
    """

    def __init__(self, files, at=None):
        self.files, self.at = files, at
        self.count = 0
        self.where = None
        self._before = {}

    def __enter__(self):
        sys.settrace(self._called)
        return self

    def __exit__(self, *exception):
        sys.settrace(None)

    def _called(self, frame, event, argument):
        if not frame.f_code.co_filename.endswith(self.files):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self._instant(frame)
        return self._inside

    def _inside(self, frame, event, argument):
        if event == "opcode":
            name = _names(frame.f_code).get(frame.f_lasti, "")
            before = self._before.get(frame, "")
            if before.startswith("CALL") or before == "JUMP_BACKWARD":
                self._instant(frame)
            self._before[frame] = name
        elif event == "return":
            self._before.pop(frame, None)
        return self._inside

    def _instant(self, frame):
        self.count += 1
        if self.count - 1 == self.at:
            self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
            self._before.clear()
            sys.settrace(None)
            raise KeyboardInterrupt


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


def experiment(runs, seed=0):
    """Interrupt explanations by a timer at random moments; print how many were interrupted, and what was left."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    dice, (model, x) = random.Random(seed), small()
    expected = WAYS["lrp"](model, x)
    interrupted, faults = 0, []
    while interrupted < runs:
        name, explain = dice.choice(list(WAYS.items()))
        before = time.perf_counter()
        explain(model, x)
        took = time.perf_counter() - before
        stopped = False
        try:
            signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-6, 1.05 * took))
            explain(model, x)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            stopped = True
        if not stopped:
            continue
        interrupted += 1
        found = left(model)
        try:
            with torch.no_grad():
                model(x)
            if not torch.equal(lrphooks.lrp(model, x, 0, composites.AttnLRP()), expected):
                found["relevance"] = "differs"
        except (RuntimeError, KeyboardInterrupt) as error:
            found["error"] = repr(error)
        if found:
            faults.append((name, found))
            print(interrupted, name, found, flush=True)
            torch.set_grad_enabled(True)
            model, x = small()
        if interrupted % 1000 == 0:
            print(f"{interrupted} interrupted, {len(faults)} left something", flush=True)
    return faults


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    arguments = [int(a) for a in sys.argv[1:]]
    sys.exit(bool(experiment(*(arguments or [20_000]))))
