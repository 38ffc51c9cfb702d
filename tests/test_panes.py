"""Room 11: what is given to a worker, and how it is looked at. Pure parts first, then real tmux."""
import contextlib
import json
import os
import sqlite3
import subprocess

import pytest

from sandboxes import run_facts

from selftalk import (AGENTS, FromEnv, Launch, Profile, Record, RecordFollower, Run, Screen, Unusable,
                      check_tmux, compose_env, end_pane, fill_holes, find_begin, new_run, open_session, plan_answer,
                      read_process, record_home, render_launcher, split_direction, given_prompt)

RUN = Run("/home/dev/it's state/runs/7", {"workspace": "/work/a b", "session_id": "", "form": "task", "turn": 1,
                                               "agent": "generic"})


def launcher(interface="generic", prompt="hello", way="argument", **fields):
    profile = Profile("p", "/bin/agent", AGENTS[interface], prompt=way, **fields)
    return render_launcher(RUN, Launch(profile, {}, given_prompt(RUN, prompt, profile)[1]))


@pytest.mark.parametrize("interface, words", [
    ("generic", '-- "$(prompt)"'), ("claude", '-- "$(prompt)"'), ("codex", '-- "$(prompt)"'), ("cursor", '-- "$(prompt)"'),
    ("opencode", '--prompt "$(prompt)"'), ("gemini", '-i "$(prompt)"')])
def test_each_interface_gives_the_prompt_in_its_form(interface, words):
    line, = [line for line in launcher(interface).split("\n") if "/bin/agent" in line]
    odd = "env npm_@google:registry=http://127.0.0.1:9/ " if interface == "gemini" else ""      # sh would drop that name
    log = " 2>> '/home/dev/it'\"'\"'s state/runs/7'/stderr.log" if interface == "opencode" else ""   # it names the session
    assert line.startswith(odd + "/bin/agent ") and line.endswith(words + log)


def test_stdin_and_prompt_file_take_the_place_of_the_argument():
    assert '/bin/agent < \'/home/dev/it\'"\'"\'s state/runs/7\'/prompt.md\n' in launcher(way="stdin")
    text = launcher(args=("--file={prompt_file}",), way="prompt-file-arg")
    assert "'--file=/home/dev/it'\"'\"'s state/runs/7/prompt.md'\nset --" in text and '"$(prompt)"' not in text


def test_a_launcher_holds_names_of_variables_and_no_values():
    text = launcher(env=(("TOKEN", FromEnv("MY_TOKEN")), ("LITERAL", "obviously-a-secret")))
    assert "TOKEN" in text and "LITERAL" in text
    assert "obviously" not in text and "MY_TOKEN" not in text


@pytest.mark.parametrize("interface", sorted(AGENTS))
def test_a_launcher_is_shell_that_parses(interface):
    text = launcher(interface, args=("it's", "a b", "$HOME", "`id`", "new\nline"))
    assert subprocess.run(["sh", "-n"], input=text.encode()).returncode == 0


def test_a_prompt_too_long_for_an_argument_is_given_as_a_file():
    assert "prompt() { cat " in launcher(prompt="x" * 1000)
    long = launcher(prompt="ü" * 60_001)
    assert "prompt() { printf %s 'Read the file" in long and "cat " not in long


def test_a_prompt_keeps_its_words_and_gets_instructions():
    given = "fix {folder} and {prompt}\n\n"
    text = given_prompt(RUN, given, Profile("p", "agent", AGENTS["generic"]))[0]
    assert text.startswith("fix {folder} and {prompt}\n\n---\n")
    assert "\n%s/done.md.tmp\n" % RUN.folder in text and "\n%s/done.md\n" % RUN.folder in text


def test_a_prompt_that_an_agent_would_take_for_a_command_is_given_as_text():
    def given(interface, prompt):
        return given_prompt(RUN, prompt, Profile("p", "agent", AGENTS[interface]))[1]

    assert given("codex", "!echo hi").startswith(" !echo hi\n")
    assert given("opencode", "-rf x").startswith(" -rf x\n")
    assert given("generic", "-rf x").startswith("-rf x\n")
    assert "Read the file" in launcher("claude", prompt="/init") and "Read the file" in launcher("claude", prompt=" /init")
    assert "Read the file" not in launcher("claude", prompt="see /init")


def test_the_rows_own_args_are_left_out_when_the_profile_decides_itself():
    settings = '{"a":1}'
    assert launcher("claude", args=("--settings", settings)).count("--settings") == 1
    assert launcher("claude", args=("--model", "x")).count("--settings") == 1
    assert launcher("codex", args=("-c", "check_for_update_on_startup=true")).count("check_for_update") == 1
    assert 'projects={"/work/a b"={trust_level="trusted"}}' in launcher("codex")


