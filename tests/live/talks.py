"""A talk with a real agent: selftalk called as a person or a host calls it, and the pane it talks in.

    with open_home("claude") as home:
        talk = Talk(home)
        status, result = talk.begin("say hello")
        status, result = talk.send("and again")
        talk.type("half a thought")
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, Callable, Iterator

from homes import make_home
from leftovers import MARKER, await_gone, kill, marked_processes
from model_server import Answer, ModelServer, Request, obey_done_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sandboxes import COMPILED   # noqa: E402: also for soak.py, which pytest does not start

PROGRAM = Path(__file__).resolve().parents[2] / "selftalk.py"
FLAGS = {"claude": "-c", "codex": "-x", "gemini": "-g", "opencode": ""}   # "": starts as a task, then talks
DEADLINE_S = 120    # two opencodes that start at once on a busy machine need more than 60
POINTER = "Read the file %s/prompt.md and do exactly what it says."


def say_hello(text: str) -> list[Any]:
    return obey_done_file(text, "hello") if "done.md" in text else [Answer("hello")]


class Home:
    """A folder of its own in which one agent talks to a model server of its own."""

    def __init__(self, agent: str, server: ModelServer, root: Path) -> None:
        self.agent, self.server, self.root = agent, server, root
        self.marker = uuid.uuid4().hex
        self.env = {**make_home(agent, server, root / agent), MARKER: self.marker}
        self.folder = root / "work"
        self.folder.mkdir()
        impatient(agent, self.env)

    @property
    def runs(self) -> Path:
        return Path(self.env["XDG_STATE_HOME"]) / "selftalk" / "runs"

    def left(self) -> dict[int, str]:
        """What lives of all that was started here."""
        return marked_processes(self.marker)


def impatient(agent: str, env: dict[str, str]) -> None:
    """What a user sets who does not want to wait minutes for an API that is down."""
    if agent == "claude":
        env["CLAUDE_CODE_MAX_RETRIES"] = "1"     # else 10 tries, 3 min
    if agent == "codex":
        config = Path(env["CODEX_HOME"]) / "config.toml"
        config.write_text(config.read_text() + "request_max_retries = 1\nstream_max_retries = 1\n")


@contextlib.contextmanager
def open_home(agent: str) -> Iterator[Home]:
    """A fresh home; afterwards its runs are stopped, and nothing of them may be alive."""
    root = Path(tempfile.mkdtemp(prefix="st-"))   # short: a socket's path has 107 bytes
    with ModelServer() as server:
        home = Home(agent, server, root)
        try:
            yield home
        finally:
            stop_all(home)
            left = await_gone(home.marker, 5)
            for pid in left:
                kill(pid)
            shutil.rmtree(root, ignore_errors=True)
            print(server.describe())
    assert not left, "still alive (now killed):\n" + "\n".join(left.values())


def stop_all(home: Home) -> None:
    numbers = [path.name for path in home.runs.iterdir()] if home.runs.exists() else []
    if numbers:
        subprocess.run([*COMPILED, "stop", *numbers], env=home.env, timeout=DEADLINE_S)


def wait_until(condition: Callable[[], Any], deadline_s: float = 20) -> Any:
    end = time.monotonic() + deadline_s
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


class Talk:
    """One run in a home, and the ways to it."""

    def __init__(self, home: Home, number: int = 1) -> None:
        self.home, self.agent, self.server, self.env, self.number = (
            home, home.agent, home.server, home.env, number)
        self.seen = 0    # so many prompts the server had when somebody last asked for the new ones

    # Calling selftalk.

    def start(self, *words: str, **options: Any) -> subprocess.Popen:
        return subprocess.Popen([*COMPILED, *words],
                                **{"env": self.env, "cwd": self.home.folder, "stdin": subprocess.DEVNULL,
                                   "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})

    def finish(self, process: subprocess.Popen, deadline_s: float = DEADLINE_S) -> tuple[int, Any]:
        """(status, the object of --json)"""
        try:
            out, err = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
            print(process.communicate()[1].decode(), self.describe())
            raise
        print(err.decode())   # pytest shows it when the test failed
        assert b"Traceback" not in err, err.decode()
        return process.returncode, json.loads(out) if out else None

    def run(self, *words: str, **options: Any) -> tuple[int, Any]:
        return self.finish(self.start(words[0], "--json", *words[1:], **options))

    def words(self, prompt: str, *options: str) -> list[str]:
        """The command line that begins a talk."""
        flag = FLAGS[self.agent]
        first = [flag] if flag else ["run", "-p", self.agent, "--keep", "--session"]
        return [*first, "--json", "--cwd", str(self.home.folder), *options, *(["--", prompt] if prompt else [])]

    def begin(self, prompt: str, *options: str, **more: Any) -> tuple[int, Any]:
        status, result = self.finish(self.start(*self.words(prompt, *options), **{"env": self.own_env(), **more}))
        self.number = result.get("id", self.number)
        return status, result

    def own_env(self) -> dict[str, str]:
        """The home's environment; gemini's conversations are told apart by their keys only."""
        own = {name: "sk-fake-" + uuid.uuid4().hex for name in ("GEMINI_API_KEY",) if name in self.env}
        return {**self.env, **own}

    def send(self, prompt: str, *options: str) -> tuple[int, Any]:
        return self.run("send", str(self.number), *options, "--", prompt)

    def start_sending(self, prompt: str, *options: str) -> subprocess.Popen:
        return self.start("send", str(self.number), "--json", *options, "--", prompt)

    def send_file(self, text: str) -> tuple[int, Any]:
        path = self.home.root / "given.md"
        path.write_bytes(text.encode())
        return self.run("send", str(self.number), "-f", str(path))

    # What selftalk keeps.

    @property
    def folder(self) -> Path:
        return self.home.runs / str(self.number)

    def facts(self) -> dict[str, Any]:
        return json.loads((self.folder / "run.json").read_text())

    def turn(self) -> dict[str, Any]:
        """What is kept of the latest turn."""
        path = self.folder / "turns" / ("%d.json" % self.facts()["turn"])
        return json.loads(path.read_text()) if path.exists() else {}

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]

    def describe(self) -> str:
        """All that is known of the home's runs, for the one who looks into a failure."""
        lines = []
        for number in sorted(map(int, os.listdir(self.home.runs))) if self.home.runs.exists() else []:
            run = Talk(self.home, number)
            if run.facts()["state"] == "over":
                continue
            lines += ["run %d" % number, *map(json.dumps, run.events()[-12:]), json.dumps(run.turn())]
            with contextlib.suppress(subprocess.CalledProcessError):   # its tmux is gone
                lines.append(run.screen())
        return "\n".join(lines)

    def make_ready(self) -> None:
        """Sees to it that an agent waits for a prompt: the one of the last test, or else a new one."""
        if (self.folder / "run.json").exists():
            facts = self.facts()
            is_waiting = facts["state"] == "running" and facts["outcome"] in ("answered", "ready", "stopped")
            if is_waiting and wait_until(self.shows_ready, 3):
                return
            self.run("stop", str(self.number))
        self.server.every_prompt(say_hello)
        status, result = self.begin("hello")
        assert (status, result["outcome"]) == (0, "answered"), result

    def shows_ready(self) -> bool:
        return self.run("explain", str(self.number))[1]["verdict"] == "ready"

    # What the model was given.

    def new_prompts(self) -> list[Request]:
        """The prompts that came since this was last called."""
        prompts = self.server.prompts
        new, self.seen = prompts[self.seen:], len(prompts)
        return new

    # The pane, as a person uses it.

    def tmux(self, *words: str, **options: Any) -> str:
        return subprocess.run(["tmux", "-S", self.facts()["socket"], *words], check=True, capture_output=True,
                              **options).stdout.decode()

    def type(self, text: str, *keys: str) -> None:
        self.tmux("send-keys", "-t", self.facts()["pane"], "-l", text)
        for key in keys:
            time.sleep(0.3)    # a person is not faster, and gemini takes a quick Enter for a line end
            self.press(key)

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", "-t", self.facts()["pane"], *keys)

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p", "-t", self.facts()["pane"])

    def kill_agent(self) -> None:
        """SIGKILL for the agent and all it started, not for the launcher and tmux; returns when that is known."""
        for pid in descendants(self.facts()["launcher"][0]):
            kill(pid)
        assert wait_until(lambda: (self.folder / "exit").exists() or self.facts()["state"] == "over")


def descendants(pid: int) -> list[int]:
    found = []
    listed = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listed.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    queue = [pid]
    while queue:
        queue += children.get(queue[0], [])
        found += children.get(queue.pop(0), [])
    return found


FRAME = re.compile(r'<pasted_content id="(\w+)">\n(.*)\n</pasted_content id="\1">', re.DOTALL)


def plain_prompt(text: str) -> str:
    """A prompt as it was given: claude 2.1.329 sends a long paste with a frame around it; all trim the ends."""
    framed = FRAME.fullmatch(text.strip())
    return (framed.group(2) if framed else text).strip()
