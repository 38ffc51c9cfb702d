"""What the README tells a new user to type, typed: the line that installs, and each workflow, with scripted agents."""
import functools
import http.server
import os
import re
import shlex
import subprocess
import sys
import threading

import pytest

import selftalk
from sandboxes import PROGRAM, ROOT
from test_failover import Crew, make_repository
from test_talk import opened_talk

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIG = next(text for text in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "codex-spark:" in text)
WORKFLOWS = dict(re.findall(r"^\*\*(.+?)[.,*].*?```sh\n(.*?)```", README.split("## Workflows")[1].split("\n## ")[0], re.DOTALL | re.MULTILINE))
INSTALL, ALIAS = re.findall(r"```sh\n(.*?)```", README.split("## Install\n")[1].split("\n## ")[0], re.DOTALL)
RESULT = '{"type":"result","subtype":"success","is_error":false,"result":"all 41 tests pass","session_id":"s","num_turns":1}'


@pytest.fixture
def address():
    """Where the program can be fetched, as from a web server."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(ROOT))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "http://127.0.0.1:%d" % server.server_address[1]
        server.shutdown()


def shell(command, env, cwd):
    return subprocess.run(["bash", "-c", command], env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=60)


def test_the_line_that_installs_does_so_and_again(sandbox, address):
    (sandbox.home / ".claude").mkdir()
    line, count = re.subn(r"https://\S+/selftalk\.py", address + "/selftalk.py", INSTALL)
    assert count == 1
    env = dict(sandbox.env, PATH="/usr/bin:/bin:" + os.path.dirname(sys.executable))
    for did in ("installed", "up-to-date"):
        ran = shell(line, env, sandbox.work)
        assert ran.returncode == 0 and ran.stdout.decode().split()[:2] == ["claude", did], ran.stderr.decode()
    assert (sandbox.home / ".claude/skills/selftalk/selftalk.py").read_bytes() == PROGRAM.read_bytes()
    ran = shell("shopt -s expand_aliases\n%s" % ALIAS.split("selftalk demo")[0].replace("selftalk doctor", "selftalk --version"), env, sandbox.work)
    assert ran.returncode == 0 and ran.stdout.startswith(b"selftalk "), ran.stderr.decode()


def test_a_page_that_is_not_there_installs_nothing(sandbox, address):
    ran = shell(re.sub(r"https://\S+/selftalk\.py", address + "/nowhere.py", INSTALL), sandbox.env, sandbox.work)
    assert ran.returncode == 22 and not (sandbox.home / ".local/bin/selftalk.py").exists()


@pytest.fixture
def crew(tmp_path, monkeypatch):
    """Three scripted agents under the names that the README uses, in a repository with what its prompts speak of."""
    monkeypatch.setattr(sys.modules["test_talk"], "Talk", Crew)
    with opened_talk(tmp_path) as opened:
        path = opened.home / ".config/selftalk/config.yaml"
        path.write_text(path.read_text() + "  codex-spark: {command: %s, interface: claude}\n" % (opened.folder / "agent-codex"))
        for name in ("DESIGN.md", "plan.md"):
            (opened.work / name).write_text("the words of %s\n" % name)
        make_repository(opened.work)
        yield opened


def follow(crew, workflow):
    """Types a workflow, each command as it stands there: (its exit codes, its stdout, its stderr)."""
    call = "%s %s" % (shlex.quote(sys.executable), shlex.quote(str(crew.program)))
    script = "selftalk() { %s \"$@\"; code=$?; echo \"[$code]\" >&2; return $code; }\n%s" % (call, WORKFLOWS[workflow])
    ran = shell(script, crew.env, crew.work)
    err = ran.stderr.decode()
    assert "Traceback" not in err and "usage:" not in err
    return [int(code) for code in re.findall(r"^\[(\d+)\]$", err, re.MULTILINE)], ran.stdout.decode(), err


def test_the_readme_has_five_workflows_and_each_is_typed_below():
    assert list(WORKFLOWS) == ["A plan by the best model", "A second opinion from two others", "Nightly tests", "A day with a quota",
                               "A conversation"]
    with open(__file__, encoding="utf-8") as file:
        typed = re.findall(r'follow\(crew, "(.+?)"\)', file.read())
    assert sorted(typed) == sorted(WORKFLOWS)


def test_a_plan_is_made_carried_out_and_reviewed(crew):
    codes, out, err = follow(crew, "A plan by the best model")
    assert codes == [0, 0, 0] and out.count("answer 1 to ") == 3, err
    first, second = crew.prompts("claude")
    assert "Write the plan to plan.md" in first and "Review the changes in this folder against plan.md" in second
    assert "the words of plan.md" in crew.prompts("codex")[0]


def test_two_second_opinions_come_back_together(crew):
    codes, out, err = follow(crew, "A second opinion from two others")
    assert codes == [0, 0, 0], err
    assert "==> run 1, by-codex (codex) <==" in out and "==> run 2, by-gemini (gemini) <==" in out
    assert "Read DESIGN.md" in crew.prompts("codex")[0] and "Read DESIGN.md" in crew.prompts("gemini")[0]


def test_a_nightly_run_leaves_a_report_and_its_exit_code(crew):
    (crew.folder / "agent-codex").write_text("#!/bin/sh\ncat > %s/night; echo '%s'\n" % (crew.folder, RESULT))
    codes, out, err = follow(crew, "Nightly tests")
    assert (codes, out, err) == ([0], "", "[0]\n")
    assert (crew.work / "nightly.md").read_text() == "all 41 tests pass\nselftalk ended with 0\n"
    assert (crew.folder / "night").read_text().startswith("Run the tests.")


def test_a_day_with_a_quota_goes_on_when_one_runs_low_and_when_a_limit_strikes(crew):
    used = '{"type":"control_response","response":{"response":{"rate_limits_available":true,"rate_limits":{"five_hour":{"utilization":91}}}}}'
    crew.says("claude", "echo '%s'" % used)
    crew.behave("claude", "limit=resets in 2h")
    codes, out, err = follow(crew, "A day with a quota")
    assert codes == [0, 0, 0], err
    assert re.search(r"claude +session +91%", out)
    assert "smart-route: claude session at 91% (limit 80%" in err and "-> codex" in err
    assert "TODO" in crew.prompts("codex")[0]
    assert "Do what plan.md says" in crew.prompts("claude")[0] and "Do what plan.md says" in crew.prompts("gemini")[0]
    assert "by gemini, which took over from claude" in err


def test_a_conversation_goes_on_with_the_same_agent(crew):
    codes, out, err = follow(crew, "A conversation")
    assert codes == [0, 0, 0], err
    assert crew.prompts("codex") == ["What does this program do?", "And what would you remove from it?"]
    assert not [run for run in crew.run_json("list", "--all")[1] if run["state"] != "over"]


def test_the_config_of_the_readme_is_one(sandbox):
    path = sandbox.config(CONFIG)
    status, profiles = sandbox.run_json("profiles", env={"CHEAP_API_KEY": "sk-fake-not-a-key"})
    used = set(re.findall(r" -p (\S+)", "".join(WORKFLOWS.values())))
    assert status == 0 and {one["name"] for one in profiles} >= used > {"codex-spark"} and profiles[0]["config"] == str(path)
    built_in = selftalk.built_in_config().profiles
    assert [one["args"] for one in profiles if one["name"] in built_in] == [list(built_in[name].args) for name in ("claude", "codex", "gemini")]
