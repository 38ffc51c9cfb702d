#!/usr/bin/env python3
"""A scripted agent: a terminal program that does what the steps in FAKE_STEPS say, one after the other.

    ask            a first-run question in which plain Enter leaves with status 1
    ready          an empty prompt box
    busy S         a spinner for S seconds
    silent S       nothing at all for S seconds
    done TEXT      publishes TEXT as the done.md that the prompt asks for
    empty          publishes an empty done.md
    say TEXT       prints TEXT, with \\n for line ends
    exit N         leaves with status N
    kill           ends itself with SIGKILL
    child          leaves behind a child that ignores HUP and TERM, in a session of its own
    daemon         the same, and its parent is gone too
    dump FILE      writes its arguments, environment and stdin to FILE as JSON
    await FILE     waits until FILE is there
    hold           stays until it is ended

The screens are those of the demo worker, so `interface: demo` understands them.
"""
import json
import os
import re
import signal
import sys
import termios
import time
import tty


def draw(*lines):
    sys.stdout.write("\x1b[2J\x1b[H" + "\r\n".join(lines))
    sys.stdout.flush()


def prompt_text():
    return sys.argv[-1] if len(sys.argv) > 1 else ""


def publish(text):
    folder = re.search(r"^(/.*)/done\.md\.tmp$", prompt_text(), re.MULTILINE).group(1)
    with open(folder + "/done.md.tmp", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(folder + "/done.md.tmp", folder + "/done.md")


def step_ask(_):
    saved, chosen = termios.tcgetattr(0), 0
    tty.setraw(0)
    while True:
        rows = [("❯ " if number == chosen else "  ") + label for number, label in enumerate(("No, leave", "Yes, work here"))]
        draw("Fake agent: may I work in this folder?", "", *rows, "", "Enter to confirm")
        for key in re.findall(rb"\x1b\[.|.", os.read(0, 64), re.DOTALL):
            if key == b"\r":
                termios.tcsetattr(0, termios.TCSANOW, saved)
                return None if chosen else sys.exit(1)
            chosen = {b"\x1b[B": 1, b"\x1b[A": 0}.get(key, chosen)


def step_busy(operand):
    end, count = time.monotonic() + float(operand), 0
    while time.monotonic() < end:
        draw("Fake agent", "", "* Working… (%d · esc to interrupt)" % count)
        count += 1
        time.sleep(max(0.0, min(0.1, end - time.monotonic())))


def leave_child(steps_away):
    for _ in range(steps_away):
        if os.fork():
            return
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.setsid()
    while True:
        time.sleep(100)


def step_dump(path):
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump({"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(),
                   "stdin": "" if os.isatty(0) else sys.stdin.read()}, file)


def step_await(path):
    while not os.path.exists(path):
        time.sleep(0.01)


STEPS = {
    "ask": step_ask,
    "ready": lambda _: draw("Fake agent, ready.", "", "> "),
    "busy": step_busy,
    "silent": lambda operand: time.sleep(float(operand)),
    "done": publish,
    "empty": lambda _: publish(""),
    "say": lambda operand: draw(*operand.split("\\n")),
    "exit": lambda operand: sys.exit(int(operand)),
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "child": lambda _: leave_child(1),
    "daemon": lambda _: leave_child(2),
    "dump": step_dump,
    "await": step_await,
    "hold": lambda _: time.sleep(1000),
}


if __name__ == "__main__":
    for step in os.environ["FAKE_STEPS"].split(";"):
        word, _, operand = step.strip().partition(" ")
        STEPS[word](operand)
