"""The program as a person meets it: what is refused and how, what is printed where, which code it exits with."""
import ast
import glob
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys

import pytest

import selftalk
from sandboxes import PROGRAM, ROOT, SCRIPT, Sandbox, run_facts, until_true


def nothing_started(box):
    """True when no run is left half-started: none at all, in fact, after a refusal."""
    return not glob.glob(str(box.state / "runs" / "*")) and not glob.glob(str(box.state / "open" / "*"))


def check_refusal(status, err, code):
    """(what, fix) of a refusal: one line each, no traceback."""
    lines = err.splitlines()
    assert "Traceback" not in err and len(lines) == 2, err
    assert lines[0].startswith("selftalk: ") and lines[1].startswith("  try: "), err
    assert status == code, err
    assert not lines[0].endswith(".") and len(lines[1]) > len("  try: ")
    return lines[0][len("selftalk: "):], lines[1][len("  try: "):]


def refused(box, *words, code=2, **options):
    """What a refusal says, which it says in both ways: on stderr and as an object on stdout."""
    status, out, err = box.run(*words, **options)
    what, fix = check_refusal(status, err, code)
    if "--json" in words:
        error = json.loads(out)["error"]
        assert error == {"word": {2: "usage", 3: "missing", 1: "failed"}[code], "code": code, "what": what, "fix": fix}
    else:
        assert out == ""
    assert nothing_started(box)
    return what, fix


def run_in_shell(box, script, steps="done x; hold", **env):
    """Runs a shell line in which $SELFTALK is the program: (status, stdout, stderr)."""
    env = {**box.env, "FAKE_STEPS": steps, "SELFTALK": "%s %s" % (sys.executable, PROGRAM), **env}
    ran = subprocess.run(["bash", "-c", script], env=env, cwd=box.work, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, timeout=30)
    return ran.returncode, ran.stdout.decode(), ran.stderr.decode()


def tool_folder(box, **scripts):
    """A folder with programs made of shell text."""
    folder = box.folder / "tools"
    folder.mkdir(exist_ok=True)
    for name, text in scripts.items():
        (folder / name).write_text("#!/bin/sh\n" + text)
        (folder / name).chmod(0o755)
    return str(folder)


# --- configs -----------------------------------------------------------------------

@pytest.mark.parametrize("make, words", [
    (lambda path: None, "cannot be read: no such file or directory"),
    (lambda path: path.mkdir(), "cannot be read: is a directory"),
    (lambda path: path.symlink_to(path), "cannot be read: too many levels of symbolic links"),
    (lambda path: path.write_bytes(b"a: \xff\n"), "is not UTF-8 at byte 3"),
    (lambda path: path.write_text("profiles: {p: {command: x}\n"), "line 1, column 11: "),
    (lambda path: path.write_text("profiles:\n  p:\n    comand: x\n"), "unknown key `comand`"),
    (lambda path: path.write_text(""), "the config has no profiles")])
def test_a_config_that_cannot_be_used_is_refused_by_its_path(sandbox, make, words):
    path = sandbox.folder / "c.yaml"
    make(path)
    what, _ = refused(sandbox, "run", "--config", path, "hi", "--json")
    assert what.startswith(str(path) + ": ") and words in what


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/none"), lambda path: path.symlink_to(path)])
def test_the_users_own_config_that_is_a_broken_link_is_not_taken_for_none(sandbox, make):
    sandbox.config("").unlink()
    make(sandbox.home / ".config" / "selftalk" / "config.yaml")
    assert "config.yaml: cannot be read" in refused(sandbox, "profiles")[0]


def test_an_unknown_profile_is_refused_with_the_near_miss(sandbox):
    sandbox.fake_config()
    what, fix = refused(sandbox, "run", "-p", "fak", "hi", "--json")
    assert what.startswith("profile `fak` is not defined in ") and fix == "did you mean `fake`?"


def test_without_a_profile_and_a_default_one_it_asks_and_never_guesses(sandbox):
    what, fix = refused(sandbox, "run", "hi", "--json")
    assert "no profile named" in what and "-p NAME" in fix and "codex" in fix


def test_a_from_env_that_is_not_set_is_refused_by_name(sandbox):
    sandbox.fake_config(more="    env: {A: {from_env: NOT_SET}}\n")
    assert "NOT_SET is not set" in refused(sandbox, "run", "hi", "--json")[0]


# --- programs that are missing or too old -----------------------------------------------