def test_holes_are_filled_once():
    assert fill_holes(("{a}{b}", "{c}"), {"a": "{b}", "b": "x"}) == ("{b}x", "{c}")


# --- environment ----------------------------------------------------------------

def test_a_worker_gets_the_callers_environment_without_what_bends_a_nested_agent():
    base = {"KEEP": "1", "CLAUDECODE": "1", "CODEX_THREAD_ID": "x", "GEMINI_CLI": "1", "OPENCODE": "1", "TMUX": "x,1,0",
            "TMUX_PANE": "%1", "COLUMNS": "80", "NO_COLOR": "1", "LANG": "C.UTF-8"}
    env = compose_env(Profile("p", "c", AGENTS["claude"]), base, False)
    assert env["KEEP"] == "1" and env["DISABLE_AUTOUPDATER"] == "1"
    assert not set(base) - {"KEEP", "LANG"} & set(env)
    assert "IS_SANDBOX" not in env and compose_env(Profile("p", "c", AGENTS["claude"]), base, True)["IS_SANDBOX"] == "1"


def test_a_profiles_variables_win_and_may_come_from_the_caller():
    profile = Profile("p", "c", AGENTS["claude"], env=(("A", "literal"), ("B", FromEnv("SOURCE")), ("DISABLE_AUTOUPDATER", "0")))
    env = compose_env(profile, {"A": "old", "SOURCE": "value"}, False)
    assert (env["A"], env["B"], env["DISABLE_AUTOUPDATER"]) == ("literal", "value", "0")


def test_a_variable_that_is_not_set_is_named():
    with pytest.raises(Unusable) as caught:
        compose_env(Profile("p", "c", AGENTS["generic"], env=(("B", FromEnv("SOURCE")),)), {}, False)
    assert "SOURCE" in caught.value.what and "SOURCE" in caught.value.fix


@pytest.mark.parametrize("env, answer", [
    ({}, True), ({"LANG": "C"}, True), ({"LANG": "de_DE.UTF-8"}, False), ({"LANG": "C.UTF-8", "LC_ALL": "C"}, True),
    ({"LC_ALL": "en_US.utf8", "LANG": "C"}, False)])
def test_a_terminal_agent_is_given_utf8(env, answer):
    given = compose_env(Profile("p", "c", AGENTS["generic"]), env, False)
    assert (given.get("LC_ALL") != env.get("LC_ALL")) is answer
    assert "utf" in str(given).lower()


def test_the_folder_of_an_agents_record_follows_the_workers_environment():
    assert record_home(AGENTS["claude"], {"HOME": "/h"}) == "/h/.claude"
    assert record_home(AGENTS["claude"], {"HOME": "/h", "CLAUDE_CONFIG_DIR": "/c"}) == "/c"
    assert record_home(AGENTS["generic"], {"HOME": "/h"}) == ""


@pytest.mark.parametrize("size, flag", [
    ((200, 50), "-h"), ((121, 15), "-h"), ((120, 31), "-v"), ((120, 30), ""), ((80, 24), ""), ((60, 31), "-v"),
    ((0, 0), ""), ((500, 14), "")])
def test_a_pane_is_split_where_there_is_room(size, flag):
    assert split_direction(*size) == flag


def test_a_start_in_a_session_can_be_undone_when_its_run_was_in_a_pane_before(sandbox):
    here = read_process(os.getpid())   # stands for the server that had the pane: it goes on
    run = new_run(str(sandbox.state), run_facts(agent="generic", tmux=check_tmux(), place="pane", is_shared=True, pane="%0",
                                                workspace=str(sandbox.work), server=here))
    profile = Profile("p", "sleep", AGENTS["generic"], ("100",))
    facts = open_session(run, Launch(profile, sandbox.env), None)
    assert end_pane(run) == []
    assert not os.path.exists(facts.socket) and not read_process(facts.server_pid)


# --- dialogs --------------------------------------------------------------------

QUESTION = "Fake agent: may I work in this folder?\n\n%s No, leave\n%s Yes, work here\n\nEnter to confirm\n"


def test_an_option_is_taken_only_once_it_is_seen_to_be_selected():
    dialogs = AGENTS["demo"].pane.dialogs
    first, second = Screen(QUESTION % ("❯", " ")), Screen(QUESTION % (" ", "❯"))
    assert plan_answer(first, dialogs) == ("question", "Down")
    assert plan_answer(second, dialogs) == ("question", "Enter")
    assert plan_answer(Screen("Demo worker"), dialogs) == ("", "")


