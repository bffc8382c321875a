"""Runs the recipes of examples/guides/tokens.md as printed, inside jit, and compares them with their references."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from support import pages
from support.references import RECIPES

PAGE = "examples/guides/tokens.md"
Names = dict[str, Any]


def random_names(heading: str, seed: int) -> Names:
    """The names that the recipe uses, with random contents."""
    return RECIPES[heading].names(np.random.default_rng(seed))


def wanted(heading: str, names: Names) -> dict[str, np.ndarray]:
    """What the recipe must compute; NaN where its output is not defined."""
    return RECIPES[heading].reference(SimpleNamespace(**names))


def known_names() -> Names:
    """The imports, and the function that one recipe defines and others call."""
    function, _, _ = pages.recipes(PAGE)["Rewards and ends of masked rows"].partition("\n\n")
    return pages.run(function, pages.imports(PAGE))


@functools.cache
def program(code: str) -> Callable[..., Names]:
    """The code as a jitted function of its arrays, and of the names of its constants and of its outputs."""

    def outputs(arrays: Names, constants: tuple[Any, ...], wanted: tuple[str, ...]) -> Names:
        result = pages.run(code, known_names() | dict(constants) | arrays)
        return {name: result[name] for name in wanted}

    return jax.jit(outputs, static_argnums=(1, 2))


def outputs_of(heading: str, seed: int, *, code: str | None = None) -> dict[str, jax.Array]:
    """What the recipe computes inside jit, or `code` in its place."""
    names = random_names(heading, seed)
    arrays = {name: x for name, x in names.items() if isinstance(x, np.ndarray | tuple)}
    constants = tuple(x for x in names.items() if x[0] not in arrays)
    return program(code or pages.recipes(PAGE)[heading])(arrays, constants, tuple(wanted(heading, names)))


def largest_difference(heading: str, seed: int, *, code: str | None = None) -> float:
    """From the reference, relative to its root mean square; infinite where an output is not a finite number."""
    outputs, differences = outputs_of(heading, seed, code=code), []
    for name, want in wanted(heading, random_names(heading, seed)).items():
        defined = ~np.isnan(want)
        difference = np.abs(np.asarray(outputs[name]) - want)[defined]
        relative = difference.max() / np.sqrt(np.mean(want[defined] ** 2))
        differences.append(relative if np.isfinite(relative) else np.inf)
    return float(max(differences))
