"""Faults, done for real: callers, workers, servers and machines that die, disks that fill, clocks that jump, and many at once."""
import concurrent.futures
import contextlib
import json
import os
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

import selftalk

from sandboxes import FAKE_AGENT, until_true
from test_talk import Talk, hurried_program

# Calls selftalk with another clock, and stops, ends or kills itself before the step that INJECT_AT names.
CALL = """
import os, sys, time
sys.path.insert(0, sys.argv.pop(1))
real_time, offset_s = time.time, float(os.environ.get("CLOCK_OFFSET", "0"))
if offset_s:
    time.time = lambda: real_time() + offset_s
import selftalk
seen, log = {}, os.environ.get("INJECT_LOG")
def count(owner, name):
    real = getattr(owner, name)
    def counted(*args, **more):
        seen[name] = seen.get(name, 0) + 1
        step = "%s %d" % (name, seen[name])
        if log:
            with open(log, "a") as file:
                file.write(step + "\\n")
        if step == os.environ.get("INJECT_AT"):
            os.kill(os.getpid(), int(os.environ["INJECT"]))
        return real(*args, **more)
    setattr(owner, name, counted)
if log or "INJECT" in os.environ:
    for name in ("write_file", "append_line", "remove_file", "run_command", "end_processes", "start_detached", "note_place"):
        count(selftalk, name)
    for name in ("send_keys", "paste"):
        count(selftalk.TmuxServer, name)
    for name in ("ask", "_attach", "__exit__"):
        count(selftalk.ControlClient, name)
    count(os, "mkdir")
os._exit(selftalk.main(sys.argv[1:]))
"""
MANY_S = 30.0   # nothing in here takes so long, however busy the machine is
ANSWER = "ok\n"


def soon(condition):
    """Waits for a condition that is to come true."""
    value = until_true(condition, MANY_S)
    assert value, "not within %g s" % MANY_S
    return value


class Box(Talk):
    """A sandbox with three agents: a task's (the default), a talk's (-c), and a headless one (-p piped)."""
    library = None   # the folder of a hurried selftalk.py, compiled once for all tests

    def __init__(self, folder):
        super().__init__(folder)
        self.errors = []
        self.write_config()

    def write_config(self, more="", fake="fake"):
        line = "  %s: {command: %s, args: [-S, %s], interface: %s%s}\n"
        self.config("default_profile: %s\n%sprofiles:\n  claude: {command: %s, interface: claude}\n" % (fake, more, self.folder / "claude")
                    + line % (fake, sys.executable, FAKE_AGENT, "demo", "") + line % ("piped", sys.executable, FAKE_AGENT, "generic", ", headless: true"))

    def start(self, *words, steps="", script="", stdin=subprocess.DEVNULL, env=None, cut=None, clock_s=0):
        """Starts selftalk, cut off by a signal before a step, or with a clock that is wrong by `clock_s`."""
        env = dict(self.env, FAKE_STEPS=steps, TALKER=script, CLOCK_OFFSET=str(clock_s), **(env or {}))
        if cut:
            env.update(INJECT=str(int(cut[0])), INJECT_AT=cut[1])
        return subprocess.Popen([sys.executable, "-S", "-c", CALL, str(self.library), *map(str, words)], env=env, cwd=self.work, stdin=stdin,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def finish(self, process):
        """(status, stdout, stderr) of what was started."""
        out, err = process.communicate(timeout=MANY_S)
        assert b"Traceback" not in err, err.decode()[-300:]
        return process.returncode, out.decode(), err.decode()

    def run(self, *words, **options):
        options.pop("timeout_s", None)
        return self.finish(self.start(*words, **options))

    def begin(self, *words, steps="", script="", **options):
        """A run that goes on and that nobody waits for; its number."""
        status, out, err = self.run(*words, "--wait", "0.05", steps=steps, script=script, **options)
        assert status == 75, (status, out, err)
        return max(int(path.name) for path in (self.state / "runs").iterdir())

    def has_begun(self, number=1):
        path = self.run_folder(number) / "events.jsonl"
        return path.exists() and "spawned" in path.read_text()

    def facts(self, run=1):
        try:
            return json.loads((self.run_folder(run) / "run.json").read_text()) if run != "last" else super().facts(run)
        except FileNotFoundError:
            return {}

    def change(self, number=1, **facts):
        """run.json as somebody else would have written it."""
        path = self.run_folder(number) / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))

    def clients(self, number=1):
        """How many look at a run's pane now."""
        ran = subprocess.run(["tmux", "-S", self.facts(number)["socket"], "list-clients"], capture_output=True)
        return len(ran.stdout.splitlines())

    def sockets(self):
        return [path for path in (self.folder / "sockets").rglob("*") if path.is_socket()]

    def marks(self):
        return os.listdir(self.state / "open") if (self.state / "open").exists() else []

    def left(self):
        """What is there of runs that are over: nothing, if all is well."""
        return self.processes() or self.sockets() or self.marks()

    def kill(self, *words):
        """Kills all processes in here whose command line holds one of the words."""
        for pid, line in self.processes():
            if any(word in line for word in words):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def kill_all(self):
        soon(lambda: self.kill("") or not self.processes())   # one that is killed may just have started another


@pytest.fixture(scope="module", autouse=True)
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    py_compile.compile(str(hurried_program(folder)))
    Box.library = folder
    return folder


@contextlib.contextmanager
def opened_box(folder):
    box = Box(folder)
    try:
        yield box
        until_true(lambda: not box.left(), 2.0 if box.left() else 0.0)
        assert not box.left()
    finally:
        box.kill("")


@pytest.fixture
def box(tmp_path):
    """A sandbox; afterwards nothing of its runs may be left: no process, no socket, no mark of an open run."""
    with opened_box(tmp_path) as opened:
        yield opened


