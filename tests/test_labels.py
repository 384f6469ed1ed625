"""Labels in place of indices: wherever a model keeps the names of its classes."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lrphooks import explain, lrp, lrp_targets
from lrphooks.rules import Epsilon
from lrphooks.targets import AgainstOthers, Difference, SoftmaxGradient
from small_networks import every_layer

X = torch.randn(2, 3)
EXACT = every_layer(Epsilon(0))
NAMES = ["tabby, tabby cat", "crane", "crane", "dog"]

PLACES = {
    "id2label": lambda m: setattr(m, "config", SimpleNamespace(id2label=dict(enumerate(NAMES)))),
    "id2label of a file": lambda m: setattr(
        m, "config", SimpleNamespace(id2label={str(i): n for i, n in enumerate(NAMES)})
    ),
    "label2id": lambda m: setattr(
        m, "config", SimpleNamespace(label2id={n + "!" * (i == 2): i for i, n in enumerate(NAMES)})
    ),
    "class_names": lambda m: setattr(m, "class_names", NAMES),
    "classes": lambda m: setattr(m, "classes", tuple(NAMES)),
    "names": lambda m: setattr(m, "names", dict(enumerate(NAMES))),
    "categories": lambda m: setattr(m, "meta", {"categories": NAMES}),
}


def named(place="class_names"):
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    PLACES[place](model)
    return model


@pytest.mark.parametrize("place", PLACES)
def test_a_label_is_the_index_that_the_model_gives_it(place):
    model = named(place)
    for label, index in (("dog", 3), ("tabby, tabby cat", 0), ("tabby", 0), ("Tabby Cat", 0)):
        assert torch.equal(lrp(model, X, label, EXACT), lrp(model, X, index, EXACT))
    assert torch.equal(lrp(model, X, ["dog", "tabby"], EXACT), lrp(model, X, [3, 0], EXACT))
    assert torch.equal(lrp(model, X, ["dog", 1], EXACT), lrp(model, X, [3, 1], EXACT))


@pytest.mark.parametrize(
    ("by_label", "by_index"),
    [
        (Difference("dog", "tabby"), Difference(3, 0)),
        (Difference(["dog", "tabby"], 1), Difference([3, 0], 1)),
        (AgainstOthers("dog"), AgainstOthers(3)),
        (SoftmaxGradient("dog"), SoftmaxGradient(3)),
    ],
    ids=repr,
)
def test_labels_within_targets(by_label, by_index):
    model = named()
    assert torch.equal(lrp(model, X, by_label, EXACT), lrp(model, X, by_index, EXACT))
    assert explain(model, X, by_label, EXACT).target == by_label
    assert torch.equal(lrp_targets(model, X, [0, by_label], EXACT)[1], lrp(model, X, by_index, EXACT))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("dgo", r"none of the 4 classes of Linear is named 'dgo'\. Did you mean 'dog'\?"),
        ("xylophone", r"is named 'xylophone'\. They begin with tabby, tabby cat, crane, dog\."),
        ("crane", r"'crane' stands for several classes: 1 \(crane\), 2 \(crane\)\. Give the index\."),
    ],
)
def test_labels_that_stand_for_no_class_or_for_several(label, message):
    for target in (label, [label, "dog"], Difference("dog", label)):
        with pytest.raises(ValueError, match=f"lrp: .*{message}"):
            lrp(named(), X, target, EXACT)


def test_a_model_that_knows_no_names():
    with pytest.raises(TypeError, match=r"got 'cat', and Linear does not know the names.*model\.class_names = "):
        lrp(nn.Linear(3, 4), X, "cat", EXACT)
    strange = nn.Linear(3, 4)
    strange.classes, strange.names, strange.meta = 10, {"a": object()}, {"categories": None}
    with pytest.raises(TypeError, match="does not know the names"):
        lrp(strange, X, "cat", EXACT)
