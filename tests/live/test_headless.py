"""A worker without a terminal, from prompt to answer: the real agents, and a model server of ours."""
from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

import test_task
from leftovers import MARKER, await_gone
from model_server import Answer, Error, Hang, LimitReached, Shell, Think
from test_task import DEADLINE_S, wait_until

AGENTS = ("claude", "codex", "gemini", "opencode")
PROMPT = '  Two  spaces, a "quote", an it\'s, a $HOME, a back\\slash,\n\n\ta tab and ünï😀de\nin three lines\n'
# opencode has a free model of its own; codex asks its server without a login, and there is no network here
NOT_LOGGED_IN = {"claude": (4, "login"), "gemini": (4, "login"), "codex": (7, "stalled")}


class Caller(test_task.Caller):
    """Calls selftalk as a host agent would, in a folder of its own."""

    def text(self, *words):
        out, err = self.start(*words).communicate(timeout=DEADLINE_S)
        return out.decode() + err.decode()

    def task(self, prompt, *words):
        return self.run("run", "-H", "-p", self.agent, *words, "--", prompt)


@pytest.fixture(params=AGENTS)
def caller(request, agent_env, home_root):
    return Caller(request.param, agent_env(request.param), home_root / "work")


def only(agent, agent_env, home_root):
    return Caller(agent, agent_env(agent), home_root / "work")


def test_a_prompt_arrives_byte_for_byte_and_the_whole_answer_comes_back(caller, server):
    answer = "First line, ünï😀de.\n\n" + "\n".join("- point %d of a long answer" % n for n in range(1, 201)) + "\n\nLast line."
    server.every_prompt([Think(1.0), Answer(answer, chunks=20, chunk_pause_s=0.02)])
    status, result = caller.task(PROMPT)
    assert (status, result["outcome"], result["source"], result["place"]) == (0, "answered", "stdout", "headless"), result
    assert result["answer"] == answer and result["session_id"] and result["tokens"]["output"] > 0
    assert [prompt.text for prompt in server.prompts] == [PROMPT]


@pytest.mark.parametrize("prompt", ["/init the folder", "-x is an option"])
def test_a_prompt_that_looks_like_a_command_is_a_prompt(caller, server, prompt):
    server.every_prompt([Answer("as you say")])
    status, result = caller.task(prompt)
    assert (status, result["answer"]) == (0, "as you say"), result
    sent, = [one.text.strip() for one in server.prompts]
    assert sent == prompt or sent.endswith("/prompt.md and do exactly what it says.")   # gemini obeys it even behind a space


def test_a_prompt_larger_than_an_argument_can_be_arrives_whole(caller, server):
    prompt = "".join("line %d of a very long plan\n" % n for n in range(20_000))
    server.every_prompt([Answer("read it all")])
    (caller.folder / "plan.md").write_text(prompt)
    status, result = caller.run("run", "-H", "-p", caller.agent, "-f", "plan.md")
    assert (status, result["answer"]) == (0, "read it all"), result
    assert [one.text for one in server.prompts] == [prompt]


def test_tools_and_what_is_said_before_them_are_not_the_answer(caller, server):
    server.every_prompt([Shell("echo one", text="I look."), Think(1.0), Shell("echo two; exit 3", text="Again."),
                         Answer("The end.", chunks=4, chunk_pause_s=0.2)])
    status, result = caller.task("work for a while")
    assert (status, result["answer"]) == (0, "The end."), result
    log = caller.text("log", str(result["id"]))
    assert all(word in log for word in ("I look.", "echo one", "Again.", "The end.", "■ done")), log
    assert log.index("I look.") < log.index("echo one") < log.index("The end.")


@pytest.mark.parametrize("agent", ["claude", "opencode"])
def test_the_log_can_be_followed_while_the_agent_works(agent, agent_env, home_root, server):
    caller = only(agent, agent_env, home_root)
    server.every_prompt([Shell("echo first", text="I look."), Think(3.0), Answer("The end.")])
    started = caller.start("run", "-H", "-q", "-p", caller.agent, "work")
    assert wait_until(lambda: len(server.prompts) == 1)
    follower = caller.start("log", "-f", "1")
    out, err = follower.communicate(timeout=DEADLINE_S)
    assert "echo first" in out.decode() and "The end." in out.decode(), (out, err)
    assert started.communicate(timeout=DEADLINE_S)[0].decode() == "The end.\n"


