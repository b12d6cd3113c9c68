"""A look into traced programs."""

from collections.abc import Iterator

import jax
from jax.extend.core import Jaxpr, JaxprEqn


def products(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Every matrix product, inside loops too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from products(inner)
