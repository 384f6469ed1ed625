"""All functions by name, and all cases: a function, a spelling that is not the canonical one, a composite."""

from . import boundaries, elementwise, layers, products, structure

FUNCTIONS = [
    *elementwise.FUNCTIONS,
    *layers.FUNCTIONS,
    *products.FUNCTIONS,
    *structure.FUNCTIONS,
    *boundaries.FUNCTIONS,
]
TABLE = {function.name: function for function in FUNCTIONS}
assert len(TABLE) == len(FUNCTIONS), "two functions have one name"


def cases():
    """The cases, in the order of the table."""
    for name, function in TABLE.items():
        for spelling in list(function.spellings)[1:]:
            for composite in function.composites:
                yield name, spelling, composite
