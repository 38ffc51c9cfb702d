"""Room 12: workers without a terminal, by a scripted agent that plays streams; and how a stream is read from its end."""
import json
import os
import signal
import sys
import types

import pytest

import selftalk
from sandboxes import ROOT, until_true
from selftalk import AGENTS, EVENT_FORMATS, PipedWorker, Said, fold_event, parse_events, read_lines, render_events

FAKE = ROOT / "tests" / "fake_stream.py"
STREAMS = ROOT / "tests" / "streams"
SAMPLES = sorted(path for path in STREAMS.glob("*/*.jsonl"))
assert SAMPLES, "no streams in %s" % STREAMS
STATES = {"answered": "ready", "failed": "failed", "limited": "limited", "login": "login", "busy": "busy", "empty": "unknown"}
INIT = '{"type":"system","subtype":"init","session_id":"s-1","model":"m-1"}'
RESULT = '{"type":"result","subtype":"success","is_error":false,"result":"%s","total_cost_usd":0.5,"usage":{"input_tokens":1,"output_tokens":2}}'


def text_line(text, id="m1"):
    return json.dumps({"type": "assistant", "message": {"id": id, "content": [{"type": "text", "text": text}]}})


def fold(lines, format):
    said = Said(cost_usd=0.0)
    for event in parse_events(lines, format):
        said = fold_event(said, event)
    return said


def name_of(path):
    return "%s/%s" % (path.parent.name, path.stem)


# --- formats: room 6 ----------------------------------------------------------------

@pytest.mark.parametrize("path", SAMPLES, ids=name_of)
def test_a_recorded_stream_gives_what_lies_beside_it(path):
    expected = json.loads(path.with_suffix(".expected.json").read_text(encoding="utf-8"))
    said = fold(path.read_bytes().splitlines(keepends=True), path.parent.name)
    got = {**json.loads(json.dumps(said._asdict())), "cost_usd": said.cost_usd or None,
           "error": said.error if said.state != "busy" or said.denied else ""}
    got["state"] = "busy" if said.state == "ready" and said.has_tasks else said.state
    assert {name: got[name] or None for name in expected} == {name: value or None for name, value in expected.items()}


@pytest.mark.parametrize("path", SAMPLES, ids=name_of)
def test_a_stream_that_comes_line_by_line_is_understood_the_same(path):
    lines, said = path.read_bytes().splitlines(keepends=True), Said(cost_usd=0.0)
    for line in lines:
        for event in parse_events([line], path.parent.name):
            said = fold_event(said, event)
    assert said == fold(lines, path.parent.name)


@pytest.mark.parametrize("name, deeds", [
    ("claude-stream/answered-tool-fails", ["I try it.", "Bash echo oops >&2; exit 3 Run a command 600000", "The command failed with 3."]),
    ("codex-exec/answered-tool-fails", ["I try it.", "command_execution /bin/bash -lc 'echo oops >&2; exit 3'",
                                        "The command failed with 3."]),
    ("gemini-stream/answered-tool-fails", ["I try it.", "run_shell_command echo oops >&2; exit 3 Run a command",
                                           "The command failed with 3."]),
    ("opencode-run/answered-tool-fails", ["I try it.", "bash echo oops >&2; exit 3 Run a command 3600000", "The command failed with 3."]),
    ("acp-messages/gemini-tool-allow", ["I shall run it.", "echo hi > made.txt; echo shown", "It r", "It ran."])])
def test_a_stream_tells_the_last_tool_called_or_words_said(name, deeds):
    said, got = Said(cost_usd=0.0), [""]
    for line in (STREAMS / (name + ".jsonl")).read_bytes().splitlines(keepends=True):
        for event in parse_events([line], name.split("/")[0]):
            said = fold_event(said, event)
            got += [said.deed] * (said.deed != got[-1])
    assert got[1:] == deeds


def test_of_words_whose_beginning_was_not_seen_the_last_line_is_the_deed():
    assert fold([b"first\n", b"last\n", b"\n"], "text").deed == "last"
    assert fold([text_line("first\nlast").encode()], "claude-stream").deed == "last"
    assert fold([INIT.encode(), text_line("first\nlast").encode()], "claude-stream").deed == "first\nlast"


@pytest.mark.parametrize("path", SAMPLES, ids=name_of)
def test_a_stream_can_be_shown(path):
    shown = "".join(render_events(parse_events(path.read_bytes().splitlines(keepends=True), path.parent.name)))
    said = fold(path.read_bytes().splitlines(keepends=True), path.parent.name)
    assert said.text.strip() in shown and "\x1b" not in shown
    assert not shown or shown.endswith("\n")


