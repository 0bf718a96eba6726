"""Build a platform wheel: the package with a static sidecar in workflow_results/_bin.

The package itself stays pure; it is copied, and the copy gets the binary and a
setup.py that names the platform. `make wheel` calls this with the binary it built.

The tags say what the binary needs of a system, and that is a kernel alone: it is
linked statically, so neither glibc nor musl is loaded. A plain linux tag would keep
the wheel off package indexes; manylinux_2_17, also under its older name, and
musllinux_1_1 together are every Linux that pip installs wheels on. The binary is
looked at first: a dynamic one would make the tags a lie.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TAG = "manylinux_2_17_{arch}.manylinux2014_{arch}.musllinux_1_1_{arch}"
ARCHITECTURES = {62: "x86_64", 183: "aarch64"}  # e_machine of ELF, elf(5)
_PT_INTERP = 3  # the program header that names a dynamic loader

SETUP = """
from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel


class Platform(Distribution):
    def has_ext_modules(self):  # what is installed is of one platform
        return True


class Wheel(bdist_wheel):
    def get_tag(self):  # of the platform, but of no Python version
        return "py3", "none", {platforms!r}


setup(distclass=Platform, cmdclass={{"bdist_wheel": Wheel}})
"""


def architecture(binary: Path) -> str:
    """Return the wheel's name of the binary's architecture.

    Raises:
        SystemExit: it is no static 64-bit Linux program of an architecture we name.
    """
    head = binary.read_bytes()
    if head[:6] != b"\x7fELF\x02\x01":
        sys.exit(f"{binary} is not a 64-bit little-endian ELF program")
    machine, _, _, headers = struct.unpack_from("<HIQQ", head, 18)
    size, count = struct.unpack_from("<HH", head, 54)
    if any(struct.unpack_from("<I", head, headers + i * size)[0] == _PT_INTERP for i in range(count)):
        sys.exit(f"{binary} is linked dynamically: build it as `make wheel` does, with -extldflags -static")
    if machine not in ARCHITECTURES:
        sys.exit(f"{binary} is for ELF machine {machine}; known are {ARCHITECTURES}")
    return ARCHITECTURES[machine]


def build(binary: Path, destination: Path) -> Path:
    """Build the wheel into ``destination`` and return its path."""
    setup = SETUP.format(platforms=TAG.format(arch=architecture(binary)))
    with tempfile.TemporaryDirectory(prefix="wheel-") as directory:
        copy, out = Path(directory, "package"), Path(directory, "out")
        source = copy / "src" / "workflow_results"
        shutil.copytree(HERE / "src" / "workflow_results", source, ignore=shutil.ignore_patterns("__pycache__", "_bin"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(HERE / name, copy)
        shutil.copy(HERE.parents[1] / "LICENSE", copy)
        (source / "_bin").mkdir()
        shutil.copy(binary, source / "_bin" / "sidecar")
        (source / "_bin" / "sidecar").chmod(0o755)
        (copy / "setup.py").write_text(setup)
        # The venv's own setuptools is the pinned one: nothing is fetched here.
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--wheel-dir", str(out), str(copy)], check=True)
        (made,) = out.iterdir()
        destination.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(made, destination))


def main() -> None:
    """Print the wheel's path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path, help="a static sidecar")
    parser.add_argument("destination", type=Path, help="directory of the wheel")
    args = parser.parse_args()
    print(build(args.binary, args.destination))


if __name__ == "__main__":
    main()
