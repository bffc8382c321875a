"""Checks what is in a wheel and an sdist: `python .ci/check_dist.py DIRECTORY`."""

import pathlib
import sys
import tarfile
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
directory = pathlib.Path(sys.argv[1])
package = {str(path.relative_to(ROOT)) for path in ROOT.glob("gae_jax/**/*") if path.suffix in (".py", ".typed")}

(wheel,) = directory.glob("*.whl")
in_wheel = set(zipfile.ZipFile(wheel).namelist())
others = {name for name in in_wheel if not name.startswith("gae_jax-")} - package
assert package <= in_wheel, f"not in {wheel.name}: {package - in_wheel}"
assert not others, f"not of the package, in {wheel.name}: {others}"

(sdist,) = directory.glob("*.tar.gz")
with tarfile.open(sdist) as archive:
    in_sdist = {name.partition("/")[2] for name in archive.getnames()}
wanted = package | {"pyproject.toml", "README.md", "LICENSE", "tests/conftest.py", "examples/brax_ppo/ppo.py"}
assert wanted <= in_sdist, f"not in {sdist.name}: {wanted - in_sdist}"
print(f"{len(package)} files of the package in {wheel.name} and {sdist.name}")