def test_every_format_has_streams_and_every_agent_a_format():
    assert {path.parent.name for path in SAMPLES} == set(EVENT_FORMATS)
    assert {row.pipe.format for row in AGENTS.values() if row.pipe} == set(EVENT_FORMATS) | {"text"}


ODD = [None, True, 0, -1.5, 1e300, "", "x", "\ud800", [], [1], [[]], [{}], {}, {"type": "text"}, {"text": 5}, [{"type": "text", "text": None}]]


@pytest.mark.parametrize("format", EVENT_FORMATS)
def test_nothing_that_an_agent_prints_makes_its_stream_unreadable(format):
    path = next(path for path in SAMPLES if path.parent.name == format)
    rows = [json.loads(line) for path in SAMPLES if path.parent.name == format for line in path.read_bytes().splitlines()[:30]
            if line.startswith(b"{")]
    assert rows, path

    def bend(value, odd):
        if not isinstance(value, dict):
            return
        for key, inner in list(value.items()):
            for wrong in odd:
                yield {**value, key: wrong}
            for bent in bend(inner, odd):
                yield {**value, key: bent}
            if isinstance(inner, list) and inner:
                for bent in bend(inner[0], odd):
                    yield {**value, key: [bent]}

    seen = set()
    for row in rows:
        shape = json.dumps(row, default=str)[:60]
        if shape in seen:
            continue
        seen.add(shape)
        for bent in bend(row, ODD):
            said = fold([json.dumps(bent).encode()], format)
            json.dumps(said._asdict())
            "".join(render_events(parse_events([json.dumps(bent).encode()], format)))


def test_stray_text_half_lines_and_foreign_bytes_are_no_news():
    lines = [b"Warning: something\n", b'{"type":"assi\n', b"\xff\xfe{}\n", b"[1]\n", b"12\n", b"\n", b'"x"\n', b"[" * 5000 + b"\n",
             INIT.encode() + b"\n", b'{"type":"assistant","message":{"content":[{"type":"text","text":"caf\xff"}]}}\n']
    said = fold(lines, "claude-stream")
    assert (said.session, said.text, said.state) == ("s-1", "caf\ufffd", "busy")


def test_what_is_shown_holds_no_control_characters_and_one_line_for_a_tool():
    shown = "".join(render_events([selftalk.Event("tool", "Bash \x1b[31mrm\nx" + "y" * 500), selftalk.Event("text", "a\x1b]0;t\x07b")]))
    assert "\x1b" not in shown and shown.count("\n") == 2 and "(" in shown


def test_a_thought_is_dimmed_where_the_terminal_can():
    assert "".join(render_events([selftalk.Event("thought", "hm"), selftalk.Event("text", "yes")], ("<", ">"))) == "<hm>\nyes\n"


# --- a file, read from its end --------------------------------------------------------

def test_lines_come_with_the_place_where_they_end(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"one\ntwo\nhalf")
    assert list(read_lines(str(path), 0, 100)) == [(4, b"one\n"), (8, b"two\n"), (12, b"half")]
    assert list(read_lines(str(path), 4, 100)) == [(8, b"two\n"), (12, b"half")]
    assert list(read_lines(str(tmp_path / "none"), 0, 100)) == []


@pytest.mark.parametrize("text", ["x" * 900_000, "\\" * 900_000, '"' * 900_000, "é" * 900_000, "\n\\\"é\u2028" * 200_000, "\\u00e9\\" * 100_000])
def test_a_line_too_long_is_still_json_and_says_how_much_is_missing(tmp_path, text):
    path = tmp_path / "f"
    line = json.dumps({"a": 1, "text": text, "z": 2}).encode() + b"\n"
    path.write_bytes(b'{"before": 1}\n' + line + b'{"after": 1}\n')
    (_, before), (end, cut), (_, after) = read_lines(str(path), 0, 500_000)
    row = json.loads(cut)
    assert (row["a"], row["z"]) == (1, 2) and len(cut) < 200_000
    assert "[%d bytes are left out here]" % (len(line) - (2 << 16)) in row["text"]
    assert end == 14 + len(line) and json.loads(after) == {"after": 1}


def worker_on(path, interface="claude", base=0):
    run = types.SimpleNamespace(facts={"agent": interface, "launcher": None, "session_id": "", "turn": 1, "form": "task", "place": "headless"},
                                path=lambda name: str(path), is_headless=True)
    worker = PipedWorker.__new__(PipedWorker)
    worker.run, worker.agent, worker.path = run, AGENTS[interface], str(path)
    worker.turn, worker.start, worker.offset = selftalk.Turn("", base, "taken"), base, base
    worker.said, worker.events, worker.size, worker.seen_bytes, worker.steps = Said(cost_usd=0.0), [], -1, -1, 0
    return worker


