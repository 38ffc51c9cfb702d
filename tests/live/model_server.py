"""A made-up model on 127.0.0.1 that the real agent CLIs talk to in the live tests.

    with ModelServer() as server:
        server.next_prompt(Shell("echo hi"), Answer("it said hi"))
        …start a CLI against server.url with the prompt "what does echo say"…
        [prompt] = server.await_prompts(1, deadline_s=20)
        assert prompt.text == "what does echo say"

It speaks Anthropic Messages (Claude Code), OpenAI Responses (Codex), OpenAI Chat Completions (OpenCode) and
Gemini generateContent. A *prompt* is a user turn that a test gave; what a CLI asks on its own (a title, a
routing score, a quota ping) is a *side* request: answered at once, recorded apart, it uses up no act. What
follows within a turn (a tool's result, a retry) is recorded as *again* and goes on with the turn's acts.

By hand: `python3 model_server.py --answer "hello" [--shell "sleep 5"] [--dump DIR]` prints its address, then
one line per request, until Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import re
import select
import shlex
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Optional, Sequence, Union

# The same tokens for every reply, so that a test can look for them in the agent's own record.
INPUT_TOKENS, CACHED_TOKENS, OUTPUT_TOKENS = 1000, 200, 50
CLIENT_CHECK_S = 0.05  # how often a waiting reply looks whether its client is still there


# =============================================================================
# 1. Acts: what the model does with a prompt
# =============================================================================
# A turn plays its acts in order, one reply per act (Think only delays the reply after it). The last act is
# repeated when the CLI asks again: Error(500) alone is a server that stays broken, Error(500), Answer("x")
# is one that recovers.

@dataclass(frozen=True)
class Answer:
    text: str
    chunks: int = 1             # into how many pieces the text is cut
    chunk_pause_s: float = 0.0  # between two pieces


@dataclass(frozen=True)
class Think:
    seconds: float              # nothing is sent for so long, not even a header


@dataclass(frozen=True)
class Shell:
    command: str                # run by the CLI's own shell tool
    text: str = ""              # what the model says before it calls the tool


@dataclass(frozen=True)
class Call:
    tool: str                   # any tool, by the name that the CLI gives it
    arguments: Mapping[str, Any]
    text: str = ""              # as in Shell


@dataclass(frozen=True)
class Error:
    status: int = 500
    body: str = ""              # "" = the protocol's own form of an error
    message: str = "made-up server error"


@dataclass(frozen=True)
class LimitReached:
    resets_in_s: int = 3600


@dataclass(frozen=True)
class CutStream:
    text: str = "The beginning of an ans"  # sent before the connection is cut


@dataclass(frozen=True)
class Hang:
    text: str = ""              # sent before nothing more comes


Act = Union[Answer, Think, Shell, Call, Error, LimitReached, CutStream, Hang]
Rule = Callable[[str], Iterable[Act]]   # prompt text -> acts
SIDE_TEXT = "A made-up title"


def obey_done_file(prompt: str, summary: str) -> list[Act]:
    """What a worker does that obeys the instructions at the end of a task: publish done.md, then say so."""
    found = (re.search(r"""(["'`])(?P<path>/[^"'`\n]*/done\.md)\.tmp\1""", prompt)
             or re.search(r"(?m)^(?P<path>/.*/done\.md)\.tmp$", prompt)
             or re.search(r"(?P<path>/[^\s\"'`]*/done\.md)\.tmp", prompt))
    if found is None:
        return [Answer("I was given no path of a done.md")]
    done = shlex.quote(found["path"])
    temporary = shlex.quote(found["path"] + ".tmp")
    return [Shell(f"printf '%s\\n' {shlex.quote(summary)} > {temporary} && mv {temporary} {done}"),
            Answer("Done. The summary is in done.md.")]


def check_acts(acts: Iterable[Act]) -> tuple[Act, ...]:
    """The acts as a tuple; refuses a list after which a CLI would wait or call tools for ever by mistake."""
    kept = tuple(acts)
    if not kept or isinstance(kept[-1], (Think, Shell, Call)):
        raise ValueError(f"the last act must end the turn: {kept}")
    return kept


# =============================================================================
# 2. What a request says, whatever its protocol
# =============================================================================

@dataclass(frozen=True)
class Conversation:
    prompts: tuple[str, ...]    # what the user wrote in the whole request, oldest first; the last one exactly
    session: str                # the CLI's own id of the conversation; "" if it sends none
    turn: str                   # the CLI's own id of the turn, else ""
    model: str
    is_side: bool               # the CLI asks for itself
    schema: Optional[Mapping[str, Any]]  # of the JSON that a side request wants back
    tools: tuple[str, ...]
    stream: bool


@dataclass
class Request:
    agent: str                  # claude, codex, opencode, gemini; "" for what no protocol knows
    kind: str                   # prompt · again · side · other · outside (for another host, refused)
    path: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    at: float                   # time.time() when it was complete
    text: str = ""              # the last user turn, exactly
    session: str = ""
    act: Optional[Act] = None   # what was done with it
    fate: str = ""              # "" while it is answered, then: sent · cut · left (the client went away)


@dataclass
class _Turn:
    acts: tuple[Act, ...]
    played: int = 0

    def next_acts(self) -> tuple[Act, ...]:
        """The acts of one reply: any number of Think, then one other."""
        if self.played >= len(self.acts):
            return self.acts[-1:]
        first = self.played
        while isinstance(self.acts[self.played], Think):
            self.played += 1
        self.played += 1
        return self.acts[first:self.played]


def flatten(groups: Iterable[Iterable[str]]) -> tuple[str, ...]:
    return tuple(text for group in groups for text in group)


def example_of(schema: Mapping[str, Any]) -> Any:
    """A value that fits a JSON schema, for side requests that want JSON."""
    kind = str(schema.get("type", "string")).lower()
    if "enum" in schema:
        return schema["enum"][0]
    if kind == "object":
        return {name: example_of(part) for name, part in schema.get("properties", {}).items()}
    return {"array": [], "integer": 1, "number": 1, "boolean": False}.get(kind, SIDE_TEXT)


def sse(data: Mapping[str, Any], event: str = "") -> bytes:
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


# =============================================================================
# 3. Anthropic Messages (Claude Code)
# =============================================================================

# What claude 2.1.329 itself puts beside the user's words; a skill's text comes behind the result of the tool Skill.
CLAUDE_CONTEXT = re.compile(r"\s*<system-reminder>.*</system-reminder>\s*|Base directory for this skill: .*", re.DOTALL)


def anthropic_texts(message: Mapping[str, Any]) -> list[str]:
    """What the user wrote: claude 2.1.329 puts reminders of its own as text blocks beside it.

    After a failed or interrupted turn one message holds several prompts, a block each; all but the last,
    which is the new one, then have a newline at their end that is not the user's.
    """
    if message.get("role") != "user":
        return []
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = [block["text"] for block in blocks if block["type"] == "text"]
    return [text for text in texts if not CLAUDE_CONTEXT.fullmatch(text)]


def read_anthropic(body: Mapping[str, Any], headers: Mapping[str, str], path: str) -> Conversation:
    prompts = flatten(map(anthropic_texts, body["messages"]))
    tools = tuple(tool.get("name", "") for tool in body.get("tools", ()))
    wanted = body.get("output_config", {}).get("format", {})
    return Conversation(
        prompts=prompts, session=headers.get("x-claude-code-session-id", ""), turn="", model=body["model"],
        # titles, summaries and quota pings come without the tools that a turn has
        is_side="Bash" not in tools, schema=wanted.get("schema"), tools=tools,
        stream=bool(body.get("stream")))


def anthropic_usage(output: int) -> dict[str, int]:
    return {"input_tokens": INPUT_TOKENS, "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": CACHED_TOKENS, "output_tokens": output}


def anthropic_event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, event=kind)


