"""Each real CLI, headless: it answers, runs its shell tool, and sends the model what it was given."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Callable, Mapping

import pytest

from model_server import Answer, LimitReached, ModelServer, Shell, obey_done_file

AgentEnv = Callable[[str], dict[str, str]]
HEADLESS_DEADLINE_S = 60
IN_ARGUMENT, IN_STDIN = "argument", "stdin"

# agent -> command line, where the prompt goes
HEADLESS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "claude":   (("claude", "-p", "--allowedTools=Bash", "--"), IN_ARGUMENT),  # as root it refuses a bypass
    "codex":    (("codex", "exec", "--yolo", "--skip-git-repo-check", "--"), IN_ARGUMENT),
    "opencode": (("opencode", "run", "--auto"), IN_STDIN),  # 1.18.33 sends an argument with quotes around it
    "gemini":   (("gemini", "--skip-trust", "--yolo", "-p"), IN_ARGUMENT),
}
PROMPT = 'Two  spaces, a "quote", an it\'s, a $HOME, a back\\slash,\n\ta tab and ünï😀de\nin three lines'


def run_headless(agent: str, prompt: str, env: Mapping[str, str],
                 folder: Path) -> subprocess.CompletedProcess[str]:
    argv, place = HEADLESS[agent]
    words = (*argv, prompt) if place == IN_ARGUMENT else argv
    return subprocess.run(words, env=env, cwd=folder, input=prompt if place == IN_STDIN else "", text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=HEADLESS_DEADLINE_S)


@pytest.mark.parametrize("agent", HEADLESS)
def test_answers_and_sends_exactly_what_it_was_given(
        agent: str, server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    server.next_prompt(Answer("The answer of the model, in pieces.", chunks=4))
    done = run_headless(agent, PROMPT, agent_env(agent), tmp_path)
    assert "The answer of the model, in pieces." in done.stdout, done.stderr
    assert done.returncode == 0
    assert [(prompt.agent, prompt.text) for prompt in server.prompts] == [(agent, PROMPT)]


@pytest.mark.parametrize("agent", HEADLESS)
def test_runs_its_shell_tool_and_publishes_done_md(
        agent: str, server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    done_file = tmp_path / "done.md"
    server.every_prompt(lambda prompt: obey_done_file(prompt, "It's all done: 3 files"))
    done = run_headless(agent, f"Do it. Then write {done_file}.tmp and rename it to {done_file}.",
                        agent_env(agent), tmp_path)
    assert done_file.read_text() == "It's all done: 3 files\n", done.stderr
    assert "The summary is in done.md" in done.stdout
    kinds = [request.kind for request in server.requests]
    assert (kinds.count("prompt"), kinds.count("again")) == (1, 1)


@pytest.mark.parametrize("agent", ("claude", "codex"))  # the others wait behind a limit for ever
def test_ends_with_an_error_at_its_usage_limit(
        agent: str, server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    server.next_prompt(LimitReached())
    done = run_headless(agent, "anything", agent_env(agent), tmp_path)
    assert done.returncode == 1
    assert "limit" in (done.stdout + done.stderr).lower()


def test_a_shell_act_waits_for_a_command_that_outlives_the_tools_first_yield(
        server: ModelServer, agent_env: AgentEnv, tmp_path: Path) -> None:
    # codex 0.169.0 returns from a command after 10 s at first; the act has to go on waiting
    server.next_prompt(Shell(f"sleep 12 && touch {tmp_path}/slept"), Answer("It slept."))
    done = run_headless("codex", "sleep a while", agent_env("codex"), tmp_path)
    assert (tmp_path / "slept").exists() and "It slept." in done.stdout, done.stderr