FILLER = {
    "claude": '{"type":"user","message":{"content":[{"type":"tool_result","content":"%s"}]}}' % ("x" * 1000),
    "codex": '{"type":"item.completed","item":{"type":"command_execution","aggregated_output":"%s"}}' % ("x" * 1000),
    "gemini": '{"type":"tool_result","output":"%s"}' % ("x" * 1000),
    "opencode": '{"type":"tool_use","sessionID":"s-1","part":{"tool":"bash","state":{"output":"%s"}}}' % ("x" * 1000),
}
LAST = {
    "claude": [text_line("first part", "m9"), text_line("last part", "m9"), RESULT % "last part"],
    "codex": ['{"type":"item.completed","item":{"type":"agent_message","text":"first part\\nlast part"}}', '{"type":"turn.completed"}'],
    "gemini": ['{"type":"message","role":"assistant","content":"first part\\n"}', '{"type":"message","role":"assistant","content":"last part"}',
               '{"type":"result","status":"success"}'],
    "opencode": ['{"type":"step_start","sessionID":"s-1"}', '{"type":"text","part":{"text":"first part"}}', '{"type":"text","part":{"text":"last part"}}',
                 '{"type":"step_finish","part":{"reason":"stop","cost":0.25}}'],
}
FIRST = {"claude": INIT, "codex": '{"type":"thread.started","thread_id":"s-1"}', "gemini": '{"type":"init","session_id":"s-1","model":"m-1"}',
         "opencode": '{"type":"step_start","sessionID":"s-1"}'}


@pytest.mark.parametrize("interface", FILLER)
def test_of_a_long_stream_only_the_end_is_read_and_the_session_at_its_beginning(tmp_path, interface):
    path = tmp_path / "stdout.jsonl"
    path.write_text("\n".join([FIRST[interface]] + [FILLER[interface]] * 3000 + LAST[interface]) + "\n")
    worker = worker_on(path, interface)
    said = worker.read_said()
    assert (said.state, said.text, said.session) == ("ready", "first part\nlast part", "s-1")
    assert worker.start > 2_000_000


@pytest.mark.parametrize("interface", FILLER)
def test_an_answer_longer_than_the_end_is_read_whole(tmp_path, interface):
    path, piece = tmp_path / "stdout.jsonl", "z" * 1000
    lines = {"claude": [text_line(piece * 900, "m9"), text_line("end", "m9"), RESULT % "end"],
             "codex": ['{"type":"item.completed","item":{"type":"agent_message","text":"%s\\nend"}}' % (piece * 900), '{"type":"turn.completed"}'],
             "gemini": ['{"type":"message","role":"assistant","content":"%s"}' % piece] * 900 + [
                 '{"type":"message","role":"assistant","content":"\\nend"}', '{"type":"result","status":"success"}'],
             "opencode": ['{"type":"step_start"}', '{"type":"text","part":{"text":"%s"}}' % (piece * 900), '{"type":"text","part":{"text":"end"}}',
                          '{"type":"step_finish","part":{"reason":"stop"}}']}[interface]
    path.write_text("\n".join([FIRST[interface]] + [FILLER[interface]] * 3000 + lines) + "\n")
    assert worker_on(path, interface).read_said().text == piece * 900 + "\nend"


@pytest.mark.parametrize("interface", FILLER)
def test_a_stream_read_while_it_grows_gives_the_same(tmp_path, interface):
    path = tmp_path / "stdout.jsonl"
    path.write_text("")
    worker = worker_on(path, interface)
    data = ("\n".join([FIRST[interface]] + [FILLER[interface]] * 50 + LAST[interface]) + "\n").encode()
    for at in range(0, len(data), 777):
        with path.open("ab") as file:
            file.write(data[at:at + 777])
        worker.read_said(False)
    assert worker.read_said(False).text == "first part\nlast part"


def test_a_cost_that_comes_in_steps_is_told_only_when_all_steps_were_read(tmp_path):
    path = tmp_path / "stdout.jsonl"
    path.write_text("\n".join([FIRST["opencode"]] + LAST["opencode"] * 2) + "\n")
    assert worker_on(path, "opencode").read_said().cost_usd == 0.5
    path.write_text("\n".join([FIRST["opencode"]] + [FILLER["opencode"]] * 3000 + LAST["opencode"]) + "\n")
    assert worker_on(path, "opencode").read_said().cost_usd is None


def test_an_earlier_turn_in_the_same_file_is_not_read(tmp_path):
    path = tmp_path / "stdout.jsonl"
    old = "\n".join([INIT, text_line("the old answer"), RESULT % "the old answer"]) + "\n"
    path.write_text(old + INIT + "\n")
    assert worker_on(path, "claude", len(old)).read_said().text == ""


# --- whole runs -------------------------------------------------------------------------

