"""Room 14: the rules of waiting as a pure function; then whole runs of a scripted agent in real tmux."""
import contextlib
import json
import os
import signal
import subprocess
import time
import types

import pytest

from sandboxes import until_true
from selftalk import (AGENTS, Ending, Progress, Said, Screen, Sight, Verdict, judge_turn, note_sight, settle_state)

GENERIC, KNOWN = AGENTS["generic"], AGENTS["demo"]


def judge(*sights, agent=KNOWN, stall_s=600.0, step_s=1.0):
    """The ending after a row of looks, one second apart; None while the turn goes on."""
    worker = types.SimpleNamespace(agent=agent, run=types.SimpleNamespace(facts={"stall_s": stall_s}),
                                   turn=types.SimpleNamespace(delivery="taken"), has_screen=True, source="transcript")
    progress, ending = Progress(), None
    for number, sight in enumerate(sights):
        progress = note_sight(progress, sight, number * step_s)
        ending = judge_turn(progress, sight, number * step_s, worker)
        if ending:
            return ending
    return None


def shown(state, text="screen"):
    return Sight(screen=Screen(text), verdict=Verdict(state, "rule", "bottom:1", "words"))


def told(state, text="", shown_state="unknown", error=""):
    return Sight(verdict=Verdict(shown_state), said=Said(state, text, error))


def test_another_tool_called_is_progress_and_the_same_one_seen_again_is_none():
    sights = [Sight(said=Said("busy", "text", deed=deed)) for deed in ("Bash make", "Bash make", "Bash make test")]
    progress, moved = Progress(), []
    for at_s, sight in enumerate(sights):
        progress = note_sight(progress, sight, float(at_s))
        moved.append(progress.moved_s)
    assert moved == [0.0, 0.0, 2.0]


def test_done_md_is_the_answer_whatever_else_is_seen():
    ending = judge(Sight(done="it is done\n", exit_status=3, is_gone=True))
    assert (ending.outcome, ending.answer, ending.source) == ("answered", "it is done\n", "done.md")


def test_an_empty_done_md_is_not_published_yet():
    assert judge(Sight(done=""), Sight(done=" \n")) is None
    assert judge(Sight(done="", is_gone=True)).outcome == "died"


@pytest.mark.parametrize("status, words", [(0, "status 0"), (3, "status 3"), (None, "vanished")])
def test_a_worker_that_is_gone_without_a_word_has_died(status, words):
    ending = judge(Sight(is_gone=True, exit_status=status))
    assert ending.outcome == "died" and words in ending.what


def test_a_worker_that_is_gone_after_its_record_was_complete_has_answered():
    ending = judge(told("ready", "the answer")._replace(is_gone=True, exit_status=0))
    assert (ending.outcome, ending.answer, ending.source) == ("answered", "the answer", "transcript")


def test_a_worker_that_is_gone_with_an_error_in_its_record_says_that_error():
    assert judge(told("limited", error="out of quota")._replace(is_gone=True)).outcome == "limited"


def test_the_end_of_a_turn_in_the_record_counts_at_once():
    ending = judge(told("busy"), told("ready", "the answer"))
    assert (ending.outcome, ending.answer, ending.source) == ("answered", "the answer", "transcript")


def test_a_turn_whose_background_work_still_shows_is_not_over():
    assert judge(told("busy"), *[told("ready", "the answer", "busy")] * 5) is None


def test_a_screen_has_to_be_ready_twice_in_a_row():
    assert judge(shown("busy"), shown("ready")) is None
    assert judge(shown("busy"), shown("ready"), shown("busy"), shown("ready")) is None
    ending = judge(shown("busy"), shown("ready"), shown("ready"))
    assert (ending.outcome, ending.source) == ("answered", "screen")


def test_not_busy_is_not_ready_and_ready_is_not_the_end_before_the_turn_began():
    assert judge(shown("busy"), *[shown("unknown")] * 5) is None
    assert judge(*[shown("ready")] * 5) is None


