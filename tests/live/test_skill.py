"""The skill in the real hosts: each lists it, loads it, and hands work by it to each of the others, from a home with a space."""
from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from homes import make_home, write_json
from install_agents import live_folder
from leftovers import MARKER
from model_server import Answer, Call, Shell, Think, obey_done_file
from test_task import DEADLINE_S, PROGRAM

SKILL = PROGRAM.parent / "SKILL.md"
HOSTS = {   # how a person starts it for one prompt, with nothing that allows anything, and the folder it has for skills
    "claude": (("claude", "-p"), ".claude/skills"),
    "codex": (("codex", "exec", "--skip-git-repo-check"), ".codex/skills"),
    "gemini": (("gemini", "--skip-trust", "-p"), ".gemini/skills"),
    "opencode": (("opencode", "run"), ".config/opencode/skills"),
}
PAIRS = [(host, worker) for host in HOSTS for worker in HOSTS if host != worker]
WORDS = {   # what the model of a host writes behind the program; `run -p WORKER "PROMPT"` in the other pairs
    ("claude", "codex"): '-x --once "{prompt}"',
    ("claude", "gemini"): "run -p gemini -f plan.md",
    ("claude", "opencode"): "run -H -p opencode <<'EOF'\n{prompt}\nEOF",
    ("codex", "gemini"): '-g --once "{prompt}"',
    ("gemini", "claude"): '-c --once "{prompt}"',
    ("gemini", "opencode"): 'run -H -p opencode "{prompt}"',
    ("opencode", "claude"): "run -p claude < plan.md",
}
HOST_PROMPT, WORKER_PROMPT = "Let another agent do it.", "Do this; then 'that' & (more)."
LAST_WORD = "My colleague is done."


def put_skill(home, host, env):
    """Installs the skill for a host, or into the folder that hosts share; returns the folder."""
    ran = subprocess.run([sys.executable, PROGRAM, "install-skill", "--provider", host, "--json"], env=env, stdout=subprocess.PIPE, check=True)
    [row] = json.loads(ran.stdout)
    assert (row["did"], row["folder"]) == ("installed", str(home.resolve() / HOSTS.get(host, (0, ".agents/skills"))[1] / "selftalk"))
    return home / HOSTS.get(host, (0, ".agents/skills"))[1] / "selftalk"


def allow_claude(home, program):   # the skill itself; what it runs is allowed by its `allowed-tools`
    write_json(home / ".claude" / "settings.json", {"permissions": {"allow": ["Skill(selftalk)"]}})


def allow_codex(home, program):    # both without its sandbox, which not every machine can make, and without a question
    rule = 'prefix_rule(pattern=["%s", %s], decision="allow")\n'
    (home / ".codex" / "rules").mkdir()
    (home / ".codex" / "rules" / "selftalk.rules").write_text("".join(
        rule % (command, json.dumps(str(file))) for command, file in (("cat", program.parent / "SKILL.md"), ("python3", program))))


def allow_gemini(home, program):
    rule = '[[rule]]\ntoolName = "%s"\n%sdecision = "allow"\npriority = 100\n'
    rules = [("activate_skill", "")] + [("run_shell_command", "commandPrefix = %s\n" % json.dumps("python3 " + quoted % program))
                                        for quoted in ('"%s"', "'%s'")]
    (home / ".gemini" / "policies").mkdir()
    (home / ".gemini" / "policies" / "selftalk.toml").write_text("".join(rule % names for names in rules))


ALLOW = {"claude": allow_claude, "codex": allow_codex, "gemini": allow_gemini}   # OpenCode asks for nothing


