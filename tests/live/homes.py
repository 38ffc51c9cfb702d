"""A fresh home for one real agent CLI, wired to a model server of ours.

    env = make_home("codex", server, tmp_path / "home")
    subprocess.run(["codex", "exec", …], env=env)

The environment is built up from nothing: no login, key, proxy or setting of the caller gets in. The homes
hold as little as possible, so that a CLI meets in a test what it meets at a user's: a folder it does not
trust, no run before this one. What each line is for was observed on the versions in agents.json.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Mapping
from urllib.parse import urlsplit

from install_agents import live_folder
from model_server import ModelServer

FAKE_KEY = "sk-fake-not-a-key"
OUR_TOOLS = ("node", "tmux", "git", "python3", "bash")  # their folders are on the PATH, behind the agents


def make_home(agent: str, server: ModelServer, folder: Path) -> dict[str, str]:
    """Prepares `folder` as a home in which this agent talks to that server; returns the whole environment."""
    home = folder.resolve()
    for name in (".config", ".local/share", ".local/state", ".cache", "tmp"):
        (home / name).mkdir(parents=True, exist_ok=True)
    return {**base_environment(home, server), **HOMES[agent](home, server)}


def base_environment(home: Path, server: ModelServer) -> dict[str, str]:
    """What every agent gets; the variables that say who and where one is, nothing else of the caller's."""
    here = urlsplit(server.url).hostname or ""
    return {
        "PATH": search_path(), "HOME": str(home), "TMPDIR": str(home / "tmp"),
        "USER": "dev", "LOGNAME": "dev", "SHELL": shutil.which("bash") or "/bin/sh",
        "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TERM": "xterm-256color",
        "XDG_CONFIG_HOME": str(home / ".config"), "XDG_DATA_HOME": str(home / ".local/share"),
        "XDG_STATE_HOME": str(home / ".local/state"), "XDG_CACHE_HOME": str(home / ".cache"),
        # Whatever a CLI wants from elsewhere ends at our server, which refuses and records it.
        "HTTP_PROXY": server.url, "HTTPS_PROXY": server.url, "NO_PROXY": here,
        "http_proxy": server.url, "https_proxy": server.url, "no_proxy": here,
        "npm_config_registry": server.url + "/npm/", "NO_UPDATE_NOTIFIER": "1", "DO_NOT_TRACK": "1",
    }


def search_path() -> str:
    """The pinned agents first, then the folders of the few tools they need."""
    found = [shutil.which(tool) for tool in OUR_TOOLS]
    tools = [str(Path(tool).parent) for tool in found if tool]
    agents = str(live_folder() / "node_modules" / ".bin")
    return os.pathsep.join(dict.fromkeys([agents, *tools, "/usr/local/bin", "/usr/bin", "/bin"]))


def write_json(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def make_claude_home(home: Path, server: ModelServer) -> dict[str, str]:
    # Without it the TUI starts with its onboarding, whose preflight ignores ANTHROPIC_BASE_URL and ends the
    # CLI when it cannot reach the maker (2.1.329). `-p` needs nothing.
    write_json(home / ".claude.json", {"hasCompletedOnboarding": True})
    return {
        "ANTHROPIC_BASE_URL": server.url,
        # A subscription's token: no dialog (the TUI asks whether to use an ANTHROPIC_API_KEY), and the only
        # kind of login that knows a usage limit (with the others it is a 429, tried 10 times over).
        "CLAUDE_CODE_OAUTH_TOKEN": FAKE_KEY,
        "DISABLE_AUTOUPDATER": "1", "DISABLE_TELEMETRY": "1", "DISABLE_ERROR_REPORTING": "1",
    }


def make_codex_home(home: Path, server: ModelServer) -> dict[str, str]:
    # In the file, so that the command line stays a user's; a provider with env_key needs no login screen.
    (home / ".codex").mkdir(exist_ok=True)
    (home / ".codex" / "config.toml").write_text(f"""\
model_provider = "made-up"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.made-up]
name = "made-up"
base_url = "{server.url}/v1"
env_key = "MADE_UP_KEY"
wire_api = "responses"
""", encoding="utf-8")
    return {"CODEX_HOME": str(home / ".codex"), "MADE_UP_KEY": FAKE_KEY}


def make_opencode_home(home: Path, server: ModelServer) -> dict[str, str]:
    provider = {
        "npm": "@ai-sdk/openai-compatible", "name": "Made up",  # is inside the binary: nothing is fetched
        "options": {"baseURL": server.url + "/v1", "apiKey": FAKE_KEY},
        "models": {"made-up": {"name": "Made up", "limit": {"context": 200000, "output": 8000},
                               "cost": {"input": 1, "output": 2}}},
    }
    write_json(home / ".config" / "opencode" / "opencode.json", {
        "provider": {"made-up": provider}, "model": "made-up/made-up", "autoupdate": False,
        "share": "disabled"})
    return {
        "OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_SHARE": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1",     # else it asks for a list of models at every start
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1", "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    }


def make_gemini_home(home: Path, server: ModelServer) -> dict[str, str]:
    # The way to log in can only be chosen in the settings: without selectedType the TUI asks, and headless
    # the base URL alone means "gateway" and exit code 41 (0.61.0).
    write_json(home / ".gemini" / "settings.json", {
        "security": {"auth": {"selectedType": "gemini-api-key"}},
        "general": {"enableAutoUpdate": False, "enableAutoUpdateNotification": False},
        "privacy": {"usageStatisticsEnabled": False}, "telemetry": {"enabled": False}})
    return {"GEMINI_API_KEY": FAKE_KEY, "GOOGLE_GEMINI_BASE_URL": server.url}


HOMES = {"claude": make_claude_home, "codex": make_codex_home, "opencode": make_opencode_home,
         "gemini": make_gemini_home}
