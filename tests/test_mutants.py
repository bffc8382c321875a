"""The laws detect mistakes: every mutant of the package breaks the law that is there to detect it."""

import pytest
from support import estimator_laws, laws, scan_laws
from support.meshes import over_time
from support.mutants import load
from support.rollouts import EXAMPLES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fast_compilation")]


def each_of(mutants):
    """Marks a test of every law and each of its mutants."""
    pairs = [(law, mutant) for law, group in mutants.items() for mutant in group]
    return pytest.mark.parametrize(("law", "mutant"), pairs, ids=[mutant[0] for _, mutant in pairs])


@pytest.fixture
def lib(mutant, tmp_path):
    """The package with the mutant's mistake."""
    _, file, fragment, instead = mutant
    return load(file, fragment, instead, tmp_path)


def fails(law, *arguments):
    try:
        law(*arguments)
    except AssertionError:
        return True
    return False


@each_of(laws.MUTANTS)
def test_mutant_of_gae_is_detected(law, lib):
    estimate = estimator_laws.gae_of(lib, implementation="scan")  # the fastest to trace
    assert any(fails(law, estimate, rollout) for rollout in EXAMPLES)


@each_of(laws.MUTANTS_WITH_TIME_SPLIT)
def test_mutant_is_detected_with_time_split(law, mutant, lib):
    devices = 6 if "one row" in mutant[0] else 3
    estimate = over_time(estimator_laws.gae_of(lib, implementation="scan"), devices)
    assert any(fails(law, estimate, rollout) for rollout in EXAMPLES)


@each_of(estimator_laws.MUTANTS)
def test_mutant_of_an_estimator_is_detected(law, lib):
    name, law = law
    estimator, reference = estimator_laws.ESTIMATORS[name]
    assert any(fails(law, estimator(lib), rollout, reference) for rollout in EXAMPLES)


@each_of(scan_laws.MUTANTS)
def test_mutant_of_the_scan_is_detected(law, lib):
    if law is scan_laws.kernel_matches_lax_scan:
        assert fails(law, lib)
    else:
        assert any(fails(scan_laws.assert_obeys, law, lib, name) for name in ("blocked", None))
