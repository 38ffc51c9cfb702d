"""Runs that outlive whoever asked for them: inside the shell tools of the real agents, and several real agents at once."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from homes import make_home
from leftovers import MARKER
from model_server import Answer, Shell, obey_done_file
from test_task import DEADLINE_S, PROGRAM, Caller, wait_until

FAKE_AGENT = PROGRAM.parent / "tests" / "fake_agent.py"
HOSTS = {
    "claude": ("claude", "-p", "--dangerously-skip-permissions"),
    "codex": ("codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
    "gemini": ("gemini", "--skip-trust", "--yolo", "-p"),
    "opencode": ("opencode", "run", "--auto"),
}
LIMITS = {"claude": "BASH_DEFAULT_TIMEOUT_MS", "opencode": "OPENCODE_EXPERIMENTAL_BASH_DEFAULT_TIMEOUT_MS"}
LIMIT_S, WORK_S = 8, 10


def ask_host(host, server, agent_env, home_root, acts, env):
    """What the shell tool of a real agent tells its model of the commands that the model asks for, one after the other."""
    server.every_prompt([*acts, Answer("so be it")])
    folder = home_root / "work"
    folder.mkdir()
    env = {**agent_env(host), "IS_SANDBOX": "1", "TMUX_TMPDIR": str(home_root), **env}
    ran = subprocess.run([*HOSTS[host], "do what the model wants"], env=env, cwd=folder, stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE_S)
    told = [request.body.decode() for request in server.requests if request.kind == "again"]
    assert len(told) >= len(acts), ran.stdout.decode()[-2000:]
    return told


@pytest.mark.parametrize("host, limit_s", [("claude", 110), ("codex", 290), ("gemini", 290), ("opencode", 110)])
def test_it_is_known_in_whose_shell_tool_it_runs(host, limit_s, server, agent_env, home_root):
    code = "import os, sys; sys.path.insert(0, %r); import selftalk; print(selftalk.host_limit_s(dict(os.environ)), sep=str())" % str(PROGRAM.parent)
    script = home_root / "limit.py"
    script.write_text(code)
    told = ask_host(host, server, agent_env, home_root, [Shell("%s %s" % (sys.executable, script))], {"PYTHONDONTWRITEBYTECODE": "1"})
    assert "%.1f" % limit_s in told[-1]


@pytest.mark.parametrize("host", sorted(LIMITS))
def test_a_wait_ends_before_the_host_ends_it_and_the_next_one_brings_the_answer(host, server, agent_env, home_root):
    config = home_root / "config.yaml"
    config.write_text("default_profile: fake\nprofiles:\n  fake: {command: %s, args: [%s], interface: demo}\n" % (sys.executable, FAKE_AGENT))
    base = "%s %s" % (sys.executable, PROGRAM)
    acts = [Shell("%s run --config %s 'do it'; echo status=$?" % (base, config)), Shell("%s wait 1; echo status=$?" % base)]
    env = {LIMITS[host]: str(1000 * LIMIT_S), "FAKE_STEPS": "busy %d; done THE-ANSWER; hold" % WORK_S}
    first, second = ask_host(host, server, agent_env, home_root, acts, env)[-2:]
    assert "status=75" in first and "selftalk.py wait 1" in first and "THE-ANSWER" not in first
    assert "THE-ANSWER" in second and second.count("status=0") == 1


def test_real_agents_at_once_outlive_who_asked_for_them(server, marker, home_root):
    env = {MARKER: marker, "IS_SANDBOX": "1"}
    for agent in HOSTS:
        env.update(make_home(agent, server, home_root / "home"))
    caller = Caller("", env, home_root / "work")
    server.every_prompt(lambda text: [Shell("sleep 3"), *obey_done_file(text, "I am done")])
    for number, agent in enumerate(HOSTS, 1):
        status, run = caller.run("run", "-p", agent, "--detach", "--name", "by-" + agent, "--", "do the work of number %d" % number)
        assert (status, run["id"], run["state"]) == (0, number, "running"), run
    for run in caller.run("list")[1]:   # those that wait for them
        os.kill(json.loads((Path(run["folder"]) / "run.json").read_text())["caller"][0], signal.SIGKILL)
    assert wait_until(lambda: "busy" in {run["doing"] for run in caller.run("list")[1]})
    assert {run["name"] for run in caller.run("list")[1]} == {"by-" + agent for agent in HOSTS}
    status, found = caller.run("wait", "1", "2", "3", "4", "--wait", "100")
    assert status == 0 and [(run["outcome"], run["answer"]) for run in found] == [("answered", "I am done")] * 4, found
    assert {(run["doing"], run["state"]) for run in caller.run("list")[1]} == {("answered", "over")}
