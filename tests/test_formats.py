"""What agents write down about themselves: recorded samples, whose file name says how the turn stands."""
import contextlib
import json
import pathlib
import sqlite3

import pytest

import selftalk
from selftalk import FORMATS, Said, fold_record

SAMPLES = sorted((pathlib.Path(__file__).parent / "formats").glob("*/*.jsonl"))
STATES = {"answered": "ready", "busy": "busy", "failed": "failed", "interrupted": "failed", "limited": "limited", "login": "login"}
UNTOLD = {   # what the agent's record does not tell, so that the screen has to
    "claude-transcript/interrupted-early": "busy",       # Esc before any output leaves the user's line and nothing else
    "opencode-rows/limited": "busy",                     # a retry leaves no trace in the database
    "opencode-rows/limited-then-interrupted": "busy",
    "gemini-chat/limited-dialog": "busy",
    "gemini-chat/busy-tool": "unknown",                  # a message that calls a tool looks like a last one at first
    **{"gemini-chat/" + name: "unknown" for name in ("answered", "answered-two-turns", "answered-resumed", "answered-after-error",
                                                     "answered-from-file")},
}
assert SAMPLES, "no samples below tests/formats"


def name_of(path):
    return "%s/%s" % (path.parent.name, path.stem)


def read_sample(path):
    """The lines of a record; for the rows of a database, what our query gives of them."""
    text = path.read_text(encoding="utf-8")
    if not path.parent.name.endswith("-rows"):
        return text
    rows = [json.loads(line) for line in text.splitlines()]
    record = next(row.record for row in selftalk.AGENT_ROWS if row.record and row.record.format == path.parent.name)
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        for table in ("session", "message", "part"):
            database.execute("create table %s (id, session_id, message_id, time_created, data)" % table)
        for row in rows + [{"table": "session", "id": rows[0]["session_id"], "time_created": 1}]:
            values = [row.get(key) for key in ("id", "session_id", "message_id", "time_created", "data")]
            database.execute("insert into %s values (?, ?, ?, ?, ?)" % row["table"], values)
        found = database.execute(record.query, {"session": rows[0]["session_id"]}).fetchall()
    return "".join(line + "\n" for line, in found)


@pytest.mark.parametrize("path", SAMPLES, ids=name_of)
def test_a_sample_is_understood_as_its_name_says(path):
    said = fold_record([], read_sample(path), path.parent.name)[-1]
    assert said.state == UNTOLD.get(name_of(path), STATES[path.stem.split("-")[0]])
    assert said.state != "ready" or said.text
    assert said.state not in ("failed", "limited", "login") or said.error


