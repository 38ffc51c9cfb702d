"""Quota, route and failover with the real Claude Code, Codex and Gemini on made-up accounts."""
from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterator

import pytest

from accounts import Window, claude_account, codex_account
from homes import make_home
from leftovers import await_gone, kill
from model_server import Answer, LimitReached, ModelServer, Shell
from talks import PROGRAM, Home, Talk, impatient, stop_all

DAY_S = 86400
MODEL_PATHS = re.compile(r"/v1/(?:messages|responses)|generateContent", re.IGNORECASE)


class Crew(Talk):
    """One home with three agents in it: Claude and Codex have a subscription each, Gemini a key."""

    def __init__(self, server: ModelServer, root: Path) -> None:
        home = Home("claude", server, root)
        others = {**make_home("codex", server, root / "claude"), **make_home("gemini", server, root / "claude")}
        home.env = {**others, **home.env}
        impatient("codex", home.env)
        super().__init__(home)
        self.claude, self.codex = claude_account(server, self.env), codex_account(server, self.env)
        self.user = Path(self.env["HOME"])

    def have(self, claude: float, codex: float) -> None:
        """So much of a session is used; and nobody remembers what it was before."""
        self.claude.has(five_hour=Window(claude), seven_day=Window(41, 3 * DAY_S))
        self.codex.has(primary=Window(codex), secondary=Window(20, 3 * DAY_S))
        self.forget()

    def forget(self) -> None:
        shutil.rmtree(self.home.runs.parent / "quota", ignore_errors=True)
        remembered = self.user / ".claude.json"   # 2.1.329 serves its own answer for 60 s
        content = json.loads(remembered.read_text(encoding="utf-8"))
        content.pop("cachedUsageUtilization", None)
        remembered.write_text(json.dumps(content), encoding="utf-8")

    def say(self, *words: str, program: Path = PROGRAM, env: Any = None) -> tuple[int, str, str]:
        """Runs selftalk: (status, stdout, stderr)."""
        ran = subprocess.run([sys.executable, str(program), *words], env=env or self.env, cwd=self.home.folder, text=True,
                             stdin=subprocess.DEVNULL, capture_output=True, timeout=90)
        print(ran.stdout, ran.stderr)   # pytest shows it when the test failed
        assert "Traceback" not in ran.stderr
        return ran.returncode, ran.stdout, ran.stderr

    def files(self) -> dict[str, tuple[int, int]]:
        """Every file of the user, with size and time."""
        found = [path for path in self.user.rglob("*") if path.is_file() and self.home.runs.parent not in path.parents]
        return {str(path.relative_to(self.user)): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}

    def model_requests(self) -> list[str]:
        return [request.path for request in self.server.requests if MODEL_PATHS.search(request.path)]


@pytest.fixture(scope="module")
def one_crew() -> Iterator[Crew]:
    root = Path(tempfile.mkdtemp(prefix="st-"))   # short: a socket's path has 107 bytes
    with ModelServer() as server:
        crew = Crew(server, root)
        try:
            yield crew
        finally:
            stop_all(crew.home)
            left = await_gone(crew.home.marker, 5)
            for pid in left:
                kill(pid)
            shutil.rmtree(root, ignore_errors=True)
            print(server.describe())
    assert not left, "still alive (now killed):\n" + "\n".join(left.values())


@pytest.fixture
def crew(one_crew: Crew) -> Iterator[Crew]:
    """The home, with accounts that are hardly used; afterwards its runs are stopped."""
    one_crew.have(12, 30)
    one_crew.server.every_prompt([Answer("nobody said what to answer")])
    yield one_crew
    stop_all(one_crew.home)


def test_usage_shows_what_the_accounts_have_used(crew: Crew) -> None:
    status, out, err = crew.say("usage")
    rows = [line.split() for line in out.splitlines()]
    assert (status, err) == (0, "") and len(rows) == 8
    assert [row[:3] for row in rows[:2]] == [["claude", "session", "12%"], ["claude", "week", "41%"]]
    assert [row[:3] for row in rows[3:5]] == [["codex", "session", "30%"], ["codex", "week", "20%"]]
    assert "by get_usage" in out and "by app-server" in out
    assert [row[:2] for row in rows[6:]] == [["gemini", "unknown"], ["opencode", "unknown"]]
    status, out, _ = crew.say("usage", "--json", "codex", "claude")
    codex, claude = json.loads(out)
    assert [(window["name"], window["used_percent"]) for window in claude["windows"]] == [("session", 12), ("week", 41)]
    assert abs(claude["windows"][0]["resets_at"] - codex["windows"][0]["resets_at"]) < 60
    assert (claude["source"], codex["source"], claude["unknown"]) == ("get_usage", "app-server", None)
    assert 0 <= claude["age_s"] < 60 and crew.claude.times_asked == 1


