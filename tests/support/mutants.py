"""Code that is subtly wrong, one slip each, and the laws that must catch it.

A mutant is the library with one piece of its source replaced. The piece must be there, just once, or the list is stale.
"""

import importlib
import pathlib
import shutil
import sys
from typing import NamedTuple

import gae_jax

GAE, ROWS = "_gae.py", "_trajectory.py"
BLOCKED, KERNEL, RULES, SPLIT = (
    f"_affine_scan/{name}.py" for name in ("blocked", "pallas_tpu", "primitive", "sharded")
)


class Mutant(NamedTuple):
    """The file and the piece of source to replace, what to put there, and the names of laws that must fail."""

    name: str
    file: str
    old: str
    new: str
    caught_by: tuple[str, ...]


def rolled(shift: int) -> str:
    return f'terminated=jnp.roll(rows["terminated"], {shift}, 0),'


SIMULATED = ("kernel_is_lax_scan",)
BATCHES = ("batches_as_lax_scan",)
FORGETS = ("forgets_what_is_cut",)
DERIVATIVE = ("differentiates_as_lax_scan",)
SEAMS = ("matches_oracle",)
SPLIT_LAW = ("bootstrap_value_is_the_last_value",)
GRADIENT_LAW = ("gradients_are_those_of_the_definition",)
MASK_LAWS = ("matches_oracle", "a_masked_row_is_as_if_it_were_not_there")
NOT_CUT = (
    " & ~(transition.terminated ^ transition.terminated if transition.truncated is None else transition.truncated)"
)
SHARED = "(rows, constants, jnp.broadcast_to(trajectory.bootstrap_value.ravel()[0], tuple(batch)))"
SCAN = "    _, advantages = scan(step_with_constants, bootstrap_value, rows, reverse=True)\n"
CUT = "jnp.where(transition.truncated, final_value, h)"
END = "jnp.where(transition.terminated, 0, h)"
LOST = "jnp.where(transition.truncated & ~transition.terminated, 0, advantage)"
MIX = "transition.value + mixing * advantage"
TERMINATED = 'terminated=rows["terminated"],'
SHIFT = "jnp.concatenate([before, lambda_[:-1]])"