def anthropic_head(talk: Conversation, number: int) -> bytes:
    message = {"id": f"msg_{number:06}", "type": "message", "role": "assistant", "model": talk.model,
               "content": [], "stop_reason": None, "stop_sequence": None, "usage": anthropic_usage(1)}
    return anthropic_event("message_start", message=message)


def anthropic_start(talk: Conversation, number: int) -> list[bytes]:
    return [anthropic_head(talk, number),
            anthropic_event("content_block_start", index=0, content_block={"type": "text", "text": ""})]


def anthropic_piece(text: str, number: int) -> list[bytes]:
    return [anthropic_event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})]


def anthropic_stop(reason: str) -> list[bytes]:
    return [anthropic_event("message_delta", delta={"stop_reason": reason, "stop_sequence": None},
                            usage=anthropic_usage(OUTPUT_TOKENS)),
            anthropic_event("message_stop")]


def anthropic_finish(text: str, talk: Conversation, number: int) -> list[bytes]:
    return [anthropic_event("content_block_stop", index=0), *anthropic_stop("end_turn")]


def anthropic_shell(act: Shell) -> Call:
    # timeout: Bash stops after 120 s by default, 600 s is its maximum
    return Call("Bash", {"command": act.command, "description": "Run a command", "timeout": 600000}, act.text)


def anthropic_call(act: Call, talk: Conversation, number: int) -> list[bytes]:
    call = {"type": "tool_use", "id": f"toolu_{number:06}", "name": act.tool, "input": {}}
    said = [anthropic_head(talk, number)]
    if act.text:
        said = [*anthropic_start(talk, number), *anthropic_piece(act.text, number),
                anthropic_event("content_block_stop", index=0)]
    index = 1 if act.text else 0
    return [*said, anthropic_event("content_block_start", index=index, content_block=call),
            anthropic_event("content_block_delta", index=index,
                            delta={"type": "input_json_delta", "partial_json": json.dumps(act.arguments)}),
            anthropic_event("content_block_stop", index=index), *anthropic_stop("tool_use")]


