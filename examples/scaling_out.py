"""A rollout of a million steps split over devices, by workers and by time: who is told what, and is it right?

    python examples/scaling_out.py                                      # on CPUs, eight devices are pretended
    python examples/scaling_out.py --processes 2 --process 1 &          # the same, over two processes
    python examples/scaling_out.py --processes 2 --process 0

Each line of the table is a split: what of the rollout is split, over which mesh, and by whom; the collective operations
in the compiled program, the bytes of their results on each device, and the largest difference from the advantages that
one device computes by itself.
"""

import argparse
import collections
import functools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gae_jax import gae

OPERATIONS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "pred": 1}


class Split(NamedTuple):
    """A way to split a rollout `[T, N]`."""

    mesh: dict[str, int]  # the axis "time" is for T, all others for N
    kind: AxisType = AxisType.Auto
    by_hand: bool = False  # with jax.shard_map, else the compiler sees to it
    implementation: str | None = None
    lambda_varies: bool = False


def splits(devices: int) -> list[Split]:
    """What there is to compare."""
    one, two = {"workers": devices}, {"workers": devices // 2, "more": 2}
    time, both = {"time": devices}, {"time": devices // 2, "workers": 2}
    return [
        Split(one, AxisType.Auto),
        Split(one, AxisType.Explicit),
        Split(two, AxisType.Auto),
        Split(two, AxisType.Explicit, implementation="blocked"),
        Split(time, by_hand=True),
        Split(time, by_hand=True, implementation="blocked"),
        Split(time, by_hand=True, lambda_varies=True),
        Split(both, by_hand=True),
        Split(time),  # not to be done: it gathers the rollout
    ]


def make_rollout(steps: int, workers: int) -> dict[str, np.ndarray]:
    """The arguments of `gae`; the same in every process."""
    rng, shape = np.random.default_rng(0), (steps, workers)
    return {
        "rewards": rng.normal(size=shape).astype(np.float32),
        "values": rng.normal(size=shape).astype(np.float32),
        "terminated": rng.random(shape) < 0.001,
        "truncated": rng.random(shape) < 0.001,
        "final_values": rng.normal(size=shape).astype(np.float32),
        "bootstrap_value": rng.normal(size=workers).astype(np.float32),
    }


def estimate(arrays: dict[str, Array], *, lambda_varies: bool, **how: Any) -> Array:
    """The advantages."""
    lambda_ = 0.95 + 0.04 * jnp.sin(arrays["rewards"]) if lambda_varies else 0.95
    return gae(**arrays, gamma=0.99, lambda_=lambda_, **how).advantages


def run(split: Split, rollout: dict[str, np.ndarray], alone: np.ndarray) -> list[str]:
    """Runs it, and compares with what one device says; returns the line of the table."""
    devices = np.array(jax.devices()[: math.prod(split.mesh.values())]).reshape(tuple(split.mesh.values()))
    mesh = Mesh(devices, tuple(split.mesh), axis_types=(split.kind,) * len(split.mesh))
    time = "time" if "time" in split.mesh else None
    workers = tuple(name for name in split.mesh if name != "time")
    specs = {name: P(time, workers) if x.ndim > 1 else P(workers) for name, x in rollout.items()}

    def place(x: np.ndarray, spec: P) -> Array:
        """Each process has its part of the array."""
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index: x[index])

    fn = functools.partial(estimate, lambda_varies=split.lambda_varies, implementation=split.implementation)
    if split.by_hand:
        fn = functools.partial(fn, axis_name=time)
        fn = jax.shard_map(fn, mesh=mesh, in_specs=(specs,), out_specs=specs["rewards"])
    arrays = {name: place(x, specs[name]) for name, x in rollout.items()}
    program = jax.jit(fn).lower(arrays).compile()
    largest = jax.jit(lambda x, y: jnp.abs(x - y).max(), out_shardings=NamedSharding(mesh, P()))
    difference = largest(program(arrays), place(alone, specs["rewards"]))
    counts = ", ".join(f"{count} {name}" for name, count in collectives(program).items())
    return [
        " and ".join(["time"] * bool(time) + ["workers"] * bool(workers)) + ", λ by step" * split.lambda_varies,
        " × ".join(map(str, split.mesh.values())),
        "jax.shard_map" if split.by_hand else f"jax.jit, {split.kind.name} axes",
        split.implementation or "None",
        counts or "none",
        f"{collective_bytes(program):,}",
        f"{float(difference):.1e}",
    ]


def collectives(program: Any) -> dict[str, int]:
    """How often a compiled program has each collective operation."""
    return dict(collections.Counter(name for _, name in _collectives(program)))


def collective_bytes(program: Any) -> int:
    """The bytes of the results of all its collective operations, on one device."""
    arrays = [re.findall(r"(\w+)\[([\d,]*)\]", results)[-1] for results, _ in _collectives(program)]
    return sum(BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in arrays)


def _collectives(program: Any) -> list[tuple[str, str]]:
    """Results and name of each; of one that starts here and is done later, the last of the results is what it gives."""
    return re.findall(rf" = (\S.*?) ({OPERATIONS})(?:-start)?\(", program.as_text())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Rollouts split over devices.")
    parser.add_argument("--steps", type=int, default=2**20, help="T, which --devices must divide")
    parser.add_argument("--workers", type=int, default=8, help="N, which --devices must divide")
    parser.add_argument("--devices", type=int, default=8, help="of all processes together; an even number")
    parser.add_argument("--processes", type=int, default=1, help="that share the devices")
    parser.add_argument("--process", type=int, default=0, help="which of them this is")
    parser.add_argument("--coordinator", default="127.0.0.1:12345", help="where process 0 listens to the others")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices // options.processes)
    if options.processes > 1:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    say = print if jax.process_index() == 0 else lambda *_, **__: None
    rollout, device = make_rollout(options.steps, options.workers), jax.devices()[0].device_kind
    say(
        f"{options.steps:,} × {options.workers} on {options.devices} devices ({device}), jax {jax.__version__};",
        end=" ",
    )
    say(f"{options.processes} processes\n" if options.processes > 1 else "one process\n")
    say("| split | mesh | by | implementation | collectives | their bytes | largest difference |")
    say("|---|---|---|---|---|---|---|")
    alone = {x: np.asarray(jax.jit(functools.partial(estimate, lambda_varies=x))(rollout)) for x in (False, True)}
    for split in splits(options.devices):
        say("| " + " | ".join(run(split, rollout, alone[split.lambda_varies])) + " |")


if __name__ == "__main__":
    main()
