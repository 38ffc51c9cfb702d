"""Real agents that speak ACP, by the process that a launcher calls: what a headless worker of that kind is."""
from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model_server import Answer, CutStream, Error, Hang, LimitReached, Shell
from sandboxes import run_facts
from test_task import PROMPT, wait_until

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import selftalk  # noqa: E402

COMMANDS = {"gemini": ("gemini", "--acp", "--skip-trust"), "opencode": ("opencode", "acp")}
ASKS = {"opencode": {"OPENCODE_PERMISSION": '{"bash": "ask"}'}}   # gemini asks anyway
DEADLINE_S = 60


class Worker:
    """One run's folder, and its turns."""

    def __init__(self, agent, env, root):
        self.agent, self.env, self.work, self.folder = agent, {**env, **ASKS.get(agent, {})}, root / "work", root / "runs" / "1"
        self.work.mkdir()
        self.folder.mkdir(parents=True)
        self.facts = run_facts(format=selftalk.RUN_FORMAT, id=1, state="starting", outcome=None, permissions="allow")

    def start(self, prompt, **facts):
        self.facts.update(facts)
        (self.folder / "run.json").write_text(json.dumps(self.facts))
        (self.folder / "prompt.md").write_text(prompt)
        (self.folder / "stdout.jsonl").write_text("")
        words = [sys.executable, str(ROOT / "selftalk.py"), "acp-turn", str(self.folder), "--", *COMMANDS[self.agent]]
        with open(self.folder / "prompt.md") as stdin, open(self.folder / "stdout.jsonl", "a") as stdout, \
                open(self.folder / "stderr.log", "a") as stderr:
            return subprocess.Popen(words, env=self.env, cwd=self.work, stdin=stdin, stdout=stdout, stderr=stderr)

    def turn(self, prompt, **facts):
        """One turn from beginning to end; the exit status."""
        process = self.start(prompt, **facts)
        try:
            return process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail("no end of it: %s\n%s" % ([event[:2] for event in self.events], self.talk))

    @property
    def events(self):
        lines = selftalk.parse_json_lines((self.folder / "stdout.jsonl").read_text())
        return [event for line in lines for event in selftalk.parse_acp_event(line)]

    @property
    def talk(self):
        return (self.folder / "stderr.log").read_text()

    @property
    def answer(self):
        said = selftalk.Said()
        for event in selftalk.parse_events((self.folder / "stdout.jsonl").read_bytes().splitlines(True), "acp-messages"):
            said = selftalk.fold_event(said, event)
        return said.text

    def one(self, kind):
        [event] = [event for event in self.events if event.kind == kind]
        return event

    def make_older(self):
        """Gemini 0.61.0 empties a session that it loads in the minute it was made in: its file's name is taken."""
        for path in Path(self.env["HOME"]).glob(".gemini/tmp/*/chats/session-*"):
            path.rename(path.with_name(path.name.replace("session-20", "session-19", 1)))


@pytest.fixture(params=COMMANDS)
def worker(request, agent_env, home_root):
    return Worker(request.param, agent_env(request.param), home_root)


def test_answers_what_it_was_asked(worker, server):
    server.next_prompt(Answer("The answer of the model,\nin pieces.", chunks=4))
    assert worker.turn(PROMPT) == 0, worker.talk
    assert worker.answer == "The answer of the model,\nin pieces."
    assert worker.one("session").text
    assert worker.one("done").facts["tokens"]["output"] == 50
    assert [prompt.text for prompt in server.prompts] == [PROMPT]


def test_a_long_prompt_arrives_whole(worker, server):
    server.next_prompt(Answer("Read."))
    prompt = "".join("line %d of a long prompt\n" % number for number in range(20_000)) + "the end"
    assert worker.turn(prompt) == 0, worker.talk
    assert server.prompts[0].text == prompt


@pytest.mark.parametrize("permissions", ["allow", "reject"])
def test_its_shell_is_permitted_or_not(worker, server, permissions):
    server.next_prompt(Shell("touch made; echo shown", text="I shall run it."), Answer("It is over.", chunks=2))
    assert worker.turn("run it", permissions=permissions) == 0, worker.talk
    assert (worker.work / "made").exists() == (permissions == "allow")
    assert "touch made" in "".join(event.text for event in worker.events if event.kind == "tool")
    if permissions == "allow" or worker.agent == "gemini":   # a refusal ends the turn of opencode 1.18.33
        assert worker.answer == "It is over."


def test_a_signal_cancels_the_turn_and_nothing_is_left(worker, server):
    server.next_prompt(Hang("The beginning of"))
    process = worker.start("never mind")
    assert wait_until(lambda: worker.answer)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0, worker.talk
    assert worker.one("error").text == "the turn was interrupted"


def test_a_later_process_takes_up_the_session(worker, server):
    server.next_prompt(Shell("echo a tool ran"), Answer("The first answer."))
    server.next_prompt(Answer("The second answer."))
    assert worker.turn("the first prompt") == 0, worker.talk
    session = worker.one("session").text
    worker.make_older()
    assert worker.turn("the second prompt", session_id=session) == 0, worker.talk
    assert worker.answer == "The second answer."
    assert "The first answer" not in "".join(event.text for event in worker.events)
    assert b"The first answer." in server.prompts[1].body


def test_a_session_that_does_not_exist_is_an_error(worker, server):
    assert worker.turn("anything", session_id="00000000-0000-4000-8000-000000000000") == 1
    assert worker.one("error").text
    assert not server.prompts


def test_a_refused_login_and_a_limit_are_told_apart(worker, server):
    if worker.agent != "gemini":
        pytest.skip("opencode 1.18.33 tries again for ever, and says nothing of it")
    for act, fact in ((Error(401), "is_login"), (LimitReached(), "is_limit")):
        server.next_prompt(act)
        assert worker.turn("this is for " + fact) == 1
        assert worker.one("error").facts == {"is_login": fact == "is_login", "is_limit": fact == "is_limit"}


def test_an_answer_that_was_cut_off_is_not_part_of_the_next_try(worker, server):
    server.next_prompt(CutStream("The beginning of an ans"), Answer("The whole answer."))
    status = worker.turn("anything")
    if worker.agent == "gemini":   # 0.61.0 does not try again
        assert (status, worker.one("error").text) == (1, "terminated")
    else:
        assert (status, worker.answer) == (0, "The whole answer.")
