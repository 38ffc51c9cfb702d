"""A task from prompt to answer, with the real agents in real tmux: what selftalk is for."""
from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from model_server import Answer, Error, Hang, LimitReached, Shell, Think, obey_done_file
from sandboxes import COMPILED

PROGRAM = Path(__file__).resolve().parents[2] / "selftalk.py"
AGENTS = ("claude", "codex", "opencode")
DEADLINE_S = 120     # opencode needs 10 s to start in a fresh home, more on a busy machine
PROMPT = 'Two  spaces, a "quote", an it\'s, a $HOME, a `tick`, a back\\slash,\n\ta tab and ünï😀de\nin three lines'


class Caller:
    """Calls selftalk as a person in a folder of their own would."""

    def __init__(self, agent, env, folder):
        self.agent, self.env, self.folder = agent, env, folder
        folder.mkdir()

    def start(self, *words):
        return subprocess.Popen([*COMPILED, *words], env=self.env, cwd=self.folder,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *words):
        """(status, the object of --json)"""
        process = self.start(*words[:1], "--json", *words[1:])
        out, err = process.communicate(timeout=DEADLINE_S)
        print(err.decode())   # pytest shows it when the test failed
        return process.returncode, json.loads(out)

    def task(self, prompt, *words):
        return self.run("run", "-p", self.agent, *words, "--", prompt)

    def events(self, result):
        lines = (Path(result["folder"]) / "events.jsonl").read_text().splitlines()
        return [json.loads(line)["event"] for line in lines]


@pytest.fixture(params=AGENTS)
def caller(request, agent_env, home_root):
    return Caller(request.param, agent_env(request.param), home_root / "work")


def await_folder(caller):
    """The folder of run 1, once its worker was started."""
    folder = Path(caller.env["XDG_STATE_HOME"]) / "selftalk" / "runs" / "1"
    assert wait_until(lambda: (folder / "events.jsonl").exists())
    return folder


def wait_until(condition, deadline_s=DEADLINE_S):
    import time
    end = time.monotonic() + deadline_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_a_task_is_answered_by_its_done_file(caller, server):
    server.every_prompt(lambda text: obey_done_file(text, "Changed nothing.\nChecked: ünï😀de"))
    status, result = caller.task(PROMPT)
    assert (status, result["outcome"], result["source"]) == (0, "answered", "done.md"), result
    assert result["answer"] == "Changed nothing.\nChecked: ünï😀de"
    sent = (Path(result["folder"]) / "prompt.md").read_text()
    assert sent.startswith(PROMPT + "\n\n---\n")
    assert server.prompts[0].text.strip() == sent.strip()
    assert caller.events(result)[0] == "spawned" and caller.events(result)[-2:] == ["answered", "ended"]


def test_a_task_in_a_fresh_git_repository_meets_no_dialog(caller, server):
    subprocess.run(["git", "init", "-q"], cwd=caller.folder, env=caller.env, check=True)
    server.every_prompt(lambda text: obey_done_file(text, "done"))
    status, result = caller.task("look around")
    assert (status, result["answer"]) == (0, "done"), result
    assert "dialog" not in caller.events(result)


def test_a_worker_that_goes_idle_is_answered_from_what_it_said(caller, server):
    answer = "First line, ünï😀de.\n\n" + "\n".join("- point %d of a long answer" % n for n in range(1, 121)) + "\n\nLast line."
    server.every_prompt([Think(1.0), Answer(answer, chunks=20, chunk_pause_s=0.05)])
    status, result = caller.task("tell me a lot")
    assert (status, result["outcome"], result["source"]) == (0, "answered", "transcript"), result
    assert result["answer"] == answer and "without publishing done.md" in result["what"]
    assert result["tokens"] and result["model"]


def test_tools_and_slow_streams_are_no_end_of_the_turn(caller, server):
    server.every_prompt([Shell("echo one; sleep 2", text="I look."), Think(2.0), Shell("echo two"),
                         Answer("The end.", chunks=4, chunk_pause_s=0.5)])
    status, result = caller.task("work for a while")
    assert (status, result["answer"], result["source"]) == (0, "The end.", "transcript"), result


def test_an_api_error_is_a_failure_in_the_agents_own_words(caller, server):
    server.every_prompt([Error(400, message="made-up refusal")])
    status, result = caller.task("hello")
    assert (status, result["outcome"]) == (1, "failed"), result
    assert "made-up refusal" in result["what"]


def test_a_hang_behind_a_spinner_is_a_stall_and_the_worker_can_be_stopped(caller, server):
    server.every_prompt([Hang()])
    status, result = caller.task("hello", "--stall", "15")
    assert (status, result["outcome"]) == (7, "stalled"), result
    assert subprocess.run(result["watch"].replace("attach -r", "has-session"), shell=True).returncode == 0
    assert caller.run("stop", "1")[0] == 0


@pytest.mark.parametrize("agent", ["claude", "codex"])
def test_a_usage_limit_is_told_from_an_answer(agent, agent_env, home_root, server):
    caller = Caller(agent, agent_env(agent), home_root / "work")
    server.every_prompt([LimitReached()])
    status, result = caller.task("hello")
    assert (status, result["outcome"]) == (6, "limited"), result
    assert "limit" in result["what"]