@pytest.fixture
def stranger():
    """A process that is none of ours, and alive to the end."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    was_alive = process.poll() is None
    process.kill()
    process.wait()
    assert was_alive


def gate(box):
    """The step of a worker that waits for open_gate."""
    return "await %s/gate" % box.work


def open_gate(box):
    (box.work / "gate").touch()


# --- 1. a caller that is cut off ----------------------------------------------------------

FORMS = {
    "task": (("run", "do it"), {"steps": "ask; say hm; done ok; hold"}, "ok\n"),
    "talk": (("-c", "--once", "--here", "do it"), {"script": "say=fine"}, "fine\n"),
    "headless": (("run", "-p", "piped", "do it"), {"steps": "done ok; exit 0"}, "ok\n"),
}


def list_steps(box, form):
    """The steps of an uncut run; of its looks, whose number is never the same, only the first."""
    words, options, answer = FORMS[form]
    assert box.run(*words, **options, env={"INJECT_LOG": str(box.folder / "steps")})[:2] == (0, answer)
    steps = (box.folder / "steps").read_text().splitlines()
    return [step for step in steps if not (step.startswith("ask ") and int(step.split()[1]) > 8)]


def check_cut(folder, form, number, step):
    """Cuts a caller off before a step, and then another process has the answer, or there is no run, or one that is over."""
    (words, options, answer), name = FORMS[form], "%s %d" % (step, number)
    folder.mkdir()
    with opened_box(folder) as box:
        status, out, _ = box.run(*words, **options, cut=(number, step))
        if status == 0:   # it had fewer looks this time
            return
        assert status in ((-9,) if number == signal.SIGKILL else (130,)), (name, status)
        if box.facts():
            was_published = (box.run_folder() / "done.md").exists()
            status, out, err = box.run("wait", "1")
            is_stopped = (status, out) == (1, "") and box.facts()["outcome"] == "stopped"
            assert (status, out) == (0, answer) or is_stopped and not was_published, (name, status, out, err)
            assert box.log() in ([], ["do it"]), (name, box.log())
        else:
            assert box.run("wait", "1")[0] == 2, name
        assert not until_true(box.left, 0.0), (name, box.left())
        if sum(map(ord, step)) % 3 == 0:
            assert box.run(*words, **options)[:2] == (0, answer), name


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
@pytest.mark.parametrize("form", FORMS)
def test_a_caller_cut_off_at_any_step_leaves_nothing_and_costs_no_answer(tmp_path, form, number):
    (tmp_path / "uncut").mkdir()
    with opened_box(tmp_path / "uncut") as box:
        steps = list_steps(box, form)
    assert len(steps) > 20, steps
    must = r"note_place|paste|send_keys|start_detached" + "|end_processes|run_command [2-9]|__exit__" * (number == signal.SIGKILL)
    spread = 5 if number == signal.SIGKILL else 9   # by SIGTERM a caller ends by the same ways as by an error
    steps = [step for at, step in enumerate(steps) if at % spread == 1 or re.match(must, step) or os.environ.get("ALL_STEPS")]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        tried = [pool.submit(check_cut, tmp_path / step.replace(" ", "-"), form, number, step) for step in steps]
    troubles = [str(one.exception()) for one in tried if one.exception()]
    assert not troubles, "\n".join(troubles)


# --- 2. the tmux server goes ----------------------------------------------------------------

KILLERS = {
    "SIGKILL": lambda box: os.kill(box.facts()["server"][0], signal.SIGKILL),
    "kill-server": lambda box: subprocess.run(["tmux", "-S", box.facts()["socket"], "kill-server"], check=True),
}


@pytest.mark.parametrize("waiters", [0, 2])
@pytest.mark.parametrize("killer", KILLERS)
def test_a_tmux_server_that_is_killed_is_told_to_all_who_wait_and_to_who_comes_later(box, killer, waiters):
    box.begin("run", "do it", steps="busy 600")
    waiting = [box.start("wait", "1") for _ in range(waiters)]
    soon(lambda: box.clients() == waiters)
    KILLERS[killer](box)
    for status, out, err in [*map(box.finish, waiting), box.run("wait", "1"), box.run("result", "1")]:
        assert (status, out) == (1, "") and "died" in err, err
    assert not box.left()


@pytest.mark.parametrize("killer", KILLERS)
def test_what_was_published_before_the_server_was_killed_is_the_answer(box, killer):
    box.begin("run", "do it", steps="%s; done ok; hold" % gate(box))
    open_gate(box)
    soon(lambda: (box.run_folder() / "done.md").exists())
    KILLERS[killer](box)
    assert box.run("wait", "1")[:2] == (0, ANSWER) and not box.left()


@pytest.mark.parametrize("killer", KILLERS)
def test_a_talk_whose_server_was_killed_keeps_its_answers_and_can_be_taken_up(box, killer):
    assert box.run("-c", "--here", "first", script="say=one")[:2] == (0, "one\n")
    KILLERS[killer](box)
    assert box.run("result", "1")[:2] == (0, "one\n")
    assert box.run("list")[0] == 0
    waiter = box.start("send", "1", "second", script="busy=600")
    soon(lambda: box.log() == ["first", "second"] and box.facts()["state"] == "running")
    KILLERS[killer](box)
    status, out, err = box.finish(waiter)
    assert (status, out) == (1, "") and "died" in err
    assert box.run("send", "1", "third", script="say=three")[:2] == (0, "three\n")
    assert box.run("result", "1", "--turn", "1")[:2] == (0, "one\n")
    assert box.run("stop", "1")[0] == 0 and not box.left()


# --- 3. the worker goes ---------------------------------------------------------------------

@pytest.mark.parametrize("is_waited_for", [True, False], ids=["waited for", "alone"])
@pytest.mark.parametrize("words", [("fake_agent",), ("launch.sh",), ("fake_agent", "launch.sh")], ids="+".join)
@pytest.mark.parametrize("place", ["tmux", "headless"])
def test_a_worker_that_is_killed_has_died_and_leaves_nothing(box, place, words, is_waited_for):
    box.begin("run", *["-p", "piped"] * (place == "headless"), "do it", steps="busy 600; hold")
    soon(lambda: [line for _, line in box.processes() if "fake_agent" in line])
    waiter = box.start("wait", "1") if is_waited_for else None
    box.kill(*words)
    ended = [box.finish(waiter)] if waiter else []
    for status, out, err in [*ended, box.run("wait", "1")]:
        assert (status, out) == (1, "") and ("died" in err or "failed" in err), err
    assert not box.left()


def test_an_agent_that_is_killed_behind_its_summary_has_answered(box):
    box.begin("run", "do it", steps="%s; done ok; kill" % gate(box))
    open_gate(box)
    soon(lambda: (box.run_folder() / "exit").exists())
    assert box.run("wait", "1")[:2] == (0, ANSWER) and not box.left()


def test_a_talk_whose_agent_is_killed_in_its_turn_can_be_taken_up(box):
    waiter = box.start("-c", "--here", "first", script="busy=600")
    soon(lambda: box.log() == ["first"])
    os.kill(box.agent_pid(), signal.SIGKILL)
    status, out, err = box.finish(waiter)
    assert (status, out) == (1, "") and "died" in err
    assert box.run("send", "1", "second", script="say=two")[:2] == (0, "two\n")
    assert box.run("stop", "1")[0] == 0 and not box.left()


# --- 4. the machine was restarted -----------------------------------------------------------

def restart_machine(box, stranger, *numbers, **facts):
    """All processes are gone, and the pids of run.json are those of a stranger now, to the very start time."""
    box.kill_all()
    now = list(selftalk.read_process(stranger.pid))
    words = selftalk.name_machine().split()
    for number in numbers or (1,):
        known = {name: now for name in ("launcher", "server", "caller") if box.facts(number).get(name)}
        box.change(number, machine=" ".join([words[0], "0f0f0f0f-of-the-boot-before", words[2]]), **known, **facts)


def begin_turn_of(box, kind):
    """A run in the middle of a turn."""
    if kind == "talk":
        box.begin("-c", "--here", "first", script="busy=600")
        return
    box.begin("run", *["-p", "piped"] * (kind == "headless"), "do it", steps="busy 600")
    soon(box.has_begun)


@pytest.mark.parametrize("verb", ["wait", "list", "stop"])
@pytest.mark.parametrize("kind", ["task", "headless"])
def test_a_restart_in_the_middle_of_a_turn_is_a_death_whatever_is_asked_first(box, stranger, kind, verb):
    begin_turn_of(box, kind)
    restart_machine(box, stranger)
    status, out, _ = box.run(verb, *["1"] * (verb != "list"))
    assert status == {"wait": 1}.get(verb, 0)
    status, result = box.run_json("wait", "1")
    assert (status, result["state"]) == (1, "over") and result["outcome"] in ("died", "failed"), result
    assert box.run("list", "--json")[0] == 0 and box.run("stop", "1")[0] == 0
    status, _, err = box.run("send", "1", "again", steps="done ok")
    assert status == 2 and ("nothing can be typed" in err or "cannot take it up" in err), err
    assert not box.left()


@pytest.mark.parametrize("kind", ["task", "headless"])
def test_what_was_published_before_a_restart_is_the_answer(box, stranger, kind):
    box.begin("run", *["-p", "piped"] * (kind == "headless"), "do it", steps="%s; done ok; hold" % gate(box))
    soon(box.has_begun)
    open_gate(box)
    soon(lambda: (box.run_folder() / "done.md").exists())
    restart_machine(box, stranger)
    assert box.run("wait", "1")[:2] == (0, ANSWER)
    assert box.run("result", "1")[:2] == (0, ANSWER) and not box.left()


def test_a_talk_in_its_turn_at_a_restart_can_be_taken_up(box, stranger):
    waiter = box.start("-c", "--here", "first", script="busy=600")
    soon(lambda: box.log() == ["first"] and box.turn().get("delivery") == "taken")
    restart_machine(box, stranger)
    box.finish(waiter)
    assert box.run("wait", "1")[0] == 1
    assert box.run("send", "1", "second", script="say=two")[:2] == (0, "two\n")
    assert box.run("stop", "1")[0] == 0 and not box.left()


@pytest.mark.parametrize("first", [("list",), ("stop", "1"), ("send", "1", "second")], ids=lambda words: words[0])
def test_a_talk_that_had_answered_keeps_that_over_a_restart(box, stranger, first):
    assert box.run("-c", "--here", "first", script="say=one")[:2] == (0, "one\n")
    restart_machine(box, stranger)
    status, out, err = box.run(*first, script="say=two")
    assert (status, "two\n" in out) == (0, first[0] == "send"), err
    if first[0] != "send":
        assert box.run("result", "1")[:2] == box.run("wait", "1")[:2] == (0, "one\n")
        assert box.run("send", "1", "second", script="say=two")[:2] == (0, "two\n")
    assert box.run("result", "1", "--turn", "1")[:2] == (0, "one\n") and box.log() == ["first", "second"]
    assert box.run("stop", "1")[0] == 0 and not box.left()


@pytest.mark.parametrize("verb", ["wait", "stop"])
@pytest.mark.parametrize("step", ["run_command 2", "note_place 2"])
def test_a_run_that_was_starting_at_a_restart_is_over(box, stranger, step, verb):
    assert box.run("run", "do it", steps="hold", cut=(signal.SIGKILL, step))[0] == -9
    assert box.facts()["state"] == "starting"
    restart_machine(box, stranger)
    assert box.run(verb, "1")[0] == {"wait": 1, "stop": 0}[verb]
    assert box.facts()["state"] == "over" and not box.left()
    assert box.run("run", "again", steps="done ok; hold")[:2] == (0, ANSWER)


def test_a_queued_run_starts_after_a_restart(box, stranger):
    box.begin("run", "first", steps="hold")
    box.begin("run", "--max-parallel", "1", "second")
    assert box.facts(2)["state"] == "queued"
    restart_machine(box, stranger, 1, 2)
    assert "queued" in box.run("list")[1]
    assert box.run("wait", "2", steps="done ok; hold")[:2] == (0, ANSWER)
    assert box.run("wait", "1")[0] == 1 and not box.left()


@pytest.mark.parametrize("kind", ["task", "headless"])
def test_a_run_of_another_host_is_left_alone(box, stranger, kind):
    begin_turn_of(box, kind)
    restart_machine(box, stranger)
    box.change(machine="elsewhere-0123 0f0f0f0f-another-boot pid:[4026530000]")
    before = (box.run_folder() / "run.json").read_text()
    assert "elsewhere" in box.run("list")[1] and box.run("prune", "--older", "0")[0] == 0
    for words in (("wait", "1"), ("stop", "1"), ("result", "1"), ("send", "1", "hi"), ("interrupt", "1")):
        status, _, err = box.run(*words)
        assert status == 2 and ("another machine" in err or "not done with its turn" in err), (words, err)
    assert (box.run_folder() / "run.json").read_text() == before
    for path in box.sockets():
        path.unlink()
    (box.state / "open" / "1").unlink()


# --- 5. a folder that is half written ------------------------------------------------------------

def cut_file(path):
    os.truncate(path, path.stat().st_size // 2)


SPOILT = {
    "no run.json": lambda path: path.unlink(),
    "empty": lambda path: os.truncate(path, 0),
    "cut": cut_file,
    "another format": lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99})),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "unreadable": lambda path: path.chmod(0),
}


def write_over(box, number=1):
    """A run that is over, as run 1 was left, with another number."""
    shutil.copytree(box.run_folder(1), box.run_folder(number))
    box.change(number, id=number)


@pytest.mark.parametrize("is_open", [False, True], ids=["over", "open"])
def test_a_folder_that_cannot_be_read_is_named_and_left_alone(box, is_open):
    assert box.run("run", "do it", steps="done ok; hold")[0] == 0
    kinds = [kind for kind in SPOILT if kind != "unreadable" or os.getuid()]
    for number, kind in enumerate(kinds, 2):
        write_over(box, number)
        SPOILT[kind](box.run_folder(number) / "run.json")
        (box.state / "open" / str(number)).touch() if is_open else None
    before = sorted((box.state / "runs").rglob("*"))
    for number, kind in enumerate(kinds, 2):
        verb = ("wait", "stop", "result", "show", "send", "log")[number % 6]
        status, out, err = box.run(verb, number, *["hi"] * (verb == "send"))
        assert (status, out) == (2, "") and str(box.run_folder(number)) in err, (kind, verb, err)
    status, out, err = box.run("list")
    assert status == 0 and len(out.splitlines()) == 1 and all(str(box.run_folder(number)) in err for number in range(2, 2 + len(kinds)))
    assert box.run("prune")[0] == 0 and sorted((box.state / "runs").rglob("*")) == before
    assert box.run("run", "--name", "new", "do it", steps="done ok; hold")[:2] == (0, ANSWER)
    assert box.run("wait", "new")[:2] == (0, ANSWER)
    for mark in box.marks():
        (box.state / "open" / mark).unlink()


@pytest.mark.parametrize("name, text", [("turns/1.json", '{"turn": 1, "prom'), ("turns/1.json", "[]"), ("progress.json", '{"began": tr'),
                                        ("progress.json", '{"began": {}, "moved_s": "soon", "stirred_s": []}'), ("progress.json", "[1]"),
                                        ("progress.json", '{"moved_s": 1e999, "stirred_s": -1e9}'), ("asked", "\0"), ("prompt.md", "")])
def test_a_file_of_a_run_that_is_spoilt_costs_no_answer(box, name, text):
    box.begin("run", "do it", steps="%s; done ok; hold" % gate(box))
    (box.run_folder() / name).write_text(text)
    assert box.run("list")[0] == 0
    open_gate(box)
    assert box.run("wait", "1")[:2] == (0, ANSWER)


def test_a_talk_whose_turn_cannot_be_read_can_be_stopped(box):
    assert box.run("-c", "--here", "first", script="say=one")[:2] == (0, "one\n")
    box.begin("send", "1", "second [[busy=600]]")
    (box.run_folder() / "turns" / "2.json").write_text('{"turn": 2, "pro')
    assert box.run("wait", "1", "--wait", "1")[0] == 2 and box.run("list")[0] == 0
    assert box.run("stop", "1")[0] == 0 and box.run("result", "1")[0] == 1
    assert box.run("result", "1", "--turn", "1")[:2] == (0, "one\n")


# --- 6. a full disk ----------------------------------------------------------------------------------

@pytest.fixture
def disk(box):
    """A small disk that holds the state: fill() and free() it."""
    path = box.folder / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True).returncode:
        pytest.skip("may not mount")
    box.env["XDG_STATE_HOME"] = str(path)
    type(box).state = property(lambda self: path / "selftalk")

    def fill():
        with contextlib.suppress(OSError), open(path / "fill", "wb", buffering=0) as file:
            while file.write(b"z" * 4096):
                continue

    yield fill, lambda: (path / "fill").unlink()
    type(box).state = Talk.state
    box.kill("")
    subprocess.run(["umount", "-l", str(path)])


@pytest.mark.parametrize("steps", ["done ok; hold", "say The answer is ok.\\n\\n> ; hold"], ids=["summary", "screen"])
def test_a_disk_that_is_full_before_the_answer_was_read_does_not_cost_it(box, disk, steps):
    fill, free = disk
    box.begin("run", "do it", steps="busy 0.5; %s; %s" % (gate(box), steps))
    if steps.startswith("done"):   # it could not publish on a full disk
        open_gate(box)
        soon(lambda: (box.run_folder() / "done.md").exists())
    fill()
    open_gate(box)
    status, out, err = box.run("wait", "1")
    assert "ok" in out and "no space left" in err, (status, out, err)
    assert not box.processes()
    free()
    status, out, err = box.run("wait", "1")
    assert box.facts()["state"] == "over" and not box.left(), (status, out, err)


def test_nothing_is_started_on_a_full_disk_and_nothing_is_left(box, disk):
    fill, free = disk
    assert box.run("run", "do it", steps="done ok; hold")[0] == 0
    fill()
    status, out, err = box.run("run", "do it", steps="done ok; hold")
    assert (status, out) == (2, "") and "no space left" in err and not box.left()
    free()
    assert box.run("run", "do it", steps="done ok; hold")[:2] == (0, ANSWER)


# --- 7. a clock that is set ----------------------------------------------------------------------------

@pytest.mark.parametrize("clock_s", [-3600, 3600], ids=["back", "forward"])
@pytest.mark.parametrize("kind", ["task", "talk", "headless"])
def test_a_clock_that_is_set_in_mid_run_makes_nothing_late_or_stalled(box, kind, clock_s):
    limits = ("--max-time", "30m", "--stall", "20m")
    if kind == "talk":
        number = box.begin("-c", "--once", "--here", *limits, "do it", script="say=ok; busy=1")
    else:
        number = box.begin("run", *["-p", "piped"] * (kind == "headless"), *limits, "do it", steps=("ask; %s; done ok; hold" if kind == "task" else "%s; done ok") % gate(box))
    rows = box.run_json("list", clock_s=clock_s)[1]
    assert [0 <= row["seconds"] < 600 for row in rows] == [True] and rows[0]["outcome"] is None, rows
    assert "-" not in box.run("list", clock_s=clock_s)[1].split("/")[0]
    waiter = box.start("wait", number, clock_s=clock_s)
    open_gate(box)
    assert box.finish(waiter)[:2] == (0, ANSWER)
    result = box.run_json("result", number)[1]
    assert 0 <= result["seconds"] < 600, result
    assert "-" not in box.run("list")[1].split("/")[0]


def test_a_dialog_is_answered_also_when_the_clock_was_set_back(box):
    assert box.run("run", "do it", steps="ask; done ok; hold", cut=(signal.SIGKILL, "send_keys 1"))[0] == -9   # the key was not pressed
    assert box.run("wait", "1", "--wait", "20", clock_s=-3600)[:2] == (0, ANSWER)


def test_a_limit_of_time_holds_also_when_the_clock_was_set_back(box):
    box.begin("run", "--max-time", "2", "do it", steps="busy 600")
    status, _, err = box.run("wait", "1", clock_s=-3600)
    assert status == 8 and "late" in err and not box.left()


# --- 8. names --------------------------------------------------------------------------------------------

def test_of_two_starts_with_one_name_one_is_refused(box):
    starts = [box.start("run", "--name", "twin", "do it", steps="%s; done ok; hold" % gate(box)) for _ in range(4)]
    soon(lambda: sum(one.poll() is not None for one in starts) == 3)
    open_gate(box)
    told = sorted(map(box.finish, starts))
    assert [status for status, _, _ in told] == [0, 2, 2, 2] and told[0][1] == ANSWER
    assert all("has the name `twin`" in err and out == "" for _, out, err in told[1:])
    assert len(list((box.state / "runs").iterdir())) == 1


def test_a_name_means_the_newest_run_that_has_it_and_is_free_again_when_that_is_over(box):
    assert box.run("run", "--name", "mine", "do it", steps="done one; hold")[:2] == (0, "one\n")
    assert box.run("run", "--name", "mine", "do it", steps="done two; hold")[:2] == (0, "two\n")
    assert box.run("wait", "mine")[:2] == (0, "two\n") and box.run_json("list")[1][-1]["name"] == "mine"
    number = box.begin("run", "--name", "mine", "do it", steps="hold")
    status, out, err = box.run("run", "--name", "mine", "do it", steps="done no; hold")
    assert (status, out) == (2, "") and "run %d" % number in err
    assert box.run("stop", "mine")[0] == 0 and box.facts(number)["outcome"] == "stopped"
    assert box.run("result", "mine")[0] == 1


@pytest.mark.parametrize("kind", ["talk", "task", "headless", "starting"])
def test_a_name_of_a_run_that_died_unseen_is_free(box, kind):
    if kind == "talk":
        assert box.run("-c", "--here", "--name", "lost", "first", script="say=one")[0] == 0
    elif kind == "starting":
        assert box.run("run", "--name", "lost", "do it", steps="hold", cut=(signal.SIGKILL, "note_place 2"))[0] == -9
    else:
        box.begin("run", "--name", "lost", *["-p", "piped"] * (kind == "headless"), "do it", steps="busy 600")
    box.kill_all()
    assert box.run("run", "--name", "lost", "do it", steps="done found; hold")[:2] == (0, "found\n")
    assert box.run("wait", "lost")[:2] == (0, "found\n") and not box.left()


# --- 9. stop ---------------------------------------------------------------------------------------------

def test_two_stops_at_once_agree_and_end_all_who_wait(box):
    for _ in range(2):
        box.begin("run", "do it", steps="busy 600")
    waiting = [box.start("wait", "1"), box.start("wait", "--any", "1", "2"), box.start("wait", "--any", "--json")]
    soon(lambda: box.clients(1) == 3)
    stops = [box.finish(one) for one in [box.start("stop", "1"), box.start("stop", "1")]]
    assert [status for status, _, _ in stops] == [0, 0]
    assert sorted("over already" in err for _, _, err in stops) == [False, True], stops
    for status, out, err in map(box.finish, waiting):
        assert status == 1 and ("stopped" in err or json.loads(out)["outcome"] == "stopped"), (status, out, err)
    status, _, err = box.run("stop", "1")
    assert status == 0 and "over already" in err and box.facts(2)["state"] == "running"
    assert box.run("stop", "1", "2")[0] == 0 and not box.left()


def watches_death(process):
    """Whether a waiter has got so far that it watches its worker."""
    folder = "/proc/%d/fd" % process.pid
    with contextlib.suppress(OSError):   # one of its files was closed while we looked: then once more
        return process.poll() is not None or "anon_inode:[pidfd]" in [os.readlink(os.path.join(folder, name)) for name in os.listdir(folder)]
    return False


def is_held(process):
    """Whether a process is stopped, as by SIGSTOP."""
    with open("/proc/%d/stat" % process.pid) as file:
        return file.read().rpartition(") ")[2][0] == "T"


@pytest.mark.parametrize("words", [("run", "do it"), ("run", "-p", "piped", "do it"), ("run", "--max-parallel", "1", "do it")],
                         ids=["task", "headless", "queued"])
@pytest.mark.parametrize("when", ["before the spawn", "after it"])
def test_a_run_that_is_stopped_while_it_starts_never_comes_to_life(box, words, when):
    spawn, note = ("start_detached 1", "note_place 1") if "piped" in words else ("run_command 2", "note_place 2")
    caller = box.start(*words, steps="busy 600", cut=(signal.SIGSTOP, spawn if when.startswith("before") else note))
    soon(lambda: is_held(caller))
    status, _, err = box.run("stop", "1")
    assert status == 0 and "over already" not in err
    caller.send_signal(signal.SIGCONT)
    status, out, err = box.finish(caller)
    assert (status, out) == (1, "") and "was stopped while it was starting" in err
    assert box.facts()["outcome"] == "stopped" and not box.left()
    assert box.run("wait", "1")[0] == 1 and "over already" in box.run("stop", "1")[2]


# --- 10. the folder is gone ------------------------------------------------------------------------------

@pytest.mark.parametrize("what", ["run", "all"])
@pytest.mark.parametrize("kind", ["task", "headless"])
def test_a_folder_that_is_removed_ends_the_worker_of_who_waits(box, kind, what):
    begin_turn_of(box, kind)
    waiting = [box.start("wait", "1"), box.start("wait", "--any")]
    soon(lambda: box.clients() == 2 if kind == "task" else all(map(watches_death, waiting)))
    shutil.rmtree(box.run_folder() if what == "run" else box.state)
    for status, out, err in map(box.finish, waiting):
        assert (status, out) == (2, "") and "folder was removed" in err, err
    assert box.run("list")[:2] == (0, "") and not box.left()


@pytest.mark.parametrize("what", ["run", "all"])
@pytest.mark.parametrize("kind", ["task", "talk", "headless"])
def test_a_lost_worker_whose_folder_was_removed_is_ended_by_prune(box, stranger, kind, what):
    begin_turn_of(box, kind)
    shutil.rmtree(box.run_folder() if what == "run" else box.state)
    assert box.run("list")[:2] == (0, "") and box.processes()
    status, out, err = box.run("prune", "--dry-run")
    assert status == 0 and "whose folder is gone" in out and box.processes(), (out, err)
    for path in box.sockets():
        os.utime(path, (time.time() - 120, time.time() - 120))   # a young one may be of a run that starts
    status, out, err = box.run("prune")
    assert status == 0 and "whose folder is gone" in out, (out, err)
    assert not box.left()
    assert box.run("run", "do it", steps="done ok; hold")[:2] == (0, ANSWER) and box.processes() == []


# --- 11. no more than so many at once -------------------------------------------------------------------

def began(box, name):
    return (box.work / name).exists()


def worker_steps(box, name):
    """A worker that tells when it has begun and when it ends, and waits for the gate in between."""
    return "dump %s/%s.began; %s; dump %s/%s.ended; done %s; hold" % (box.work, name, gate(box), box.work, name, name)


def at_once(box, names):
    """How many workers have been at work at once, by their own times."""
    times = [(os.stat(box.work / (name + end)).st_mtime_ns, step) for name in names for end, step in ((".began", 1), (".ended", -1))]
    counts = [sum(step for _, step in sorted(times)[:number]) for number in range(len(times) + 1)]
    return max(counts)


@pytest.mark.parametrize("by", ["config", "option"])
def test_no_more_workers_than_allowed_are_at_work_and_all_come_to_their_turn(box, by):
    box.write_config(more="max_parallel: 2\n" * (by == "config"))
    names = ["n%d" % number for number in range(5)]
    starts = [box.start("run", *["--max-parallel", "2"] * (by == "option"), "do it", steps=worker_steps(box, name)) for name in names]
    soon(lambda: sum(began(box, name + ".began") for name in names) == 2 and len(box.marks()) == 5)
    doings = soon(lambda: [row["doing"] for row in box.run_json("list")[1] if "outcome" in row])
    assert sorted(doings)[:3] == ["queued"] * 3 or sorted(doings).count("queued") == 3, doings
    assert sum(began(box, name + ".began") for name in names) == 2
    open_gate(box)
    told = sorted(map(box.finish, starts))
    assert [(status, out) for status, out, _ in told] == [(0, name + "\n") for name in names], told
    assert sum("queued" in err and "its turn in the queue has come" in err for _, _, err in told) == 3
    assert at_once(box, names) <= 2 and not box.left()


def test_queued_runs_start_in_the_order_of_their_numbers(box):
    first = box.start("run", "--max-parallel", "1", "do it", steps=worker_steps(box, "n1"))
    soon(lambda: began(box, "n1.began"))
    names, starts = ["n1", "n2", "n3", "n4"], [first]
    for number, name in enumerate(names[1:], 2):
        starts.append(box.start("run", "--max-parallel", "1", "do it", steps=worker_steps(box, name)))
        soon(lambda: box.facts(number).get("state") == "queued")
    open_gate(box)
    assert [box.finish(one)[:2] for one in starts] == [(0, name + "\n") for name in names]
    assert sorted(names, key=lambda name: os.stat(box.work / (name + ".began")).st_mtime_ns) == names and at_once(box, names) == 1


@pytest.mark.parametrize("place", ["tmux", "headless"])
def test_a_queued_run_whose_caller_was_killed_is_started_by_who_waits_for_it_once(box, place):
    box.begin("run", "first", steps="%s; done first; hold" % gate(box))
    caller = box.start("run", *["-p", "piped"] * (place == "headless"), "--max-parallel", "1", "second", steps="done ok")
    soon(lambda: box.facts(2).get("state") == "queued" and (box.run_folder(2) / "turns" / "1.json").exists())
    caller.kill()
    box.finish(caller)
    waiting = [box.start("wait", "2", steps="done ok") for _ in range(3)]
    soon(lambda: box.facts(2)["caller"][0] in [one.pid for one in waiting])
    assert box.facts(2)["state"] == "queued" and box.run_json("list")[1][1]["doing"] == "queued"
    open_gate(box)
    assert box.run("wait", "1")[:2] == (0, "first\n")
    assert [box.finish(one)[:2] for one in waiting] == [(0, ANSWER)] * 3
    assert [event["event"] for event in box.events(2)].count("spawned") == 1


def test_a_queued_run_whose_profile_has_gone_says_so_and_waits_for_it(box):
    box.begin("run", "first", steps="%s; done first; hold" % gate(box))
    box.begin("run", "--max-parallel", "1", "second")
    box.write_config(fake="another")
    open_gate(box)
    assert box.run("wait", "1")[:2] == (0, "first\n")
    status, out, err = box.run("wait", "2", steps="done no; hold")
    assert (status, out) == (2, "") and "`fake`" in err, err
    assert not (box.run_folder(2) / "launch.sh").exists()
    box.write_config()
    assert box.run("wait", "2", steps="done ok; hold")[:2] == (0, ANSWER)


def test_a_run_that_asks_for_another_one_does_not_hold_it_up(box):
    parent = box.start("run", "--max-parallel", "1", "parent", steps="%s; done parent; hold" % gate(box))
    soon(box.has_begun)
    stranger = box.start("run", "--max-parallel", "1", "not inside", steps="done stranger; hold")
    soon(lambda: box.facts(2).get("state") == "queued")
    env = {"SELFTALK_RUN": str(box.run_folder(1)), "SELFTALK_DEPTH": "1"}
    assert box.run("run", "--max-parallel", "1", "child", steps="done child; hold", env=env)[:2] == (0, "child\n")
    open_gate(box)
    assert box.finish(parent)[:2] == (0, "parent\n") and box.finish(stranger)[:2] == (0, "stranger\n")


def test_a_queued_run_that_is_stopped_never_starts(box):
    box.begin("run", "first", steps="%s; done first; hold" % gate(box))
    caller = box.start("run", "--max-parallel", "1", "second", steps="done no; hold")
    soon(lambda: box.facts(2).get("state") == "queued" and box.facts(2)["caller"])
    waiter = box.start("wait", "--any", "2")
    assert box.run("stop", "2")[0] == 0
    for status, out, err in (box.finish(caller), box.finish(waiter)):
        assert (status, out) == (1, "") and "stopped" in err, err
    open_gate(box)
    assert box.run("wait", "1")[:2] == (0, "first\n") and box.run("wait", "2")[0] == 1
    assert not (box.run_folder(2) / "launch.sh").exists()


@pytest.mark.parametrize("number, step", [(signal.SIGKILL, "write_file 2"), (signal.SIGKILL, "run_command 1"), (signal.SIGKILL, "note_place 2"),
                                          (signal.SIGTERM, "write_file 5"), (signal.SIGTERM, "note_place 2")])
def test_a_waiter_that_is_cut_off_while_it_starts_a_queued_run_leaves_one_that_is_over_or_queued(box, number, step):
    box.begin("run", "first", steps="hold")
    box.begin("run", "--max-parallel", "1", "second")
    assert box.run("stop", "1")[0] == 0
    steps = "%s; done ok; hold" % gate(box)
    assert box.run("wait", "2", steps=steps, cut=(number, step))[0] in (-9, 130)
    open_gate(box)
    status, out, err = box.run("wait", "2", steps=steps)
    assert (status, out) == (0, ANSWER) or (status, out) == (1, "") and "stopped: it was stopped" in err, (status, out, err)
    assert not box.left()


# --- 12. many at once ---------------------------------------------------------------------------------------

def test_20_runs_at_once_are_all_right(box):
    starts = [box.start("run", *["-p", "piped"] * (number % 2), "do it", steps="%s; done answer %d" % (gate(box), number)) for number in range(20)]
    soon(lambda: all(box.has_begun(number) for number in range(1, 21)))
    open_gate(box)
    assert [box.finish(one)[:2] for one in starts] == [(0, "answer %d\n" % number) for number in range(20)]


# --- 13. waiting for several -----------------------------------------------------------------------------------

def own_words(err):
    """The words behind selftalk.py of the last line that was told."""
    line = err.splitlines()[-1]
    assert line.startswith("  try: python3 ") and "selftalk.py wait " in line, err
    return line.split("selftalk.py ", 1)[1].split()


def test_answers_of_several_come_in_order_with_the_first_trouble_as_exit_code(box):
    box.begin("run", "do it", steps="%s; done one; hold" % gate(box))
    box.begin("run", "do it", "--stall", "0.2", steps="say hm; hold")
    box.begin("run", "do it", steps="%s; exit 3" % gate(box))
    box.begin("run", "-p", "piped", "do it", steps="%s; done four" % gate(box))
    waiting = [box.start("wait", "4", "1"), box.start("wait", "1", "2", "3", "4"), box.start("wait", "3", "2", "1"), box.start("wait", "--json", "1", "3")]
    open_gate(box)
    told = [box.finish(one) for one in waiting]
    assert [status for status, _, _ in told] == [0, 7, 1, 1], told
    assert told[0][1] == "==> run 4, piped <==\nfour\n==> run 1, fake <==\none\n"
    assert told[1][1] == "==> run 1, fake <==\none\n==> run 4, piped <==\nfour\n"
    assert [(row["id"], row["outcome"]) for row in json.loads(told[3][1])] == [(1, "answered"), (3, "died")]
    assert box.run("stop", "2")[0] == 0


def test_any_is_the_first_that_ends_and_all_is_those_that_go_on(box):
    for number in (1, 2):
        box.begin("run", "do it", steps="await %s/%d; done %d; hold" % (box.work, number, number))
    waiting = [box.start("wait", "--any", "1", "2"), box.start("wait", "--any", "--json"), box.start("wait")]
    soon(lambda: box.clients(1) == box.clients(2) == 3)
    (box.work / "2").touch()
    assert box.finish(waiting[0])[:2] == (0, "2\n")
    assert json.loads(box.finish(waiting[1])[1])["id"] == 2
    (box.work / "1").touch()
    status, out, _ = box.finish(waiting[2])
    assert status == 0 and out == "==> run 1, fake <==\n1\n==> run 2, fake <==\n2\n"
    assert box.run("wait")[:2] == (0, "") and box.run("wait", "--any", "1", "2")[0] == 0


def test_one_run_under_several_names_is_waited_for_once(box):
    box.begin("run", "--name", "mine", "do it", steps="%s; done ok; hold" % gate(box))
    waiter = box.start("wait", "1", "last", "mine")
    soon(lambda: box.clients())
    open_gate(box)
    assert box.finish(waiter)[:2] == (0, ANSWER)


@pytest.mark.parametrize("way", ["all", "any"])
def test_one_that_becomes_unreadable_costs_no_other_its_answer(box, way):
    box.begin("run", "do it", steps="%s; done ok; hold" % gate(box))
    box.begin("run", "do it", steps="hold")
    path, text = box.run_folder(2) / "run.json", (box.run_folder(2) / "run.json").read_text()
    waiter = box.start("wait", "1", "2", *["--any"] * (way == "any"))
    soon(lambda: box.clients(1) and box.clients(2))
    path.write_text("{")
    open_gate(box)
    status, out, err = box.finish(waiter)
    assert (status, out) == ((2, "==> run 1, fake <==\nok\n") if way == "all" else (0, ANSWER)), (out, err)
    assert (str(box.run_folder(2)) in err) == (way == "all")
    status, out, err = box.run("wait", "1", "2")
    assert (status, out) == (2, "") and str(box.run_folder(2)) in err
    assert box.run("wait")[0] == 0 and box.run("wait", "1")[:2] == (0, ANSWER)
    path.write_text(text)
    assert box.run("stop", "2")[0] == 0


@pytest.mark.parametrize("words, goes_on", [(("1",), ["wait", "1"]), (("1", "2"), ["wait", "1", "2"]), (("--any", "1", "2"), ["wait", "1", "2"]),
                                            ((), ["wait", "1", "2"])], ids=lambda words: " ".join(words) or "none")
def test_a_wait_that_is_interrupted_says_how_to_go_on(box, words, goes_on):
    for _ in range(2):
        box.begin("run", "do it", steps="%s; done ok; hold" % gate(box))
    waiter = box.start("wait", *words)
    soon(lambda: box.clients(1) and (words == ("1",) or box.clients(2)))
    waiter.send_signal(signal.SIGINT)
    status, out, err = box.finish(waiter)
    assert (status, out) == (130, "") and [word for word in own_words(err) if word != "--any"] == goes_on
    open_gate(box)
    status, out, _ = box.run(*own_words(err))
    assert status == 0 and out.count("ok") == (1 if goes_on == ["wait", "1"] or "--any" in own_words(err) else 2)
    box.run("wait")


@pytest.mark.parametrize("words", [("1",), ("2", "--any", "1"), ("3", "1", "2")], ids=" ".join)
def test_a_wait_that_was_too_short_ends_in_the_command_that_goes_on(box, words):
    for number in (1, 2):
        box.begin("run", "do it", steps="%s; done ok; hold" % gate(box))
    assert box.run("run", "-p", "piped", "do it", steps="exit 3")[0] == 1
    status, out, err = box.run("wait", "--wait", "0.3", *words)
    assert (status, out) == (75, "")
    go_on = own_words(err)
    assert go_on == ["wait", *[word for word in words if word != "--any"], *["--any"] * ("--any" in words)] or set(go_on) <= {"wait", *words}, go_on
    open_gate(box)
    status, out, _ = box.run(*go_on)
    assert status == 0 and "ok" in out
    box.run("wait")


# --- 14. a run that nobody waits for ------------------------------------------------------------------------------

@pytest.mark.parametrize("words", [("run",), ("run", "-p", "piped"), ("run", "--json")], ids=" ".join)
def test_a_detached_run_prints_its_number_at_once_and_goes_on_alone(box, words):
    status, out, err = box.run(*words, "--detach", "do it", steps=("%s; done ok" if "piped" in words else "ask; %s; done ok; hold") % gate(box))
    assert status == 0 and (json.loads(out)["id"] if "--json" in words else int(out)) == 1
    assert own_words(err) == ["wait", "1"] and box.facts()["state"] in ("running", "starting")
    if "piped" not in words:
        soon(lambda: [event["keys"] for event in box.events() if event["event"] == "dialog"] == [["Down"], ["Enter"]])
    open_gate(box)
    soon(lambda: box.facts()["state"] == "over" and not box.left())
    assert box.run("wait", "1")[:2] == (0, ANSWER)


def test_the_prompts_of_a_detached_talk_are_typed_and_answered_alone(box):
    status, out, _ = box.run("-c", "--here", "--detach", "first", script="ask_on_start=WARNING: Claude Code running in Bypass Permissions mode|No, exit|Yes, I accept; say=one")
    assert (status, out) == (0, "1\n")
    soon(lambda: box.turn().get("outcome") == "answered")
    assert box.run("result", "1")[:2] == (0, "one\n")
    assert box.run("send", "1", "--detach", "second [[say=two]]")[:2] == (0, "1\n")
    soon(lambda: box.turn(2).get("outcome") == "answered")
    assert box.run("result", "1")[:2] == (0, "two\n") and box.log() == ["first", "second [[say=two]]"]
    assert box.run("stop", "1")[0] == 0 and not box.left()


@pytest.mark.parametrize("kind", ["task", "talk", "headless", "queued"])
def test_a_detached_waiter_that_is_killed_is_missed_by_nobody(box, kind):
    if kind == "queued":
        box.begin("run", "first", steps="hold")
    words = {"talk": ("-c", "--here"), "headless": ("run", "-p", "piped"), "queued": ("run", "--max-parallel", "1")}.get(kind, ("run",))
    status, out, _ = box.run(*words, "--detach", "do it", steps="%s; done ok" % gate(box), script="say=ok; start=1")
    number, waiter = int(out), box.facts(int(out))["caller"][0]
    assert status == 0 and [line for pid, line in box.processes() if pid == waiter and "wait %d" % number in line]
    os.kill(waiter, signal.SIGKILL)
    soon(lambda: waiter not in [pid for pid, _ in box.processes()])
    open_gate(box)
    if kind == "queued":
        assert box.facts(2)["state"] == "queued" and box.run("stop", "1")[0] == 0
    assert box.run("wait", number, steps="done ok; hold")[:2] == (0, ANSWER)
    assert box.run("stop", number)[0] == 0


def test_a_detached_run_that_is_queued_starts_alone(box):
    box.begin("run", "first", steps="%s; done first; hold" % gate(box))
    assert box.run("run", "--max-parallel", "1", "--detach", "second", steps="done second; hold")[:2] == (0, "2\n")
    assert box.facts(2)["state"] == "queued"
    open_gate(box)
    assert box.run("wait", "1")[:2] == (0, "first\n")
    soon(lambda: box.facts(2)["state"] == "over")
    assert box.run("result", "2")[:2] == (0, "second\n")
