"""`normalize` against float64 NumPy: large means, large scales, masks, several mesh axes; and what it refuses."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from scaling_out import collective_bytes, collectives
from support.laws import assert_close
from support.mutants import Mutant, load
from support.versions import enable_x64

import gae_jax
from gae_jax import GAEOutput, normalize

MEANS = (0.0, 300.0, 3000.0, 1e5)
NAN = np.float32(np.nan)


def standardized(x, mask=None, ddof=0):
    """By definition, in float64."""
    x = np.asarray(x, np.float64)
    live = np.ones(x.shape, bool) if mask is None else mask
    result = np.zeros(x.shape)
    if live.any() and x[live].std() > 0:
        result[live] = (x[live] - x[live].mean()) / x[live].std(ddof=ddof)
    return result


def normal(mean=0.0, shape=(64, 8), seed=0):
    return (mean + np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def first_row_masked(x):
    """A prompt, time-major."""
    return np.broadcast_to((np.arange(len(x)) > 0).reshape(-1, *[1] * (x.ndim - 1)), x.shape)


def matches_float64(lib, mean, mask_of, shape=(64, 8)):
    x = normal(mean, shape)
    mask = None if mask_of is None else mask_of(x)
    poisoned = x if mask is None else np.where(mask, x, NAN)
    assert_close([lib.normalize(poisoned, mask)], [standardized(x, mask)], rtol=1e-6)


@pytest.mark.parametrize("mask_of", [None, first_row_masked, lambda x: x > x.mean()], ids=["all", "prompt", "half"])
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("shape", [(64, 8), (1000, 1000), (10**6,)], ids=str)
def test_matches_float64(shape, mean, mask_of):
    matches_float64(gae_jax, mean, mask_of, shape)


def test_outlier_in_the_first_entry():
    x = normal(shape=(10**6,))
    x[0] = 1000
    got = np.asarray(normalize(x), np.float64)
    assert abs(got.mean()) < 1e-6
    assert abs(got.std() - 1) < 1e-6
    assert_close([got[1:]], [standardized(x)[1:]], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 100.0, 1e10, 1e18, 1e20, 1e30])
def test_scale_does_not_matter(scale):
    x = normal(mean=30.0)
    scaled = (scale * x.astype(np.float64)).astype(np.float32)
    assert_close([normalize(scaled, epsilon=0)], [standardized(scaled)], rtol=1e-6)


def test_epsilon_is_added_to_the_standard_deviation():
    x = normal(mean=3.0)
    deviation = x.astype(np.float64).std()
    for epsilon in (0.5, np.float64(0.5), jnp.float32(0.5)):
        assert_close([normalize(x, epsilon=epsilon)], [standardized(x) * deviation / (deviation + 0.5)], rtol=1e-6)
    assert_close([jax.jit(normalize)(x, epsilon=0.5)], [normalize(x, epsilon=0.5)], rtol=0)


@pytest.mark.parametrize("mean", MEANS)
def test_gradient_matches_the_formula(mean):
    """dL/dx = (g - mean(g) - z mean(g z)) / std, where z is the result and g = dL/dz; nothing of a masked entry."""
    x, g = normal(mean), normal(seed=1).astype(np.float64)
    mask = first_row_masked(x)
    z = standardized(x, mask)
    want = np.where(mask, g - g[mask].mean() - z * (g * z)[mask].mean(), 0) / x[mask].astype(np.float64).std()
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.float32(g) * normalize(x, mask))))
    assert_close([gradient(np.where(mask, x, NAN))], [want], rtol=1e-5)


VALUES = (0.0, 0.1, 7.0, -3.3, 123456.7, 1e10, 1e15, 1e30, 3e38, 1e-40)


SHAPES = [(4,), (41,), (3333,)]
SHAPES_IN_THE_GATE = [(), (47,), (5, 11), (61,), (101, 103), (1000003,)]


@pytest.mark.parametrize("shape", [*SHAPES, *(pytest.param(x, marks=pytest.mark.slow) for x in SHAPES_IN_THE_GATE)])
def test_equal_entries_give_0(shape):
    """At every magnitude, also where their sum is rounded or overflows. The gradient takes the deviation as 1."""
    weights = normal(shape=shape, seed=1)
    pullback = jax.jit(lambda x: jax.vjp(functools.partial(normalize, epsilon=0.0), x)[1](weights)[0])
    for value in VALUES:
        x = np.full(shape, value, np.float32)
        for epsilon in (1e-8, 0.0):
            np.testing.assert_array_equal(normalize(x, epsilon=epsilon), np.zeros(shape))
        assert_close([pullback(x)], [weights - weights.astype(np.float64).mean()], rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, jnp.float16])
def test_equal_unmasked_entries_give_0(dtype):
    mask = np.arange(99) % 7 > 2
    for value in (0.1, 7.0, -3.3, 6e4):
        x = np.where(mask, value, np.nan).astype(dtype)
        for ddof in (0, 1):
            np.testing.assert_array_equal(normalize(x, mask, epsilon=0, ddof=ddof), np.zeros(99))


def test_equal_entries_over_a_mesh():
    """Equal on every device, or equal within each device only."""
    mask = np.ones((2 * 41, 4), bool)
    split = jax.jit(over(MESH, ("data", "context"), functools.partial(normalize, epsilon=0.0)))
    for value in VALUES:
        np.testing.assert_array_equal(split(np.full(mask.shape, value, np.float32), mask), 0)
    by_device = np.repeat(np.arange(8, dtype=np.float32).reshape(2, 4), 41, axis=0)
    assert_close([split(by_device, mask)], [standardized(by_device)], rtol=1e-6)


@pytest.mark.parametrize("ddof", [0, 1, 1.5, 3])
def test_ddof(ddof):
    x = normal(300.0, shape=(8, 8))
    mask = x > np.median(x)
    assert_close([normalize(x, ddof=ddof)], [standardized(x, ddof=ddof)], rtol=1e-6)
    poisoned = np.where(mask, x, NAN)
    for got in (normalize(poisoned, mask, ddof=ddof), jax.jit(normalize)(poisoned, mask, ddof=ddof)):
        assert_close([got], [standardized(x, mask, ddof=ddof)], rtol=1e-6)


def test_too_few_entries_give_0():
    """None, one, or no more than `ddof`; and a gradient that is finite."""
    for x in (np.zeros((0, 3), np.float32), np.zeros(0, np.float32)):
        assert normalize(x, ddof=1).shape == normalize(x).shape == x.shape
    x = np.array([2.0, 3.0, 5.0, NAN], np.float32)
    gradient = jax.jit(jax.grad(lambda *arguments: jnp.sum(normalize(*arguments[:2], ddof=arguments[2]) ** 2)))
    for count, ddof in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (2, 3), (3, 3), (3, np.inf)):
        mask = np.arange(4) < count
        for epsilon in (1e-8, 0.0):
            np.testing.assert_array_equal(normalize(x, mask, epsilon=epsilon, ddof=ddof), 0)
        np.testing.assert_array_equal(gradient(x, mask, float(ddof)), 0)


def test_dtypes():
    """The dtype of the input, computed in float32 at least; integers give the default floating-point dtype."""
    x = np.array([1, 3, 5, 5])
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        got = normalize(jnp.asarray(x, dtype))
        assert got.dtype == dtype
        assert_close([got.astype(jnp.float32)], [standardized(x)], rtol=float(jnp.finfo(dtype).eps))
    assert normalize(jnp.asarray(x, jnp.int8)).dtype == jnp.float32
    mask = np.array([1, 1, 1, 0])
    assert_close([normalize(x, mask)], [standardized(x, mask != 0)], rtol=1e-6)
    with enable_x64(True):
        assert normalize(x).dtype == jnp.float64
        assert normalize(np.float32(x)).dtype == jnp.float32
        assert_close([normalize(x)], [standardized(x)], rtol=1e-8)


MESH = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "context"))


def over(mesh, axis_name, fn=normalize):
    """`fn` on shards: time over "context", workers over "data"; over an axis not in `axis_name`, each on its own."""
    spec = P("context", "data")
    return jax.shard_map(
        lambda x, mask: fn(x, mask, axis_name=axis_name), mesh=mesh, in_specs=(spec, spec), out_specs=spec
    )


@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("masked", [False, True])
def test_over_two_mesh_axes(mean, masked):
    x = normal(mean)
    mask = first_row_masked(x) if masked else np.ones(x.shape, bool)
    program = jax.jit(over(MESH, ("data", "context"))).lower(x, mask).compile()
    assert_close([program(np.where(mask, x, NAN), mask)], [standardized(x, mask)], rtol=1e-6)
    assert set(collectives(program)) == {"all-reduce"}
    assert collectives(program)["all-reduce"] <= 7
    assert collective_bytes(program) <= 8 * 4


@pytest.mark.versions
def test_over_one_of_two_mesh_axes():
    x = normal(300.0)
    mask = first_row_masked(x)
    halves = [standardized(half, half_mask) for half, half_mask in zip(np.split(x, 2), np.split(mask, 2), strict=True)]
    assert_close([over(MESH, "data")(x, mask)], [np.concatenate(halves)], rtol=1e-6)


def test_gradient_over_two_mesh_axes():
    x, g = normal(300.0), normal(seed=1)
    mask = first_row_masked(x)
    poisoned = np.where(mask, x, NAN)
    split, alone = (
        jax.jit(jax.grad(lambda x, fn=fn: jnp.sum(g * fn(x, mask))))(poisoned)
        for fn in (over(MESH, ("data", "context")), normalize)
    )
    assert_close([split], [np.asarray(alone)], rtol=1e-5)


@pytest.mark.versions
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_sharded_by_the_compiler(kind):
    mesh = Mesh(MESH.devices, MESH.axis_names, axis_types=(kind,) * 2)
    x = normal(3000.0)
    split = jax.device_put(x, NamedSharding(mesh, P("context", "data")))
    assert_close([jax.jit(normalize)(split)], [standardized(x)], rtol=1e-6)


@pytest.mark.versions
def test_over_the_axes_of_vmap_and_pmap():
    x = normal(300.0, shape=(8, 24))
    for wrap in (jax.vmap, jax.pmap):
        fn = wrap(functools.partial(normalize, axis_name="shards"), axis_name="shards")
        assert_close([fn(x)], [standardized(x)], rtol=1e-6)
    nested = jax.vmap(functools.partial(normalize, axis_name=("a", "b")), axis_name="b")
    assert_close([jax.vmap(nested, axis_name="a")(x.reshape(2, 4, 24))], [standardized(x).reshape(2, 4, 24)], rtol=1e-6)


def test_vmap_standardizes_each_agent_by_itself():
    x = normal(300.0)
    mask = first_row_masked(x)
    want = [standardized(agent, agent_mask) for agent, agent_mask in zip(x.T, mask.T, strict=True)]
    assert_close([jax.vmap(normalize, (-1, -1), -1)(x, mask)], [np.stack(want, -1)], rtol=1e-6)


X = np.ones((2, 2), np.float32)
REFUSED = [
    (
        {"advantages": GAEOutput(jnp.asarray(X), jnp.asarray(X))},
        TypeError,
        "`advantages` must be an array of numbers; got GAEOutput",
    ),
    ({"advantages": X.tolist()}, TypeError, "`advantages` must be an array of numbers; got list"),
    ({"advantages": None}, TypeError, "`advantages` must be an array of numbers; got NoneType"),
    ({"advantages": "1"}, TypeError, "`advantages` must be an array of numbers; got str"),
    ({"advantages": X > 0}, TypeError, "`advantages` must hold floating-point .* got dtype bool"),
    ({"advantages": 1j * X}, TypeError, "`advantages` must hold floating-point .* got dtype complex64"),
    ({"mask": [True, False]}, TypeError, "`mask` must be an array of flags; got list"),
    ({"mask": "all"}, TypeError, "`mask` must be an array of flags; got str"),
    ({"mask": np.ones(2, bool)}, ValueError, r"`mask` must have shape \(2, 2\), the shape of `advantages`; got \(2,\)"),
    ({"mask": 1j * X}, TypeError, "`mask` must hold flags, bool or 0 and 1; got dtype complex64"),
    ({"epsilon": -1e-8}, ValueError, "`epsilon` must be at least 0; got -1e-08"),
    ({"epsilon": math.nan}, ValueError, "`epsilon` must be at least 0; got nan"),
    ({"epsilon": jnp.float32(-1)}, ValueError, "`epsilon` must be at least 0; got -1.0"),
    ({"epsilon": np.full(2, 1e-8)}, ValueError, r"`epsilon` must be one number; got shape \(2,\)"),
    ({"epsilon": None}, TypeError, "`epsilon` must be a number; got None"),
    ({"epsilon": "1e-8"}, TypeError, "`epsilon` must be a number; got '1e-8'"),
    ({"epsilon": 1j}, TypeError, "`epsilon` must be a number; got 1j"),
    ({"epsilon": True}, TypeError, "`epsilon` must be a number; got True"),
    ({"ddof": -1}, ValueError, "`ddof` must be at least 0; got -1"),
    ({"ddof": math.nan}, ValueError, "`ddof` must be at least 0; got nan"),
    ({"ddof": np.ones(2)}, ValueError, r"`ddof` must be one number; got shape \(2,\)"),
    ({"ddof": None}, TypeError, "`ddof` must be a number; got None"),
    ({"ddof": True}, TypeError, "`ddof` must be a number; got True"),
    ({"axis_name": "x"}, ValueError, r"`axis_name` must name mesh axes of a jax\.shard_map around this call; got 'x'"),
    ({"axis_name": ("x", "y")}, ValueError, "`axis_name` must name mesh axes.*; got 'x'"),
    ({"axis_name": ["x"]}, TypeError, r"`axis_name` must be a string; got \['x'\]"),
    ({"axis_name": 0}, TypeError, "`axis_name` must be a string; got 0"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_refuses(change, error, message):
    with pytest.raises(error, match=message) as raised:
        normalize(**({"advantages": X} | change))
    assert "time" not in str(raised.value)


@pytest.mark.versions
def test_refuses_an_axis_that_the_mesh_lacks_or_a_name_twice():
    for axis_name in ("time", ("data", "time")):
        with pytest.raises(ValueError, match="`axis_name` must name mesh axes"):
            over(MESH, axis_name)(X.repeat(4, 1), X.repeat(4, 1))
    with pytest.raises(ValueError, match="`axis_name` must not repeat a name"):
        over(MESH, ("data", "data"))(X.repeat(4, 1), X.repeat(4, 1))


FILE = "_normalize.py"
SUBTRACTED = "x = jnp.where(live, x - total(x) / count, 0)"
READ = "x = jnp.where(live, x.astype(promoted(dtype, jnp.float32)), 0)"
ROUNDS = "for _ in range(2):"
DIVIDED = "return (x / (jnp.sqrt(variance) + epsilon / unit)).astype(dtype)"
VARIANCE = "variance = jnp.where(all_equal, 1, total(x * x) / freedom)"
COUNT = "count = total(live)"
MUTANTS = (
    Mutant("mean_over_masked_entries", FILE, (), SUBTRACTED, "x = x - total(x) / count"),
    Mutant("masked_entries_leak", FILE, (), READ, "x = x.astype(promoted(dtype, jnp.float32))"),
    Mutant("divided_by_the_variance", FILE, (), DIVIDED, DIVIDED.replace("jnp.sqrt(variance)", "variance")),
    Mutant("bessel_correction", FILE, (), VARIANCE, VARIANCE.replace("/ freedom", "/ (freedom - 1)")),
    Mutant("all_entries_count", FILE, (), COUNT, "count = jnp.asarray(x.size, x.dtype)"),
    Mutant("the_mean_is_not_corrected", FILE, (), ROUNDS, ROUNDS.replace("2", "0")),
)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant, tmp_path):
    lib = load(mutant, tmp_path)
    assert lib.__file__ != gae_jax.__file__
    with pytest.raises(AssertionError):
        matches_float64(lib, 1e5, lambda x: x > x.mean())