def test_a_prompt_that_is_never_taken_is_a_stall():
    ending = judge(*[shown("ready")] * 5, stall_s=3.0)
    assert ending.outcome == "stalled" and "not seen to start" in ending.what


def test_a_spinner_that_turns_is_no_progress():
    turning = [shown("busy", "%s Thinking (%ds)" % ("⠋⠙⠹⠸"[number % 4], number)) for number in range(10)]
    assert judge(*turning, stall_s=5.0).outcome == "stalled"
    writing = [shown("busy", "Thinking" + " word" * number) for number in range(10)]
    assert judge(*writing, stall_s=5.0) is None


@pytest.mark.parametrize("state", ["asks", "login", "limited", "failed"])
def test_trouble_on_the_screen_has_to_show_twice(state):
    assert judge(shown("busy"), shown(state)) is None
    assert judge(shown("busy"), shown(state), shown("busy")) is None
    assert judge(shown("busy"), shown(state), shown(state)).outcome == state


def test_trouble_in_the_record_counts_at_once_in_the_agents_own_words():
    ending = judge(told("busy"), told("limited", error="You've hit your limit · resets 8am\nmore"))
    assert ending.outcome == "limited" and "You've hit your limit · resets 8am" in ending.what and "more" not in ending.what


def test_a_question_on_the_screen_outranks_a_busy_record():
    assert settle_state(told("busy", shown_state="asks")) == "asks"
    assert settle_state(told("busy", shown_state="ready")) == "busy"
    assert settle_state(told("unknown", shown_state="busy")) == "busy"


def test_a_spinner_is_no_progress_but_no_silence_either():
    turning = [shown("unknown", "%s Thinking %d s" % ("⠋⠙⠹⠸"[number % 4], number)) for number in range(100)]
    assert judge(*turning, agent=GENERIC) is None


def test_a_limit_that_only_the_screen_shows_outranks_a_busy_record():
    assert settle_state(told("busy", shown_state="limited")) == "limited"
    assert settle_state(told("ready", shown_state="limited")) == "ready"


def test_silence_ends_a_turn_of_unknown_agents_only_and_is_marked():
    quiet = [shown("unknown")] * 100
    ending = judge(*quiet, agent=GENERIC)
    assert (ending.outcome, ending.source) == ("answered", "screen") and "nothing moved" in ending.what
    assert judge(*quiet, agent=KNOWN) is None
    assert judge(*quiet, agent=GENERIC, stall_s=10.0).outcome == "stalled"


# --- whole runs -------------------------------------------------------------------

def test_a_task_from_prompt_to_answer(sandbox):
    sandbox.fake_config()
    status, out, err = sandbox.run("run", "do", "it", steps="ask; ready; busy 0.5; done All is well.; hold")
    assert (status, out) == (0, "All is well.\n")
    first = err.splitlines()[0]
    assert first.startswith("selftalk: run 1: fake started; watch: tmux -S ") and first.endswith("attach -r -t %0")
    assert "answered" in err and "from done.md" in err
    files = {path.name for path in sandbox.run_folder().iterdir()}
    assert {"run.json", "prompt.md", "launch.sh", "events.jsonl", "done.md", "screen.txt", "turns"} <= files
    assert (sandbox.run_folder() / "turns" / "1.md").read_text() == "All is well."
    turn = json.loads((sandbox.run_folder() / "turns" / "1.json").read_text())
    assert (turn["prompt"], turn["outcome"], turn["source"]) == ("do it", "answered", "done.md")
    assert [event["event"] for event in sandbox.events()] == ["spawned", "dialog", "dialog", "answered", "ended"]
    assert not list((sandbox.state / "open").iterdir())
    assert not [path for path in (sandbox.folder / "sockets").rglob("*") if path.is_socket()]


def test_a_run_folder_is_private(sandbox):
    sandbox.fake_config()
    sandbox.run("run", "do it", steps="done ok; hold")
    assert (sandbox.run_folder().stat().st_mode & 0o777) == 0o700
    for path in sandbox.run_folder().rglob("*"):
        assert not path.stat().st_mode & 0o077 or path.name.startswith(("done.md", "exit")), path


