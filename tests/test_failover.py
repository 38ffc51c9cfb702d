"""A usage limit in mid-run: the next agent takes over, or its end is waited for. Agents are scripted, in real tmux."""
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from sandboxes import ROOT, until_true
from selftalk import GO_ON
from test_talk import Talk, opened_talk

LIMIT = "You've hit your 5-hour limit · resets %s"
USED = '{"type":"control_response","response":{"response":{"rate_limits_available":true,"rate_limits":{"five_hour":{"utilization":%d}}}}}'
OUT = "case $1 in auth) exit 1;; esac; echo '%s'" % '{"type":"control_response","response":{"response":{"rate_limits_available":false}}}'
NAMES = ("claude", "codex", "gemini")


class Crew(Talk):
    """A sandbox in which -c, -x and -g are three scripted agents in the same looks, each with an account of its own."""

    def __init__(self, folder):
        super().__init__(folder)
        for name in NAMES:
            path = folder / ("agent-" + name)
            path.write_text('#!/bin/sh\ncd %s\ncase $1 in -p|auth) . ./%s.says; exit;; esac\ncd "$OLDPWD"\n'
                            'export TALKER="$(cat %s/%s.script)" TALKER_LOG=%s/%s.log\nexec %s -S %s "$@"\n' % (
                                folder, name, folder, name, folder, name, sys.executable, ROOT / "tests" / "fake_talker.py"))
            path.chmod(0o755)
            self.behave(name, "")
            self.says(name, "echo '%s'" % (USED % 5))
        self.config("profiles:\n" + "".join("  %s: {command: %s, interface: claude}\n" % (name, folder / ("agent-" + name)) for name in NAMES))
        text, count = re.subn(r"(?m)^RESET_GRACE_S = 5\.0", "RESET_GRACE_S = 0.1", self.program.read_text(encoding="utf-8"))
        assert count == 1
        self.program.write_text(text, encoding="utf-8")

    def behave(self, name, script):
        """What an agent does from now on: see fake_talker.py."""
        (self.folder / (name + ".script")).write_text(script)

    def says(self, name, deed):
        """What an agent says of its account, as a piece of shell."""
        (self.folder / (name + ".says")).write_text(deed + "\n")

    def prompts(self, name):
        """The prompts that an agent was given."""
        self.log_path = self.folder / (name + ".log")
        return self.log()

    def ask(self, *words, status=0, wait_s=30):
        """Asks -c and whoever `words` name in the sandbox's folder: (the object, what was told)."""
        process = self.start("-c", "--here", "--json", *words)
        out, err = process.communicate(timeout=wait_s)
        assert (process.returncode, "Traceback" in err.decode()) == (status, False), err.decode()
        return json.loads(out), err.decode()

    def numbers(self):
        return sorted(int(path.name) for path in (self.state / "runs").iterdir())


@pytest.fixture
def crew(tmp_path, monkeypatch):
    """Three agents; afterwards their runs are stopped, and nothing of them may be alive."""
    monkeypatch.setattr(sys.modules["test_talk"], "Talk", Crew)
    with opened_talk(tmp_path) as opened:
        yield opened


def make_repository(folder):
    for words in (("init", "-q"), ("add", "."), ("-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-qm", "x")):
        subprocess.run(["git", *words], cwd=folder, check=True, stdin=subprocess.DEVNULL)


# --- the next one takes over ------------------------------------------------------------

@pytest.mark.parametrize("flag", ["-e", "--failover"])
def test_the_next_agent_takes_over_with_the_prompt_what_was_said_and_what_has_changed(crew, flag):
    (crew.work / "notes.txt").write_text("before\n")
    make_repository(crew.work)
    crew.behave("claude", "limit=resets in 2h; said=I have changed the notes; busy=0.5")
    process = crew.start("-c", flag, "-x", "--here", "--json", "mend the notes")
    assert until_true(lambda: crew.prompts("claude"))
    (crew.work / "notes.txt").write_text("after\n")
    for name in ("new.txt", "newer.txt"):
        (crew.work / name).write_text("new\n")
    out, err = (text.decode() for text in process.communicate(timeout=30))
    result = json.loads(out)
    assert (process.returncode, result["outcome"], result["profile"], result["id"]) == (0, "answered", "codex", 2), err
    assert result["took_over"] == {"id": 1, "turn": 1, "profile": "claude", "outcome": "limited"}
    [prompt] = crew.prompts("codex")
    assert prompt.startswith("mend the notes\n") and "Another agent (claude)" in prompt
    for part in ("I have changed the notes", "-before\n+after", "?? new.txt"):
        assert part in prompt
    lines = err.splitlines()
    assert any("claude CANNOT GO ON: " in line and "resets in 2h" in line for line in lines)
    assert any("run 2: codex TAKES OVER" in line for line in lines) and "by codex, which took over from claude" in lines[-1]
    assert crew.facts(1)["state"] == "over" and crew.turn(run=1)["outcome"] == "limited"
    status, out, _ = crew.run("-c", "-e", "-x", "--dry-run")
    assert status == 0 and re.fullmatch(r"smart-route: claude has reached its limit \(until .+\) -> codex\n", out)


