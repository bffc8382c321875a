"""The laws detect mistakes: every mutant of the library breaks the laws that are there to detect it."""

import functools

import pytest
from support import estimator_laws, laws, scan_laws
from support.meshes import over_time
from support.mutants import BY_SECTION, load
from support.rollouts import EXAMPLES

import gae_jax

pytestmark = pytest.mark.usefixtures("fast_compilation")


@pytest.mark.parametrize(
    "mutant", [mutant for section in BY_SECTION.values() for mutant in section], ids=lambda mutant: mutant.name
)
def test_the_fragment_is_in_the_file_once(mutant):
    mutant.source()


@pytest.fixture
def lib(request, tmp_path):
    """The library with the mutant's mistake."""
    mutated = load(request.getfixturevalue("mutant"), tmp_path)
    assert mutated.__file__ != gae_jax.__file__
    return mutated


def fails(law, *arguments):
    """Returns whether the law raises an AssertionError."""
    try:
        law(*arguments)
    except AssertionError:
        return True
    return False


def undetected_by(mutant, lib, module):
    """Returns the names of the mutant's laws in the module that the library keeps on every example."""
    every = {name: getattr(module, name) for name in mutant.caught_by}
    return [name for name, law in every.items() if not any(fails(law, lib, rollout) for rollout in EXAMPLES)]


def by_rows(estimator):
    """Returns the estimator with the implementation that is the fastest to trace: what is mutated, all of them call."""
    return functools.partial(estimator, implementation="scan")


def each_of(section):
    """Marks a test of all mutants of a section."""
    each = pytest.mark.parametrize("mutant", BY_SECTION[section], ids=lambda mutant: mutant.name)
    return lambda test: pytest.mark.slow(each(test))


@each_of("gae")
def test_mutant_is_detected(mutant, lib):
    assert undetected_by(mutant, laws.Library(gae=by_rows(lib.gae)), laws) == []


@each_of("time split over devices")
def test_mutant_is_detected_with_time_split(mutant, lib):
    shards = 6 if mutant.name == "lambda_of_a_shard_of_one_row" else 3
    assert undetected_by(mutant, laws.Library(gae=over_time(by_rows(lib.gae), shards)), laws) == []


@each_of("other estimators")
def test_mutant_of_an_estimator_is_detected(mutant, lib):
    estimators = laws.Library(vtrace=by_rows(lib.vtrace), n_step_advantages=lib.n_step_advantages)
    assert undetected_by(mutant, estimators, estimator_laws) == []


@each_of("affine_scan")
def test_mutant_of_the_scan_is_detected(mutant, lib):
    for name in mutant.caught_by:
        law = getattr(scan_laws, name)
        if law is scan_laws.kernel_matches_lax_scan:
            assert fails(law, lib), name
        else:
            assert any(fails(law, lib, implementation) for implementation in ("blocked", None)), name


@pytest.mark.parametrize(
    ("section", "every_law"),
    [
        ("gae", laws.LAWS),
        ("affine_scan", (*scan_laws.LAWS, scan_laws.kernel_matches_lax_scan)),
        ("other estimators", estimator_laws.LAWS),
    ],
)
def test_every_law_detects_a_mutant(section, every_law):
    assert {name for mutant in BY_SECTION[section] for name in mutant.caught_by} == {law.__name__ for law in every_law}