@pytest.fixture
def play(sandbox):
    """play(script, interface, *words) -> (status, the object of --json); the profile is `fake`."""
    def run(script, *words, interface="claude", start=False, more="", verb="run"):
        (sandbox.folder / "script").write_text(script if isinstance(script, str) else "\n".join(script) + "\n")
        command = sandbox.folder / "fake"
        command.write_text('#!/bin/sh\nexec %s %s "$@"\n' % (sys.executable, FAKE))
        command.chmod(0o755)
        sandbox.config("default_profile: fake\nprofiles:\n  fake:\n    command: %s\n    interface: %s\n    headless: true\n%s"
                       % (command, interface, more))
        env = {"FAKE_STREAM": str(sandbox.folder / "script")}
        words = words or ("do it",)
        return sandbox.start(verb, *words, env=env) if start else sandbox.run_json(verb, *words, env=env)
    return run


DONE = [INIT, text_line("It is done."), RESULT % "It is done."]


def test_a_headless_run_is_answered_and_nothing_of_it_is_left(play, sandbox):
    status, result = play(DONE, "do it")
    assert (status, result["outcome"], result["answer"], result["source"], result["place"]) == (0, "answered", "It is done.", "stdout", "headless")
    assert (result["session_id"], result["model"], result["cost_usd"], result["tokens"]) == ("s-1", "m-1", 0.5, {"input": 1, "output": 2})
    assert (sandbox.work / "prompt.seen").read_text() == "do it"
    assert result["state"] == "over" and not sandbox.processes()
    folder = sandbox.run_folder()
    assert all(not path.stat().st_mode & 0o077 for path in folder.rglob("*") if path.name != "exit")
    assert not list(sandbox.folder.glob("sockets/*/*"))   # no tmux at all


