"""Waiting, files, locks and processes. What ends processes is tried on real ones, which obey nobody."""
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

import selftalk
from sandboxes import until_true
from selftalk import Failure, Missing, Process, Unusable

QUIET = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
SLEEP = "print('up', flush=True); time.sleep(1000)"


class Family:
    """Processes that a test starts, all of them marked; what is left of them afterwards is killed."""

    def __init__(self, mark):
        self.mark, self.started = mark, []

    def start(self, code, marked=True, **options):
        """Starts Python code and waits for its first line."""
        name, _, value = self.mark.partition("=")
        env = dict(os.environ, **({name: value} if marked else {}))
        child = subprocess.Popen([sys.executable, "-S", "-c", code], env=env, stdout=subprocess.PIPE, text=True, **options)
        self.started.append(child)
        child.first_line = child.stdout.readline().strip()
        return selftalk.read_process(child.pid)

    def alive(self):
        return [row.process for row in selftalk.read_process_rows() if selftalk.holds_variable(row.process.pid, self.mark)]

    def close(self):
        for process in self.alive():
            os.kill(process.pid, signal.SIGKILL)
        for child in self.started:
            child.kill()
            child.wait()
            child.stdout.close()


@pytest.fixture
def family(tmp_path):
    one = Family("SELFTALK_RUN=%s" % tmp_path)
    yield one
    one.close()


class Clock:
    """Time that only passes in pauses."""

    def __init__(self):
        self.now_s, self.pauses = 100.0, []

    def pause(self, pause_s):
        self.pauses.append(pause_s)
        self.now_s += pause_s

    def until(self, deadline_s, **options):
        return selftalk.until(deadline_s, clock=lambda: self.now_s, pause=self.pause, **options)


# --- waiting --------------------------------------------------------------------

def test_a_wait_looks_at_once_and_once_more_at_its_deadline():
    clock = Clock()
    waited = list(clock.until(10.0))
    assert waited[0] == 0.0 and waited[-1] == pytest.approx(10.0)


def test_a_wait_of_no_time_looks_once_and_never_pauses():
    clock = Clock()
    assert list(clock.until(0.0)) == [0.0] and clock.pauses == []


def test_pauses_begin_at_5_ms_grow_with_what_was_waited_and_stay_below_the_longest():
    clock = Clock()
    waited = list(clock.until(60.0, longest_s=0.2))
    assert clock.pauses[0] == 0.005 and max(clock.pauses) == 0.2
    assert all(pause <= max(0.005, 0.03 * at) + 1e-9 for pause, at in zip(clock.pauses, waited))
    assert len(clock.pauses) < 700


def test_a_wait_without_end_goes_on_and_a_loop_that_is_left_stops_it():
    clock = Clock()
    for waited_s in clock.until(float("inf")):
        if waited_s > 1000:
            break
    assert 1000 < clock.now_s - 100 < 1001


def test_a_pause_ends_early_when_something_can_be_read_and_each_thing_wakes_once(monkeypatch):
    reader, writer = os.pipe()
    waits = []
    real = selftalk.select.select
    monkeypatch.setattr(selftalk.select, "select", lambda r, w, x, s: waits.append((list(r), s)) or real(r, w, x, 0))
    monkeypatch.setattr(selftalk.os, "pidfd_open", lambda pid: reader, raising=False)
    with selftalk.watch_death(1) as pause:
        pause(9.0)
        os.write(writer, b"x")
        pause(9.0)
        pause(9.0)
    os.close(writer)
    assert waits == [([reader], 9.0), ([reader], 9.0), ([], 9.0)]
    with pytest.raises(OSError):
        os.fstat(reader)


# --- commands --------------------------------------------------------------------

def test_a_command_gives_its_status_and_both_its_streams():
    ran = selftalk.run_command("sh", "-c", "cat; echo err >&2; exit 3", stdin="größe\n")
    assert ran == selftalk.Ran(3, "größe\n", "err\n")


def test_a_command_that_is_not_there_is_missing():
    with pytest.raises(Missing, match="no-such-program: not found"):
        selftalk.run_command("no-such-program")


@pytest.mark.parametrize("text, mode", [("", 0o600), ("no program at all", 0o700), ("#!/no/such/interpreter\n", 0o700)])
def test_a_file_that_cannot_be_run_is_missing_and_no_bug(tmp_path, text, mode):
    path = tmp_path / "program"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(Missing):
        selftalk.run_command(str(path))


def test_an_environment_too_large_for_the_system_is_a_failure_and_no_bug():
    with pytest.raises(Failure):
        selftalk.run_command("true", env={"PATH": os.environ["PATH"], "BIG": "x" * 3_000_000})