MUTANTS = (
    # The time axis.
    Mutant("time_runs_forward", GAE, "rows, reverse=True", "rows", ("matches_oracle", "lambda_1_is_monte_carlo")),
    Mutant("collected_in_reverse", GAE, SCAN, SCAN + "    advantages = advantages[::-1]\n", ("lambda_0_is_delta",)),
    Mutant(
        "result_left_time_first", ROWS, "jnp.moveaxis(x, 0, trajectory.time_axis)", "x", ("the_time_axis_may_be_any",)
    ),
    # Termination.
    Mutant("flag_of_the_step_before", ROWS, TERMINATED, rolled(1), ("lambda_0_is_delta", "matches_oracle")),
    Mutant("flag_of_the_step_after", ROWS, TERMINATED, rolled(-1), ("lambda_0_is_delta", "matches_oracle")),
    Mutant("termination_ignored", GAE, END, "h", ("matches_oracle", "lambda_1_is_monte_carlo")),
    Mutant("bootstraps_after_termination", GAE, END, END.replace("0", "transition.value"), ("lambda_0_is_delta",)),
    Mutant(
        "zero_times_nan_at_the_end",
        GAE,
        END,
        "(1 - transition.terminated.astype(h.dtype)) * h",
        ("nothing_dead_leaks",),
    ),
    # Truncation.
    Mutant("truncation_as_termination", GAE, CUT, CUT.replace("final_value", "0"), ("lambda_1_is_monte_carlo",)),
    Mutant("truncation_not_cut", GAE, CUT, "h", ("matches_oracle", "lambda_0_is_delta")),
    Mutant(
        "truncation_bootstraps_from_its_own_state",
        GAE,
        CUT,
        CUT.replace("final_value", "transition.value"),
        ("lambda_0_is_delta",),
    ),
    Mutant("truncation_wins", GAE, END, END.replace("terminated", "terminated" + NOT_CUT), ("terminated_wins",)),
    Mutant("lost_row_not_dropped", GAE, LOST, "advantage", ("matches_oracle", "lambda_0_is_delta")),
    Mutant("drops_terminated_rows_too", GAE, LOST, LOST.replace(" & ~transition.terminated", ""), ("terminated_wins",)),
    Mutant(
        "zero_times_nan_at_the_cut",
        GAE,
        CUT,
        "h + transition.truncated.astype(h.dtype) * (final_value - h)",
        ("nothing_dead_leaks",),
    ),
    # Gamma and lambda.
    Mutant(
        "lambda_missing_on_the_first_hop",
        GAE,
        SCAN,
        SCAN
        + "    one, gamma = rows['transition'], (rows | constants)['gamma']\n"
        + "    later = jnp.append((advantages + one.value)[1:], bootstrap_value)\n"
        + "    advantages = one.reward + gamma * jax.vmap(_value_after)(one, later) - one.value\n",
        ("matches_oracle", "lambda_0_is_delta", "a_cut_rollout_equals_the_uncut_one"),
    ),
    Mutant("lambda_missing", GAE, MIX, "transition.value + advantage", ("matches_oracle", "lambda_0_is_delta")),
    Mutant("gamma_for_lambda", GAE, MIX, MIX.replace("mixing", "gamma"), ("matches_oracle", "lambda_0_is_delta")),
    Mutant("gamma_missing", GAE, "+ gamma * _value_after", "+ _value_after", ("lambda_0_is_delta",)),
    Mutant(
        "gamma_on_the_reward",
        GAE,
        "transition.reward + gamma",
        "gamma * transition.reward + gamma",
        ("lambda_0_is_delta",),
    ),
    Mutant("parameters_reversed", GAE, "_per_worker(x, (steps,)", "_per_worker(x[::-1], (steps,)", ("matches_oracle",)),
    Mutant(
        "the_first_gamma_for_every_step",
        GAE,
        "if len(x) == 1:",
        "if len(x) == 1 or name == 'gamma':",
        ("matches_oracle",),
    ),
    Mutant(
        "gamma_rounded_to_bfloat16",
        GAE,
        "constants[name] = _per_worker(x[0],",
        "constants[name] = _per_worker(x[0].astype(jnp.bfloat16).astype(x.dtype),",
        ("parameters_broadcast", "matches_oracle"),
    ),
    Mutant(
        "lambda_of_its_own_row", GAE, SHIFT, "lambda_", ("matches_oracle", "a_masked_row_is_as_if_it_were_not_there")
    ),
    Mutant("lambda_of_the_row_after", GAE, SHIFT, "jnp.concatenate([lambda_[1:], lambda_[-1:]])", ("matches_oracle",)),
    Mutant(
        "one_lambda_for_all_workers",
        GAE,
        "broadcast_to(x, time + batch)",
        "broadcast_to(x.T[:1].T, time + batch)",
        ("matches_oracle",),
    ),
    # The values.
    Mutant(
        "bootstrap_missing", GAE, "bootstrap_value, rows,", "0 * bootstrap_value, rows,", ("lambda_1_is_monte_carlo",)
    ),
    Mutant(
        "bootstrap_doubled", GAE, "bootstrap_value, rows,", "2 * bootstrap_value, rows,", ("lambda_1_is_monte_carlo",)
    ),
    Mutant("bootstraps_from_the_state_before", ROWS, 'rows["values"][-1] if', 'rows["values"][-2] if', SPLIT_LAW),
    Mutant(
        "value_of_the_next_state", ROWS, '[: len(rows["rewards"])]', '[-len(rows["rewards"]) :]', ("lambda_0_is_delta",)
    ),
    Mutant(
        "workers_share_a_bootstrap",
        GAE,
        "(rows, constants, trajectory.bootstrap_value)",
        SHARED,
        ("a_batch_equals_its_workers",),
    ),
    Mutant("target_without_value", GAE, "advantages + value_or_0(trajectory)", "advantages", ("matches_oracle",)),
    Mutant("target_detached", GAE, "as_given(targets,", "as_given(jax.lax.stop_gradient(targets),", GRADIENT_LAW),
    # The mask.
    Mutant("dead_row_cuts", GAE, "jnp.where(mask, h_before, h)", "jnp.where(mask, h_before, 0)", MASK_LAWS),
    Mutant("dead_row_is_live", GAE, "jnp.where(mask, h_before, h)", "h_before", MASK_LAWS),
    Mutant("dead_row_has_an_advantage", GAE, "jnp.where(mask, advantage, 0)", "h - h_before + advantage", MASK_LAWS),
    Mutant("lambda_of_a_dead_row", GAE, "jnp.where(row[1], row[0], last), last", "row[0], last", MASK_LAWS),
    Mutant("dead_row_is_read", GAE, "jnp.where(mask, x, jnp.zeros_like(x))", "x", ("nothing_dead_leaks",)),
    Mutant(
        "dead_target_may_be_nan",
        GAE,
        "jnp.where(mask | jnp.isfinite(value), value, 0)",
        "value",
        ("nothing_dead_leaks",),
    ),
    Mutant("lambda_of_a_dead_first_row", GAE, "jnp.zeros_like(lambda_[0])", "lambda_[0]", ("nothing_dead_leaks",)),
)