@pytest.mark.parametrize("how, want", [("words", "fix it all"), ("stdin", "from a pipe\nline 2"), ("file", "from a file")])
def test_a_prompt_arrives_to_the_letter(sandbox, how, want):
    sandbox.fake_config()
    (sandbox.work / "plan.md").write_text(want)
    given = {"words": ("run", *want.split(" ")), "stdin": ("run",), "file": ("-f", "plan.md")}[how]
    stdin = want.encode() if how == "stdin" else None
    status, _, err = sandbox.run(*given, steps="dump %s/seen; done ok" % sandbox.work, stdin=stdin)
    assert status == 0, err
    seen = json.loads((sandbox.work / "seen").read_text())
    assert seen["argv"][0] == "--" and seen["argv"][1].startswith(want + "\n\n---\n")
    assert seen["cwd"] == str(sandbox.work)


@pytest.mark.parametrize("prompt", ["-rf $HOME `id` \"quotes\" 'single' \\ back", "täb\tünicode 🎉\r\nline", "\n\n leading",
                                    "x" * 100_000, "%s %d {prompt} {folder} $(id)"])
def test_odd_prompts_arrive_to_the_letter(sandbox, prompt):
    sandbox.fake_config()
    status, _, err = sandbox.run("run", steps="dump %s/seen; done ok" % sandbox.work, stdin=prompt.encode())
    assert status == 0, err
    seen = json.loads((sandbox.work / "seen").read_text())
    assert seen["argv"][1].startswith(prompt + "\n\n---\n")


def test_a_prompt_of_2_mb_goes_by_file(sandbox):
    sandbox.fake_config()
    prompt = "long " * 400_000
    status, _, err = sandbox.run("run", steps="dump %s/seen; done ok; exit 0" % sandbox.work, stdin=prompt.encode())
    seen = json.loads((sandbox.work / "seen").read_text())
    assert seen["argv"][1].startswith("Read the file ") and len(seen["argv"][1]) < 500
    path = seen["argv"][1].split()[3]
    assert open(path).read().startswith(prompt)
    assert status == 1 and "died" in err    # the fake agent does not read files: it could not know where to publish


def test_stdin_and_prompt_file_profiles(sandbox):
    sandbox.fake_config(more="    prompt: stdin\n  other:\n    command: %s\n    args: [%s, '--file={prompt_file}']\n"
                             "    prompt: prompt-file-arg\n" % ("python3", sandbox.folder / "agent.py"))
    (sandbox.folder / "agent.py").write_text(
        "import re, sys\ntext = open(sys.argv[1].partition('=')[2]).read() if sys.argv[1:] else sys.stdin.read()\n"
        "folder = re.search(r'^(/.*)/done\\.md\\.tmp$', text, re.M).group(1)\n"
        "open(folder + '/done.md', 'w').write(text.split('\\n')[0])\n")
    assert sandbox.run("run", "-p", "other", "by file")[:2] == (0, "by file\n")
    status, _, err = sandbox.run("run", "by stdin", steps="dump %s/seen; exit 0" % sandbox.work)
    assert status == 1 and json.loads((sandbox.work / "seen").read_text())["stdin"].startswith("by stdin\n\n---\n")


def test_a_worker_that_leaves_without_a_word_is_a_clear_failure(sandbox):
    sandbox.fake_config()
    status, out, err = sandbox.run("run", "do it", steps="say boom: it broke; exit 3")
    assert (status, out) == (1, "")
    assert "exited with status 3 before it published anything" in err and "  | boom: it broke" in err and "try:" in err
    status, result = sandbox.run_json("run", "do it", steps="exit 3")
    assert (status, result["outcome"], result["exit_status"]) == (1, "died", 3)


def test_a_worker_that_is_killed_is_a_clear_failure(sandbox):
    sandbox.fake_config()
    status, _, err = sandbox.run("run", "do it", steps="say working; kill")
    assert status == 1 and "exited with status 137" in err and "working" in err