def test_an_api_error_is_a_failure_in_the_agents_own_words(caller, server):
    server.every_prompt([Error(400, message="made-up refusal")])
    status, result = caller.task("hello")
    assert (status, result["outcome"]) == (1, "failed"), result
    assert "made-up refusal" in result["what"]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_usage_limit_is_told_from_an_answer(agent, agent_env, home_root, server):
    caller = only(agent, agent_env, home_root)
    server.every_prompt([LimitReached()])
    status, result = caller.task("hello", "--stall", "20")
    assert (status, result["outcome"]) == (6, "limited"), result


@pytest.mark.parametrize("agent", ["claude", "codex", "gemini"])
def test_one_that_waits_for_its_server_is_a_stall_and_can_be_waited_for_or_stopped(agent, agent_env, home_root, server):
    caller = only(agent, agent_env, home_root)
    server.every_prompt([Hang()])
    status, result = caller.task("hello", "--stall", "8")
    assert (status, result["outcome"]) == (7, "stalled"), result
    assert caller.run("wait", "1", "--wait", "1")[0] == 75
    assert caller.run("stop", "1")[0] == 0
    assert caller.run("result", "1")[1]["outcome"] in ("stopped", "stalled")


def test_one_that_retries_for_ever_is_a_stall_that_tells_why(agent_env, home_root, server):
    caller = only("opencode", agent_env, home_root)
    server.every_prompt([Error(500, message="made-up trouble")])
    status, result = caller.task("hello", "--stall", "20")
    assert (status, result["outcome"]) == (7, "stalled"), result
    assert "made-up trouble" in result["what"], result
    assert caller.run("stop", "1")[0] == 0


def test_the_answer_is_not_lost_when_the_caller_is_killed(caller, server):
    server.every_prompt([Think(2.0), Answer("still here")])
    started = caller.start("run", "-H", "-p", caller.agent, "hello")
    assert wait_until(lambda: len(server.prompts) == 1)
    started.send_signal(signal.SIGKILL)
    started.communicate()
    status, result = caller.run("wait", "1")
    assert (status, result["answer"]) == (0, "still here"), result
    assert caller.run("result", "1")[1]["answer"] == "still here"
    assert caller.run("wait", "1")[1]["answer"] == "still here"


def test_background_children_of_a_tool_do_not_survive(caller, server, marker):
    command = "(setsid sleep 7777 >/dev/null 2>&1 &) ; nohup sleep 8888 >/dev/null 2>&1 & echo started"
    server.every_prompt([Shell(command), Answer("done")])
    status, result = caller.task("start something")
    assert (status, result["answer"]) == (0, "done"), result
    assert not await_gone(marker, 0)


def test_stop_ends_agent_and_tools_and_send_takes_the_conversation_up_again(caller, server, marker):
    server.next_prompt(Answer("the cat is called Ataraxia"))
    assert caller.task("what is the cat called")[0] == 0
    assert not await_gone(marker, 0)
    server.next_prompt(Shell("setsid sleep 7777 & sleep 9999"), Answer("no"))
    sending = caller.start("send", "--json", "1", "sleep for long")
    assert wait_until(lambda: any("sleep 7777" in line for line in await_gone(marker, 0).values()))
    assert caller.run("stop", "1")[0] == 0
    out, _ = sending.communicate(timeout=DEADLINE_S)
    assert (sending.returncode, json.loads(out)["outcome"]) == (1, "stopped"), out
    assert not await_gone(marker, 0)
    server.every_prompt([Answer("got it")])
    status, result = caller.run("send", "1", "--", "and now")
    assert (status, result["answer"], result["turn"]) == (0, "got it", 3), result
    assert server.prompts[-1].text.strip() == "and now" and b"Ataraxia" in server.prompts[-1].body
    assert caller.run("result", "1", "--turn", "1")[1]["answer"] == "the cat is called Ataraxia"