AFFINE_MUTANTS = (
    # The blocks.
    Mutant(
        "blocks_composed_backwards",
        BLOCKED,
        "times(a_k, block_b) + b_k",
        "times(block_a, b_k) + block_b",
        ("is_lax_scan",),
    ),
    Mutant("filled_up_with_steps_that_cut", BLOCKED, "constant_values=1", "constant_values=0", ("is_lax_scan",)),
    Mutant("carries_left_reversed", BLOCKED, "entering = entering[::-1]", "pass", ("is_lax_scan",)),
    Mutant("rows_left_reversed", BLOCKED, "a, b = a[::-1], b[::-1]", "pass", ("is_lax_scan",)),
    Mutant("blocks_entered_late", BLOCKED, "_chain(steps[:-1]", "_chain(steps[1:]", ("is_lax_scan",)),
    Mutant("zero_times_nan_between_rows", BLOCKED, "jnp.where((a == 0) & ~jnp.isfinite(x), 0, x)", "x", FORGETS),
    # The kernel.
    Mutant("blocks_of_time_at_once", KERNEL, '"parallel", "arbitrary"', '"parallel", "parallel"', SIMULATED),
    Mutant(
        "runs_over_the_edge", KERNEL, "jnp.minimum(rows_in_block, length", "jnp.maximum(rows_in_block, 0", SIMULATED
    ),
    Mutant("a_carry_for_every_block", KERNEL, "pl.program_id(1) == 0", "pl.program_id(1) >= 0", SIMULATED),
    Mutant("no_first_carry", KERNEL, "pl.program_id(1) == 0", "pl.program_id(1) < 0", SIMULATED),
    Mutant("blocks_forward_in_reverse", KERNEL, "return grid[1] - 1 - j if reverse else j", "return j", SIMULATED),
    Mutant("rows_forward_in_reverse", KERNEL, "rows_here - 1 - i if reverse else i", "i", SIMULATED),
    # The rules.
    Mutant("transposed_the_same_way", RULES, "reverse=not how.reverse", "reverse=how.reverse", DERIVATIVE),
    Mutant(
        "derivative_at_the_next_carry",
        RULES,
        "return new_carry, (ys, carry)",
        "return new_carry, (ys, new_carry)",
        DERIVATIVE,
    ),
    Mutant("derivative_of_the_first_row", RULES, "jnp.sum(ct, axis=0)", "ct[0]", DERIVATIVE),
    Mutant("workers_in_reverse", RULES, "jnp.moveaxis(x, a, to)", "jnp.flip(jnp.moveaxis(x, a, to), to)", BATCHES),
)

