"""Runs the recipes of examples/guides/tokens.md as they are printed, inside jit, and compares them with their references."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from support import pages
from support.references import RECIPES

PAGE = "examples/guides/tokens.md"


def random_names(heading: str, seed: int) -> dict[str, Any]:
    """The names that the recipe uses, with random contents."""
    names, _ = RECIPES[heading]
    return names(np.random.default_rng(seed))


def reference_of(heading: str, seed: int) -> dict[str, np.ndarray]:
    _, reference = RECIPES[heading]
    return reference(**random_names(heading, seed))


def is_data(x: Any) -> bool:
    """Whether the recipe takes it as an array, or as a tuple of arrays; other names are constants."""
    return isinstance(x, np.ndarray | tuple)


def known_names() -> dict[str, Any]:
    """The imports, and the function that one recipe defines and others call."""
    function, _, _ = pages.recipes(PAGE)["Rewards and ends of masked rows"].partition("\n\n")
    return pages.run(function, pages.imports(PAGE))


@functools.cache
def program(heading: str, code: str) -> Callable[[dict[str, Any]], dict[str, jax.Array]]:
    """The recipe as a function of its arrays, which returns the names that its reference defines."""
    constants = {name: x for name, x in random_names(heading, 0).items() if not is_data(x)}
    wanted = reference_of(heading, 0)

    def outputs(arrays: dict[str, Any]) -> dict[str, jax.Array]:
        result = pages.run(code, known_names() | constants | arrays)
        return {name: result[name] for name in wanted}

    return jax.jit(outputs)


def outputs_of(heading: str, seed: int, *, code: str | None = None) -> dict[str, jax.Array]:
    """What the recipe computes inside jit, or `code` in its place."""
    code = pages.recipes(PAGE)[heading] if code is None else code
    return program(heading, code)({name: x for name, x in random_names(heading, seed).items() if is_data(x)})


def largest_difference(heading: str, seed: int, *, code: str | None = None) -> float:
    """From the reference, relative to its root mean square; infinite where an output is not a finite number."""
    outputs, reference = outputs_of(heading, seed, code=code), reference_of(heading, seed)
    differences = []
    for name, want in reference.items():
        defined = ~np.isnan(want)  # the target of a masked row is not part of the definition
        difference = np.abs(np.asarray(outputs[name]) - want)[defined]
        relative = difference.max() / np.sqrt(np.mean(want[defined] ** 2))
        differences.append(relative if np.isfinite(relative) else np.inf)
    return float(max(differences))