def test_a_command_past_its_deadline_is_ended_and_a_failure():
    with pytest.raises(Failure, match="no answer within 0.1 s"):
        selftalk.run_command("sleep", "1000", timeout_s=0.1)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_command_is_echoed_so_that_it_can_be_pasted():
    told = []
    selftalk.run_command("printf", "%s", "a b'$x\n", echo=told.append)
    assert told == ["+ printf %s 'a b'\"'\"'$x\n'"]
    assert selftalk.run_command("sh", "-c", told[0][2:]).out == "a b'$x\n"


def test_bytes_that_are_not_utf8_become_a_mark():
    assert selftalk.run_command("printf", r"a\377b").out == "a\ufffdb"


def test_a_program_is_found_in_the_folders_or_below_the_base(tmp_path):
    for name in ("one/tool", "two/tool", "two/text", "three/tool/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o644 if name == "two/text" else 0o755)
    folders = "%s:%s:%s" % (tmp_path / "none", tmp_path / "three", tmp_path / "two")
    find = selftalk.find_program
    assert find("tool", folders, "/") == str(tmp_path / "two/tool")
    assert find("text", folders, "/") == find("none", folders, "/") == find("tool", "", "/") == ""
    assert os.path.normpath(find("./one/tool", "", str(tmp_path))) == str(tmp_path / "one/tool")
    assert find(str(tmp_path / "one/tool"), "", "/") == str(tmp_path / "one/tool")


def test_a_program_in_a_relative_folder_of_the_path_is_still_found_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").write_text("")
    (tmp_path / "bin" / "tool").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert selftalk.find_program("tool", "bin", "/") == str(tmp_path / "bin" / "tool")


# --- files -----------------------------------------------------------------------

def test_a_reader_never_sees_half_a_file(tmp_path):
    path, texts, seen = str(tmp_path / "f"), ["a" * 300_000, "b" * 200_000], set()
    selftalk.write_file(path, texts[0])
    writer = threading.Thread(target=lambda: [selftalk.write_file(path, texts[turn % 2]) for turn in range(100)])
    writer.start()
    while writer.is_alive():
        seen.add(selftalk.read_file(path))
    writer.join()
    assert seen <= set(texts) and seen


def test_a_written_file_is_only_ours_also_where_the_old_one_was_not(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    path.chmod(0o666)
    selftalk.write_file(str(path), "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text() == "new"
    selftalk.write_file(str(path), "x", mode=0o700)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert os.listdir(tmp_path) == ["f"]


def test_writing_replaces_a_symlink_and_not_what_it_points_to(tmp_path):
    (tmp_path / "other").write_text("mine")
    (tmp_path / "f").symlink_to(tmp_path / "other")
    selftalk.write_file(str(tmp_path / "f"), "new")
    assert (tmp_path / "other").read_text() == "mine" and (tmp_path / "f").read_text() == "new"


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path):
    code = ("import resource, signal, sys; sys.path.insert(0, %r); import selftalk; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
            "try: selftalk.write_file(%r, 'x' * 100_000)\n"
            "except selftalk.Unusable as error: print(error.what)\n" % (os.path.dirname(selftalk.__file__), str(tmp_path / "f")))
    (tmp_path / "f").write_text("old")
    out = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True).stdout
    assert out == "%s: cannot be written: file too large\n" % (tmp_path / "f")
    assert os.listdir(tmp_path) == ["f"] and (tmp_path / "f").read_text() == "old"


@pytest.mark.parametrize("write", [selftalk.write_file, selftalk.append_line, lambda path, _: selftalk.make_folder(path + "/x")])
def test_a_path_below_a_file_is_unusable_and_named(tmp_path, write):
    (tmp_path / "file").write_text("")
    path = str(tmp_path / "file" / "f")
    with pytest.raises(Unusable) as caught:
        write(path, "x")
    assert caught.value.what.startswith(path) and "cannot be written: not a directory" in caught.value.what and caught.value.fix


def test_any_text_can_be_written_also_half_a_surrogate_pair(tmp_path):
    selftalk.write_file(str(tmp_path / "f"), "a\udcffb")
    assert (tmp_path / "f").read_bytes() == b"a\xffb"
    selftalk.write_file(str(tmp_path / "f"), selftalk.clean_text("cut \ud83d"))   # as agents write when they cut an emoji
    assert (tmp_path / "f").read_bytes().startswith(b"cut ")


def test_a_made_folder_is_only_ours(tmp_path):
    selftalk.make_folder(str(tmp_path / "a" / "b"))
    selftalk.make_folder(str(tmp_path / "a" / "b"))
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_two_writers_do_not_mix_their_lines(tmp_path):
    path = str(tmp_path / "f")
    lines = ["%s%d %s" % (name, number, name * 2000) for name in "ab" for number in range(200)]
    writers = [threading.Thread(target=lambda name=name: [selftalk.append_line(path, line) for line in lines if line[0] == name])
               for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted((tmp_path / "f").read_text().splitlines()) == sorted(lines)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


def test_what_cannot_be_read_is_none(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("none", "loop", "."):
        assert selftalk.read_file(str(tmp_path / name)) is None
    assert selftalk.file_stamp(str(tmp_path / "none")) == (-1, 0.0)


def test_a_pipe_in_the_place_of_a_file_is_nothing_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert selftalk.read_file(str(tmp_path / "pipe")) is None


def test_a_process_that_has_a_file_open_is_known(tmp_path):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("this system does not tell")
    with open(tmp_path / "f", "w"):
        assert (str(tmp_path / "f") in selftalk.find_open(selftalk.read_process(os.getpid())))
    with open(tmp_path / "f"):     # to read it is to have no part in it
        assert not (str(tmp_path / "f") in selftalk.find_open(selftalk.read_process(os.getpid())))
    assert not (str(tmp_path / "f") in selftalk.find_open(selftalk.read_process(os.getpid())))
    assert selftalk.find_open(Process(0, "")) == set()


def test_a_file_is_read_from_a_byte_on(tmp_path):
    (tmp_path / "f").write_bytes("größe".encode())
    assert selftalk.read_bytes(str(tmp_path / "f"), 5) == b"\x9fe"
    assert selftalk.read_bytes(str(tmp_path / "f"), 99) == b""


def test_a_lock_is_held_by_one_and_given_back_on_death(tmp_path, family):
    path = str(tmp_path / "lock")
    code = "import sys, time; sys.path.insert(0, %r); import selftalk\nwith selftalk.hold_lock(%r): print('up', flush=True); time.sleep(1000)" % (
        os.path.dirname(selftalk.__file__), path)
    holder, taken = family.start(code), []

    def take():
        with selftalk.hold_lock(path):
            taken.append(True)

    waiter = threading.Thread(target=take)
    waiter.start()
    waiter.join(0.05)
    assert not taken and waiter.is_alive()
    os.kill(holder.pid, signal.SIGKILL)
    waiter.join(5.0)
    assert taken == [True]


def test_a_lock_where_nothing_can_be_written_is_unusable(tmp_path):
    with pytest.raises(Unusable):
        with selftalk.hold_lock(str(tmp_path / "none" / "lock")):
            pass


def test_a_named_pipe_is_fed_whole_and_then_removed(tmp_path):
    path, text, read = str(tmp_path / "pipe"), "größe\n" * 50_000, []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(open(path, encoding="utf-8").read()))
    reader.start()
    assert selftalk.feed_pipe(path, text, 10.0) is True
    reader.join(5.0)
    assert read == [text] and not os.path.exists(path)


def test_a_named_pipe_that_nobody_reads_is_removed_and_said_to_be_unread(tmp_path):
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    assert selftalk.feed_pipe(path, "x", 0.02) is False and not os.path.exists(path)


# --- what the system says of processes -------------------------------------------

STAT = "%d (%s) %s 7 42 41 34816 42 4194304 " + "0 " * 8 + "20 0 1 0 987654 1000 200 18446744073709551615\n"


@pytest.mark.parametrize("name", ["sh", "tmux: server", "a b", "a) R 1 1 (b", "((", "))", "", "line\nbreak", ") Z 1 2 3", "\ufffd"])
def test_a_stat_line_is_read_whatever_the_process_is_called(name):
    assert selftalk.parse_stat(STAT % (42, name, "S")) == selftalk.ProcessRow(Process(42, "987654"), 7, 41)


@pytest.mark.parametrize("state", ["Z", "X"])
def test_a_dead_process_is_none(state):
    assert selftalk.parse_stat(STAT % (42, "sh", state)) is None


@pytest.mark.parametrize("line", ["", "42", "42 (sh", "42 (sh) S 1 2"])
def test_half_a_stat_line_is_none(line):
    assert selftalk.parse_stat(line) is None


@pytest.mark.parametrize("line, row", [
    ("  501     1 Ss   Fri Nov 21 08:41:29 2025", selftalk.ProcessRow(Process(501, "Fri Nov 21 08:41:29 2025"), 1, 0)),
    ("78123 78100 R+   Sat Nov  1 18:01:02 2025    ", selftalk.ProcessRow(Process(78123, "Sat Nov  1 18:01:02 2025"), 78100, 0)),
    ("    2     0 I<   Sat Nov 21 08:00:00 2026", selftalk.ProcessRow(Process(2, "Sat Nov 21 08:00:00 2026"), 0, 0)),
    ("  502   501 Z    Fri Nov 21 08:41:29 2025", None), ("  502   501 Z+   Fri Nov 21 08:41:29 2025", None), ("", None), ("501 1", None)])
def test_a_line_of_ps_is_read_as_macos_and_linux_print_it(line, row):
    assert selftalk.parse_ps(line) == row


def test_without_proc_the_processes_come_from_ps_the_same_in_every_locale_and_time_zone(monkeypatch):
    real = os.path.isdir
    monkeypatch.setattr(selftalk.os.path, "isdir", lambda path: path != "/proc/self" and real(path))
    monkeypatch.setenv("TZ", "UTC")
    here = selftalk.read_process(os.getpid())
    assert here and here.pid == os.getpid()
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert selftalk.read_process(os.getpid()) == here and selftalk.is_alive(here)


def test_a_process_is_alive_only_with_its_own_start_time():
    here = selftalk.read_process(os.getpid())
    assert selftalk.is_alive(here)
    assert not selftalk.is_alive(here._replace(started=here.started + "0"))
    assert not selftalk.is_alive(Process(0, "")) and not selftalk.is_alive(Process(2 ** 22 + 1, here.started))


def test_a_process_that_ended_and_was_not_reaped_is_dead(family):
    process = family.start("import sys; print('up', flush=True); sys.stdin.read()", stdin=subprocess.PIPE)
    assert selftalk.is_alive(process)
    family.started[-1].stdin.close()
    assert until_true(lambda: not selftalk.is_alive(process))   # and nobody has asked for its exit status yet


def test_a_reused_pid_is_never_signalled(family):
    process = family.start("import time; " + SLEEP)
    selftalk.end_processes(lambda: [process._replace(started="1")])
    assert selftalk.is_alive(process)
    selftalk.end_processes(lambda: [process] * selftalk.is_alive(process))
    assert until_true(lambda: not selftalk.is_alive(process))


def test_a_process_that_may_not_be_signalled_is_left_alive_and_no_bug(family, monkeypatch):
    process = family.start("import time; " + SLEEP)

    def refuse(pid, number):
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(selftalk.os, "kill", refuse)
    left = selftalk.end_processes(lambda: [process], grace_s=0.01)
    monkeypatch.undo()
    assert left == [process]


# --- trees -------------------------------------------------------------------------

NEST = """import os, sys, time
def fork(*deeds):
    if os.fork() == 0:
        for deed in deeds: deed()
        time.sleep(1000)
fork(lambda: fork())                                        # a child with a child
fork(os.setsid, lambda: fork())                             # one in a session of its own
if os.fork() == 0:                                          # an orphan in a session of its own
    os.setsid()
    fork()
    os._exit(0)
os.wait()
print('up', flush=True); time.sleep(1000)
"""


def test_a_tree_holds_children_those_in_other_sessions_and_orphans_but_not_ourselves(family, monkeypatch):
    root = family.start(NEST, start_new_session=True)
    until_true(lambda: len(family.alive()) == 6)
    monkeypatch.setenv(*family.mark.split("="))
    found = selftalk.find_tree(root, family.mark)
    assert sorted(found) == sorted(family.alive()) and len(found) == 6 and root in found
    assert os.getpid() not in [process.pid for process in found]


def test_a_tree_without_its_mark_is_still_found_by_parents_and_session(family):
    root = family.start(NEST, start_new_session=True)
    until_true(lambda: len(family.alive()) == 6)
    assert len(selftalk.find_tree(root, "SELFTALK_RUN=/none")) == 5   # all but the orphan's child


def test_the_tree_of_a_reused_pid_is_only_what_holds_the_mark(family):
    root = family.start("import time; " + SLEEP, start_new_session=True)
    assert selftalk.find_tree(root._replace(started="1"), "SELFTALK_RUN=/none") == []
    assert selftalk.find_tree(Process(0, ""), family.mark) == [root]


def test_a_mark_that_only_begins_alike_is_not_ours(family):
    family.start("import time; " + SLEEP)
    assert selftalk.find_tree(Process(0, ""), family.mark[:-1]) == []


def test_ending_a_tree_ends_what_ignores_term_and_what_left_and_touches_nobody_else(family):
    stranger = family.start("import time; " + SLEEP, marked=False)
    root = family.start(QUIET + NEST, start_new_session=True)
    until_true(lambda: len(family.alive()) == 6)
    assert selftalk.end_processes(lambda: selftalk.find_tree(root, family.mark), grace_s=0.1) == []
    assert family.alive() == [] and selftalk.is_alive(stranger)


def test_children_that_are_born_while_the_tree_is_ended_are_ended_too(family):
    root = family.start("""import os, signal, time
def born(*_):
    if os.fork() == 0: time.sleep(1000)
signal.signal(signal.SIGTERM, born)
print('up', flush=True)
while True: time.sleep(1000)
""")
    assert selftalk.end_processes(lambda: selftalk.find_tree(root, family.mark), grace_s=0.3) == []
    assert family.alive() == []


def test_a_stopped_process_is_ended_too(family):
    process = family.start("import time; " + SLEEP)
    os.kill(process.pid, signal.SIGSTOP)
    assert selftalk.end_processes(lambda: selftalk.find_tree(process, family.mark), grace_s=0.1) == []
    assert family.alive() == []


def test_a_process_that_obeys_term_may_tidy_up(family, tmp_path):
    process = family.start("import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (open(%r, 'w').close(), sys.exit(0)))\n%s"
                           % (str(tmp_path / "tidied"), SLEEP))
    assert selftalk.end_processes(lambda: selftalk.find_tree(process, family.mark)) == []
    assert (tmp_path / "tidied").exists()


def test_ending_nothing_takes_no_time():
    began = time.monotonic()
    assert selftalk.end_processes(lambda: []) == [] and time.monotonic() - began < 0.5


def test_a_command_that_was_asked_and_ended_at_once_leaves_nothing(monkeypatch):
    real, asked = selftalk.read_process, []
    monkeypatch.setattr(selftalk, "read_process", lambda pid: real(pid) if asked or asked.append(pid) else None)
    out = selftalk.converse(("sh", "-c", "sleep 1000 & echo $!"), "", lambda text: False, env=dict(os.environ), deadline_s=5.0)
    assert out.strip().isdigit() and not real(int(out))


# --- death ---------------------------------------------------------------------------

@pytest.fixture
def watched(monkeypatch):
    """What each pause waits for."""
    lists, real = [], selftalk.select.select
    monkeypatch.setattr(selftalk.select, "select", lambda r, *rest: lists.append(list(r)) or real(r, *rest))
    return lists


def test_a_death_is_seen_at_once_where_the_system_can_tell(family, watched):
    process = family.start("import time; " + SLEEP)
    with selftalk.watch_death(process.pid) as pause:
        pause(0.01)
        if watched == [[]]:
            assert not hasattr(os, "pidfd_open") or sys.platform != "linux"
            return
        os.kill(process.pid, signal.SIGKILL)
        began = time.monotonic()
        pause(5.0)
        assert time.monotonic() - began < 4.0
        pause(0.01)
    assert watched[0] == watched[1] != [] == watched[2]
    with pytest.raises(OSError):
        os.fstat(watched[0][0])


def test_a_watch_that_is_given_up_leaves_nothing_open(family, watched):
    process = family.start("import time; " + SLEEP)
    with selftalk.watch_death(process.pid) as pause:
        pause(0.01)
    for handle in watched[0]:
        with pytest.raises(OSError):
            os.fstat(handle)


@pytest.mark.parametrize("pid", [0, 2 ** 22 + 1])
def test_the_death_of_nobody_is_not_watched(pid, watched):
    with selftalk.watch_death(pid) as pause:
        pause(0.01)
    assert watched == [[]]


def test_a_pid_is_in_use_or_not(family):
    process = family.start("import time; " + SLEEP)
    assert selftalk.has_process(process.pid) and selftalk.has_process(1) and selftalk.has_process(os.getpid())
    family.close()
    assert not selftalk.has_process(process.pid) and not selftalk.has_process(0)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="only /proc tells a session")
def test_what_a_dead_leader_left_in_its_session_is_its_own_when_it_was_started_before_the_end():
    began = time.time()
    leader = subprocess.Popen(["sh", "-c", "env -i sleep 7775 & echo $!; read go"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              start_new_session=True)
    root, pid = selftalk.read_process(leader.pid), int(leader.stdout.readline())
    leader.stdin.close()
    leader.wait()
    try:
        assert [one.pid for one in selftalk.find_tree(root, "NO=BODY", time.time())] == [pid]
        assert selftalk.find_tree(root, "NO=BODY", began - 60.0) == []      # another session may have the number by now
        assert selftalk.find_tree(root, "NO=BODY") == []
        later = root._replace(started=str(int(root.started) + 6000))
        assert selftalk.find_tree(later, "NO=BODY", time.time() + 60) == []
    finally:
        os.kill(pid, 9)
