"""Talks: prompts typed into a scripted agent with the looks of Claude Code, in real tmux, and the answers to them."""
import contextlib
import fcntl
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import types

import pytest

from sandboxes import PROGRAM, ROOT, Sandbox, until_true
from selftalk import (AGENTS, Progress, Said, Screen, Sight, Unusable, Verdict, find_turn, fold_record, judge_turn,
                      make_scratch, note_sight, order_tree, typed_prompt)

CLAUDE = AGENTS["claude"]
SUBMIT = CLAUDE.pane.submit


def hurried_program(folder):
    """A copy of selftalk.py that has a tenth of its patience with composer and paste, and a third with Enter: a
    test of a lost key would take ten seconds."""
    text = PROGRAM.read_text(encoding="utf-8")
    text, of_input = re.subn(r"(?m)^((?:COMPOSER|PASTE)_PATIENCE_S) = 10\.0", r"\1 = 1.0", text)
    text, of_enter = re.subn(r"(?m)^ENTER_PATIENCE_S = 3\.0", "ENTER_PATIENCE_S = 1.0", text)
    assert (of_input, of_enter) == (2, 1)
    (folder / "selftalk.py").write_text(text, encoding="utf-8")
    return folder / "selftalk.py"


class Talk(Sandbox):
    """A sandbox in which -c talks to the scripted agent."""

    def __init__(self, folder):
        super().__init__(folder)
        agent, self.log_path = folder / "claude", folder / "log"
        agent.write_text('#!/bin/sh\nexec %s -S %s "$@"\n' % (sys.executable, ROOT / "tests" / "fake_talker.py"))
        agent.chmod(0o755)
        self.config("profiles:\n  claude:\n    command: %s\n    interface: claude\n" % agent)
        self.program = hurried_program(folder)
        self.env.update(CLAUDE_CONFIG_DIR=str(folder / "claude-home"), TALKER_LOG=str(self.log_path))

    def start(self, *words, script="", stdin=subprocess.DEVNULL, env=None, **_):
        """Starts selftalk; `script` is for an agent that is started by it."""
        return subprocess.Popen([sys.executable, str(self.program), *map(str, words)], cwd=self.work, stdin=stdin,
                                env=dict(self.env, TALKER=script, **(env or {})),
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *words, script="", stdin=None, timeout_s=30):
        process = self.start(*words, script=script, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE)
        out, err = process.communicate(stdin, timeout=timeout_s)
        assert b"Traceback" not in err, err.decode()
        return process.returncode, out.decode("utf-8"), err.decode("utf-8")

    def talk(self, *words, **options):
        """Begins a talk in the sandbox's folder: (status, the object)."""
        return self.run_json("-c", "--here", *words, **options)

    def log(self, kind="prompt"):
        """What the agent was given, of one kind."""
        if not self.log_path.exists():
            return []
        return [entry[kind] for entry in map(json.loads, self.log_path.read_text().splitlines()) if kind in entry]

    def turn(self, number=1, run=1):
        """What turns/N.json says; {} before it is there."""
        path = self.run_folder(run) / "turns" / ("%d.json" % number)
        return json.loads(path.read_text()) if path.exists() else {}

    def write_turn(self, number=1, **facts):
        path = self.run_folder() / "turns" / ("%d.json" % number)
        path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))

    def facts(self, run=1):
        numbers = [int(path.name) for path in (self.state / "runs").iterdir()]
        return json.loads((self.run_folder(max(numbers) if run == "last" else run) / "run.json").read_text())

    def tmux(self, *words, **options):
        """A person's own tmux command."""
        return subprocess.run(["tmux", "-S", self.facts("last")["socket"], *words], check=True, capture_output=True,
                              **options).stdout.decode("utf-8")

    def screen(self):
        return self.tmux("capture-pane", "-p", "-t", "%0")

    def type(self, text, *keys):
        """What a person types."""
        self.tmux("send-keys", "-t", "%0", "-l", text)
        for key in keys:
            self.tmux("send-keys", "-t", "%0", key)

    def paste(self, text):
        self.tmux("load-buffer", "-b", "person", "-", input=text.encode())
        self.tmux("paste-buffer", "-p", "-r", "-d", "-b", "person", "-t", "%0")

    def agent_pid(self):
        """The scripted agent's own process."""
        found = [pid for pid, line in self.processes() if "fake_talker" in line]
        return found[0] if found else None


@contextlib.contextmanager
def opened_talk(folder):
    box = Talk(folder)
    try:
        yield box
    finally:
        if (box.state / "runs").exists():
            box.run("stop", *[path.name for path in (box.state / "runs").iterdir()])
        left = box.processes()
        for pid, _ in left:
            os.kill(pid, signal.SIGKILL)
    assert not left, "left behind: %s" % left


@pytest.fixture
def box(tmp_path):
    """A fresh sandbox; afterwards its runs are stopped, and nothing of them may be alive."""
    with opened_talk(tmp_path) as talk:
        yield talk


@pytest.fixture(scope="module")
def common_box(tmp_path_factory):
    with opened_talk(tmp_path_factory.mktemp("common")) as talk:
        (talk.work / "README.md").write_text("a file that an at word names")
        yield talk


@pytest.fixture
def common(common_box):
    """One talk for all tests that only need an agent that waits; a new one when a test has left it otherwise."""
    waits = (common_box.state / "runs").exists() and common_box.facts("last")["outcome"] in ("answered", "ready")
    if not waits:
        common_box.run("stop", "last")
        assert common_box.talk()[0] == 0
    return common_box


# --- the rules, without an agent --------------------------------------------------

def line(kind, content="", **facts):
    return json.dumps({"type": kind, "message": {"role": kind, "content": content}, **facts})


def asked(text):
    return line("user", text)


def answered(text):
    return "%s\n%s" % (line("assistant", [{"type": "text", "text": text}]),
                       line("system", subtype="turn_duration"))


def turns_of(*lines):
    return fold_record([], "\n".join(lines), "claude-transcript")


