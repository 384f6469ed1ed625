"""Contexts hold for the code that entered them: in threads, tasks, generators; and end wherever they are ended."""

import asyncio
import copy
import gc
import io
import pickle
import sys
import threading
import warnings
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import nn

import lrphooks
from interrupting import left, small
from lrphooks import Composite
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon, ZPlus

EPSILON, ZPLUS = (Composite([(AnyLinear, rule)]) for rule in (Epsilon(0.1), ZPlus()))


def explained(model, x):
    """The relevance under the rules that hold here."""
    leaf = x.clone().requires_grad_()
    model(leaf)[:, 0].sum().backward()
    return leaf.grad


@pytest.fixture
def case():
    """A model, an input, and its relevance under two composites and its plain gradient, all different."""
    model, x = small()
    expected = [lrphooks.lrp(copy.deepcopy(model), x, 0, composite) for composite in (EPSILON, ZPLUS)]
    plain = explained(copy.deepcopy(model), x)
    assert not torch.allclose(*expected)
    return model, x, *expected, plain


def in_thread(act, *args):
    """Run a function in a thread of its own, and return what it returned."""
    found = []
    thread = threading.Thread(target=lambda: found.append(act(*args)))
    thread.start()
    thread.join()
    return found[0]


# --- threads ---


def test_a_context_may_end_in_another_thread(case):
    model, x, epsilon, _, plain = case
    context = EPSILON.context(model)
    context.__enter__()
    assert torch.equal(explained(model, x), epsilon)
    in_thread(context.__exit__, None, None, None)
    assert not left(model)
    assert torch.equal(explained(model, x), plain)


def test_a_generator_may_be_ended_by_another_thread(case):
    """Closed there, or collected as garbage."""
    model, x, epsilon, _, plain = case

    def steps():
        with EPSILON.context(model):
            while True:
                yield explained(model, x)

    for end in ("close", "collect"):
        generator = steps()
        assert torch.equal(next(generator), epsilon)
        if end == "close":
            in_thread(generator.close)
        else:
            cycle = [generator]
            cycle.append(cycle)
            del generator, cycle
            in_thread(gc.collect)
        assert not left(model)
        assert torch.equal(explained(model, x), plain)


def test_a_thread_that_starts_within_a_block_has_the_plain_model(case):
    model, x, epsilon, _, plain = case
    with EPSILON.context(model):
        assert torch.equal(in_thread(explained, model, x), plain)
        assert in_thread(lambda: model(x)).requires_grad
        assert torch.equal(explained(model, x), epsilon)


def test_a_model_explained_by_several_threads_at_once(case):
    model, x, epsilon, zplus, _ = case
    barrier, wrong = threading.Barrier(4), []

    def work(composite, expected):
        barrier.wait()
        for _ in range(20):
            with composite.context(model):
                wrong.extend(composite for _ in range(3) if not torch.equal(explained(model, x), expected))

    rules = [(EPSILON, epsilon), (ZPLUS, zplus)] * 2
    threads = [threading.Thread(target=work, args=pair) for pair in rules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not left(model)


# --- tasks ---


def test_interleaved_tasks_have_their_own_rules(case):
    model, x, epsilon, zplus, plain = case

    async def task(composite):
        found = []
        with composite.context(model):
            for _ in range(3):
                found += (explained(model, x),)
                await asyncio.sleep(0)
        return found

    async def bystander():
        found = []
        for _ in range(3):
            found += (explained(model, x),)
            await asyncio.sleep(0)
        return found

    async def main():
        return await asyncio.gather(task(EPSILON), task(ZPLUS), bystander())

    for found, expected in zip(asyncio.run(main()), (epsilon, zplus, plain), strict=True):
        assert all(torch.equal(each, expected) for each in found)
    assert not left(model)


def test_tasks_and_threads_that_take_the_context_over_follow_it(case):
    """Those that asyncio starts within a block have its rules."""
    model, x, epsilon, _, _ = case

    async def main():
        async def child():
            return explained(model, x)

        with EPSILON.context(model):
            return await asyncio.gather(child(), child(), asyncio.to_thread(explained, model, x))

    assert all(torch.equal(found, epsilon) for found in asyncio.run(main()))
    assert not left(model)


def test_a_task_that_is_cancelled_leaves_nothing(case):
    model, x, _, _, plain = case

    async def waits():
        with EPSILON.context(model):
            explained(model, x)
            await asyncio.sleep(60)

    async def main():
        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        assert torch.equal(explained(model, x), plain)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    assert not left(model)


# --- generators ---


@contextmanager
def rules(composite, model):
    with composite.context(model):
        yield


@pytest.mark.parametrize("wrapped", [False, True])
def test_generators_that_take_turns_have_their_own_rules(case, wrapped):
    """Context variables do not tell generators apart."""
    model, x, epsilon, zplus, _ = case

    def steps(composite):
        with rules(composite, model) if wrapped else composite.context(model):
            for _ in range(3):
                yield explained(model, x)

    for first, second in zip(steps(EPSILON), steps(ZPLUS), strict=True):
        assert torch.equal(first, epsilon)
        assert torch.equal(second, zplus)
    assert not left(model)


def test_generators_that_take_turns_on_a_model_and_its_part(case):
    """The rules of a part hold for who entered them, or within."""
    model, x, epsilon, _, _ = case
    part = model[0]

    def whole():
        with EPSILON.context(model):
            for _ in range(2):
                yield explained(model, x)

    def of_part():
        with ZPLUS.context(part):
            for _ in range(2):
                yield explained(part, x)

    for found, _ in zip(whole(), of_part(), strict=True):
        assert torch.equal(found, epsilon)
    with EPSILON.context(model), rules(ZPLUS, part):
        assert not torch.allclose(explained(model, x), epsilon)


def test_contexts_nest_by_any_means(case):
    """In helpers, in fixtures that wait while a test runs, and on a stack that ends them in another order."""
    model, x, epsilon, zplus, plain = case
    with EPSILON.context(model):
        with rules(ZPLUS, model):
            assert torch.equal(explained(model, x), zplus)
        assert torch.equal(explained(model, x), epsilon)
    with rules(EPSILON, model):
        with ZPLUS.context(model):
            assert torch.equal(explained(model, x), zplus)
        assert torch.equal(explained(model, x), epsilon)
    stack = ExitStack()
    stack.enter_context(EPSILON.context(model))
    inner = stack.enter_context(ExitStack())
    inner.enter_context(ZPLUS.context(model))
    assert torch.equal(explained(model, x), zplus)
    moved = inner.pop_all()
    stack.close()
    assert torch.equal(explained(model, x), zplus)
    moved.close()
    assert torch.equal(explained(model, x), plain)
    assert not left(model)


@pytest.fixture
def entered(case):
    """A context that a fixture enters, and ends after the test."""
    model, x, epsilon, _, _ = case
    with EPSILON.context(model):
        yield model, x, epsilon
    assert not left(model)


def test_a_context_of_a_fixture_holds_in_the_test(entered):
    model, x, epsilon = entered
    assert torch.equal(explained(model, x), epsilon)


def test_a_context_that_ends_twice_ends_once(case):
    model, x, epsilon, _, _ = case
    context = EPSILON.context(model)
    with context:
        assert torch.equal(explained(model, x), epsilon)
    context.__exit__(None, None, None)
    assert not left(model)


# --- copies, and depth ---


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class OwnState(nn.Sequential):
    """Says itself what of it is copied, as some models do."""

    def __getstate__(self):
        return dict(vars(self))


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "save": saved}