def anthropic_whole(text: str, talk: Conversation, number: int) -> dict[str, Any]:
    return {"id": f"msg_{number:06}", "type": "message", "role": "assistant", "model": talk.model,
            "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "stop_sequence": None,
            "usage": anthropic_usage(OUTPUT_TOKENS)}


def anthropic_error(status: int, message: str) -> dict[str, Any]:
    kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
             429: "rate_limit_error", 529: "overloaded_error"}
    return {"type": "error", "error": {"type": kinds.get(status, "api_error"), "message": message}}


def anthropic_limit(resets_at: int) -> tuple[dict[str, str], dict[str, Any]]:
    # A CLI without a subscription login shows it as a plain 429.
    unified = {"status": "rejected", "reset": str(resets_at), "representative-claim": "five_hour",
               "5h-status": "rejected", "5h-utilization": "1", "5h-reset": str(resets_at),
               "7d-status": "allowed", "7d-utilization": "0.4", "7d-reset": str(resets_at + 86400),
               "overage-status": "rejected", "overage-disabled-reason": "org_level_disabled"}
    headers = {f"anthropic-ratelimit-unified-{name}": value for name, value in unified.items()}
    return headers, anthropic_error(429, "This request would exceed your account's rate limit.")


# =============================================================================
# 4. OpenAI Responses (Codex)
# =============================================================================

# What Codex itself puts before the user's words, as user messages that consist of one such element.
CODEX_CONTEXT = re.compile(
    r"\s*<(environment_context|user_instructions|skill|turn_aborted)\b.*|# AGENTS\.md\b.*", re.DOTALL)
CODEX_TITLE = "Generate a concise, single-line task title"


def responses_texts(item: Mapping[str, Any]) -> list[str]:
    if item.get("type") != "message" or item.get("role") != "user":
        return []
    texts = [part["text"] for part in item["content"] if part["type"] == "input_text"]
    return [text for text in texts if not CODEX_CONTEXT.fullmatch(text)]


def responses_tools(body: Mapping[str, Any]) -> Iterator[str]:
    """Names of the declared tools; codex 0.169.0 sends them as namespaces inside the first input item."""
    declared = list(body.get("tools") or ())
    for item in body["input"]:
        if item.get("type") == "additional_tools":
            declared += item["tools"]
    for tool in declared:
        if tool.get("type") == "namespace":
            yield from (inner["name"] for inner in tool["tools"])
        else:
            yield tool.get("name", tool["type"])


def read_responses(body: Mapping[str, Any], headers: Mapping[str, str], path: str) -> Conversation:
    prompts = flatten(map(responses_texts, body["input"]))
    metadata = body.get("client_metadata") or {}
    wanted = (body.get("text") or {}).get("format") or {}
    return Conversation(
        prompts=prompts, session=metadata.get("thread_id", ""), turn=metadata.get("turn_id", ""),
        model=body["model"], is_side=bool(prompts) and prompts[-1].startswith(CODEX_TITLE),
        schema=wanted.get("schema"), tools=tuple(responses_tools(body)), stream=bool(body.get("stream")))


def responses_event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, event=kind)


def responses_message(text: str, number: int, status: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}] if status == "completed" else []
    return {"type": "message", "id": f"msg_{number:06}", "role": "assistant", "status": status,
            "content": content}


def responses_head(number: int) -> bytes:
    return responses_event("response.created", response={"id": f"resp_{number:06}", "status": "in_progress"})


def responses_start(talk: Conversation, number: int) -> list[bytes]:
    return [responses_head(number),
            responses_event("response.output_item.added", output_index=0,
                            item=responses_message("", number, "in_progress"))]


def responses_piece(text: str, number: int) -> list[bytes]:
    return [responses_event("response.output_text.delta", item_id=f"msg_{number:06}", output_index=0,
                            content_index=0, delta=text)]


def responses_finish(text: str, talk: Conversation, number: int) -> list[bytes]:
    message = responses_message(text, number, "completed")
    return [responses_event("response.output_item.done", output_index=0, item=message),
            responses_completed(number, [message])]


