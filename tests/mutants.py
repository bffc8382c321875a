"""Code that is subtly wrong, one slip each, and the laws that must catch it.

A mutant is the library with one piece of its source replaced. The piece must be there, just once, or the list is stale.
"""

import importlib
import pathlib
import shutil
import sys
from typing import NamedTuple

import gae_jax


class Mutant(NamedTuple):
    """The file and the piece of source to replace, what to put there, and the names of laws that must fail."""

    name: str
    file: str
    old: str
    new: str
    caught_by: tuple[str, ...]


SCAN = "    _, advantages = lax.scan(step, bootstrap_value, transitions, reverse=True)\n"
AFTER = "jnp.where(row.truncated, row.final_value, h)"
ENDS = 'terminated=rows["terminated"],'

MUTANTS = (
    Mutant(
        "time_runs_forward", "_gae.py", "reverse=True", "reverse=False", ("matches_oracle", "lambda_1_is_monte_carlo")
    ),
    Mutant(
        "collected_in_reverse", "_gae.py", SCAN, SCAN + "    advantages = advantages[::-1]\n", ("lambda_0_is_delta",)
    ),
    Mutant(
        "flag_of_the_step_before",
        "_trajectory.py",
        ENDS,
        'terminated=jnp.roll(rows["terminated"], 1, 0),',
        ("lambda_0_is_delta", "matches_oracle"),
    ),
    Mutant(
        "flag_of_the_step_after",
        "_trajectory.py",
        ENDS,
        'terminated=jnp.roll(rows["terminated"], -1, 0),',
        ("lambda_0_is_delta", "matches_oracle"),
    ),
    Mutant(
        "termination_ignored",
        "_gae.py",
        "return jnp.where(row.terminated, 0, h)",
        "return h",
        ("matches_oracle", "lambda_1_is_monte_carlo"),
    ),
    Mutant(
        "bootstraps_after_termination",
        "_gae.py",
        "return jnp.where(row.terminated, 0, h)",
        "return jnp.where(row.terminated, row.value, h)",
        ("matches_oracle", "lambda_0_is_delta"),
    ),
    Mutant(
        "lambda_missing_on_the_first_hop",
        "_gae.py",
        SCAN,
        SCAN
        + "    later = jnp.append((advantages + transitions.value)[1:], bootstrap_value)\n"
        + "    follows = jax.vmap(_value_after)(transitions, later)\n"
        + "    advantages = transitions.reward + gamma * follows - transitions.value\n",
        ("matches_oracle", "lambda_0_is_delta", "a_cut_rollout_equals_the_uncut_one"),
    ),
    Mutant(
        "lambda_missing",
        "_gae.py",
        "row.value + lambda_ * advantage",
        "row.value + advantage",
        ("matches_oracle", "lambda_0_is_delta"),
    ),
    Mutant(
        "gamma_for_lambda",
        "_gae.py",
        "row.value + lambda_ * advantage",
        "row.value + gamma * advantage",
        ("matches_oracle", "lambda_0_is_delta"),
    ),
    Mutant(
        "gamma_missing",
        "_gae.py",
        "row.reward + gamma * _value_after",
        "row.reward + _value_after",
        ("matches_oracle", "lambda_0_is_delta"),
    ),
    Mutant(
        "gamma_on_the_reward",
        "_gae.py",
        "row.reward + gamma * _value_after(row, h)",
        "gamma * (row.reward + _value_after(row, h))",
        ("matches_oracle", "lambda_1_is_monte_carlo"),
    ),
    Mutant(
        "truncation_as_termination",
        "_gae.py",
        AFTER,
        "jnp.where(row.truncated, 0, h)",
        ("matches_oracle", "lambda_1_is_monte_carlo"),
    ),
    Mutant("truncation_not_cut", "_gae.py", AFTER, "h", ("matches_oracle", "lambda_0_is_delta")),
    Mutant(
        "truncation_bootstraps_from_its_own_state",
        "_gae.py",
        AFTER,
        "jnp.where(row.truncated, row.value, h)",
        ("matches_oracle", "lambda_0_is_delta"),
    ),
    Mutant(
        "truncation_wins",
        "_gae.py",
        "jnp.where(row.terminated, 0, h)",
        "jnp.where(row.terminated if row.truncated is None else row.terminated & ~row.truncated, 0, h)",
        ("terminated_wins", "matches_oracle"),
    ),
    Mutant(
        "lost_truncation_not_dropped",
        "_gae.py",
        "jnp.where(row.truncated & ~row.terminated, 0, advantage)",
        "advantage",
        ("matches_oracle", "lambda_0_is_delta"),
    ),
    Mutant(
        "drops_terminated_rows_too",
        "_gae.py",
        "row.truncated & ~row.terminated",
        "row.truncated",
        ("terminated_wins", "matches_oracle"),
    ),
    Mutant(
        "bootstrap_missing",
        "_gae.py",
        "lax.scan(step, bootstrap_value,",
        "lax.scan(step, 0 * bootstrap_value,",
        ("matches_oracle", "lambda_1_is_monte_carlo"),
    ),
    Mutant(
        "bootstrap_doubled",
        "_gae.py",
        "lax.scan(step, bootstrap_value,",
        "lax.scan(step, 2 * bootstrap_value,",
        ("matches_oracle", "lambda_1_is_monte_carlo"),
    ),
    Mutant(
        "bootstraps_from_the_state_before",
        "_trajectory.py",
        'rows["values"][-1] if',
        'rows["values"][-2] if',
        ("bootstrap_value_is_the_last_value", "matches_oracle"),
    ),
    Mutant(
        "value_of_the_next_state",
        "_trajectory.py",
        '[: len(rows["rewards"])]',
        '[-len(rows["rewards"]) :]',
        ("matches_oracle", "lambda_0_is_delta"),
    ),
    Mutant(
        "zero_times_nan_after_termination",
        "_gae.py",
        "jnp.where(row.terminated, 0, h)",
        "(1 - row.terminated.astype(h.dtype)) * h",
        ("nothing_dead_leaks",),
    ),
    Mutant(
        "zero_times_nan_without_truncation",
        "_gae.py",
        AFTER,
        "h + row.truncated.astype(h.dtype) * (row.final_value - h)",
        ("nothing_dead_leaks",),
    ),
    Mutant(
        "workers_share_a_bootstrap",
        "_gae.py",
        "recursion(trajectory.transitions, trajectory.bootstrap_value)",
        "recursion(trajectory.transitions, *(jnp.broadcast_to(x.ravel()[0], x.shape) for x in trajectory[1:2]))",
        ("a_batch_equals_its_workers",),
    ),
    Mutant(
        "target_without_value", "_gae.py", "as_given(advantages + value)", "as_given(advantages)", ("matches_oracle",)
    ),
    Mutant(
        "target_detached",
        "_gae.py",
        "as_given(advantages + value)",
        "lax.stop_gradient(as_given(advantages + value))",
        ("gradients_are_those_of_the_definition",),
    ),
    Mutant(
        "result_left_time_first",
        "_gae.py",
        "jnp.moveaxis(x, 0, trajectory.time_axis)",
        "x",
        ("the_time_axis_may_be_any",),
    ),
)


def load(mutant, directory):
    """Imports the mutant from a copy of the package in `directory`, beside the real one and in its place for nobody."""
    package = pathlib.Path(directory) / "gae_jax"
    shutil.copytree(pathlib.Path(gae_jax.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    file = package / mutant.file
    source = file.read_text(encoding="utf-8")
    assert source.count(mutant.old) == 1, f"{mutant.name}: {mutant.old!r} must be in {mutant.file} just once"
    file.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")

    real = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "gae_jax"}
    sys.path.insert(0, str(directory))
    try:
        return importlib.import_module("gae_jax")
    finally:
        sys.path.remove(str(directory))
        for name in [name for name in sys.modules if name.split(".")[0] == "gae_jax"]:
            del sys.modules[name]
        sys.modules.update(real)