def test_a_turn_is_found_behind_those_before_it_and_by_the_prompt_that_began_it():
    turns = turns_of(asked("do it"), answered("first"), asked("mine"), answered("theirs"), asked("do it"),
                     answered("second"))
    assert [find_turn(turns, "doit", base).text for base in (0, 1, 2, 3)] == ["first", "second", "second", ""]
    assert find_turn(turns, "mine", 0).text == "theirs" and find_turn(turns, "other", 0) == Said()
    assert find_turn(turns_of(), "doit", 0) == find_turn([Said()], "", 0) == Said()


def test_a_turn_behind_which_another_one_began_is_past_and_keeps_how_it_ended():
    ended = find_turn(turns_of(asked("ours"), answered("yes"), asked("mine")), "ours", 0)
    assert (ended.state, ended.text, ended.is_past) == ("ready", "yes", True)
    assert not find_turn(turns_of(asked("ours"), answered("yes")), "ours", 0).is_past
    broken = find_turn(turns_of(asked("ours"), asked("mine"), answered("theirs")), "ours", 0)
    assert (broken.state, broken.text) == ("failed", "") and "another prompt" in broken.error


def test_a_turn_that_goes_on_is_busy_with_what_was_said_so_far():
    said = find_turn(turns_of(asked("ours"), line("assistant", [{"type": "text", "text": "I look"}])), "ours", 0)
    assert (said.state, said.text, said.turn, said.is_past) == ("busy", "I look", 1, False)
    tool = line("assistant", [{"type": "tool_use", "name": "Bash", "input": {"command": "make"}}])
    joined = find_turn(turns_of(asked("ours"), line("assistant", [{"type": "text", "text": "I look"}]), asked("more"), tool), "ours", 0)
    assert (joined.state, joined.text, joined.deed, joined.is_past) == ("busy", "I look", "Bash make", True)


def test_a_prompt_that_stands_in_the_record_twice_is_answered_by_its_second_turn():
    said = find_turn(turns_of(asked("ours"), asked("ours"), answered("yes")), "ours", 0)
    assert (said.state, said.text, said.turn) == ("ready", "yes", 2)


def test_an_answer_in_a_record_that_has_lost_its_prompt_is_ours():
    """As a Gemini left it that another one started beside (0.61.0): its file removed and begun anew."""
    answer = '{"type": "gemini", "content": "lost and found", "model": "gemini-3.8-flash"}\n'
    said = find_turn(fold_record([], answer, "gemini-chat"), "sayanumber", 0)
    assert (said.turn, said.text, said.is_past) == (1, "lost and found", False)
    assert find_turn(fold_record([], answer, "gemini-chat"), "sayanumber", 1) == Said()   # one of before


def begin(*states, is_first=True, stall_s=600.0, **facts):
    """The outcome before a prompt was typed, after a row of looks one second apart; None while it goes on."""
    run = types.SimpleNamespace(facts={"turn": 1 if is_first else 2, "stall_s": stall_s})
    worker = types.SimpleNamespace(agent=CLAUDE, run=run, turn=types.SimpleNamespace(delivery="waiting"), has_screen=True,
                                   source="transcript")
    progress = Progress()
    for number, state in enumerate(states):
        sight = Sight(screen=Screen("screen"), verdict=Verdict(state, "rule", "bottom:1", "words"), **facts)
        progress = note_sight(progress, sight, float(number))
        ending = judge_turn(progress, sight, float(number), worker)
        if ending:
            return ending.outcome
    return None


def test_an_agent_is_ready_for_a_prompt_when_its_screen_says_so_twice_in_a_row():
    assert begin("ready") is None and begin("unknown", "ready", "unknown", "ready") is None
    assert begin("unknown", "ready", "ready") == "ready"
    assert begin(*["unknown"] * 9) is None and begin(*["busy"] * 9) is None
    assert begin(*["unknown"] * 9, stall_s=5.0) == "stalled"


@pytest.mark.parametrize("state", ["failed", "limited", "login"])
def test_trouble_keeps_the_first_prompt_from_being_typed_and_no_later_one(state):
    assert begin(state) is None and begin(state, state) == state
    assert begin(state, state, is_first=False) == "ready"


def test_a_question_keeps_any_prompt_from_being_typed():
    assert begin("asks", "asks") == begin("asks", "asks", is_first=False) == "asks"
    assert begin("ready", is_gone=True) == "died"


def typed(prompt, submit=SUBMIT):
    return typed_prompt(types.SimpleNamespace(folder="/runs/1"), prompt, submit)


@pytest.mark.parametrize("given, want", [
    ("a\r\nb\rc", "a\nb\nc"), ("\n\na\n\nb\n\n", "a\n\nb"), ("  a  ", "  a  "), ("a\tb", "a\tb"),
    ("a\x1b[201~b\x1b[200~c\x00\x07", "abc"), ("!ls", " !ls"), ("\n!ls", " !ls"), ("# a", "# a"),
    ("a\\", "a\\ "), ("a\\\n", "a\\ "), ("what is /etc", "what is /etc")])
def test_a_prompt_is_typed_without_what_would_be_obeyed(given, want):
    assert typed(given) == want


