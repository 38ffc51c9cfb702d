"""A scripted headless agent: reads its prompt from stdin, then plays the script that $FAKE_STREAM names.

    a line                 is printed as it is
    @sleep S               waits
    @stderr WORDS          goes to stderr
    @raw HEX               bytes as they are, without a line feed
    @lines N LINE          prints LINE N times
    @long N                one line: a tool's result of N bytes
    @child                 starts a process in a session of its own that stays
    @flood                 starts a process that prints lines for ever
    @hang                  waits for ever
    @kill                  ends itself by SIGKILL
    @exit N                ends with this status; otherwise 0 at the end of the script
"""
import os
import signal
import subprocess
import sys
import time


def main():
    with open("prompt.seen", "wb") as file:
        file.write(sys.stdin.buffer.read())
    with open("argv.seen", "w") as file:
        file.write("\n".join(sys.argv[1:]))
    out = sys.stdout.buffer
    for line in open(os.environ["FAKE_STREAM"], "rb").read().splitlines(keepends=True):
        verb, _, rest = line.rstrip(b"\n").partition(b" ")
        if not verb.startswith(b"@"):
            out.write(line)
            out.flush()
        elif verb == b"@sleep":
            time.sleep(float(rest))
        elif verb == b"@stderr":
            sys.stderr.write(rest.decode() + "\n")
            sys.stderr.flush()
        elif verb == b"@raw":
            out.write(bytes.fromhex(rest.decode()))
            out.flush()
        elif verb == b"@lines":
            number, _, text = rest.partition(b" ")
            block = (text + b"\n") * 200
            for _ in range(int(number) // 200):
                out.write(block)
            out.flush()
        elif verb == b"@long":
            out.write(b'{"type":"user","message":{"role":"user","content":[{"type":"tool_result","content":"')
            for _ in range(int(rest) // 1_000_000):
                out.write(b"y" * 1_000_000)
            out.write(b'"}]}}\n')
            out.flush()
        elif verb == b"@child":
            subprocess.Popen(["sleep", "7777"], start_new_session=True, stdout=subprocess.DEVNULL)
        elif verb == b"@flood":
            subprocess.Popen(["sh", "-c", "while :; do echo '{\"type\":\"user\"}'; done"], start_new_session=True)
        elif verb == b"@hang":
            time.sleep(3600)
        elif verb == b"@kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif verb == b"@exit":
            sys.exit(int(rest))


main()
