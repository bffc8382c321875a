"""The laws detect mistakes: every mutant of the library breaks the law that is there to detect it."""

import functools

import pytest
from support import estimator_laws, laws, scan_laws
from support.meshes import over_time
from support.mutants import load
from support.rollouts import EXAMPLES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fast_compilation")]


def each_of(mutants):
    """Marks a test of every law and each of its mutants."""
    pairs = [pytest.param(law, mutant, id=mutant.name) for law, group in mutants.items() for mutant in group]
    return pytest.mark.parametrize(("law", "mutant"), pairs)


@pytest.fixture
def lib(mutant, tmp_path):
    """The library with the mutant's mistake."""
    return load(mutant, tmp_path)


def fails(law, *arguments):
    """Returns whether the law raises an AssertionError."""
    try:
        law(*arguments)
    except AssertionError:
        return True
    return False


def by_rows(estimator):
    """Returns the estimator with the implementation that is the fastest to trace: what is mutated, all of them call."""
    return functools.partial(estimator, implementation="scan")


@each_of(laws.MUTANTS)
def test_mutant_of_gae_is_detected(law, lib):
    assert any(fails(law, laws.Library(gae=by_rows(lib.gae)), rollout) for rollout in EXAMPLES)


@each_of(laws.MUTANTS_WITH_TIME_SPLIT)
def test_mutant_is_detected_with_time_split(law, mutant, lib):
    split = laws.Library(gae=over_time(by_rows(lib.gae), 6 if "one row" in mutant.name else 3))
    assert any(fails(law, split, rollout) for rollout in EXAMPLES)


@each_of(estimator_laws.MUTANTS)
def test_mutant_of_an_estimator_is_detected(law, lib):
    estimators = laws.Library(vtrace=by_rows(lib.vtrace), n_step_advantages=lib.n_step_advantages)
    assert any(fails(law, estimators, rollout) for rollout in EXAMPLES)


@each_of(scan_laws.MUTANTS)
def test_mutant_of_the_scan_is_detected(law, lib):
    if law is scan_laws.kernel_matches_lax_scan:
        assert fails(law, lib)
    else:
        assert any(fails(law, lib, implementation) for implementation in ("blocked", None))
