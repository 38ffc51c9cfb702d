"""The folder of a run: ids, what is on disk, what cannot be read, what is removed."""
import json
import os
import stat
import subprocess
import sys

import pytest

import selftalk
from selftalk import Process, Unusable

from sandboxes import run_facts

FACTS = run_facts()
PLACE = {**dict.fromkeys(("place", "socket", "session", "pane"), ""), **dict.fromkeys(("socket_identity", "launcher", "server"))}


@pytest.fixture
def state(tmp_path):
    return str(tmp_path / "state")


def new_run(state):
    return selftalk.new_run(state, FACTS)


def write_facts(state, number, text):
    """A run folder as something else than this copy has left it; with its open mark."""
    folder = os.path.join(state, "runs", str(number))
    os.makedirs(folder, exist_ok=True)
    os.makedirs(os.path.join(state, "open"), exist_ok=True)
    with open(os.path.join(folder, "run.json"), "w", encoding="utf-8") as file:
        file.write(text)
    open(os.path.join(state, "open", str(number)), "w").close()
    return folder


# --- where ------------------------------------------------------------------------

def test_the_state_is_below_xdg_state_home_or_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    assert selftalk.state_folder({"XDG_STATE_HOME": "/x"}) == "/x/selftalk"
    assert selftalk.state_folder({}) == selftalk.state_folder({"XDG_STATE_HOME": ""}) == "/h/.local/state/selftalk"


@pytest.mark.parametrize("path", ["x", "./x", "~/x", "../x"])
def test_a_relative_state_home_is_unusable(path):
    with pytest.raises(Unusable, match="XDG_STATE_HOME"):
        selftalk.state_folder({"XDG_STATE_HOME": path})


# --- ids -----------------------------------------------------------------------------

def test_ids_are_small_and_unique_when_32_processes_claim_at_once(state, tmp_path):
    code = ("import os, sys, time; sys.path.insert(0, %r); import selftalk\n"
            "os.fork(); os.fork(); print('up', flush=True); sys.stdin.read()   # interpreters are slow to start, forks are not\n"
            "[selftalk.new_run(%r, %r) for _ in range(3)]" % (os.path.dirname(selftalk.__file__), state, FACTS))
    starters = [subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for _ in range(8)]
    for starter in starters:
        starter.stdout.readline()
    for starter in starters:
        starter.stdin.close()
    for starter in starters:
        starter.stdout.read()   # until the last of the four has ended
        assert starter.wait() == 0
        starter.stdout.close()
    for name in ("runs", "open"):   # an id given out twice would be one folder fewer
        assert sorted(map(int, os.listdir(os.path.join(state, name)))) == list(range(1, 97))


def test_an_id_is_one_more_than_the_largest(state):
    assert [new_run(state).id for _ in range(3)] == [1, 2, 3]
    selftalk.remove_folder(os.path.join(state, "runs", "2"))
    os.makedirs(os.path.join(state, "runs", "notes"))
    assert new_run(state).id == 4


@pytest.mark.parametrize("name", ["²", "٣", "1.bak", "-1", "０", ".5", "99 "])
def test_an_entry_that_is_no_number_in_plain_digits_is_passed_over(state, name):
    new_run(state)
    os.makedirs(os.path.join(state, "runs", name))
    assert selftalk.list_numbers(os.path.join(state, "runs")) == [1]


# --- on disk ---------------------------------------------------------------------------

def test_a_new_run_is_starting_open_and_only_ours(state):
    run = new_run(state)
    assert (run.facts["state"], run.facts["outcome"], run.facts["id"]) == ("starting", None, 1)
    assert json.loads(selftalk.read_file(run.path("run.json"))) == run.facts and run.facts["format"] == selftalk.RUN_FORMAT
    assert os.listdir(os.path.join(state, "open")) == ["1"] and sorted(os.listdir(run.folder)) == ["lock", "run.json", "turns"]
    for folder, _, files in os.walk(os.path.join(state, "runs")):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        assert all(stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600 for name in files)


@pytest.mark.parametrize("fails", ["write_file", "make_folder"])
def test_a_new_run_that_fails_leaves_nothing(state, monkeypatch, fails):
    new_run(state)
    real, calls = getattr(selftalk, fails), []

    def fail_late(path, *rest):
        calls.append(path)
        if len(calls) == (3 if fails == "make_folder" else 2):
            with selftalk.using_file(path):
                raise OSError(28, "No space left on device")
        real(path, *rest)

    monkeypatch.setattr(selftalk, fails, fail_late)
    with pytest.raises(Unusable, match="no space left on device") as caught:
        new_run(state)
    assert "free some space" in caught.value.fix
    assert os.listdir(os.path.join(state, "runs")) == ["1"] and os.listdir(os.path.join(state, "open")) == ["1"]