@pytest.mark.parametrize("given", ["/init", "/init now", "\n/init", "x" * (SUBMIT.limit_bytes + 1),
                                   "ä" * (SUBMIT.limit_bytes // 2 + 1)])
def test_a_command_and_a_prompt_above_the_limit_are_typed_as_a_word_about_their_file(given):
    assert typed(given) == "Read the file /runs/1/prompt.md and do exactly what it says."


def test_a_prompt_at_the_limit_is_typed_itself():
    assert typed("x" * SUBMIT.limit_bytes) == "x" * SUBMIT.limit_bytes


def test_runs_are_ordered_below_those_that_started_them():
    runs = {name: types.SimpleNamespace(folder=name, facts={"parent_folder": parent})
            for name, parent in (("1", ""), ("2", ""), ("3", "1"), ("4", "3"), ("5", "2"), ("6", "elsewhere"))}
    assert [(level, run.folder) for level, run in order_tree(list(runs.values()))] == [
        (0, "1"), (1, "3"), (2, "4"), (0, "2"), (1, "5"), (0, "6")]


def test_the_scratch_folder_is_made_for_us_alone_and_found_again(tmp_path):
    path = tmp_path / "scratch"
    assert make_scratch(str(path)) == make_scratch(str(path)) == str(path)
    assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["link", "group", "others", "file", "stranger"])
def test_a_scratch_folder_that_others_can_write_to_is_refused(tmp_path, monkeypatch, what):
    path = tmp_path / "scratch"
    if what == "link":
        (tmp_path / "real").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "real")
    elif what == "file":
        path.write_text("")
    else:
        path.mkdir()
        path.chmod({"group": 0o770, "others": 0o707}.get(what, 0o700))
    if what == "stranger":
        monkeypatch.setattr("os.getuid", lambda: 4321)
    with pytest.raises(Unusable) as refusal:
        make_scratch(str(path))
    assert "is not a folder that only you can write to" in refusal.value.what and "--cwd DIR" in refusal.value.fix


# --- a prompt and its answer ------------------------------------------------------

def test_a_talk_from_prompt_to_answer(box):
    status, out, err = box.run("-c", "--here", "say", "hello")
    assert (status, out) == (0, "answer 1 to say hello\n"), err
    assert err.splitlines()[0].startswith("selftalk: run 1: claude started; watch: tmux -S ")
    assert "from transcript" in err and err.rstrip().endswith("send 1 \"…\"")
    assert box.log() == ["say hello"]
    assert [event["event"] for event in box.events()] == ["spawned", "pasted", "submitted", "answered"]
    status, result = box.run_json("send", "1", "and again")
    assert (status, result["answer"], result["turn"]) == (0, "answer 2 to and again", 2)
    assert (result["form"], result["place"], result["workspace"]) == ("talk", "session", str(box.work))
    assert (result["model"], result["tokens"]) == ("claude-sonnet-5-5", {"output": 5})
    assert box.log() == ["say hello", "and again"]


def as_typed(box, prompt):
    """What has to be in the composer when Enter is pressed, by the agent's row."""
    return typed_prompt(types.SimpleNamespace(folder=str(box.run_folder(box.facts("last")["id"]))), prompt, SUBMIT)


PROMPTS = {
    "one line": "what is this",
    "three lines": "one\n  two, indented\nthree",
    "30 lines": "\n".join("line %d of thirty" % number for number in range(30)),
    "blank lines": "a\n\n\nb",
    "800 letters": "words " * 133,
    "10 KB in one line": "a long line " * 853,
    "10 KB in lines": "a line of the plan\n" * 530 + "the end",
    "200 KB": "".join("row %05d of very many\n" % number for number in range(9000)) + "the end",
    "0.9 MB": "x" * 900_000,
    "tabs": "a\tb\n\tc",
    "emoji and more": "naïve 👩‍👩‍👧 🎉 漢字 e\u0301 ﬁ",
    "no letters": "?!",
    "an emoji": "👍",
    "CRLF": "one\r\ntwo\r\n",
    "a line end before and after": "\n\nin between\n\n",
    "spaces around": "  in between  ",
    "a backslash at the end": "ends in a backslash\\",
    "a slash first": "/init or not to init",
    "a slash after spaces": "  /init",
    "a bang first": "!echo hi",
    "a hash first": "# a heading\n\nand a text",
    "an at first": "@README what is it",
    "a dollar first": "$HOME `id` $(id) %s {prompt} \\ 'single' \"double\"",
    "an at word last": "look at @README",
    "an at word of no file last": "mail to me@nowhere",
    "a question mark first": "? for shortcuts",
    "a quoted frame": "─" * 60 + "\n❯ hello\n" + "─" * 60 + "\n  ⏵⏵ bypass permissions on · esc to interrupt",
    "a quoted chip": "[Pasted text #1 +29 lines] is what I see",
    "a quoted ghost": "Resend your message to try again, it says",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_arrives_to_the_letter(common, name):
    prompt, before = PROMPTS[name], len(common.log())
    status, out, err = common.run("send", "last", stdin=prompt.encode())
    assert status == 0, err
    assert common.log()[before:] == [as_typed(common, prompt)] and not common.log("command")
    received = common.log()[-1]
    if received.startswith("Read the file "):
        received = pathlib.Path(received.split()[3]).read_text()
    assert received.strip() == prompt.replace("\r\n", "\n").strip()
    assert re.match(r"answer \d+ to ", out) and "from transcript" in err


@pytest.mark.parametrize("given, received", [
    ("before \x1b[201~after", "before after"), ("\x1b[200~nested\x1b[201~", "nested"),
    ("bell\x07, back\x08space, \x1b[31mred\x1b[0m, \x03 and \x04", "bell, backspace, red,  and ")])
def test_what_a_terminal_would_obey_is_taken_out_of_a_prompt(common, given, received):
    before = len(common.log())
    assert common.run("send", "last", stdin=given.encode())[0] == 0
    assert [text.strip() for text in common.log()[before:]] == [received.strip()]


def test_a_prompt_above_the_limit_goes_by_file(common):
    prompt, before = "y" * (SUBMIT.limit_bytes + 1), len(common.log())
    assert common.run("send", "last", stdin=prompt.encode())[0] == 0
    sent = common.log()[before:]
    assert len(sent) == 1 and sent[0].startswith("Read the file ") and len(sent[0]) < 500
    assert pathlib.Path(sent[0].split()[3]).read_text() == prompt


def test_the_same_prompt_twice_gets_two_answers(common):
    answers = [common.run("send", "last", "the same again")[1] for _ in range(2)]
    first = int(answers[0].split()[1])
    assert answers == ["answer %d to the same again\n" % number for number in (first, first + 1)]


def test_a_scrolled_pane_takes_a_prompt_all_the_same(common):
    common.tmux("copy-mode", "-u", "-t", "%0")
    assert common.run("send", "last", "into a scrolled pane")[1].endswith("into a scrolled pane\n")


def test_the_answer_is_whole_however_long(common):
    answer = "word " * 20_000
    status, out, _ = common.run("send", "last", "speak [[say=%s]]" % answer, timeout_s=20)
    assert (status, out) == (0, answer.strip() + "\n")


# --- an agent that is slow or loses keys ------------------------------------------

@pytest.mark.parametrize("prompt, script", [
    ("one line", "start=0.5"), ("one line", "paint_first=0.5"), ("one line", "slow_paste=0.5"),
    ("one line", "slow_enter=0.5"), ("one line", "slow_enter=1.2"), ("one line", "drop_enter=1"),
    ("one line", "busy=0.5"), ("one line", "ghost=Resend your message to try again"),
    ("one line", "ghost=what a model suggests"), ("30 lines", "paint_first=0.5"), ("30 lines", "slow_enter=0.5"),
    ("30 lines", "drop_enter=1")])
def test_a_prompt_gets_through_exactly_once(box, prompt, script):
    status, result = box.talk(PROMPTS[prompt], script=script)
    assert (status, result["answer"]) == (0, "answer 1 to " + PROMPTS[prompt][:30])
    assert box.log() == [PROMPTS[prompt]] and box.log("pasted").count(box.log("pasted")[0]) == 1


def test_a_paste_that_was_lost_is_repeated(box):
    assert box.talk("do it", script="lose_paste=1")[0] == 0
    assert box.log() == ["do it"] and box.log("pasted") == ["do it"] * 2


def test_an_enter_that_became_a_line_end_is_pressed_again(box):
    assert box.talk("do it", script="newline_enter=1")[0] == 0
    assert box.log() == ["do it\n"]


@pytest.mark.parametrize("script, words", [("drop_enter=2", "still holds the prompt"), ("lose_paste=2", "does not show")])
def test_an_agent_that_does_not_take_a_prompt_has_stalled_and_a_wait_tries_again(box, script, words):
    status, result = box.talk("do it", script=script)
    assert (status, result["outcome"]) == (7, "stalled") and words in result["what"] and not box.log()
    assert box.run("wait", "1")[:2] == (0, "answer 1 to do it\n")
    assert box.log() == ["do it"]


def test_a_prompt_of_which_a_piece_was_lost_is_not_submitted(box):
    status, _, err = box.run("-c", "--here", PROMPTS["30 lines"], "--wait", "3", script="lose_paste=1")
    assert box.log() in ([], [PROMPTS["30 lines"]])
    assert status in (0, 7), err


def test_a_paste_that_shows_too_late_is_never_submitted_doubled(box):
    status, result = box.talk("do it", script="slow_paste=1.3")
    assert (status, result["outcome"]) == (7, "stalled") and "does not show" in result["what"]
    assert box.run("wait", "1")[0] == 7 and not box.log()


def test_a_text_of_a_person_is_never_submitted_with_ours_and_a_wait_goes_on_when_it_is_gone(box):
    status, result = box.talk("do it", script="held=dear mum@2")
    assert (status, result["outcome"]) == (7, "stalled") and "holds other text" in result["what"]
    assert not box.log("pasted") and not box.log()
    assert box.run("wait", "1")[:2] == (0, "answer 1 to do it\n")
    assert box.log() == ["do it"]


# --- callers that are killed, and many of them ------------------------------------

@pytest.mark.parametrize("prompt, delivery, script", [
    ("one line", "waiting", "start=0.5"), ("one line", "pasted", "slow_paste=0.5"),
    ("one line", "entered", "slow_enter=0.5"), ("30 lines", "entered", "slow_enter=0.5"),
    ("one line", "taken", "busy=0.5")])
def test_a_caller_killed_at_any_step_is_followed_by_a_wait(box, prompt, delivery, script):
    caller = box.start("-c", "--here", PROMPTS[prompt], script=script)
    assert until_true(lambda: box.events() if (box.run_folder() / "events.jsonl").exists() else None)
    assert until_true(lambda: box.turn().get("delivery") == delivery)
    caller.kill()
    caller.communicate()
    assert box.turn()["delivery"] == delivery
    assert box.run("wait", "1")[:2] == (0, "answer 1 to %s\n" % PROMPTS[prompt][:30])
    assert box.log() == [PROMPTS[prompt]]


@pytest.mark.parametrize("prompt, delivery, deeds", [
    ("one line", "pasted", ""), ("one line", "pasted", "type"), ("one line", "entered", "type"),
    ("30 lines", "pasted", "type"), ("30 lines", "pasted", "half"), ("30 lines", "pasted", "paste"),
    ("one line", "entered", "type enter"), ("30 lines", "entered", "type enter done")])
def test_what_a_killed_caller_had_done_is_not_done_again(box, prompt, delivery, deeds):
    """Between two steps: the turn says what was meant, the screen how far it came."""
    text = PROMPTS[prompt]
    assert box.talk(text, "--wait", "0.05", script="start=0.4; busy=%g" % (0 if "done" in deeds else 0.5))[0] == 75
    assert until_true(lambda: "bypass permissions" in box.screen()) and box.turn()["delivery"] == "waiting"
    box.write_turn(delivery=delivery, mark=re.sub(r"[\W_]+", "", text)[:60], base=0)
    if "paste" in deeds:
        box.paste(text)
    if "type" in deeds or "half" in deeds:
        box.type(text if "type" in deeds else text[:200])
    if "enter" in deeds:
        box.tmux("send-keys", "-t", "%0", "Enter")
        assert until_true(lambda: "esc to interrupt" in box.screen() or "Brewed" in box.screen())
    assert box.run("wait", "1", "--wait", "8")[:2] == (0, "answer 1 to %s\n" % text[:30])
    assert box.log() == [text]


def test_what_a_person_typed_after_a_caller_was_killed_is_not_taken_for_the_prompt(box):
    assert box.talk("do it now, please", "--wait", "0.05", script="start=0.4")[0] == 75
    assert until_true(lambda: "bypass permissions" in box.screen())
    box.write_turn(delivery="pasted", mark="doitnowplease", base=0)
    box.type("please")    # a part of ours
    assert box.run("wait", "1", "--wait", "4")[0] in (0, 7)
    assert box.log() in ([], ["do it now, please"])


def test_two_waiters_type_once_and_get_the_same_answer(box):
    assert box.talk("do it", "--wait", "0.1", script="start=0.7; busy=0.3")[0] == 75
    waiters = [box.start("wait", "1") for _ in range(3)]
    assert [waiter.communicate(timeout=20)[0] for waiter in waiters] == [b"answer 1 to do it\n"] * 3
    assert box.log() == ["do it"] and len(box.log("pasted")) == 1


def test_nobody_types_while_somebody_else_does(box):
    assert box.talk("do it", "--wait", "0.05", script="start=0.3")[0] == 75
    path = box.run_folder() / "typing"
    with open(path, "a") as typing:
        fcntl.flock(typing, fcntl.LOCK_EX)
        waiter = box.start("wait", "1")
        handles = pathlib.Path("/proc/%d/fd" % waiter.pid)
        assert until_true(lambda: str(path) in [os.readlink(handle) for handle in handles.iterdir() if handle.exists()
                                                and handle.is_symlink()])
        assert not box.log("pasted") and box.turn()["delivery"] == "waiting"
    assert waiter.communicate(timeout=10)[0] == b"answer 1 to do it\n" and box.log() == ["do it"]


def test_of_two_that_send_at_once_one_is_refused(box):
    assert box.talk()[0] == 0
    senders = [box.start("send", "1", word + " [[busy=2]]") for word in ("this", "that")]
    results = {sender.wait(timeout=20): sender.communicate() for sender in senders}
    assert set(results) == {0, 2} and b"is not done with its turn" in results[2][1]
    assert len(box.log()) == 1


def test_a_prompt_cannot_be_sent_while_a_turn_goes_on_nor_to_nobody(box):
    assert box.talk("do it [[busy=60]]", "--wait", "0.5")[0] == 75
    status, _, err = box.run("send", "1", "more")
    assert status == 2 and "is not done with its turn" in err and "wait 1" in err
    status, _, err = box.run("send", "7", "more")
    assert status == 2 and "run `7` does not exist" in err
    assert box.run("send", "1")[0] == 2
    assert box.log() == ["do it [[busy=60]]"]


# --- people in the same session ---------------------------------------------------

def test_turns_of_a_person_before_between_and_after_ours_do_not_confuse_it(box):
    assert box.talk()[0] == 0
    box.type("mine", "Enter")
    assert until_true(lambda: "answer 1 to mine" in box.screen())
    assert box.run("send", "1", "ours")[1] == "answer 2 to ours\n"
    box.type("ours", "Enter")
    assert until_true(lambda: "answer 3 to ours" in box.screen())
    assert box.run("send", "1", "ours")[1] == "answer 4 to ours\n"
    assert box.run("send", "1", "ours [[busy=0.7]]", "--wait", "0.3")[0] == 75
    box.type("mine too", "Enter")    # it is queued, and begins when ours is over
    assert until_true(lambda: "answer 6 to mine too" in box.screen())
    assert box.run("wait", "1")[1] == "answer 5 to ours [[busy=0.7]]\n"


def test_a_turn_that_another_prompt_breaks_off_has_failed(box):
    status, result = box.talk("do it", script="busy=60; person=my own@0.3")
    assert (status, result["outcome"], result["answer"]) == (1, "failed", "") and "another prompt" in result["what"]
    assert box.run("send", "1", "again [[busy=0]]")[1].startswith("answer 2 to again")


def test_a_turn_is_not_over_while_a_shell_of_it_runs(box):
    status, result = box.talk("do it", script="background=1")
    assert (status, result["answer"]) == (0, "answer 1 to do it") and result["seconds"] >= 1


def test_a_turn_goes_on_when_the_shell_it_left_wakes_the_agent(box):
    status, result = box.talk("do it", script="background=0.5; wake")
    assert (status, result["answer"]) == (0, "the answer to <task-notification>the shell has ended</task-notification>")


def test_an_agent_that_keeps_no_record_is_read_from_its_screen(box):
    status, result = box.talk("do it", script="no_record; busy=0.7")
    assert (status, result["source"]) == (0, "screen") and "● answer 1 to do it" in result["answer"]


# --- questions --------------------------------------------------------------------

@pytest.mark.parametrize("choice, label", [("Blue", "Blue"), ("blue s", "Blue sky"), ("3", "Blue sky"), ("R", "Red")])
def test_a_question_is_answered_by_label_beginning_or_number(box, choice, label):
    status, result = box.talk("do it", script="ask_on_start=Which one?|Red|Blue|Blue sky")
    assert (status, result["outcome"], result["options"]) == (5, "asks", ["Red", "Blue", "Blue sky"])
    assert result["what"] == "the agent asks: Which one?" and not box.log("pasted")
    status, out, err = box.run("answer", "1", choice)
    assert (status, out) == (0, "answer 1 to do it\n") and "answered its question with: %s" % label in err
    assert box.log("dialog") == [label] and box.log() == ["do it"] and not box.log("stray")


def test_a_choice_that_is_none_presses_nothing(box):
    status, _, err = box.run("-c", "--here", "do it", script="ask_on_start=Which one?|Red|Blue|Blue sky")
    assert status == 5 and "answer 1 Red" in err
    for choice in ("Bl", "Green", "0", "4", ""):
        status, _, err = box.run("answer", "1", choice)
        assert status == 2 and "it offers: Red · Blue · Blue sky" in err, choice
    status, _, err = box.run("send", "1", "more")
    assert status == 2 and "asks something" in err and "answer 1" in err
    assert not box.log("dialog") and not box.log("stray") and "❯ 1. Red" in box.screen()


def test_a_dialog_that_obeys_late_is_answered_with_what_was_chosen(box):
    assert box.talk("do it", script="ask_on_start=Which one?|Red|Green|Blue|Black; slow_dialog=0.6")[0] == 5
    status, _, err = box.run("answer", "1", "Green")
    assert box.log("dialog") in ([], ["Green"])
    assert status == 0, err


def test_a_dialog_between_paste_and_enter_is_not_typed_into(box):
    status, result = box.talk("do it", script="ask_on_paste=Trust it?|No|Yes")
    assert (status, result["outcome"], result["options"]) == (5, "asks", ["No", "Yes"])
    assert not box.log("dialog") and not box.log("stray") and not box.log()
    assert box.run("answer", "1", "Yes")[:2] == (0, "answer 1 to do it\n")
    assert box.log("dialog") == ["Yes"] and box.log() == ["do it"] and len(box.log("pasted")) == 1


def test_a_question_in_the_turn_is_answered_and_the_turn_goes_on(box):
    status, result = box.talk("do it", script="ask_on_submit=May I?|Yes|No; busy=0.3")
    assert (status, result["options"]) == (5, ["Yes", "No"])
    assert box.run("wait", "1", "--json")[0] == 5
    assert box.run("answer", "1", "1")[:2] == (0, "answer 1 to do it\n")
    assert box.log("dialog") == ["Yes"] and box.log() == ["do it"]
    status, _, err = box.run("answer", "1", "Yes")
    assert status == 2 and "asks nothing now" in err


# --- how a turn ends otherwise ----------------------------------------------------

@pytest.mark.parametrize("kind, status, outcome, words", [
    ("error", 1, "failed", "API Error: 500 made-up trouble"), ("login", 4, "login", "Invalid API key"),
    ("limit", 6, "limited", "You've hit your 5-hour limit")])
def test_trouble_is_told_in_the_agents_words_and_the_next_prompt_gets_through(box, kind, status, outcome, words):
    code, result = box.talk("do it [[%s; busy=0.2]]" % kind)
    assert (code, result["outcome"]) == (status, outcome) and words in result["what"]
    assert box.run("wait", "1")[0] == status
    assert box.run("send", "1", "again")[:2] == (0, "answer 2 to again\n")
    assert box.log()[1:] == ["again"]


@pytest.mark.parametrize("script, code", [("exit_on_start=4", 4), ("exit_on_submit=3", 3)])
def test_an_agent_that_leaves_has_died_and_its_status_is_told(box, script, code):
    status, result = box.talk("do it", script=script)
    assert (status, result["outcome"]) == (1, "died") and "status %d" % code in result["what"]


@pytest.mark.parametrize("victim", ["agent", "server"])
def test_an_agent_killed_in_mid_turn_has_died(box, victim):
    caller = box.start("-c", "--here", "do it", script="busy=60")
    assert until_true(lambda: box.turn().get("delivery") == "taken")
    os.kill(box.agent_pid() if victim == "agent" else box.facts()["server"][0], signal.SIGKILL)
    out, err = caller.communicate(timeout=20)
    assert (caller.returncode, out) == (1, b"") and b"run 1: died: the worker " in err and b"Traceback" not in err
    assert box.facts()["state"] == "over" and not box.processes()


def test_a_talk_whose_agent_died_is_taken_up_again(box):
    assert box.talk("do it", script="busy=0.2")[0] == 0
    os.kill(box.agent_pid(), signal.SIGKILL)
    assert box.run("send", "1", "again")[:2] == (0, "answer 2 to again\n")


# --- starting, interrupting, stopping ---------------------------------------------

def test_a_talk_without_a_prompt_is_ready_and_takes_one(box):
    status, out, err = box.run("-c", "--here", script="start=0.5")
    assert (status, out) == (0, "") and "run 1: ready; it stays: " in err and not box.log("pasted")
    status, result = box.run_json("wait", "1")
    assert (status, result["outcome"], result["turn"]) == (0, "ready", 0)
    assert box.run("send", "1", "do it")[:2] == (0, "answer 1 to do it\n")


def test_once_leaves_nothing(box):
    status, result = box.talk("do it", "--once")
    assert (status, result["answer"], result["state"]) == (0, "answer 1 to do it", "over")
    assert result["exit_status"] == 0 and not box.processes()


@pytest.mark.parametrize("script", ["put_back", ""])
@pytest.mark.parametrize("prompt", ["one line", "30 lines"])
def test_after_an_interrupt_the_next_prompt_gets_through_alone(box, script, prompt):
    assert box.talk(PROMPTS[prompt], "--wait", "0.7", script=script + ";busy=60")[0] == 75
    assert "esc to interrupt" in box.screen()
    status, result = box.run_json("interrupt", "1")
    assert (status, result["outcome"]) == (0, "stopped")
    assert "esc to interrupt" not in box.screen() and "[Pasted" not in box.screen()
    assert box.run("wait", "1")[0] == 1
    assert box.run("send", "1", "next [[busy=0]]")[:2] == (0, "answer 2 to next [[busy=0]]\n")
    assert box.log() == [PROMPTS[prompt], "next [[busy=0]]"]
    status, _, err = box.run("interrupt", "1")
    assert status == 2 and "has no turn to interrupt" in err


def test_a_composer_that_empties_late_is_told_so_once(box):
    """A second Ctrl-C ends the real one."""
    assert box.talk("do it", "--wait", "0.7", script="put_back; slow_clear=0.6; busy=60")[0] == 75
    assert box.run("interrupt", "1")[0] == 0
    assert box.run("send", "1", "next [[busy=0]]")[:2] == (0, "answer 2 to next [[busy=0]]\n")


def test_an_agent_that_stops_late_is_interrupted_once(box):
    """A second Esc would open a menu of the real one."""
    assert box.talk("do it", "--wait", "0.7", script="slow_interrupt=0.7; busy=60")[0] == 75
    assert box.run("interrupt", "1")[0] == 0
    assert box.log("interrupted") == [1] and "esc to interrupt" not in box.screen()
    assert box.run("send", "1", "next [[busy=0]]")[:2] == (0, "answer 2 to next [[busy=0]]\n")


def test_an_interrupt_ends_the_wait_of_whoever_waits(box):
    caller = box.start("-c", "--here", "do it", script="busy=60")
    assert until_true(lambda: box.turn().get("delivery") == "taken")
    assert box.run("interrupt", "1")[0] == 0
    assert caller.wait(timeout=10) == 1 and b"stopped: the turn was interrupted" in caller.communicate()[1]


@pytest.mark.parametrize("held_s", [0.7, 1.3])    # below and above the patience of whoever waits
def test_a_prompt_that_was_interrupted_before_it_was_typed_is_never_typed(box, held_s):
    caller = box.start("-c", "--here", "not this", script="held=dear mum@%g" % held_s)
    assert until_true(lambda: "dear mum" in box.screen() if (box.run_folder() / "events.jsonl").exists() else None)
    assert until_true(lambda: len(box.log("started")) == 1)
    assert box.run("interrupt", "1")[0] == 0
    status, _, err = box.run("send", "1", "but this")
    if status == 7:
        status, _, err = box.run("wait", "1")    # the text of the person was still there
    caller.communicate()
    assert box.log() == ["but this"] and status == 0, err
    assert caller.returncode == 1
    assert [box.turn(number)["outcome"] for number in (1, 2)] == ["stopped", "answered"]


def test_a_stopped_talk_is_taken_up_again_in_the_same_session(box):
    assert box.talk("do it")[0] == 0
    assert box.run("stop", "1")[0] == 0 and not box.processes()
    status, result = box.run_json("send", "1", "and more")
    assert (status, result["answer"], result["turn"], result["state"]) == (0, "answer 2 to and more", 2, "running")
    first, second = box.log("started")
    assert second[second.index("--resume") + 1] == first[first.index("--session-id") + 1] == result["session_id"]
    assert "--session-id" not in second
    assert box.run("send", "1", "and more")[1] == "answer 3 to and more\n"
    assert [pid for pid, line in box.processes() if "fake_talker" in line]


def test_a_talk_stopped_before_its_first_prompt_can_be_taken_up(box):
    assert box.talk()[0] == 0 and box.run("stop", "1")[0] == 0
    assert box.run("send", "1", "do it")[:2] == (0, "answer 1 to do it\n")


def test_a_talk_stopped_in_trouble_is_taken_up_again(box):
    assert box.talk("do it [[error]]")[0] == 1 and box.run("stop", "1")[0] == 0
    assert box.run("send", "1", "again")[:2] == (0, "answer 2 to again\n")


def test_a_stop_in_mid_turn_ends_whoever_waits_and_leaves_nothing(box):
    caller = box.start("-c", "--here", "do it", script="busy=60")
    assert until_true(lambda: box.turn().get("delivery") == "taken")
    assert box.run("stop", "1")[0] == 0
    assert caller.wait(timeout=10) == 1 and b"stopped" in caller.communicate()[1] and not box.processes()


# --- explaining and listing -------------------------------------------------------

def test_explain_names_verdict_rule_region_and_text_of_a_run(box):
    assert box.talk("do it [[busy=60]]", "--wait", "0.7")[0] == 75
    status, verdict = box.run_json("explain", "1")
    assert (status, set(verdict)) == (0, {"verdict", "rule", "region", "text"})
    assert (verdict["verdict"], verdict["rule"], verdict["region"]) == ("busy", "busy-footer", "below:rule")
    assert "esc to interrupt" in verdict["text"]
    assert box.run("explain", "last")[1].startswith("busy, by rule busy-footer in below:rule: ")
    box.run("stop", "1")
    assert box.run("explain", "1")[0] == 0


def test_explain_takes_a_recorded_screen(box):
    path = ROOT / "tests" / "screens" / "claude" / "2.1.329" / "ready" / "ready-bypass-200x50.txt"
    status, verdict = box.run_json("explain", path, "--agent", "claude")
    assert (status, verdict["verdict"], verdict["rule"], verdict["region"]) == (0, "ready", "ready", "at:box")
    for words, trouble in [((path,), "whose screen is it?"), ((path, "--agent", "nobody"), "`nobody` is not known"),
                           (("no/such/file", "--agent", "claude"), "neither a run nor a file")]:
        status, _, err = box.run("explain", *words)
        assert status == 2 and trouble in err


def test_list_shows_a_talk_inside_a_talk_below_it_and_a_stop_ends_both(box):
    assert box.talk()[0] == 0
    inside = box.start("-c", "--here", "--json", env={"SELFTALK_RUN": str(box.run_folder())})
    assert json.loads(inside.communicate(timeout=20)[0])["parent"] == 1
    assert box.talk()[0] == 0
    lines = box.run("list", "--tree")[1].splitlines()
    assert [re.match(r" *(\d+)  ready", line)[1] for line in lines] == ["1", "2", "3"]
    assert [len(line) - len(line.lstrip()) for line in lines] == [3, 7, 3]
    assert box.run("stop", "1")[0] == 0
    assert [entry["state"] for entry in box.run_json("list")[1]] == ["over", "over", "running"]


@pytest.mark.parametrize("words, trouble", [
    (("-c", "-g", "hi"), "more than one target"), (("-c", "-p", "claude", "hi"), "more than one target"),
    (("run", "-c", "hi"), "more than one target"), (("--dry-run", "hi"), "belong to -e"), (("-c", "-x", "hi"), "add -e"),
    (("-c", "--cwd", "/no/such/folder", "hi"), "no such folder"), (("-c", "--pane", "hi"), "not inside tmux"),
    (("answer", "1", "Yes"), "run `1` does not exist"), (("interrupt", "last"), "run `last` does not exist"),
    (("explain", "1"), "1: is neither a run nor a file"), (("send", "last", "hi"), "run `last` does not exist")])
def test_a_command_line_that_makes_no_sense_starts_nothing(box, words, trouble):
    status, out, err = box.run(*words)
    assert (status, out) == (2, "") and trouble in err
    assert not box.log("started") and not (box.state / "runs").exists()


# --- found by an attack -------------------------------------------------------------

@pytest.mark.parametrize("options, choice, taken", [
    ("3|2|1", "3", "3"), ("Yes  now|Yes  later|No", "2", "Yes  later"), ("Red|Blue|Green|White|Black", "White", "White")])
def test_an_option_is_meant_by_its_label_first_and_taken_by_its_place(box, options, choice, taken):
    box.talk("do it", script="ask_on_submit=Which?|%s; slow_dialog=0.2; busy=0.2" % options)
    assert box.run("answer", "1", choice)[0] == 0
    assert box.log("dialog") == [taken] and not box.log("stray")


def test_of_two_that_answer_at_once_one_presses(box):
    box.talk("do it", script="ask_on_submit=Which?|Red|Blue|Green|White; busy=1")
    answers = [box.start("answer", "1", "White") for _ in range(2)]
    codes = sorted((one.wait(timeout=20), len(one.communicate()[0])) for one in answers)
    assert box.log("dialog") == ["White"] and not box.log("stray")
    assert [code for code, _ in codes] in ([0, 0], [0, 2])


def test_a_turn_that_is_over_cannot_be_interrupted_any_more(box):
    assert box.talk("do it [[busy=0.5]]", "--wait", "0.3")[0] == 75
    assert until_true(lambda: box.log("done"))
    assert until_true(lambda: "done 5:54" in box.screen())
    box.run("interrupt", "1")
    assert box.run("wait", "1")[:2] == (0, "answer 1 to do it [[busy=0.5]]\n")


def test_a_question_is_answered_not_interrupted(box):
    assert box.talk("do it", script="ask_on_submit=May I?|Yes|No")[0] == 5
    status, _, err = box.run("interrupt", "1")
    assert status == 2 and "answer 1 CHOICE" in err and not box.log("dialog")


def test_a_send_that_cannot_start_costs_no_answer(box):
    assert box.talk("do it")[0] == 0 and box.run("stop", "1")[0] == 0
    config = box.home / ".config" / "selftalk" / "config.yaml"
    config.write_text(config.read_text().replace("interface: claude", "interface: claude\n    env: {X: {from_env: NOT_SET}}", 1))
    status, _, err = box.run("send", "1", "more")
    assert status == 2 and "NOT_SET" in err
    assert box.run("wait", "1")[:2] == (0, "answer 1 to do it\n")


def test_a_send_without_tmux_costs_no_answer(box):
    assert box.talk("do it")[0] == 0 and box.run("stop", "1")[0] == 0
    (box.folder / "bin").mkdir()
    _, err = box.start("send", "1", "more", env={"PATH": str(box.folder / "bin")}).communicate(timeout=20)
    assert b"tmux: not found" in err
    assert box.run("wait", "1")[:2] == (0, "answer 1 to do it\n")


def tmux_that_fails(box, words, deed):
    """A folder for PATH with a tmux that does `deed` instead of what `words` ask for."""
    folder = box.folder / "bin"
    folder.mkdir()
    real = subprocess.run(["sh", "-c", "command -v tmux"], stdout=subprocess.PIPE).stdout.decode().strip()
    (folder / "tmux").write_text('#!/bin/sh\ncase "$*" in *%s*) %s;; esac\nexec %s "$@"\n' % (words, deed, real))
    (folder / "tmux").chmod(0o755)
    return {"PATH": "%s:%s" % (folder, box.env["PATH"])}


def test_a_start_that_fails_leaves_a_talk_that_can_be_taken_up_and_of_a_new_one_nothing(box):
    assert box.talk("do it")[0] == 0 and box.run("stop", "1")[0] == 0
    env = tmux_that_fails(box, "new-session", "echo no luck >&2; exit 1")
    for words in (("send", "1", "more"), ("-c", "--here", "hi")):
        caller = box.start(*words, env=env)
        assert b"no luck" in caller.communicate(timeout=20)[1] and caller.returncode == 1
    assert box.facts("last")["id"] == 1 and box.facts()["state"] == "over" and not box.processes()
    assert not list((box.state / "open").iterdir())
    assert box.run("wait", "1")[0] == 1
    assert box.run("send", "1", "again")[:2] == (0, "answer 2 to again\n")


@pytest.mark.parametrize("is_resume", [False, True])
def test_a_start_whose_caller_is_killed_is_ended_by_a_wait(box, is_resume):
    words = ("-c", "--here", "do it")
    if is_resume:
        assert box.talk("do it")[0] == 0 and box.run("stop", "1")[0] == 0
        words = ("send", "1", "more")
    env = tmux_that_fails(box, "new-session", "touch %s/there; until [ -e %s/go ]; do sleep 0.05; done; exit 1" %
                          (box.folder, box.folder))
    caller = box.start(*words, env=env)
    assert until_true((box.folder / "there").exists)
    waiter = box.start("wait", "1")
    with pytest.raises(subprocess.TimeoutExpired):
        waiter.wait(timeout=0.5)
    caller.kill()
    out, err = waiter.communicate(timeout=20)
    assert (waiter.returncode, out) == (1, b"") and b"stopped before it had started" in err
    assert box.facts()["state"] == "over" and not list((box.state / "open").iterdir())
    (box.folder / "go").touch()
    caller.communicate()


@pytest.mark.parametrize("text", ["", "[]", '{"turn": 2', "3"])
def test_a_turn_that_cannot_be_read_gives_no_answer_of_another(box, text):
    assert box.talk("do it")[0] == 0
    assert box.run("send", "1", "two [[busy=60]]", "--wait", "1")[0] == 75
    (box.run_folder() / "turns" / "2.json").write_text(text)
    status, out, err = box.run("wait", "1", "--wait", "2")
    assert status == 2 and not out and "turns/2.json: cannot be read" in err
    assert box.run("stop", "1")[0] == 0


def test_a_prompt_that_a_person_takes_back_is_no_endless_turn(box):
    assert box.talk("do it [[busy=60]]", "--wait", "0.5", script="put_back")[0] == 75
    box.tmux("send-keys", "-t", "%0", "Escape")
    status, result = box.run_json("wait", "1", "--wait", "20")
    assert (status, result["outcome"]) == (1, "stopped") and "in its pane" in result["what"]
    assert box.run("send", "1", "another")[:2] == (0, "answer 2 to another\n")


def test_a_prompt_that_scrolls_to_an_empty_line_arrives(common):
    prompt = "first\n\n" + "\n".join("line %d" % number for number in range(19))
    assert common.run("send", "last", "--", prompt)[0] == 0 and common.log()[-1] == prompt