def test_a_missing_binary_is_refused_with_how_to_get_it(sandbox):
    what, fix = refused(sandbox, "run", "-p", "codex", "hi", "--json", code=3, env={"PATH": tool_folder(sandbox, tmux="echo tmux 3.3a")})
    assert what == "profile `codex`: codex: not found" and "npm install" in fix


@pytest.mark.parametrize("path", ["", "/none"])
def test_a_missing_tmux_is_refused_with_how_to_get_it(sandbox, path):
    sandbox.fake_config()
    what, fix = refused(sandbox, "run", "hi", "--json", code=3, env={"PATH": path})
    assert what == "tmux: not found" and "brew install tmux" in fix


@pytest.mark.parametrize("said", ["tmux 2.7", "tmux 2.9a", "tmux 1.8"])
def test_a_tmux_that_is_too_old_is_refused_with_its_version(sandbox, said):
    sandbox.fake_config()
    path = tool_folder(sandbox, tmux="echo %s" % said) + ":" + os.environ["PATH"]
    what, _ = refused(sandbox, "run", "hi", "--json", code=3, env={"PATH": path})
    assert said[5:8] in what and "needs 3.0" in what


def test_a_python_that_is_too_old_is_told_so_in_two_lines():
    places = os.environ["PATH"].split(":") + glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin"))
    old = [path for minor in (6, 7, 8) for path in [os.path.join(place, "python3.%d" % minor) for place in places] if os.path.isfile(path)]
    old = [path for path in old if "shims" not in path]
    for python in old:
        ran = subprocess.run([python, str(PROGRAM), "run", "hi"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        what, _ = check_refusal(ran.returncode, ran.stderr.decode(), 3)
        assert re.match(r"python 3\.[678]: too old, selftalk needs 3\.9$", what)
    floor = (3, 6) if sys.version_info < (3, 13) else (3, 7)
    ast.parse(PROGRAM.read_text(encoding="utf-8"), feature_version=floor)   # holds also where there is no old Python


# --- prompts -----------------------------------------------------------------------------

@pytest.mark.usefixtures("as_a_script")
@pytest.mark.parametrize("words, stdin, said", [
    ([""], None, "the command line: the prompt is empty"),
    ([" \t\n\u2003"], None, "the command line: the prompt is empty"),
    ([b"a\xffb"], None, "the command line: the prompt is not UTF-8 at byte 1"),
    ([], None, "no prompt"),
    ([], b"", "no prompt"),
    ([], b" \n\r\n", "stdin: the prompt is empty"),
    ([], b"a\0b", "stdin: the prompt holds a NUL byte at 1"),
    ([], b"ab\xff", "stdin: the prompt is not UTF-8 at byte 2"),
    ([], "a".encode("utf-16"), "stdin: the prompt holds a NUL byte at"),
    (["-f", "none"], None, "none: cannot be read: no such file or directory"),
    (["-f", "."], None, ".: is not a file"),
    (["-f", "fifo"], None, "fifo: is not a file"),
    (["-f", "loop"], None, "loop: cannot be read: too many levels of symbolic links"),
    (["-f", "a" * 300], None, "cannot be read: file name too long"),
    (["-f", "empty"], None, "empty: the prompt is empty"),
    (["-f", "nul"], None, "nul: the prompt holds a NUL byte at 0"),
    (["-f", "latin"], None, "latin: the prompt is not UTF-8 at byte 2"),
    (["-f", "/dev/null"], None, "/dev/null: is not a file"),
    (["-f", "huge"], None, "huge: the prompt has "),
    (["-f", "empty", "word"], None, "a prompt in words and one in empty"),
    (["-f", ""], b"from stdin", ""),
    (["--cwd", "none", "hi"], None, "no such folder"),
    (["--cwd", "latin", "hi"], None, "no such folder"),
    (["--pane", "hi"], None, "--pane: not inside tmux"),
    (["--wait", "nonsense", "hi"], None, "`nonsense` is no time"),
    (["--wait", "-1", "hi"], None, "--wait"),
    (["--max-time", "1.2.3", "hi"], None, "`1.2.3` is no time"),
    (["--stall", ".", "hi"], None, "`.` is no time"),
    (["--stall"], None, "--stall"),
    (["--profle", "x", "hi"], None, "--profle"),
    (["--prof", "fake", "hi"], None, "--prof"),
    (["--json=1", "hi"], None, "--json")])
def test_a_bad_request_is_refused_in_two_lines_and_as_an_object(sandbox, words, stdin, said):
    sandbox.fake_config()
    (sandbox.work / "empty").write_text("\n")
    (sandbox.work / "nul").write_bytes(b"\0")
    (sandbox.work / "latin").write_bytes(b"gr\xf6\xdfe")
    (sandbox.work / "loop").symlink_to("loop")
    os.mkfifo(sandbox.work / "fifo")
    with open(sandbox.work / "huge", "wb") as file:
        file.write(b"a" * 20_000_000 if "huge" in words else b"")
    words = [os.fsdecode(word) for word in words]
    what, _ = refused(sandbox, "run", "--json", *words, stdin=stdin)
    assert said in what and "parse_seconds" not in what


@pytest.mark.usefixtures("as_a_script")
@pytest.mark.parametrize("redirect", ["<&-", "< /dev/null", "< /dev/zero"])
def test_a_stdin_that_is_closed_or_no_file_and_no_pipe_is_no_prompt(sandbox, redirect):
    sandbox.fake_config()
    status, out, err = run_in_shell(sandbox, "$SELFTALK run " + redirect)
    assert check_refusal(status, err, 2)[0] == "no prompt" and out == ""


def test_a_pipe_that_stays_open_and_silent_is_refused_after_five_seconds(sandbox):
    assert selftalk.PIPE_PATIENCE_S == 5.0
    sandbox.fake_config()
    code = "import sys; sys.path.insert(0, %r); import selftalk; selftalk.PIPE_PATIENCE_S = 0.1; sys.exit(selftalk.main(['run']))" % str(ROOT)
    process = subprocess.Popen([sys.executable, "-c", code], env=sandbox.env, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.wait(timeout=5.0) == 2
    assert "sends nothing and does not close" in check_refusal(2, process.stderr.read().decode(), 2)[0]
    process.stdin.close()
    process.stderr.close()


def test_a_prompt_of_two_megabytes_goes_by_file_and_is_whole(sandbox):
    sandbox.fake_config()
    text = "größe\n" * 290_000
    (sandbox.work / "plan.md").write_text(text, encoding="utf-8")
    status, _, _ = sandbox.run("run", "-f", "plan.md", "--wait", "10", steps="dump %s; exit 3" % (sandbox.work / "dump"))
    prompt = json.loads((sandbox.work / "dump").read_text())["argv"][-1]
    assert status == 1 and len(prompt) < 1000
    path = re.search(r"/\S+/prompt\.md", prompt)[0]
    assert pathlib.Path(path).read_text(encoding="utf-8").startswith(text.rstrip("\n"))


@pytest.mark.parametrize("words, prompt", [
    (["run", "--", "--foo", "-x"], "--foo -x"), (["run", "-p", "fake", "--", "--json"], "--json"), (["--", "list"], "list"),
    (["say", "it"], "say it"), (["run", "a", "--quiet", "b"], "a b"), (["run", "a", "--", "b"], "a b"),
    (["run", "it's $HOME `x` \\ \"q\"\n*"], "it's $HOME `x` \\ \"q\"\n*")])
def test_the_words_that_are_no_verb_and_no_option_are_the_prompt(sandbox, words, prompt):
    sandbox.fake_config()
    status, out, err = sandbox.run(*words, steps="done ok; hold")
    assert (status, out.strip()) == (0, "ok"), err
    assert json.loads((sandbox.run_folder() / "turns" / "1.json").read_text())["prompt"] == prompt


# --- places that cannot be used ---------------------------------------------------------------

@pytest.mark.parametrize("home, said", [("file/state", "cannot be written: not a directory"), ("relative", "is not an absolute path")])
def test_a_state_folder_that_cannot_be_used_is_refused(sandbox, home, said):
    sandbox.fake_config()
    (sandbox.folder / "file").write_text("")
    path = str(sandbox.folder / home) if home != "relative" else home
    what, fix = refused(sandbox, "run", "hi", "--json", env={"XDG_STATE_HOME": path})
    assert said in what and ("XDG_STATE_HOME" in what or "XDG_STATE_HOME" in fix)


@pytest.mark.parametrize("room_bytes", [0, 1500])
def test_a_full_disk_is_refused_and_nothing_half_written_is_left(sandbox, room_bytes):
    sandbox.fake_config()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, room_bytes))   # noqa: E731
    process = sandbox.start("run", "x" * 3000, preexec_fn=limit)
    out, err = process.communicate(timeout=20)
    assert "cannot be written" in check_refusal(process.returncode, err.decode(), 2)[0]
    assert out == b"" and nothing_started(sandbox) and sandbox.processes() == []


@pytest.mark.parametrize("words", [["run", "hi"], ["run", "--cwd", ".", "hi"], ["run", "-f", "plan.md"], ["profiles", "--json"]])
def test_a_current_folder_that_was_deleted_is_refused(sandbox, words):
    sandbox.fake_config()
    process = sandbox.start(*words, preexec_fn=lambda: os.rmdir(str(sandbox.work)))
    _, err = process.communicate(timeout=20)
    check_refusal(process.returncode, err.decode(), 2)
    assert nothing_started(sandbox)


# --- the environment ----------------------------------------------------------------------------

@pytest.mark.usefixtures("as_a_script")
@pytest.mark.parametrize("env", [
    {"SELFTALK_DEPTH": "abc", "SELFTALK_RUN": "garbage", "TMUX": "garbage", "TMUX_PANE": "-x", "TERM": ""}, {"SELFTALK_DEPTH": "²"},
    {"SELFTALK_DEPTH": "9" * 5000}, {"SELFTALK_RUN": "/x/²", "TMUX": "/none,1,0", "TMUX_PANE": "%0"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"LANG": "de_DE.ISO-8859-1"}])
def test_an_odd_environment_does_no_harm(sandbox, env):
    sandbox.fake_config()
    status, out, err = sandbox.run("run", "größe 🎉", steps="done größe 🎉; hold", env=env)
    assert (status, out) == (0, "größe 🎉\n"), err
    assert "größe 🎉" in (sandbox.run_folder() / "prompt.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("as_a_script")
def test_a_locale_that_really_is_latin_1_bends_neither_prompt_nor_folder(sandbox):
    if not shutil.which("localedef") or subprocess.run(
            ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(sandbox.folder / "de_DE.ISO-8859-1")], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no localedef with the sources of de_DE: apt install locales")
    sandbox.fake_config()
    (sandbox.work / "ü").mkdir()
    env = {"LOCPATH": str(sandbox.folder), "LANG": "de_DE.ISO-8859-1"}
    status, out, err = sandbox.run("run", "größe", "--cwd", "ü", steps="done größe 🎉; hold", env=env)
    assert (status, out) == (0, "größe 🎉\n"), err
    assert "größe" in (sandbox.run_folder() / "prompt.md").read_text(encoding="utf-8")


def test_the_workers_environment_is_the_callers_also_where_the_launcher_has_words_of_its_own(sandbox):
    sandbox.fake_config(more="    env: {PROMPT: mine, QUOTED: \"a'b\\\"c\\nd $e\"}\n")
    env = {"run": "theirs", "status": "7", "command": "c"}
    sandbox.run("run", "hi", steps="dump %s; done x; hold" % (sandbox.work / "dump"), env=env)
    seen = json.loads((sandbox.work / "dump").read_text())["env"]
    assert {name: seen.get(name) for name in ("PROMPT", "QUOTED", *env)} == {"PROMPT": "mine", "QUOTED": "a'b\"c\nd $e", **env}


@pytest.mark.usefixtures("as_a_script")
def test_a_secret_is_in_no_file_no_argument_and_no_option(sandbox):
    sandbox.fake_config(more="    env: {A: {from_env: TOKEN}, B: SECRET-123-literal}\n")
    status, _, err = sandbox.run("run", "hi", "-v", "--keep", steps="dump %s; done x; hold" % (sandbox.work / "dump"),
                                 env={"TOKEN": "SECRET-123-env"})
    seen = json.loads((sandbox.work / "dump").read_text())["env"]
    assert status == 0 and (seen["A"], seen["B"]) == ("SECRET-123-env", "SECRET-123-literal")
    socket = json.loads((sandbox.run_folder() / "run.json").read_text())["socket"]
    options = "".join(subprocess.run(["tmux", "-S", socket, "show-options", flag], stdout=subprocess.PIPE, text=True).stdout
                      for flag in ("-g", "-s", "-gw", "-A"))
    files = "".join(path.read_text() for path in sandbox.state.rglob("*") if path.is_file())
    lines = "".join(line for _, line in sandbox.processes())
    assert "history-limit 50000" in options and "launch.sh" in lines and "prompt" in files
    assert "SECRET-123" not in options + files + lines + err
    assert sandbox.run("stop", "1")[0] == 0


@pytest.mark.parametrize("name", ["a;", "#(touch pwned)#{pane_id}", "c'\"$x `touch pwned`\nf{prompt} ü 🎉"])
@pytest.mark.parametrize("place", ["session", "pane"])
def test_a_workspace_of_any_name_is_entered_and_never_obeyed(sandbox, name, place, tmux_pane):
    sandbox.fake_config()
    (sandbox.work / name).mkdir()
    status, _, err = sandbox.run("run", "hi", "--" + place, "--cwd", name, steps="dump %s; done x; hold" % (sandbox.folder / "dump"),
                                 env=tmux_pane)
    assert status == 0, err
    assert json.loads((sandbox.folder / "dump").read_text())["cwd"] == str(sandbox.work / name)
    assert not list(sandbox.folder.rglob("pwned"))


@pytest.fixture
def as_a_script(monkeypatch):
    """What a person has: the file itself is run."""
    monkeypatch.setattr(Sandbox, "command", SCRIPT)


@pytest.fixture
def tmux_pane(sandbox):
    """The environment of a person inside tmux."""
    tmux = ["tmux", "-S", str(sandbox.folder / "sockets" / "person"), "-f", "/dev/null"]
    facts = subprocess.run([*tmux, "new-session", "-d", "-x", "200", "-y", "50", "-P", "-F", "#{pid} #{pane_id}", "sleep 1000"],
                           env=sandbox.env, stdout=subprocess.PIPE, text=True, cwd=sandbox.work).stdout.split()
    yield {"TMUX": "%s,%s,0" % (tmux[2], facts[0]), "TMUX_PANE": facts[1]}
    subprocess.run([*tmux, "kill-server"])


def test_no_worker_is_started_in_a_server_of_somebody_else(sandbox):
    """One that is about to end would take it along, and the next try would do its task a second time."""
    sandbox.fake_config()
    tmux = ["tmux", "-u", "-L", "selftalk-1", "-f", "/dev/null"]
    subprocess.run([*tmux, "new-session", "-d", "-s", "theirs", "sleep 1000"], env=sandbox.env, check=True)
    try:
        status, result = sandbox.run_json("run", "hi", steps="done x; hold")
        told = subprocess.run([*tmux, "list-sessions", "-F", "#S"], env=sandbox.env, stdout=subprocess.PIPE, text=True)
    finally:
        subprocess.run([*tmux, "kill-server"], env=sandbox.env)
    assert (status, result["answer"], told.stdout) == (0, "x", "theirs\n")
    assert result["watch"].split()[2].endswith("/selftalk-1-2")


# --- closed and full outputs ----------------------------------------------------------------------

@pytest.mark.usefixtures("as_a_script")
@pytest.mark.parametrize("line", ["$SELFTALK list >&-", "$SELFTALK list 2>&-", "$SELFTALK --help >&-", "$SELFTALK list > /dev/null 2>&-"])
def test_a_closed_output_is_no_bug(sandbox, line):
    status, _, err = run_in_shell(sandbox, line)
    assert (status, err.replace("selftalk: no runs yet\n", "")) == (0, "")


def start_unread(box, stream, *words, steps):
    """Runs selftalk with a stream whose reader has gone away: (status, what the other stream got)."""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    process = subprocess.Popen([sys.executable, str(PROGRAM), *words], env=dict(box.env, FAKE_STEPS=steps), cwd=box.work,
                               stdin=subprocess.DEVNULL, **streams)
    os.close(writer)
    return process.wait(timeout=20), b"".join(filter(None, process.communicate())).decode()


@pytest.mark.usefixtures("as_a_script")
@pytest.mark.parametrize("words", ["profiles", "--help", "run --help", "run --json"])
def test_a_reader_that_goes_away_is_no_bug(sandbox, words):
    status, err = start_unread(sandbox, "stdout", *words.split(), steps="")
    assert "Traceback" not in err and "Exception ignored" not in err and status in (0, 1, 2)


def test_talk_that_nobody_reads_does_not_stop_a_run(sandbox):
    sandbox.fake_config()
    assert start_unread(sandbox, "stderr", "run", "hi", steps="done x; hold") == (0, "x\n")


@pytest.mark.usefixtures("as_a_script")
@pytest.mark.parametrize("words", ["profiles", "run --json"])
def test_an_output_that_is_full_is_said_in_one_line(sandbox, words):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    status, _, err = run_in_shell(sandbox, "$SELFTALK %s > /dev/full" % words)
    assert status in (1, 2) and "Traceback" not in err and "Exception ignored" not in err and "no space left" in err


# --- signals -----------------------------------------------------------------------------------------

@pytest.mark.usefixtures("as_a_script")
@pytest.mark.parametrize("when, number", [("before", "INT"), ("before", "TERM"), ("after", "INT"), ("after", "HUP"), ("after", "KILL")])
def test_a_start_that_is_cut_short_leaves_nothing_after_the_next_call(sandbox, when, number):
    if signal.getsignal(getattr(signal, "SIG" + number)) == signal.SIG_IGN:
        pytest.skip("whoever runs the tests ignores SIG%s, as nohup does" % number)
    sandbox.fake_config()
    cut = "kill -%s $PPID; sleep 0.1; exit 1" % number
    path = tool_folder(sandbox, tmux='case "$*" in *new-session*) %s; %s;; esac; exec %s "$@"\n' % (
        shutil.which("tmux") + ' "$@"' if when == "after" else ":", cut, shutil.which("tmux")))
    status, _, err = sandbox.run("run", "hi", steps="hold", env={"PATH": path + ":" + os.environ["PATH"]})
    assert status == (-signal.SIGKILL if number == "KILL" else 130) and "Traceback" not in err, err
    assert number != "INT" or "goes on" not in err and nothing_started(sandbox)
    status, runs = sandbox.run_json("list")
    assert [run["state"] for run in runs] in ([], ["over"])
    assert until_true(lambda: sandbox.processes() == []) and not glob.glob(str(sandbox.folder / "sockets" / "*" / "*"))


@pytest.mark.usefixtures("as_a_script")
def test_ctrl_c_while_waiting_names_the_run_that_goes_on(sandbox):
    sandbox.fake_config()
    process = sandbox.start("run", "hi", "--keep", steps="hold")
    line = process.stderr.readline().decode()
    assert line.startswith("selftalk: run 1: fake started")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130 and check_refusal(130, err.decode(), 130)[1].endswith("wait 1")
    assert sandbox.run("stop", "1")[0] == 0


def test_a_state_folder_removed_during_a_run_leaves_no_worker(sandbox):
    sandbox.fake_config()
    process = sandbox.start("run", "hi", steps="busy 0.5; exit 3")
    process.stderr.readline()
    shutil.rmtree(str(sandbox.state))
    _, err = process.communicate(timeout=20)
    assert process.returncode in (1, 2) and "Traceback" not in err.decode()
    assert until_true(lambda: sandbox.processes() == [], 3.0)


# --- old and broken runs -------------------------------------------------------------------------------

@pytest.mark.parametrize("text", ['{"format": 1}', "{", '{"format": 2, "state": "running"}'])
def test_a_run_that_cannot_be_read_is_named_and_stops_nothing_else(sandbox, text):
    sandbox.run_folder(7).mkdir(parents=True)
    (sandbox.state / "open").mkdir()
    (sandbox.state / "open" / "7").write_text("")
    (sandbox.run_folder(7) / "run.json").write_text(text)
    status, out, err = sandbox.run("list")
    assert status == 0 and "7" in err and (sandbox.run_folder(7) / "run.json").read_text() == text


@pytest.mark.parametrize("verb", ["wait", "stop"])
@pytest.mark.parametrize("word", ["9", "²", "x"])
def test_a_run_that_does_not_exist_is_refused(sandbox, verb, word):
    assert "run `%s` does not exist" % word in refused(sandbox, verb, word, "--json")[0]


# --- waiting, from other processes ------------------------------------------------------------------------

def test_a_turn_that_began_under_another_wait_is_known_to_have_begun(sandbox):
    sandbox.fake_config()
    assert sandbox.run("run", "hi", "--wait", "0.6", steps="busy 0.8; ready; hold")[0] == 75
    status, _, err = sandbox.run("wait", "1", "--wait", "2")
    sandbox.run("stop", "1")
    assert status == 0 and "went idle" in err


def test_silence_is_counted_across_waits(sandbox):
    sandbox.fake_config()
    assert sandbox.run("run", "hi", "--wait", "0.7", "--stall", "1.5", steps="hold")[0] == 75
    codes = [sandbox.run("wait", "1", "--wait", "0.7")[0] for _ in range(3)]
    sandbox.run("stop", "1")
    assert 7 in codes


def test_a_wait_that_ends_before_the_start_is_a_wait_that_is_over(sandbox):
    folder = pathlib.Path(selftalk.new_run(str(sandbox.state), run_facts(caller=selftalk.read_process(os.getpid()))).folder)
    assert sandbox.run("wait", "1", "--wait", "0.1")[0] == 75
    selftalk.remove_folder(str(folder))


# --- what is printed ------------------------------------------------------------------------------------

@pytest.mark.parametrize("words", [["--help"], *[[verb, "--help"] for verb in selftalk.COMMANDS]])
def test_help_fits_a_screen(sandbox, words):
    status, out, err = sandbox.run(*words, env={"COLUMNS": "80"})
    assert (status, err) == (0, "") and len(out.splitlines()) <= 40 and max(map(len, out.splitlines())) <= 80


def test_help_names_every_verb_and_every_exit_code(sandbox):
    _, out, _ = sandbox.run("--help")
    assert all(re.search(r"^  %s " % verb, out, re.MULTILINE) for verb in selftalk.COMMANDS)
    codes = {code for code, _ in selftalk.OUTCOMES.values()} | {failure.code for failure in selftalk.FAILURES} | {130}
    assert all(re.search(r"\b%d \w" % code, out) for code in codes)


@pytest.mark.usefixtures("as_a_script")
def test_the_version_names_this_copy(sandbox):
    status, out, _ = sandbox.run("--version")
    assert status == 0 and re.match(r"selftalk \d+\.\d+\.\d+ \([0-9a-f]{8}\)\n$", out)
    copy = sandbox.folder / "copy.py"
    copy.write_bytes(PROGRAM.read_bytes() + b"\n")
    assert subprocess.run([sys.executable, str(copy), "--version"], stdout=subprocess.PIPE, text=True).stdout != out


def test_profiles_shows_all_and_marks_the_default_one(sandbox):
    sandbox.config("default_profile: b\nprofiles:\n  a: {command: x}\n  b: {command: y, env: {T: {from_env: TOKEN}}}\n")
    status, out, _ = sandbox.run("profiles", env={"TOKEN": "SECRET-123"})
    assert status == 0 and [line.split() for line in out.splitlines()] == [["a", "x"], ["*", "b", "y"]]
    status, found = sandbox.run_json("profiles", env={"TOKEN": "SECRET-123"})
    assert [(one["name"], one["default"]) for one in found] == [("a", False), ("b", True)]
    assert found[1]["env"] == {"T": {"from_env": "TOKEN"}} and "SECRET-123" not in json.dumps(found)


def test_profiles_of_a_named_config_are_its_own(sandbox):
    sandbox.fake_config()
    (sandbox.work / "mine.yaml").write_text("profiles: {mine: {command: x}}")
    assert sandbox.run("profiles", "--config", "mine.yaml")[1].split() == ["mine", "x"]


def test_without_runs_the_list_is_empty(sandbox):
    assert sandbox.run("list") == (0, "", "selftalk: no runs yet\n") and sandbox.run_json("list") == (0, [])


RESULT_KEYS = {"id", "folder", "watch", "name", "profile", "agent", "form", "place", "workspace", "state", "outcome", "turn", "session_id", "parent", "depth",
               "started_at", "ended_at", "exit_status", "answer", "source", "what", "fix", "model", "tokens", "options", "seconds", "took_over", "resets_at",
               "cost_usd", "denied"}


@pytest.mark.usefixtures("as_a_script")
def test_the_answer_is_on_stdout_the_talk_on_stderr_and_json_has_these_keys(sandbox):
    sandbox.fake_config()
    status, out, err = sandbox.run("run", "hi", steps="done two\\nlines; hold")
    assert status == 0 and out.strip() and "selftalk" not in out and err.startswith("selftalk: run 1: fake started; watch: tmux -S ")
    assert sandbox.run("run", "hi", "-q", steps="done x; hold") == (0, "x\n", "")
    status, found = sandbox.run_json("wait", "2")
    assert status == 0 and set(found) == RESULT_KEYS
    assert (found["id"], found["outcome"], found["answer"], found["source"], found["state"]) == (2, "answered", "x", "done.md", "over")
    assert [run["id"] for run in sandbox.run_json("list")[1]] == [1, 2]


def test_the_exit_codes_are_the_promised_ones():
    assert {outcome: code for outcome, (code, _) in selftalk.OUTCOMES.items()} == {
        "answered": 0, "ready": 0, "failed": 1, "died": 1, "stopped": 1, "login": 4, "asks": 5, "limited": 6, "stalled": 7, "late": 8, "running": 75}
    assert {failure.word: failure.code for failure in selftalk.FAILURES} == {
        "failed": 1, "usage": 2, "missing": 3, "interrupted": 130}


def test_the_readme_lists_the_same_codes():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")
    rows = re.findall(r"^\| *(\d+) *\| *`?(\w+)`? *\| *(.*?) *\|$", readme.read_text(encoding="utf-8"), re.MULTILINE)
    assert {int(code) for code, _, _ in rows} == {code for code, _ in selftalk.OUTCOMES.values()} | {2, 3, 130}
    assert {(str(code), outcome, meaning) for outcome, (code, meaning) in selftalk.OUTCOMES.items()} <= set(rows)


@pytest.mark.parametrize("words", [["lsit"], ["stpo", "3"], ["wiat", "1"], ["profile"]])
def test_a_word_that_is_nearly_a_verb_starts_no_worker(sandbox, words):
    sandbox.fake_config()
    what, fix = refused(sandbox, *words, steps="done x; hold")
    assert words[0] in what and any(verb in fix for verb in selftalk.COMMANDS)


# --- for who has never seen it ---------------------------------------------------------------------

def test_without_any_word_a_person_at_a_terminal_is_shown_the_help(sandbox):
    terminal, other = os.openpty()
    process = subprocess.Popen([*sandbox.command], env=sandbox.env, cwd=sandbox.work, stdin=other, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = (text.decode() for text in process.communicate(timeout=30))
    for handle in (terminal, other):
        os.close(handle)
    assert process.returncode == 2 and out == selftalk.help_text() + "\n" and "nothing to do" in err


@pytest.mark.parametrize("word, meant", [("status", "`list`"), ("kill", "`stop`"), ("rm", "`prune`"), ("quota", "`usage`"), ("lsit", "`list`"),
                                         ("uninstall", "`install-skill --uninstall`"), ("hello", "--help shows them"), ("Hi", "--help shows them")])
@pytest.mark.parametrize("rest", [(), ("3",), ("last",), ("-q",)])
def test_a_bare_word_that_is_no_verb_starts_nobody(sandbox, word, meant, rest):
    sandbox.fake_config()
    what, fix = refused(sandbox, word, *rest)
    assert what == "`%s` is no verb" % word and meant in fix and fix.endswith("run -- %s" % word) and nothing_started(sandbox)


@pytest.mark.parametrize("words", [("say hello",), ("say", "hello"), ("run", "hello"), ("--", "hello"), ("-p", "fake", "hello"), ("hello", "-p", "fake")])
def test_but_these_are_prompts(sandbox, words):
    sandbox.fake_config()
    assert sandbox.run(*words, steps="done yes")[:2] == (0, "yes\n")


@pytest.mark.parametrize("verb", ["run", "install-skill", "wait"])
def test_help_and_a_verb_is_the_help_of_that_verb(sandbox, verb):
    assert sandbox.run("help", verb) == sandbox.run(verb, "--help") and sandbox.run("help")[1] == sandbox.run("--help")[1]


@pytest.mark.parametrize("verb, operands", [("wait", "[ID…]"), ("stop", "ID…"), ("attach", "[ID]"), ("usage", "[AGENT…]"), ("send", "ID [PROMPT…]")])
def test_help_says_what_may_be_left_out_and_what_may_be_many(sandbox, verb, operands):
    assert sandbox.run(verb, "--help")[1].splitlines()[0] == "usage: selftalk.py %s [options] %s" % (verb, operands)


def test_words_that_nobody_takes_are_refused(sandbox):
    assert refused(sandbox, "list", "--", "x")[0] == "list: takes no words behind --"
    assert "more than one of --copy, --link, --uninstall" in refused(sandbox, "install-skill", "--link", "--copy")[0]
    assert "more than one of" in refused(sandbox, "install-skill", "--link", "--uninstall")[0]


def test_a_built_in_profile_that_the_config_has_replaced_is_told_so(sandbox):
    sandbox.fake_config()
    what, fix = refused(sandbox, "run", "-p", "claude", "do it")
    assert "profile `claude` is not defined in" in what and fix.startswith("it is built in, but the profiles of a config replace those")


def test_a_config_that_is_a_pipe_does_not_hang(sandbox):
    os.mkfifo(sandbox.work / "pipe")
    assert "is not a file" in refused(sandbox, "profiles", "--config", "pipe")[0]


def test_without_tmux_it_is_said_what_needs_none(sandbox):
    sandbox.fake_config()
    assert "-H" in refused(sandbox, "run", "do it", code=3, env={"PATH": str(sandbox.work)})[1]