def test_a_new_run_that_is_interrupted_leaves_nothing(state, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    selftalk.make_folder(state)
    monkeypatch.setattr(selftalk, "write_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        new_run(state)
    assert os.listdir(os.path.join(state, "runs")) == []


def test_facts_are_changed_on_disk_first(state, monkeypatch):
    run = new_run(state)
    monkeypatch.setattr(selftalk, "write_file", lambda *_: (_ for _ in ()).throw(Unusable("full")))
    with pytest.raises(Unusable):
        run.update(state="running")
    assert run.facts["state"] == "starting"


def test_another_process_sees_what_one_has_changed(state):
    mine = new_run(state)
    other = selftalk.find_run(state, "1")
    mine.update(state="running", words="größe \udcff", **PLACE)
    other.reload()
    assert other.facts == mine.facts


def test_events_are_lines_of_json_in_order(state):
    run = new_run(state)
    run.log("one", text="a\nb", bad="\udcff \ud83d")
    run.log("two")
    events = [json.loads(line) for line in selftalk.read_file(run.path("events.jsonl")).splitlines()]
    assert [event["event"] for event in events] == ["one", "two"] and events[0]["text"] == "a\nb" and events[0]["at"] > 0


def test_a_closed_run_is_over_and_no_more_open_also_when_it_is_closed_twice(state):
    run = new_run(state)
    selftalk.close_run(run, outcome="answered")
    selftalk.close_run(run, outcome="answered")
    assert run.is_over and os.listdir(os.path.join(state, "open")) == []


def test_a_process_survives_the_way_to_disk_and_back():
    assert selftalk.fact_process(json.loads(json.dumps(Process(7, "99")))) == Process(7, "99")
    assert not selftalk.is_alive(selftalk.fact_process(None))


# --- what cannot be read ------------------------------------------------------------------

@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", "\0\0", '{"format": 2}', '{"format": "1"}', "{}", '{"format": 1}',
                                  '{"format": 1, "state": "running"}'])
def test_a_run_of_another_version_or_broken_is_refused_by_its_folder_and_left_alone(state, text):
    folder = write_facts(state, 5, text)
    with pytest.raises(Unusable) as caught:
        selftalk.Run(folder)
    assert folder in caught.value.what and caught.value.fix
    assert selftalk.read_runs(state, "open", lambda line: None) == []
    assert selftalk.read_file(os.path.join(folder, "run.json")) == text


def test_runs_that_cannot_be_read_do_not_hide_those_that_can(state):
    write_facts(state, 1, '{"format": 99}')
    run = new_run(state)
    os.unlink(os.path.join(write_facts(state, 3, ""), "run.json"))
    told = []
    assert [one.id for one in selftalk.read_runs(state, "open", told.append)] == [run.id] == [2]
    assert len(told) == 2 and "runs/1" in told[0] and "runs/3" in told[1]


def test_a_run_is_found_by_number_or_as_the_last(state):
    for _ in range(11):
        new_run(state)
    assert selftalk.find_run(state, "2").id == 2 and selftalk.find_run(state, "last").id == 11


@pytest.mark.parametrize("word", ["12", "0", "-1", "1.0", "x", "", " ", "²", "٣", "..", "../runs/1", "9" * 5000, "07x"])
def test_a_run_that_does_not_exist_is_unusable_and_named(state, word):
    new_run(state)
    with pytest.raises(Unusable, match="does not exist") as caught:
        selftalk.find_run(state, word)
    assert "run `%s`" % word in caught.value.what and caught.value.fix.endswith("list")


def test_a_number_with_leading_zeros_is_no_run(state):
    new_run(state)
    with pytest.raises(Unusable, match="does not exist"):
        selftalk.find_run(state, "01")


@pytest.mark.parametrize("word", ["last", "1"])
def test_without_any_run_none_is_found(state, word):
    with pytest.raises(Unusable, match="does not exist"):
        selftalk.find_run(state, word)
    assert selftalk.read_runs(state, "open", lambda line: None) == []


# --- what is removed ------------------------------------------------------------------------

def test_a_folder_is_removed_with_all_that_is_in_it_but_not_what_its_links_point_to(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("")
    folder = tmp_path / "run"
    (folder / "turns" / "deep").mkdir(parents=True)
    for name in ("a", "turns/b", "turns/deep/c"):
        (folder / name).write_text("")
    (folder / "link").symlink_to(outside)
    (folder / "turns" / "loop").symlink_to(folder)
    (folder / "dead").symlink_to(tmp_path / "none")
    os.mkfifo(folder / "env")
    selftalk.remove_folder(str(folder))
    assert not folder.exists() and (outside / "mine").exists()


def test_a_folder_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine").write_text("")
    (tmp_path / "run").symlink_to(tmp_path / "outside")
    selftalk.remove_folder(str(tmp_path / "run"))
    assert (tmp_path / "outside" / "mine").exists()


def test_removing_a_folder_that_is_gone_is_no_bug(tmp_path):
    selftalk.remove_folder(str(tmp_path / "none"))


def test_a_lock_of_a_run_is_held_by_one(state):
    run = new_run(state)
    code = ("import sys; sys.path.insert(0, %r); import selftalk\nprint('up', flush=True)\n"
            "with selftalk.Run(%r).locked(): print('mine')" % (os.path.dirname(selftalk.__file__), run.folder))
    with run.locked():
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        other.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=0.1)
    assert other.communicate(timeout=5.0)[0] == "mine\n"
