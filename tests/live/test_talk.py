"""Talks with the real agents in real tmux: turn after turn, with a person at the same keyboard, and in trouble.

Most tests share one session per agent (`talk`): a start costs seconds. A test that leaves its agent in trouble
costs the next one a start, and nothing else.
"""
from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from homes import make_home
from model_server import Answer, CutStream, Error, Hang, LimitReached, Shell, Think
from talks import FLAGS, POINTER, PROGRAM, Talk, open_home, plain_prompt, say_hello, wait_until

AGENTS = ("claude", "codex", "gemini", "opencode")
TALKERS = tuple(agent for agent in AGENTS if FLAGS[agent])     # those that a letter begins a talk with
SOON_S = 8.0     # of the answer to a prompt that needs no thought: nothing is waited for in vain


@pytest.fixture(scope="module", params=AGENTS)
def home(request):
    with open_home(request.param) as opened:
        yield opened


@pytest.fixture
def talk(home):
    """A talk with an agent that waits for a prompt."""
    found = sorted(map(int, os.listdir(home.runs))) if home.runs.exists() else [1]
    talk = Talk(home, found[-1])
    talk.make_ready()
    home.server.every_prompt([Answer("nobody said what to answer")])
    talk.new_prompts()
    return talk


@pytest.fixture
def fresh(request):
    """fresh("codex") -> a talk that is yet to begin, in a home of its own."""
    opened = []

    def make(agent):
        context = open_home(agent)
        opened.append(context)
        return Talk(context.__enter__())

    yield make
    for context in opened:
        context.__exit__(None, None, None)


def texts(talk):
    return [prompt.text for prompt in talk.new_prompts()]


# --- the first start --------------------------------------------------------------

USER_FILES = {   # what a user may have written, and must find as it was
    "claude": (".claude/settings.json", '{"cleanupPeriodDays": 365}\n'),
    "codex": (".codex/config.toml", ""),                        # the one of the home
    "gemini": (".gemini/settings.json", ""),
    "opencode": (".config/opencode/opencode.json", ""),
}


PACKAGES = {"claude": "claude-code", "codex": "openai%2fcodex", "gemini": "gemini-cli", "opencode": "/opencode-ai"}


def without_own_notes(text):
    """A config without what codex 0.169.0 notes at its end, whoever starts it: a list of hints it has shown."""
    return re.sub(r"\n\[tui\]\n(?:[^\[]|\[tui\.)*\Z", "", text)


@pytest.mark.parametrize("agent", AGENTS)
def test_a_first_start_in_a_folder_never_seen_edits_nothing_and_updates_nothing(agent, fresh):
    talk = fresh(agent)
    name, content = USER_FILES[agent]
    user_file = Path(talk.env["HOME"]) / name
    user_file.parent.mkdir(exist_ok=True)
    if agent == "opencode":     # 1.18.33 adds the schema, whoever starts it
        content = json.dumps({"$schema": "https://opencode.ai/config.json", **json.loads(user_file.read_text())})
    if content:
        user_file.write_text(content)
    for variable in ("DISABLE_AUTOUPDATER", "OPENCODE_DISABLE_AUTOUPDATE"):   # what the home does, we have to do
        talk.env.pop(variable, None)
    before = user_file.read_text()
    talk.server.every_prompt(say_hello)
    folders = (("plain", False), ("repository", True))
    for folder, is_repository in folders if FLAGS[agent] else folders[1:]:     # opencode needs 10 s for each
        talk.home.folder = talk.home.root / folder
        talk.home.folder.mkdir()
        if is_repository:
            subprocess.run(["git", "init", "-q"], cwd=talk.home.folder, env=talk.env, check=True)
        status, result = talk.begin("say hello")
        assert (status, result["outcome"], result["answer"]) == (0, "answered", "hello"), result
        assert (result["workspace"], result["form"], result["place"]) == (
            str(talk.home.folder), "talk" if FLAGS[agent] else "task", "session")
        assert not [event for event in talk.events() if event["event"] == "dialog"]
        assert talk.run("stop", str(talk.number))[0] == 0
    assert without_own_notes(user_file.read_text()) == before
    asked = [request.path for request in talk.server.requests if request.kind in ("other", "outside")]
    assert not [path for path in asked if PACKAGES[agent] in path], asked
    assert not list(Path(talk.env["HOME"]).glob(".codex/packages/*"))      # codex's shared daemon lies there


