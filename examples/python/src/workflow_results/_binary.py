"""Find the sidecar's binary on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from workflow_results.errors import SidecarError

VARIABLE = "WORKFLOW_RESULTS_SIDECAR"
PACKAGED = Path(__file__).with_name("_bin") / "sidecar"  # only in a platform wheel
_ANSWER = re.compile(r"sidecar \S+ \(go\S+, SQLite \S+\)\s*")  # what `sidecar version` prints
_ANSWER_TIMEOUT = 10.0  # seconds


class SidecarNotFound(SidecarError):
    """There is no sidecar binary in any of the places looked at (``looked_at``)."""

    def __init__(self, looked_at: list[str]) -> None:
        """Take what was found at each place."""
        self.looked_at = looked_at
        places = "".join(f"\n  - {place}" for place in looked_at)
        super().__init__(
            f"no sidecar binary; looked at:{places}\n"
            f"Install the platform wheel of workflow-results, which contains it (`make wheel`), or build it "
            f"(`make build`) and give its path as binary= or in ${VARIABLE}."
        )


def find_binary(binary: str | os.PathLike[str] | None = None) -> str:
    """Return the absolute path of the sidecar.

    In this order: the argument, ``$WORKFLOW_RESULTS_SIDECAR``, the package's own
    (of a platform wheel), ``sidecar`` on PATH if it answers ``version`` as ours
    does. An argument or variable that leads nowhere is an error: the next place
    might hold another version.

    Raises:
        SidecarNotFound: names every place and what is wrong with it.
    """
    named = os.environ.get(VARIABLE)
    if binary is not None:
        return _named(os.fspath(binary), "the argument binary=")
    if named:
        return _named(named, f"${VARIABLE}")
    looked_at = ["the argument binary=: not given", f"${VARIABLE}: not set"]
    if (wrong := _unusable(str(PACKAGED))) is None:
        return str(PACKAGED)
    looked_at.append(f"the package: {wrong}")
    on_path = shutil.which("sidecar")
    wrong = "no `sidecar`" if on_path is None else _not_ours(on_path)
    if on_path is not None and wrong is None:
        return os.path.abspath(on_path)
    raise SidecarNotFound([*looked_at, f"PATH: {wrong}"])


def _named(path: str, place: str) -> str:
    if wrong := _unusable(path):
        raise SidecarNotFound([f"{place}: {wrong}"])
    return os.path.abspath(path)


def _unusable(path: str) -> str | None:
    if not os.path.exists(path):
        return f"{path} does not exist"
    if not os.path.isfile(path):
        return f"{path} is not a file"
    if not os.access(path, os.X_OK):
        return f"{path} may not be executed by this user"
    return None


def _not_ours(path: str) -> str | None:
    """Tell why a program of this name is not ours: sidecars are many."""
    try:
        run = subprocess.run(
            [path, "version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=_ANSWER_TIMEOUT, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"{path} is another program: `version` did not run ({e})"
    if run.returncode != 0 or not _ANSWER.fullmatch(run.stdout):
        said = (run.stdout or run.stderr).strip()[:80]
        return f"{path} is another program: it answers `version` with {said!r} (exit status {run.returncode})"
    return None