def test_a_worker_that_goes_idle_is_answered_from_its_screen_and_it_is_said(sandbox):
    sandbox.fake_config()
    status, out, err = sandbox.run("run", "do it", steps="busy 1; say The answer is 42.\\n\\n> ; hold")
    assert status == 0 and "The answer is 42." in out
    assert "from its screen" in err and "without publishing done.md" in err


def test_silence_is_a_stall_and_the_worker_is_kept_for_a_look(sandbox):
    sandbox.fake_config()
    status, out, err = sandbox.run("run", "do it", "--stall", "1", steps="say hm; hold")
    assert (status, out) == (7, "") and "stalled" in err and "attach" in err
    assert len(sandbox.processes()) >= 2
    status, out, err = sandbox.run("stop", "1")
    assert status == 0 and not sandbox.processes()


def test_a_dialog_that_is_not_known_is_reported_and_never_typed_into(sandbox):
    sandbox.fake_config()
    question = "Delete everything?\\n\\n❯ Yes\\n  No\\n\\nEnter to confirm"
    status, result = sandbox.run_json("run", "do it", steps="say %s; hold" % question)
    assert (status, result["outcome"]) == (5, "asks") and "Delete everything?" in result["what"]
    assert not [event for event in sandbox.events() if event["event"] == "dialog"]
    sandbox.run("stop", "last")


def test_max_time_ends_the_worker(sandbox):
    sandbox.fake_config()
    status, _, err = sandbox.run("run", "do it", "--max-time", "1", steps="busy 60")
    assert status == 8 and "late" in err and not sandbox.processes()


def test_nothing_survives_a_run_not_even_children_that_ignore_hup_and_term(sandbox):
    sandbox.fake_config()
    status, out, _ = sandbox.run("run", "do it", steps="child; daemon; done ok; hold")
    assert (status, out) == (0, "ok\n")
    assert not sandbox.processes()


def test_a_worker_can_be_kept(sandbox):
    sandbox.fake_config()
    status, out, _ = sandbox.run("run", "do it", "--keep", steps="done ok; hold")
    assert (status, out) == (0, "ok\n") and sandbox.processes()
    assert sandbox.run("wait", "1")[:2] == (0, "ok\n")
    sandbox.run("stop", "1")
    assert sandbox.run("wait", "1")[:2] == (0, "ok\n")


def test_a_wait_ends_and_can_be_taken_up_again_by_another_process(sandbox):
    sandbox.fake_config()
    status, out, err = sandbox.run("run", "do it", "--wait", "0.3", steps="busy 1.5; done ok; hold")
    assert (status, out) == (75, "") and err.splitlines()[-1].endswith("selftalk.py wait 1")
    for _ in range(2):
        assert sandbox.run("wait", "1")[:2] == (0, "ok\n")


def test_a_run_outlives_a_caller_that_is_killed(sandbox):
    sandbox.fake_config()
    caller = sandbox.start("run", "do it", steps="busy 1; done ok; hold")
    assert until_true(lambda: (sandbox.run_folder() / "events.jsonl").exists())
    caller.kill()
    caller.communicate()
    assert sandbox.run("wait", "last")[:2] == (0, "ok\n")


def test_what_a_dead_caller_has_left_is_ended_by_the_next_call(sandbox):
    sandbox.fake_config()
    caller = sandbox.start("run", "do it", steps="silent 1; done ok; hold")
    assert until_true(lambda: (sandbox.run_folder() / "events.jsonl").exists())
    caller.kill()
    caller.communicate()
    assert until_true(lambda: (sandbox.run_folder() / "done.md").exists())
    status, out, err = sandbox.run("list")
    assert status == 0 and "answered" in out
    assert not sandbox.processes()


def test_two_waiters_get_the_same_answer(sandbox):
    sandbox.fake_config()
    sandbox.run("run", "do it", "--wait", "0.2", steps="busy 1; done ok; hold")
    waiters = [sandbox.start("wait", "1") for _ in range(3)]
    assert [waiter.communicate(timeout=20)[0] for waiter in waiters] == [b"ok\n"] * 3