def test_without_e_and_failover_a_limit_is_told_and_nobody_takes_over(crew):
    crew.behave("claude", "limit=resets in 2h")
    result, err = crew.ask("hello", status=6)
    assert (result["outcome"], result["id"], result["took_over"]) == ("limited", 1, None) and crew.numbers() == [1]
    assert abs(result["resets_at"] - time.time() - 7200) < 60 and LIMIT % "in 2h" in err
    assert crew.run("wait", "1")[0] == 6 and crew.numbers() == [1]


def test_a_route_is_said_and_the_one_that_is_spared_is_not_started(crew):
    crew.says("claude", "echo '%s'" % (USED % 91))
    result, err = crew.ask("-e", "-x", "hello")
    assert (result["profile"], result["took_over"]) == ("codex", None)
    assert err.splitlines()[0] == "selftalk: smart-route: claude session at 91% (limit 80%) -> codex"
    assert crew.prompts("claude") == [] and crew.prompts("codex") == ["hello"]


def test_work_moves_on_until_somebody_can_do_it(crew):
    for name in ("claude", "codex"):
        crew.behave(name, "limit=resets in 2h")
    result, _ = crew.ask("--failover", "-x", "-g", "hello")
    assert (result["profile"], result["id"], result["took_over"]) == ("gemini", 3, {"id": 2, "turn": 1, "profile": "codex", "outcome": "limited"})
    assert "Another agent (claude)" in crew.prompts("gemini")[0] and "Another agent (codex)" in crew.prompts("gemini")[0]


def test_when_nobody_is_left_the_limit_is_told(crew):
    for name in ("claude", "codex"):
        crew.behave(name, "limit=resets in 2h")
    result, err = crew.ask("--failover", "-x", "hello", status=6)
    assert (result["outcome"], result["profile"], result["id"]) == ("limited", "codex", 2) and crew.numbers() == [1, 2]
    assert crew.run_json("wait", "1")[1]["id"] == 2 and crew.numbers() == [1, 2]


@pytest.mark.parametrize("says, words", [
    (OUT, "codex is not logged in"), ("echo '%s'" % (USED % 100), "codex session at 100%"), (None, "codex is not installed")])
def test_one_that_cannot_take_over_is_passed_over(crew, says, words):
    crew.behave("claude", "limit=resets in 2h")
    if says:
        crew.says("codex", says)
    else:
        (crew.folder / "agent-codex").unlink()
    result, err = crew.ask("--failover", "-x", "-g", "hello")
    assert result["profile"] == "gemini" and words in err and crew.prompts("codex") == []
    assert crew.facts(2)["chain"] == []


@pytest.mark.parametrize("says", [OUT, "echo '%s'" % (USED % 100), None])
def test_when_nobody_can_take_over_the_limit_is_told_and_why(crew, says):
    crew.behave("claude", "limit=resets in 2h")
    if says:
        crew.says("codex", says)
    else:
        (crew.folder / "agent-codex").unlink()
    result, err = crew.ask("--failover", "-x", "hello", status=6)
    assert (result["outcome"], result["id"]) == ("limited", 1) and "codex" in err and crew.numbers() == [1]


def test_one_that_has_to_be_logged_in_is_followed_as_well(crew):
    crew.behave("claude", "login")
    result, err = crew.ask("--failover", "-x", "hello")
    assert (result["profile"], result["took_over"]["outcome"]) == ("codex", "login")


def test_who_takes_over_goes_on_in_a_talk_of_its_own(crew):
    crew.behave("claude", "limit=resets in 2h")
    crew.ask("--failover", "-x", "hello")
    status, result = crew.run_json("send", "2", "and on")
    assert (status, result["profile"]) == (0, "codex") and crew.prompts("codex")[1] == "and on"


