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


def largest_difference(heading: str, seed: int, *, code: str | None = None) -> float:
    """Of the recipe, or of `code` in its place, from the reference, relative to the root mean square of the latter.

    Infinite where an output is not a finite float32 number.
    """
    names, differences = random_names(heading, seed), []
    arrays = {name: x for name, x in names.items() if isinstance(x, np.ndarray | tuple)}
    constants, wants = tuple(x for x in names.items() if x[0] not in arrays), wanted(heading, names)
    outputs = program(code or pages.recipes(PAGE)[heading])(arrays, constants, tuple(wants))
    for name, want in wants.items():
        defined = ~np.isnan(want)
        difference = np.abs(np.asarray(outputs[name]) - want)[defined]
        relative = difference.max() / np.sqrt(np.mean(want[defined] ** 2))
        right_type = outputs[name].dtype == (bool if name == "keep" else np.float32)
        differences.append(relative if right_type and np.isfinite(relative) else np.inf)
    return float(max(differences))