def test_a_look_at_the_quota_leaves_nothing_and_asks_no_model(crew: Crew) -> None:
    hooked = crew.home.root / "hooked"
    hook = {"hooks": [{"type": "command", "command": "touch %s" % hooked}]}
    settings = crew.user / ".claude" / "settings.json"
    settings.write_text(json.dumps({"hooks": {"SessionStart": [hook], "SessionEnd": [hook]}}), encoding="utf-8")
    crew.say("usage", "claude", "codex", "--fresh")   # the first one in a home makes its folders
    asked, before = len(crew.model_requests()), crew.files()
    status, out, _ = crew.say("usage", "claude", "codex", "--fresh", "--json")
    settings.unlink()
    assert status == 0 and all(row["windows"] for row in json.loads(out))
    changed = {name for name, facts in crew.files().items() if before.get(name) != facts}
    print("changed:", sorted(changed))
    known = re.compile(r"\.claude\.json$|\.claude/backups/|\.codex/(?:\w+\.sqlite|tmp/|models_cache\.json$)|\.cache/")
    assert not [name for name in changed if not known.match(name)]
    assert not hooked.exists() and not list((crew.user / "tmp").iterdir())
    assert not list(crew.user.glob(".claude/projects/*/*")) and not list(crew.user.glob(".codex/sessions/**/*.jsonl"))
    assert len(crew.model_requests()) == asked and not crew.home.left()


def test_the_one_with_quota_left_is_preferred_or_falls_in(crew: Crew) -> None:
    crew.have(91, 30)
    status, out, _ = crew.say("-c", "-e", "-x", "--dry-run")
    assert re.fullmatch(r"smart-route: claude session at 91% \(limit 80%, resets \d\d:\d\d\) -> codex\n", out)
    assert "-> claude" in crew.say("-c", "-e", "-x", "--dry-run", "--threshold", "95")[1]
    assert "-> codex" in crew.say("-x", "-e", "-c", "--dry-run")[1]
    assert not crew.home.runs.exists()


def test_a_talk_goes_to_who_has_quota_left(crew: Crew) -> None:
    crew.have(91, 30)
    crew.server.every_prompt([Answer("hello from the other")])
    status, out, err = crew.say("-c", "-e", "-x", "--here", "--once", "say hello")
    assert (status, out) == (0, "hello from the other\n") and "smart-route: claude session at 91%" in err


@pytest.mark.parametrize("first, flag, other, other_flag", [
    ("claude", "-c", "codex", "-x"), ("codex", "-x", "claude", "-c"), ("claude", "-c", "gemini", "-g")])
def test_at_a_real_limit_the_next_agent_takes_over(crew: Crew, first: str, flag: str, other: str, other_flag: str) -> None:
    work = crew.home.root / ("repository-%s-%s" % (first, other))
    work.mkdir()
    (work / "notes.txt").write_text("before\n")
    for words in (("init", "-q"), ("add", "."), ("-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-qm", "x")):
        subprocess.run(["git", *words], cwd=work, check=True, env=crew.env)
    crew.server.every_prompt(lambda text: [Answer("I took over")] if "Another agent" in text else [
        Shell("echo after > %s/notes.txt" % work), LimitReached(7000)])
    status, out, err = crew.say(flag, "--failover", other_flag, "--cwd", str(work), "--json", "mend the notes")
    result = json.loads(out)
    assert (status, result["answer"], result["profile"]) == (0, "I took over", other)
    assert result["took_over"]["profile"] == first and result["took_over"]["outcome"] == "limited"
    prompt = crew.server.prompts[-1].text
    assert "mend the notes" in prompt and "-before\n+after" in prompt
    assert "%s CANNOT GO ON" % first in err and "%s TAKES OVER" % other in err
    status, out, _ = crew.say("usage", first, "--json")
    left_s = json.loads(out)[0]["limited_until"] - result["started_at"]
    assert 6900 < left_s < 7100
    assert "%s has reached its limit" % first in crew.say(flag, "-e", other_flag, "--dry-run")[1]


def test_one_that_is_not_logged_in_is_passed_over(crew: Crew) -> None:
    folder = crew.home.root / "nobody"
    env = {**make_home("codex", crew.server, folder), **make_home("claude", crew.server, folder)}
    del env["CLAUDE_CODE_OAUTH_TOKEN"]
    account = codex_account(crew.server, env)
    account.has(primary=Window(5))
    assert crew.say("-c", "-e", "-x", "--dry-run", env=env)[1] == "smart-route: claude is not logged in -> codex\n"
    (folder / ".codex" / "auth.json").unlink()
    status, out, err = crew.say("-x", "-e", "-c", "--dry-run", "--fresh", env=env)
    assert status == 3 and "codex is not logged in; claude is not logged in" in err
    env["ANTHROPIC_API_KEY"] = "sk-fake-not-a-key"
    assert "no windows: it is not logged in with a subscription" in crew.say("usage", "claude", env=env)[1]
    assert "inconclusive: no windows" in crew.say("-c", "-e", "-x", "--dry-run", env=env)[1]


def test_an_account_that_hangs_is_unknown_and_its_probe_is_ended(crew: Crew) -> None:
    text, count = re.subn(r"(?m)^PROBE_S = 15\.0", "PROBE_S = 1.0", PROGRAM.read_text(encoding="utf-8"))
    assert count == 1
    hurried = crew.home.root / "hurried.py"
    hurried.write_text(text, encoding="utf-8")
    shutil.rmtree(crew.user / ".codex" / "sessions", ignore_errors=True)   # else the newest rollout tells
    crew.codex.hangs()
    status, out, _ = crew.say("usage", "codex", "--json", program=hurried)
    assert status == 0 and json.loads(out)[0]["windows"] == [] and "app-server: " in json.loads(out)[0]["unknown"]
    assert not crew.home.left()