def test_a_stop_is_idempotent_and_ends_a_waiter(sandbox):
    sandbox.fake_config()
    waiter = sandbox.start("run", "do it", steps="busy 60")
    assert until_true(lambda: (sandbox.run_folder() / "events.jsonl").exists())
    assert sandbox.run("stop", "1")[0] == 0
    assert waiter.wait(timeout=10) == 1 and b"stopped" in waiter.communicate()[1]
    status, _, err = sandbox.run("stop", "1")
    assert status == 0 and "over already" in err


def test_an_interrupt_leaves_the_worker_alive(sandbox):
    sandbox.fake_config()
    caller = sandbox.start("run", "do it", steps="busy 1.5; done ok; hold")
    assert until_true(lambda: (sandbox.run_folder() / "events.jsonl").exists())
    caller.send_signal(signal.SIGINT)
    out, err = caller.communicate(timeout=10)
    assert caller.returncode == 130 and b"goes on" in err and b"Traceback" not in err
    assert sandbox.run("wait", "1")[:2] == (0, "ok\n")


def test_a_killed_tmux_server_is_a_clear_failure(sandbox):
    sandbox.fake_config()
    caller = sandbox.start("run", "do it", steps="busy 60")
    facts = until_true(lambda: json.loads((sandbox.run_folder() / "run.json").read_text())
                       if (sandbox.run_folder() / "events.jsonl").exists() else None)
    time.sleep(0.5)
    os.kill(facts["server"][0], signal.SIGKILL)
    out, err = caller.communicate(timeout=20)
    assert caller.returncode == 1 and b"died" in err and not sandbox.processes()
    assert not [path for path in (sandbox.folder / "sockets").rglob("*") if path.is_socket()]   # nor a new server


def test_20_runs_at_once_are_all_right(sandbox):
    sandbox.fake_config()
    runs = [sandbox.start("run", "-q", "do it", steps="busy 1; done answer %d; hold" % number) for number in range(20)]
    outs = [run.communicate(timeout=60) for run in runs]
    assert [out for out, _ in outs] == [b"answer %d\n" % number for number in range(20)]
    assert not sandbox.processes()


def test_a_run_inside_a_run_knows_its_depth_and_its_parent(sandbox):
    path = sandbox.fake_config()
    env = {"SELFTALK_RUN": str(sandbox.run_folder(41)), "SELFTALK_DEPTH": "2"}
    status, result = sandbox.run_json("run", "do it", steps="dump %s/seen; done ok" % sandbox.work, env=env)
    assert (status, result["parent"], result["depth"]) == (0, 41, 3)
    assert json.loads((sandbox.work / "seen").read_text())["env"]["SELFTALK_DEPTH"] == "3"
    path.write_text("max_depth: 2\n" + path.read_text())
    status, _, err = sandbox.run("run", "do it", steps="done ok", env=env)
    assert status == 2 and "inside" in err


def test_what_a_worker_says_reaches_a_terminal_clean(sandbox):
    sandbox.fake_config()
    status, out, _ = sandbox.run("run", "do it", steps="done a\x1b[31mb\x1b]0title\x07c\x1bP1AAAA\x1b\\d\re\x9bmf\x7f; hold")
    assert (status, out) == (0, "abcd\nef\n")


# --- what a review found ------------------------------------------------------------

def await_spawned(sandbox, number=1):
    path = sandbox.run_folder(number) / "events.jsonl"
    return until_true(lambda: path.exists() and "spawned" in path.read_text())


def facts_of(sandbox, number=1):
    return json.loads((sandbox.run_folder(number) / "run.json").read_text())


@contextlib.contextmanager
def changed_facts(sandbox, **facts):
    """run.json of run 1 as somebody else would have written it; afterwards as it was."""
    path = sandbox.run_folder() / "run.json"
    before = path.read_text()
    path.write_text(json.dumps(dict(json.loads(before), **facts)))
    yield
    path.write_text(before)