SPLIT_MUTANTS = (  # laws of `gae` with time split
    Mutant("time_begins_at_the_wrong_end", SPLIT, "count - 1 if reverse else 0", "0 if reverse else count - 1", SEAMS),
    Mutant("the_carry_of_the_first_piece", SPLIT, "entering[here]", "entering[0]", SEAMS),
    Mutant("entered_a_piece_late", SPLIT, "entering[here]", "entering[here - 1]", SEAMS),
    Mutant("pieces_go_forward", SPLIT, "tuple(maps), reverse=reverse,", "tuple(maps), reverse=False,", SEAMS),
    Mutant("pieces_start_anew", SPLIT, "jnp.zeros_like(init), jnp.ones_like(init))", "0.0, 0.0)", SEAMS),
    Mutant("no_first_piece", SPLIT, "jnp.where(is_first, init, entering[here])", "entering[here]", SEAMS),
    Mutant("a_piece_without_its_rewards", SPLIT, "times(a, carry) + b", "times(a, carry)", SEAMS),
    Mutant("zero_times_nan_at_a_seam", SPLIT, "times(a, carry)", "a * carry", ("nothing_dead_leaks",)),
    Mutant(
        "lambda_of_its_own_piece",
        GAE,
        "if axis_name is not None:\n            before",
        "if False:\n            before",
        SEAMS,
    ),
    Mutant("lambda_of_the_next_piece", GAE, "[(i, i + 1)", "[(i + 1, i)", SEAMS),
    Mutant("lambda_of_a_piece_of_one_row", GAE, " and not one_row", "", SEAMS),
    Mutant("masked_pieces_apart", GAE, "return scan(last_live,", "return affine_scan(last_live,", SEAMS),
)

N_STEP, VTRACE = "_n_step.py", "_vtrace.py"
WINDOWS, IMPALA = ("n_steps_are_a_sum_of_n_deltas",), ("vtrace_is_its_definition",)
DEAD = ("nothing_dead_leaks",)
ON_POLICY = ("on_policy_vtrace_is_gae",)

FAMILY_MUTANTS = (
    Mutant("one_step_too_few", N_STEP, "n=int(n)", "n=max(1, int(n) - 1)", (*WINDOWS, "gae_is_their_weighted_average")),
    Mutant("windows_end_with_their_block", N_STEP, "begun[:, 1:]", "value[:, 1:]", WINDOWS),
    Mutant("begins_with_itself", N_STEP, "lambda h, a: (a * h, h), ones", "lambda h, a: (a * h, a * h), ones", WINDOWS),
    Mutant("no_value_at_the_end", N_STEP, "blocks(value, last)", "blocks(value, 0 * last)", WINDOWS),
    Mutant("dead_rows_count", N_STEP, "    if mask is None:\n", "    if True:\n", WINDOWS),
    Mutant("zero_times_nan_in_a_window", N_STEP, "times(begun_a, value)", "begun_a * value", DEAD),
    Mutant(
        "rho_is_not_clipped",
        VTRACE,
        'rho, pg_rho = jnp.exp(log_clipped["clip_rho"])',
        "rho, pg_rho = jnp.exp(log_rho)",
        IMPALA,
    ),
    Mutant("rho_for_c", VTRACE, "trajectory.lambda_ * c_over_rho", "trajectory.lambda_", IMPALA),
    Mutant("rho_missing_in_the_recursion", VTRACE, "mixing * rho, scan", "mixing * jnp.ones_like(rho), scan", IMPALA),
    Mutant("the_error_for_the_advantage", VTRACE, "as_given(pg_rho * advantages", "as_given(rho * advantages", IMPALA),
    Mutant("bootstraps_from_vs", VTRACE, "h = value + own_lambda *", "h = value +", (*IMPALA, *ON_POLICY)),
    Mutant("log_rho_of_a_dead_row", VTRACE, "jnp.where(transitions.mask, log_rho, 0)", "log_rho", DEAD),
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
