"""The options of the command line: types, ranges, and how they fit together."""

import dataclasses
import json
import pathlib
import re
import typing
from typing import Annotated, Any, Literal

import tyro
from environment import refuse

Count = Annotated[int, (1, 1_000_000)]  # types of options, each with its least and its largest value
Steps = Annotated[int, (1, 1_000_000_000)]
Seed = Annotated[int, (0, 2**32 - 1)]
Devices = Annotated[int, (0, 4096)]
Fraction = Annotated[float, (0.0, 1.0)]
Positive = Annotated[float, (1e-12, 1e12)]

mode, directory = tyro.conf.create_mutex_group(required=False), tyro.conf.arg(metavar="DIR")


@dataclasses.dataclass(frozen=True)
class Run:
    """What to do, and where. None of it changes the result."""

    out: Annotated[str | None, directory] = None  # for the results; by default runs/ENV-seedSEED
    resume: Annotated[bool, mode] = False  # go on from the checkpoint in --out, with its options
    overwrite: Annotated[bool, mode] = False  # delete the run in --out and start anew
    play: Annotated[str | None, directory, mode] = None  # no training: evaluate the policy of a run, draw an episode


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several machines, with one process each. JAX finds TPU pods, Slurm and GKE without these options."""

    processes: Devices = 0  # number of processes; 0: as many as JAX finds, or one
    process: Devices = 0  # number of this process, from 0
    coordinator: Annotated[str, tyro.conf.arg(metavar="HOST:PORT")] = ""  # address of process 0, for all processes


class Options(typing.NamedTuple):
    """The whole command line."""

    training: Any
    run: Run
    cluster: Cluster

    @property
    def source(self) -> pathlib.Path:
        """The directory of the run that is trained, resumed or played."""
        return pathlib.Path(self.run.play or self.run.out or f"runs/{self.training.env}-seed{self.training.seed}")


def read(description: str, config_type: type[Any], arguments: list[str] | None = None) -> Options:
    """Returns the options, or refuses them. The options of a run that is resumed or played are the defaults."""
    fields: Any = [("training", config_type), ("run", Run), ("cluster", Cluster)]
    groups: Any = dataclasses.make_dataclass("Groups", fields)

    def parse(config: Any) -> Options:
        how = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
        default = groups(config, Run(), Cluster())
        options = tyro.cli(groups, description=description, args=arguments, default=default, config=how)
        check(options.training, options.cluster.processes or 1)
        check_cluster(options.cluster)
        if "" in (options.run.out, options.run.play):
            raise ValueError("the name of a directory is empty")
        return Options(options.training, options.run, options.cluster)

    try:
        options = parse(config_type())
        if not (options.run.resume or options.run.play):
            return options
        stored = load(options.source, config_type)
        options = parse(stored)
    except ValueError as error:
        refuse(str(error))
    for name, old in dataclasses.asdict(stored).items():
        if (new := getattr(options.training, name)) != old and not (options.run.play and name == "seed"):
            refuse(f"--{name.replace('_', '-')}: the run in {options.source} has {old}; got {new}")
    return options


def load(source: pathlib.Path, config_type: type[Any]) -> Any:
    """Returns the options of an earlier run; raises ValueError where they are not complete and valid."""
    file = source / "config.json"
    if not file.is_file():
        raise ValueError(f"there is no run in {source}")
    try:
        config = config_type(**json.loads(file.read_text()))
        check(config)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be used: {error}") from error
    return config


def check(config: Any, processes: int = 1) -> None:
    """Raises ValueError where an option is out of its range, or where options do not fit together."""
    check_ranges(config)
    rows, devices, product = config.num_envs * config.num_steps, config.devices or 1, "--num-envs × --num-steps"
    if rows > 2**22:
        raise ValueError(f"{product} must be at most {2**22}; got {rows}")
    if config.num_envs % devices:
        raise ValueError(f"--devices must divide --num-envs; got {devices} for {config.num_envs}")
    if (rows := rows // devices) % config.minibatches:
        raise ValueError(f"--minibatches must divide {product} / --devices; got {config.minibatches} for {rows}")
    if config.devices % processes:
        raise ValueError(f"--devices must be a multiple of the number of processes, {processes}; got {devices}")


def check_cluster(cluster: Cluster) -> None:
    """Raises ValueError where the options do not say which of how many processes this one is."""
    check_ranges(cluster)
    if cluster.process >= max(1, cluster.processes):
        raise ValueError(f"--process must be less than --processes, {cluster.processes}; got {cluster.process}")
    if cluster.processes > 1 and not re.fullmatch(r".+:\d{1,5}", cluster.coordinator):
        raise ValueError(f"--coordinator must be HOST:PORT, such as 10.0.0.1:12345; got {cluster.coordinator!r}")


def check_ranges(options: Any) -> None:
    """Raises ValueError where a field is out of its range, or has another type than its hint."""
    for name, hint in typing.get_type_hints(type(options), include_extras=True).items():
        value, wanted = getattr(options, name), typing.get_args(hint)
        if typing.get_origin(hint) is Literal:
            valid, wanted = value in wanted, f"one of {', '.join(wanted)}"
        elif isinstance(wanted[1], tuple):
            kind, (least, most) = wanted
            valid = type(value) is kind and least <= value <= most
            wanted = f"{'a whole' if kind is int else 'a'} number from {least} to {most}"
        else:
            continue
        if not valid:
            raise ValueError(f"--{name.replace('_', '-')} must be {wanted}; got {value}")