def test_an_answer_on_disk_survives_a_waiter_that_is_killed_while_it_ends_the_worker(sandbox):
    sandbox.fake_config()
    waiter = sandbox.start("run", "go", steps="child; busy 1; ready; hold")   # the child makes the ending slow
    assert until_true(lambda: (sandbox.run_folder() / "turns" / "1.md").exists() and facts_of(sandbox)["outcome"], 15.0)
    waiter.kill()
    waiter.communicate()
    status, result = sandbox.run_json("wait", "1")
    assert (status, result["outcome"], result["source"]) == (0, "answered", "screen") and ">" in result["answer"]
    assert not sandbox.processes()


def test_a_wait_goes_on_after_its_client_was_detached(sandbox):
    sandbox.fake_config()
    waiter = sandbox.start("run", "go", "--stall", "10", steps="busy 1.5; ready; hold")
    assert await_spawned(sandbox)
    tmux = ["tmux", "-S", facts_of(sandbox)["socket"]]
    assert until_true(lambda: subprocess.run(tmux + ["list-clients"], stdout=subprocess.PIPE).stdout)
    subprocess.run(tmux + ["detach-client", "-s", "main"], check=True)
    assert waiter.wait(timeout=9) == 0, waiter.communicate()


def test_what_a_stalled_worker_publishes_later_is_its_answer(sandbox):
    sandbox.fake_config()
    assert sandbox.run("run", "go", "--stall", "0.5", steps="silent 1.2; done late but whole; hold")[0] == 7
    assert until_true(lambda: (sandbox.run_folder() / "done.md").exists())
    assert sandbox.run("stop", "1")[0] == 0
    assert sandbox.run("wait", "1")[:2] == (0, "late but whole\n")


def test_what_a_stalled_worker_has_published_is_collected(sandbox):
    sandbox.fake_config()
    assert sandbox.run("run", "go", "--stall", "0.5", steps="silent 1.2; done late but whole; hold")[0] == 7
    assert until_true(lambda: (sandbox.run_folder() / "done.md").exists())
    assert "collected: answered" in sandbox.run("list")[2] and not sandbox.processes()


def test_a_killed_waiter_does_not_take_its_knowledge_along(sandbox):
    sandbox.fake_config()
    waiter = sandbox.start("run", "go", steps="busy 1.5; ready; hold")
    assert until_true(lambda: "true" in ((sandbox.run_folder() / "progress.json").read_text()
                                         if (sandbox.run_folder() / "progress.json").exists() else ""))
    waiter.kill()
    waiter.communicate()
    assert until_true(lambda: facts_of(sandbox)["state"] == "running")
    assert sandbox.run("wait", "1", "--wait", "8")[0] == 0


def test_a_run_of_another_container_is_left_alone(sandbox):
    sandbox.fake_config()
    assert sandbox.run("run", "go", "--wait", "0.2", steps="hold")[0] == 75
    with changed_facts(sandbox, machine="elsewhere"):
        assert sandbox.run("list")[0] == 0 and facts_of(sandbox)["state"] == "running"
        for verb in ("wait", "stop"):
            status, _, err = sandbox.run(verb, "1")
            assert status == 2 and "container" in err
    assert sandbox.run("stop", "1")[0] == 0


def test_a_summary_that_is_still_being_written_is_waited_for(sandbox):
    sandbox.config("default_profile: f\nprofiles:\n  f:\n    command: sh\n    args: [%s]\n" % (sandbox.folder / "a.sh"))
    (sandbox.folder / "a.sh").write_text(
        "done=$(printf %s \"$2\" | sed -n 's/done.md.tmp$/done.md/p')\n"
        "{ echo part one; sleep 0.5; echo part two; } > \"$done\"\nsleep 100\n")
    assert sandbox.run("run", "go")[:2] == (0, "part one\npart two\n")


def test_a_run_with_an_agent_that_only_a_newer_copy_knows_is_named_and_left_alone(sandbox):
    sandbox.fake_config()
    assert sandbox.run("run", "go", "--wait", "0.2", steps="hold")[0] == 75
    with changed_facts(sandbox, agent="of-tomorrow"):
        status, _, err = sandbox.run("run", "hi", steps="done ok; hold")
        assert status == 0 and "of-tomorrow" in err
    assert sandbox.run("stop", "1")[0] == 0


