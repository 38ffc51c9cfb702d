"""What selftalk costs: python3 tests/bench.py. Ratios within one run hold on any machine; single times do not."""
import contextlib
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.join(ROOT, "selftalk.py")
PYTHON = os.path.realpath(sys.executable)
ROUNDS = int(os.environ.get("ROUNDS", "7"))

AGENT = """#!%s -ISE
import os, sys, time
folder = [line for line in sys.argv[-1].split("\\n") if line.endswith("/done.md.tmp")][0][:-len("/done.md.tmp")]
end, count = time.monotonic() + float(os.environ["BUSY_S"]), 0
while time.monotonic() < end:
    os.write(1, b"\\x1b[HWorking %%d (esc to interrupt)" %% count)
    count += 1
    time.sleep(max(0, min(0.1, end - time.monotonic())))
open(folder + "/done.md.tmp", "w").write("done")
os.rename(folder + "/done.md.tmp", folder + "/done.md")
time.sleep(100)
"""

# The least that could do the job: start, look for the file every 20 ms, print it, end the server.
REFERENCE = """
import os, subprocess, sys, time
folder, agent = sys.argv[1:]
name = "reference-%d" % os.getpid()
prompt = "hello\\n%s/done.md.tmp\\n" % folder
subprocess.run(["tmux", "-L", name, "-f", "/dev/null", "new-session", "-d", agent, prompt], check=True)
while not os.path.exists(folder + "/done.md"):
    time.sleep(0.02)
print(open(folder + "/done.md").read())
subprocess.run(["tmux", "-L", name, "kill-server"])
"""

RECIPE = """
import os, subprocess, sys, time
folder, agent = sys.argv[1:]
name = "recipe-%d" % os.getpid()
tmux = ["tmux", "-L", name, "-f", "/dev/null"]
subprocess.run(tmux + ["new-session", "-d", agent, "hello\\n%s/done.md.tmp\\n" % folder], check=True)
time.sleep(3)
while b"esc to cancel" in subprocess.run(tmux + ["capture-pane", "-p"], stdout=subprocess.PIPE).stdout:
    time.sleep(3)
time.sleep(2)
subprocess.run(tmux + ["capture-pane", "-p"])
subprocess.run(tmux + ["kill-server"])
"""

COUNT_FORKS = """
import runpy, sys
def count(event, _):
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        sys.stderr.write("fork\\n")
sys.addaudithook(count)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Bench:
    """A folder with an agent, a config and everything the runs leave."""

    def __init__(self, folder):
        self.folder = folder
        self.agent = self.write("agent", AGENT % PYTHON)
        os.chmod(self.agent, 0o755)
        self.config = self.write("config.yaml", "default_profile: a\nprofiles: {a: {command: %s}}\n" % self.agent)
        self.env = dict(os.environ, XDG_STATE_HOME=folder, TMUX_TMPDIR=folder, LANG="C.UTF-8")
        self.env.pop("TMUX", None)
        self.made = 0

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def selftalk(self):
        return [PYTHON, PROGRAM, "run", "--session", "--config", self.config, "hello"]

    def script(self, text):
        self.made += 1
        folder = os.path.join(self.folder, "s%d" % self.made)
        os.mkdir(folder)
        return [PYTHON, self.write("script%d.py" % self.made, text), folder, self.agent]

    def run(self, argv, busy_s):
        """(wall seconds, CPU milliseconds of the command and what it waited for, stdout, stderr)"""
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        ran = subprocess.run(argv, env=dict(self.env, BUSY_S=str(busy_s)), stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        wall_s, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return wall_s, cpu_s * 1000, ran.stdout.decode(), ran.stderr.decode()


def compare_overhead(bench):
    """Seconds over the agent's own busy second: ours, the least, in turn."""
    ours, least = [], []
    for _ in range(ROUNDS):
        ours.append(bench.run(bench.selftalk(), 1)[0] - 1)
        least.append(bench.run(bench.script(REFERENCE), 1)[0] - 1)
    recipe = bench.run(bench.script(RECIPE), 1)[0] - 1
    ours_s, least_s = statistics.median(ours), statistics.median(least)
    print("overhead of a task, agent busy 1 s      selftalk %.3f s · least possible %.3f s (x%.1f) · fixed sleeps %.1f s"
          % (ours_s, least_s, ours_s / least_s, recipe))


