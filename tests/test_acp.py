"""The process that holds the connection to an agent which speaks ACP, as a launcher calls it."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import selftalk
from sandboxes import PROGRAM, ROOT, run_facts, until_true

FAKE = ROOT / "tests" / "fake_acp.py"


class Client:
    """`selftalk.py acp` with the scripted agent, in a run's folder as room 9 makes it."""

    def __init__(self, sandbox, steps, traits="", prompt=b"do it", session="", permissions="allow", command=None):
        self.folder, self.sandbox = sandbox.folder / "runs" / "7", sandbox
        self.folder.mkdir(parents=True)
        facts = run_facts(format=selftalk.RUN_FORMAT, id=7, state="starting", outcome=None, session_id=session, permissions=permissions)
        (self.folder / "run.json").write_text(json.dumps(facts))
        (self.folder / "prompt.md").write_bytes(prompt)
        env = dict(sandbox.env, FAKE_STEPS=steps, FAKE_TRAITS=traits, FAKE_HEARD=str(self.folder / "heard"),
                   FAKE_SAID=str(self.folder / "said"))
        with open(self.folder / "prompt.md", "rb") as stdin, open(self.folder / "stdout.jsonl", "ab") as stdout, \
                open(self.folder / "stderr.log", "ab") as stderr:
            words = [sys.executable, str(PROGRAM), "acp-turn", str(self.folder), "--", *(command or [sys.executable, str(FAKE)])]
            self.process = subprocess.Popen(words, env=env, cwd=sandbox.work, stdin=stdin, stdout=stdout, stderr=stderr)

    def end(self, timeout_s=15):
        """Waits for its end; the exit status."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail("hangs; heard: %r; stream: %r" % (self.heard[-3:], self.stream[-300:]))

    @property
    def stream(self):
        return (self.folder / "stdout.jsonl").read_bytes()

    @property
    def said(self):
        return (self.folder / "said").read_bytes()

    @property
    def heard(self):
        return [json.loads(line) for line in (self.folder / "heard").read_bytes().splitlines()]

    @property
    def methods(self):
        return [message.get("method") for message in self.heard]

    @property
    def talk(self):
        return (self.folder / "stderr.log").read_text()

    @property
    def messages(self):
        return list(selftalk.parse_json_lines(self.stream.decode("utf-8", "replace")))

    @property
    def text(self):
        return "".join(event.text for line in self.messages for event in selftalk.parse_acp_event(line)
                       if event.kind == "text")

    def await_heard(self, method):
        assert until_true(lambda: (self.folder / "heard").exists() and method in self.methods)


@pytest.fixture
def start(sandbox):
    """start(steps, traits, …) -> a Client; what it leaves behind is an error."""
    started = []

    def make(*args, **options):
        started.append(Client(sandbox, *args, **options))
        return started[-1]
    yield make
    for client in started:
        if client.process.poll() is None:
            client.process.kill()
            client.process.wait()


def run(start, *args, **options):
    client = start(*args, **options)
    client.status = client.end()
    return client


# --- the pipes (room 7) ---------------------------------------------------------------

def test_the_last_words_of_a_command_are_heard():
    heard = []
    with selftalk.TalkingProcess(["sh", "-c", "echo last"], heard.append) as pipes:
        pipes.child.wait()
    assert b"".join(heard) == b"last\n"


def test_a_command_is_ended_after_trouble_with_what_it_prints():
    def refuse(block):
        raise selftalk.Failure("no room for it")
    with pytest.raises(selftalk.Failure):
        with selftalk.TalkingProcess(["sh", "-c", "echo one; cat; echo two; exec sleep 100"], refuse) as pipes:
            while not pipes.pump(1.0):
                continue
    assert pipes.child.poll() is not None


def test_a_command_that_reads_no_more_is_heard_all_the_same():
    heard = []
    with selftalk.TalkingProcess(["sh", "-c", "exec 0<&-; sleep 0.2; echo heard"], heard.append) as pipes:
        pipes.unsent += b"x" * 1_000_000
        while not pipes.is_over:
            pipes.pump(1.0)
    assert b"".join(heard) == b"heard\n"


# --- a turn ---------------------------------------------------------------------

def test_the_stream_is_what_the_agent_said_byte_for_byte(start):
    client = run(start, "say The answer.;raw {\"jsonrpc\": \"2.0\" ,  \"method\":\"x\"};end end_turn")
    assert client.status == 0
    assert client.stream == client.said
    assert client.text == "The answer."
    assert client.talk == ""


def test_the_agent_is_told_where_it_works_and_what_we_cannot_do(start, sandbox):
    client = run(start, "end end_turn")
    initialize, new, prompt = client.heard
    assert initialize["method"] == "initialize" and initialize["params"]["protocolVersion"] == 1
    assert initialize["params"]["clientCapabilities"] == {"fs": {"readTextFile": False, "writeTextFile": False},
                                                          "terminal": False}
    assert new["params"] == {"cwd": str(sandbox.work), "mcpServers": []}
    assert prompt["params"] == {"sessionId": "fake-session", "prompt": [{"type": "text", "text": "do it"}]}
    assert [message["jsonrpc"] for message in client.heard] == ["2.0"] * 3


def test_a_prompt_arrives_as_it_was_given(start):
    text = "é 😀 \"quoted\" \\n \t\u2028\n\n" + "many words " * 500_000   # 5.5 MB, past any pipe
    client = run(start, "end end_turn", prompt=text.encode())
    assert client.status == 0
    assert client.heard[-1]["params"]["prompt"][0]["text"] == text


def test_an_agent_that_writes_before_it_reads_is_no_deadlock(start):
    client = run(start, "end end_turn", "first-talks", prompt=b"word " * 400_000)
    assert client.status == 0
    assert client.stream == client.said


def test_an_answer_with_an_error_that_is_none_is_an_answer(start):
    assert run(start, "raw {\"error\":null,\"result\":{\"stopReason\":\"end_turn\"},\"id\":3}").status == 0


def test_an_error_that_is_no_object_is_an_error_all_the_same(start):
    client = run(start, "raw {\"id\":3,\"error\":\"out of order\"}")
    assert client.status == 1
    assert [event[:2] for event in selftalk.parse_acp_event(client.messages[-1])] == [("error", "out of order")]


@pytest.mark.parametrize("reason", ["refusal", "max_tokens", "cancelled"])
def test_any_stop_reason_is_an_answer(start, reason):
    assert run(start, "end " + reason).status == 0


def test_what_comes_behind_the_answer_is_in_the_stream(start):
    client = run(start, "end end_turn;many 1;say late", "last-words")
    assert client.status == 0
    assert client.stream == client.said
    assert client.text == "latelast"


# --- requests of the agent --------------------------------------------------------

@pytest.mark.parametrize("permissions, kinds, taken", [
    ("allow", "allow_always,allow_once,reject_once", "selected allow_once-1."),   # nothing is allowed for good
    ("allow", "reject_once,allow_always", "selected allow_always-1."),
    ("allow", "allow_once,allow_once", "selected allow_once-0."),
    ("allow", "reject_once,reject_always", "cancelled -."),
    ("reject", "allow_once,reject_always,reject_once", "selected reject_once-2."),
    ("reject", "allow_once,reject_always", "selected reject_always-1."),
    ("reject", "allow_once", "cancelled -."),
])
def test_permission_is_given_by_the_kind_of_the_option(start, permissions, kinds, taken):
    client = run(start, "ask %s;end end_turn" % kinds, permissions=permissions)
    assert client.status == 0
    assert client.text == taken


@pytest.mark.parametrize("method", ["fs/read_text_file", "fs/write_text_file", "terminal/create", "_vendor/thing"])
def test_what_we_do_not_offer_is_refused_and_the_turn_goes_on(start, method):
    client = run(start, "request %s;say done;end end_turn" % method)
    assert (client.status, client.text) == (0, "-32601done")


# --- trouble ----------------------------------------------------------------------

def test_an_error_for_an_answer_is_failure(start):
    client = run(start, "say part;fail 429 You are over your quota")
    assert client.status == 1
    assert client.stream == client.said
    assert "refused" in client.talk


def test_an_agent_that_wants_a_login_is_failure(start):
    client = run(start, "end end_turn", "login")
    assert client.status == 1
    assert client.messages[-1]["error"]["code"] == -32000
    assert "session/prompt" not in client.methods


@pytest.mark.parametrize("steps", ["say part;die 0", "say part;die 3", "piece {\"jsonr;die 1"])
def test_an_agent_that_ends_in_mid_turn_is_failure_and_its_last_bytes_are_kept(start, steps):
    client = run(start, steps)
    assert client.status == 1
    assert client.stream == client.said
    assert "ended before" in client.talk


def test_an_agent_that_ends_is_not_waited_for_when_its_child_holds_the_pipe(start, sandbox):
    started = time.monotonic()
    client = run(start, "child;say part;die 0")
    assert client.status == 1 and time.monotonic() - started < 3
    assert client.text == "part"
    for pid, line in sandbox.processes():   # of the run's tree: not for the client to end
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("steps, traits, words", [
    ("end end_turn", "version2", "version 2"),
    ("end end_turn", "nameless", "session"),
    ("answer {}", "", "stopReason"),
    ("answer null", "", "stopReason"),
    ("answer {\"stopReason\": 7}", "", "stopReason"),
    ("raw {\"jsonrpc\":\"2.0\",\"id\":3}", "", "stopReason"),
    ("raw {\"jsonrpc\":\"2.0\",\"id\":3,\"error\":null}", "", "stopReason"),
])
def test_nonsense_for_an_answer_is_an_error_that_the_stream_shows(start, steps, traits, words):
    client = run(start, steps, traits)
    assert client.status == 1
    assert words in client.messages[-1]["error"]["message"]
    assert client.stream.startswith(client.said)


def test_a_program_that_is_not_there_is_failure(start):
    client = run(start, "end end_turn", command=["/nonexistent/agent"])
    assert client.status == 3
    assert "/nonexistent/agent: cannot be run" in client.talk


def test_nonsense_passes_through_and_harms_nothing(start):
    lines = ["not json", "\\xff\\xfe\\x00", "", "[]", "null", "7", "\"id\"", "[{\"id\":2,\"result\":{\"stopReason\":\"x\"}}]",
             "{\"id\":[2],\"result\":{}}", "{\"id\":{},\"method\":[]}", "{\"id\":null,\"method\":\"session/request_permission\"}",
             "{\"id\":3,\"result\":{\"stopReason\":\"end_turn\"}} {\"id\":3}", "{\"id\":99,\"result\":{}}",
             "{\"id\":9,\"method\":\"session/request_permission\"}",
             "{\"id\":9,\"method\":\"session/request_permission\",\"params\":{\"options\":[7,{\"kind\":[]},{\"kind\":\"allow_once\"}]}}",
             "{\"id\":9,\"method\":{\"a\":1}}", "{\"id\":\"1\",\"error\":7}"]
    client = run(start, ";".join("raw " + line for line in lines) + ";nest 100000;say fine;end end_turn")
    assert (client.status, client.text) == (0, "fine")
    assert client.stream == client.said


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="nobody tells the memory of a process")
@pytest.mark.parametrize("what", ["long", "many"])
def test_memory_and_cpu_stay_small_whatever_comes(start, what, sandbox):
    size = 200 if what == "long" else 50
    client = run(start, "%s %d;measure cost.json;say end;end end_turn" % (what, size))
    cost = json.loads((sandbox.work / "cost.json").read_text())
    assert client.status == 0
    assert client.text == "end"
    assert len(client.stream) > size * 1_000_000
    assert cost["peak_mb"] < 50, cost
    assert cost["cpu_s"] < 1.5, cost   # 0.3 s on a quiet machine


def test_a_full_disk_is_said_and_the_agent_is_ended(sandbox):
    client = Client(sandbox, "wait", command=["true"])
    client.end()
    env = dict(sandbox.env, FAKE_STEPS="wait", FAKE_TRAITS="last-words", FAKE_HEARD=str(client.folder / "heard"),
               FAKE_SAID=str(client.folder / "said"))
    with open("/dev/full", "wb") as full:
        ran = subprocess.run([sys.executable, str(PROGRAM), "acp-turn", str(client.folder), "--", sys.executable, str(FAKE)],
                             env=env, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, timeout=20)
    assert ran.returncode == 2
    assert b"no space left" in ran.stderr and b"Traceback" not in ran.stderr


# --- the end ----------------------------------------------------------------------

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_cancels_the_turn(start, number):
    client = start("say part;wait;end cancelled")
    client.await_heard("session/prompt")
    started = time.monotonic()
    client.process.send_signal(number)
    assert client.end() == 0
    assert time.monotonic() - started < 1.5
    assert client.heard[-1] == {"jsonrpc": "2.0", "method": "session/cancel", "params": {"sessionId": "fake-session"}}
    assert client.messages[-1]["result"] == {"stopReason": "cancelled"}


def test_a_permission_that_is_asked_for_after_a_signal_is_not_given(start):
    client = start("wait;ask allow_once;end cancelled")
    client.await_heard("session/prompt")
    client.process.send_signal(signal.SIGTERM)
    assert client.end() == 0
    assert client.text == "cancelled -."


def test_an_agent_that_is_deaf_to_everything_is_ended(start, sandbox):
    client = start("wait", "deaf", prompt=b"word " * 100_000)
    client.await_heard("session/new")
    time.sleep(0.3)
    client.process.send_signal(signal.SIGTERM)
    assert client.end() == 1
    assert not sandbox.processes()


def test_a_signal_before_the_session_ends_all(start, sandbox):
    client = start("end end_turn", command=["sleep", "100"])
    assert until_true(lambda: any("sleep" in line and "acp" not in line for _, line in sandbox.processes()))
    time.sleep(0.2)
    client.process.send_signal(signal.SIGTERM)
    assert client.end() == 1
    assert not sandbox.processes()


# --- an old session ---------------------------------------------------------------

@pytest.mark.parametrize("traits, method", [("load", "session/load"), ("load-late", "session/load"),
                                            ("resume", "session/resume"), ("load resume", "session/resume")])
def test_an_old_session_is_taken_up_and_its_past_is_not_in_the_stream(start, sandbox, traits, method):
    client = run(start, "say new;end end_turn", traits, session="old-one")
    assert client.status == 0
    assert client.methods == ["initialize", method, "session/prompt"]
    assert client.heard[1]["params"] == {"sessionId": "old-one", "cwd": str(sandbox.work), "mcpServers": []}
    assert client.heard[2]["params"]["sessionId"] == "old-one"
    assert client.text == "new"
    assert [message["id"] for message in client.messages if "id" in message] == [1, 2, 3]


def test_an_agent_that_cannot_take_up_a_session_is_failure(start):
    client = run(start, "end end_turn", session="old-one")
    assert client.status == 1
    assert "take up" in client.messages[-1]["error"]["message"]
    assert client.methods == ["initialize"]


def test_a_session_that_cannot_be_loaded_is_an_error_in_the_stream(start):
    client = run(start, "end end_turn", "load login", session="old-one")
    assert client.status == 1
    assert client.messages[-1]["error"]["code"] == -32000


# --- the stream as events -----------------------------------------------------------

def events(**message):
    return [event[:2] for event in selftalk.parse_acp_event({"jsonrpc": "2.0", **message})]


def test_tools_are_shown_with_what_they_are_given():
    call = {"sessionUpdate": "tool_call", "toolCallId": "1", "title": "Shell", "rawInput": {"command": "ls"}}
    asked = {"toolCall": {"title": "rm -r x"}, "options": []}
    over = {"sessionUpdate": "tool_call_update", "status": "completed", "toolCallId": "1", "content": [
        {"type": "content", "content": {"type": "text", "text": "a file"}}, {"type": "diff", "path": "x"}]}
    assert events(method="session/update", params={"update": call}) == [("begin", ""), ("tool", 'Shell {"command": "ls"}')]
    assert events(id=3, method="session/request_permission", params=asked) == [("begin", ""), ("tool", "rm -r x")]
    assert events(method="session/update", params={"update": over}) == [("tool-result", "a file")]
    assert events(method="session/update", params={"update": {**over, "status": "in_progress"}}) == []


@pytest.mark.parametrize("reason, event", [
    ("end_turn", ("done", "")), ("cancelled", ("error", "the turn was interrupted")), ("refusal", ("error", "ended: refusal"))])
def test_a_turn_ends_by_its_stop_reason(reason, event):
    assert events(id=3, result={"stopReason": reason}) == [event]


@pytest.mark.parametrize("message", [
    {}, {"params": 7}, {"result": []}, {"error": "x"}, {"error": {}}, {"params": {"update": []}}, {"result": {"stopReason": []}},
    {"params": {"update": {"sessionUpdate": ["x"], "_meta": 7}}}, {"result": {"sessionId": 7}},
    {"params": {"update": {"sessionUpdate": "agent_message_chunk"}}},
    {"params": {"update": {"sessionUpdate": "agent_message_chunk", "content": [7]}}},
    {"params": {"update": {"sessionUpdate": "tool_call_update", "status": "failed", "content": [7, {"content": 7}]}}},
    {"params": {"update": {"sessionUpdate": "tool_call", "rawInput": 7, "title": 7, "_meta": {"a": {"threadStatus": 7}}}}},
    {"method": "session/request_permission", "params": {"toolCall": 7}},
    {"result": {"stopReason": "end_turn", "usage": 7, "_meta": {"quota": {"model_usage": [7], "token_count": []}}}},
])
def test_nonsense_is_no_event_and_harms_nothing(message):
    assert not [event for event in selftalk.parse_acp_event(message) if event.text and event.kind == "text"]
