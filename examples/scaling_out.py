"""A rollout of a million steps, split over devices by workers and by time: communication and error of each split.

    python examples/scaling_out.py                                      # eight devices, simulated on CPUs
    python examples/scaling_out.py --processes 2 --process 1 &          # the same over two processes
    python examples/scaling_out.py --processes 2 --process 0

Each row of the table is a split: the axes of the rollout that are split, the mesh, and jax.jit or jax.shard_map; the
collectives in the compiled program, the bytes of their results per device, and the largest difference from the
advantages that one device computes alone. The number of devices must be even, and divide steps and workers. Several
processes share the devices: --process is the number of this one, from 0, and --coordinator the HOST:PORT of process 0.
"""

import collections
import functools
import math
import re
import socket
import sys
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

    mesh: dict[str, int]  # the axis "time" splits T, all others split N
    kind: AxisType = AxisType.Auto
    by_hand: bool = False  # by jax.shard_map; otherwise by jax.jit
    implementation: str | None = None
    lambda_varies: bool = False


def splits(devices: int) -> list[Split]:
    """Returns the splits to compare."""
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
        Split(time),  # a warning: the compiler gathers the whole rollout
    ]


def make_rollout(steps: int, workers: int) -> dict[str, np.ndarray]:
    """Returns the arguments of `gae`; all processes have the same."""
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
    """Runs a split and compares it with the result of one device; returns the row of the table."""
    devices = np.array(jax.devices()[: math.prod(split.mesh.values())]).reshape(tuple(split.mesh.values()))
    mesh = Mesh(devices, tuple(split.mesh), axis_types=(split.kind,) * len(split.mesh))
    time = "time" if "time" in split.mesh else None
    workers = tuple(name for name in split.mesh if name != "time")
    specs = {name: P(time, workers) if x.ndim > 1 else P(workers) for name, x in rollout.items()}

    def place(x: np.ndarray, spec: P) -> Array:
        """Splits an array; each process makes its own shards."""
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda index: x[index])

    fn = functools.partial(estimate, lambda_varies=split.lambda_varies, implementation=split.implementation)
    if split.by_hand:
        fn = functools.partial(fn, time_axis_name=time)
        fn = jax.shard_map(fn, mesh=mesh, in_specs=(specs,), out_specs=specs["rewards"])
    arrays = {name: place(x, specs[name]) for name, x in rollout.items()}
    program = jax.jit(fn).lower(arrays).compile()
    largest = jax.jit(lambda x, y: jnp.abs(x - y).max(), out_shardings=NamedSharding(mesh, P()))
    difference = largest(program(arrays), place(alone, specs["rewards"]))
    return [
        " and ".join(["time"] * bool(time) + ["workers"] * bool(workers)) + ", λ by step" * split.lambda_varies,
        " × ".join(map(str, split.mesh.values())),
        "jax.shard_map" if split.by_hand else f"jax.jit, {split.kind.name} axes",
        split.implementation or "None",
        ", ".join(f"{count} {name}" for name, count in collectives(program).items()) or "none",
        f"{collective_bytes(program):,}",
        f"{float(difference):.1e}",
    ]


def collectives(program: Any) -> dict[str, int]:
    """Counts the collectives in a compiled program, by name."""
    return dict(collections.Counter(name for _, name in _collectives(program)))


def collective_bytes(program: Any) -> int:
    """Returns the bytes of the results of all collectives of a compiled program, per device."""
    arrays = [re.findall(r"(\w+)\[([\d,]*)\]", results)[-1] for results, _ in _collectives(program)]
    return sum(BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in arrays)


def _collectives(program: Any) -> list[tuple[str, str]]:
    """Returns results and name of each collective. The last result of an asynchronous start is its output."""
    return re.findall(rf" = (\S.*?) ({OPERATIONS})(?:-start)?\(", program.as_text())


def start(devices: int, processes: int, process: int, coordinator: str) -> None:
    """Makes the devices of this process, and connects the processes."""
    if processes < 1 or devices % processes or process not in range(processes):
        sys.exit(f"error: cannot split {devices} devices over {processes} processes, of which this is number {process}")
    jax.config.update("jax_num_cpu_devices", devices // processes)
    if processes > 1:
        if process == 0:  # in jax 0.10, a port that is taken ends the process with a segmentation fault
            try:
                socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
            except (OSError, OverflowError, ValueError) as error:
                sys.exit(f"error: --coordinator: cannot listen at {coordinator}: {error}")
        jax.distributed.initialize(coordinator, processes, process)
    if jax.device_count() < devices:
        sys.exit(f"error: --devices: there are {jax.device_count()}; got {devices}")


def main(
    steps: int = 2**20,
    workers: int = 8,
    devices: int = 8,
    processes: int = 1,
    process: int = 0,
    coordinator: str = "127.0.0.1:12345",
) -> None:
    """Prints the table."""
    if devices not in range(2, 1025, 2):
        sys.exit(f"error: --devices must be an even number from 2 to 1024; got {devices}")
    if steps < 1 or workers < 1 or steps % devices or workers % devices or steps * workers > 2**30:
        sys.exit(f"error: --devices must divide --steps and --workers; at most 2**30 entries; got {steps} × {workers}")
    start(devices, processes, process, coordinator)
    say = print if process == 0 else lambda *_: None
    say(f"{steps:,} × {workers} on {devices} devices ({jax.devices()[0].device_kind}), jax {jax.__version__}\n")
    say("| split | mesh | by | implementation | collectives | bytes per device | largest difference |")
    say("|---|---|---|---|---|---|---|")
    rollout = make_rollout(steps, workers)
    alone = {x: np.asarray(jax.jit(functools.partial(estimate, lambda_varies=x))(rollout)) for x in (False, True)}
    for split in splits(devices):
        say("| " + " | ".join(run(split, rollout, alone[split.lambda_varies])) + " |")


if __name__ == "__main__":
    import tyro  # here, since tests of the package count collectives by this module, and do not need tyro

    tyro.cli(main, description=__doc__)