def responses_completed(number: int, output: list[dict[str, Any]]) -> bytes:
    usage = {"input_tokens": INPUT_TOKENS, "input_tokens_details": {"cached_tokens": CACHED_TOKENS},
             "output_tokens": OUTPUT_TOKENS, "output_tokens_details": {"reasoning_tokens": 0},
             "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS}
    return responses_event("response.completed", response={"id": f"resp_{number:06}", "status": "completed",
                                                           "output": output, "usage": usage})


# codex 0.169.0 in "code mode": the model writes JavaScript that calls the tools. For the shell both waits are needed: exec
# yields after 30 s unless told otherwise, exec_command after 10 s (30 s at most), the command still running.
CODEX_SHELL = """// @exec: {"yield_time_ms": 3600000}
let ran = await tools.%s(%s);
let output = ran.output;
while (ran.exit_code === undefined && ran.session_id !== undefined) {
  ran = await tools.write_stdin({session_id: ran.session_id, chars: "", yield_time_ms: 30000});
  output += ran.output;
}
text(output);
"""
CODEX_CALL = "text(await tools.%s(%s));\n"


def responses_shell(act: Shell) -> Call:
    return Call("exec_command", {"cmd": act.command, "yield_time_ms": 30000}, act.text)


def responses_call(act: Call, talk: Conversation, number: int) -> list[bytes]:
    call = {"id": f"call_item_{number:06}", "call_id": f"call_{number:06}", "status": "completed"}
    if "exec" not in talk.tools:  # a model that codex does not know gets plain functions instead (codex 0.169.0)
        call.update(type="function_call", name=act.tool, arguments=json.dumps(act.arguments))
    else:
        script = CODEX_SHELL if act.tool == "exec_command" else CODEX_CALL
        call.update(type="custom_tool_call", name="exec", input=script % (act.tool, json.dumps(act.arguments)))
    items = [*([responses_message(act.text, number, "completed")] if act.text else []), call]
    done = [responses_event("response.output_item.done", output_index=index, item=item)
            for index, item in enumerate(items)]
    return [responses_head(number), *done, responses_completed(number, items)]


def responses_whole(text: str, talk: Conversation, number: int) -> dict[str, Any]:
    return {"id": f"resp_{number:06}", "status": "completed",
            "output": [responses_message(text, number, "completed")]}


def openai_error(status: int, message: str) -> dict[str, Any]:
    kinds = {400: "invalid_request_error", 401: "invalid_request_error", 429: "rate_limit_exceeded"}
    kind = kinds.get(status, "server_error")
    return {"error": {"message": message, "type": kind, "code": kind, "param": None}}


def responses_limit(resets_at: int) -> tuple[dict[str, str], dict[str, Any]]:
    week_resets_at = resets_at + 86400
    headers = {"primary-used-percent": "100", "primary-window-minutes": "300",
               "primary-reset-at": str(resets_at), "secondary-used-percent": "40",
               "secondary-window-minutes": "10080", "secondary-reset-at": str(week_resets_at)}
    reply = {"type": "usage_limit_reached", "message": "The usage limit has been reached",
             "plan_type": "plus", "resets_at": resets_at,
             "resets_in_seconds": max(0, resets_at - int(time.time()))}
    return {f"x-codex-{name}": value for name, value in headers.items()}, {"error": reply}


# =============================================================================
# 5. OpenAI Chat Completions (OpenCode)
# =============================================================================

def chat_texts(message: Mapping[str, Any]) -> list[str]:
    content = message.get("content") or ""
    if message["role"] != "user":
        return []
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def read_chat(body: Mapping[str, Any], headers: Mapping[str, str], path: str) -> Conversation:
    prompts = flatten(map(chat_texts, body["messages"]))
    tools = tuple(tool["function"]["name"] for tool in body.get("tools", ()))
    return Conversation(
        prompts=prompts, session=headers.get("x-session-id", ""), turn="", model=body["model"],
        is_side="bash" not in tools,  # the title request has no tools
        schema=None, tools=tools, stream=bool(body.get("stream")))


def chat_event(number: int, delta: Mapping[str, Any], finish: Optional[str] = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return sse({"id": f"chatcmpl-{number:06}", "object": "chat.completion.chunk", "created": 0,
                "model": "made-up", "choices": [choice], **more})


def chat_usage() -> dict[str, Any]:
    return {"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS,
            "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS,
            "prompt_tokens_details": {"cached_tokens": CACHED_TOKENS}}


def chat_start(talk: Conversation, number: int) -> list[bytes]:
    return [chat_event(number, {"role": "assistant", "content": ""})]


def chat_piece(text: str, number: int) -> list[bytes]:
    return [chat_event(number, {"content": text})]


def chat_finish(text: str, talk: Conversation, number: int) -> list[bytes]:
    return [chat_event(number, {}, "stop", usage=chat_usage()), b"data: [DONE]\n\n"]


def chat_shell(act: Shell) -> Call:
    # timeout in ms: OpenCode's bash stops after 120 s by default and knows no maximum
    return Call("bash", {"command": act.command, "description": "Run a command", "timeout": 3600000}, act.text)


def chat_call(act: Call, talk: Conversation, number: int) -> list[bytes]:
    call = {"index": 0, "id": f"call_{number:06}", "type": "function",
            "function": {"name": act.tool, "arguments": json.dumps(act.arguments)}}
    return [chat_event(number, {"role": "assistant", "content": act.text, "tool_calls": [call]}),
            chat_event(number, {}, "tool_calls", usage=chat_usage()), b"data: [DONE]\n\n"]


def chat_whole(text: str, talk: Conversation, number: int) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": f"chatcmpl-{number:06}", "object": "chat.completion", "created": 0, "model": talk.model,
            "choices": [choice], "usage": chat_usage()}


def chat_limit(resets_at: int) -> tuple[dict[str, str], dict[str, Any]]:
    message = "You exceeded your current quota, please check your plan and billing details."
    # OpenCode 1.18.33 waits so long and says it: `[retrying in 1h 29m attempt #1]`; without it, 2 s, 4 s, 8 s…
    headers = {"retry-after": str(max(0, resets_at - int(time.time())))}
    return headers, {"error": {"message": message, "type": "insufficient_quota", "code": "insufficient_quota",
                               "param": None}}


# =============================================================================
# 6. Gemini generateContent
# =============================================================================

GEMINI_CONTEXT = re.compile(r"\s*<session_context>.*</session_context>\s*", re.DOTALL)


def gemini_texts(content: Mapping[str, Any]) -> list[str]:
    """What the user wrote; gemini 0.61.0 puts its context into the first user turn as a part of its own."""
    if content.get("role") != "user":
        return []
    texts = [part["text"] for part in content["parts"] if "text" in part]
    return [text for text in texts if not GEMINI_CONTEXT.fullmatch(text)]


def read_gemini(body: Mapping[str, Any], headers: Mapping[str, str], path: str) -> Conversation:
    prompts = flatten(map(gemini_texts, body["contents"]))
    tools = tuple(declared["name"] for tool in body.get("tools", ())
                  for declared in tool.get("functionDeclarations", ()))
    wanted = body.get("generationConfig", {})
    found = re.search(r"/models/([^:/]+):(\w+)", path)
    model, method = found.groups() if found else ("", "")
    return Conversation(
        # gemini 0.61.0 sends no id of the conversation: a test that has several gives each a key of its own
        prompts=prompts, session=headers.get("x-goog-api-key", ""), turn="", model=model,
        is_side="run_shell_command" not in tools,  # routing scores, summaries and loop checks have no tools
        schema=wanted.get("responseJsonSchema") or wanted.get("responseSchema"),
        tools=tools, stream=method == "streamGenerateContent")


def gemini_reply(parts: list[dict[str, Any]], finish: Optional[str] = None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": parts}}
    if finish:
        candidate["finishReason"] = finish
    usage = {"promptTokenCount": INPUT_TOKENS, "cachedContentTokenCount": CACHED_TOKENS,
             "candidatesTokenCount": OUTPUT_TOKENS, "totalTokenCount": INPUT_TOKENS + OUTPUT_TOKENS}
    return {"candidates": [candidate], "usageMetadata": usage}


def gemini_start(talk: Conversation, number: int) -> list[bytes]:
    return []


def gemini_piece(text: str, number: int) -> list[bytes]:
    return [sse(gemini_reply([{"text": text}]))] if text else []


def gemini_finish(text: str, talk: Conversation, number: int) -> list[bytes]:
    return [sse(gemini_reply([{"text": ""}], "STOP"))]


def gemini_shell(act: Shell) -> Call:
    return Call("run_shell_command", {"command": act.command, "description": "Run a command"}, act.text)


def gemini_call(act: Call, talk: Conversation, number: int) -> list[bytes]:
    call = {"name": act.tool, "args": act.arguments}
    return [*gemini_piece(act.text, number), sse(gemini_reply([{"functionCall": call}], "STOP"))]


def gemini_whole(text: str, talk: Conversation, number: int) -> dict[str, Any]:
    return gemini_reply([{"text": text}], "STOP")


def gemini_error(status: int, message: str) -> dict[str, Any]:
    names = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED",
             429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}
    return {"error": {"code": status, "message": message, "status": names.get(status, "INTERNAL")}}


def gemini_limit(resets_at: int) -> tuple[dict[str, str], dict[str, Any]]:
    reply = gemini_error(429, "You exceeded your current quota, please check your plan and billing details.")
    violation = {"quotaMetric": "generativelanguage.googleapis.com/generate_content_free_tier_requests",
                 "quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}
    reply["error"]["details"] = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure",
                                  "violations": [violation]}]
    return {}, reply