def test_a_limit_in_a_later_turn_is_handed_over_as_well(crew):
    crew.behave("claude", "limit=resets in 2h")
    assert crew.ask("--failover", "-x", "first")[0]["id"] == 2
    status, result = crew.run_json("send", "1", "second")
    assert (status, result["id"], result["took_over"]["turn"]) == (0, 3, 2)
    assert [prompt.split("\n")[0] for prompt in crew.prompts("codex")] == ["first", "second"]


# --- callers that die, and callers that come at once -------------------------------------------

@pytest.mark.parametrize("moment", ["asked", "limited", "ended", "started", "taken over"])
def test_a_caller_killed_at_any_moment_is_followed_by_one_wait_that_moves_it_once(crew, moment):
    crew.behave("claude", "limit=resets in 2h; busy=0.3")
    crew.behave("codex", "busy=0.3")
    process = crew.start("-c", "--failover", "-x", "--here", "hello", stdin=subprocess.DEVNULL)
    try:
        assert until_true(lambda: {
            "asked": lambda: crew.prompts("claude"), "limited": lambda: crew.turn().get("outcome") == "limited",
            "ended": lambda: crew.facts()["state"] == "over", "started": lambda: crew.run_folder(2).exists(),
            "taken over": lambda: (crew.run_folder(2) / "run.json").exists() and crew.facts(2).get("launcher"),
        }[moment]() if (crew.run_folder() / "run.json").exists() else False)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    status, result = crew.run_json("wait", "1")
    assert (status, result["outcome"], result["profile"]) == (0, "answered", "codex")
    numbers = crew.numbers()     # a start that was cut short leaves a run that says so
    assert len(crew.prompts("codex")) == 1 and numbers[:2] == [1, 2] and result["id"] == numbers[-1] <= 3
    assert crew.run_json("wait", "1")[1]["id"] == result["id"] and crew.numbers() == numbers


def test_two_waiters_move_it_once_and_get_the_same_answer(crew):
    crew.behave("claude", "limit=resets in 2h; busy=1.5")
    assert crew.ask("--failover", "-x", "--wait", "1", "hello", status=75)[0]["outcome"] == "running"
    waiters = [crew.start("wait", "1", "--json") for _ in range(3)]
    results = [json.loads(waiter.communicate(timeout=30)[0]) for waiter in waiters]
    assert [waiter.returncode for waiter in waiters] == [0, 0, 0]
    assert {(result["id"], result["answer"]) for result in results} == {(2, results[0]["answer"])}
    assert len(crew.prompts("codex")) == 1 and crew.numbers() == [1, 2]


def test_a_wait_that_is_over_before_the_new_one_has_answered_names_it(crew):
    crew.behave("claude", "limit=resets in 2h")
    crew.behave("codex", "busy=20")
    result, err = crew.ask("--failover", "-x", "--wait", "1", "hello", status=75)
    assert until_true(lambda: crew.run_json("wait", "1", "--wait", "0.5")[1]["id"] == 2)
    status, _, err = crew.run("wait", "1", "--wait", "0.5")
    assert status == 75 and err.rstrip().endswith("wait 2")


def test_a_config_that_was_named_holds_for_a_wait_as_well(crew):
    path = crew.home / ".config" / "selftalk" / "config.yaml"
    named = path.rename(crew.folder / "other.yaml")
    crew.behave("claude", "limit=resets in 2h; busy=1.5")
    assert crew.ask("--failover", "-x", "--config", str(named), "--wait", "1", "hello", status=75)
    status, result = crew.run_json("wait", "1")
    assert (status, result["profile"]) == (0, "codex")


# --- waiting for the reset ----------------------------------------------------------------------

def test_a_reset_is_waited_for_and_the_work_goes_on(crew):
    began = time.time()
    result, err = crew.ask("--wait-for-reset", "hello [[limit=resets in 2s]]")
    assert (result["outcome"], result["id"], result["profile"], result["turn"]) == ("answered", 1, "claude", 2)
    assert crew.prompts("claude") == ["hello [[limit=resets in 2s]]", GO_ON] and time.time() - began > 2
    assert "run 1: limited until " in err
    assert crew.run_json("wait", "1")[1]["answer"] == result["answer"]