@pytest.mark.parametrize("agent", NOT_LOGGED_IN)
def test_one_that_is_not_logged_in_says_so(agent, agent_env, home_root, server):
    caller = only(agent, agent_env, home_root)
    home = home_root / "nobody"
    home.mkdir()
    env = {name: caller.env[name] for name in ("PATH", "LANG", "TMPDIR", MARKER) if name in caller.env}
    caller.env = {**env, "HOME": str(home), "XDG_STATE_HOME": caller.env["XDG_STATE_HOME"]}
    status, result = caller.task("hello", "--stall", "10")
    assert (status, result["outcome"]) == NOT_LOGGED_IN[agent], result
    assert agent != "codex" or "Reconnecting" in result["what"], result
    caller.run("stop", "1")


def test_a_talk_can_be_headless_too(agent_env, home_root, server):
    caller = only("claude", agent_env, home_root)
    server.next_prompt(Answer("four"))
    status, result = caller.run("-c", "-H", "--here", "two and two?")
    assert (status, result["answer"], result["form"], result["place"]) == (0, "four", "talk", "headless"), result
    server.next_prompt(Answer("five"))
    status, result = caller.run("send", "1", "and one?")
    assert (status, result["answer"]) == (0, "five"), result


# --- any agent that speaks ACP ------------------------------------------------------

ACP_ARGS = {"gemini": "[--skip-trust, --acp]", "opencode": "[acp]"}


@pytest.fixture(params=ACP_ARGS)
def acp_caller(request, agent_env, home_root):
    caller = only(request.param, agent_env, home_root)
    path = Path(caller.env["HOME"]) / ".config" / "selftalk" / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    row = "{command: %s, interface: acp, args: %s" % (request.param, ACP_ARGS[request.param])
    path.write_text("profiles:\n  %s: %s}\n  strict: %s, permissions: reject}\n" % (request.param, row, row))
    return caller


def test_an_agent_that_speaks_acp_needs_no_row_of_its_own(acp_caller, server, marker):
    server.every_prompt([Shell("echo one", text="I look."), Answer("The end.\n\nünï😀de", chunks=4, chunk_pause_s=0.2)])
    status, result = acp_caller.task(PROMPT)
    assert (status, result["answer"], result["place"], result["agent"]) == (0, "The end.\n\nünï😀de", "headless", "acp"), result
    assert server.prompts[0].text.strip() == PROMPT.strip()
    log = acp_caller.text("log", "1")
    assert "I look." in log and "one" in log and "The end." in log, log
    assert not await_gone(marker, 0)


def test_a_session_of_acp_is_taken_up_in_a_new_process(acp_caller, server):
    server.next_prompt(Answer("the cat is called Ataraxia"))
    assert acp_caller.task("what is the cat called")[0] == 0
    for path in Path(acp_caller.env["HOME"]).glob(".gemini/tmp/*/chats/session-20*"):
        path.rename(path.with_name(path.name.replace("session-20", "session-19", 1)))   # 0.61.0 loses one of this very minute
    server.every_prompt([Answer("got it")])
    status, result = acp_caller.run("send", "1", "--", "and now")
    assert (status, result["answer"], result["turn"]) == (0, "got it", 2), result
    assert b"Ataraxia" in server.prompts[-1].body


@pytest.mark.parametrize("acp_caller", ["gemini"], indirect=True)
def test_an_acp_turn_can_be_stopped_and_its_caller_killed(acp_caller, server, marker):
    server.every_prompt([Shell("setsid sleep 7777 & sleep 9999"), Answer("no")])
    started = acp_caller.start("run", "-H", "-p", acp_caller.agent, "sleep for long")
    assert wait_until(lambda: any("sleep 7777" in line for line in await_gone(marker, 0).values()))
    started.send_signal(signal.SIGKILL)
    started.communicate()
    assert acp_caller.run("wait", "1", "--wait", "1")[0] == 75
    assert acp_caller.run("stop", "1")[0] == 0
    assert not await_gone(marker, 0)


def test_what_is_not_permitted_is_not_done(agent_env, home_root, server, request):
    caller = only("gemini", agent_env, home_root)
    path = Path(caller.env["HOME"]) / ".config" / "selftalk" / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("profiles:\n  p: {command: gemini, interface: acp, args: [--skip-trust, --acp], permissions: reject}\n")
    server.every_prompt([Shell("touch made-by-tool"), Answer("I could not.")])
    status, result = caller.run("run", "-p", "p", "make it")
    assert not (caller.folder / "made-by-tool").exists()
    assert result["outcome"] in ("answered", "failed"), result
