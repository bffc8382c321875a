"""Programs compiled for GPUs and TPUs that are not here.

This module needs the extra `aot`, and JAX_PLATFORMS=cpu when JAX is imported.
"""

import collections
import os
import pathlib
import re
import tempfile

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DUMP = tempfile.TemporaryDirectory()
os.environ |= {  # read at the first request for a TPU
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={DUMP.name} --xla_jf_dump_llo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=final_bundles",  # to write all would take most of the time
}

TPUS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
MANY = {"v5e": "v5e:2x2", "v6e": "v6e:8x8", "H100": "1x1x4"}  # several of a kind
GPUS = {
    "A100": """core_count: 108 fpus_per_core: 64 memory_bandwidth: 1555200000000 l2_cache_size: 41943040
        clock_rate_ghz: 1.41 device_memory_size: 42331013120 shared_memory_per_core: 167936
        shared_memory_per_block_optin: 166912 cuda_compute_capability { major: 8 minor: 0 }""",
    "H100": """core_count: 132 fpus_per_core: 128 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
        clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_core: 233472
        shared_memory_per_block_optin: 232448
        cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }""",
}
ANY_GPU = """threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
    threads_per_core_limit: 2048 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
    registers_per_core_limit: 65536 registers_per_block_limit: 65536"""
NOT_LAUNCHED = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant"}


def devices(chip, topology=None):
    if chip in TPUS:
        return topologies.get_topology_desc(topology or TPUS[chip], "tpu").devices
    target = f"""gpu_device_info {{ {ANY_GPU} {GPUS[chip]} }} platform_name: "CUDA" device_description_str: "{chip}"
        dnn_version_info {{ major: 9 minor: 10 patch: 0 }} runtime_version {{ major: 12 minor: 8 patch: 0 }}"""
    return topologies.get_topology_desc(platform="cuda", topology=topology or "1x1x1", target_config=target).devices


def compiled(chip, fn, *shapes):
    """Compiles a function of arrays for one chip."""
    return compiled_on(Mesh(np.array(devices(chip)[:1]), ("all",)), fn, shapes, [PartitionSpec()] * len(shapes))


def compiled_on(mesh, fn, shapes, specs):
    """Compiles a function of arrays that are split over a mesh."""
    shardings = [NamedSharding(mesh, spec) for spec in specs]
    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s) for x, s in zip(shapes, shardings, strict=True)]
    with jax.set_mesh(mesh):
        return jax.jit(fn).trace(*arguments).lower().compile()


def text(executable):
    """Returns the compiled program as text."""
    program = executable.as_text()
    assert program is not None
    return program


def launched(executable):
    """Returns how often the entry of the program launches each kind of instruction."""
    [entry] = re.findall(r"^ENTRY .*?^}", text(executable), re.MULTILINE | re.DOTALL)
    opcodes = collections.Counter(re.findall(r" = .*? ([a-z][a-z0-9-]*)\(", entry))
    return {name: count for name, count in opcodes.items() if name not in NOT_LAUNCHED}


def estimated_cycles(executable, length):
    """Returns the cycles that the compiler for TPUs estimates for a program whose loops run `length` times."""
    program = text(executable)
    bodies = {m[1]: m[0] for m in re.finditer(r"^(?:ENTRY )?%?([\w.-]+) \(.*?^}", program, re.MULTILINE | re.DOTALL)}

    def total(name):
        own = sum(int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', bodies[name]))
        return own + sum(length * total(body) for body in re.findall(r" while\(.*body=%?([\w.-]+)", bodies[name]))

    [entry] = re.findall(r"^ENTRY %?([\w.-]+)", program, re.MULTILINE)
    return total(entry)


def kernel_cycles(fn, chip, *shapes, rows, blocks):
    """Returns the cycles of a program with one kernel, without waits for memory.

    The kernel takes a cycle for each bundle of instructions: bundles of the innermost loops run once a row, and all
    others once a block. The compiler estimates the cycles of what surrounds the kernel.
    """
    for file in pathlib.Path(DUMP.name).iterdir():
        file.unlink()
    executable = compiled(chip, fn, *shapes)
    [listing] = pathlib.Path(DUMP.name).glob("*affine_scan*[0-9]-final_bundles.txt")
    depths = [
        line.count(">") for line in re.findall(r"^ *0x[0-9a-f]+ *[A-Z]*:([ >]*)\{", listing.read_text(), re.MULTILINE)
    ]
    innermost = depths.count(max(depths))
    return estimated_cycles(executable, rows) + rows * innermost + blocks * (len(depths) - innermost)
