"""Runs that nobody waits for, several at once, and what a person sees of them."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import xml.etree.ElementTree

import pytest

import selftalk

from sandboxes import PROGRAM, until_true

BUSY = "busy 0.3; done hello; hold"
LONG = "busy 60; done late; hold"


@pytest.fixture
def box(sandbox):
    """A sandbox with the scripted agent; what is not over at the end is stopped."""
    sandbox.fake_config()
    yield sandbox
    for run in sandbox.run_json("list", "--all")[1]:
        if run["state"] != "over":
            sandbox.run("stop", run["id"])


def tmux(box, *words):
    ran = subprocess.run(["tmux", "-L", "default", *words], env=box.env, capture_output=True, text=True)
    return ran.stdout.strip()


def on_terminal(box, *words, steps="", columns=80, env=None, press=()):
    """What selftalk writes on a terminal: (status, bytes). Each of `press` is (bytes to wait for, bytes to type then)."""
    pid, handle = pty.fork()
    if not pid:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        os.chdir(box.work)
        os.execve(sys.executable, [sys.executable, str(PROGRAM), *map(str, words)], dict(box.env, FAKE_STEPS=steps, **(env or {})))
    seen, press = b"", list(press)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if select.select([handle], [], [], 0.1)[0]:
            try:
                data = os.read(handle, 65536)
            except OSError:
                break
            if not data:
                break
            seen += data
        elif press and press[0][0] in seen:   # tmux takes keys that come at once for a paste
            os.write(handle, press.pop(0)[1])
    os.close(handle)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen


def drawn(data):
    """The lines that are left on a terminal that understands return, erase to the end of the line, and wrapping switched off."""
    lines, column = [""], 0
    for piece in re.findall(r"\x1b\[K|\x1b\[\?7[lh]|\r|\n|[^\x1b\r\n]+", data.decode()):
        if piece == "\n":
            lines.append("")
        if piece in ("\r", "\n"):
            column = 0
        elif piece == "\x1b[K":
            lines[-1] = lines[-1][:column]
        elif not piece.startswith("\x1b"):
            lines[-1] = lines[-1][:column] + piece + lines[-1][column + len(piece):]
            column += len(piece)
    return lines


# --- hosts

@pytest.mark.parametrize("env, limit_s", [
    ({}, float("inf")), ({"CLAUDECODE": "1"}, 110.0), ({"CLAUDECODE": "1", "BASH_DEFAULT_TIMEOUT_MS": "600000"}, 590.0),
    ({"CLAUDECODE": "1", "BASH_DEFAULT_TIMEOUT_MS": "5000"}, 4.0), ({"CLAUDECODE": "1", "BASH_DEFAULT_TIMEOUT_MS": "soon"}, 110.0),
    ({"CODEX_CI": "1"}, 290.0), ({"CODEX_THREAD_ID": "x"}, 290.0), ({"GEMINI_CLI": "1"}, 290.0), ({"OPENCODE": "1"}, 110.0),
    ({"OPENCODE": "1", "OPENCODE_EXPERIMENTAL_BASH_DEFAULT_TIMEOUT_MS": "30000"}, 24.0), ({"BASH_DEFAULT_TIMEOUT_MS": "5000"}, float("inf")),
    ({"GEMINI_CLI": "1", "CLAUDECODE": "1"}, 110.0)])
def test_a_wait_ends_before_the_host_would_end_it(env, limit_s):
    assert selftalk.host_limit_s(env) == limit_s


def test_inside_a_host_run_and_wait_end_in_time_and_say_how_to_go_on(box):
    host = {"CLAUDECODE": "1", "BASH_DEFAULT_TIMEOUT_MS": "6000"}   # long enough for a start on a busy machine
    began = time.monotonic()
    status, out, err = box.run("run", "do it", steps="busy 7; done hello; hold", env=host)
    assert (status, out) == (75, "") and time.monotonic() - began < 6.0
    command = re.fullmatch(r"  try: (python3 .*selftalk\.py wait 1)", err.splitlines()[-1]).group(1)
    went_on = subprocess.run(command, shell=True, env={**box.env, **host, "BASH_DEFAULT_TIMEOUT_MS": "60000"}, capture_output=True, text=True)
    assert (went_on.returncode, went_on.stdout) == (0, "hello\n")


def test_a_wait_that_is_asked_for_outranks_the_host(box):
    status, out, _ = box.run("run", "--wait", "60", "do it", steps="busy 2; done hello; hold",
                             env={"CLAUDECODE": "1", "BASH_DEFAULT_TIMEOUT_MS": "1000"})
    assert (status, out) == (0, "hello\n")


def test_a_worker_is_told_nothing_of_the_host(box):
    path = box.work / "dump"
    box.run("run", "do it", steps="dump %s; done x; hold" % path, env={"CLAUDECODE": "1", "GEMINI_CLI": "1"})
    assert not {"CLAUDECODE", "GEMINI_CLI"} & set(json.loads(path.read_text())["env"])


# --- names

def test_a_run_is_called_by_its_name_everywhere(box):
    box.run("run", "--name", "review", "do it", steps=BUSY)
    for words in (["wait"], ["result"], ["show"], ["log"], ["screen"], ["explain"], ["stop"]):
        assert box.run(words[0], "review")[0] == 0, words
    assert box.run_json("list")[1][0]["name"] == "review"
    status, _, err = box.run("wait", "revew")
    assert status == 2 and "run `revew` does not exist" in err


@pytest.mark.parametrize("name", ["7", "last", "", "-x", "a b", "ä", "x" * 41, "a/b", "a\nb"])
def test_a_name_that_could_be_mistaken_is_refused(box, name):
    status, out, err = box.run("run", "--name=" + name, "do it", steps=BUSY)
    assert (status, out) == (2, "") and "is no name" in err
    assert not box.run_folder(1).exists()


# --- several

def test_a_wait_for_several_prints_each_answer_below_its_heading(box):
    for words in ("one", "two"):
        box.run("run", "--detach", "do it", steps="busy 0.2; done %s; hold" % words)
    status, out, err = box.run("wait", "2", "1", "2")
    assert (status, out) == (0, "==> run 2, fake <==\ntwo\n==> run 1, fake <==\none\n")
    assert [run["answer"] for run in box.run_json("wait", "1", "2")[1]] == ["one", "two"]
    assert box.run_json("wait", "1")[1]["answer"] == "one"


def test_a_wait_for_any_brings_the_first_and_leaves_the_others(box):
    box.run("run", "--detach", "do it", steps=LONG)
    box.run("run", "--detach", "do it", steps="busy 0.5; done second; hold")
    status, out, _ = box.run("wait", "--any")
    assert (status, out) == (0, "second\n")
    assert [run["state"] for run in box.run_json("list")[1]] == ["running", "over"]
    assert box.run_json("wait", "--any", "1", "2")[1]["id"] == 2


def test_a_wait_for_several_that_is_over_too_early_says_how_to_go_on(box):
    box.run("run", "--detach", "do it", steps=LONG)
    box.run("run", "--detach", "do it", steps=BUSY)
    status, out, err = box.run("wait", "1", "2", "--wait", "3")
    assert (status, out) == (75, "==> run 2, fake <==\nhello\n")
    assert err.splitlines()[-1].endswith("selftalk.py wait 1")
    status, found = box.run_json("wait", "1", "2", "--wait", "0.2")
    assert status == 75 and [run["outcome"] for run in found] == ["running", "answered"]


def test_of_several_the_first_code_that_is_not_0_counts_and_trouble_with_one_is_told(box):
    box.run("run", "--detach", "do it", steps="exit 3")
    box.run("run", "--detach", "do it", steps=BUSY)
    assert box.run("wait", "1", "2")[0] == 1
    (box.run_folder(1) / "run.json").write_text("{}")
    status, out, err = box.run("wait", "2", "1")
    assert status == 2 and "written by another version" in err


def test_without_an_id_it_waits_for_what_goes_on_and_never_for_who_asks(box):
    assert box.run("wait") == (0, "", "selftalk: no run is going on\n")
    assert box.run_json("wait") == (0, [])
    box.run("run", "--detach", "do it", steps=LONG)
    inside = {"SELFTALK_RUN": str(box.run_folder(1))}
    assert box.run("wait", env=inside)[:2] == (0, "")


# --- detach

def test_a_detached_run_prints_its_number_and_needs_nobody(box):
    began = time.monotonic()
    status, out, err = box.run("run", "--detach", "do it", steps="ask; busy 1; done hello; hold")
    assert (status, out) == (0, "1\n") and err.splitlines()[-1].endswith("selftalk.py wait 1")
    assert time.monotonic() - began < 5
    assert until_true(lambda: json.loads((box.run_folder(1) / "run.json").read_text())["state"] == "over")
    assert until_true(lambda: not box.processes())
    assert box.run("result", "1")[:2] == (0, "hello\n")


def test_a_detached_run_in_json_is_a_run(box):
    status, found = box.run_json("run", "--detach", "do it", steps=BUSY)
    assert status == 0 and found["id"] == 1 and found["state"] == "running" and found["outcome"] is None


def test_what_a_killed_waiter_of_a_detached_run_leaves_is_done_by_the_next_wait(box):
    box.run("run", "--detach", "do it", steps="busy 2; done hello; hold")
    waiter = json.loads((box.run_folder(1) / "run.json").read_text())["caller"][0]
    os.kill(waiter, signal.SIGKILL)
    assert box.run("wait", "1")[:2] == (0, "hello\n")


# --- what is seen

def test_list_shows_what_runs_are_doing(box):
    box.run("run", "do it", steps=BUSY)
    box.run("run", "--detach", "--name", "long", "do it", steps=LONG)
    until_true(lambda: box.run_json("list")[1][1]["doing"] == "busy")
    status, out, _ = box.run("list")
    assert re.search(r"^ +1  answered  fake +0 min  ", out, re.M) and re.search(r"^ +2  busy +long \(fake\) +\d+ s  .*interrupt", out, re.M)
    found = box.run_json("list")[1]
    assert [run["doing"] for run in found] == ["answered", "busy"] and found[1]["seconds"] > 0 and "interrupt" in found[1]["deed"]


def test_a_row_of_the_list_fits_the_terminal(box):
    box.run("run", "--detach", "do it", steps="say %s; hold" % ("x" * 150))
    for columns in (60, 100):
        status, data = on_terminal(box, "list", columns=columns)
        row, = [line for line in drawn(data) if line.strip()]
        assert status == 0 and len(row) == columns and row.startswith("   1  ")


def test_a_worker_that_nobody_saw_die_is_not_shown_as_alive(box):
    box.run("run", "--wait", "0.5", "--keep", "do it", steps=LONG)
    facts = json.loads((box.run_folder(1) / "run.json").read_text())
    os.kill(facts["launcher"][0], signal.SIGKILL)
    for pid, line in box.processes():
        if "fake_agent" in line:
            os.kill(pid, signal.SIGKILL)
    assert box.run_json("list")[1][0]["doing"] == "died"


def test_list_shows_the_newest_and_says_how_many_it_leaves_out(box):
    box.run("run", "do it", steps=BUSY)
    facts = json.loads((box.run_folder(1) / "run.json").read_text())
    for number in range(2, 61):
        box.run_folder(number).mkdir()
        (box.run_folder(number) / "run.json").write_text(json.dumps(dict(facts, id=number)))
    status, out, err = box.run("list")
    assert len(out.splitlines()) == 50 and err == "selftalk: 10 older runs are not shown: --all shows them\n"
    assert [run["id"] for run in box.run_json("list", "--all")[1]] == list(range(1, 61))


def test_show_tells_each_turn(box):
    box.run("run", "--name", "n", "do\nit", steps=BUSY)
    box.run("run", "--detach", "--name", "m", "do it", steps=LONG)
    assert box.run("wait", "n", "n")[1] == "hello\n" and "==> run 1, n (fake) <==" in box.run("wait", "n", "m", "--wait", "0.2")[1]
    status, out, _ = box.run("show", "n")
    assert status == 0 and "answered" in out and "  turn 1: answered, done.md" in out and "    > do it\n    < hello\n" in out
    found = box.run_json("show", "n")[1]
    assert found["turns"][0]["outcome"] == "answered" and found["turns"][0]["answer"] == "hello" and found["doing"] == "answered"


def test_on_a_terminal_one_line_shows_what_goes_on_and_nothing_of_it_is_left(box):
    status, data = on_terminal(box, "run", "do it", steps="busy 2; done hello; hold")
    assert status == 0 and data.count(b"\x1b[?7l") >= 3 and re.search(rb"selftalk: run 1: busy, \d s: ", data)
    lines = [line for line in drawn(data) if line]
    assert lines[1:] == ["hello", lines[-1]] and lines[-1].startswith("selftalk: run 1: answered") and "started" in lines[0]


@pytest.mark.parametrize("words, env", [(["-q"], {}), ([], {"TERM": "dumb"})])
def test_without_a_terminal_that_can_or_without_talk_nothing_is_drawn(box, words, env):
    status, data = on_terminal(box, "run", *words, "do it", steps="busy 1; done hello; hold", env=env)
    assert status == 0 and b"\x1b" not in data and b"hello" in data


def test_ctrl_c_leaves_no_half_line(box):
    status, data = on_terminal(box, "run", "do it", steps=LONG, press=[(b"busy", b"\x03")])
    assert status == 130
    assert [line for line in drawn(data) if line][-2:] == [line for line in drawn(data) if "interrupted" in line or "try:" in line]


def test_heartbeats_come_once_a_minute_where_there_is_no_terminal():
    told = []
    watch = selftalk.Watch(told.append)
    first, second = selftalk.Run("/runs/7", {}), selftalk.Run("/runs/8", {})

    def beat(run, later_s, *doing):
        watch.told_s -= later_s
        watch.beat(run, selftalk.Doing(*doing))

    beat(first, 30.0, "busy", 1.0)
    assert not told
    beat(first, selftalk.HEARTBEAT_S, "busy", 62.0, "Bash npm test")
    beat(first, 0.0, "busy", 63.0)
    assert told.pop() == "run 7: busy, 1:02: Bash npm test" and not told and selftalk.HEARTBEAT_S <= 60
    beat(second, selftalk.HEARTBEAT_S, "ready", 3.0, "x")
    assert told.pop() == "run 7: busy, 1:03 · run 8: ready, 3 s: x"
    beat(second, selftalk.HEARTBEAT_S, "answered", 3.0)
    assert told.pop() == "run 7: busy, 1:03 · run 8: answered, 3 s"


# --- attach

def test_attach_shows_the_worker_and_passes_no_key_on(box):
    box.run("run", "--detach", "do it", steps="say LOOK-AT-ME; hold")
    status, data = on_terminal(box, "attach", press=[(b"LOOK-AT-ME", b"typed\r"), (b"LOOK-AT-ME", b"\x02d")])
    assert b"leave with C-b d" in data and b"LOOK-AT-ME" in data and b"detached" in data and status == 0
    assert "typed" not in box.run("screen", "1")[1]


def test_attach_can_write_when_that_is_asked_for(box):
    box.run("run", "--detach", "do it", steps="say LOOK-AT-ME; hold")
    on_terminal(box, "attach", "1", "--write", press=[(b"LOOK-AT-ME", b"typed\r"), (b"typed", b"\x02d")])
    assert "typed" in box.run("screen", "1")[1]


def test_attach_works_inside_another_tmux(box):
    box.run("run", "--detach", "do it", steps="say LOOK-AT-ME; hold")
    command = "%s %s attach 1" % (sys.executable, PROGRAM)
    tmux(box, "-f", "/dev/null", "new-session", "-d", "-x", "220", "-y", "60", command)
    try:
        assert until_true(lambda: "LOOK-AT-ME" in tmux(box, "capture-pane", "-p"))
    finally:
        tmux(box, "kill-server")


def test_who_looks_at_a_pane_beside_a_person_does_not_move_their_cursor_into_it(box):
    facts = tmux(box, "-f", "/dev/null", "new-session", "-d", "-x", "200", "-y", "50", "-P", "-F", "#{socket_path},#{pid},0 #{pane_id}", "cat").split()
    try:
        box.run("run", "--pane", "--detach", "do it", steps="say LOOK-AT-ME; hold", env={"TMUX": facts[0], "TMUX_PANE": facts[1]})
        assert box.run_json("list")[1][0]["place"] == "pane"
        status, data = on_terminal(box, "attach", "1", columns=200, press=[(b"LOOK-AT-ME", b"\x02"), (b"LOOK-AT-ME", b"d")])
        assert status == 0 and b"LOOK-AT-ME" in data and tmux(box, "display-message", "-p", "#{pane_id}") == facts[1]
        inside = {"TMUX": facts[0], "TMUX_PANE": facts[1]}
        status, data = on_terminal(box, "attach", "1", env=inside)
        assert status == 2 and b"add --write to go there" in data
        assert box.run("stop", "1")[0] == 0
    finally:
        tmux(box, "kill-server")


def test_a_screen_is_shown_as_text_with_its_colours_or_as_a_picture(box):
    box.run("run", "--detach", "do it", steps="say \x1b[31mred\x1b[0m <&> plain\\n\x1b[44mblue  \x1b[0m; hold")
    assert until_true(lambda: "red <&> plain" in box.run("screen", "1")[1])
    assert "\x1b" not in box.run("screen", "1")[1] and "\x1b[31mred\x1b[0m <&> plain" in box.run("screen", "1", "--ansi")[1]
    assert "\x1b[44mblue  \x1b[0m" in box.run("screen", "1", "--ansi")[1]   # with its spaces at the end
    picture = xml.etree.ElementTree.fromstring(box.run("screen", "1", "--svg")[1])
    assert "red" in [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "red <&> plain" in box.run_json("screen", "1")[1]["screen"]
    box.run("stop", "1")
    assert "red <&> plain" in box.run("screen", "1")[1]   # as it was last


@pytest.mark.parametrize("words, said", [(["attach"], "no run goes on"), (["attach", "1"], "does not exist")])
def test_there_has_to_be_something_to_attach_to(box, words, said):
    status, out, err = box.run(*words)
    assert (status, out) == (2, "") and said in err


def test_attach_says_why_it_cannot(box):
    box.run("run", "do it", steps=BUSY)
    assert "run 1: has no terminal now" in box.run("attach", "1")[2]
    box.run("run", "--detach", "do it", steps=LONG)
    status, _, err = box.run("attach", "2")
    assert status == 2 and "needs a terminal" in err and "attach -r -t" in err


# --- the user's own server

def test_a_session_on_the_users_server_is_called_selftalk_and_has_the_callers_environment(box):
    tmux(box, "-f", "/dev/null", "new-session", "-d", "-s", "mine", "sleep 100")
    path = box.work / "dump"
    box.run("run", "--socket", "default", "--detach", "do it", steps="dump %s; busy 60" % path, env={"SECRET": "obvious-fake"})
    try:
        assert tmux(box, "list-sessions", "-F", "#{session_name}").split() == ["mine", "selftalk"]
        assert tmux(box, "display-message", "-p", "-t", "selftalk", "#{window_width}x#{window_height}") == "200x50"
        assert until_true(path.exists) and until_true(path.read_text) and json.loads(path.read_text())["env"]["SECRET"] == "obvious-fake"
        assert box.run("run", "--socket", "default", "x", steps=BUSY)[0] == 2
        assert box.run("run", "--socket", "default", "--name", "other", "x", steps=BUSY)[:2] == (0, "hello\n")
        assert box.run("stop", "1")[0] == 0
        assert tmux(box, "list-sessions", "-F", "#{session_name}").split() == ["mine"]
        assert "obvious-fake" not in "".join(path.read_text() for path in box.run_folder(1).rglob("*") if path.is_file())
    finally:
        tmux(box, "kill-server")


def test_a_session_of_the_same_name_that_is_not_ours_is_never_replaced(box):
    tmux(box, "-f", "/dev/null", "new-session", "-d", "-s", "selftalk", "sleep 100")
    try:
        status, _, err = box.run("run", "--socket", "default", "x", steps=BUSY)
        assert status == 2 and "there is a session `selftalk` already" in err
        assert tmux(box, "list-sessions", "-F", "#{session_name}") == "selftalk" and not box.run_folder(1).exists()
    finally:
        tmux(box, "kill-server")


def test_a_session_of_ours_that_is_over_is_replaced(box):
    tmux(box, "-f", "/dev/null", "new-session", "-d", "-s", "mine", "sleep 100")
    launcher = box.folder / "selftalk" / "runs" / "9" / "launch.sh"
    launcher.parent.mkdir(parents=True)
    launcher.write_text("exit 3\n")
    tmux(box, "set-option", "-g", "remain-on-exit", "on", ";", "new-session", "-d", "-s", "selftalk", "sh", str(launcher))
    try:
        assert until_true(lambda: tmux(box, "list-panes", "-t", "selftalk", "-F", "#{pane_dead}") == "1")
        assert box.run("run", "--socket", "default", "x", steps=BUSY)[:2] == (0, "hello\n")
    finally:
        tmux(box, "kill-server")


def test_one_place_at_a_time(box):
    for words in (["--headless", "--session"], ["--socket", "x", "--pane"], ["--socket", "x", "-H"]):
        status, _, err = box.run("run", *words, "x")
        assert status == 2 and "more than one place" in err


# --- prune

def over_since(box, number, days):
    path = box.run_folder(number) / "run.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), ended_at=time.time() - days * 86400)))


def test_prune_removes_what_has_been_over_for_a_week(box):
    for days in (8, 6):
        box.run("run", "do it", steps=BUSY)
    over_since(box, 1, 8), over_since(box, 2, 6)
    assert box.run("prune", "--dry-run")[1] == "would be removed: run 1, fake, answered\n" and box.run_folder(1).exists()
    assert box.run_json("prune") == (0, [{"path": str(box.run_folder(1)), "what": "run 1, fake, answered"}])
    assert not box.run_folder(1).exists() and box.run_folder(2).exists()
    assert box.run("prune", "--older", "7d")[:2] == (0, "")


def test_prune_leaves_what_goes_on_and_what_it_cannot_read(box):
    box.run("run", "--detach", "do it", steps=LONG)
    (box.state / "runs" / "5").mkdir()
    (box.state / "runs" / "5" / "notes.txt").write_text("a person's")
    for number in (6, 8):
        (box.state / "runs" / str(number) / "turns").mkdir(parents=True)
    os.utime(box.run_folder(6), (1, 1))
    (box.state / "runs" / "7").symlink_to(box.work)
    (box.work / "keep").write_text("me")
    status, out, err = box.run("prune", "--older", "0")
    assert "taken it up" not in err and box.run_folder(8).exists()   # somebody may just be making it
    assert out == "removed: run 6, of which there is only a folder\n" and "runs/5: no readable run.json" in err
    assert box.run_folder(1).exists() and (box.run_folder(5) / "notes.txt").exists() and (box.work / "keep").exists()


def test_what_a_prune_that_was_killed_has_left_is_removed_by_the_next(box):
    box.run("run", "do it", steps=BUSY)
    os.rename(box.run_folder(1), box.state / "removed-3")
    assert box.run("prune")[1] == "removed: what was left of removed-3\n" and not (box.state / "removed-3").exists()


@pytest.mark.parametrize("ended_at", [None, -1, 1e99])
def test_a_run_with_an_odd_time_is_as_old_as_its_file(box, ended_at):
    box.run("run", "do it", steps=BUSY)
    path = box.run_folder(1) / "run.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), ended_at=ended_at)))
    assert box.run("prune")[:2] == (0, "")
    os.utime(path, (1, 1))
    assert box.run("prune")[1] == "removed: run 1, fake, answered\n"


def test_a_run_whose_facts_are_of_an_odd_kind_is_named_and_hides_no_other(box):
    """Each fact of a run and of its turn in turn: it is refused by name, or shown as well as it can be."""
    box.run("run", "do it", steps=BUSY)
    folder = box.run_folder(2)
    (folder / "turns").mkdir(parents=True)
    facts, turn = (json.loads((box.run_folder(1) / name).read_text()) for name in ("run.json", "turns/1.json"))
    refused = set()
    for odd in ([], {}, "x", 1.5, True, None, [1], {"a": 1}):
        for number, fact in enumerate([*facts, *turn]):
            ours, theirs = (facts, dict(turn, **{fact: odd})) if number >= len(facts) else (dict(facts, **{fact: odd}), turn)
            (folder / "run.json").write_text(json.dumps(ours))
            (folder / "turns" / "1.json").write_text(json.dumps(theirs))
            try:
                run = selftalk.Run(str(folder))
            except selftalk.Unusable as failure:
                assert "/runs/2: " in failure.what
                refused.add(fact)
                continue
            doing, ending = selftalk.read_doing(run), selftalk.read_ending(run)
            assert selftalk.run_line(run, doing, time.time()) and json.dumps(selftalk.doing_object(run, doing))
            assert json.dumps(selftalk.result_object(run, ending)) and selftalk.ending_lines(run, ending)
            assert list(selftalk.show_lines(run, doing, selftalk.read_turns(run))) and selftalk.order_tree([run])
            assert list(selftalk.find_leftovers(str(box.state), 0.0, print))
    assert {"workspace", "started_at", "launcher", "outcome", "seconds", "parent_folder", "took_over"} <= refused
    (folder / "run.json").write_text(json.dumps(dict(facts, workspace=[])))
    status, out, err = box.run("list")
    assert status == 0 and len(out.splitlines()) == 1 and err.endswith("runs/2: run.json has no usable `workspace`\n")


def test_a_prune_touches_nothing_that_only_looks_like_ours(box):
    folder = box.folder / "sockets" / ("tmux-%d" % os.getuid())
    folder.mkdir(mode=0o700)
    (folder / "selftalk-1").write_text("precious")
    (folder / "selftalk-2").mkdir()
    (folder / "selftalk-3").symlink_to("selftalk-1")
    (box.state / "runs").mkdir(parents=True)
    (box.state / "runs" / "4").write_text("a file")
    (box.state / "runs" / "5").symlink_to("/nonexistent")
    for path in folder.iterdir():
        os.utime(path, (1, 1), follow_symlinks=False)
    before = sorted(box.folder.rglob("*"))
    assert box.run("prune", "--older", "0")[:2] == (0, "")
    assert set(before) <= set(box.folder.rglob("*"))


def test_a_number_is_never_given_twice(box):
    box.run("run", "--detach", "do it", steps=LONG)
    box.run("run", "do it", steps=BUSY)
    assert "removed: run 2" in box.run("prune", "--older", "0")[1] and box.run("stop", "1")[0] == 0
    assert "removed: run 1" in box.run("prune", "--older", "0")[1]
    assert box.run("run", "--detach", "do it", steps=BUSY)[1] == "3\n"


def test_numbers_go_on_after_all_were_removed(box):
    box.run("run", "do it", steps=BUSY)
    box.run("run", "do it", steps=BUSY)
    assert box.run("prune", "--older", "0")[1].count("removed") == 2
    assert box.run("run", "--detach", "do it", steps=BUSY)[1] == "3\n"


def test_prune_ends_what_lives_of_a_run_whose_folder_is_gone(box):
    import shutil
    box.run("run", "--wait", "0.5", "do it", steps="child; " + LONG)
    shutil.rmtree(box.run_folder(1))
    alive = len(box.processes())
    assert alive > 2
    assert "whose folder is gone" in box.run("prune", "--dry-run")[1] and len(box.processes()) == alive
    assert "whose folder is gone" in box.run("prune")[1]
    assert until_true(lambda: not box.processes())


def test_prune_removes_dead_sockets_of_ours_only(box):
    import socket
    folder = box.folder / "sockets" / ("tmux-%d" % os.getuid())
    folder.mkdir(mode=0o700, exist_ok=True)
    servers = []
    for name in ("selftalk-9", "selftalk-10", "default"):
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(folder / name))
        os.utime(folder / name, (1, 1))
        servers.append(server)
    servers[1].listen()
    out = box.run("prune")[1]
    assert out == "removed: a socket of tmux, without a server\n" and sorted(os.listdir(folder)) == ["default", "selftalk-10"]


# --- the queue

def test_who_waits_for_its_own_run_is_not_at_work_and_who_was_first_is_first(tmp_path):
    me = list(selftalk.read_process(os.getpid()))

    def run(number, state, **facts):
        return selftalk.Run(str(tmp_path / "runs" / str(number)), {
            "state": state, "outcome": None, "machine": selftalk.name_machine(), "launcher": me, "caller": me, "max_parallel": 1, **facts})

    mine = run(4, "queued", parent_folder=str(tmp_path / "runs" / "1"))
    asks, works, first, gone = run(1, "running"), run(2, "running"), run(3, "queued"), run(2, "running", launcher=[1, "0"])
    assert selftalk.find_hindrance(mine, [asks, mine]) == ""
    assert selftalk.find_hindrance(mine, [asks, works, mine]) == "at work: 2, allowed: 1"
    assert selftalk.find_hindrance(mine, [asks, first, mine]) == "before it: 3, allowed: 1"
    assert selftalk.find_hindrance(mine, [asks, gone, mine, run(5, "queued")]) == ""
    assert selftalk.find_hindrance(mine, [asks, run(2, "running", outcome="answered"), mine]) == ""
    assert selftalk.find_hindrance(mine, [asks, run(2, "running", outcome="asks"), mine]) != ""


def test_what_is_too_much_is_queued_visibly_and_runs_in_its_turn(box):
    box.run("run", "--detach", "--max-parallel", "1", "do it", steps="busy 3; done one; hold")
    status, out, err = box.run("run", "--max-parallel", "1", "--wait", "0.3", "do it", steps="busy 0.1; done two; hold")
    assert status == 75 and "run 2: fake queued" in err and "at work: 1, allowed: 1" in err and "still queued" in err
    assert [run["doing"] for run in box.run_json("list")[1]] == ["busy", "queued"]
    assert box.run("wait", "2", steps="done two; hold")[:2] == (0, "two\n")
    assert box.run("result", "1")[1] == "one\n"