def test_tmux_is_not_needed(play, sandbox, tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    for name in ("sh", "cat", "mv"):
        (empty / name).symlink_to("/bin/" + name)
    sandbox.env["PATH"] = str(empty)
    status, result = play(DONE, "do it")
    assert (status, result["answer"]) == (0, "It is done."), result


@pytest.mark.parametrize("script, status, outcome, words", [
    (DONE + ["@exit 7"], 0, "answered", ""),                                                     # exit codes lie in both directions
    ([INIT, RESULT.replace("false", "true") % "made-up trouble"], 1, "failed", "made-up trouble"),
    ([INIT, "@stderr Error: it broke", "@exit 1"], 1, "failed", "it broke"),
    ([INIT, text_line("I begin"), "@exit 0"], 1, "failed", "status 0 and did not say that it was done"),
    (["@stderr first", "@stderr     at f (x.js:1)", "@exit 1"], 1, "failed", "first"),
    (["@exit 0"], 1, "failed", "it told no reason"),
    ([INIT, "@kill"], 1, "died", "137"),
    ([INIT, '{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":1900000000}}',
      RESULT.replace("false", "true") % "You've hit your 5-hour limit", "@exit 0"], 6, "limited", "5-hour limit"),
    ([INIT, RESULT.replace("false", "true") % "Not logged in · Please run /login"], 4, "login", "run /login"),
], ids=lambda value: value if isinstance(value, str) else None)
def test_the_stream_tells_how_it_ended_not_the_exit_status(play, script, status, outcome, words):
    got, result = play(script)
    assert (got, result["outcome"]) == (status, outcome), result
    assert words in (result["what"] or "")
    assert outcome != "limited" or result["resets_at"] == 1900000000


def test_half_a_last_line_counts_when_the_worker_has_ended(play):
    status, result = play("\n".join(DONE))   # without its line feed
    assert (status, result["answer"]) == (0, "It is done.")


def test_noise_between_the_events_costs_no_result(play):
    script = ["Loading…", INIT, "@raw fffe80", "", '{"type":', text_line("It is done."), "} broken {", RESULT % "It is done.", "bye"]
    status, result = play(script)
    assert (status, result["answer"]) == (0, "It is done."), result


def test_refused_tools_are_told(play):
    line = RESULT.replace('"usage"', '"permission_denials":[{"tool_name":"Bash"}],"usage"') % "I could not."
    status, result = play([INIT, text_line("I could not."), line])
    assert (status, result["denied"]) == (0, ["Bash"]) and "Bash" in result["what"]


def test_what_still_runs_in_the_background_is_waited_for(play):
    task = '{"type":"system","subtype":"background_tasks_changed","tasks":[%s]}'
    script = [INIT, task % '{"id":"t1"}', text_line("It runs."), RESULT % "It runs.", "@sleep 1", task % "", INIT,
              text_line("It ran.", "m2"), RESULT % "It ran."]
    status, result = play(script)
    assert (status, result["answer"]) == (0, "It ran.")


def test_a_worker_that_stays_after_its_answer_is_ended_with_its_children(play, sandbox):
    status, result = play(["@child"] + DONE + ["@hang"])
    assert (status, result["answer"]) == (0, "It is done.") and not sandbox.processes()


def test_the_caller_may_be_killed_and_anyone_can_wait(play, sandbox):
    started = play([INIT, "@sleep 1.5"] + DONE[1:], start=True)
    assert until_true(lambda: (sandbox.run_folder() / "stdout.jsonl").exists() and (sandbox.run_folder() / "stdout.jsonl").stat().st_size)
    started.send_signal(signal.SIGKILL)
    started.communicate()
    waiters = [sandbox.start("wait", "1", "--json") for _ in range(3)]
    answers = [json.loads(waiter.communicate(timeout=30)[0])["answer"] for waiter in waiters]
    assert answers == ["It is done."] * 3
    assert sandbox.run_json("result", "1")[1]["answer"] == "It is done."


def test_a_host_that_kills_all_of_its_callers_group_does_not_reach_the_worker(play, sandbox):
    play(DONE)
    (sandbox.folder / "script").write_text("\n".join([INIT, "@sleep 1.5"] + DONE[1:]) + "\n")
    started = sandbox.start("run", "do it", env={"FAKE_STREAM": str(sandbox.folder / "script")}, start_new_session=True)
    stream = sandbox.run_folder(2) / "stdout.jsonl"
    assert until_true(lambda: stream.exists() and stream.stat().st_size)
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()
    assert sandbox.run_json("wait", "2")[1]["answer"] == "It is done."


def test_what_a_killed_caller_left_is_collected_by_the_next_call(play, sandbox):
    started = play([INIT, "@sleep 0.5"] + DONE[1:], start=True)
    assert until_true(lambda: (sandbox.run_folder() / "events.jsonl").exists())
    started.send_signal(signal.SIGKILL)
    started.communicate()
    assert until_true(lambda: (sandbox.run_folder() / "exit").exists())
    assert "collected: answered" in sandbox.run("list")[2]
    assert sandbox.run_json("result", "1")[1]["answer"] == "It is done."


def test_stop_ends_it_with_all_it_started_and_twice_is_no_harm(play, sandbox):
    started = play([INIT, "@child", "@hang"], start=True)
    assert until_true(lambda: any("7777" in line for _, line in sandbox.processes()))
    assert sandbox.run("stop", "1")[0] == 0 and not [line for _, line in sandbox.processes() if "7777" in line]
    assert sandbox.run("stop", "1")[0] == 0
    assert started.wait(timeout=30) == 1 and b"stopped" in started.stderr.read()


def test_no_progress_is_a_stall_that_tells_what_it_said_last_and_retries_are_none(play, sandbox):
    retry = '{"type":"system","subtype":"api_retry","attempt":%d,"error":"overloaded"}'
    script = [INIT] + [line for n in range(1, 61) for line in (retry % n, "@sleep 0.2")] + ["@hang"]
    status, result = play(script, "--stall", "2", "do it")
    assert (status, result["outcome"]) == (7, "stalled") and "overloaded" in result["what"]
    assert retry % 60 not in (sandbox.run_folder() / "stdout.jsonl").read_text()   # it did not wait for their end
    assert sandbox.run("stop", "1")[0] == 0


def test_events_are_progress_also_when_nothing_is_said(play):
    tool = '{"type":"assistant","message":{"id":"m%d","content":[{"type":"tool_use","name":"Bash","input":{"command":"step %d"}}]}}'
    script = [INIT] + [line for n in range(12) for line in (tool % (n, n), "@sleep 0.3")] + DONE[1:]
    status, result = play(script, "--stall", "2", "do it")
    assert (status, result["answer"]) == (0, "It is done."), result


def test_retries_are_no_progress_also_behind_many_events(play, sandbox):
    tool = '{"type":"assistant","message":{"id":"m%d","content":[{"type":"tool_use","name":"Bash","input":{"command":"step %d"}}]}}'
    retry = '{"type":"system","subtype":"api_retry","attempt":%d,"error":"overloaded"}'
    script = [INIT] + [tool % (n, n) for n in range(60)] + [line for n in range(1, 61) for line in (retry % n, "@sleep 0.2")] + ["@hang"]
    status, result = play(script, "--stall", "2", "do it")
    assert (status, result["outcome"]) == (7, "stalled")
    assert retry % 60 not in (sandbox.run_folder() / "stdout.jsonl").read_text()
    assert sandbox.run("stop", "1")[0] == 0


def test_the_same_step_again_and_again_is_progress(play):
    step = ['{"type":"item.started","item":{"type":"command_execution","command":"tail log"}}', "@sleep 0.2",
            '{"type":"item.completed","item":{"type":"command_execution","aggregated_output":"building"}}']
    script = ['{"type":"thread.started","thread_id":"t-1"}'] + step * 22 + [
        '{"type":"item.completed","item":{"type":"agent_message","text":"built"}}', '{"type":"turn.completed","usage":{"input_tokens":7}}']
    status, result = play(script, "--stall", "2", "do it", interface="codex")
    assert (status, result["answer"], result["tokens"]) == (0, "built", {"input": 7}), result


def test_what_a_worker_says_cannot_speak_to_the_terminal(play, sandbox):
    hostile = "\\u001b]0;x\\u0007sh\\nselftalk: run 9: answered"
    line = RESULT.replace('"usage"', '"permission_denials":[{"tool_name":"%s"}],"usage"' % hostile) % "It is done."
    play([INIT, text_line("It is done."), line])
    _, out, err = sandbox.run("result", "1")
    assert "\x1b" not in out + err and "\nselftalk: run 9" not in err
    play([INIT, '{"type":"system","subtype":"api_retry","error":"%s"}' % hostile, "@exit 1"])
    _, out, err = sandbox.run("result", "2")
    assert "\x1b" not in out + err and "\nselftalk: run 9" not in err


@pytest.mark.parametrize("end", ["interrupt", "late"])
def test_what_was_said_before_much_else_is_not_lost(play, sandbox, end):
    script = [INIT, text_line("I found the bug.")] + [FILLER["claude"]] * 900 + ["@hang"]
    if end == "late":
        status, result = play(script, "--max-time", "2", "do it")
        assert (status, result["outcome"]) == (8, "late")
        assert json.loads((sandbox.run_folder() / "turns" / "1.json").read_text())["said"] == "I found the bug."
        return
    started = play(script, start=True)
    assert until_true(lambda: (sandbox.run_folder() / "stdout.jsonl").exists()
                      and (sandbox.run_folder() / "stdout.jsonl").stat().st_size > 900_000)
    assert sandbox.run_json("interrupt", "1")[1]["answer"] == "I found the bug."
    assert started.wait(timeout=30) == 1


def test_a_headless_talk_whose_caller_was_killed_is_collected(play, sandbox):
    started = play([INIT, "@sleep 0.5"] + DONE[1:], "--keep", "do it", start=True)
    assert until_true(lambda: (sandbox.run_folder() / "events.jsonl").exists())
    started.send_signal(signal.SIGKILL)
    started.communicate()
    assert until_true(lambda: (sandbox.run_folder() / "exit").exists())
    sandbox.run("list")
    assert sandbox.run_json("list")[1][0]["state"] == "over"


def test_a_headless_run_has_no_screen_to_explain(play, sandbox):
    play(DONE)
    status, _, err = sandbox.run("explain", "1")
    assert status == 2 and "has no screen" in err and "log 1" in err


def test_the_verb_of_a_launcher_is_no_verb_for_a_person(sandbox):
    for words in (("acp-turn", "nonsense", "--", "x"), ("acp-turn", str(sandbox.folder / "7"), "--"), ("acp-turn", "/nowhere/7", "--", "x")):
        status, _, err = sandbox.run(*words)
        assert status == 2 and "Traceback" not in err, words


def test_tokens_of_a_session_are_told_for_each_turn(play, sandbox):
    def script(total):
        return ['{"type":"thread.started","thread_id":"01a1fca7-1fa6-7f82-8494-d22e21bb127a"}', '{"type":"item.completed","item":{"type":"agent_message","text":"yes"}}',
                '{"type":"turn.completed","usage":{"input_tokens":%d}}' % total]
    assert play(script(100), interface="codex")[1]["tokens"] == {"input": 100}
    folder = sandbox.home / ".codex" / "sessions" / "2026" / "11" / "21"
    folder.mkdir(parents=True)
    item = {"type": "event_msg", "payload": {"type": "item_completed", "item": {"type": "UserMessage", "content": [{"type": "text", "text": "x"}]}}}
    (folder / "rollout-1-01a1fca7-1fa6-7f82-8494-d22e21bb127a.jsonl").write_text(json.dumps(item) + "\n")
    assert play(script(250), "1", "go on", interface="codex", verb="send")[1]["tokens"] == {"input": 150}
    assert "exec\n--json\n--skip-git-repo-check\nresume\n01a1fca7" in (sandbox.work / "argv.seen").read_text()


@pytest.mark.parametrize("interface, begin, end", [("codex", "--mine", "--skip-git-repo-check"), ("opencode", "run", "--mine"), ("claude", "--settings", "--mine")])
def test_the_arguments_stand_where_each_agent_takes_them(play, sandbox, interface, begin, end):
    play([], interface=interface, more="    args: [--mine]\n")
    argv = (sandbox.work / "argv.seen").read_text().split("\n")
    argv = [word for word in argv if word not in ("-c", "check_for_update_on_startup=false") and not word.startswith("projects=")]
    assert (argv[0], argv[-1]) == (begin, end)


def test_a_plain_answer_is_whole_up_to_megabytes_and_says_when_it_is_not(play):
    status, result = play(["first"] + ["@lines 3000 " + "x" * 999], interface="generic")
    assert (status, len(result["answer"])) == (0, 6 + 3_000_000 - 1) and result["answer"].startswith("first")
    status, result = play(["first"] + ["@lines 20000 " + "x" * 999], interface="generic")
    assert status == 0 and result["answer"].startswith("[its beginning is in %s/stdout.jsonl]" % result["folder"])


def test_a_second_turn_is_not_judged_by_what_the_first_wrote_to_stderr(play, sandbox):
    line = 'level=ERROR small=false error.error="AI_APICallError: You exceeded your current quota, please check"'
    status, result = play(["@stderr " + line, "@hang"], interface="opencode")
    assert (status, result["outcome"]) == (6, "limited") and "exceeded your current quota" in result["what"]
    facts = json.loads((sandbox.run_folder() / "run.json").read_text())
    facts["session_id"] = "ses_1"
    (sandbox.run_folder() / "run.json").write_text(json.dumps(facts))
    status, result = play(["@sleep 1.5"] + LAST["opencode"], "1", "go on", interface="opencode", verb="send")
    assert (status, result["answer"]) == (0, "first part\nlast part"), result


def test_a_next_prompt_is_not_lost_to_a_worker_that_is_still_ending(play, sandbox):
    started = play(DONE + ["@hang"], "--keep", "do it", start=True)
    facts = sandbox.run_folder() / "run.json"
    assert until_true(lambda: facts.exists() and json.loads(facts.read_text())["outcome"] == "answered")
    started.send_signal(signal.SIGKILL)    # within the seconds that the worker is given to go by itself
    started.communicate()
    assert json.loads(facts.read_text())["state"] == "running" and sandbox.processes()
    status, result = play([INIT, text_line("And this too."), RESULT % "And this too."], "1", "go on", verb="send")
    assert (status, result["turn"], result["answer"]) == (0, 2, "And this too."), result
    assert (sandbox.work / "prompt.seen").read_text() == "go on" and not sandbox.processes()


def test_what_has_no_terminal_cannot_be_shown_in_one(sandbox):
    sandbox.config("profiles: {p: {command: cat, interface: acp}}\n")
    status, _, err = sandbox.run("run", "--session", "-p", "p", "do it")
    assert status == 2 and "nothing to show in a terminal" in err and not sandbox.run_folder().exists()


@pytest.mark.parametrize("cost", ["1" + "0" * 400, "1e999", "-1", '"x"', "NaN"])
def test_a_cost_that_is_none_breaks_nothing(play, sandbox, cost):
    script = [LAST["opencode"][0], LAST["opencode"][1], LAST["opencode"][3].replace("0.25", cost)]
    assert play(script, interface="opencode")[1]["cost_usd"] is None
    assert sandbox.run("list")[0] == 0


def test_a_child_that_writes_on_and_on_holds_up_nothing(play, sandbox):
    script = [INIT, "@flood", "@exit 1"]
    status, result = play(script)
    assert (status, result["outcome"]) == (1, "failed")   # and not past the 30 s that a call may take here
    assert sandbox.run("log", "1", timeout_s=60)[0] == 0


def test_a_message_of_many_pieces_is_put_together_at_once(play):
    lines = [text_line("%020d" % n, "m9") for n in range(20_000)]
    texts = [event for event in parse_events([line.encode() for line in lines], "claude-stream") if event.kind == "text"]
    assert len(texts) < 100   # each one is a copy of all that was said before
    status, result = play([INIT] + lines + [RESULT % "x"])
    assert (status, len(result["answer"])) == (0, 20_000 * 21 - 1)


def test_an_answer_with_its_middle_left_out_says_so(play):
    status, result = play([INIT, text_line("y" * 5_000_000), RESULT % ("y" * 5_000_000)])
    assert status == 0 and "bytes are left out here" in result["answer"] and result["folder"] + "/stdout.jsonl" in result["what"]


def test_a_long_result_is_read_also_while_its_agent_stays(play):
    status, result = play([INIT, text_line("y" * 400_000), RESULT % ("y" * 400_000), "@hang"], "--max-time", "20", "do it")
    assert (status, len(result["answer"])) == (0, 400_000), result["outcome"]


def test_past_its_time_it_is_ended(play, sandbox):
    status, result = play([INIT, text_line("I begin"), "@hang"], "--max-time", "1", "do it")
    assert (status, result["outcome"]) == (8, "late") and not sandbox.processes()


def test_a_wait_that_is_over_leaves_it_running(play, sandbox):
    status, result = play([INIT, "@hang"], "--wait", "0.5", "do it")
    assert (status, result["outcome"]) == (75, "running")
    assert sandbox.run("stop", "1")[0] == 0


def test_send_takes_up_the_session_in_a_new_process(play, sandbox):
    assert play(DONE)[0] == 0
    folder = sandbox.home / ".claude" / "projects" / "x"
    folder.mkdir(parents=True)
    session = json.loads((sandbox.run_folder() / "run.json").read_text())["session_id"]
    rows = [{"type": "user", "message": {"content": "do it"}}, {"type": "assistant", "message": {"content": [{"type": "text", "text": "x"}]}}]
    (folder / (session + ".jsonl")).write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, result = play([INIT, text_line("And this too."), RESULT % "And this too."], "1", "go on", verb="send")
    assert (status, result["turn"], result["answer"]) == (0, 2, "And this too."), result
    assert "--resume\n%s" % session in (sandbox.work / "argv.seen").read_text()
    assert (sandbox.work / "prompt.seen").read_text() == "go on"
    assert sandbox.run_json("result", "1", "--turn", "1")[1]["answer"] == "It is done."
    assert sandbox.run("result", "1", "--turn", "3")[0] == 2


def test_interrupt_ends_the_turn_with_what_was_said(play, sandbox):
    started = play([INIT, text_line("I begin"), "@hang"], start=True)
    assert until_true(lambda: (sandbox.run_folder() / "stdout.jsonl").exists()
                      and b"I begin" in (sandbox.run_folder() / "stdout.jsonl").read_bytes())
    status, result = sandbox.run_json("interrupt", "1")
    assert (status, result["outcome"], result["answer"]) == (0, "stopped", "I begin")
    assert started.wait(timeout=30) == 1 and not sandbox.processes()


def test_the_log_is_text_and_can_be_followed(play, sandbox):
    tool = '{"type":"assistant","message":{"id":"m0","content":[{"type":"tool_use","name":"Bash","input":{"command":"ls -la"}}]}}'
    started = play([INIT, tool, "@sleep 1.5"] + DONE[1:], start=True)
    assert until_true(lambda: (sandbox.run_folder() / "events.jsonl").exists())
    follower = sandbox.start("log", "-f", "1")
    out = follower.communicate(timeout=30)[0].decode()
    started.communicate(timeout=30)
    assert out.split("\n")[:4] == ["— s-1", "● Bash ls -la", "It is done.", "■ done 1 input, 2 output, 0.5 USD"]
    assert sandbox.run("log", "1")[1] == out
    assert [row["kind"] for row in sandbox.run_json("log", "1")[1]][0] in ("begin", "session")


def test_without_a_format_all_it_prints_is_its_answer(play):
    assert play(["one", '{"two": 2}', "@exit 0"], interface="generic")[1]["answer"] == 'one\n{"two": 2}'
    status, result = play(["one", "@stderr it broke", "@exit 3"], interface="generic")
    assert (status, result["outcome"]) == (1, "failed") and "it broke" in result["what"]


@pytest.mark.parametrize("words, what", [
    (("run", "-H", "--pane", "x"), "keep one"), (("run", "-H", "--session", "x"), "keep one"), (("-c", "-H", "-p", "fake"), "one of them")])
def test_what_cannot_be_headless_is_refused(play, sandbox, words, what):
    play(DONE)
    status, _, err = sandbox.run(*words)
    assert status == 2 and what in err


def test_twenty_at_once_are_all_right(play, sandbox):
    first = play([INIT, "@sleep 0.5"] + DONE[1:], start=True)
    env = {"FAKE_STREAM": str(sandbox.folder / "script")}
    others = [sandbox.start("run", "do it", env=env) for _ in range(19)]
    assert [one.communicate(timeout=60)[0] for one in [first, *others]] == [b"It is done.\n"] * 20


@pytest.mark.parametrize("script", [["@lines 20000 " + FILLER["claude"]], ["@long 30000000"]], ids=["20 MB of lines", "a line of 30 MB"])
def test_a_large_stream_takes_no_memory(play, sandbox, script):
    import resource
    _, small = play(DONE)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    status, result = play([INIT] + script + DONE[1:])
    grown_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before
    assert (status, result["answer"]) == (0, "It is done.") and os.path.getsize(result["folder"] + "/stdout.jsonl") > 20_000_000
    assert grown_kib < 16_000, "%d KiB more" % grown_kib


def test_the_arguments_of_a_headless_profile_are_shown(play, sandbox):
    play([], interface="codex")
    [profile] = sandbox.run_json("profiles")[1]
    assert profile["headless"] and profile["added_args"][-3:] == ["exec", "--json", "--skip-git-repo-check"]