def test_the_answer_is_not_lost_when_the_caller_is_killed(caller, server):
    server.every_prompt(lambda text: [Think(1.0), *obey_done_file(text, "still here")])
    started = caller.start("run", "-p", caller.agent, "hello")
    await_folder(caller)
    started.send_signal(signal.SIGKILL)
    started.communicate()
    status, result = caller.run("wait", "1")
    assert (status, result["answer"]) == (0, "still here"), result


def test_background_children_of_a_tool_do_not_survive(caller, server):
    command = "(setsid sleep 7777 >/dev/null 2>&1 &) ; nohup sleep 8888 >/dev/null 2>&1 & echo started"
    server.every_prompt(lambda text: [Shell(command), *obey_done_file(text, "done")])
    status, result = caller.task("start something")
    assert (status, result["answer"]) == (0, "done"), result   # the fixture looks for what is left


@pytest.mark.parametrize("prompt", ["/init", "!echo hi", "-rf x", "@nobody"])
def test_a_prompt_that_looks_like_a_command_is_a_prompt(prompt, agent_env, home_root, server):
    server.every_prompt([Answer("read")])
    for agent in ("claude", "codex"):
        caller = Caller(agent, agent_env(agent), home_root / ("work-" + agent))
        status, result = caller.task(prompt)
        assert (status, result["answer"]) == (0, "read"), result
        sent = (Path(result["folder"]) / "prompt.md").read_text()
        assert server.prompts[-1].text.strip() in (sent.strip(), "Read the file %s/prompt.md and do exactly what it says."
                                                   % result["folder"])


def test_a_prompt_beyond_the_limit_of_an_argument_goes_by_file(caller, server):
    server.every_prompt([Answer("read")])
    prompt = "word " * 40_000
    (caller.folder / "plan.md").write_text(prompt)
    status, result = caller.run("run", "-p", caller.agent, "-f", "plan.md")
    assert status == 0, result
    folder = result["folder"]
    assert server.prompts[0].text.strip() == "Read the file %s/prompt.md and do exactly what it says." % folder
    assert Path(folder, "prompt.md").read_text().startswith(prompt)


def test_a_profile_of_the_users_own_runs_as_it_is_written(agent_env, home_root, server):
    caller = Caller("codex", dict(agent_env("codex"), MY_KEY="sk-fake-from-the-caller"), home_root / "work")
    config = home_root / "config.yaml"
    config.write_text("default_profile: spark\nprofiles:\n  spark:\n    command: codex\n    interface: codex\n"
                      "    args: [--yolo, --model, gpt-6.1-spark, -c, 'model_reasoning_effort=\"high\"']\n"
                      "    env: {MADE_UP_KEY: {from_env: MY_KEY}}\n")
    server.every_prompt(lambda text: obey_done_file(text, "spark was here"))
    status, result = caller.run("run", "--config", str(config), "do it")
    assert (status, result["answer"]) == (0, "spark was here"), result
    assert server.prompts[0].headers.get("authorization", "").endswith("sk-fake-from-the-caller")
    assert json.loads(server.prompts[0].body)["model"] == "gpt-6.1-spark"
    kept = [path for path in Path(result["folder"]).rglob("*") if path.is_file()]
    assert kept and not [path for path in kept if "sk-fake-from-the-caller" in path.read_text(errors="replace")]


def test_no_update_no_daemon_and_nothing_from_elsewhere(caller, server):
    server.every_prompt(lambda text: obey_done_file(text, "done"))
    before = set(os.listdir(caller.env["HOME"]))
    status, result = caller.task("hello")
    assert status == 0, result
    assert not list(Path(caller.env["HOME"]).glob(".codex/packages/*"))
    assert before <= set(os.listdir(caller.env["HOME"]))


DIALOGS = {   # a profile that turns off what keeps the dialogs away, and the dialogs that then come
    "claude": ("args: [--dangerously-skip-permissions, --settings, '{}']\n    env: {CLAUDE_CODE_SANDBOXED: ''}",
               ["trust", "bypass"]),
    "codex": ("args: [--yolo, -c, 'projects.\"/nowhere\".trust_level=\"trusted\"']", ["trust"]),
}


@pytest.mark.parametrize("agent", DIALOGS)
def test_dialogs_that_come_all_the_same_are_answered_by_their_label(agent, agent_env, home_root, server):
    caller = Caller(agent, agent_env(agent), home_root / "work")
    subprocess.run(["git", "init", "-q"], cwd=caller.folder, env=caller.env, check=True)
    profile, dialogs = DIALOGS[agent]
    config = home_root / "config.yaml"
    config.write_text("default_profile: it\nprofiles:\n  it:\n    command: %s\n    interface: %s\n    %s\n" % (agent, agent, profile))
    server.every_prompt(lambda text: obey_done_file(text, "trusted"))
    status, result = caller.run("run", "--config", str(config), "look around")
    lines = (Path(result["folder"]) / "events.jsonl").read_text().splitlines()
    seen = [event["name"] for event in map(json.loads, lines) if event["event"] == "dialog"]
    assert (status, result["answer"]) == (0, "trusted"), (result, seen)
    assert sorted(set(seen)) == sorted(dialogs)
