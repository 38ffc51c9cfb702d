"""The model server without any CLI: what it sends in each protocol, and what it makes of a request."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Iterator

import pytest

from accounts import speak_for
from leftovers import MARKER, await_gone, kill
from model_server import (
    CACHED_TOKENS, INPUT_TOKENS, OUTPUT_TOKENS, PROTOCOLS, Answer, Call, CutStream, Error, Hang, LimitReached,
    ModelServer, Page, Shell, Think, example_of, obey_done_file, pieces_of)

AGENTS = tuple(row.agent for row in PROTOCOLS)
TOOLS = ("Bash", "exec", "bash", "run_shell_command")  # the shell tool of each

# A request of each CLI, cut down to what the server looks at: a prompt among the CLI's own words.
REMINDER = "<system-reminder>\nabout commits\n</system-reminder>"


def claude_request(*prompts: str) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": [{"type": "text", "text": REMINDER},
                                             *({"type": "text", "text": prompt} for prompt in prompts)]},
                {"role": "system", "content": [{"type": "text", "text": "# Environment"}]}]
    return "/v1/messages?beta=true", {"model": "claude-x", "stream": True, "tools": [{"name": "Bash"}],
                                      "messages": messages}


def codex_request(*prompts: str) -> tuple[str, dict[str, Any]]:
    tools = [{"type": "namespace", "name": "functions", "tools": [{"type": "custom", "name": "exec"}]}]
    words = ("<environment_context>\n<cwd>/x</cwd>\n</environment_context>", *prompts)
    messages = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": word}]}
                for word in words]
    return "/v1/responses", {"model": "gpt-x", "stream": True,
                             "input": [{"type": "additional_tools", "tools": tools}, *messages]}


def opencode_request(*prompts: str) -> tuple[str, dict[str, Any]]:
    users = [{"role": "user", "content": prompt} for prompt in prompts]
    return "/v1/chat/completions", {"model": "made-up", "stream": True,
                                    "tools": [{"type": "function", "function": {"name": "bash"}}],
                                    "messages": [{"role": "system", "content": "You are opencode"}, *users]}


def gemini_request(*prompts: str) -> tuple[str, dict[str, Any]]:
    words = ("<session_context>\nToday is\n</session_context>", *prompts)
    contents = [{"role": "user", "parts": [{"text": word} for word in words]}]
    return "/v1beta/models/gemini-x:streamGenerateContent?alt=sse", {
        "contents": contents, "tools": [{"functionDeclarations": [{"name": "run_shell_command"}]}]}


REQUESTS = {"claude": claude_request, "codex": codex_request, "opencode": opencode_request,
            "gemini": gemini_request}


def post(server: ModelServer, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    return reply.status, reply.read()


def ask(server: ModelServer, agent: str, *prompts: str) -> tuple[int, bytes]:
    return post(server, *REQUESTS[agent](*prompts))


def events(stream: bytes) -> Iterator[dict[str, Any]]:
    for line in stream.decode().splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[len("data: "):])


def values(found: Any, key: str) -> list[Any]:
    """Every value of that key, at any depth, in order."""
    if isinstance(found, list):
        return [value for part in found for value in values(part, key)]
    if not isinstance(found, dict):
        return []
    return [value for name, part in found.items()
            for value in ([part] if name == key else values(part, key))]


def objects_in(found: Any) -> list[Any]:
    """The JSON object that a value is, or holds as text, also as the argument of a script."""
    if not isinstance(found, str):
        return [found]
    return [json.loads(text) for text in re.findall(r"\{.*\}", found)]


# What a prompt is.

@pytest.mark.parametrize("agent", AGENTS)
def test_the_last_user_text_is_recorded_exactly(agent: str, server: ModelServer) -> None:
    prompt = "  two\n\tlines, ünï😀de and a <tag>  "
    ask(server, agent, prompt)
    assert [(request.agent, request.text) for request in server.prompts] == [(agent, prompt)]
    assert json.loads(server.prompts[0].body) == REQUESTS[agent](prompt)[1]


@pytest.mark.parametrize("agent, words", (
    ("claude", REMINDER), ("claude", "Base directory for this skill: /x/a skill\n\n# What it says"),
    ("codex", "<environment_context>\n<cwd>/y</cwd>\n</environment_context>"),
    ("gemini", "<session_context>\nToday is\n</session_context>")))
def test_what_a_cli_adds_behind_a_prompt_is_no_prompt(agent: str, words: str, server: ModelServer) -> None:
    ask(server, agent, "hello")
    ask(server, agent, "hello", words)  # as after a tool: the same turn goes on
    assert [(request.kind, request.text) for request in server.requests] == [("prompt", "hello"),
                                                                             ("again", "hello")]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_second_prompt_of_a_conversation_gets_acts_of_its_own(agent: str, server: ModelServer) -> None:
    server.next_prompt(Answer("one"))
    server.next_prompt(Answer("two"))
    replies = [ask(server, agent, "same"), ask(server, agent, "same", "same")]
    assert [b"one" in replies[0][1], b"two" in replies[1][1]] == [True, True]
    assert len(server.prompts) == 2


@pytest.mark.parametrize("agent", AGENTS)
def test_what_has_no_shell_tool_is_a_side_request_and_uses_up_no_act(agent: str, server: ModelServer) -> None:
    server.next_prompt(Answer("for the prompt"))
    path, body = REQUESTS[agent]("Generate a concise, single-line task title for this")
    status, reply = post(server, path, {**body, "tools": []})
    assert (status, server.prompts, b"for the prompt" in reply) == (200, [], False)
    assert b"for the prompt" in ask(server, agent, "hello")[1]


def test_a_side_request_that_wants_json_gets_json_by_its_schema(server: ModelServer) -> None:
    schema = {"type": "OBJECT", "properties": {"why": {"type": "STRING"}, "score": {"type": "INTEGER"}}}
    status, reply = post(server, "/v1beta/models/flash:generateContent", {
        "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
        "generationConfig": {"responseJsonSchema": schema}})
    [text] = values(json.loads(reply), "text")
    assert (status, json.loads(text)) == (200, example_of(schema))


def test_what_is_meant_for_another_host_is_refused_and_recorded(server: ModelServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("CONNECT", "example.com:443")
    assert connection.getresponse().status == 403
    [request] = server.requests
    assert (request.kind, request.path) == ("outside", "CONNECT example.com:443")


# What an act sends.

@pytest.mark.parametrize("agent", AGENTS)
def test_an_answer_comes_in_the_pieces_asked_for_with_its_tokens(agent: str, server: ModelServer) -> None:
    server.next_prompt(Answer("an answer in pieces, ü", chunks=3))
    status, stream = ask(server, agent, "hello")
    keys = {"claude": "text", "codex": "delta", "opencode": "content", "gemini": "text"}
    pieces = [text for event in events(stream) for text in values(event, keys[agent])
              if isinstance(text, str) and text]
    assert (status, pieces) == (200, pieces_of("an answer in pieces, ü", 3))
    for tokens in (INPUT_TOKENS, CACHED_TOKENS, OUTPUT_TOKENS):
        assert f": {tokens}" in stream.decode()


@pytest.mark.parametrize("agent, tool", list(zip(AGENTS, TOOLS)))
def test_a_shell_act_calls_the_clis_own_tool_and_the_result_goes_on(
        agent: str, tool: str, server: ModelServer) -> None:
    server.next_prompt(Shell("echo hi", text="I look."), Answer("after the tool"))
    stream = ask(server, agent, "hello")[1]
    assert tool in [name for event in events(stream) for name in values(event, "name")]
    assert b"echo hi" in stream and b"I look." in stream
    assert b"after the tool" in ask(server, agent, "hello")[1]
    assert [request.kind for request in server.requests] == ["prompt", "again"]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_call_act_calls_any_tool_with_its_arguments(agent: str, server: ModelServer) -> None:
    server.next_prompt(Call("look_up", {"name": "self \"talk\""}, text="I look."), Answer("after the tool"))
    stream = ask(server, agent, "hello")[1]
    texts = [text for event in events(stream) for key in ("name", "partial_json", "input", "arguments", "args")
             for text in values(event, key)]
    assert any("look_up" in str(text) for text in texts) and b"I look." in stream
    assert {"name": "self \"talk\""} in [found for text in texts for found in objects_in(text)]
    assert b"after the tool" in ask(server, agent, "hello")[1]


@pytest.mark.parametrize("agent", AGENTS)
def test_an_error_has_the_protocols_form_and_stays_until_another_act_follows(
        agent: str, server: ModelServer) -> None:
    server.next_prompt(Error(500, message="it broke"), Answer("it recovered"))
    status, reply = ask(server, agent, "hello")
    assert (status, values(json.loads(reply), "message")) == (500, ["it broke"])
    assert b"it recovered" in ask(server, agent, "hello")[1]
    server.next_prompt(Error(429, body="{}"))
    assert [ask(server, agent, "hello", "more") for _ in range(3)] == [(429, b"{}")] * 3


@pytest.mark.parametrize("agent, sign", list(zip(AGENTS, (b"rate_limit_error", b"usage_limit_reached",
                                                     b"insufficient_quota", b"PerDay"))))
def test_a_limit_has_the_protocols_form(agent: str, sign: bytes, server: ModelServer) -> None:
    server.next_prompt(LimitReached(resets_in_s=60))
    status, reply = ask(server, agent, "hello")
    assert status == 429 and sign in reply


@pytest.mark.parametrize("agent", AGENTS)
def test_a_cut_stream_ends_in_the_middle(agent: str, server: ModelServer) -> None:
    server.next_prompt(CutStream("The beginn"))
    with pytest.raises(http.client.IncompleteRead) as cut:
        ask(server, agent, "hello")
    assert b"The beginn" in cut.value.partial
    server.await_fate(server.prompts[0], "cut", deadline_s=5)


def test_thinking_delays_the_first_byte(server: ModelServer) -> None:
    server.next_prompt(Think(0.3), Answer("late"))
    start = time.monotonic()
    assert b"late" in ask(server, "claude", "hello")[1]
    assert time.monotonic() - start >= 0.3


def test_a_client_that_leaves_while_it_waits_is_noticed(server: ModelServer) -> None:
    server.next_prompt(Hang())
    path, body = claude_request("hello")
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", path, json.dumps(body))
    [prompt] = server.await_prompts(1, deadline_s=5)
    connection.close()
    server.await_fate(prompt, "left", deadline_s=5)


def test_closing_the_server_ends_what_hangs() -> None:
    with ModelServer() as server:
        server.next_prompt(Hang())
        caller = threading.Thread(target=lambda: pytest.raises(Exception, ask, server, "claude", "hello"))
        caller.start()
        server.await_prompts(1, deadline_s=5)
    caller.join(timeout=5)
    assert not caller.is_alive()


# How a test steers it.

def test_a_rule_makes_acts_from_the_prompt(server: ModelServer) -> None:
    server.every_prompt(lambda prompt: [Answer(f"you said {prompt[::-1]}")])
    assert b"you said olleh" in ask(server, "opencode", "hello")[1]


def test_the_done_file_rule_publishes_with_a_rename() -> None:
    prompt = "Do it.\n\nWrite `/run/7/done.md.tmp`, rename it to `/run/7/done.md`."
    shell, answer = obey_done_file(prompt, "all's well")
    assert shell.command == ("printf '%s\\n' 'all'\"'\"'s well' > /run/7/done.md.tmp "
                             "&& mv /run/7/done.md.tmp /run/7/done.md")
    assert isinstance(answer, Answer)


@pytest.mark.parametrize("prompt, path", (
    ("write /a/b/done.md.tmp.", "/a/b/done.md"),
    ("write '/with a space/done.md.tmp' and", "'/with a space/done.md'"),
    ("write \"/a/done.md.tmp\"", "/a/done.md"),
    ("write to\n/with a space/done.md.tmp\nand", "'/with a space/done.md'")))
def test_the_done_file_is_found_bare_and_in_quotes(prompt: str, path: str) -> None:
    assert obey_done_file(prompt, "s")[0].command.endswith(f" {path}")


@pytest.mark.parametrize("acts", ((), (Shell("x"),), (Call("x", {}),), (Answer("x"), Think(1))))
def test_acts_that_do_not_end_the_turn_are_refused(acts: tuple[Any, ...], server: ModelServer) -> None:
    with pytest.raises(ValueError, match="end the turn"):
        server.next_prompt(*acts)


def test_waiting_for_a_prompt_that_does_not_come_says_what_came(server: ModelServer) -> None:
    ask(server, "codex", "the only one")
    with pytest.raises(AssertionError, match="the only one"):
        server.await_prompts(2, deadline_s=0.1)


# What is left behind.

def test_a_process_of_this_test_that_lives_on_is_found_and_no_other(marker: str) -> None:
    marked = subprocess.Popen(["sleep", "60"])  # inherits the mark from this test's environment
    unmarked = subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"], MARKER: "another test"})
    try:
        assert list(await_gone(marker, deadline_s=0.2)) == [marked.pid]
        kill(marked.pid)
        marked.wait(timeout=5)
        assert await_gone(marker, deadline_s=5) == {}
    finally:
        for process in (marked, unmarked):
            process.kill()
            process.wait(timeout=5)


# =============================================================================
# Pages, and hosts that are answered for
# =============================================================================

def test_a_page_answers_what_the_test_said_whatever_the_query() -> None:
    with ModelServer() as server:
        server.pages["GET /quota"] = Page(429, {"left": 3}, {"retry-after": "7"})
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.request("GET", "/quota?of=me")
        reply = connection.getresponse()
        assert (reply.status, reply.getheader("retry-after"), json.load(reply)) == (429, "7", {"left": 3})


def test_a_proxy_that_speaks_for_a_host_answers_its_pages_and_refuses_all_others(tmp_path: Path) -> None:
    with ModelServer() as server:
        certificate = speak_for(server, "quota.example.com", tmp_path)
        server.pages["GET /quota"] = Page(200, {"left": 3})
        trusting = ssl.create_default_context(cafile=str(certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=5, context=trusting)
        connection.set_tunnel("quota.example.com", 443)
        for _ in range(2):  # over the same connection
            connection.request("GET", "/quota")
            assert json.load(connection.getresponse()) == {"left": 3}
        connection.close()
        other = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=5, context=trusting)
        other.set_tunnel("other.example.com", 443)
        with pytest.raises(OSError, match="403"):
            other.request("GET", "/quota")
        assert [request.kind for request in server.requests] == ["other", "other", "outside"]


def test_a_page_that_hangs_or_is_cut_answers_nothing() -> None:
    with ModelServer() as server:
        server.pages.update({"GET /hang": Hang(), "GET /cut": CutStream("")})
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=0.3)
        for path, trouble in (("/hang", socket.timeout), ("/cut", http.client.RemoteDisconnected)):
            connection.request("GET", path)
            with pytest.raises(trouble):
                connection.getresponse()
            connection.close()
        server.await_that(lambda: [request.fate for request in server.requests] == ["left", "cut"], "ends")