# =============================================================================
# 7. The protocols as rows
# =============================================================================

Frames = list  # of bytes, each one a complete server-sent event


@dataclass(frozen=True)
class Protocol:
    agent: str
    path: re.Pattern[str]
    read: Callable[[Mapping[str, Any], Mapping[str, str], str], Conversation]
    start: Callable[[Conversation, int], Frames]
    piece: Callable[[str, int], Frames]
    finish: Callable[[str, Conversation, int], Frames]
    shell: Callable[[Shell], Call]                             # of its own shell tool
    call: Callable[[Call, Conversation, int], Frames]          # a whole reply, without start and finish
    whole: Callable[[str, Conversation, int], dict[str, Any]]  # a reply that is not streamed
    error: Callable[[int, str], dict[str, Any]]
    limit: Callable[[int], tuple[dict[str, str], dict[str, Any]]]


PROTOCOLS = (
    Protocol("claude", re.compile(r"/v1/messages(\?.*)?"), read_anthropic, anthropic_start, anthropic_piece,
             anthropic_finish, anthropic_shell, anthropic_call, anthropic_whole, anthropic_error, anthropic_limit),
    Protocol("codex", re.compile(r"/v1/responses(\?.*)?"), read_responses, responses_start, responses_piece,
             responses_finish, responses_shell, responses_call, responses_whole, openai_error, responses_limit),
    Protocol("opencode", re.compile(r"/v1/chat/completions(\?.*)?"), read_chat, chat_start, chat_piece,
             chat_finish, chat_shell, chat_call, chat_whole, openai_error, chat_limit),
    Protocol("gemini", re.compile(r"/v1beta/models/[^:/]+:(stream)?[gG]enerateContent(\?.*)?"), read_gemini,
             gemini_start, gemini_piece, gemini_finish, gemini_shell, gemini_call, gemini_whole, gemini_error,
             gemini_limit),
)

