"""Installs the real agent CLIs for the live tests, and the installers of skills, in the versions that agents.json and
tools.json pin.

    python3 install_agents.py [DIR]                     DIR is $SELFTALK_LIVE_DIR or .live beside the Makefile
    SELFTALK_AGENTS=latest python3 install_agents.py    the newest of all, the tools too
    SELFTALK_AGENTS=claude=2.1.197,codex=latest …       these two in other versions, the rest as pinned

A second call with the same versions does nothing. The packages' own install scripts are not run, except
those that the files name: they put a downloaded binary in its place. The tools lie in DIR/tools: among them is a
newer Node.js, which the agents shall not meet.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Mapping

HERE = Path(__file__).resolve().parent
STAMP = "installed.json"
TOOLS = "tools"             # inside the live folder
NPM_DEADLINE_S = 900


class InstallError(Exception):
    """One line for the person who called."""


@dataclass(frozen=True)
class Pin:
    agent: str
    package: str
    version: str        # a version, or "latest"
    after_install: str  # a command, called inside DIR; "" for none
    python: str         # the Python that a package for Python needs; "" for one of npm


def live_folder() -> Path:
    return Path(os.environ.get("SELFTALK_LIVE_DIR") or HERE.parent.parent / ".live").absolute()


def tools_folder() -> Path:
    return live_folder() / TOOLS


def read_pins(wish: str) -> tuple[list[Pin], list[Pin]]:
    """The pinned versions of the agents and of the tools, changed by what SELFTALK_AGENTS says."""
    files = [json.loads((HERE / name).read_text(encoding="utf-8")) for name in ("agents.json", "tools.json")]
    known = [name for rows in files for name in rows]
    wishes = dict.fromkeys(known, wish)
    if wish != "latest":
        wishes = dict(read_wish(part) for part in wish.split(",") if part)
    unknown = sorted(set(wishes) - set(known))
    if unknown:
        raise InstallError(f"SELFTALK_AGENTS: no agent named {unknown[0]}; there are {', '.join(known)}")
    agents, tools = [[Pin(name, row["package"], wishes.get(name, row["version"]), row.get("after_install", ""),
                          row.get("python", "")) for name, row in rows.items()] for rows in files]
    return agents, [pin for pin in tools if not pin.python or new_enough(pin.python)]


def new_enough(python: str) -> bool:
    return sys.version_info >= tuple(int(part) for part in python.split("."))


def read_wish(part: str) -> tuple[str, str]:
    agent, equals, version = part.strip().partition("=")
    if not (agent and equals and version):
        raise InstallError(f"SELFTALK_AGENTS: {part!r} is neither 'latest' nor AGENT=VERSION")
    return agent, version


def read_stamp(folder: Path) -> Mapping[str, str]:
    """What is installed: agent -> version; empty when nothing is, or not completely."""
    stamp = folder / STAMP
    return json.loads(stamp.read_text(encoding="utf-8")) if stamp.exists() else {}


def find_missing(pins: list[Pin], folder: Path) -> list[Pin]:
    """The pins that are not what is installed; "latest" always counts as missing."""
    stamp = read_stamp(folder)
    return [pin for pin in pins if stamp.get(pin.agent) != pin.version]


def run_step(argv: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", timeout=NPM_DEADLINE_S)
    except subprocess.TimeoutExpired:
        raise InstallError(f"{' '.join(argv[:2])}: not done after {NPM_DEADLINE_S} s") from None
    if done.returncode:
        said = [line for line in done.stdout.splitlines() if line.strip()] or ["no output"]
        errors = [line for line in said if line.startswith("npm error") and " code " not in line]
        raise InstallError(f"{' '.join(argv[:2])}: exit code {done.returncode}: {(errors or said[-1:])[0]}")


def install(pins: list[Pin], folder: Path) -> None:
    """Installs all pins in one go; the stamp is written last, so that a broken install counts as none."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            raise InstallError(f"{tool} is not on the PATH: install Node.js 20 or newer")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STAMP).unlink(missing_ok=True)
    if not (folder / "package.json").exists():  # without one npm installs into a parent folder that has one
        (folder / "package.json").write_text('{"private": true}\n', encoding="utf-8")
    run_step(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--save-exact",
              *(f"{pin.package}@{pin.version}" for pin in pins if not pin.python)], folder)
    for pin in pins:
        if pin.python:
            wanted = pin.package if pin.version == "latest" else f"{pin.package}=={pin.version}"
            run_step([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade",
                      "--target", "python", wanted], folder)
        if pin.after_install:
            run_step(shlex.split(pin.after_install), folder)
    versions = {pin.agent: installed_version(pin, folder) for pin in pins}
    (folder / STAMP).write_text(json.dumps(versions, indent=1) + "\n", encoding="utf-8")


def installed_version(pin: Pin, folder: Path) -> str:
    if pin.python:
        found = [one.version for one in distributions(name=pin.package, path=[str(folder / "python")])]
        return found[0] if found else "none"
    package = folder / "node_modules" / pin.package / "package.json"
    return json.loads(package.read_text(encoding="utf-8"))["version"]


def main(argv: list[str]) -> int:
    folder = Path(argv[0]).absolute() if argv else live_folder()
    try:
        for pins, place in zip(read_pins(os.environ.get("SELFTALK_AGENTS", "")), (folder, folder / TOOLS)):
            if find_missing(pins, place):
                install(pins, place)
            print(f"{place}: " + ", ".join(f"{name} {version}" for name, version in read_stamp(place).items()))
    except InstallError as error:
        print(f"install_agents: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
