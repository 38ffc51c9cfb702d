#!/usr/bin/env python3
"""A scripted agent that speaks ACP on stdin and stdout. FAKE_TRAITS, by words, is what it is like:

    load · load-late · resume   it can take up a session; "load" tells the history first, "load-late" afterwards
    version2 · login · nameless it speaks version 2; wants a login first; makes sessions without an id
    first-talks                 reads a little of the prompt, then writes 2 MB, and then reads on
    last-words                  says more when its stdin is closed; whoever started it looks only when it is gone
    stubborn                    ignores SIGTERM, and that its stdin is closed
    deaf                        stubborn, and reads nothing after session/new

FAKE_STEPS, by ";", is what it does with a prompt:

    say TEXT         a piece of an answer
    ask KIND,KIND…   asks for permission, with options of these kinds; says which one was taken
    request METHOD   asks something else; says what came back
    wait             waits for session/cancel
    raw TEXT         prints a line as it is, with \\xNN for bytes
    piece TEXT       the same, without an end of line
    nest N           a line of N nested lists
    long MB · many MB  so much, as one line, or in lines of 200 bytes
    measure FILE     writes down memory and CPU time of the process that started it
    end REASON · fail CODE TEXT · answer JSON   answers the prompt
    die N · child    leaves without a word; leaves a child that holds stdout

All that it reads goes to FAKE_HEARD, all that it writes to FAKE_SAID.
"""
import json
import os
import re
import signal
import sys
import time

TRAITS = os.environ.get("FAKE_TRAITS", "").split()
STEPS = [step.strip().partition(" ") for step in os.environ["FAKE_STEPS"].split(";")]
HEARD, SAID = (open(os.environ[name], "wb", buffering=0) for name in ("FAKE_HEARD", "FAKE_SAID"))
SESSION = "fake-session"


def write(data):
    SAID.write(data)
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def send(**message):
    write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def update(kind, text):
    send(method="session/update", params={"sessionId": SESSION, "update": {
        "sessionUpdate": kind, "content": {"type": "text", "text": text}}})


def receive():
    line = sys.stdin.buffer.readline()
    HEARD.write(line)
    if line:
        return json.loads(line)
    if "last-words" in TRAITS:
        say_last_words(os.getppid())
    return sleep() if "stubborn" in TRAITS else sys.exit(0)


def say_last_words(client):
    time.sleep(0.2)   # until it has read all else: a full pipe would hold us
    os.kill(client, signal.SIGSTOP)
    update("agent_message_chunk", "last")
    if not os.fork():
        time.sleep(0.2)
        os.kill(client, signal.SIGCONT)
    os._exit(0)


def sleep():
    while True:
        time.sleep(100)


def request(method, **params):
    send(id=prompt_id, method=method, params=params)   # agents count their own requests, so ids may meet
    answer = receive()
    while answer.get("id") != prompt_id:
        answer = receive()
    return answer


def tell_history():
    update("user_message_chunk", "an old prompt")
    update("agent_message_chunk", "an old answer")


def open_session(id, method):
    if "login" in TRAITS:
        send(id=id, error={"code": -32000, "message": "Authentication required"})
    elif method == "session/new":
        send(id=id, result={} if "nameless" in TRAITS else {"sessionId": SESSION})
    else:
        if "load" in TRAITS:
            tell_history()
        send(id=id, result={})
        if "load-late" in TRAITS:
            time.sleep(0.1)
            tell_history()
    if "first-talks" in TRAITS:
        sys.stdin.buffer.peek(1)
        time.sleep(0.2)
        step_many("2")
    if "deaf" in TRAITS:
        sleep()


def step_ask(kinds):
    options = [{"optionId": "%s-%d" % (kind, number), "kind": kind, "name": kind}
               for number, kind in enumerate(kinds.split(","))]
    outcome = request("session/request_permission", sessionId=SESSION, toolCall={"toolCallId": "1", "title": "rm -r x"},
                      options=options)["result"]["outcome"]
    update("agent_message_chunk", "%s %s." % (outcome["outcome"], outcome.get("optionId", "-")))


def step_wait(_):
    while receive().get("method") != "session/cancel":
        continue


def step_raw(text):
    write(re.sub(rb"\\x(..)", lambda found: bytes([int(found[1], 16)]), text.encode()) + b"\n")


def step_long(size):
    write(b'{"jsonrpc":"2.0","method":"session/update","params":{"text":"')
    for _ in range(int(size)):
        write(b"x" * (1 << 20))
    write(b'"}}\n')


def step_many(size):
    line = b'{"jsonrpc":"2.0","method":"session/update","params":{"text":"%s"}}\n' % (b"y" * 137)
    for _ in range(int(size)):
        write(line * ((1 << 20) // len(line)))


def step_measure(path):
    with open("/proc/%d/status" % os.getppid()) as status, open("/proc/%d/stat" % os.getppid()) as stat:
        peak = int(re.search(r"VmHWM:\s+(\d+)", status.read())[1])
        ticks = sum(map(int, stat.read().rpartition(")")[2].split()[11:13]))
    with open(path, "w") as file:
        json.dump({"peak_mb": peak / 1024, "cpu_s": ticks / os.sysconf("SC_CLK_TCK")}, file)


def step_child(_):
    if not os.fork():
        sleep()


def answer(**message):
    send(id=prompt_id, **message)


DEEDS = {
    "say": lambda text: update("agent_message_chunk", text),
    "ask": step_ask,
    "request": lambda method: update("agent_message_chunk", str(request(method)["error"]["code"])),
    "wait": step_wait,
    "raw": step_raw,
    "piece": lambda text: write(text.encode()),
    "nest": lambda depth: write(b'{"id":2,"result":' + b"[" * int(depth) + b"\n"),
    "long": step_long,
    "many": step_many,
    "measure": step_measure,
    "end": lambda reason: answer(result={"stopReason": reason}),
    "fail": lambda text: answer(error={"code": int(text.split()[0]), "message": text.partition(" ")[2]}),
    "answer": lambda text: answer(result=json.loads(text)),
    "die": lambda status: os._exit(int(status)),
    "child": step_child,
}

if __name__ == "__main__":
    if {"stubborn", "deaf"} & set(TRAITS):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        message = receive()
        prompt_id, method = message.get("id"), message.get("method")
        if method == "initialize":
            able = {"loadSession": bool({"load", "load-late"} & set(TRAITS)),
                    "sessionCapabilities": {"resume": {}} if "resume" in TRAITS else {}}
            send(id=prompt_id, result={"protocolVersion": 2 if "version2" in TRAITS else 1, "agentCapabilities": able})
        elif method in ("session/new", "session/load", "session/resume"):
            open_session(prompt_id, method)
        elif method == "session/prompt":
            for step, _, operand in STEPS:
                DEEDS[step](operand)
