"""Room 12 and faults: callers that are killed at each step, workers that do not keep to the rules."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import selftalk

from sandboxes import FAKE_AGENT, PROGRAM, until_true
from test_pipes import DONE, INIT, RESULT, play, text_line   # noqa: F401: play is a fixture

# Kills itself at its INJECT_AT-th step: a file written, a line added, a folder made, a process started or ended.
INJECT = """
import os, sys
sys.path.insert(0, %r)
import selftalk
steps, at = [0], int(os.environ["INJECT_AT"])
def count(owner, name):
    real = getattr(owner, name)
    def counted(*args, **more):
        steps[0] += 1
        if steps[0] == at and not os.environ.get("INJECT_AFTER"):
            os.kill(os.getpid(), int(os.environ["INJECT"]))
        result = real(*args, **more)
        if steps[0] == at and os.environ.get("INJECT_AFTER"):
            os.kill(os.getpid(), int(os.environ["INJECT"]))
        return result
    setattr(owner, name, counted)
for name in ("write_file", "append_line", "start_detached", "remove_file", "end_processes"):
    count(selftalk, name)
count(os, "mkdir")
os._exit(selftalk.main(sys.argv[1:]))
""" % str(PROGRAM.parent)


def run_cut(sandbox, at, number, after, *words):
    """Runs selftalk until its step `at`: the exit status, which is 0 when there are fewer steps."""
    env = dict(sandbox.env, FAKE_STREAM=str(sandbox.folder / "script"), INJECT=str(int(number)), INJECT_AT=str(at), INJECT_AFTER="1" * after)
    ran = subprocess.run([sys.executable, "-c", INJECT, *words], env=env, cwd=sandbox.work, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert b"Traceback" not in ran.stderr, ran.stderr
    return ran.returncode


def open_marks(sandbox):
    return os.listdir(sandbox.state / "open") if (sandbox.state / "open").exists() else []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
@pytest.mark.parametrize("at", [7, 8, 9, 10, 12, 15, 16, 17, 18, 20, 22, 23, 25, 27])
def test_a_caller_cut_off_at_any_step_leaves_nothing_and_costs_no_answer(play, sandbox, number, at):
    play([INIT, "@sleep 0.2"] + DONE[1:])
    for after in (False, True):
        before = set(os.listdir(sandbox.state / "runs"))
        status = run_cut(sandbox, at, number, after, "run", "do it")
        new = [id for id in set(os.listdir(sandbox.state / "runs")) - before if (sandbox.run_folder(id) / "run.json").exists()]
        assert "Traceback" not in sandbox.run("list")[2]
        for id in new:
            got, result = sandbox.run_json("wait", id)
            assert (got, result["answer"]) in ((0, "It is done."), (1, "")), (status, result)
        assert until_true(lambda: not sandbox.processes())


def test_no_mark_of_a_run_that_was_never_made_is_left(play, sandbox):
    play(DONE)
    for at in range(3, 12):
        run_cut(sandbox, at, signal.SIGTERM, True, "run", "do it")
    sandbox.run("list")
    assert open_marks(sandbox) == []


def test_a_removed_folder_is_told_once(play, sandbox):
    started = play([INIT, "@hang"], start=True)
    assert until_true(lambda: (sandbox.run_folder() / "progress.json").exists())   # the last that is written
    subprocess.run(["rm", "-r", str(sandbox.run_folder())], check=True)
    assert started.wait(timeout=30) == 2 and not sandbox.processes()
    assert sandbox.run("list")[2] == "selftalk: no runs yet\n" and open_marks(sandbox) == []


def test_a_child_in_the_workers_own_session_is_ended_also_without_our_mark(play, sandbox):
    (sandbox.folder / "pid").write_text("")
    play(DONE)
    command = sandbox.folder / "fake"
    command.write_text("#!/bin/sh\nenv -i sleep 7779 &\necho $! > %s/pid\n" % sandbox.folder + command.read_text().split("\n", 1)[1])
    assert sandbox.run("run", "do it", env={"FAKE_STREAM": str(sandbox.folder / "script")})[0] == 0
    pid = int((sandbox.folder / "pid").read_text())
    is_left = pathlib.Path("/proc/%d" % pid).exists() and b"sleep" in pathlib.Path("/proc/%d/cmdline" % pid).read_bytes()
    if is_left:
        os.kill(pid, signal.SIGKILL)
    assert not is_left


@pytest.mark.parametrize("behind", [text_line("P.S.", "m2"), '{"type":"user","message":{"content":[{"type":"tool_result","content":"late"}]}}',
                                    "@lines 400 " + '{"type":"user","message":{"content":[{"type":"tool_result","content":"%s"}]}}' % ("x" * 1000)],
                         ids=["a message", "a result of a tool", "much"])
def test_what_stands_behind_the_result_does_not_undo_it(play, behind):
    status, result = play(DONE + [behind, "@exit 0"])
    assert (status, result["outcome"]) == (0, "answered") and result["answer"] in ("It is done.", "P.S."), result


def test_the_log_in_json_holds_only_what_was_printed(play, sandbox):
    play(DONE)
    assert [row["kind"] for row in sandbox.run_json("log", "1")[1]].count("stray") == 0


@pytest.mark.parametrize("session", ["\\ud83d", "../../../etc/passwd", "*", "[", "--fork-session", "-x\\u0000y", "x" * 5000])
def test_a_session_may_have_any_name(play, sandbox, session):
    line = '{"type":"system","subtype":"init","session_id":"%s","model":"m-1"}' % session
    assert play([line] + DONE[1:])[0] == 0
    status, _, err = sandbox.run("send", "1", "and now?", env={"FAKE_STREAM": str(sandbox.folder / "script")})
    assert "Traceback" not in err and status in (0, 1, 2), err


@pytest.mark.parametrize("number", range(3))
def test_two_waiters_a_stop_and_an_interrupt_agree(play, sandbox, number):
    started = play([INIT, text_line("half", "m0"), "@sleep 0.5"] + DONE[1:] + ["@hang"] * (number % 2), start=True)
    assert until_true(lambda: (sandbox.run_folder() / "events.jsonl").exists())
    time.sleep(0.2 * number)
    others = [sandbox.start(verb, "1") for verb in ("wait", "stop", "interrupt", "wait")]
    others[number].kill()
    for one in [*others, started]:
        assert b"Traceback" not in one.communicate(timeout=30)[1]
    first = sandbox.run_json("wait", "1")
    assert first == sandbox.run_json("wait", "1") and first[1]["outcome"] in ("answered", "stopped")
    assert not sandbox.processes() and open_marks(sandbox) == []


def test_of_four_prompts_at_once_one_is_taken_and_the_others_are_told(play, sandbox):
    assert play([INIT, "@sleep 0.3"] + DONE[1:])[0] == 0
    env = {"FAKE_STREAM": str(sandbox.folder / "script")}
    sends = [sandbox.start("send", "1", "next", env=env) for _ in range(4)]
    told = [(one.communicate(timeout=60), one.returncode) for one in sends]
    assert sorted(status for _, status in told) in ([0, 2, 2, 2], [0, 0, 2, 2], [0, 0, 0, 2], [0, 0, 0, 0]), told
    taken = sum(status == 0 for _, status in told)
    assert json.loads((sandbox.run_folder() / "run.json").read_text())["turn"] == 1 + taken


def test_a_terminal_agent_takes_over_from_a_headless_one_in_a_session(play, sandbox):
    limit = [INIT, text_line("did half"), RESULT.replace("false", "true") % "You've hit your 5-hour limit"]
    play(limit)
    text = (sandbox.home / ".config" / "selftalk" / "config.yaml").read_text()
    sandbox.config(text.replace("profiles:", "smart_route:\n  chain: [fake, two]\nprofiles:")
                   + "  two:\n    command: %s\n    args: [%s]\n    interface: demo\n" % (sys.executable, FAKE_AGENT))
    env = {"FAKE_STREAM": str(sandbox.folder / "script")}
    status, result = sandbox.run_json("run", "--failover", "do it", steps="ready; done by two; hold", env=env)
    assert (status, result["answer"], result["took_over"]["profile"]) == (0, "by two", "fake"), result


@pytest.mark.parametrize("kind", ["truncated", "deleted", "a pipe", "a folder"])
def test_a_stream_that_is_spoilt_holds_nobody_up(play, sandbox, kind):
    started = play([INIT, text_line("one", "m0"), "@sleep 1"] + DONE[1:], start=True)
    path = sandbox.run_folder() / "stdout.jsonl"
    assert until_true(lambda: path.exists() and b"one" in path.read_bytes())
    if kind == "truncated":
        os.truncate(path, 0)
    else:
        path.unlink()
        {"a pipe": os.mkfifo, "a folder": os.mkdir}.get(kind, lambda path: None)(path)
    _, err = started.communicate(timeout=30)
    assert b"Traceback" not in err and started.returncode in (0, 1)
    for verb in (("log", "1"), ("log", "-f", "1"), ("log", "1", "--json"), ("result", "1"), ("wait", "1")):
        assert "Traceback" not in sandbox.run(*verb)[2]
    assert not sandbox.processes()


def test_a_full_disk_costs_no_answer_and_the_run_is_closed_later(play, sandbox):
    disk = sandbox.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        sandbox.env["XDG_STATE_HOME"] = str(disk)
        started = play([INIT, "@sleep 1"] + DONE[1:], start=True)
        assert until_true(lambda: (disk / "selftalk/runs/1/stdout.jsonl").exists() and (disk / "selftalk/runs/1/stdout.jsonl").stat().st_size)
        with open(disk / "fill", "wb", buffering=0) as file:
            try:
                while file.write(b"z" * 4096) == 4096:
                    continue
            except OSError:
                pass
        out, err = started.communicate(timeout=30)
        assert b"Traceback" not in err and not sandbox.processes()
        (disk / "fill").unlink()
        status, result = sandbox.run_json("wait", "1")
        assert result["state"] == "over" and result["outcome"] in ("answered", "died", "failed") and "Traceback" not in str(result)
        assert out in (b"It is done.\n", b"")
    finally:
        subprocess.run(["umount", str(disk)])


def test_secrets_of_the_environment_are_in_no_file_and_no_argument(play, sandbox):
    sandbox.env["MY_TOKEN"] = "hunter2hunter2"
    started = play(DONE + ["@hang"], start=True, more="    env:\n      TOKEN:\n        from_env: MY_TOKEN\n")
    assert until_true(lambda: (sandbox.run_folder() / "events.jsonl").exists())
    assert not [line for _, line in sandbox.processes() if "hunter2" in line]
    started.communicate(timeout=30)
    assert not [path for path in sandbox.folder.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]


def test_an_agent_that_thinks_or_whose_helper_works_makes_progress(play):
    thought = '{"type":"system","subtype":"%s","tokens":%d}'
    script = [INIT] + [line for n in range(14) for line in (thought % (("thinking_tokens", "task_progress")[n % 2], n), "@sleep 0.25")]
    status, result = play(script + DONE[1:], "--stall", "2", "do it")
    assert (status, result["answer"]) == (0, "It is done."), result["what"]


def test_a_tool_that_streams_what_it_prints_makes_progress():
    update = {"method": "session/update", "params": {"update": {"sessionUpdate": "tool_call_update", "toolCallId": "t", "status": "in_progress",
              "content": [{"type": "content", "content": {"type": "text", "text": "line 1"}}]}}}
    events = list(selftalk.parse_events([json.dumps(update).encode() + b"\n"], "acp-messages"))
    assert [event for event in events if event.kind not in selftalk.NO_STEPS]


def test_long_lines_alone_are_progress_too(play):
    line = '{"type":"item.completed","item":{"type":"command_execution","aggregated_output":"%s"}}' % ("x" * 300_000)
    script = ['{"type":"thread.started","thread_id":"t"}'] + [line, "@sleep 0.25"] * 14
    script += ['{"type":"item.completed","item":{"type":"agent_message","text":"fin"}}', '{"type":"turn.completed"}']
    status, result = play(script, "--stall", "2", "do it", interface="codex")
    assert (status, result["answer"]) == (0, "fin"), result["what"]


def test_a_clock_that_was_set_back_gives_no_negative_times(play, sandbox):
    started = play([INIT, "@sleep 1"] + DONE[1:], start=True)
    assert until_true(lambda: (sandbox.run_folder() / "events.jsonl").exists())
    started.kill()
    started.communicate()
    path = sandbox.run_folder() / "run.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "asked_at": facts["asked_at"] + 86400, "started_at": facts["started_at"] + 86400}))
    status, result = sandbox.run_json("wait", "1")
    assert (status, result["answer"]) == (0, "It is done.") and result["seconds"] >= 0
    assert "-1" not in sandbox.run("list")[1].split("/")[0]
