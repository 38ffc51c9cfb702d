#!/usr/bin/env python3
"""A scripted agent that is talked to: a terminal program in the looks of Claude Code 2.1.329, with its transcript.

TALKER says how it behaves, as `name=value; name; …`; a prompt that holds [[name=value; …]] changes it for its turn.

    start=S  paint_first=S       ready S seconds after its start; deaf for S seconds more
    lose_paste=N  slow_paste=S   the first N pastes are lost; the first one shows after S seconds
    drop_enter=N  newline_enter=N    the first N Enters are swallowed; become a line end; slow_enter=S: taken later
    ghost=TEXT  held=TEXT@S      what an empty input shows; what a person has typed, for S seconds
    ask_on_start  ask_on_paste  ask_on_submit  (=QUESTION|OPTION|…)   a dialog; slow_dialog=S: it obeys S seconds late
    busy=S  say=TEXT             how long a turn takes; its answer
    error  limit  login          how a turn ends instead; limit=WORDS: when it says that the limit ends
    said=TEXT                    what it says in its turn before that
    background=S  wake           a shell outlives the turn for S seconds, and then begins a turn of its own
    person=TEXT@S                another prompt begins a turn S seconds after ours began
    put_back                     Esc brings the prompt back into the input; slow_interrupt=S: it obeys S seconds late
    slow_clear=S                 Ctrl-C empties the input S seconds late, and a second one meanwhile ends the program
    exit_on_submit=N  exit_on_start=N  no_record

Everything it was given goes to TALKER_LOG, as JSON lines with the time: started, pasted, prompt, done, command, dialog, stray.
"""
import json
import os
import re
import select
import sys
import termios
import time
import tty

BEGIN, END = b"\x1b[200~", b"\x1b[201~"
KEY = re.compile(rb"\x1b\[[0-9;]*[~A-Za-z]|[^\x1b\x00-\x1f\x7f]+|.", re.DOTALL)
SLOW_KEYS = (b"\r", b"\x1b[A", b"\x1b[B")
SPINNERS = "·✢✳✶✻✽"
BANNER = [" ▐▛███▛█   Claude Code v2.1.329", "▝▜██████▀  Sonnet 5.5 · Claude API", " ▝▝   ▝▝   ~/work", ""]
ENDINGS = {   # kind: (error in the transcript, its words, its row on the screen, what the empty input shows)
    "error": ("unknown", "API Error: 500 made-up trouble", "● API Error: 500 made-up trouble",
              "Resend your message to try again"),
    "login": ("authentication_failed", "Invalid API key · Fix external API key",
              "  ⎿ \xa0Invalid API key · Fix external API key", "Once fixed, resend your message"),
    "limit": ("rate_limit", "You've hit your 5-hour limit · resets 8:10am (UTC)",
              "  ⎿ \xa0You've hit your 5-hour limit · resets 8:10am (UTC)", ""),
}


