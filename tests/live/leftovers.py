"""Which processes a test left behind, told by a mark in their environment; nothing is ever found by name."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Mapping

MARKER = "SELFTALK_TEST"    # in the environment of every process that a test starts, and so of their children


def await_gone(value: str, deadline_s: float) -> dict[int, str]:
    """Waits until no process carries the mark; returns those that still do, with their command lines."""
    end = time.monotonic() + deadline_s
    while (left := marked_processes(value)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def marked_processes(value: str) -> dict[int, str]:
    """pid -> command line of every living process, except this one, with the mark in its environment."""
    mark = f"{MARKER}={value}"
    found = read_proc(mark) if Path("/proc/self/environ").exists() else read_ps(mark)
    return {pid: line for pid, line in found.items() if pid != os.getpid()}


def read_proc(mark: str) -> dict[int, str]:
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environ = (entry / "environ").read_bytes().split(b"\0")  # empty for a zombie: that is dead enough
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile, or is another user's
        if mark.encode() in environ:
            found[int(entry.name)] = f"{entry.name} {command}"
    return found


def read_ps(mark: str) -> Mapping[int, str]:
    """The same where there is no /proc (macOS): ps shows the environment of one's own processes."""
    listed = subprocess.run(["ps", "-axeww", "-o", "pid=,command="], stdout=subprocess.PIPE, text=True,
                            errors="replace", check=True).stdout
    lines = [line for line in listed.splitlines() if mark in line.split()]
    return {int(line.split()[0]): line.replace(mark, "")[:300] for line in lines}


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended by itself just now