def test_a_wait_that_ends_before_the_reset_is_75_and_another_one_goes_on(crew):
    result, err = crew.ask("--wait-for-reset", "--wait", "2", "hello [[limit=resets in 4s]]", status=75)
    assert (result["outcome"], result["id"]) == ("running", 1) and "its limit ends " in err and err.rstrip().endswith("wait 1")
    status, result = crew.run_json("wait", "1", "--wait", "0.2")
    assert (status, result["outcome"]) == (75, "running")
    status, result = crew.run_json("wait", "1")
    assert (status, result["outcome"]) == (0, "answered") and crew.prompts("claude")[1:] == [GO_ON]


def test_two_that_wait_for_a_reset_go_on_once(crew):
    crew.ask("--wait-for-reset", "--wait", "2", "hello [[limit=resets in 4s]]", status=75)
    waiters = [crew.start("wait", "1", "--json") for _ in range(2)]
    results = [json.loads(waiter.communicate(timeout=30)[0]) for waiter in waiters]
    assert [result["outcome"] for result in results] == ["answered", "answered"] and crew.prompts("claude")[1:] == [GO_ON]


def test_a_caller_killed_while_it_waits_for_a_reset_is_followed_by_a_wait(crew):
    process = crew.start("-c", "--here", "--wait-for-reset", "hello [[limit=resets in 3s]]")
    assert until_true(lambda: crew.run_folder().exists() and crew.turn().get("outcome") == "limited")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    status, result = crew.run_json("wait", "1")
    assert (status, result["outcome"]) == (0, "answered") and crew.prompts("claude")[1:] == [GO_ON]


def test_an_interrupt_ends_the_wait_for_a_reset_and_a_wait_takes_it_up(crew):
    process = crew.start("-c", "--here", "--wait-for-reset", "hello [[limit=resets in 2s]]", stdin=subprocess.DEVNULL)
    assert until_true(lambda: crew.run_folder().exists() and crew.turn().get("outcome") == "limited")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err.decode().rstrip().endswith("wait 1")
    assert crew.run_json("wait", "1")[1]["outcome"] == "answered"


@pytest.mark.parametrize("words", [("--once",), ()])
def test_stop_ends_the_wait_for_a_reset_for_good(crew, words):
    caller = crew.start("-c", "--here", "--wait-for-reset", "--failover", "-x", *words, "hello [[limit=resets in 4s]]")
    assert until_true(lambda: crew.run_folder().exists() and crew.turn().get("outcome") == "limited")
    status, out, err = crew.run("stop", "1")
    assert (status, "run 1: stopped" in err) == (0, True)
    assert caller.wait(timeout=20) == 6 and b"limited" in caller.communicate()[1]
    assert crew.run_json("wait", "1")[1]["outcome"] == "limited" and len(crew.prompts("claude")) == 1 and not crew.prompts("codex")
    assert "was over already" in crew.run("stop", "1")[2]


def test_a_limit_without_an_end_is_not_waited_for(crew):
    crew.behave("claude", "limit=ask your admin")
    result, err = crew.ask("--wait-for-reset", "hello", status=6)
    assert (result["outcome"], result["resets_at"]) == ("limited", None)


def test_a_reset_is_waited_for_by_an_agent_that_has_ended_meanwhile(crew):
    crew.ask("--wait-for-reset", "--wait", "2", "hello [[limit=resets in 4s]]", status=75)
    os.kill(next(pid for pid, line in crew.processes() if "fake_talker" in line), signal.SIGKILL)
    status, result = crew.run_json("wait", "1")
    assert (status, result["outcome"]) == (0, "answered") and crew.prompts("claude")[1:] == [GO_ON]


def test_a_reset_of_who_has_taken_over_is_waited_for_as_well(crew):
    crew.behave("claude", "limit=ask your admin")
    result, _ = crew.ask("--wait-for-reset", "--failover", "-x", "hello")
    assert (result["profile"], crew.facts(2)["wait_for_reset"]) == ("codex", True)


def test_a_wait_is_as_long_as_was_said_also_over_a_limit(crew):
    crew.behave("claude", "busy=2")
    began = time.monotonic()
    crew.ask("--wait-for-reset", "--wait", "4", "hello [[limit=resets in 2h]]", status=75)
    assert time.monotonic() - began < 5.5


def test_a_limit_that_does_not_end_when_it_said_is_not_tried_again_and_again(crew):
    crew.behave("claude", "limit=resets in 1s")
    process = crew.start("-c", "--here", "--wait-for-reset", "--wait", "5", "hello")
    process.communicate(timeout=30)
    assert len(crew.prompts("claude")) <= 2
