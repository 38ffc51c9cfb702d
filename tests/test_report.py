"""Records -> text and JSON objects. Pure, so no process is started in here."""
import json

import pytest

import selftalk
from selftalk import OUTCOMES, Ending, FromEnv, Run, Said

FACTS = {"profile": "codex", "agent": "codex", "form": "task", "place": "session", "workspace": "/w", "state": "over",
         "outcome": "answered", "parent": None, "depth": 1, "started_at": 1000.0, "ended_at": 1012.5, "exit_status": 0,
         "socket": "/s p/selftalk-7", "pane": "%0", "turn": 1, "session_id": ""}


@pytest.fixture
def run(tmp_path):
    """Run 7 as it looks on disk when it is over."""
    folder = tmp_path / "runs" / "7"
    (folder / "turns").mkdir(parents=True)
    (folder / "turns" / "1.json").write_text('{"seconds": 12.5}')
    return Run(str(folder), dict(FACTS))


def test_the_first_line_names_the_run_and_a_command_to_watch_it_that_can_be_pasted(run):
    assert selftalk.started_line(run) == "run 7: codex started; watch: tmux -S '/s p/selftalk-7' attach -r -t %0"


@pytest.mark.parametrize("source, words", [("done.md", "from done.md"), ("transcript", "from transcript"), ("screen", "from its screen")])
def test_an_answer_is_announced_with_its_time_and_source(run, source, words):
    assert selftalk.ending_lines(run, Ending("answered", source=source)) == ["run 7: answered after 12.5 s, %s" % words]


def test_an_answer_that_came_in_another_way_says_so(run):
    line, = selftalk.ending_lines(run, Ending("answered", "the worker went idle", source="screen"))
    assert line.endswith("; the worker went idle")


@pytest.mark.parametrize("outcome", sorted(set(OUTCOMES) - {"answered", "ready"}))
def test_every_other_ending_says_what_happened_and_last_what_to_do(run, outcome):
    lines = selftalk.ending_lines(run, Ending(outcome, "it happened", "do this"))
    assert lines[0] == "run 7: %s: it happened" % outcome and lines[-1].startswith("  try: do this")
    assert all(line.startswith("  ") for line in lines[1:])


def test_a_worker_that_is_kept_is_shown_where_to_look_and_one_that_ended_by_its_last_screen(run, tmp_path):
    assert "attach" in selftalk.ending_lines(run, Ending("asks", "it asks", "look"))[-1]
    assert selftalk.ending_lines(run, Ending("died", "it died", "read"))[-1].endswith("/7/screen.txt")


def test_the_end_of_the_last_screen_is_quoted_without_blank_lines(run):
    with open(run.path("screen.txt"), "w") as file:
        file.write("\n\n".join("line %d   " % number for number in range(40)) + "\n\n\n")
    quoted = selftalk.ending_lines(run, Ending("died", "it died", "read"))[1:-1]
    assert quoted == ["  | line %d" % number for number in range(40 - selftalk.LAST_LINES, 40)]


def test_a_run_that_never_got_a_socket_can_be_shown(run):
    for key in ("socket", "pane", "place", "ended_at"):
        del run.facts[key]
    run.facts.update(outcome="stopped", ended_at=None)
    assert selftalk.run_object(run)["watch"] is None
    assert selftalk.ending_lines(run, Ending("stopped", "the run was stopped", "start a new one"))
    assert "stopped" in selftalk.run_line(run, 1060.0)


def test_the_keys_of_a_run_are_pinned(run):
    assert set(selftalk.run_object(run)) == {
        "id", "folder", "watch", "profile", "agent", "form", "place", "workspace", "state", "outcome", "turn", "session_id", "parent", "depth",
        "started_at", "ended_at", "exit_status", "took_over"}


def test_the_keys_of_a_result_are_those_of_a_run_and_these(run):
    ending = Ending("answered", answer="größe", source="done.md", said=Said(model="m", tokens={"input": 1}))
    found = selftalk.result_object(run, ending)
    assert set(found) - set(selftalk.run_object(run)) == {"answer", "source", "what", "fix", "model", "tokens", "options", "seconds", "resets_at",
                                                           "cost_usd", "denied"}
    assert (found["answer"], found["source"], found["what"], found["model"], found["tokens"], found["seconds"]) == (
        "größe", "done.md", None, "m", {"input": 1}, 12.5)
    assert json.loads(json.dumps(found)) == found


def test_a_result_without_an_ending_on_disk_is_shown_too(run, tmp_path):
    (tmp_path / "runs" / "7" / "turns" / "1.json").unlink()
    assert selftalk.result_object(run, Ending("running"))["seconds"] is None


@pytest.mark.parametrize("failure, code, word", [(selftalk.Failure("w", "f"), 1, "failed"), (selftalk.Unusable("w", "f"), 2, "usage"),
                                                 (selftalk.Missing("w", "f"), 3, "missing")])
def test_expected_trouble_is_an_object_with_its_word_and_code(failure, code, word):
    assert selftalk.failure_object(failure) == {"error": {"word": word, "code": code, "what": "w", "fix": "f"}}


def test_the_value_of_a_from_env_is_never_shown(monkeypatch):
    monkeypatch.setenv("TOKEN", "SECRET-123")
    profile = selftalk.Profile("p", "x", selftalk.AGENTS["claude"], ("--a b",), (("A", FromEnv("TOKEN")), ("B", "text")))
    config = selftalk.Config("f", {"p": profile}, "p")
    found = selftalk.profile_object(profile, config, "/w")
    assert found["env"] == {"A": {"from_env": "TOKEN"}, "B": "text"} and found["default"] is True
    assert "SECRET-123" not in json.dumps(found) + selftalk.profile_line(profile, config)
    assert "--settings" in found["added_args"]


def test_the_default_profile_is_marked_and_its_command_can_be_pasted():
    profile = selftalk.Profile("p", "x", selftalk.AGENTS["generic"], ("a b",))
    assert selftalk.profile_line(profile, selftalk.Config("", {}, "p")).split(None, 2) == ["*", "p", "x 'a b'"]
    assert selftalk.profile_line(profile, selftalk.Config("", {}, "q")).startswith("  p ")


@pytest.mark.parametrize("later_s, age", [(0, "0 min"), (59, "0 min"), (3600, "60 min"), (7200, "2 h"), (90000, "25 h")])
def test_a_run_is_one_line_with_its_age(run, later_s, age):
    line = selftalk.run_line(run, 1000.0 + later_s)
    assert line.split() == ["7", "answered", "codex", *age.split(), "/w"]


def test_a_run_that_goes_on_is_shown_by_its_state(run):
    run.facts.update(state="running", outcome=None)
    assert selftalk.run_line(run, 1000.0).split()[1] == "running"


@pytest.mark.parametrize("show", [lambda run: selftalk.run_line(run, 0.0), selftalk.started_line])
def test_a_line_about_a_run_is_one_line_whatever_its_workspace_is_called(run, show):
    run.facts["workspace"] = "/w\n\x1b[2Jodd"
    assert "\n" not in show(run) and "\x1b" not in show(run)


def test_an_event_is_one_line():
    assert selftalk.event_line(b'{"at": 0.0, "event": "dialog", "name": "trust", "keys": ["Down"]}\n').endswith(
        "dialog    name=trust keys=['Down']\n")