# What the CLIs ask besides; everything else is a 404 that is recorded as "other".
FIXED_REPLIES = (
    (re.compile(r"HEAD /.*|GET /api/hello.*|GET /"), {}),
    (re.compile(r"POST /v1/messages/count_tokens.*"), {"input_tokens": INPUT_TOKENS}),
    (re.compile(r"POST /v1beta/models/[^:/]+:countTokens.*"), {"totalTokens": INPUT_TOKENS}),
    (re.compile(r"GET /v1/models.*"), {"object": "list", "data": [], "models": []}),
)


@dataclass(frozen=True)
class Page:
    """What a path answers that is no model's: an account's quota, its profile."""
    status: int = 200
    body: Any = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


PageAct = Union[Page, Hang, CutStream]


def fixed_page(line: str) -> Page:
    """What a path answers for which no test said anything; `line` is method and path."""
    known = next((reply for pattern, reply in FIXED_REPLIES if pattern.fullmatch(line)), None)
    return Page(404) if known is None else Page(200, known)


# =============================================================================
# 8. The server
# =============================================================================

class ClientLeft(Exception):
    """The CLI closed its connection before the reply was complete."""


class ModelServer:
    """A model server of one test: opened by `with`, on a port of its own, gone afterwards."""

    def __init__(self, port: int = 0, dump: Optional[Path] = None, talk: bool = False) -> None:
        self.requests: list[Request] = []
        self.reply_headers: dict[str, str] = {}  # sent with every answer, e.g. a protocol's quota headers
        self.pages: dict[str, PageAct] = {}         # "GET /path", without the query -> what it answers
        self.hosts: dict[str, ssl.SSLContext] = {}  # "host:443" that we answer for, asked as its proxy
        self.closing = threading.Event()
        self._changed = threading.Condition()
        self._queue: list[tuple[Act, ...]] = []
        self._rule: Rule = lambda prompt: [Answer("This is a made-up answer.")]
        self._turns: dict[tuple[Any, ...], _Turn] = {}
        self._dump, self._talk = dump, talk
        self._http = _HTTPServer(("127.0.0.1", port), _Handler)
        self._http.model = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "ModelServer":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def port(self) -> int:
        return self._http.server_address[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def next_prompt(self, *acts: Act) -> None:
        """Says what happens with the next prompt that has no acts yet; call it again for the one after it."""
        with self._changed:
            self._queue.append(check_acts(acts))

    def every_prompt(self, rule: Union[Rule, Sequence[Act]]) -> None:
        """Says what happens with all prompts for which `next_prompt` said nothing."""
        acts = () if callable(rule) else check_acts(rule)
        with self._changed:
            self._rule = rule if callable(rule) else lambda prompt: acts

    @property
    def prompts(self) -> list[Request]:
        """The prompts so far: one per user turn, whatever the CLI asked again."""
        with self._changed:
            return [request for request in self.requests if request.kind == "prompt"]

    def await_prompts(self, count: int, deadline_s: float = 30) -> list[Request]:
        """Waits until so many prompts have come; returns all of them."""
        self.await_that(lambda: len(self.prompts) >= count, f"{count} prompts", deadline_s)
        return self.prompts

    def await_fate(self, request: Request, fate: str, deadline_s: float = 30) -> None:
        """Waits until the reply to a request was sent, was cut, or its client left."""
        self.await_that(lambda: request.fate == fate, f"fate {fate!r} of {request.text[:60]!r}", deadline_s)

    def await_that(self, is_true: Callable[[], bool], what: str, deadline_s: float = 30) -> None:
        """Waits until a condition over the requests holds; else AssertionError, with what was seen."""
        with self._changed:
            if not self._changed.wait_for(is_true, timeout=deadline_s):
                raise AssertionError(f"no {what} within {deadline_s} s; seen: {self.describe() or 'nothing'}")

    def describe(self) -> str:
        return "\n".join(describe_request(request) for request in self.requests)

    # What the handler's threads call.

    def take(self, request: Request, talk: Conversation) -> tuple[Act, ...]:
        """Records a request and says how it is answered."""
        with self._changed:
            acts = self._acts_for(request, talk)
            request.act = acts[-1]
            self.requests.append(request)
            self._changed.notify_all()
        self._note(request)
        return acts

    def _acts_for(self, request: Request, talk: Conversation) -> tuple[Act, ...]:
        if talk.is_side or not talk.prompts:
            request.kind = "side"
            return (Answer(json.dumps(example_of(talk.schema)) if talk.schema else SIDE_TEXT),)
        request.text, request.session = talk.prompts[-1], talk.session
        turn_key = (request.agent, talk.session, talk.turn or len(talk.prompts), request.text)
        request.kind = "again" if turn_key in self._turns else "prompt"
        if request.kind == "prompt":
            acts = self._queue.pop(0) if self._queue else check_acts(self._rule(request.text))
            self._turns[turn_key] = _Turn(acts)
        return self._turns[turn_key].next_acts()

    def take_other(self, request: Request) -> None:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        self._note(request)

    def settle(self, request: Request, fate: str) -> None:
        with self._changed:
            request.fate = fate
            self._changed.notify_all()

    def _note(self, request: Request) -> None:
        if self._talk:
            print(describe_request(request), flush=True)
        if self._dump:
            lines = [request.path, *(f"{name}: {value}" for name, value in request.headers.items()), "", ""]
            name = f"{len(self.requests):03}-{request.agent or 'none'}-{request.kind}.txt"
            (self._dump / name).write_bytes("\n".join(lines).encode() + request.body)


def describe_request(request: Request) -> str:
    what = type(request.act).__name__ if request.act else "-"
    start = f"{request.kind:7} {request.agent or '-':8} {request.path}"
    return f"{start} {request.text[:80]!r} -> {what} {request.fate}"


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a thread that holds a Hang ends by itself soon after closing is set
    model: ModelServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A CLI that is ended in the middle of a request is nothing to talk about; anything else is a bug."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _HTTPServer

    def log_message(self, format: str, *args: Any) -> None:
        pass  # the requests are recorded, not logged

    def do_GET(self) -> None:
        self.answer_request()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def do_CONNECT(self) -> None:
        """We are the CLIs' proxy too, so that nothing gets out and what tried to is known."""
        context = self.server.model.hosts.get(self.path)
        if context is None:
            return self.refuse(Request("", "outside", f"CONNECT {self.path}", {}, b"", time.time()))
        self.close_connection = True
        self.send_response(200, "Connection established")
        self.end_headers()
        try:
            with context.wrap_socket(self.connection, server_side=True) as secured:
                _Handler(secured, self.client_address, self.server)  # answers all that comes through it
        except ssl.SSLError:
            pass  # it does not trust us, or went away: it says so itself, and asked nothing

    def answer_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request("", "other", self.path, headers, body, time.time())
        if "://" in self.path:
            return self.refuse(replace(request, kind="outside"))
        protocol = next((row for row in PROTOCOLS if row.path.fullmatch(self.path)), None)
        if protocol is None or self.command != "POST":
            return self.answer_other(request)
        request.agent = protocol.agent
        talk = protocol.read(json.loads(body), headers, self.path)
        acts = self.server.model.take(request, talk)
        try:
            fate = _Reply(self, protocol, talk, len(self.server.model.requests)).play(acts)
        except (ClientLeft, ConnectionError):
            fate, self.close_connection = "left", True
        self.server.model.settle(request, fate)

    def refuse(self, request: Request) -> None:
        self.close_connection = True
        self.server.model.take_other(request)
        self.send_json(403, {"error": "nothing leaves this machine"})
        self.server.model.settle(request, "sent")

    def answer_other(self, request: Request) -> None:
        line = f"{self.command} {self.path}"
        self.server.model.take_other(request)
        page = self.server.model.pages.get(line.partition("?")[0]) or fixed_page(line)
        try:
            fate = self.send_page(page)
        except (ClientLeft, ConnectionError, ssl.SSLError):
            fate, self.close_connection = "left", True
        self.server.model.settle(request, fate)

    def send_page(self, page: PageAct) -> str:
        if isinstance(page, Page):
            self.send_text(page.status, json.dumps(page.body), page.headers)
            return "sent"
        while isinstance(page, Hang) and not self.server.model.closing.is_set():
            self.pause(60)
        self.cut()
        return "cut"

    def send_json(self, status: int, reply: Mapping[str, Any], headers: Mapping[str, str] = {}) -> None:
        self.send_text(status, json.dumps(reply), headers)

    def send_text(self, status: int, text: str, headers: Mapping[str, str] = {}) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **self.server.model.reply_headers, **headers,
                            "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def start_stream(self) -> None:
        self.send_response(200)
        for name, value in {"content-type": "text/event-stream", "cache-control": "no-cache",
                            **self.server.model.reply_headers, "transfer-encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_frames(self, frames: Iterable[bytes]) -> None:
        for frame in frames:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(frame), frame))

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def pause(self, seconds: float) -> None:
        """Waits, unless the client leaves (ClientLeft) or the server closes."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.server.model.closing.is_set():
            readable, _, _ = select.select([self.connection], [], [], CLIENT_CHECK_S)
            # past TLS, whose recv knows no flags: we only want to know whether anything comes
            if readable and not socket.socket.recv(self.connection, 1, socket.MSG_PEEK):
                raise ClientLeft
            if readable:  # a second request on the same connection waits for the first
                self.server.model.closing.wait(CLIENT_CHECK_S)


@dataclass
class _Reply:
    """One reply over one connection."""
    handler: _Handler
    protocol: Protocol
    talk: Conversation
    number: int
    deeds: Mapping[type, Callable[[Any], str]] = field(init=False)

    def __post_init__(self) -> None:
        self.deeds = {Answer: self.answer, Shell: self.shell, Call: self.call, Error: self.error,
                      LimitReached: self.limit, CutStream: self.cut_stream, Hang: self.hang}

    def play(self, acts: Sequence[Act]) -> str:
        """Does the acts; returns the fate of the request."""
        for act in acts[:-1]:
            assert isinstance(act, Think)
            self.handler.pause(act.seconds)
        return self.deeds[type(acts[-1])](acts[-1])

    def begin(self, text: str) -> None:
        self.handler.start_stream()
        self.handler.send_frames(self.protocol.start(self.talk, self.number))
        if text:
            self.handler.send_frames(self.protocol.piece(text, self.number))

    def answer(self, act: Answer) -> str:
        if not self.talk.stream:
            self.handler.send_json(200, self.protocol.whole(act.text, self.talk, self.number))
            return "sent"
        first, *others = pieces_of(act.text, act.chunks)
        self.begin(first)
        for piece in others:
            self.handler.pause(act.chunk_pause_s)
            self.handler.send_frames(self.protocol.piece(piece, self.number))
        self.handler.send_frames(self.protocol.finish(act.text, self.talk, self.number))
        self.handler.end_stream()
        return "sent"

    def shell(self, act: Shell) -> str:
        return self.call(self.protocol.shell(act))

    def call(self, act: Call) -> str:
        self.handler.start_stream()
        self.handler.send_frames(self.protocol.call(act, self.talk, self.number))
        self.handler.end_stream()
        return "sent"

    def error(self, act: Error) -> str:
        own_form = json.dumps(self.protocol.error(act.status, act.message))
        self.handler.send_text(act.status, act.body or own_form)
        return "sent"

    def limit(self, act: LimitReached) -> str:
        headers, reply = self.protocol.limit(int(time.time()) + act.resets_in_s)
        self.handler.send_json(429, reply, headers)
        return "sent"

    def cut_stream(self, act: CutStream) -> str:
        self.begin(act.text)
        self.handler.cut()
        return "cut"

    def hang(self, act: Hang) -> str:
        if act.text:
            self.begin(act.text)
        while not self.handler.server.model.closing.is_set():
            self.handler.pause(60)
        self.handler.cut()
        return "cut"


def pieces_of(text: str, count: int) -> list[str]:
    """The text in at most `count` pieces of about the same length; one empty piece for no text."""
    size = max(1, -(-len(text) // max(1, count)))
    return [text[start:start + size] for start in range(0, len(text), size)] or [""]


# =============================================================================
# 9. By hand
# =============================================================================

def main() -> None:
    parser = argparse.ArgumentParser(description="a made-up model server on 127.0.0.1", allow_abbrev=False)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--answer", default="This is a made-up answer.", metavar="TEXT")
    parser.add_argument("--shell", metavar="COMMAND", help="call the shell tool before the answer")
    parser.add_argument("--think", type=float, default=0.0, metavar="S")
    parser.add_argument("--chunks", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.0, metavar="S", help="between two chunks")
    parser.add_argument("--error", type=int, metavar="STATUS", help="instead of an answer")
    parser.add_argument("--limit", action="store_true", help="a usage limit instead of an answer")
    parser.add_argument("--dump", type=Path, metavar="DIR", help="write every request into a file there")
    wanted = parser.parse_args()
    with ModelServer(wanted.port, wanted.dump, talk=True) as server:
        server.every_prompt(acts_of(wanted))
        print(server.url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("closed")


def acts_of(wanted: argparse.Namespace) -> list[Act]:
    acts: list[Act] = [Think(wanted.think)] if wanted.think else []
    if wanted.shell:
        acts.append(Shell(wanted.shell))
    if wanted.limit:
        return [*acts, LimitReached()]
    if wanted.error:
        return [*acts, Error(wanted.error)]
    return [*acts, Answer(wanted.answer, wanted.chunks, wanted.pause)]


if __name__ == "__main__":
    main()
