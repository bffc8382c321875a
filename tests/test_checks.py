"""What only a run can know: errors under checkify and chexify, nothing at all without them."""

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P
from support.rollouts import Rollout, random_rollout

from gae_jax import gae

T, N = 6, 2
# Worker 0 is cut in row 1 and ends in the last row; worker 1 has two dead rows at its end, and goes on.
ROLLOUT = Rollout(
    rewards=np.ones((T, N), np.float32),
    values=np.ones((T + 1, N), np.float32),
    terminated=np.array([[0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [1, 0]], np.float32),
    truncated=np.array([[0, 0], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0]], np.float32),
    final_values=np.ones((T, N), np.float32),
    mask=np.array([[1, 1], [1, 1], [1, 1], [1, 1], [1, 0], [1, 0]], np.float32),
    gamma=np.full((T, N), 0.9, np.float32),
    lambda_=np.full((T, N), 0.8, np.float32),
)
nan, inf = float("nan"), float("inf")

LIVE = [
    ("rewards", (0, 0), nan, r"`rewards` must hold finite numbers where it is read; 1 entries do not"),
    ("rewards", (1, 0), inf, r"`rewards` must hold finite numbers"),
    ("values", (2, 1), nan, r"`values` must hold finite numbers"),
    ("values", (T, 1), nan, r"V\(s_T\), the bootstrap value, must hold finite numbers"),
    ("final_values", (1, 0), nan, r"`final_values` must hold finite numbers"),
    ("terminated", (0, 0), 0.5, r"`terminated` must hold 0 and 1 where it is read; 1 entries do not"),
    ("truncated", (0, 0), 2.0, r"`truncated` must hold 0 and 1"),
    ("truncated", (0, 0), nan, r"`truncated` must hold 0 and 1"),
    ("mask", (0, 0), -1.0, r"`mask` must hold 0 and 1"),
    ("gamma", (0, 0), 1.5, r"`gamma` must lie in \[0, 1\]"),
    ("gamma", (0, 0), nan, r"`gamma` must lie in \[0, 1\]"),
    ("lambda_", (3, 1), -0.1, r"`lambda_` must lie in \[0, 1\]"),
]
DEAD = [
    ("rewards", (4, 1), nan),
    ("values", (5, 1), nan),
    ("values", (T, 0), nan),
    ("final_values", (0, 0), nan),
    ("terminated", (4, 1), 0.5),
    ("truncated", (5, 1), nan),
    ("gamma", (4, 1), 7.0),
    ("lambda_", (5, 1), nan),
]


def with_entry(name: str, index: tuple[int, int], x: float) -> dict[str, Any]:
    array = getattr(ROLLOUT, name).copy()
    array[index] = x
    return ROLLOUT.replace(**{name: array}).arguments()


checked = jax.jit(checkify.checkify(gae))


@pytest.mark.parametrize(("name", "index", "x", "message"), LIVE)
def test_checkify_finds_it(name, index, x, message):
    error, _ = checked(**with_entry(name, index, x))
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        error.throw()


@pytest.mark.parametrize(("name", "index", "x"), DEAD)
def test_checkify_does_not_look_at_what_is_dead(name, index, x):
    error, _ = checked(**with_entry(name, index, x))
    error.throw()


def test_a_dropped_row_has_no_say():
    dropped = ROLLOUT.replace(final_values=None, mask=None)
    rewards = dropped.rewards.copy()
    rewards[1, 0] = nan
    checked(**dropped.replace(rewards=rewards).arguments())[0].throw()
    rewards[0, 0] = nan
    with pytest.raises(
        checkify.JaxRuntimeError, match="`rewards` must hold finite numbers where it is read; 1 entries"
    ):
        checked(**dropped.replace(rewards=rewards).arguments())[0].throw()


def test_chexify_finds_it(monkeypatch):
    # Chex remembers whoever was chexified, and at exit warns of them, waited for or not.
    monkeypatch.setattr("chex._src.asserts_internal.CHEXIFY_STORAGE.wait_fns", [])
    with pytest.raises(checkify.JaxRuntimeError, match=r"`gamma` must lie in \[0, 1\]"):
        chex.chexify(jax.jit(gae), async_check=False)(**with_entry("gamma", (0, 0), 1.5))


@pytest.mark.parametrize("wrap", [jax.vmap, jax.checkpoint, jax.grad], ids=lambda wrap: wrap.__name__)
def test_inside_other_transformations(wrap):
    def loss(rewards, terminated):
        return jnp.sum(gae(rewards, jnp.zeros(T + 1), terminated, gamma=0.9, lambda_=0.8).advantages)

    rewards, terminated = jnp.ones((T, T)), jnp.full((T, T), 3)
    arguments = (rewards, terminated) if wrap is jax.vmap else (rewards[0], terminated[0])
    wrap(loss)(*arguments)
    error, _ = checkify.checkify(wrap(loss))(*arguments)
    with pytest.raises(checkify.JaxRuntimeError, match="`terminated` must hold 0 and 1"):
        error.throw()


def test_with_time_split_over_devices():
    """Each device looks at its piece; V(s_T) belongs to the last one, whatever the others hold."""
    unmasked = ROLLOUT.replace(mask=None)

    def split(*, last_value, where, rewards=unmasked.rewards):
        def on_each(rollout, last_value):
            here = jax.lax.axis_index("time")
            last_value = jnp.where(here == where, last_value, 1.0)
            return gae(**rollout, gamma=0.9, lambda_=0.8, bootstrap_value=last_value, axis_name="time")

        rollout = {"rewards": rewards, "values": unmasked.values[:-1], "terminated": np.zeros((T, N), bool)}
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:3]), ("time",))
        fn = jax.shard_map(on_each, mesh=mesh, in_specs=(P("time"), P()), out_specs=P("time"))
        checkify.checkify(fn)(rollout, jnp.full(N, last_value, jnp.float32))[0].throw()

    split(last_value=1.0, where=2)
    split(last_value=nan, where=1)
    with pytest.raises(checkify.JaxRuntimeError, match=r"V\(s_T\), the bootstrap value, must hold"):
        split(last_value=nan, where=2)
    with pytest.raises(checkify.JaxRuntimeError, match=r"`rewards` must hold finite numbers"):
        split(last_value=1.0, where=2, rewards=np.where(np.arange(T)[:, None] < 1, np.float32(inf), unmasked.rewards))


def test_without_checkify_they_cost_nothing(monkeypatch):
    """The program is the same, instruction by instruction, as that of a library without checks, and has no effects."""
    arguments = random_rollout(0, steps=8, batch=(4,), dead=0.2).arguments()

    def program():
        jitted = jax.jit(lambda arguments: gae(**arguments))
        assert not jitted.trace(arguments).jaxpr.effects  # with effects, JAX would take a slow path to call it
        text = str(jitted.lower(arguments).compile().as_text())
        text = re.sub(r"metadata=\{[^}]*\}", "", text[text.index("\n%") :])
        return re.sub(r"region_\d+|\.\d+", "", text)

    with_checks = program()
    calls = []
    monkeypatch.setattr("gae_jax._trajectory.guarded", lambda x, *operands: calls.append(operands) or x)
    jax.clear_caches()
    assert with_checks == program()
    assert len(calls) == 1
    monkeypatch.undo()
    jax.clear_caches()
