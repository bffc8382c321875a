"""Code that is subtly wrong does not pass: every mutant breaks the laws that are there to catch it."""

import jax
import pytest
from support import estimator_laws as family
from support import laws
from support import scan_laws as affine
from support.meshes import over_time
from support.mutants import AFFINE_MUTANTS, FAMILY_MUTANTS, MUTANTS, SPLIT_MUTANTS, load
from support.rollouts import random_rollout

import gae_jax

EXAMPLES = [
    random_rollout(0, steps=6, batch=(2,), ends=0.25, truncation=truncation, dead=dead, gamma=varying, lambda_=varying)
    for truncation in (None, "dropped", "final_values")
    for dead in (0.0, 0.3)
    for varying in (0.8, "step", "both")
]


@pytest.fixture(autouse=True, scope="module")
def compiled_in_a_hurry():
    """Every mutant is compiled, and runs once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def breaks(lib, law):
    """Whether the library breaks the law on an example."""
    for rollout in EXAMPLES:
        try:
            law(lib, rollout)
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_the_library_itself_breaks_no_law(law):
    for rollout in EXAMPLES[::2]:
        law(gae_jax, rollout)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant, tmp_path):
    lib = load(mutant, tmp_path)
    assert lib.__file__ != gae_jax.__file__
    survived = [name for name in mutant.caught_by if not breaks(lib, getattr(laws, name))]
    assert not survived, f"{mutant.name} passes {survived}"


def test_every_law_catches_a_mutant():
    needed = {name for mutant in MUTANTS for name in mutant.caught_by}
    assert needed == {law.__name__ for law in laws.LAWS}


@pytest.mark.parametrize("mutant", AFFINE_MUTANTS, ids=lambda mutant: mutant.name)
def test_affine_mutant_is_caught(mutant, tmp_path):
    lib = load(mutant, tmp_path)
    assert lib.__file__ != gae_jax.__file__
    for name in mutant.caught_by:
        law = getattr(affine, name)
        with pytest.raises(AssertionError):
            law(lib) if law is affine.kernel_is_lax_scan else law(lib, "blocked")


@pytest.mark.parametrize("mutant", SPLIT_MUTANTS, ids=lambda mutant: mutant.name)
def test_split_mutant_is_caught(mutant, tmp_path):
    lib = load(mutant, tmp_path)
    assert lib.__file__ != gae_jax.__file__
    pieces = 6 if mutant.name == "lambda_of_a_piece_of_one_row" else 3
    split = laws.Library(over_time(lib.gae, pieces))
    survived = [name for name in mutant.caught_by if not breaks(split, getattr(laws, name))]
    assert not survived, f"{mutant.name} passes {survived}"


@pytest.mark.parametrize("mutant", FAMILY_MUTANTS, ids=lambda mutant: mutant.name)
def test_family_mutant_is_caught(mutant, tmp_path):
    lib = load(mutant, tmp_path)
    assert lib.__file__ != gae_jax.__file__
    survived = [name for name in mutant.caught_by if not breaks(lib, getattr(family, name))]
    assert not survived, f"{mutant.name} passes {survived}"


def test_every_law_of_the_family_catches_a_mutant():
    needed = {name for mutant in FAMILY_MUTANTS for name in mutant.caught_by}
    assert needed == {law.__name__ for law in family.LAWS}


def test_every_affine_law_catches_a_mutant():
    needed = {name for mutant in AFFINE_MUTANTS for name in mutant.caught_by}
    assert needed == {law.__name__ for law in (*affine.LAWS, affine.kernel_is_lax_scan)} - {"shares_as_lax_scan"}
