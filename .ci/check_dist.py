"""Checks that a wheel has all files of the package and no others: `python .ci/check_dist.py WHEEL`."""

import pathlib
import sys
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
package = {str(path.relative_to(ROOT)) for path in ROOT.glob("gae_jax/**/*") if path.suffix in (".py", ".typed")}
names = zipfile.ZipFile(sys.argv[1]).namelist()
in_wheel = {name for name in names if not name.startswith("gae_jax-")}
assert in_wheel == package, f"in one of wheel and package: {in_wheel ^ package}"
print(f"{len(package)} files of the package in {sys.argv[1]}")
