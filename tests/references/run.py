"""Running the package under test on a case: the one place that knows its public interface."""

import torch


def rule(case):
    """The package's rule for a RuleCase."""
    from lrphooks import rules

    return case.build(rules, rules.Stabilizer)


def ruled(case, *, head=0.05, unmatched="gradient"):
    """A composite: the case's rule on the module ``layer``, epsilon on every other linear map, activations pass."""
    from lrphooks import Composite
    from lrphooks.matching import Activation, AnyLinear
    from lrphooks.rules import Epsilon, Pass

    return Composite([(Activation, Pass()), ("layer", rule(case)), (AnyLinear, Epsilon(head))], unmatched=unmatched)


def everywhere(case):
    """A composite: the case's rule on every linear map, activations pass."""
    from lrphooks import Composite
    from lrphooks.matching import Activation, AnyLinear
    from lrphooks.rules import Pass

    return Composite([(Activation, Pass()), (AnyLinear, rule(case))], unmatched="gradient")


def only(case):
    """A composite: the case's rule on the module ``layer``, the plain gradient through everything else."""
    from lrphooks import Composite

    return Composite([("layer", rule(case))], unmatched="gradient")


def relevance(composite, model, x, seed=None):
    """``x.grad`` after a backward pass inside the context, seeded with the gradient ``seed`` at the output."""
    x = x.detach().clone().requires_grad_()
    with composite.context(model):
        output = model(x)
        output.backward(torch.ones_like(output) if seed is None else seed)
    return x.grad
