"""A rollout of a million steps, split over devices by workers and by time: communication and error of each split.

    python examples/scaling_out.py                                      # eight devices, simulated on CPUs
    python examples/scaling_out.py --processes 2 --process 1 &          # the same over two processes
    python examples/scaling_out.py --processes 2 --process 0

Each row of the table is a split: the axes of the rollout that are split, the mesh, and jax.jit or jax.shard_map; the
collectives in the compiled program, the bytes of their results per device, and the largest difference from the
advantages that one device computes alone.
"""

import collections
import functools
import math
import re
import socket
from typing import Any, NamedTuple

import command_line  # before the packages that it asks for
import jax
import jax.numpy as jnp
import numpy as np
from command_line import count, refuse
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gae_jax import gae

OPERATIONS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
MEMORY = 300  # bytes for each entry of the rollout
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
    """Counts the collectives in a compiled program, by name."""
    return dict(collections.Counter(name for _, name in _collectives(program)))


def collective_bytes(program: Any) -> int:
    """Returns the bytes of the results of all collectives of a compiled program, per device."""
    arrays = [re.findall(r"(\w+)\[([\d,]*)\]", results)[-1] for results, _ in _collectives(program)]
    return sum(BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in arrays)


def _collectives(program: Any) -> list[tuple[str, str]]:
    """Returns results and name of each collective. The last result of an asynchronous start is its output."""
    return re.findall(rf" = (\S.*?) ({OPERATIONS})(?:-start)?\(", program.as_text())


class Options(NamedTuple):
    """The command line."""

    steps: int
    workers: int
    devices: int
    processes: int
    process: int
    coordinator: str


def read_options(arguments: list[str] | None = None) -> Options:
    """Returns the options, or refuses them."""
    parser = command_line.Parser(__doc__ or "")
    parser.add_argument("--steps", type=count, default=2**20, help="T; --devices must divide it")
    parser.add_argument("--workers", type=count, default=8, help="N; --devices must divide it")
    parser.add_argument("--devices", type=count, default=8, help="of all processes together; even, at most 1024")
    parser.add_argument("--processes", type=count, default=1, help="processes that share the devices")
    parser.add_argument("--process", type=command_line.index, default=0, help="number of this process, from 0")
    parser.add_argument("--coordinator", default="127.0.0.1:12345", metavar="HOST:PORT", help="address of process 0")
    options = Options(**vars(parser.parse_args(arguments)))
    if options.devices % 2 or options.devices > 1024:
        refuse(f"--devices must be an even number up to 1024; got {options.devices}")
    for name, number in (("--steps", options.steps), ("--workers", options.workers)):
        if number % options.devices:
            refuse(f"--devices must divide {name}; got {options.devices} devices for {number}")
    if options.devices % options.processes:
        refuse(f"--processes must divide --devices; got {options.processes} for {options.devices} devices")
    if options.process >= options.processes:
        refuse(f"--process must be less than --processes, {options.processes}; got {options.process}")
    if not re.fullmatch(r".+:\d{1,5}", options.coordinator):
        refuse(f"--coordinator must be HOST:PORT, such as 127.0.0.1:12345; got {options.coordinator!r}")
    command_line.require_memory(options.steps * options.workers * MEMORY, f"{options.steps} × {options.workers}")
    return options


def main() -> None:
    """Prints the table."""
    options = read_options()
    jax.config.update("jax_num_cpu_devices", options.devices // options.processes)
    if options.processes > 1:
        if options.process == 0:  # in jax 0.10, a port that is taken ends the process with a segmentation fault
            try:
                socket.create_server(("", int(options.coordinator.rpartition(":")[2]))).close()
            except (OSError, OverflowError) as error:
                refuse(f"--coordinator: cannot listen at {options.coordinator}: {error}")
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    if jax.device_count() < options.devices:
        refuse(f"--devices: there are {jax.device_count()}; got {options.devices}")
    say = print if jax.process_index() == 0 else lambda *_: None
    where = f"{options.devices} devices ({jax.devices()[0].device_kind}), jax {jax.__version__}"
    processes = f"{options.processes} processes" if options.processes > 1 else "one process"
    say(f"{options.steps:,} × {options.workers} on {where}; {processes}\n")
    say("| split | mesh | by | implementation | collectives | bytes per device | largest difference |")
    say("|---|---|---|---|---|---|---|")
    rollout = make_rollout(options.steps, options.workers)
    alone = {x: np.asarray(jax.jit(functools.partial(estimate, lambda_varies=x))(rollout)) for x in (False, True)}
    for split in splits(options.devices):
        say("| " + " | ".join(run(split, rollout, alone[split.lambda_varies])) + " |")


if __name__ == "__main__":
    main()