def test_runs_inside_a_run_end_with_it(sandbox):
    sandbox.fake_config()
    assert sandbox.run("run", "outer", "--wait", "0.2", steps="hold")[0] == 75
    env = {"SELFTALK_RUN": str(sandbox.run_folder(1)), "SELFTALK_DEPTH": "1"}
    assert sandbox.run("run", "inner", "--wait", "0.2", steps="hold", env=env)[0] == 75
    assert sandbox.run("stop", "1")[0] == 0
    assert facts_of(sandbox, 2)["outcome"] == "stopped" and not sandbox.processes()


def test_a_worker_that_is_late_is_ended_even_when_it_was_to_be_kept(sandbox):
    sandbox.fake_config()
    assert sandbox.run("run", "go", "--keep", "--max-time", "1", steps="busy 100")[0] == 8
    assert not sandbox.processes()


def test_a_stop_with_trouble_still_ends_its_worker_and_the_next_one(sandbox):
    sandbox.fake_config()
    for _ in range(2):
        assert sandbox.run("run", "go", "--wait", "0.2", steps="hold")[0] == 75
    (sandbox.run_folder(1) / "turns").rename(sandbox.run_folder(1) / "turned")
    status, _, err = sandbox.run("stop", "1", "2")
    assert status == 1 and "turns" in err and not sandbox.processes()


def test_several_waiters_press_the_keys_of_a_dialog_once(sandbox):
    sandbox.fake_config()
    assert sandbox.run("run", "go", "--wait", "0.2", steps="silent 1; ask; busy 0.5; done ok; hold")[0] == 75
    waiters = [sandbox.start("wait", "1") for _ in range(3)]
    assert [waiter.communicate(timeout=20)[0] for waiter in waiters] == [b"ok\n"] * 3
    assert [event["keys"] for event in sandbox.events() if event["event"] == "dialog"] == [["Down"], ["Enter"]]


def test_a_pipe_in_the_place_of_the_summary_blocks_nobody(sandbox):
    sandbox.fake_config()
    assert sandbox.run("run", "go", "--wait", "0.2", "--max-time", "2", steps="hold")[0] == 75
    os.mkfifo(sandbox.run_folder() / "done.md")
    assert sandbox.run("wait", "1")[0] == 8


# --- beside the caller --------------------------------------------------------------

@pytest.fixture
def terminal(sandbox):
    """A tmux of the user's, with a shell in it: run(line) types a line, screen() is what it shows."""
    def tmux(*words):
        return subprocess.run(["tmux", "-L", "users", *words], env=sandbox.env, stdout=subprocess.PIPE).stdout.decode()

    tmux("-f", "/dev/null", "new-session", "-d", "-s", "mine", "-x", "200", "-y", "50", "env PS1='$ ' sh")
    yield tmux
    tmux("kill-server")


def type_run(terminal, sandbox, steps, *words):
    command = "cd %s; FAKE_STEPS='%s' %s; echo status=$?" % (sandbox.work, steps, " ".join(words))
    terminal("send-keys", "-t", "mine", command, "Enter")


def call(*words):
    from sandboxes import PROGRAM
    return ("python3", str(PROGRAM), *words)


def test_inside_tmux_the_worker_runs_in_a_pane_beside_the_caller(terminal, sandbox):
    sandbox.fake_config(more="    env: {LITERAL: 'it''s', TOKEN: {from_env: MY_TOKEN}}\n")
    type_run(terminal, sandbox, "dump %s/seen; busy 1; done beside; hold" % sandbox.work, "MY_TOKEN='a b'", *call("do it"))
    assert until_true(lambda: len(terminal("list-panes", "-t", "mine").splitlines()) == 2)
    assert until_true(lambda: "status=0" in terminal("capture-pane", "-p", "-J", "-t", "mine")), \
        terminal("capture-pane", "-p", "-t", "mine")
    assert "\nbeside\n" in terminal("capture-pane", "-p", "-t", "mine")
    assert len(terminal("list-panes", "-t", "mine").splitlines()) == 1
    seen = json.loads((sandbox.work / "seen").read_text())["env"]
    assert (seen["LITERAL"], seen["TOKEN"]) == ("it's", "a b") and "TMUX" not in seen and seen["TERM"] != "dumb"
    texts = [path.read_text(errors="replace") for path in sandbox.run_folder().rglob("*") if path.is_file()]
    assert not [text for text in texts if "a b" in text]
    assert "MY_TOKEN" not in terminal("show-environment", "-g")