class Host:
    """A real agent with the skill, in a home of its own, which asks its user nothing."""

    def __init__(self, host, server, marker, home_root, workers=()):
        self.host, self.server = host, server
        self.home, self.work = home_root / "a home", home_root / "work"
        self.env = {MARKER: marker, "IS_SANDBOX": "1", "TMUX_TMPDIR": str(home_root)}
        for agent in (host, *workers):
            self.env.update(make_home(agent, server, self.home))
        # OpenCode lists a skill's files with ripgrep, which it else fetches; Codex brings one along
        ripgrep = list(live_folder().glob("node_modules/@openai/codex-*/vendor/*/codex-path"))
        assert ripgrep, "no agents in %s: run `make live`" % live_folder()
        self.env["PATH"] += ":%s" % ripgrep[0]
        (self.home / ".profile").write_text('PATH="%s"\n' % self.env["PATH"])   # Codex's shell is a login shell
        self.work.mkdir()
        (self.work / "plan.md").write_text(WORKER_PROMPT + "\n")

    def install(self, provider="", is_allowed=True):
        self.skill = put_skill(self.home, provider or self.host, self.env)
        self.program = self.skill / "selftalk.py"
        if is_allowed and self.host in ALLOW:
            ALLOW[self.host](self.home, self.program)
        return self

    def load(self):
        """What the model calls to read the skill; Codex's reads the file."""
        return {"claude": Call("Skill", {"skill": "selftalk"}), "opencode": Call("skill", {"name": "selftalk"}),
                "gemini": Call("activate_skill", {"name": "selftalk"})}.get(self.host, Shell('cat "%s/SKILL.md"' % self.skill))

    def command(self, words):
        return Shell('python3 "%s" %s' % (self.program, words))

    def run(self, *acts, worker=(Answer("nothing"),), prompt=HOST_PROMPT):
        """The host does the acts, a worker what is said; returns all texts that the host's model was told last, and what it printed."""
        def rule(text):
            return [*acts, Answer(LAST_WORD)] if HOST_PROMPT in text else worker(text) if callable(worker) else worker
        self.server.every_prompt(rule)
        ran = subprocess.run([*HOSTS[self.host][0], prompt], env=self.env, cwd=self.work, stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=DEADLINE_S)
        print(ran.stderr.decode()[-2000:])   # pytest shows it when the test failed
        assert (ran.returncode, ran.stdout.decode().strip()) == (0, LAST_WORD)
        told = [request for request in self.server.requests if request.agent == self.host and request.kind in ("prompt", "again")]
        return list(texts_of(json.loads(told[-1].body))), ran.stderr.decode()

    def runs(self):
        """How the runs of selftalk ended."""
        files = sorted((self.home / ".local/state/selftalk/runs").glob("*/run.json"))
        return [(run["agent"], run["outcome"]) for run in map(json.loads, (file.read_text() for file in files))]


def texts_of(value):
    """All texts at any depth."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts_of(part)


def description():
    [line] = [line for line in SKILL.read_text().splitlines() if line.startswith("description: ")]
    return json.loads(line.partition(": ")[2])


def body_of(folder, host):
    """What a host shows of SKILL.md."""
    body = SKILL.read_text().split("---\n", 2)[2].strip()
    return body.replace("${CLAUDE_SKILL_DIR}", str(folder)) if host == "claude" else body


@pytest.fixture(params=HOSTS)
def host(request, server, marker, home_root):
    return Host(request.param, server, marker, home_root)


def test_a_host_lists_the_skill_to_its_model_and_loads_it_whole(host):
    host.install()
    texts, _ = host.run(host.load())
    first = next(request for request in host.server.requests if request.agent == host.host and request.kind == "prompt")
    assert sum(text.count(description()) for text in texts_of(json.loads(first.body))) == 1
    [loaded] = [text for text in texts if body_of(host.skill, host.host) in text]
    assert str(host.skill) in (loaded if host.host != "codex" else "".join(texts))   # so that the model can name the program


def test_two_copies_serve_all_hosts_and_none_complains_of_the_other(host):
    host.install("claude", is_allowed=False).install("agents")
    texts, printed = host.run()
    assert sum(text.count(description()) for text in texts) == 1 and "conflict" not in printed.lower()


@pytest.mark.parametrize("host_name, sign", [("claude", "/"), ("codex", "$")])
def test_a_person_who_calls_the_skill_by_its_name_has_loaded_it(host_name, sign, server, marker, home_root):
    host = Host(host_name, server, marker, home_root).install(is_allowed=host_name == "codex")
    texts, _ = host.run(host.command("profiles"), prompt=sign + "selftalk " + HOST_PROMPT)
    [loaded] = [text for text in texts if body_of(host.skill, host_name) in text]
    assert str(host.skill) in loaded and any("codex --dangerously-bypass" in text for text in texts)


@pytest.mark.parametrize("host_name, worker", PAIRS)
def test_a_host_hands_work_to_a_worker_and_gets_its_answer_back(host_name, worker, server, marker, home_root):
    host = Host(host_name, server, marker, home_root, [worker]).install()
    answer = "Said by %s for %s." % (worker, host_name)
    words = WORDS.get((host_name, worker), 'run -p {worker} "{prompt}"').format(worker=worker, prompt=WORKER_PROMPT)
    texts, _ = host.run(host.load(), host.command(words),
                        worker=lambda text: obey_done_file(text, answer) if "done.md" in text else [Answer(answer)])
    assert any(answer in text for text in texts)
    [prompt] = [request for request in server.prompts if request.agent == worker]
    assert WORKER_PROMPT in prompt.text and host.runs() == [(worker, "answered")]


def test_the_command_that_goes_on_waiting_is_allowed_as_it_is_printed(host):
    letter, worker = ("x", "codex") if host.host == "claude" else ("c", "claude")
    host.env.update(make_home(worker, host.server, host.home))
    host.install()
    go_on = "python3 %s wait 1" % shlex.quote(str(host.program))
    texts, _ = host.run(host.load(), host.command('-%s --once --wait 2 "%s"' % (letter, WORKER_PROMPT)), Shell(go_on),
                        worker=[Think(3), Answer("Said late.")])
    assert any("try: " + go_on in text and "Said late." not in text for text in texts)
    assert any("Said late." in text for text in texts) and host.runs() == [(worker, "answered")]