@pytest.mark.parametrize("path", SAMPLES, ids=name_of)
def test_a_sample_gives_what_lies_beside_it(path):
    expected = path.with_suffix(".expected.json")
    said = fold_record([], read_sample(path), path.parent.name)[-1]
    got = json.loads(json.dumps(said._asdict()))
    assert got == {**got, **json.loads(expected.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("path", SAMPLES, ids=name_of)
def test_a_record_that_grows_line_by_line_is_understood_the_same(path):
    text, turns = read_sample(path), []
    for line in text.splitlines(keepends=True):
        turns = fold_record(turns, line, path.parent.name)
    assert turns == fold_record([], text, path.parent.name)


DEEDS = {   # of a record that grows line by line: each turn begins without one
    "claude-transcript/answered": ["I run it.", "Bash echo begin; sleep 3; echo end Run a command 600000", "It ran."],
    "claude-transcript/answered-two-turns": ["first answer", "", "second answer"],
    "codex-rollout/answered": ["I run it.", "exec echo begin; sleep 3; echo end", "It ran."],
    "codex-rollout/answered-two-turns": ["first answer", "", "second answer"],
    "gemini-chat/answered": ["I run the first.", "run_shell_command echo one Run a command", "run_shell_command echo two Run a command",
                             "Both ran.\n\n- one\n- two"],
    "gemini-chat/answered-two-turns": ["I sleep.", "run_shell_command sleep 4 Run a command", "First done.", "", "Second done."],
    "opencode-rows/answered": ["bash echo begin; sleep 4; echo end Run a command 3600000", "It ran."],
    "opencode-rows/answered-two-turns": ["first answer", "", "second answer"],
}
assert set(DEEDS) <= set(map(name_of, SAMPLES))


@pytest.mark.parametrize("path", [path for path in SAMPLES if name_of(path) in DEEDS], ids=name_of)
def test_a_record_tells_the_last_tool_called_or_words_said(path):
    turns, deeds = [], [""]
    for line in read_sample(path).splitlines(keepends=True):
        turns = fold_record(turns, line, path.parent.name)
        deeds += [turns[-1].deed] * (turns[-1].deed != deeds[-1])
    assert deeds[1:] == DEEDS[name_of(path)]


@pytest.mark.parametrize("kind, name, given, deed", [
    ("function_call", "exec_command", '{"cmd":"npm test","workdir":"/w"}', "exec_command npm test"),
    ("function_call", "update_plan", '{"plan":[]}', 'update_plan {"plan":[]}'),
    ("custom_tool_call", "exec", "text(await tools.exec_command({cmd:'say \\'a\\' \"b\"'}));", "exec say \\'a\\' \"b\""),
    ("custom_tool_call", "exec", "await tools.exec_command({\n  cmd: `one\ntwo`,\n});", "exec one\ntwo"),
    ("custom_tool_call", "exec", "let run = {cmd: made()}", "exec let run = {cmd: made()}")])
def test_a_call_in_a_rollout_gives_the_command_that_it_runs(kind, name, given, deed):
    payload = {"type": kind, "name": name, "input" if kind == "custom_tool_call" else "arguments": given}
    line = json.dumps({"type": "response_item", "payload": payload})
    assert fold_record([Said("busy", deed="before")], line, "codex-rollout")[-1].deed == deed


def test_of_two_tools_in_one_message_the_last_one_is_the_deed():
    calls = [{"name": "ls", "args": {"path": "a"}}, {"name": "read", "args": {"path": "b"}}]
    line = json.dumps({"type": "gemini", "model": "m", "content": "I look.", "toolCalls": calls})
    assert fold_record([Said("busy")], line, "gemini-chat")[-1].deed == "read b"


def test_a_deed_is_cut_and_one_without_words_is_none():
    assert len(selftalk.note_deed(Said(), "x" * 5000).deed) == 2000
    assert selftalk.note_deed(Said(deed="before"), " \n").deed == "before"


def test_every_format_has_a_sample_and_every_sample_a_format():
    assert {path.parent.name for path in SAMPLES} == set(FORMATS)


def shapes_of(value):
    """`value` with each of its parts replaced, one at a time, by things of other kinds."""
    yield from (None, 3, "text", [], {}, [3], True)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        for other in shapes_of(part):
            changed = dict(value) if isinstance(value, dict) else list(value)
            changed[key] = other
            yield changed


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_a_record_of_another_shape_is_no_bug(format):
    lines = {line for path in SAMPLES if path.parent.name == format for line in path.read_text(encoding="utf-8").splitlines()}
    for line in sorted(lines, key=len)[:40]:
        for changed in shapes_of(json.loads(line)):
            said = fold_record([Said("busy")], json.dumps(changed), format)[-1]
            assert said.state in selftalk.STATES and isinstance(said.text, str) and isinstance(said.error, str), changed


@pytest.mark.parametrize("line", ["", "{", "null", "3", '"text"', "[1]", "[" * 100_000, '{"a": ' * 100_000, "\ufffd", '{"type": "user"}x', "9" * 5000])
@pytest.mark.parametrize("format", sorted(FORMATS))
def test_what_is_no_object_is_passed_over(format, line):
    assert fold_record([Said("busy", "kept")], line, format) == [Said("busy", "kept")]


@pytest.mark.parametrize("blocks, text", [("plain", "plain"), ([], ""), (None, ""), ({}, ""), ([{"type": "text", "text": "a"}, 3, {"type": "other"},
                                          {"type": "text", "text": "b"}, {"type": "text"}], "a\nb\n")])
def test_texts_are_joined_from_blocks_of_their_kind(blocks, text):
    assert selftalk.join_texts(blocks, "text") == text


@pytest.mark.parametrize("usage, counts", [(None, None), ({}, None), ({"a": 1}, None), ({"in": 3, "out": "x"}, {"input": 3}),
                                           ({"in": 3, "out": 4}, {"input": 3, "output": 4})])
def test_tokens_are_counted_by_our_names_as_far_as_the_agent_tells(usage, counts):
    assert selftalk.count_tokens(usage, {"in": "input", "out": "output"}) == counts
