"""Installs the real agent CLIs for the live tests, in the versions that agents.json pins.

    python3 install_agents.py [DIR]                     DIR is $SELFTALK_LIVE_DIR or .live beside the Makefile
    SELFTALK_AGENTS=latest python3 install_agents.py    the newest of all
    SELFTALK_AGENTS=claude=2.1.197,codex=latest …       these two in other versions, the rest as pinned

A second call with the same versions does nothing. The packages' own install scripts are not run, except the
one that agents.json names: it puts the downloaded binary in its place.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

HERE = Path(__file__).resolve().parent
STAMP = "installed.json"
NPM_DEADLINE_S = 900


class InstallError(Exception):
    """One line for the person who called."""


@dataclass(frozen=True)
class Pin:
    agent: str
    package: str
    version: str        # a version, or "latest"
    after_install: str  # a script inside DIR; "" for none


def live_folder() -> Path:
    return Path(os.environ.get("SELFTALK_LIVE_DIR") or HERE.parent.parent / ".live").absolute()


def read_pins(wish: str) -> list[Pin]:
    """The pinned versions, changed by what SELFTALK_AGENTS says."""
    rows = json.loads((HERE / "agents.json").read_text(encoding="utf-8"))
    wishes = dict.fromkeys(rows, wish)
    if wish != "latest":
        wishes = dict(read_wish(part) for part in wish.split(",") if part)
    unknown = sorted(set(wishes) - set(rows))
    if unknown:
        raise InstallError(f"SELFTALK_AGENTS: no agent named {unknown[0]}; there are {', '.join(rows)}")
    return [Pin(agent, row["package"], wishes.get(agent, row["version"]), row.get("after_install", ""))
            for agent, row in rows.items()]


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
              *(f"{pin.package}@{pin.version}" for pin in pins)], folder)
    for pin in pins:
        if pin.after_install:
            run_step(["node", pin.after_install], folder)
    versions = {pin.agent: installed_version(pin, folder) for pin in pins}
    (folder / STAMP).write_text(json.dumps(versions, indent=1) + "\n", encoding="utf-8")


def installed_version(pin: Pin, folder: Path) -> str:
    package = folder / "node_modules" / pin.package / "package.json"
    return json.loads(package.read_text(encoding="utf-8"))["version"]


def main(argv: list[str]) -> int:
    folder = Path(argv[0]).absolute() if argv else live_folder()
    try:
        pins = read_pins(os.environ.get("SELFTALK_AGENTS", ""))
        if find_missing(pins, folder):
            install(pins, folder)
    except InstallError as error:
        print(f"install_agents: {error}", file=sys.stderr)
        return 1
    print(f"{folder}: " + ", ".join(f"{agent} {version}" for agent, version in read_stamp(folder).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