def test_a_dialog_whose_selection_cannot_be_seen_is_not_touched():
    screen = Screen(QUESTION % (" ", " "))
    assert plan_answer(screen, AGENTS["demo"].pane.dialogs) == ("question", "")
    other = Screen((QUESTION % ("❯", " ")).replace("Yes, work here", "Yes, and delete it all"))
    assert plan_answer(other, AGENTS["demo"].pane.dialogs) == ("question", "")


# --- the agent's own record -------------------------------------------------------

STARTED = 1795250000.0
LATER = '"timestamp":"2026-11-21T08:33:25.000Z"'


def transcript_lines(*lines):
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


@pytest.fixture
def follower(tmp_path):
    run = Run(str(tmp_path / "runs" / "7"), {
        "started_at": STARTED, "record_home": str(tmp_path / "agent"), "session_id": "", "launcher": None})
    made = RecordFollower(Record("claude-transcript", ("X", "~/.x"), "projects/*/{session}.jsonl"), run)
    made.folder = tmp_path / "agent" / "projects" / "-work"
    made.folder.mkdir(parents=True)
    made.prompt = {"type": "user", "timestamp": "2026-11-21T08:33:25.000Z",
                   "message": {"role": "user", "content": "do it, then write %s/done.md" % run.folder}}
    return made


ANSWER = {"type": "assistant", "message": {"model": "m", "content": [{"type": "text", "text": "All ünicode is done."}],
                                           "usage": {"input_tokens": 3, "output_tokens": 4}}}
END = {"type": "system", "subtype": "turn_duration"}


def test_a_record_is_found_by_our_prompt_and_followed_line_by_line(follower):
    path = follower.folder / "a.jsonl"
    assert follower.read()[-1].state == "unknown"
    path.write_text(transcript_lines(follower.prompt))
    assert follower.read()[-1].state == "busy" and not follower.has_grown
    whole = transcript_lines(ANSWER, END).encode()
    cut = whole.index("ü".encode()) + 1          # in the middle of a character
    for part in (whole[:cut], whole[cut:-1], whole[-1:]):
        with open(path, "ab") as file:
            file.write(part)
        assert follower.has_grown
        said = follower.read()[-1]
    assert (said.state, said.text, said.model, said.tokens) == ("ready", "All ünicode is done.", "m", {"input": 3, "output": 4})


def test_a_record_of_another_run_or_of_the_agent_that_called_us_is_not_taken(follower):
    other = dict(follower.prompt, message={"role": "user", "content": "do it"})
    (follower.folder / "other.jsonl").write_text(transcript_lines(other, ANSWER, END))
    older = dict(follower.prompt, timestamp="2026-11-21T08:00:00.000Z")
    (follower.folder / "caller.jsonl").write_text(transcript_lines(older, follower.prompt, ANSWER, END))
    assert follower.read()[-1].state == "unknown"


def test_run_7_is_not_run_77():
    assert find_begin(LATER + " /runs/7/done.md", "/runs/7/", STARTED)
    assert not find_begin(LATER + " /runs/77/done.md", "/runs/7/", STARTED)
    assert not find_begin(" /runs/7/done.md", "/runs/7/", STARTED)


def test_of_two_records_that_speak_of_a_run_the_first_one_is_its(follower):
    (follower.folder / "b-quotes-it.jsonl").write_text(transcript_lines(
        dict(follower.prompt, timestamp="2026-11-21T08:40:00.000Z"), ANSWER, END))
    (follower.folder / "z-is-it.jsonl").write_text(transcript_lines(follower.prompt))
    assert follower.read()[-1].state == "busy"


def test_a_database_that_is_written_after_a_checkpoint_has_grown(tmp_path):
    path = tmp_path / "d[1]" / "x" / "x.db"
    path.parent.mkdir(parents=True)
    run = Run("/runs/7", {"started_at": 0.0, "record_home": str(tmp_path / "d[1]"), "session_id": "ses_1"})
    query = "select json_object('data', json(data), 'parts', json('[[\"hi\", null, null]]')) from m where :session = 'ses_1'"
    follower = RecordFollower(Record("opencode-rows", ("X", "~/.x"), "x/x.db", query=query), run)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("pragma journal_mode=wal")
        database.execute("create table m (data)")
        database.execute("insert into m values ('{\"role\":\"user\"}')")
        database.commit()
        assert follower.read()[-1].state == "busy" and not follower.has_grown
        database.execute("pragma wal_checkpoint(restart)")
        database.execute("insert into m values ('{\"role\":\"assistant\",\"finish\":\"stop\"}')")
        database.commit()
        assert follower.has_grown and follower.read()[-1].state == "ready"