@pytest.mark.parametrize("agent", TALKERS)
def test_a_talk_works_in_the_neutral_folder_and_once_ends_it(agent, fresh):
    talk = fresh(agent)
    talk.server.every_prompt([Answer("hello")])
    process = talk.start(FLAGS[agent], "--json", "--once", "say hello")
    status, result = talk.finish(process)
    assert (status, result["answer"], result["state"]) == (0, "hello", "over"), result
    assert result["workspace"] == os.path.realpath("/tmp/selftalk")
    assert not [line for line in talk.home.left().values() if "selftalk.py" not in line]


@pytest.mark.parametrize("agent", TALKERS)
def test_a_start_without_a_prompt_waits_for_one(agent, fresh):
    talk = fresh(agent)
    status, result = talk.begin("")
    assert (status, result["outcome"], result["turn"], result["answer"]) == (0, "ready", 0, ""), result
    assert not talk.server.prompts
    assert talk.shows_ready()
    talk.server.every_prompt([Answer("at last")])
    status, result = talk.send("say hello")
    assert (status, result["answer"], result["turn"]) == (0, "at last", 1), result


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user: run `sudo make live` to have this")
@pytest.mark.parametrize("agent", ("claude", "codex"))
def test_an_ordinary_user_can_talk_too(agent, fresh):
    talk, nobody = fresh(agent), 64123     # in no passwd file
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or pytest.fail("no python3 for everybody")
    subprocess.run(["chown", "-R", "%d:%d" % (nobody, nobody), str(talk.home.root)], check=True)
    talk.server.every_prompt([Answer("hello, user")])

    def run(*words):
        return talk.finish(talk.start(*words, executable=python, user=nobody, group=nobody, extra_groups=()))

    status, result = run(*talk.words("say hello"))
    assert (status, result["answer"]) == (0, "hello, user"), result
    assert talk.folder.stat().st_uid == nobody and talk.folder.stat().st_mode & 0o777 == 0o700
    assert run("send", "1", "--json", "again")[1]["answer"] == "hello, user"
    assert run("stop", "1", "--json")[0] == 0


def make_logged_out(agent, env):
    """Takes the login out of a home."""
    home = Path(env["HOME"])
    if agent == "claude":
        del env["CLAUDE_CODE_OAUTH_TOKEN"]
    if agent == "codex":
        (home / ".codex" / "config.toml").write_text("check_for_update_on_startup = false\n")
    if agent == "gemini":
        (home / ".gemini" / "settings.json").write_text("{}")
        del env["GEMINI_API_KEY"]


@pytest.mark.parametrize("agent", TALKERS)
def test_an_agent_that_is_not_logged_in_is_told_before_anything_is_typed(agent, fresh):
    talk = fresh(agent)
    make_logged_out(agent, talk.env)
    status, result = talk.begin("say hello")
    assert (status, result["outcome"]) == (4, "login"), result
    assert "log in" in result["fix"] and not talk.server.prompts
    assert (talk.folder / "screen.txt").read_text().strip()


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_that_is_not_installed_is_told_before_anything_starts(agent, fresh):
    talk = fresh(agent)
    talk.env["PATH"] = os.pathsep.join(folder for folder in talk.env["PATH"].split(os.pathsep)
                                       if not os.path.exists(os.path.join(folder, agent)))
    status, result = talk.finish(talk.start(*talk.words("say hello")))
    assert (status, result["error"]["word"]) == (3, "missing"), result
    assert "npm install -g" in result["error"]["fix"] and not list(talk.home.runs.glob("*"))


# --- turns ------------------------------------------------------------------------

def test_a_turn_may_think_stream_and_use_tools(talk):
    acts = [Shell("echo one; sleep 1", text="I look."), Think(1.5), Shell("echo two"), Think(0.5),
            Answer("The end.\nOf it.", chunks=6, chunk_pause_s=0.3)]
    talk.server.next_prompt(*acts)
    status, result = talk.send("work for a while")
    assert (status, result["answer"], result["source"]) == (0, "The end.\nOf it.", "transcript"), result
    assert result["model"] and result["tokens"]["output"] > 0 and result["session_id"]
    assert texts(talk) == ["work for a while"]