@pytest.mark.parametrize("way", COPIES)
def test_copies_made_inside_a_block_have_nothing_of_it(case, way):
    model, x, epsilon, _, plain = case
    with EPSILON.context(model):
        assert torch.equal(explained(model, x), epsilon)
        twin = COPIES[way](model)
        assert not {"hooks", "functions in place of calls", "flags of hooks"} & left(twin).keys()
        assert torch.equal(explained(twin, x), plain)
    assert torch.equal(explained(twin, x), plain)
    assert torch.equal(lrphooks.lrp(twin, x, 0, EPSILON), epsilon)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", ["own state", "backward hooks"])
def test_copies_made_by_ways_of_their_own_are_rid_of_it_when_they_are_called(case, way, kind):
    model, x, epsilon, _, plain = case
    if kind == "own state":
        model = OwnState(*model)
    else:
        model[0].register_full_backward_hook(nothing)
    with EPSILON.context(model):
        assert torch.allclose(explained(model, x), epsilon)
        twin = COPIES[way](model)
    for _ in range(2):
        torch.testing.assert_close(explained(twin, x), plain)
        assert not {"hooks", "functions in place of calls"} & left(twin).keys()
    assert not left(model)


def nothing(*_):
    """A hook."""


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("kind", [nn.Sequential, Around])
def test_models_may_be_nested_nearly_as_deeply_as_without_rules(kind):
    """A module takes no frame of Python's stack more; the operations inside of the innermost take a few."""

    def deepest(explain):
        shallow, deep = 1, sys.getrecursionlimit()
        while deep - shallow > 1:
            model = nn.Linear(4, 3)
            for _ in range((shallow + deep) // 2):
                model = kind(model)
            try:
                explain(model)
            except RecursionError:
                deep = (shallow + deep) // 2
            else:
                shallow = (shallow + deep) // 2
        return shallow

    x = torch.randn(2, 4)
    plain = deepest(lambda model: explained(model, x))
    assert deepest(lambda model: lrphooks.lrp(model, x, 0)) > plain - 10


# --- what runs, and what does not ---


def test_a_context_without_a_forward_pass_tells(case):
    model, x, *_ = case
    message = r"model \(Sequential\) ended without a forward pass.*model\(x\)"
    with pytest.warns(UserWarning, match=message) as told, EPSILON.context(model):
        in_thread(lambda: model(x))
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError), EPSILON.context(model):
            raise KeyError
        with pytest.raises(lrphooks.LRPError), torch.no_grad(), EPSILON.context(model):
            model(x)
        with EPSILON.context(model), pytest.raises(lrphooks.LRPError):
            model(x)
        # An outer context that an inner one takes the place of.
        with EPSILON.context(model), ZPLUS.context(model):
            explained(model, x)
