"""The made-up accounts themselves: what the real Claude Code and Codex say about each state of an account."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

import pytest

from accounts import Account, Window, claude_account, codex_account
from model_server import Answer, ModelServer

AgentEnv = Callable[[str], dict[str, str]]
DEADLINE_S = 30
STATES: Mapping[str, Callable[[Account], None]] = {
    "401": lambda account: account.fails(401), "429": lambda account: account.fails(429),
    "500": lambda account: account.fails(500), "offline": lambda account: account.goes_offline(),
}

# --safe-mode: no hook, plugin or MCP server of the user starts, but how they log in stays as it is
CLAUDE_QUIET = ("claude", "-p", "--safe-mode", "--no-session-persistence", "--strict-mcp-config")
CLAUDE_STREAM = ("--input-format", "stream-json", "--output-format", "stream-json", "--verbose")
CODEX_SERVER = ("codex", "app-server", "-c", "features.plugins=false")


def run(argv: tuple[str, ...], env: Mapping[str, str], folder: Path, given: str = "") -> str:
    return subprocess.run(argv, env=env, cwd=folder, input=given, text=True, stdout=subprocess.PIPE,
                          check=True, timeout=DEADLINE_S).stdout


def ask_claude(env: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """The answer to a get_usage request."""
    request = {"subtype": "get_usage", "skip_behaviors": True}
    asked = json.dumps({"type": "control_request", "request_id": "quota", "request": request})
    lines = map(json.loads, run((*CLAUDE_QUIET, *CLAUDE_STREAM), env, folder, asked + "\n").splitlines())
    [response] = [line["response"] for line in lines if line["type"] == "control_response"]
    assert (response["request_id"], response["subtype"]) == ("quota", "success")
    return response["response"]


def ask_codex(
        env: Mapping[str, str], folder: Path, deadline_s: float = DEADLINE_S) -> Optional[dict[str, Any]]:
    """The reply to account/rateLimits/read; None when none came and the app server had to be killed."""
    client = {"name": "made-up", "title": None, "version": "0"}
    asked = ({"id": 1, "method": "initialize", "params": {"clientInfo": client}}, {"method": "initialized"},
             {"id": 2, "method": "account/rateLimits/read"})
    process = subprocess.Popen(CODEX_SERVER, env=env, cwd=folder, text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    assert process.stdin and process.stdout
    # 0.169.0 with a request under way heeds neither SIGTERM nor the end of its stdin, and its wrapper's death
    # leaves it alive: only SIGKILL to the whole group ends it
    guard = threading.Timer(deadline_s, os.killpg, (process.pid, signal.SIGKILL))
    guard.start()
    with process:
        process.stdin.writelines(json.dumps(line) + "\n" for line in asked)
        process.stdin.flush()  # and stays open: closed, the last request is dropped
        replies = map(json.loads, process.stdout)
        reply = next((reply for reply in replies if reply.get("id") == 2), None)
        process.stdin.close()
    guard.cancel()
    return reply


# =============================================================================
# 1. Claude Code
# =============================================================================

def test_claude_says_what_its_account_has_used(
        server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    env = agent_env("claude")
    account = claude_account(server, env)
    account.has(five_hour=Window(12), seven_day=Window(41, 300000), seven_day_sonnet=Window(6, 300000))
    said = ask_claude(env, tmp_path)
    assert (said["subscription_type"], said["rate_limits_available"]) == ("max", True)
    limits = said["rate_limits"]
    used = {name: limits[name]["utilization"] for name in ("five_hour", "seven_day", "seven_day_sonnet")}
    assert used == {"five_hour": 12, "seven_day": 41, "seven_day_sonnet": 6}
    text = run((*CLAUDE_QUIET, "/usage"), env, tmp_path)
    assert "Current session: 12% used · resets " in text
    assert "Current week (Sonnet only): 6% used · resets " in text
    assert server.prompts == [] and account.times_asked == 1  # the second time within a minute it remembers


@pytest.mark.parametrize("state", STATES)
def test_claude_says_nothing_when_its_account_does_not_answer(
        state: str, server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    env = agent_env("claude")
    account = claude_account(server, env)
    STATES[state](account)
    said = ask_claude(env, tmp_path)
    assert (said["rate_limits_available"], said["rate_limits"]) == (True, None)
    assert account.times_asked >= 1


def test_claude_gives_up_an_account_that_hangs(
        server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    env = agent_env("claude")
    claude_account(server, env).hangs()
    assert ask_claude(env, tmp_path)["rate_limits"] is None  # after 5 s


def test_claude_repeats_old_values_for_an_hour_and_only_its_file_says_so(
        server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    env = agent_env("claude")
    account = claude_account(server, env)
    account.has(five_hour=Window(12), seven_day=Window(41))
    ask_claude(env, tmp_path)
    account.fails(500)
    remembered = Path(env["HOME"]) / ".claude.json"
    for age_s, expected in ((1800, 12), (3700, None)):
        content = json.loads(remembered.read_text(encoding="utf-8"))
        fetched_ms = content["cachedUsageUtilization"]["fetchedAtMs"] = int(1000 * (time.time() - age_s))
        remembered.write_text(json.dumps(content), encoding="utf-8")
        limits = ask_claude(env, tmp_path)["rate_limits"]
        assert (limits and limits["five_hour"]["utilization"]) == expected
        after = json.loads(remembered.read_text(encoding="utf-8"))
        assert after["cachedUsageUtilization"]["fetchedAtMs"] == fetched_ms
    assert account.times_asked == 3


def test_claude_without_a_subscription_has_no_quota(
        server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    said = ask_claude(agent_env("claude"), tmp_path)  # a token in the environment, as in the other live tests
    assert said["subscription_type"] is said["rate_limits"] is None and not said["rate_limits_available"]


def test_claude_answers_a_prompt_with_this_login(
        server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    env = agent_env("claude")
    claude_account(server, env)
    server.next_prompt(Answer("Hello from the model."))
    assert "Hello from the model." in run(("claude", "-p", "hello"), env, tmp_path)
    assert server.prompts[0].headers["authorization"] == "Bearer made-up-token-not-real"


# =============================================================================
# 2. Codex
# =============================================================================

def test_codex_says_what_its_account_has_used(
        server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    env = agent_env("codex")
    codex_account(server, env).has(primary=Window(42), secondary=Window(77, 300000))
    reply = ask_codex(env, tmp_path)
    assert reply is not None
    limits = reply["result"]["rateLimits"]
    first, second = limits["primary"], limits["secondary"]
    assert (first["usedPercent"], first["windowDurationMins"]) == (42, 300)
    assert (second["usedPercent"], second["windowDurationMins"]) == (77, 10080)
    assert limits["planType"] == "plus" and server.prompts == []


@pytest.mark.parametrize("state", STATES)
def test_codex_says_why_its_account_does_not_answer(
        state: str, server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    env = agent_env("codex")
    STATES[state](codex_account(server, env))
    reply = ask_codex(env, tmp_path)
    assert reply is not None and reply["error"]["code"] == -32603
    assert reply["error"]["message"].startswith("failed to fetch codex rate limits: ")
    assert state == "offline" or f"failed: {state} " in reply["error"]["message"]


def test_codex_waits_for_ever_for_an_account_that_hangs(
        server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    env = agent_env("codex")
    codex_account(server, env).hangs()
    assert ask_codex(env, tmp_path, deadline_s=3) is None


def test_codex_without_a_subscription_has_no_quota(
        server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    reply = ask_codex(agent_env("codex"), tmp_path)  # a provider with a key, as in the other live tests
    assert reply is not None and reply["error"] == {
        "code": -32600, "message": "codex account authentication required to read rate limits"}


def test_codex_answers_a_prompt_with_this_login(
        server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    env = agent_env("codex")
    codex_account(server, env)
    server.next_prompt(Answer("Hello from the model."))
    assert "Hello from the model." in run(("codex", "exec", "--skip-git-repo-check", "hello"), env, tmp_path)
    assert server.prompts[0].headers["chatgpt-account-id"] == "acct-made-up"
