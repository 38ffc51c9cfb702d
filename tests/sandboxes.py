"""A fresh home for a test, and the program as a person calls it there."""
import json
import os
import pathlib
import subprocess
import sys
import time
import zlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "selftalk.py"
FAKE_AGENT = ROOT / "tests" / "fake_agent.py"
sys.path.insert(0, str(ROOT))

# As a script it is compiled at each start, which takes most of a test's time: most tests call what was compiled once.
SCRIPT = (sys.executable, str(PROGRAM))
COMPILED = (sys.executable, "-X", "pycache_prefix=%s/.pytest_cache/%08x" % (ROOT, zlib.crc32(PROGRAM.read_bytes())), "-c",
            "import os, sys; sys.path.insert(0, %r); import selftalk; os._exit(selftalk.main(sys.argv[1:]))" % str(ROOT))


def run_facts(**more):
    """What run.json has to hold, of a run of the scripted agent."""
    import selftalk
    return {"profile": "p", "agent": "demo", "started_at": 1.0, "caller": None, "workspace": "/", "keep": False, "max_time_s": 0.0,
            "stall_s": 600.0, "tmux": [3, 3], "machine": selftalk.name_machine(), "record_home": "", "form": "task", "turn": 1,
            "asked_at": 1.0, "session_id": "", "extra_args": [], "depth": 1, **more}


class Sandbox:
    """A fresh home with its own state, config, temporary folder and tmux sockets."""
    command = COMPILED

    def __init__(self, folder):
        self.folder = folder
        self.mark = "SELFTALK_TEST=%s" % folder
        for name in ("home", "work", "tmp", "sockets"):
            (folder / name).mkdir(mode=0o700)
        self.home, self.work = folder / "home", folder / "work"
        self.env = {"HOME": str(self.home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TERM": "xterm-256color",
                    "TMPDIR": str(folder / "tmp"), "TMUX_TMPDIR": str(folder / "sockets"),
                    "SELFTALK_TEST": str(folder)}

    @property
    def state(self):
        return self.home / ".local" / "state" / "selftalk"

    def config(self, text):
        """Writes the user's config."""
        path = self.home / ".config" / "selftalk" / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def fake_config(self, interface="demo", more=""):
        """A config whose default profile `fake` is the scripted agent."""
        return self.config("default_profile: fake\nprofiles:\n  fake:\n    command: %s\n    args: [%s]\n    interface: %s\n%s"
                           % (sys.executable, FAKE_AGENT, interface, more))

    def start(self, *words, steps="", env=None, stdin=subprocess.DEVNULL, **options):
        """Starts selftalk."""
        env = dict(self.env, FAKE_STEPS=steps, **(env or {}))
        return subprocess.Popen([*self.command, *map(str, words)], env=env, cwd=self.work, stdin=stdin,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def run(self, *words, steps="", env=None, stdin=None, timeout_s=30):
        """Runs selftalk to its end: (status, stdout, stderr)."""
        process = self.start(*words, steps=steps, env=env, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE)
        out, err = process.communicate(stdin, timeout=timeout_s)
        return process.returncode, out.decode("utf-8"), err.decode("utf-8")

    def run_json(self, *words, **options):
        """Runs selftalk with --json: (status, the object)."""
        status, out, err = self.run(*words, "--json", **options)
        return status, json.loads(out)

    def run_folder(self, number=1):
        return self.state / "runs" / str(number)

    def events(self, number=1):
        lines = (self.run_folder(number) / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def processes(self):
        """(pid, command line) of everything alive that was started in here."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
            except OSError:
                continue
        return [(pid, line) for pid, line in found if line]


def until_true(condition, deadline_s=10.0):
    """Waits for a condition; its value, false when the deadline passed."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    return condition()