def test_the_same_prompt_again_gives_the_second_answer(talk):
    answers = ["first", "second", "third"]
    talk.server.every_prompt(lambda text: [Answer(answers.pop(0))])
    for wanted in ("first", "second", "third"):
        begun = time.monotonic()
        status, result = talk.send("say it")
        assert (status, result["answer"]) == (0, wanted), result
        assert time.monotonic() - begun < SOON_S
    assert texts(talk) == ["say it"] * 3


def test_a_long_answer_comes_whole_and_from_the_record(talk):
    rows = ["- row %d: ünï😀de, 漢字, `code`, **bold**, a\ttab and a \\ in %d" % (n, n * n) for n in range(1600)]
    answer = "\n".join(["# A long one", "", *rows, "", "```", "❯ code", "```", "", "The last line."])
    assert len(answer.encode()) > 100_000
    talk.server.next_prompt(Answer(answer, chunks=8, chunk_pause_s=0.05))
    status, result = talk.send("tell me all")
    assert (status, result["source"]) == (0, "transcript"), result["what"]
    assert result["answer"] == answer
    assert (talk.folder / "turns" / ("%d.md" % result["turn"])).read_text() == answer
    process = talk.start("wait", str(talk.number))     # and again, as text
    out, _ = process.communicate(timeout=30)
    assert out.decode() == answer + "\n"


# --- delivery ---------------------------------------------------------------------

