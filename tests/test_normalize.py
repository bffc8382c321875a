"""`normalize` against float64 NumPy: large means, large scales, masks, several mesh axes; and what it refuses."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from support.laws import assert_close
from support.meshes import make_mesh
from support.oracle import standardized
from support.versions import enable_x64

from gae_jax import GAEOutput, normalize

MEANS = (0.0, 300.0, 3000.0, 1e5)
NAN = np.float32(np.nan)


def normal(mean=0.0, shape=(64, 8), seed=0):
    return (mean + np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def first_row_masked(x):
    """A prompt, time-major."""
    return np.broadcast_to((np.arange(len(x)) > 0).reshape(-1, *[1] * (x.ndim - 1)), x.shape)


MESH, BOTH, SPEC = make_mesh(data=4, context=2), ("data", "context"), P("context", "data")


def over(mesh, axis_name, **options):
    """`normalize` on shards: time over "context", workers over "data"; over an axis not in `axis_name`, each alone."""

    def local(x, mask):
        return normalize(x, mask, axis_name=axis_name, **options)

    return jax.shard_map(local, mesh=mesh, in_specs=(SPEC, SPEC), out_specs=SPEC)


@pytest.mark.parametrize("mask_of", [None, first_row_masked, lambda x: x > x.mean()], ids=["all", "prompt", "half"])
@pytest.mark.parametrize("mean", MEANS)
@pytest.mark.parametrize("shape", [(64, 8), (1000, 1000), (10**6,)], ids=str)
def test_matches_float64(shape, mean, mask_of):
    x = normal(mean, shape)
    mask = None if mask_of is None else mask_of(x)
    poisoned = x if mask is None else np.where(mask, x, NAN)
    assert_close([normalize(poisoned, mask)], [standardized(x, mask)], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 100.0, 1e10, 1e18, 1e20, 1e30])
def test_scale_does_not_matter(scale):
    scaled = (scale * normal(mean=30.0).astype(np.float64)).astype(np.float32)
    assert_close([normalize(scaled, epsilon=0)], [standardized(scaled)], rtol=1e-6)


def test_epsilon_is_added_to_the_standard_deviation():
    x = normal(mean=3.0)
    deviation = x.astype(np.float64).std()
    for epsilon in (0.5, np.float64(0.5), jnp.float32(0.5)):
        assert_close([normalize(x, epsilon=epsilon)], [standardized(x) * deviation / (deviation + 0.5)], rtol=1e-6)
    assert_close([jax.jit(normalize)(x, epsilon=0.5)], [normalize(x, epsilon=0.5)], rtol=0)


@pytest.mark.parametrize("fn", [normalize, over(MESH, BOTH)], ids=["one device", "mesh"])
def test_gradient_matches_the_formula(fn):
    """dL/dx = (g - mean(g) - z mean(g z)) / std, where z is the result and g = dL/dz; nothing of a masked entry."""
    g = normal(seed=1).astype(np.float64)
    mask = first_row_masked(g)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.float32(g) * fn(x, mask))))
    for x in map(normal, MEANS):
        z = standardized(x, mask)
        want = np.where(mask, g - g[mask].mean() - z * (g * z)[mask].mean(), 0) / x[mask].astype(np.float64).std()
        assert_close([gradient(np.where(mask, x, NAN))], [want], rtol=1e-5)


VALUES = (0.0, 0.1, 7.0, -3.3, 123456.7, 1e10, 1e15, 1e30, 3e38, 1e-40)
RARE_SHAPES = [(), (47,), (5, 11), (61,), (101, 103), (1000003,)]
SHAPES = [(4,), (41,), (3333,), *(pytest.param(x, marks=pytest.mark.slow) for x in RARE_SHAPES)]


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_entries_give_0(shape):
    """At every magnitude, also where their sum is rounded or overflows. The gradient takes the deviation as 1."""
    weights, mask = normal(shape=shape, seed=1), np.arange(np.prod(shape, dtype=int)).reshape(shape) % 7 > 2
    pullback = jax.jit(lambda x: jax.vjp(functools.partial(normalize, epsilon=0.0), x)[1](weights)[0])
    for value in VALUES:
        x = np.full(shape, value, np.float32)
        for epsilon in (1e-8, 0.0):
            np.testing.assert_array_equal(normalize(x, epsilon=epsilon), np.zeros(shape))
        np.testing.assert_array_equal(normalize(np.where(mask, x, NAN), mask, epsilon=0, ddof=1), np.zeros(shape))
        assert_close([pullback(x)], [weights - weights.astype(np.float64).mean()], rtol=1e-5)


def test_equal_entries_over_a_mesh():
    """Equal on every device, or equal within each device only."""
    mask = np.ones((2 * 41, 4), bool)
    split = jax.jit(over(MESH, BOTH, epsilon=0.0))
    for value in VALUES:
        np.testing.assert_array_equal(split(np.full(mask.shape, value, np.float32), mask), 0)
    by_device = np.repeat(np.arange(8, dtype=np.float32).reshape(2, 4), 41, axis=0)
    assert_close([split(by_device, mask)], [standardized(by_device)], rtol=1e-6)


@pytest.mark.parametrize("ddof", [0, 1, 1.5, 3])
def test_ddof(ddof):
    x = normal(300.0, shape=(8, 8))
    mask = x > np.median(x)
    assert_close([normalize(x, ddof=ddof)], [standardized(x, ddof=ddof)], rtol=1e-6)
    poisoned, want = np.where(mask, x, NAN), [standardized(x, mask, ddof=ddof)]
    for fn in (normalize, jax.jit(normalize)):
        assert_close([fn(poisoned, mask, ddof=ddof)], want, rtol=1e-6)
    assert_close([over(MESH, BOTH, ddof=ddof)(poisoned, mask)], want, rtol=1e-6)


def test_too_few_entries_give_0():
    """None, one, or no more than `ddof`; a gradient that is finite, and no NaN on the way."""
    for x in (np.zeros((0, 3), np.float32), np.zeros(0, np.float32)):
        assert normalize(x, ddof=1).shape == normalize(x).shape == x.shape
    x = np.array([2.0, 3.0, 5.0, NAN], np.float32)
    gradient = jax.jit(jax.grad(lambda *arguments: jnp.sum(normalize(*arguments[:2], ddof=arguments[2]) ** 2)))
    for count, ddof in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (2, 3), (3, 3), (3, np.inf)):
        mask = np.arange(4) < count
        for epsilon in (1e-8, 0.0):
            np.testing.assert_array_equal(normalize(x, mask, epsilon=epsilon, ddof=ddof), 0)
        checkify.checkify(normalize, checkify.nan_checks)(np.nan_to_num(x), mask, ddof=ddof)[0].throw()
        np.testing.assert_array_equal(gradient(x, mask, float(ddof)), 0)


def test_dtypes():
    """The dtype of the input, computed in float32 at least; integers give the default floating-point dtype."""
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        x = normal(mean=3.0, shape=(10**4,)).astype(dtype)
        got = normalize(x)
        assert got.dtype == dtype
        assert_close([got.astype(jnp.float32)], [standardized(x)], rtol=float(jnp.finfo(dtype).eps))
    x, mask = np.array([1, 3, 5, 5]), np.array([1, 1, 1, 0])
    assert normalize(jnp.asarray(x, jnp.int8)).dtype == jnp.float32
    assert_close([normalize(x, mask)], [standardized(x, mask != 0)], rtol=1e-6)
    with enable_x64(True):
        assert normalize(x).dtype == jnp.float64
        assert normalize(np.float32(x)).dtype == jnp.float32
        assert_close([normalize(x)], [standardized(x)], rtol=1e-8)


def test_over_two_mesh_axes():
    """The communication is at most six all-reduces of at most two numbers."""
    prompt = first_row_masked(normal())
    program = jax.jit(over(MESH, BOTH)).lower(normal(), prompt).compile()
    for x in map(normal, MEANS):
        for mask in (prompt, prompt | True):
            assert_close([program(np.where(mask, x, NAN), mask)], [standardized(x, mask)], rtol=1e-6)
    collectives = re.findall(r"= (\S+) (all-\w+|collective-\w+|reduce-scatter)\(", str(program.as_text()))
    assert 0 < len(collectives) <= 6
    assert all(kind == "all-reduce" and re.match(r"f32\[2?\]", result) for result, kind in collectives)


@pytest.mark.versions
def test_pieces_by_themselves():
    """Over one of two mesh axes, each half of the other; in `vmap`, each agent."""
    x = normal(300.0)
    mask = first_row_masked(x)
    halves = [over(MESH, "data"), *(over(make_mesh(data=1, context=2), name) for name in (None, ()))]
    for fn, count, axis in (*((fn, 2, 0) for fn in halves), (jax.vmap(normalize, (-1, -1), -1), x.shape[1], 1)):
        pieces = zip(np.split(x, count, axis), np.split(mask, count, axis), strict=True)
        want = np.concatenate([standardized(*piece) for piece in pieces], axis)
        assert_close([fn(x, mask)], [want], rtol=1e-6)


@pytest.mark.versions
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_sharded_by_the_compiler(kind):
    mesh = Mesh(MESH.devices, MESH.axis_names, axis_types=(kind,) * 2)
    x = normal(3000.0)
    split = jax.device_put(x, NamedSharding(mesh, SPEC))
    assert_close([jax.jit(normalize)(split)], [standardized(x)], rtol=1e-6)


@pytest.mark.versions
def test_over_the_axes_of_vmap_and_pmap():
    x = normal(300.0, shape=(8, 24))
    for wrap in (jax.vmap, jax.pmap):
        fn = wrap(functools.partial(normalize, axis_name="shards"), axis_name="shards")
        assert_close([fn(x)], [standardized(x)], rtol=1e-6)
    nested = jax.vmap(functools.partial(normalize, axis_name=("a", "b")), axis_name="b")
    assert_close([jax.vmap(nested, axis_name="a")(x.reshape(2, 4, 24))], [standardized(x).reshape(2, 4, 24)], rtol=1e-6)


X = np.ones((2, 2), np.float32)
NO_MESH = "must name mesh axes of a jax.shard_map around this call; got 'x'"
REFUSED = [
    (TypeError, "advantages", GAEOutput(jnp.asarray(X), jnp.asarray(X)), "got GAEOutput. Pass its `.advantages`."),
    (TypeError, "advantages", None, "must be an array of numbers; got NoneType"),
    (TypeError, "advantages", X > 0, "got dtype bool"),
    (TypeError, "mask", [True, False], "must be an array of flags; got list. Convert it with jnp.asarray(x)."),
    (TypeError, "mask", 1j * X, "must hold flags, bool or 0 and 1; got dtype complex64"),
    *((TypeError, "axis_name", x, f"must be a string; got {x!r}") for x in (["x"], 0)),
    (ValueError, "mask", np.ones(2, bool), "must have shape (2, 2), the shape of `advantages`; got (2,). If one entry"),
    *((ValueError, "axis_name", x, NO_MESH) for x in ("x", ("x", "y"))),
]
for number in ("epsilon", "ddof"):
    REFUSED += [(TypeError, number, x, f"must be a number; got {x!r}") for x in (None, "1", 1j, True)]
    REFUSED += [(ValueError, number, x, f"must be at least 0; got {x}") for x in (-1e-8, np.nan, jnp.float32(-1))]
    REFUSED += [(ValueError, number, np.ones(n), f"must be one number; got shape ({n},)") for n in (1, 2)]


@pytest.mark.parametrize(("error", "name", "x", "message"), REFUSED)
def test_refuses(error, name, x, message):
    arguments: dict[str, Any] = {"advantages": X, name: x}
    with pytest.raises(error, match=f"^`{name}` .*{re.escape(message)}"):
        normalize(**arguments)


@pytest.mark.versions
@pytest.mark.parametrize(("axis_name", "message"), [(("data", "time"), "name mesh"), (("data", "data"), "not repeat")])
def test_refuses_an_axis_that_the_mesh_lacks_or_a_name_twice(axis_name, message):
    with pytest.raises(ValueError, match=f"`axis_name` must {message}"):
        over(MESH, axis_name)(X.repeat(4, 1), X.repeat(4, 1))
