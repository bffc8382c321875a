"""Several processes that train together: they connect, share the devices, compare their options, and end together."""

import contextlib
import dataclasses
import json
import math
import os
import re
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import options
from environment import refuse
from jax.experimental import multihost_utils

TIME_LIMIT = 60  # seconds to wait for the other processes
LOST = "error: another process ended or cannot be reached, so this one ends; --resume continues from the checkpoint"
COLLECTIVES = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
BYTES = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "pred": 1}


def connect(cluster: options.Cluster) -> None:
    """Connects this process with the others, or refuses after a time limit. `--processes 1` needs no connection."""
    if cluster.processes == 1:
        return
    where: Any = (cluster.coordinator, cluster.processes, cluster.process) if cluster.processes else ()
    if where:
        explain_aborts()
    if where and cluster.process == 0:  # in jax 0.10, a port that is taken ends the process with a segmentation fault
        try:
            socket.create_server(("", int(cluster.coordinator.rpartition(":")[2]))).close()
        except (OSError, OverflowError) as error:
            refuse(f"--coordinator: cannot listen at {cluster.coordinator}: {error}")
    limits: Any = {"initialization_timeout": 10 * TIME_LIMIT, "heartbeat_timeout_seconds": 30}
    jax.config.update("jax_enable_preemption_service", False)  # it would ignore SIGTERM
    try:  # in another thread, since JAX's own time limit aborts the process
        ThreadPoolExecutor().submit(jax.distributed.initialize, *where, **limits).result(TIME_LIMIT)
    except TimeoutError:
        address = cluster.coordinator or "process 0"
        refuse(f"the processes have not all connected to {address} within {TIME_LIMIT} seconds")
    except (OSError, RuntimeError, ValueError) as error:
        if where or not isinstance(error, ValueError):  # a ValueError: JAX has found no cluster
            refuse(f"cannot connect: {error}")
    else:
        if not where:
            explain_aborts()


def explain_aborts() -> None:
    """Prints one line where JAX aborts this process because it lost another one, in the place of a stack trace.

    A child process holds back what is written to standard error until this process has ended, in whatever way. Of an
    error it prints the first line.
    """
    reading, writing = os.pipe()
    if os.fork():
        os.dup2(writing, 2)
        os.close(writing)
        os.close(reading)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.close(writing)
    text = os.fdopen(reading, errors="replace").read()
    decisive = re.search(r"^error: .*|JAX distributed service detected fatal errors", text, re.MULTILINE)
    if decisive:
        text = (decisive[0] if decisive[0].startswith("error: ") else LOST) + "\n"
    print(text, end="", file=sys.stderr, flush=True)
    os._exit(0)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends this process at once if it fails. An ordinary exit would wait for the others, and they would wait for it."""
    try:
        yield
    except BaseException as error:
        communicated = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
        if communicated and jax.distributed.is_initialized():
            print(f"{LOST} ({error})".splitlines()[0], file=sys.stderr)
        elif not isinstance(error, SystemExit):
            traceback.print_exc()
        else:  # if all refuse for one reason, they disconnect together: JAX would abort the later ones
            with contextlib.suppress(TimeoutError, RuntimeError):
                ThreadPoolExecutor().submit(jax.distributed.shutdown).result(3)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(getattr(error, "code", 1))


def with_devices(config: Any, cluster: options.Cluster) -> Any:
    """Returns the config with a number of devices, by default the largest that divides the work."""
    # At most 8 devices on a CPU. Other platforms have the devices that they have.
    jax.config.update("jax_num_cpu_devices", config.devices // (cluster.processes or 1) or min(os.cpu_count() or 1, 8))
    processes, available = jax.process_count(), jax.device_count()
    if not config.devices:
        rows, numbers = config.num_envs * config.num_steps, range(processes, available + 1, processes)
        fitting = [n for n in numbers if config.num_envs % n == 0 and rows // n % config.minibatches == 0]
        config = dataclasses.replace(config, devices=max(fitting, default=processes))
    options.check(config, processes)
    if jax.local_device_count() < config.devices // processes:
        refuse(f"--devices: there are {available}; got {config.devices}")
    if available != processes * jax.local_device_count():
        refuse("--devices differs between processes, or the machines have different numbers of devices")
    return config


def devices(number: int) -> np.ndarray:
    """Returns as many devices of each process, the devices of process 0 first."""
    local = number // jax.process_count()
    return np.array([jax.local_devices(i)[:local] for i in range(jax.process_count())]).ravel()


def refuse_other_options(given: dict[str, Any]) -> None:
    """Refuses to go on if the processes have different options."""
    text = np.frombuffer(json.dumps(given).encode().ljust(2048), np.uint8)
    first, *others = [json.loads(bytes(row)) for row in multihost_utils.process_allgather(text)]
    for process, other in enumerate(others, start=1):
        for name, value in other.items():
            if value != first[name]:
                refuse(f"--{name.replace('_', '-')}: process 0 has {first[name]}, and process {process} has {value}")


def communication(program: Any) -> str:
    """Counts the collectives that one call of a compiled program runs, and the bytes of their results per device."""
    text = program.as_text()
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) \([^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))

    def count(computation: str) -> np.ndarray:
        total = np.zeros(2, int)
        for line in computations[computation].splitlines():
            if found := re.search(rf" = (\S.*?) (?:{COLLECTIVES})(?:-start)?\(", line):
                arrays = re.findall(r"(\w+)\[([\d,]*)\]", found[1])
                sizes = [BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in arrays]
                total += 1, sum(sizes)
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            for name in re.findall(r"(?:body|to_apply|calls)=%?([\w.-]+)", line):
                total += (int(trips[1]) if trips else 1) * count(name)
        return total

    number, size = count(re.findall(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)[0])
    return f"an iteration exchanges {size:,} bytes per device, in {number:,} collectives"