def long_plan(size):
    """A plan of at least so many bytes, in lines."""
    line = "ünï row %06d of a long plan that nobody reads, with some more words in it\n"
    return "".join(line % n for n in range(size // len((line % 0).encode()) + 1)).strip()


PROMPTS = {
    "one line": "say hello, with  two spaces, a \"quote\", an it's, a `tick` and a $HOME",
    "30 lines": "\n".join("line %d\n" % n if n % 7 == 0 else "line %d" % n for n in range(30)),
    "10 KB": long_plan(10_000), "200 KB": long_plan(200_000), "1 MB": long_plan(1_048_576),
    "10 KB in one line": "word " * 2000 + "end",
    "tabs": "a\tb\n\tc", "emoji": "ünï😀👩‍👩‍👧 漢字 שלום", "line ends": "one\r\ntwo\rthree\r\n",
    "a backslash at the end": "ends with \\", "a word of a file at the end": "ask @nobody",
    "a name at the end": "look at /tmp", "a command": "/help me", "a path": "/tmp/nobody: what is it?",
    "a shell command": "!echo hi", "a note": "# note", "a file": "@nobody said", "a skill": "$nobody does",
    "a question mark": "?", "a dash": "--help",
    "what ends a paste": "before\x1b[201~after\x07 \x1b[31mred\x1b[0m", "outer spaces": "\n\n  lead and trail  \n\n",
}
CLEANED = {"line ends": "one\ntwo\nthree", "what ends a paste": "beforeafter red"}
TAB = {"claude": "    "}      # 2.1.329 sends spaces for a tab


@pytest.mark.parametrize("name", PROMPTS)
def test_the_model_gets_what_was_given_once(name, talk):
    wanted = CLEANED.get(name, PROMPTS[name]).strip().replace("\t", TAB.get(talk.agent, "\t"))
    talk.server.every_prompt([Answer("got it")])
    begun = time.monotonic()
    status, result = talk.send_file(PROMPTS[name])
    assert (status, result["answer"]) == (0, "got it"), result
    seconds = time.monotonic() - begun
    [sent] = texts(talk)
    if sent.strip() == POINTER % talk.folder:
        sent = (talk.folder / "prompt.md").read_text()
        wanted = PROMPTS[name].strip()
        assert len(wanted) > 5000 or wanted[0] in "/!@-"       # else it could have been typed
    assert plain_prompt(sent) == wanted
    assert seconds < SOON_S


# --- with a person at the keyboard ------------------------------------------------

def test_a_prompt_that_a_person_types_while_ours_runs_is_queued_or_joins_it(talk):
    talk.server.every_prompt(lambda text: [Answer("for the person")] if "person" in text else
                             [Think(2.5), Answer("for the caller", chunks=4, chunk_pause_s=0.3)])
    process = talk.start_sending("work for the caller")
    talk.server.await_prompts(talk.seen + 1)
    talk.type("now for the person", "Enter")
    status, result = talk.finish(process)
    joins = talk.agent == "codex"     # 0.169.0 asks the model again, with both prompts, and has one answer for them
    assert (status, result["answer"]) == (0, "for the person" if joins else "for the caller"), result
    talk.server.await_prompts(talk.seen + 2)
    assert texts(talk)[:2] == ["work for the caller", "now for the person"]
    assert b"work for the caller" in talk.server.prompts[-1].body
    assert wait_until(talk.shows_ready)
    talk.server.every_prompt([Answer("ours again")])
    status, result = talk.send("and again")
    assert (status, result["answer"]) == (0, "ours again"), result


def test_half_a_text_of_a_person_is_left_alone_until_it_is_gone(talk):
    talk.server.every_prompt([Answer("got it")])
    half = "half a thought"
    talk.type(half)
    status, result = talk.send("the prompt of the caller")
    assert (status, result["outcome"]) == (7, "stalled"), result
    assert "composer" in result["what"] and texts(talk) == []
    assert half in talk.screen() and "the prompt of the caller" not in talk.screen()
    waiting = talk.start("wait", str(talk.number), "--json")
    talk.press(*["BSpace"] * len(half))
    status, result = talk.finish(waiting)
    assert (status, result["answer"]) == (0, "got it"), result
    assert texts(talk) == ["the prompt of the caller"]


def test_a_person_who_scrolls_the_pane_is_in_nobodys_way(talk):
    talk.server.every_prompt([Answer("got it")])
    talk.tmux("copy-mode", "-t", talk.facts()["pane"])
    talk.tmux("send-keys", "-t", talk.facts()["pane"], "-X", "page-up")
    status, result = talk.send("the prompt of the caller")
    assert (status, result["answer"]) == (0, "got it"), result
    assert texts(talk) == ["the prompt of the caller"]


def test_a_question_of_the_agent_is_passed_on_and_its_answer_goes_on_with_the_turn(fresh):
    talk = fresh("gemini")     # 0.61.0 asks by itself when a model repeats itself
    talk.server.next_prompt(Answer("word " * 800), Answer("without a loop"))
    status, result = talk.begin("say much")
    assert (status, result["outcome"], len(result["options"])) == (5, "asks", 2), result
    assert "loop detection" in result["what"]
    assert talk.run("answer", str(talk.number), "no such option")[0] == 2
    status, result = talk.run("answer", str(talk.number), "Disable")
    assert (status, result["answer"]) == (0, "without a loop"), result


def the_next_one_goes_through(talk):
    talk.new_prompts()
    talk.server.every_prompt([Answer("got it")])
    status, result = talk.send("the next one")
    assert (status, result["answer"]) == (0, "got it"), result
    assert [text.strip() for text in texts(talk)] == ["the next one"]


# --- ending a turn, and all -------------------------------------------------------

def test_a_turn_is_interrupted_before_it_says_anything_and_the_next_goes_through(talk):
    talk.server.next_prompt(Think(60), Answer("too late"))
    process = talk.start_sending("think for ever")
    talk.server.await_prompts(talk.seen + 1)
    status, result = talk.run("interrupt", str(talk.number))
    assert (status, result["outcome"]) == (0, "stopped"), result
    status, result = talk.finish(process)
    assert (status, result["outcome"], result["answer"]) == (1, "stopped", ""), result
    the_next_one_goes_through(talk)


def test_a_turn_is_interrupted_while_it_streams_and_the_next_goes_through(talk):
    talk.server.next_prompt(Answer("word " * 500, chunks=200, chunk_pause_s=0.2))
    process = talk.start_sending("say much")
    talk.server.await_prompts(talk.seen + 1)
    assert wait_until(lambda: "word word" in talk.screen())
    assert talk.run("interrupt", str(talk.number))[0] == 0
    status, result = talk.finish(process)
    assert (status, result["outcome"]) == (1, "stopped"), result
    the_next_one_goes_through(talk)


def test_stop_ends_agent_and_tools_and_send_takes_the_conversation_up_again(talk):
    talk.server.next_prompt(Answer("the cat is called Ataraxia"))
    assert talk.send("what is the cat called")[0] == 0
    talk.server.next_prompt(Shell("setsid sleep 7777 & nohup sleep 8888 >/dev/null 2>&1 & sleep 9999"), Answer("no"))
    process = talk.start_sending("sleep for long")
    assert wait_until(lambda: len([line for line in talk.home.left().values() if " sleep " in line]) >= 3)
    assert talk.run("stop", str(talk.number))[0] == 0
    status, result = talk.finish(process)
    assert (status, result["outcome"], result["state"]) == (1, "stopped", "over"), result
    assert talk.home.left() == {}
    talk.server.every_prompt([Answer("got it")])
    status, result = talk.send("and now")
    assert (status, result["answer"], result["id"]) == (0, "got it", talk.number), result
    last = talk.server.prompts[-1]
    assert last.text.strip() == "and now" and b"Ataraxia" in last.body


# --- trouble ----------------------------------------------------------------------

STALL = ("--stall", "6")
FIRST_STALL = ("--stall", "20")     # opencode shows nothing for 10 s when it starts on a busy machine
TROUBLE = {   # acts; outcome, or one for each agent; what the agent's words hold
    "401": ([Error(401, message="made-up 401")], "login"),
    "400": ([Error(400, message="made-up refusal")], "failed"),
    "429": ([Error(429, message="made-up 429")], "failed"),
    "500": ([Error(500, message="made-up 500")], {"gemini": "stalled", "opencode": "stalled", "": "failed"}),
    "usage limit": ([LimitReached()], {"opencode": "stalled", "": "limited"}),
    "hang in the middle": ([Hang("The beginning of an")], "stalled"),
}
CODES = {"login": 4, "failed": 1, "stalled": 7, "limited": 6, "answered": 0}


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_of_the_api_is_told_and_the_next_turn_goes_through(name, talk):
    if name == "429" and talk.agent in ("gemini", "opencode"):
        pytest.skip("is tried again for ever, as 500 is")
    acts, outcome = TROUBLE[name]
    outcome = outcome if isinstance(outcome, str) else outcome.get(talk.agent, outcome[""])
    talk.server.next_prompt(*acts)
    status, result = talk.send("do it", *STALL)
    assert (status, result["outcome"]) == (CODES[outcome], outcome), result
    assert result["what"] and (talk.folder / "screen.txt").read_text().strip()
    if outcome == "limited":      # claude waits for the reset; the others show a dialog
        return
    if outcome == "stalled":
        assert talk.run("interrupt", str(talk.number))[0] == 0
    the_next_one_goes_through(talk)


def test_a_stream_that_is_cut_gives_no_answer_of_another_turn(talk):
    talk.server.next_prompt(CutStream(), Answer("The whole answer."))
    status, result = talk.send("do it", *STALL)
    assert result["answer"] in ("", "The beginning of an ans", "The whole answer."), result
    assert status == CODES[result["outcome"]]


def test_an_answer_is_not_lost_when_its_caller_is_killed(talk):
    talk.server.every_prompt([Think(1.5), Answer("still here")])
    process = talk.start_sending("do it")
    talk.server.await_prompts(talk.seen + 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert talk.run("wait", str(talk.number), "--wait", "0.2")[0] == 75
    for _ in range(2):
        status, result = talk.run("wait", str(talk.number))
        assert (status, result["answer"]) == (0, "still here"), result
    assert texts(talk) == ["do it"]


def test_a_caller_killed_while_it_types_is_taken_over_by_the_next(talk):
    """At several moments around the paste: the prompt must come once, and its answer."""
    talk.server.every_prompt(lambda text: [Answer("answer to " + text.strip())])
    for number, after_s in enumerate((0.05, 0.1, 0.15, 0.2, 0.3)):
        process = talk.start_sending("prompt number %d" % number)
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if talk.turn().get("prompt") != "prompt number %d" % number:
            continue      # killed before it asked for anything
        status, result = talk.run("wait", str(talk.number))
        assert (status, result["answer"]) == (0, "answer to prompt number %d" % number), (after_s, result)
        assert texts(talk) == ["prompt number %d" % number], after_s


def test_a_killed_agent_is_told_and_the_conversation_can_be_taken_up(talk):
    talk.server.next_prompt(Think(60), Answer("no"))
    process = talk.start_sending("do it")
    talk.server.await_prompts(talk.seen + 1)
    talk.kill_agent()
    status, result = talk.finish(process)
    assert (status, result["outcome"]) == (1, "died"), result
    assert (talk.folder / "screen.txt").read_text().strip()
    talk.server.every_prompt([Answer("got it")])
    status, result = talk.send("the next one")
    assert (status, result["answer"]) == (0, "got it"), result
    talk.kill_agent()      # this time while it waits
    status, result = talk.send("one more")
    assert (status, result["answer"]) == (0, "got it"), result


def test_a_killed_tmux_server_is_told_and_nothing_stays(talk):
    talk.server.next_prompt(Think(60), Answer("no"))
    process = talk.start_sending("do it")
    talk.server.await_prompts(talk.seen + 1)
    os.kill(talk.facts()["server"][0], signal.SIGKILL)
    status, result = talk.finish(process)
    assert (status, result["outcome"]) in ((1, "died"), (1, "failed")), result   # codex notes that it was interrupted
    assert (talk.folder / "screen.txt").read_text().strip()
    assert talk.home.left() == {}


OFFLINE = {"claude": "ANTHROPIC_BASE_URL", "gemini": "GOOGLE_GEMINI_BASE_URL"}


@pytest.mark.parametrize("agent", AGENTS)
def test_without_a_network_there_is_an_end(agent, fresh):
    talk = fresh(agent)
    nowhere = "http://127.0.0.1:9"
    if agent in OFFLINE:
        talk.env[OFFLINE[agent]] = nowhere
    for name in (".codex/config.toml", ".config/opencode/opencode.json"):
        path = Path(talk.env["HOME"]) / name
        if path.exists():
            path.write_text(path.read_text().replace(talk.server.url, nowhere))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        talk.env[name] = nowhere
    status, result = talk.begin("say hello", *(FIRST_STALL if agent == "opencode" else STALL))
    assert (status, result["outcome"]) in ((1, "failed"), (7, "stalled")), result
    assert (talk.folder / "screen.txt").read_text().strip()


# --- several, and inside others ---------------------------------------------------

@pytest.mark.parametrize("agent", AGENTS)
def test_two_talks_with_the_same_prompt_at_the_same_moment_get_their_own_answers(agent, fresh):
    talk, numbers = fresh(agent), iter(range(100))
    talk.server.every_prompt(lambda text: [Think(1.0), Answer("answer %d" % next(numbers))])
    both = [talk.start(*talk.words("say a number"), env=talk.own_env()) for _ in range(2)]
    results = [talk.finish(process) for process in both]
    assert [status for status, _ in results] == [0, 0], results
    assert sorted(result["answer"] for _, result in results) == ["answer 0", "answer 1"]
    assert sorted(result["id"] for _, result in results) == [1, 2]
    given = {prompt.session: prompt.act.text for prompt in talk.server.prompts}
    for _, result in results:      # each the one that the model gave to its session
        assert result["answer"] == given.get(result["session_id"], result["answer"])
    assert agent == "gemini" or set(given) == {result["session_id"] for _, result in results}
    talk.server.every_prompt(lambda text: [Answer("to " + text.strip())])
    sent = [talk.start("send", str(number), "--json", "prompt %d" % number) for number in (1, 2)]
    assert [talk.finish(process)[1]["answer"] for process in sent] == ["to prompt 1", "to prompt 2"]


@pytest.mark.parametrize("agent", ("claude", "codex"))
def test_talks_that_follow_each_other_have_a_record_each(agent, fresh):
    talk = fresh(agent)      # codex 0.169.0 reads the records of the ones before while it starts
    talk.server.every_prompt(lambda text: [Answer("to " + text.strip())])
    sessions = set()
    for number in range(1, 6):
        status, result = talk.begin("prompt %d" % number)
        assert (status, result["answer"], result["source"]) == (0, "to prompt %d" % number, "transcript"), result
        sessions.add(result["session_id"])
        assert talk.run("stop", str(talk.number))[0] == 0
    assert len(sessions) == 5


HOSTS = {     # how an agent runs that calls selftalk with its shell; its prompt is the last word
    "claude": ("claude", "--dangerously-skip-permissions", "-p"),
    "codex": ("codex", "exec", "--yolo", "--skip-git-repo-check", "--"),
    "gemini": ("gemini", "--skip-trust", "--yolo", "-p"),
    "opencode": ("opencode", "run", "--auto"),
}


def write_profile(home, env):
    """What a user's shell sets up: codex takes the PATH from there, and claude hides its own login from its shell."""
    lines = "".join("export %s=%s\n" % (name, shlex.quote(env[name])) for name in ("PATH", "CLAUDE_CODE_OAUTH_TOKEN")
                    if name in env)
    for name in (".bash_profile", ".bashrc"):
        (home / name).write_text(lines)


def answer_inside(folder, letter):
    """The host's model calls selftalk; the model of the one inside answers."""
    call = "%s %s %s --once --json --cwd %s 'the inner prompt'" % (
        shlex.quote(sys.executable), shlex.quote(str(PROGRAM)), letter, shlex.quote(str(folder)))

    def rule(text):
        is_host = "the outer prompt" in text
        return [Shell(call), Answer("the outer answer")] if is_host else [Answer("the inner " + "answer")]
    return rule


@pytest.mark.parametrize("host, inner", [("claude", "claude"), ("codex", "claude"), ("gemini", "codex"),
                                         ("opencode", "claude"), ("claude", "codex")])
def test_an_agent_gets_the_answer_of_the_one_it_calls(host, inner, fresh):
    talk = fresh(host)
    root = Path(talk.env["HOME"])
    env = {**make_home(inner, talk.server, root), **talk.env, "IS_SANDBOX": "1"}   # claude -p as root
    write_profile(root, env)
    talk.server.every_prompt(answer_inside(talk.home.folder, FLAGS[inner]))
    argv, stdin = [*HOSTS[host], "the outer prompt"], None
    if host == "opencode":
        argv, stdin = list(HOSTS[host]), "the outer prompt"
    done = subprocess.run(argv, env=env, cwd=talk.home.folder, input=stdin or "", capture_output=True, text=True,
                          timeout=90)
    assert "the outer answer" in done.stdout, done.stderr
    results = [request for request in talk.server.requests if request.kind == "again" and request.agent == host]
    assert b"the inner answer" in results[-1].body, results[-1].body[-3000:]
    assert sorted(prompt.agent for prompt in talk.server.prompts) == sorted((host, inner))
    status, listed = talk.run("list", "--tree", env=env)
    assert status == 0 and [(run["outcome"], run["parent"], run["state"]) for run in listed] == [
        ("answered", None, "over")]


def test_a_talk_inside_a_talk_is_listed_below_it(fresh):
    talk = fresh("claude")
    env = {**make_home("codex", talk.server, Path(talk.env["HOME"])), **talk.env}
    write_profile(Path(env["HOME"]), env)
    talk.server.every_prompt(answer_inside(talk.home.folder, "-x"))
    status, result = talk.begin("the outer prompt", env=env)
    assert (status, result["answer"]) == (0, "the outer answer"), result
    out, _ = talk.start("list", "--tree", env=env).communicate(timeout=20)
    outer, inner = out.decode().splitlines()
    assert outer.split()[:3] == ["1", "answered", "claude"] and inner.split()[:3] == ["2", "answered", "codex"]
    assert len(inner) - len(inner.lstrip()) > len(outer) - len(outer.lstrip())
    listed = talk.run("list", env=env)[1]
    assert [(run["id"], run["parent"], run["depth"]) for run in listed] == [(1, None, 1), (2, 1, 2)]