def test_without_room_for_a_pane_there_is_a_session_and_no_error(terminal, sandbox):
    sandbox.fake_config()
    terminal("resize-window", "-t", "mine", "-x", "80", "-y", "24")
    type_run(terminal, sandbox, "busy 0.5; done ok; hold", *call("do it", "--json"))
    assert until_true(lambda: "status=0" in terminal("capture-pane", "-p", "-J", "-t", "mine"))
    assert json.loads((sandbox.run_folder() / "run.json").read_text())["place"] == "session"


def test_a_session_can_be_asked_for_inside_tmux_and_a_pane_not_outside(terminal, sandbox):
    sandbox.fake_config()
    type_run(terminal, sandbox, "busy 0.5; done ok; hold", *call("--session", "do it"))
    assert until_true(lambda: "status=0" in terminal("capture-pane", "-p", "-J", "-t", "mine"))
    assert json.loads((sandbox.run_folder() / "run.json").read_text())["place"] == "session"
    status, _, err = sandbox.run("run", "--pane", "do it", steps="done ok")
    assert status == 2 and "not inside tmux" in err


def test_a_worker_beside_the_caller_takes_no_focus_and_bends_no_session(terminal, sandbox):
    sandbox.fake_config()
    terminal("set-environment", "-t", "mine", "SSH_AUTH_SOCK", "/users/agent")
    type_run(terminal, sandbox, "busy 1; done ok; hold", "env", "-u", "SSH_AUTH_SOCK", "UID=77", *call("do it"))
    assert until_true(lambda: "control-mode" in terminal("list-clients", "-F", "#{client_flags}"))
    assert terminal("display-message", "-p", "-t", "mine", "#{pane_id}").strip() == "%0"
    assert until_true(lambda: "status=0" in terminal("capture-pane", "-p", "-J", "-t", "mine")), \
        terminal("capture-pane", "-p", "-t", "mine")
    assert terminal("show-environment", "-t", "mine", "SSH_AUTH_SOCK").strip() == "SSH_AUTH_SOCK=/users/agent"


@pytest.mark.parametrize("place", ["--session", "--pane"])
def test_a_run_that_is_stopped_while_it_starts_stays_stopped(terminal, sandbox, place):
    sandbox.fake_config()
    slow = sandbox.folder / "bin" / "tmux"
    slow.parent.mkdir()
    real = subprocess.run(["sh", "-c", "command -v tmux"], stdout=subprocess.PIPE).stdout.decode().strip()
    slow.write_text('#!/bin/sh\n%s "$@"; status=$?\ncase "$*" in *new-session*|*split-window*) touch %s/opened\n'
                    'while [ ! -e %s/go ]; do sleep 0.02; done;; esac\nexit $status\n' % (real, sandbox.work, sandbox.work))
    slow.chmod(0o755)
    type_run(terminal, sandbox, "busy 60", "PATH=%s:$PATH" % slow.parent, *call(place, "do it"))
    assert until_true(lambda: (sandbox.work / "opened").exists())
    assert sandbox.run("stop", "1")[0] == 0
    (sandbox.work / "go").touch()
    assert until_true(lambda: "status=1" in terminal("capture-pane", "-p", "-J", "-t", "mine")), \
        terminal("capture-pane", "-p", "-t", "mine")
    assert facts_of(sandbox)["outcome"] == "stopped"
    assert until_true(lambda: len(terminal("list-panes", "-t", "mine").splitlines()) == 1)