class Talker:
    def __init__(self):
        self.script, self.turn_script = self.parse_script(os.environ.get("TALKER", "")), {}
        self.history, self.text, self.chips, self.pastes = [], "", {}, 0
        self.timers, self.pending, self.dialog, self.turn, self.queue = [], b"", None, None, []
        self.ghost, self.footer, self.hint_until, self.is_leaving = self.option("ghost"), "", 0.0, False
        self.deaf_until = time.monotonic() + self.number("start") + self.number("paint_first")
        words = sys.argv[1:]
        self.resumes = "--resume" in words
        self.session = words[words.index("--resume" if self.resumes else "--session-id") + 1]
        home = os.environ.get("CLAUDE_CONFIG_DIR") or os.path.expanduser("~/.claude")
        self.path = os.path.join(home, "projects", "work", self.session + ".jsonl")
        self.turns = self.read_history() if os.path.exists(self.path) else 0
        self.log("started", words)
        if self.resumes != os.path.exists(self.path):
            words = "No conversation found with session ID: %s" if self.resumes else "Session ID %s is already in use."
            sys.exit(words % self.session)
        if "--" in words:
            self.after(self.number("start"), lambda: self.submit(words[words.index("--") + 1]))

    def parse_script(self, text):
        pairs = [part.strip().partition("=") for part in text.split(";") if part.strip()]
        return {name: value or "1" for name, _, value in pairs}

    def option(self, name, otherwise=""):
        return self.turn_script.get(name, self.script.get(name, otherwise))

    def number(self, name):
        return float(self.option(name, "0"))

    def count_down(self, name):
        left = int(self.script.get(name, "0"))
        self.script[name] = str(max(0, left - 1))
        return left > 0

    def log(self, kind, value):
        with open(os.environ["TALKER_LOG"], "a", encoding="utf-8") as file:
            file.write(json.dumps({"at": time.time(), kind: value}) + "\n")

    def record(self, kind, **facts):
        if self.option("no_record"):
            return
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"isSidechain": False, "type": kind, **facts, "sessionId": self.session}) + "\n")

    def record_user(self, content):
        kind = "task-notification" if str(content).startswith("<task-notification>") else "human"
        self.record("user", message={"role": "user", "content": content}, origin={"kind": kind})

    def record_assistant(self, text, **facts):
        model = "<synthetic>" if "error" in facts else "claude-sonnet-5-5"
        self.record("assistant", message={"role": "assistant", "model": model, "usage": {"output_tokens": 5},
                                          "content": [{"type": "text", "text": text}]}, **facts)

    def read_history(self):
        turns = 0
        for line in map(json.loads, open(self.path, encoding="utf-8")):
            content = line.get("message", {}).get("content")
            if line["type"] == "user" and isinstance(content, str):
                turns += 1
                self.history += ["❯ " + content[:150].split("\n")[0], ""]
            elif line["type"] == "assistant":
                self.history += ["● " + content[0]["text"][:150].split("\n")[0], ""]
        return turns

    def paint(self):
        size = os.get_terminal_size(0)
        rows, below, column = self.bottom(size.columns)
        rows = (BANNER + self.history + rows)[-size.lines:]
        sys.stdout.write("\x1b[H" + "\x1b[K\r\n".join(rows) + "\x1b[J\x1b[%d;%dH" % (len(rows) - below, column))
        sys.stdout.flush()

    def bottom(self, columns):
        """What is below the history, how far from its end the cursor is, and in which column."""
        edge = "─" * columns
        if self.dialog:
            question, options, chosen, _ = self.dialog
            rows = ["  %s %d. %s" % ("❯" if number == chosen else " ", number + 1, option)
                    for number, option in enumerate(options)]
            return [edge, "  " + question, "", *rows, "", "  Enter to confirm · Esc to cancel"], 0, 1
        spinner = []
        if self.turn:
            waited = time.monotonic() - self.turn["began"]
            spinner = ["%s Thundering… (%ds · ↓ 43 tokens)" % (SPINNERS[int(waited * 10) % 6], waited), ""]
        width = columns - 4 if self.text.isascii() else columns // 2 - 4
        typed = [line[at:at + width] for line in self.text.replace("\t", "    ").split("\n")
                 for at in range(0, max(1, len(line)), width)]
        shown = ["❯\xa0" + (self.ghost if not self.text else typed[0])] + ["  " + row for row in typed[1:]]
        upper = ("─── ↑ %d more " % (len(shown) - 20)).ljust(columns, "─") if len(shown) > 20 else edge
        foot = self.footer or "  ⏵⏵ bypass permissions on (shift+tab to cycle)"
        if time.monotonic() < self.hint_until:
            foot = "  paste again to expand"
        feet = (foot + " · esc to interrupt" * bool(self.turn)).split("\n")
        return spinner + [upper] + shown[-20:] + [edge] + feet, 1 + len(feet), 3 + len(typed[-1])

    def after(self, seconds, deed):
        self.timers.append((time.monotonic() + seconds, deed))

    def feed(self, data):
        self.pending += data
        while self.pending:
            if time.monotonic() < self.deaf_until:
                return
            if self.pending.startswith(BEGIN):
                end = self.pending.find(END)
                if end < 0:
                    return
                text, self.pending = self.pending[len(BEGIN):end], self.pending[end + len(END):]
                self.take_paste(text.decode("utf-8", "replace"))
                continue
            if BEGIN.startswith(self.pending) and self.pending != b"\x1b":
                return
            key = KEY.match(self.pending).group(0)
            self.pending = self.pending[len(key):]
            late_s = self.number("slow_dialog" if self.dialog else "slow_enter") if key in SLOW_KEYS else 0.0
            self.take_later(late_s, lambda key=key: self.take_key(key))

    def take_paste(self, text):
        self.log("pasted", text)
        if self.dialog:
            self.log("stray", text)
        elif not self.count_down("lose_paste"):
            self.take_later(float(self.script.pop("slow_paste", "0")), lambda: self.insert(text))

    def take_later(self, seconds, deed):
        """Does it, at once or later; what comes in meanwhile has to wait."""
        if not seconds:
            return deed()
        self.deaf_until = time.monotonic() + seconds
        self.after(seconds, lambda: (deed(), self.feed(b"")))

    def insert(self, text):
        if text.count("\n") >= 3 or len(text) > 800:
            self.pastes += 1
            more = " +%d lines" % text.count("\n") if "\n" in text else ""
            chip = "[Pasted text #%d%s]" % (self.pastes, more)
            self.chips[chip], text, self.hint_until = text, chip, time.monotonic() + 0.3
            self.after(0.3, lambda: None)
        self.text += text
        if self.option("ask_on_paste"):
            self.ask(self.script.pop("ask_on_paste"), lambda: None)

    def take_key(self, key):
        if self.dialog:
            self.take_dialog_key(key)
        elif key == b"\r":
            self.take_enter()
        elif key in (b"\x1b", b"\x03") and self.turn:
            self.log("interrupted", self.turns)
            self.after(self.number("slow_interrupt"), lambda: self.turn and self.interrupt())
        elif key == b"\x03" and self.text and not self.is_leaving:
            self.is_leaving = "slow_clear" in self.script
            self.after(self.number("slow_clear"), self.clear)
        elif key == b"\x03":
            if self.is_leaving:
                self.leave(0)
            self.is_leaving, self.footer = True, "  Press Ctrl-C again to exit"
        elif key == b"\n" or key[0] >= 32 and key != b"\x7f":
            self.text += key.decode("utf-8", "replace") if not key.startswith(b"\x1b") else ""

    def clear(self):
        self.text, self.is_leaving = "", False

    def ask(self, words, then):
        question, *options = words.split("|")
        self.dialog = (question if options else "Which colour?", options or ["Red", "Blue", "Blue sky"], 0, then)

    def take_dialog_key(self, key):
        question, options, chosen, then = self.dialog
        if key in (b"\x1b[A", b"\x1b[B"):
            chosen = (chosen + (1 if key == b"\x1b[B" else -1)) % len(options)
            self.dialog = (question, options, chosen, then)
        elif key in (b"\r", b"\x1b") or key.isdigit() and 0 < int(key) <= len(options):
            label = None if key == b"\x1b" else options[int(key) - 1 if key.isdigit() else chosen]
            self.log("dialog", label)
            self.dialog = None
            then()
        else:
            self.log("stray", key.decode("utf-8", "replace"))

    def take_enter(self):
        text = re.sub(r"\[Pasted text #\d+(?: \+\d+ lines)?\]", lambda at: self.chips.get(at[0], at[0]), self.text)
        if self.count_down("drop_enter") or not text.strip():
            return
        if self.count_down("newline_enter"):
            self.text += "\n"
        elif text.endswith("\\"):
            self.text = self.text[:-1] + "\n"
        elif re.match(r"/[a-z]|!", self.text):
            self.log("command", text)
            self.text = ""
        elif self.turn:
            self.queue.append(text)
            self.text, self.ghost = "", "Press up to edit queued messages"
        else:
            self.submit(text)

    def submit(self, text):
        self.log("prompt", text)
        found = re.search(r"\[\[(.*?)\]\]", text)
        self.turn_script, typed, self.text = self.parse_script(found[1]) if found else {}, self.text, ""
        self.ghost = self.footer = ""
        if self.option("exit_on_submit"):
            self.leave(int(self.option("exit_on_submit")))
        question = self.turn_script.get("ask_on_submit") or self.script.pop("ask_on_submit", "")
        self.ask(question, lambda: self.begin(text, typed)) if question else self.begin(text, typed)

    def begin(self, text, typed):
        self.turns += 1
        self.turn = turn = {"began": time.monotonic(), "typed": typed, "at": len(self.history), "text": text}
        self.record_user(text.strip())
        self.history += ["❯ " + text.strip()[:150].split("\n")[0], ""]
        self.after(self.number("busy"), lambda: self.turn is turn and self.finish())
        words, _, seconds = self.script.pop("person", "").rpartition("@")
        if words:
            self.after(float(seconds), lambda: self.begin_other(words))

    def begin_other(self, words):
        self.turn_script, self.footer, self.turn = {}, "", None
        self.record_user(words)
        self.history += ["❯ " + words, ""]
        self.answer("the answer to " + words)

    def answer(self, text):
        self.record_assistant(text)
        self.record("system", subtype="turn_duration", durationMs=1)
        self.history += ["● " + text[:150].split("\n")[0], "", "✻ Brewed for 1s · done 5:54 AM", ""]

    def finish(self):
        kind = next((kind for kind in ENDINGS if self.option(kind)), "")
        if kind:
            error, words, row, self.ghost = ENDINGS[kind]
            ends = self.option("limit") if self.option("limit") not in ("", "1") else "resets 8:10am (UTC)"
            words, row = (text.replace("resets 8:10am (UTC)", ends) for text in (words, row))
            if self.option("said"):
                self.record_assistant(self.option("said"))
                self.history += ["● " + self.option("said"), ""]
            self.record_assistant(words, error=error, isApiErrorMessage=True)
            self.history += [row, ""]
            if kind == "limit":
                self.footer = "  ⚠ Usage limit reached · limit " + ends.split(" (")[0] + "\n  ⏵⏵ bypass permissions on (shift+tab to cycle)"
        else:
            self.answer(self.option("say") or "answer %d to %s" % (self.turns, self.turn["text"].strip()[:30]))
            if self.option("background"):
                self.footer = "  ⏵⏵ bypass permissions on · 1 shell · ↓ to manage"
                self.after(self.number("background"), self.end_background)
        self.turn = None
        self.log("done", self.turns)
        if self.queue:
            self.submit(self.queue.pop(0))

    def end_background(self):
        self.footer = ""
        if self.option("wake"):
            self.begin_other("<task-notification>the shell has ended</task-notification>")

    def interrupt(self):
        turn, self.turn = self.turn, None
        if self.option("put_back"):
            self.history, self.text = self.history[:turn["at"]], turn["typed"]
            return
        self.record_assistant("a part of the answer")
        self.record_user([{"type": "text", "text": "[Request interrupted by user]"}])
        self.history += ["● a part of the answer", "  ⎿ \xa0Interrupted · What should Claude do instead?", ""]

    def leave(self, status):
        termios.tcsetattr(0, termios.TCSANOW, self.saved)
        sys.exit(status)

    def play(self):
        self.saved = termios.tcgetattr(0)
        tty.setraw(0)
        if self.option("exit_on_start"):
            self.leave(int(self.option("exit_on_start")))
        end = time.monotonic() + self.number("start")
        while time.monotonic() < end:
            time.sleep(0.01)
        text, _, seconds = self.option("held").rpartition("@")
        if text:
            self.text = text
            self.after(float(seconds), lambda: setattr(self, "text", ""))
        if self.option("ask_on_start"):
            self.ask(self.option("ask_on_start"), lambda: None)
        sys.stdout.write("\x1b[?2004h\x1b]2;✳ Claude Code\x07")
        self.paint()
        while time.monotonic() < self.deaf_until:    # what is typed by now is lost
            time.sleep(0.01)
        termios.tcflush(0, termios.TCIFLUSH)
        while True:
            self.paint()
            soon_s = min([at - time.monotonic() for at, _ in self.timers] + [0.1 if self.turn else 5.0])
            if select.select([0], [], [], max(0.0, soon_s))[0]:
                self.feed(os.read(0, 1 << 16))
            due = [timer for timer in self.timers if timer[0] <= time.monotonic()]
            self.timers = [timer for timer in self.timers if timer not in due]
            for _, deed in sorted(due, key=lambda timer: timer[0]):
                deed()


if __name__ == "__main__":
    Talker().play()
