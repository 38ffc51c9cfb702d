"""Every way to install the skill that others have made, for real: from a repository like ours, into the homes of a user
who has all four agents. What counts is that the host itself then says where the skill lies, and that it runs there."""
from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from homes import HOMES, make_home
from install_agents import live_folder, new_enough, tools_folder
from leftovers import MARKER
from model_server import Answer

ROOT = Path(__file__).resolve().parents[2]
NOT_IN_GIT = (".git", ".venv", ".live", "__pycache__", ".pytest_cache")
DEADLINE_S = 120
LAST_LINE = (ROOT / "SKILL.md").read_text(encoding="utf-8").strip().splitlines()[-1]    # in a prompt: the skill has been read
OURS = ("SKILL.md", "selftalk.py", "LICENSE", "agents/openai.yaml", ".claude-plugin/marketplace.json")


class GitHandler(http.server.BaseHTTPRequestHandler):
    """Lets git's own CGI program answer."""

    def do_GET(self):
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        env = {**os.environ, "GIT_PROJECT_ROOT": str(self.server.folder), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path,
               "QUERY_STRING": query, "REQUEST_METHOD": self.command, "CONTENT_TYPE": self.headers.get("Content-Type", ""),
               "CONTENT_LENGTH": str(len(body)), "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", "")}
        head, _, content = subprocess.run(["git", "http-backend"], input=body, env=env, stdout=subprocess.PIPE).stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for field in fields.items():
            self.send_header(*field)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Where this very tree, committed or not, can be cloned from."""
    folder = tmp_path_factory.mktemp("git") / "owner" / "selftalk"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*NOT_IN_GIT))
    for words in ("init -q -b main", "add -A", "-c user.name=x -c user.email=x -c commit.gpgsign=false commit -q -m all"):
        subprocess.run(["git", *words.split()], cwd=folder, check=True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), GitHandler) as server:
        server.folder = folder.parent.parent
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "http://127.0.0.1:%d/owner/selftalk/.git" % server.server_port
        server.shutdown()


class User:
    """A home with all four agents in it; nobody sits at the keyboard."""

    def __init__(self, home, server, marker):
        self.home, self.server, self.folder = home.resolve(), server, home / "work"
        self.env = {MARKER: marker}
        for agent in HOMES:
            assert (live_folder() / "node_modules" / ".bin" / agent).exists(), "%s is not installed: run `make live`" % agent
            self.env.update(make_home(agent, server, home))
        self.folder.mkdir()

    def run(self, *words, status=0, **env):
        done = subprocess.run(words, env={**self.env, **env}, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=DEADLINE_S)
        assert done.returncode == status, done.stdout
        return done.stdout

    def skills(self, *words):
        """Calls the `skills` of npm, which needs a newer Node.js than the agents."""
        tools = tools_folder() / "node_modules" / ".bin"
        assert (tools / "skills").exists() and (tools / "node").exists(), "they are not installed: run `make live`"
        return self.run("skills", *words, PATH=str(tools) + os.pathsep + self.env["PATH"])

    def clone(self, url, *path):
        self.run("git", "clone", "-q", url, str(self.home.joinpath(*path)))

    def found_by(self, agent, name="selftalk"):
        """What this agent has found of ours: [(name, folder)]"""
        return FINDERS[agent](self, name)


def found_by_claude(user, name):
    user.server.next_prompt(Answer("hello"))
    lines = user.run("claude", "-p", "--output-format=stream-json", "--verbose", "--", "/%s hello" % name).splitlines()
    start, = [line for line in map(json.loads, lines) if line.get("subtype") == "init"]
    prompt, = user.server.prompts
    texts = [part["text"] for message in json.loads(prompt.body)["messages"] if isinstance(message["content"], list)
             for part in message["content"] if part["type"] == "text"]
    loaded, = [text for text in texts if LAST_LINE in text]
    assert "hello" in prompt.text
    folder = re.match(r"Base directory for this skill: (.+)\n", loaded).group(1)
    return [(skill, Path(folder)) for skill in start["skills"] if "selftalk" in skill]


def skills_of_codex(user):
    process = subprocess.Popen(["codex", "app-server"], env=user.env, cwd=user.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
    asked = ({"id": 1, "method": "initialize", "params": {"clientInfo": {"name": "test", "version": "1"}}}, {"method": "initialized"},
             {"id": 2, "method": "skills/list", "params": {"cwds": [str(user.folder)]}})
    process.stdin.write("".join(json.dumps(one) + "\n" for one in asked))
    process.stdin.flush()
    answer = next(line for line in map(json.loads, process.stdout) if line.get("id") == 2)
    process.communicate(timeout=DEADLINE_S)
    entry, = answer["result"]["data"]
    assert not entry["errors"]
    return [skill for skill in entry["skills"] if skill["scope"] != "system"]


def found_by_codex(user, name):
    return [(skill["name"], Path(skill["path"]).parent) for skill in skills_of_codex(user)]


def found_by_gemini(user, name):
    return [(skill, Path(place).parent) for skill, place in
            re.findall(r"^(\S+) \[Enabled\]\n(?:.+\n)*? +Location: +(.+)$", user.run("gemini", "skills", "list"), re.MULTILINE)]


def found_by_opencode(user, name):
    skills = json.loads(user.run("opencode", "debug", "skill"))
    return [(skill["name"], Path(skill["location"]).parent) for skill in skills if skill["location"] != "<built-in>"]


FINDERS = {"claude": found_by_claude, "codex": found_by_codex, "gemini": found_by_gemini, "opencode": found_by_opencode}


@pytest.fixture
def user(home_root, server, marker):
    return User(home_root / "user", server, marker)


def works(folder):
    """Is it all there, and does it run where it lies?"""
    said = [subprocess.run([sys.executable, str(place / "selftalk.py"), "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
            for place in (ROOT, folder)]
    assert said[0].startswith("selftalk ") and said[0] == said[1]
    assert not [name for name in OURS if (folder / name).read_bytes() != (ROOT / name).read_bytes()]
    return True


@pytest.mark.skipif(not new_enough("3.11"), reason="skills-ref needs Python 3.11")
def test_the_reference_validator_has_nothing_to_say(tmp_path):
    folder = tmp_path / "selftalk"      # the specification wants it to be called as the skill
    folder.mkdir()
    for name in ("SKILL.md", "selftalk.py"):
        shutil.copy(ROOT / name, folder)
    done = subprocess.run([sys.executable, str(tools_folder() / "python" / "bin" / "agentskills"), "validate", str(folder)],
                          env={**os.environ, "PYTHONPATH": str(tools_folder() / "python")}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "Valid skill: %s" % folder)


def test_npx_skills_makes_one_copy_that_all_four_hosts_find(user, url):
    user.skills("add", url, "-g", "-y", "-a", "claude-code", "codex", "gemini-cli", "opencode")
    copy = user.home / ".agents" / "skills" / "selftalk"
    assert works(copy) and not (copy / ".git").exists()
    for agent in FINDERS:
        (name, folder), = user.found_by(agent)
        assert (name, folder.resolve()) == ("selftalk", copy), agent
    user.skills("remove", "selftalk", "-g", "-y")
    assert not [path for path in user.home.glob(".*/skills/*") if path.name == "selftalk"]


@pytest.mark.parametrize("agent, place", [("claude", ".claude/skills/selftalk"), ("codex", ".codex/skills/selftalk"),
                                          ("gemini", ".gemini/skills/selftalk"), ("opencode", ".config/opencode/skills/selftalk")])
def test_a_clone_in_a_hosts_folder_is_all_it_takes(user, url, agent, place):
    user.clone(url, place)
    assert user.found_by(agent) == [("selftalk", user.home / place)] and works(user.home / place)


def test_gemini_installs_and_removes_it(user, url):
    user.run("gemini", "skills", "install", url, "--consent")
    place = user.home / ".gemini" / "skills" / "selftalk"
    assert user.found_by("gemini") == [("selftalk", place)] and works(place)
    user.run("gemini", "skills", "uninstall", "selftalk")
    assert not place.exists()


def test_gemini_links_a_clone_and_removes_only_the_link(user, url):
    user.clone(url, "clone")
    user.run("gemini", "skills", "link", str(user.home / "clone"), "--consent")
    place = user.home / ".gemini" / "skills" / "selftalk"
    assert place.resolve() == user.home / "clone" and works(place)
    user.run("gemini", "skills", "uninstall", "selftalk")
    assert not place.is_symlink() and works(user.home / "clone")


def test_claude_installs_it_as_a_plugin(user, url):
    assert "Validation passed" in user.run("claude", "plugin", "validate", "--strict", str(ROOT))
    user.run("claude", "plugin", "marketplace", "add", url)
    user.run("claude", "plugin", "install", "selftalk@selftalk")
    plugin, = json.loads(user.run("claude", "plugin", "list", "--json"))
    assert (plugin["id"], plugin["enabled"]) == ("selftalk@selftalk", True)
    (name, folder), = user.found_by("claude", "selftalk:selftalk")
    assert (name, folder) == ("selftalk:selftalk", Path(plugin["installPath"])) and works(folder)
    user.run("claude", "plugin", "uninstall", "selftalk@selftalk")
    assert json.loads(user.run("claude", "plugin", "list", "--json")) == []


def test_codex_shows_the_skill_as_its_own_file_says_and_may_use_it_unasked(user, url):
    user.clone(url, ".agents", "skills", "selftalk")
    skill, = skills_of_codex(user)
    shown = [skill["interface"][key] for key in ("displayName", "shortDescription", "defaultPrompt")]
    assert not [text for text in shown if '"%s"' % text not in (ROOT / "agents" / "openai.yaml").read_text()]
    assert skill["enabled"] and "$%s " % skill["name"] in shown[2]
    assert "selftalk/SKILL.md" in user.run("codex", "debug", "prompt-input", "hello")
    user.server.next_prompt(Answer("hello"))
    user.run("codex", "exec", "--skip-git-repo-check", shown[2])
    assert json.dumps(LAST_LINE, ensure_ascii=False)[1:-1] in user.server.prompts[0].body.decode()