def measure_wait(bench):
    """CPU and forks of waiting 20 seconds."""
    _, cpu_ms, _, _ = bench.run(bench.selftalk(), 20)
    _, short_ms, _, _ = bench.run(bench.selftalk(), 0)
    counter = bench.write("count.py", COUNT_FORKS)
    forks = bench.run([PYTHON, counter, *bench.selftalk()[1:]], 20)[3].split("\n").count("fork")
    print("waiting 20 s                            %.0f ms CPU in all, %.0f ms of it for starting and ending · %d forks"
          % (cpu_ms, short_ms, forks))


def measure_many(bench):
    """20 runs started at once."""
    started = time.monotonic()
    runs = [subprocess.Popen(bench.selftalk(), env=dict(bench.env, BUSY_S="1"), stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(20)]
    right = sum(run.communicate()[0] == b"done\n" for run in runs)
    print("20 runs at once                         %d of 20 right, in %.1f s" % (right, time.monotonic() - started))


def measure_outliving(bench):
    """What each of 50 waiters costs while its worker works, and what it costs to look at 1,000 runs."""
    wait_s = 30
    _, start_ms, _, _ = bench.run(bench.selftalk(), 0)
    env = dict(bench.env, BUSY_S=str(wait_s))
    waiters = [subprocess.Popen(bench.selftalk(), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
               for _ in range(50)]
    time.sleep(wait_s / 2)   # all of them are at work
    listed_s = bench.run([PYTHON, PROGRAM, "list"], 0)[0]
    right, costs = 0, []
    for waiter in waiters:
        right += waiter.stdout.read() == b"done\n"
        _, _, used = os.wait4(waiter.pid, 0)
        costs.append(1000 * (used.ru_utime + used.ru_stime) - start_ms)
    print("50 runs at once, %d s of work           %d of 50 right · a waiter takes %.2f %% of a core (the worst %.2f %%) · list %.2f s meanwhile"
          % (wait_s, right, statistics.median(costs) / wait_s / 10, max(costs) / wait_s / 10, listed_s))
    runs = os.path.join(bench.folder, "selftalk", "runs")
    last = max(map(int, os.listdir(runs)))
    facts = json.load(open(os.path.join(runs, str(last), "run.json")))
    for number in range(last + 1, 1001):
        shutil.copytree(os.path.join(runs, str(last)), os.path.join(runs, str(number)))
        bench.write(os.path.join(runs, str(number), "run.json"), json.dumps(dict(facts, id=number), indent=1))
    base = [PYTHON, PROGRAM]
    seconds = [[bench.run([*base, *words], 0)[0] for words in (["--version"], ["list"], ["list", "--all"], ["wait", "last"])] for _ in range(ROUNDS)]
    print("1,000 runs in the folder                --version %.2f s · list %.2f s · list --all %.2f s · wait for the last %.2f s"
          % tuple(map(statistics.median, zip(*seconds))))


TALKER_START_S = 0.3     # from its start to its first screen, which waits for a prompt


def measure_talk(bench):
    """Seconds from a screen that is ready to a prompt that is submitted, and from an agent that is done to the end
    of the command that prints its answer."""
    talker = bench.write("talker", "#!/bin/sh\nexec %s %s \"$@\"\n" % (PYTHON, os.path.join(ROOT, "tests", "fake_talker.py")))
    os.chmod(talker, 0o755)
    config = bench.write("talk.yaml", "profiles: {claude: {command: %s, interface: claude}}\n" % talker)
    log = bench.write("talker.jsonl", "")
    bench.env.update(TALKER="start=%g; busy=1" % TALKER_START_S, TALKER_LOG=log, CLAUDE_CONFIG_DIR=bench.folder)
    base, submitted, printed = [PYTHON, PROGRAM], [], []
    for number in range(ROUNDS):
        bench.run([*base, "-c", "--cwd", bench.folder, "--config", config, "prompt %d" % number], 0)
        ended = time.time()
        entries = [json.loads(line) for line in open(log)]
        at = {kind: max(entry["at"] for entry in entries if kind in entry) for kind in ("started", "prompt", "done")}
        submitted.append(at["prompt"] - at["started"] - TALKER_START_S)
        printed.append(ended - at["done"])
        bench.run([*base, "stop", "last"], 0)
    recipe_s = 3.0   # what a recipe with fixed sleeps waits before it types
    print("a talk, agent busy 1 s                  ready to submitted %.3f s (a fixed sleep: %.0f s) · done to printed %.3f s"
          % (statistics.median(submitted), recipe_s, statistics.median(printed)))


OLD_RECIPE_S = 9.0       # open the agent, sleep, type /usage, sleep, read the screen, close it
FAKE_CLI = """#!%s -ISE
import sys, time
time.sleep(0.2)
if "--version" not in sys.argv:
    sys.stdin.readline()
    print('''%s''', flush=True)
    sys.stdin.read()
"""
FAKE_ANSWERS = {
    "claude": '{"type":"control_response","response":{"response":{"rate_limits":{"five_hour":{"utilization":12}}}}}',
    "codex": '{"id":2,"result":{"rateLimits":{"primary":{"usedPercent":30,"windowDurationMins":300}}}}'}


@contextlib.contextmanager
def opened_accounts(bench):
    """(what they are, the environment) of a Claude and a Codex: the real ones on made-up accounts when `make live` has
    installed them, else scripts that need 0.2 s to start."""
    sys.path.insert(0, os.path.join(ROOT, "tests", "live"))
    from accounts import Window, claude_account, codex_account
    from homes import make_home
    from install_agents import live_folder
    from model_server import ModelServer
    with ModelServer() as server:
        if all((live_folder() / "node_modules" / ".bin" / name).exists() for name in FAKE_ANSWERS):
            home = pathlib.Path(bench.folder, "home")
            env = {**make_home("codex", server, home), **make_home("claude", server, home)}
            claude_account(server, env).has(five_hour=Window(12))
            codex_account(server, env).has(primary=Window(30))
            yield "the CLI", env
            return
        folder = os.path.join(bench.folder, "clis")
        os.mkdir(folder)
        for name, answer in FAKE_ANSWERS.items():
            os.chmod(bench.write(os.path.join("clis", name), FAKE_CLI % (PYTHON, answer)), 0o755)
        yield "a script", dict(bench.env, PATH=folder + os.pathsep + os.environ["PATH"])


def ask_directly(program, probe, env, folder):
    """Seconds until a CLI has answered a probe and ended, with nothing of ours around it."""
    started = time.monotonic()
    sign = {"codex-limits": b'"id":2', "claude-get-usage": b"control_response"}[probe.format]
    with subprocess.Popen([program, *probe.args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          env=env, cwd=folder) as process:
        process.stdin.write(probe.send.encode())
        process.stdin.flush()
        any(sign in line for line in process.stdout)
        process.stdin.close()
        process.stdout.read()
    return time.monotonic() - started


def measure_quota(bench):
    """A look at the quota beside what the CLI itself needs for it, and a decision on what is kept beside --version."""
    sys.path.insert(0, ROOT)
    from selftalk import AGENTS
    base, medians = [PYTHON, PROGRAM], statistics.median
    with opened_accounts(bench) as (what, env):
        bench.env = env = {**env, "XDG_STATE_HOME": bench.folder}
        for name in FAKE_ANSWERS:
            probe, program = AGENTS[name].quota.probes[0], shutil.which(name, path=env["PATH"])
            seconds = [(ask_directly(program, probe, env, bench.folder), bench.run([program, "--version"], 0)[0],
                        bench.run([*base, "usage", name, "--fresh"], 0)[0]) for _ in range(ROUNDS + 1)][1:]
            direct_s, start_s, ours_s = map(medians, zip(*seconds))
            print("%-39s selftalk %.2f s · %s by itself %.2f s (x%.1f), its --version %.2f s · fixed sleeps %.0f s (x%.0f)" % (
                "usage of %s, read anew" % name, ours_s, what, direct_s, ours_s / direct_s, start_s, OLD_RECIPE_S, OLD_RECIPE_S / ours_s))
        assert bench.run([*base, "-c", "-e", "-x", "--cwd", bench.folder, "--dry-run"], 0)[2].endswith("12% (limit 80%) -> claude\n")
        seconds = [(bench.run([*base, "-c", "-e", "-x", "--cwd", bench.folder, "--dry-run"], 0)[0], bench.run([*base, "--version"], 0)[0])
                   for _ in range(3 * ROUNDS)]
    ours_s, version_s = map(medians, zip(*seconds))
    print("%-39s %.0f ms · --version %.0f ms (x%.1f) · fixed sleeps %.0f s (x%.0f)" % (
        "-e --dry-run on what is kept", 1000 * ours_s, 1000 * version_s, ours_s / version_s, OLD_RECIPE_S, OLD_RECIPE_S / ours_s))


# Says what Claude Code says. $STREAM, a file, comes $TIMES times before its answer.
STREAM_AGENT = """#!/bin/sh
echo '{"type":"system","subtype":"init","session_id":"s","model":"m"}'
sleep "$BUSY_S"
for time in $TIMES; do cat "$STREAM"; done
echo '{"type":"assistant","message":{"id":"m9","content":[{"type":"text","text":"done"}]}}'
echo '{"type":"result","subtype":"success","is_error":false,"result":"done"}'
"""
TOOL_LINE = '{"type":"user","message":{"content":[{"type":"tool_result","content":"%s"}]}}\n'

LEAST_HEADLESS = """
import subprocess, sys, json
folder, agent = sys.argv[1:]
with open(folder + "/out", "wb") as out:
    subprocess.run([agent], stdin=subprocess.DEVNULL, stdout=out, check=True, start_new_session=True)
print(json.loads(open(folder + "/out").read().splitlines()[-1])["result"])
"""


def measure_peak(argv, env):
    """(CPU milliseconds, peak memory in KiB, stdout) of one command."""
    child = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    out = child.stdout.read()
    _, child.returncode, used = os.wait4(child.pid, 0)
    return 1000 * (used.ru_utime + used.ru_stime), used.ru_maxrss, out.decode()


def measure_headless(bench):
    """A headless run beside its CLI alone; what large streams cost; 20 at once."""
    agent = bench.write("stream-agent", STREAM_AGENT)
    os.chmod(agent, 0o755)
    config = bench.write("headless.yaml", "default_profile: a\nprofiles: {a: {command: %s, interface: claude, headless: true}}\n" % agent)
    argv, bench.agent = [PYTHON, PROGRAM, "run", "--config", config, "hello"], agent
    env = bench.env = {**bench.env, "TIMES": ""}
    runs = [(bench.run(argv, 1)[0], bench.run(bench.script(LEAST_HEADLESS), 1)[0], bench.run([agent], 1)[0], bench.run([PYTHON, PROGRAM, "--version"], 0)[0])
            for _ in range(ROUNDS)]
    ours_s, least_s, bare_s, start_s = map(statistics.median, zip(*runs))
    print("headless, agent busy 1 s                over the agent alone: selftalk %.0f ms, %.0f ms of it its start (--version) · 10 lines of Python %.0f ms"
          % (1000 * (ours_s - bare_s), 1000 * start_s, 1000 * (least_s - bare_s)))
    lines, line = bench.write("lines", ""), bench.write("line", TOOL_LINE.split("%s")[0])
    for path, piece in ((lines, TOOL_LINE % ("x" * 1960) * 100), (line, "x" * 200_000)):   # in pieces: a child's peak counts its parent
        with open(path, "a") as file:
            file.writelines(piece for _ in range(1000))
    with open(line, "a") as file:
        file.write(TOOL_LINE.split("%s")[1])
    small_ms, small_kib, _ = measure_peak(argv, {**env, "BUSY_S": "0"})
    for what, stream, times in (("200 MB in lines of 2 KB", lines, 1), ("200 MB in one line", line, 1), ("1 GB in lines of 2 KB", lines, 5)):
        cpu_ms, peak_kib, out = measure_peak(argv, {**env, "BUSY_S": "0", "STREAM": stream, "TIMES": "x " * times})
        print("%-39s %s, %.2f s CPU and %.0f MB more than a small stream (%.2f s, %.0f MB)" % (
            "headless, " + what, out.strip(), (cpu_ms - small_ms) / 1000, (peak_kib - small_kib) / 1024, small_ms / 1000, small_kib / 1024))
        shutil.rmtree(os.path.join(bench.folder, "selftalk"))
    started = time.monotonic()
    runs = [subprocess.Popen(argv, env={**env, "BUSY_S": "1"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            for _ in range(20)]
    right = sum(run.communicate()[0] == b"done\n" for run in runs)
    print("20 headless runs at once                %d of 20 right, in %.1f s" % (right, time.monotonic() - started))


def measure_start(bench):
    """CPU of --version beside the bare interpreter."""
    ours = statistics.median(bench.run([PYTHON, PROGRAM, "--version"], 0)[1] for _ in range(15))
    bare = statistics.median(bench.run([PYTHON, "-c", "pass"], 0)[1] for _ in range(15))
    print("--version                               %.0f ms CPU · bare interpreter %.0f ms (x%.1f)" % (ours, bare, ours / bare))


def main():
    folder = tempfile.mkdtemp(prefix="bench-")
    try:
        bench = Bench(folder)
        print(json.dumps({"python": sys.version.split()[0], "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}))
        measure_start(bench)
        compare_overhead(bench)
        measure_wait(bench)
        measure_many(bench)
        measure_outliving(bench)
        measure_talk(bench)
        measure_headless(bench)
        measure_quota(bench)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
