"""What every live test can ask for: a model server, an agent's environment, and that nothing is left."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Callable, Iterator

import pytest

from homes import make_home
from install_agents import live_folder
from leftovers import MARKER, await_gone, kill
from model_server import ModelServer

LEFTOVER_DEADLINE_S = 5     # so long may an agent take to end after its test


@pytest.fixture
def home_root() -> Iterator[Path]:
    """A folder with a short path: agents put sockets into their homes, and a socket's path has 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="st-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)  # an agent may have made files that only root may remove


@pytest.fixture(autouse=True)
def marker(home_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Marks what this test starts; fails it when something of that is alive a few seconds after its end.

    Set up first and therefore ended last: by then the test's own fixtures had their chance to clean up.
    """
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARKER, value)
    yield value
    left = await_gone(value, LEFTOVER_DEADLINE_S)
    for pid in left:
        kill(pid)
    if left:
        pytest.fail("still alive after the test (now killed):\n" + "\n".join(left.values()), pytrace=False)


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as opened:
        yield opened
    print(opened.describe())  # pytest shows it when the test failed


@pytest.fixture
def agent_env(server: ModelServer, home_root: Path, marker: str) -> Callable[[str], dict[str, str]]:
    """agent_env("codex") -> the environment in which the real Codex talks to this test's server."""
    def make(agent: str) -> dict[str, str]:
        if not (live_folder() / "node_modules" / ".bin" / agent).exists():
            pytest.fail(f"{agent} is not installed in {live_folder()}: run `make live`", pytrace=False)
        return {**make_home(agent, server, home_root / agent), MARKER: marker}
    return make
