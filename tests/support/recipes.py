"""Runs the recipes of examples/guides/tokens.md as printed, inside jit, and compares them with their references."""

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
    return RECIPES[heading].names(np.random.default_rng(seed))


def known_names() -> dict[str, Any]:
    """The imports, and the function that one recipe defines and others call."""
    function, _, _ = pages.recipes(PAGE)["Rewards and ends of masked rows"].partition("\n\n")
    return pages.run(function, pages.imports(PAGE))


@functools.cache
def program(heading: str, code: str) -> Callable[[dict[str, Any]], dict[str, jax.Array]]:
    """The code as a function of its arrays, which returns the names that the reference of the recipe defines."""
    names = random_names(heading, 0)
    constants = known_names() | {name: x for name, x in names.items() if not is_data(x)}
    wanted = RECIPES[heading].reference(**names)

    def outputs(arrays: dict[str, Any]) -> dict[str, jax.Array]:
        result = pages.run(code, constants | arrays)
        return {name: result[name] for name in wanted}

    return jax.jit(outputs)


def is_data(x: Any) -> bool:
    """Whether the recipe takes it as an array, or as a tuple of arrays; other names are constants."""
    return isinstance(x, np.ndarray | tuple)


def outputs_of(heading: str, seed: int, *, code: str | None = None) -> dict[str, jax.Array]:
    """What the recipe computes inside jit, or `code` in its place."""
    arrays = {name: x for name, x in random_names(heading, seed).items() if is_data(x)}
    return program(heading, code or pages.recipes(PAGE)[heading])(arrays)


def largest_difference(heading: str, seed: int, *, code: str | None = None) -> float:
    """From the reference, relative to its root mean square; infinite where an output is not a finite number."""
    outputs, differences = outputs_of(heading, seed, code=code), []
    for name, want in RECIPES[heading].reference(**random_names(heading, seed)).items():
        defined = ~np.isnan(want)  # the target of a masked row is not part of the definition
        difference = np.abs(np.asarray(outputs[name]) - want)[defined]
        relative = difference.max() / np.sqrt(np.mean(want[defined] ** 2))
        differences.append(relative if np.isfinite(relative) else np.inf)
    return float(max(differences))
