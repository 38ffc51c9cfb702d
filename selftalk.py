#!/usr/bin/env python3
# selftalk: one coding agent hands work to another and gets the answer back.
# SPDX-License-Identifier: MIT
"""Hand a prompt to another agent CLI in tmux, wait, print its answer, end it cleanly.

    python3 selftalk.py run -p codex "fix the failing test in tests/test_io.py"
    python3 selftalk.py run -p claude < plan.md
    python3 selftalk.py demo

One file, standard library only, meant to be copied next to a SKILL.md. Flags, JSON keys and exit codes are
promises; the Python names in here are not. stdout is the answer, stderr is talk.

The file reads top to bottom; each room uses only the rooms above it:

     1. Words         what everything is called; the one family of expected trouble
     2. Agents        one row of facts for each agent CLI
     3. Yaml          text -> values, for the config
     4. Config        values -> profiles
     5. Screen        what a pane shows -> what the agent is doing
     6. Formats       what an agent writes down about itself -> what it said
     7. System        processes, files, clocks: the only room that starts, signals, sleeps and locks
     8. Tmux          one tmux server; the control client
     9. Runs          the folder of a run
    10. Workspaces    where an agent works
    11. Panes         an agent in tmux: start it, look at it, answer its dialogs, end it
    12. Pipes         an agent without a terminal
    13. Quota         what is left of an account
    14. Conduct       one run, from request to outcome
    15. Skill         the text a host agent reads
    16. Report        records -> text and JSON
    17. Command line  verbs, parser, main
"""
import sys

if sys.version_info < (3, 9):  # all of this file parses on Python 3.6, so that these two lines can be read
    sys.stderr.write("selftalk: python %d.%d: too old, selftalk needs 3.9\n  try: python3.11 %s\n"
                     % (sys.version_info[0], sys.version_info[1], sys.argv[0]))
    sys.exit(3)

if __name__ == "__main__":
    import signal
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:   # not so behind `&` in a script
        signal.signal(signal.SIGINT, signal.SIG_DFL)                    # Ctrl-C during imports: no traceback

import binascii
import contextlib
import errno
import fcntl
import functools
import json
import os
import re
import select
import shlex
import signal
import stat
import time
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Optional, Union

VERSION = "0.1.0"

# =============================================================================
# 1. Words
# =============================================================================
# The nouns of this file, each with an example. Code, JSON keys, flags, docs and tests use only these.
#
#   agent     a CLI that can be driven, as a row of facts          codex
#   profile   how a user wants an agent run, from the config       codex-spark: codex --model gpt-6.1-spark
#   run       one worker started once; has an id and a folder      run 7, ~/.local/state/selftalk/runs/7
#   worker    the agent of a run, with everything it started       codex and the shell it opened
#   turn      one prompt and its outcome                           turns/1.json
#   place     where a worker runs                                  session, pane
#   screen    the text a pane shows, and its title                 the 50 lines of capture-pane
#   verdict   what a screen says, and by which rule                busy, by "busy-footer"
#   outcome   how a turn ended                                     answered
#   source    where an answer was read                             done.md, transcript, screen
#
# Records are NamedTuples rather than frozen dataclasses: thirty of those cost 30 ms at every start, thirty of
# these 6 ms, and a host may call us many times a minute.

STATES = ("starting", "ready", "busy", "asks", "limited", "failed", "login", "unknown")

# outcome -> (exit code, what it means). The README's table is checked against this one.
OUTCOMES = {
    "answered": (0,  "the answer is on stdout"),
    "failed":   (1,  "the agent gave up with an error"),
    "died":     (1,  "the worker ended before it published anything"),
    "stopped":  (1,  "the run was stopped"),
    "login":    (4,  "the agent has to be logged in first"),
    "asks":     (5,  "the agent asks something that selftalk must not answer"),
    "limited":  (6,  "a usage limit was reached"),
    "stalled":  (7,  "no progress, or the prompt was not taken; the worker is kept"),
    "late":     (8,  "past --max-time; the worker was ended"),
    "running":  (75, "the wait is over, the worker goes on; wait again"),
}
OPEN_OUTCOMES = ("asks", "stalled")   # the worker is kept, and may still come to an answer


class Failure(Exception):
    """Expected trouble: what happened to what, and what to do now, with its exit `code` and JSON `word`."""

    code, word = 1, "failed"

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


class Unusable(Failure):
    """The request, the config or the state folder cannot be used as it is."""

    code, word = 2, "usage"


class Missing(Failure):
    """A program that is needed is not there, or too old."""

    code, word = 3, "missing"


class Interrupted(Failure):
    """A person pressed Ctrl-C; a worker goes on."""

    code, word = 130, "interrupted"


FAILURES = (Failure, Unusable, Missing, Interrupted)


class Screen(NamedTuple):
    """What a pane shows: its visible lines and its title."""

    text: str
    title: str = ""


class Verdict(NamedTuple):
    """What a screen says an agent is doing, and why."""

    state: str         # one of STATES
    rule: str = ""     # "" when no rule matched
    region: str = ""   # the part of the screen the rule looked at
    text: str = ""     # what matched there


class Said(NamedTuple):
    """What an agent's own record says of its latest turn."""

    state: str = "unknown"                   # busy, ready (the turn is over), failed, limited, login;
                                             # unknown: no turn yet
    text: str = ""                           # the last thing the agent said, whole
    error: str = ""                          # the agent's own words when it failed
    model: str = ""
    tokens: Optional[dict[str, int]] = None  # {"input": …, "output": …}, as far as the agent tells


class Ending(NamedTuple):
    """How a turn ended: the outcome, and the words for the person who asked."""

    outcome: str       # a key of OUTCOMES
    what: str = ""     # what happened, when it is not an answer
    fix: str = ""      # what to do now
    answer: str = ""
    source: str = ""   # done.md, transcript, screen
    said: Said = Said()


Tell = Callable[[str], None]   # takes one line meant for the person who waits


def attempt(*deeds: Callable[[], object]) -> str:
    """Does each of them, and says what went wrong: trouble with one does not keep the next from it."""
    troubles = []
    for deed in deeds:
        try:
            deed()
        except Failure as failure:
            troubles.append(failure.what)
    return "; ".join(troubles)


def as_number(word: str) -> Optional[int]:
    """The number that plain digits write; None for all else (str.isdigit takes "²" for a digit)."""
    return int(word) if re.fullmatch("[0-9]{1,9}", word) else None


def own_command(words: str) -> str:
    """A command line for this very copy of selftalk, to be pasted into any shell."""
    return "python3 %s %s" % (shlex.quote(os.path.abspath(__file__)), words)


# =============================================================================
# 2. Agents
# =============================================================================
# One row of facts for each agent CLI; data only. Every fact was seen on the real program, at version `seen`.
# An agent's name stands in this room and nowhere else: what other code wants to know is a field of the row.


class Rule(NamedTuple):
    """One row of an agent's screen rules: all of `needs`, none of `unless`, in one region, give `state`."""

    name: str
    state: str                     # one of STATES
    region: str                    # see cut_region
    needs: tuple[str, ...]         # regexes; ^ and $ are those of a line
    unless: tuple[str, ...] = ()   # regexes that veto the rule, in the same region
    seen: str = ""                 # the agent's version it was observed on


class Dialog(NamedTuple):
    """A question of an agent that may be answered without asking anyone, and the answer."""

    name: str
    needs: tuple[str, ...]             # regexes that must all match at the bottom of the screen
    choose: str                        # regex of the option's label; "" keeps what is preselected
    keys: tuple[str, ...] = ("Enter",) # pressed once the option is selected
    seen: str = ""


class Start(NamedTuple):
    """How an agent is started."""

    unattended: tuple[str, ...] = ()                     # args of the built-in profile: no permission asked
    prompt: tuple[str, ...] = ("--", "{prompt}")         # how a prompt is given as an argument
    commands: str = ""                                   # a prompt with one of these first is a command …
    lead: str = " "                                      # … unless this stands before it; "": it goes by file
    added: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (sign, args): given unless an arg holds the sign
    env: tuple[tuple[str, str], ...] = ()                # set for the worker
    root_env: tuple[tuple[str, str], ...] = ()           # set for the worker when it runs as root
    markers: tuple[str, ...] = ()                        # set for its children; no nested agent may see them


class Pane(NamedTuple):
    """How an agent looks in a terminal."""

    marks: dict[str, str] = {}          # names for lines that regions start at
    rules: tuple[Rule, ...] = ()        # tried in order; none matches: unknown
    dialogs: tuple[Dialog, ...] = ()
    quit: tuple[str, ...] = ()          # keys that end the agent when it is ready; signals follow
    silence_s: float = 0.0              # without rules: this long without any change is the end of a turn


class Record(NamedTuple):
    """Where an agent writes down what it says."""

    format: str                # see FORMATS
    home: tuple[str, str]      # the variable that moves the agent's folder, and where it is otherwise
    files: str                 # glob below that folder
    query: str = ""            # for a database: rows of the session that holds :needle, begun after :since_ms


class Agent(NamedTuple):
    """All that is known of one agent CLI."""

    name: str
    command: str
    start: Start = Start()
    pane: Pane = Pane()
    record: Optional[Record] = None
    install: str = ""          # how to get it, for the person whose machine lacks it


# --- claude
# An answer is "● text" and then rows indented by 2; the footer is what is below the last rule of the screen.
# 2.1.329 ends a turn that has an answer with "✻ Brewed for 3s · done 5:54 AM", and one that failed with
# nothing: that row tells a quoted error from a real one. 2.1.197 writes "✻ Brewed for 3s" after both.
# The CLI writes its own "⎿ " rows, and the live input, with a no-break space; a model types a plain one.

CLAUDE_MARKS = {
    "rule": r"^─{20,}$",        # the last one: the input's lower edge, or a dialog's upper one
    "box":  r"^❯(?:\xa0|$)",    # the live input; history and options have a plain space
    "turn": r"^❯ ",             # the last prompt in the history
    "head": r"^(?:❯ |● )",      # the last prompt, or the last block of the answer: what a ⎿ row hangs on
}
_CLAUDE_OWNER = r"\A(?:❯ |● \w+\()"             # a prompt or a tool call, never a text
_CLAUDE_FOOT = (                                # the input is closed, and no menu is open below it
    r"^─{20,}\n(?:  [^\n]*\n)*?"                # its lower edge, perhaps a status line
    r"  (?:(?:⏵⏵|⏸) [^\n]* on\b|\? for shortcuts)"
)
_CLAUDE_BOX = (
    r"^─{20,}\n❯(?:\xa0[^\n]*)?\n"              # the input's upper edge and first row
    r"(?:  [^\n]*\n)*" + _CLAUDE_FOOT
)
CLAUDE_RULES = (
    # dialogs: two controls, and nothing below them
    Rule("limited-dialog", "limited", "bottom:9", seen="2.1.329", needs=(
        r"^ *(?:❯ )?\d\. .*wait for limit to reset",
        r"^  What do you want to do\?$",
        r"^  Enter to confirm · Esc to cancel\Z")),
    Rule("login-method", "login", "bottom:6", seen="2.1.329", needs=(
        r"^ Select login method:$", r"^ ❯ \d\. \S")),
    Rule("asks-keys", "asks", "bottom:1", seen="2.1.329", needs=(
        r"\bEnter to \w+(?: [\w ]+)? · ", r" · Esc to \w+\Z")),
    Rule("asks-permission", "asks", "bottom:12", seen="2.1.329", needs=(
        r"^ Esc to cancel · Tab to amend[^\n]*\Z", r"^ ❯ \d\. \S")),
    Rule("asks-options", "asks", "bottom:9", seen="2.1.329", needs=(   # leaving plan mode: no line of keys
        r"^  ❯ \d\. \S", r"^    \d\. \S[^\n]*\Z")),
    Rule("asks-theme", "asks", "bottom:16", seen="2.1.329", needs=(
        r"^ Choose the text style that looks best", r"^  Syntax theme: [^\n]*\Z")),
    Rule("asks-security", "asks", "bottom:8", seen="2.1.329", needs=(
        r"^ Security notes:$", r"^ Press Enter to continue…?\Z")),
    Rule("asks-panel", "asks", "bottom:30", seen="2.1.329", needs=(    # /usage: a page that Esc closes
        r"^  (?:Settings  Status  |Current (?:session|week))",
        r"^  (?:[^\n]* · )?Esc to (?:cancel|close)\Z")),

    # busy: footer, spinner and title are signs that can go one by one
    Rule("busy-footer", "busy", "below:rule", seen="2.1.329", needs=(
        r"^  (?:.* · )?esc to interrupt\b",)),
    Rule("busy-retry", "busy", "below:turn", seen="2.1.329", needs=(
        r"^[·✢✳✶✻✽*] .* · [Rr]etrying in \d+\w* · "
        r"attempt \d+/\d+$",)),
    Rule("busy-spinner", "busy", "below:turn", seen="2.1.329", needs=(
        r"^[·✢✳✶✻✽*] \w[^\n]*…(?: \(\d|$)",)),
    Rule("busy-title", "busy", "title", seen="2.1.197", needs=(        # 2.1.329 never changes its title
        r"^[⠁-⣿◐◑] ",)),

    # the last turn came to nothing: only the CLI's own rows between the prompt and the input
    Rule("limited-waiting", "limited", "below:rule", seen="2.1.329", needs=(
        r"^  ⚠ Usage limit reached\b.*", r"^  (?:⏵⏵|⏸|\?) ")),
    Rule("limited-cancelled", "limited", "at:head", seen="2.1.329", needs=(
        r"\A● Automatic continue cancelled · /rate-limit", _CLAUDE_BOX), unless=(r"^✻ ",)),
    Rule("limited-row", "limited", "at:head", seen="2.1.329", needs=(
        r"^  ⎿ \xa0(?:You've hit your (?:[\w-]+ )*limit\b"             # "your limit", "your 5-hour limit", …
        r"|Credit balance too low · ).*",
        _CLAUDE_OWNER, _CLAUDE_BOX), unless=(r"^  ⎿ \xa0Interrupted",)),
    Rule("login-footer", "login", "below:rule", seen="2.1.329", needs=(
        r"\bNot logged in · [Rr]un /login\b", r"^  (?:⏵⏵|⏸|\?) ")),
    Rule("login-row", "login", "at:head", seen="2.1.329", needs=(
        r"^  ⎿ \xa0(?:Invalid API key|OAuth token revoked"
        r"|OAuth token has expired|Not logged in) · .*",
        _CLAUDE_OWNER, _CLAUDE_BOX), unless=(r"^  ⎿ \xa0Interrupted",)),
    Rule("login-error", "login", "at:head", seen="2.1.329", needs=(
        r"\A● Please run /login · API Error: 40\d .*", _CLAUDE_BOX), unless=(r"^✻ .* · done ", r"\n\n  \S")),
    Rule("failed-row", "failed", "at:head", seen="2.1.329", needs=(
        r"^  ⎿ \xa0(?:Context limit reached"                           # 2.1.197
        r"|Prompt is too long) · .*",
        _CLAUDE_OWNER, _CLAUDE_BOX), unless=(r"^  ⎿ \xa0Interrupted",)),
    Rule("failed-error", "failed", "at:head", seen="2.1.329", needs=(
        r"\A● API Error: .*", _CLAUDE_BOX), unless=(r"^✻ ",)),
    Rule("failed-error-old", "failed", "at:head", seen="2.1.197", needs=(
        r"\A● API Error: (?:5\d\d .*This is a server-side issue"       # the sentence must be the CLI's …
        r"|Request rejected \(429\) · "
        r"|Unable to connect to API)",
        _CLAUDE_BOX), unless=(r"^✻ .* · done ", r"\n\n  \S")),         # … and stand alone

    Rule("busy-background", "busy", "below:rule", seen="2.1.329", needs=(   # its shells will wake it again
        r"^  (?:⏵⏵|⏸) .* on · \d+ \w+.* · ↓ to manage",)),
    Rule("ready", "ready", "at:box", seen="2.1.329", needs=(
        _CLAUDE_FOOT,), unless=(r"^  .* · esc to interrupt\b", r"^  ⚠ Usage limit")),
)

# --- codex
# An answer is "• text" and then rows indented by 2; errors are "■ text" in column 0. While the final answer
# streams only the title tells: its spinner rule is no spare, it must stay above `ready`.

CODEX_MARKS = {
    "composer": r"^› ",         # the last one is the live input: a prompt in the history looks the same
    "error":    r"^■ ",
    "working":  r"^[•◦] .*\((?:\d+\w+ )*\d+s • esc to interrupt\)",
}
_CODEX_FOOT = (                 # the composer, and below it the line that is missing while codex starts
    r"^› (?:[^\n]*\n)*?"
    r"  (?:\S.* · [~/]"                                 # model · folder
    r"|Ready · [0-9a-f]{8}-)"                           # -c tui.status_line=["run-state","thread-id",…]
)
_CODEX_LATER = (                # what came after an error
    r"^[•◦] ",                                          # an answer
    r"^› [^\n]*\n(?:[^\n]*\n)*?› ",                     # a prompt
)
CODEX_RULES = (
    Rule("login-screen", "login", "bottom:16", seen="0.169.0", needs=(
        r"^  Welcome to Codex, ", r"^> \d\. \S", r"^  Press enter to continue$")),
    Rule("asks-keys", "asks", "bottom:12", seen="0.169.0", needs=(
        r"^  (?:Press )?enter (?:to )?(?:confirm|continue|submit)\b"
        r"[^\n]*\besc (?:to )?(?:cancel|back|skip)\b[^\n]*\Z",
        r"^› \d\. \S")),
    Rule("asks-question", "asks", "bottom:1", seen="0.169.0", needs=(
        r"^  .*\benter to submit (?:answer|all)\b", r"\besc to interrupt\Z")),
    Rule("asks-notice", "asks", "bottom:1", seen="0.169.0", needs=(
        r"^  k keep\b", r"\besc dismiss\b")),
    Rule("asks-title", "asks", "title", seen="0.169.0", needs=(
        r"^\[ [!.] \] Action Required\b",)),

    Rule("busy-title", "busy", "title", seen="0.169.0", needs=(
        r"^(?:\w+ )?[⠁-⣿](?: |$)",)),                       # "⠋ demo", or "Working ⠋ 01a1…" by terminal_title
    Rule("busy-row", "busy", "at:working", seen="0.169.0", needs=(      # down to the composer nothing but
        r"\A[^\n]*\n(?:  └[^\n]*\n(?:    [^\n]*\n)*"                    # its own details,
        r"|• (?:Queued|Messages)[^\n]*\n(?:  [^\n]*\n)*|\n)*› ",)),     # the queue, and empty rows
    Rule("busy-status", "busy", "bottom:2", seen="0.169.0", needs=(     # by tui.status_line
        r"^  (?!Ready)[A-Z]\w+ · [0-9a-f]{8}-[0-9a-f-]+",)),

    Rule("limited", "limited", "at:error", seen="0.169.0", needs=(
        r"\A■ (?:You’ve hit your usage limit|Quota exceeded"
        r"|To use Codex with your ChatGPT plan, upgrade)[^\n]*",
        _CODEX_FOOT), unless=_CODEX_LATER),
    Rule("login-error", "login", "at:error", seen="0.169.0", needs=(
        r"\A■ unexpected status 401 Unauthorized\b[^\n]*", _CODEX_FOOT), unless=_CODEX_LATER),
    Rule("failed", "failed", "at:error", seen="0.169.0", needs=(
        r"\A■ (?!Conversation interrupted)[^\n]*", _CODEX_FOOT), unless=_CODEX_LATER),

    Rule("ready", "ready", "at:composer", seen="0.169.0", needs=(
        r"\A› (?!/)", _CODEX_FOOT), unless=(r"esc to interrupt\b", r"\besc close$")),
)

# --- gemini
# An answer is "✦ text" and then rows indented by 2; errors are "✕ [API Error: …]" in column 0. The title says
# Ready behind the dialogs of the start and Working behind those of a limit, so both are judged before it.

GEMINI_MARKS = {
    "rule":  r"^─{20,}$",       # the upper edge of the input
    "error": r"^✕ \[API Error: ",
}
_GEMINI_LATER = (               # what came after an error
    r"^✦ ",                                             # an answer
    r"^ > [^\n]*\n(?:[^\n]*\n)*?─{20,}$",               # a prompt
)
_GEMINI_FOOT = r"^ [*>] (?:[^\n]*\n)+? \S[^\n]*\n \S"   # the input, and two rows of footer below it
_GEMINI_CHOICE = r"^│ [● ] \d\. (?:Keep trying|Switch to|Stop)"
GEMINI_RULES = (
    Rule("limited-dialog", "limited", "bottom:14", seen="0.61.0", needs=(
        r"^│ Usage limit reached for .*?(?= {2}|│|$)", _GEMINI_CHOICE, r"^╰─{20,}╯\Z")),
    Rule("limited-capacity", "limited", "bottom:12", seen="0.61.0", needs=(
        r"^│ We are currently experiencing high demand", _GEMINI_CHOICE, r"^╰─{20,}╯\Z")),
    Rule("login-method", "login", "bottom:17", seen="0.61.0", needs=(
        r"^│ +How would you like to authenticate", r"^│ +[● ] \d\. ", r"^╰─{20,}╯\Z")),
    Rule("login-key", "login", "bottom:12", seen="0.61.0", needs=(
        r"^│ Enter Gemini API Key", r"^│ \(Press Enter to submit, Esc to cancel", r"^╰─{20,}╯\Z")),
    Rule("asks-options", "asks", "bottom:20", seen="0.61.0", needs=(   # trust, permission, question, models
        r"^ ?│ ● \d\. +\S.*?(?= {2}|│|$)", r"^ ?│   \d\. +\S", r"^ ?╰─{20,}╯\Z")),
    Rule("asks-title", "asks", "title", seen="0.61.0", needs=(
        r"^✋ +Action Required\b",)),

    Rule("busy-row", "busy", "bottom:9", seen="0.61.0", needs=(        # prose is indented by 2, this by 1
        r"^ [⠁-⣿] .*\(esc to cancel, \d+[hms]",)),
    Rule("busy-title", "busy", "title", seen="0.61.0", needs=(
        r"^✦ +Working",)),

    Rule("limited", "limited", "at:error", seen="0.61.0", needs=(
        r"\A✕ [^\n]*(?:exhausted your daily quota"
        r"|exceeded your current quota|capacity on this model)",
        _GEMINI_FOOT), unless=_GEMINI_LATER),
    Rule("login-error", "login", "at:error", seen="0.61.0", needs=(
        r'\A✕ [^\n]*(?:"code":40[13]|UNAUTHENTICATED'
        r"|API key not valid|API_KEY_INVALID)",
        _GEMINI_FOOT), unless=_GEMINI_LATER),
    Rule("failed", "failed", "at:error", seen="0.61.0", needs=(
        r"\A✕ \[API Error: [^\n]*", _GEMINI_FOOT), unless=_GEMINI_LATER),

    Rule("ready", "ready", "below:rule", seen="0.61.0", needs=(
        r"^ [*>] (?:  Type your message or @|(?![ /])\S)",             # empty, or a text that is no command
        _GEMINI_FOOT), unless=(r"\(esc to cancel, ", r"^ \(\d+/\d+\)$")),
)

# --- opencode
# An answer is indented by 5; boxes (prompts, tools, errors) are "┃" in column 2, so an error looks like a
# prompt. What tells is the mark of its turn below it, "▣  Build · Model": the mark gets a duration when the
# turn was done. A sidebar may stand to the right of every row.

OPENCODE_MARKS = {
    "edge": r"^ +╹▀{20,}",      # the lower edge of the input
    "turn": r"^ {5}▣  ",        # the mark of the last turn
}
_OPENCODE_ERROR = (             # a box …
    r"^(?! +▣| *\n)[^\n]*\n"                            # that follows no mark of a turn, as a prompt does
    r"(?: {20}[^\n]*)?\n(?:  ┃[^\n]*\n)*?  ┃  "         # … and in it
)
_OPENCODE_END = (               # … and after it. Each part matches in one way only: a slow regex stalls a run
    r"[^\n]*\n(?:  ┃[^\n]*\n)*(?: {20}[^\n]*)?\n"       # the rest of the box, an empty row
    r" {5}▣  [^·\n]+·[^·\n]*\n"                         # the mark, without a duration
    r"(?:(?! {5}▣  | +╹▀)[^\n]*\n)* +╹▀[^\n]*\n"        # no other mark down to the input
    r"(?! +[⬝■])(?![^\n]*interrupt)"                    # the footer of one that waits
    r"[^\n]*\bctrl\+p commands\b"
)
OPENCODE_RULES = (
    Rule("asks-permission", "asks", "bottom:4", seen="1.18.33", needs=(
        r"^  ┃   Allow once   Allow always   Reject\b", r"\benter confirm\b")),
    Rule("asks-question", "asks", "bottom:3", seen="1.18.33", needs=(
        r"^  ┃  .*\benter (?:submit|confirm|toggle)\b", r"^  ┃  .*\besc dismiss\b")),

    Rule("busy-retry", "busy", "below:edge", seen="1.18.33", needs=(   # in 80 columns the bar paints over it
        r"\[retrying in .*|\bretrying in \d+\w* attempt #",)),
    Rule("busy-words", "busy", "below:edge", seen="1.18.33", needs=(
        r"\besc (?:again to )?interrupt\b",)),
    Rule("busy-bar", "busy", "below:edge", seen="1.18.33", needs=(
        r"^ +[⬝■]{4,}",)),

    Rule("limited", "limited", "screen", seen="1.18.33", needs=(
        _OPENCODE_ERROR + r"(?i:[^\n]*(?:insufficient credits|\bquota\b"
        r"|usage limit|credit balance))" + _OPENCODE_END,)),
    Rule("login-error", "login", "screen", seen="1.18.33", needs=(
        _OPENCODE_ERROR + r"(?i:[^\n]*(?:api[ _-]key|unauthorized"
        r"|authentication))" + _OPENCODE_END,)),
    Rule("failed", "failed", "screen", seen="1.18.33", needs=(
        _OPENCODE_ERROR + r"\S" + _OPENCODE_END,)),

    Rule("ready-home", "ready", "bottom:12", seen="1.18.33", needs=(
        r"^ +┃  Ask anything", r"^ +╹▀{20,}", r"^ +tab agents  ctrl\+p commands$", r" \d+\.\d+\.\d+\Z"),
        unless=(r"\besc (?:again to )?interrupt\b",)),
    Rule("ready", "ready", "at:turn", seen="1.18.33", needs=(
        r"\A {5}▣  ", r"^ +╹▀{20,}", r"\bctrl\+p commands\b"), unless=(
        r"\besc (?:again to )?interrupt\b", r"\[retrying in ",
        r"^  ┃[^\n]*\n(?: {20}[^\n]*)?\n  ┃",                          # a prompt that was not yet taken
        r"^  ┃ /\w")),                                                 # a menu
)

_CONFIRM = r"^ {1,2}Enter to confirm · Esc to cancel\Z"
CLAUDE_DIALOGS = (
    Dialog("theme", choose=r"", seen="2.1.329", needs=(
        r"^ Choose the text style that looks best", r"^  Syntax theme: [^\n]*\Z")),
    Dialog("api-key", choose=r"^Yes$", seen="2.1.329", needs=(
        r"^  Detected a custom API key in your", r"^  Do you want to use this API key\?$", _CONFIRM)),
    Dialog("security", choose=r"", seen="2.1.329", needs=(
        r"^ Security notes:$", r"^ Press Enter to continue…?\Z")),
    Dialog("trust", choose=r"^Yes, I trust this folder$", seen="2.1.329", needs=(
        r"^ Accessing workspace:$", r"^ Quick safety check: Is this a project", _CONFIRM)),
    Dialog("bypass", choose=r"^Yes, I accept$", seen="2.1.329", needs=(
        r"^  WARNING: Claude Code running in Bypass Permissions mode$", _CONFIRM)),
)
CODEX_DIALOGS = (
    Dialog("trust", choose=r"^Trust and continue$", seen="0.169.0", needs=(
        r"^  Folder access$", r"^  Trust this folder\? Codex can", r"^  enter continue · esc back\Z")),
    Dialog("update", choose=r"^Skip$", seen="0.169.0", needs=(
        r"^  Update available · \d", r"^  enter continue · esc skip\Z")),
    Dialog("hooks", choose=r"^Continue without trusting\b", seen="0.169.0", needs=(
        r"^  Hooks need review$", r"^  enter confirm · esc skip\Z")),
)
GEMINI_DIALOGS = (
    Dialog("trust", choose=r"^Trust folder\b", seen="0.61.0", needs=(
        r"^ │ Do you trust the files in this folder\?", r"^ │ [● ] \d\. Don't trust\b", r"^ ╰─{20,}╯\Z")),
)

DEMO_RULES = (
    Rule("question", "asks",  "bottom:6", (r"^❯ ", r"^Enter to confirm$")),
    Rule("footer",   "busy",  "bottom:2", (r"esc to interrupt\)$",)),
    Rule("box",      "ready", "bottom:1", (r"^>$",), unless=(r"esc to interrupt",)),
)
DEMO_DIALOGS = (
    Dialog("question", (r"may I work in this folder\?$", r"^Enter to confirm$"), choose=r"^Yes, work here$"),
)

OPENCODE_QUERY = """
    SELECT json_object('data', json(message.data), 'texts', json((
        SELECT json_group_array(json_extract(part.data, '$.text')) FROM part
        WHERE part.message_id = message.id AND json_extract(part.data, '$.type') = 'text')))
    FROM message WHERE message.session_id = (
        SELECT session.id FROM session JOIN part ON part.session_id = session.id
        WHERE session.time_created >= :since_ms AND instr(part.data, :needle) LIMIT 1)
    ORDER BY message.time_created"""   # 1.18.33; a session that called us is older than :since_ms

# The worker of `selftalk demo`: see room 17.
DEMO = Agent("demo", "", pane=Pane({}, DEMO_RULES, DEMO_DIALOGS))

# An agent of which nothing is known: it is over when it publishes, exits, or falls silent.
GENERIC = Agent("generic", "", pane=Pane(silence_s=60.0))

AGENT_ROWS = (
    GENERIC,

    Agent("claude", "claude", install="npm install -g @anthropic-ai/claude-code",
          start=Start(
              unattended=("--dangerously-skip-permissions",),
              commands="/", lead="",                  # 2.1.329: "/init …" is a command, and so is " /init …"
              # 2.1.197, 2.1.329: else the bypass warning comes, with "No, exit" preselected. Written nowhere.
              added=((r"--settings\b", ("--settings", '{"skipDangerousModePermissionPrompt":true}')),),
              env=(("CLAUDE_CODE_SANDBOXED", "1"),    # no trust dialog, and nothing is remembered
                   ("DISABLE_AUTOUPDATER", "1")),
              root_env=(("IS_SANDBOX", "1"),),        # or exit 1: "cannot be used with root/sudo privileges"
              # 2.1.329 with CLAUDE_CODE_CHILD_SESSION inherited writes no transcript at all.
              markers=("CLAUDECODE", "CLAUDE_CODE_CHILD_SESSION", "CLAUDE_CODE_ENTRYPOINT",
                       "CLAUDE_CODE_SESSION_ID", "CLAUDE_CODE_EXECPATH", "CLAUDE_CODE_SSE_PORT", "CLAUDE_PID",
                       "CLAUDE_EFFORT", "CLAUDE_CODE_MESSAGING_SOCKET", "CLAUDE_CODE_MESSAGING_TOKEN",
                       "CLAUDE_CODE_SESSION_ATTENDED", "CLAUDE_CODE_CHILD_NOTES_DIR", "AI_AGENT")),
          pane=Pane(CLAUDE_MARKS, CLAUDE_RULES, CLAUDE_DIALOGS, quit=("C-c", "C-c")),
          record=Record("claude-transcript", ("CLAUDE_CONFIG_DIR", "~/.claude"), "projects/*/*.jsonl")),

    Agent("codex", "codex", install="npm install -g @openai/codex",
          start=Start(
              unattended=("--dangerously-bypass-approvals-and-sandbox",),
              commands="!/",                          # 0.169.0: "!x" is a shell command, also as an argument
              # 0.169.0: any -c keeps the agent out of the shared daemon, in which a turn outlives its pane.
              # The update prompt has "Update now" preselected. Trust given so is written nowhere.
              added=(("check_for_update_on_startup", ("-c", "check_for_update_on_startup=false")),
                     (r"projects[.=]", ("-c", 'projects={{workspace_json}={trust_level="trusted"}}'))),
              markers=("CODEX_CI", "CODEX_THREAD_ID", "CODEX_SESSION_ID", "CODEX_TOOL_CALL_ID",
                       "CODEX_VERSION", "CODEX_PERMISSION_PROFILE", "CODEX_SANDBOX",
                       "CODEX_SANDBOX_NETWORK_DISABLED", "CODEX_MANAGED_BY_NPM",
                       "CODEX_MANAGED_PACKAGE_ROOT")),
          pane=Pane(CODEX_MARKS, CODEX_RULES, CODEX_DIALOGS, quit=("C-c",)),
          record=Record("codex-rollout", ("CODEX_HOME", "~/.codex"), "sessions/*/*/*/rollout-*.jsonl")),

    Agent("gemini", "gemini", install="npm install -g @google/gemini-cli",
          start=Start(
              unattended=("--skip-trust", "--yolo"),
              prompt=("-i", "{prompt}"),
              commands="/!-", lead="",
              markers=("GEMINI_CLI", "GEMINI_CLI_NO_RELAUNCH", "GEMINI_CLI_TRUST_WORKSPACE")),
          pane=Pane(GEMINI_MARKS, GEMINI_RULES, GEMINI_DIALOGS, quit=("C-c", "C-c"))),

    Agent("opencode", "opencode", install="npm install -g opencode-ai",
          start=Start(
              unattended=("--auto",),
              prompt=("--prompt", "{prompt}"),
              commands="/-",                          # 1.18.33: "/init …" is a command, and "-x" an option
              env=(("OPENCODE_DISABLE_AUTOUPDATE", "1"),),
              markers=("OPENCODE", "OPENCODE_PID", "AGENT")),
          pane=Pane(OPENCODE_MARKS, OPENCODE_RULES, quit=("C-c",)),
          record=Record("opencode-rows", ("XDG_DATA_HOME", "~/.local/share"), "opencode/opencode.db",
                        OPENCODE_QUERY)),

    Agent("cursor", "cursor-agent", pane=Pane(silence_s=60.0)),

    DEMO,
)
AGENTS = {row.name: row for row in AGENT_ROWS}


# =============================================================================
# 3. Yaml
# =============================================================================
# Pure: text in, values with places out. The law: what is accepted means exactly what YAML 1.2 says (core
# schema); all else is refused with line, column and what to write instead. A `parse_…` takes the lines and
# the spot where its part begins, and returns the spot after it and its node.

MAX_DEPTH = 100          # lists and maps within one another: far from the 1,000 calls that Python allows
MAX_KEY = 1024           # characters of a key, by YAML's own rule
MAX_DIGITS = 4300        # characters of a number: the most that every Python turns into text and back
TOO_LARGE = 10 ** MAX_DIGITS
BRACKETS = {"[": "]", "{": "}"}

CONSTANTS = {word: value for words, value in (
    (("", "~", "null", "Null", "NULL"),                    None),
    (("true", "True", "TRUE"),                             True),
    (("false", "False", "FALSE"),                          False),
    ((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"),  float("inf")),
    (("-.inf", "-.Inf", "-.INF"),                          float("-inf")),
    ((".nan", ".NaN", ".NAN"),                             float("nan")),
) for word in words}

ESCAPES = dict(zip('0abt\tnvfre "/\\N_LP', '\0\a\b\t\t\n\v\f\r\x1b "/\\\x85\xa0\u2028\u2029'))

# What a scalar without quotes cannot begin with, beyond what quotes would mend.
RESERVED = {
    "&": ("an anchor is not supported",       "write the value out wherever it is needed"),
    "*": ("an alias is not supported",        "write the value out, or quote text that begins with *"),
    "!": ("a tag is not supported",           "leave it out, or quote text that begins with !"),
    "?": ("a complex key is not supported",   "write `key: value` on one line"),
    "-": ("a list cannot begin here",         "begin it on a line of its own, or write [a, b]"),
    ":": ("a colon without a key before it",  'write the key, "" for an empty one'),
}

UNPRINTABLE = re.compile(                    # what is printable would take 3 ms more to compile
    "[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f"   # controls
    "\ud800-\udfff\ufeff\ufffe\uffff]")       # surrogates, byte order mark, what is no character
MARK = re.compile(r"(?:---|\.\.\.)(?=[ \t]|\Z)")
BLANK = re.compile(r"[ \t]*(?:(?<![^ \t])#.*)?")
DASH = re.compile(r"-(?=[ \t]|\Z)")
COLON = re.compile(r"[ \t]*:(?=[ \t]|\Z)")
FLOW_COLON = re.compile(r"[ \t]*:(?=[ \t,\]}]|\Z)")
QUOTED_COLON = re.compile(r"[ \t]*:")        # in brackets, nothing need follow it: {"a":1}
NUMBER = re.compile(r"""
    ( [-+]?[0-9]+ | 0o[0-7]+ | 0x[0-9a-fA-F]+ )                    # an integer
    | [-+]? (?: \.[0-9]+ | [0-9]+(?:\.[0-9]*)? )                   # or a float
      (?: [eE] [-+]? [0-9]+ )?
    """, re.VERBOSE)

# How a scalar without quotes begins, and how far it goes on a line: outside of brackets, and within.
IN_BLOCK = (
    re.compile(r"""[^-?:,\[\]{}#&*!|>'"%@` \t]                      # no indicator
                   | [-?:](?=[^ \t])                               # or one that is not alone
                   """, re.VERBOSE),
    re.compile(r"(?:[^:#]+|:(?![ \t]|\Z)|(?<=[^ \t])#)*"))
IN_FLOW = (
    re.compile(r"""[^-?:,\[\]{}#&*!|>'"%@` \t]
                   | [-?:](?=[^ \t,\[\]{}])
                   """, re.VERBOSE),
    re.compile(r"""(?: [^:#,\[\]{}]+
                     | :(?![ \t,\[\]{}]|\Z)                        # a colon with text after it
                     | (?<=[^ \t])\#                               # no comment without a space before it
                   )*""", re.VERBOSE))
QUOTED = {"'": re.compile("(?:[^']+|'')*"), '"': re.compile(r"""(?: [^"\\]+ | \\ (?:
    [0abt\tnvfre\ "/\\N_LP]                                        # a letter of ESCAPES
    | x [0-9a-fA-F]{2}
    | u (?![dD][89a-fA-F]) [0-9a-fA-F]{4}                          # half a surrogate pair is no character
    | U 00 (?: 0(?!0[dD][89a-fA-F])[0-9a-fA-F] | 10 ) [0-9a-fA-F]{4}
    | \Z                                                           # the break of the line
    ) )*""", re.VERBOSE)}
FOLDABLE = re.compile(r"(?<![ \t])[ \t]*\n[ \t\n]*")
ESCAPED = re.compile(r"""
    \\\n [ \t\n]*                            # the break of a line that is not there
    | \\ (?: x.. | u.... | U........ | . )
    | [ \t]* \n [ \t\n]*                     # the break of a line to be folded
    | [ \t]+                                 # taken whole, or a long run would cost its square
    """, re.VERBOSE)
BLOCK_HEADER = re.compile(r"""
    ([|>])
    ( [1-9][-+] | [-+]?[1-9]? )              # width and chomping, in either order
    (?: [ \t]+ (?:\#.*)? )? \Z               # nothing more but a comment
    """, re.VERBOSE)
BLOCK_FOLDABLE = re.compile(r"^([^ \t\n].*)\n(\n*)(?=[^ \t\n])", re.MULTILINE)


class Spot(NamedTuple):
    """A place in the text, lines[row][column], both from 0; at the end of the text the column is -1."""

    row: int
    column: int

    def after(self, count: int) -> "Spot":
        """The place `count` characters on in the line."""
        return Spot(self.row, self.column + count)


class Node(NamedTuple):
    """A value and where it was written; lines and columns count from 1, and are 0 where there is no key."""

    value: object                  # str, int, float, bool, None, list of Node, dict of plain key to Node
    text: str                      # a scalar as written, its quotes and escapes resolved: "0x1F", "1.10"
    line: int
    column: int
    key_line: int = 0
    key_column: int = 0


def yaml_error(spot: Spot, what: str, fix: str) -> Unusable:
    """The one shape of every message of this room."""
    return Unusable(f"line {spot.row + 1}, column {spot.column + 1}: {what}", fix)


def new_node(spot: Spot, value: object, text: str = "") -> Node:
    """A node that begins at `spot`."""
    return Node(value, text, spot.row + 1, spot.column + 1)


def open_node(spot: Spot, entries: Union[list, dict], parents: tuple[int, ...]) -> Node:
    """The node of a list or map, still empty; refused when it is within too many others."""
    if len(parents) > MAX_DEPTH:
        raise yaml_error(spot, f"more than {MAX_DEPTH} lists and maps within one another", "nest them less")
    return new_node(spot, entries)


def add_entry(node: Node, key: Optional[Node], value: Node) -> None:
    """Puts a value into a list (no key) or a map; refuses keys that are one to Python, such as 1 and true."""
    if key is None:
        node.value.append(value)
        return
    if key.value in node.value:
        first = node.value[key.value].key_line
        raise yaml_error(Spot(key.line - 1, key.column - 1), f"a duplicate of the key in line {first}",
                         "remove or rename one of them; quote one if 1 has met true, or 0 false")
    node.value[key.value] = value._replace(key_line=key.line, key_column=key.column)


def check_key(lines: list[str], key: Node, end: Spot) -> None:
    """Refuses a key that is not a short scalar on one line, or that would merge maps."""
    spot = Spot(key.line - 1, key.column - 1)
    if isinstance(key.value, (list, dict)):
        raise yaml_error(spot, "a list or map as a key is not supported", "quote it if it is text")
    if end.row > spot.row:
        raise yaml_error(spot, "a key over several lines is not supported", "write key and colon on one line")
    if end.column - spot.column > MAX_KEY:
        raise yaml_error(spot, f"a key of more than {MAX_KEY} characters", "shorten it")
    if key.text == "<<" and lines[spot.row][spot.column] == "<":
        raise yaml_error(spot, "a merge key is not supported", 'write the keys out, or quote it: "<<"')


def split_yaml_lines(text: str) -> list[str]:
    """The lines of the text without their breaks; a break at its very end begins no further line."""
    text = text[text.startswith("\ufeff"):].replace("\r\n", "\n").replace("\r", "\n")
    found = UNPRINTABLE.search(text)
    if found:
        before = text[:found.start()]
        spot = Spot(before.count("\n"), len(before) - before.rfind("\n") - 1)
        raise yaml_error(spot, f"the character U+{ord(found[0]):04X} is not allowed",
                         f'remove it, or write "\\U{ord(found[0]):08X}" within double quotes')
    return text.removesuffix("\n").split("\n")


def skip_blank(lines: list[str], spot: Spot) -> Spot:
    """Where the text goes on after white space, comments and blank lines."""
    row, column = spot
    while row < len(lines):
        column = BLANK.match(lines[row], column).end()
        if column < len(lines[row]):
            return Spot(row, column)
        row, column = row + 1, 0
    return Spot(row, -1)


def skip_in_block(lines: list[str], spot: Spot) -> Spot:
    """Where the text goes on outside of brackets, where only spaces indent a line."""
    found = skip_blank(lines, spot)
    lead = lines[found.row][:found.column] if found.column > 0 else ""
    if "\t" in lead and not lead.strip(" \t"):
        raise yaml_error(Spot(found.row, lead.index("\t")), "a tab in the indentation", "indent with spaces")
    return found


def skip_in_flow(lines: list[str], spot: Spot, indent: int, *, opener: Spot) -> Spot:
    """Where the text goes on within the brackets at `opener`; `indent` spaces or more begin their lines."""
    found = skip_blank(lines, spot)
    if found.column < 0:
        raise yaml_error(opener, "a bracket that is not closed", "close it, within the same document")
    if found.row > spot.row and lines[found.row][:indent].strip(" "):
        raise yaml_error(found, "a line within brackets is not indented enough",
                         "indent it more than the key or dash before the brackets")
    return found


def skip_after_value(lines: list[str], spot: Spot) -> Spot:
    """Where the text goes on after a value outside of brackets: on another line."""
    found = skip_in_block(lines, spot)
    if found.row > spot.row:
        return found
    if COLON.match(lines[found.row], found.column):
        raise yaml_error(found, "a colon after what is not a key of its own line",
                         "quote text that has a colon and a space; begin a map on a line of its own")
    raise yaml_error(found, "text after the end of the value",
                     "quote the whole value; put a space after the colon of a key, and before a comment")


def find_continuation(lines: list[str], end: Spot, indent: int) -> "Optional[Spot]":
    """Where a scalar goes on below the line of `end`; None when nothing there is indented enough."""
    for row in range(end.row + 1, len(lines)):
        rest = lines[row].lstrip(" ")
        spaces = len(lines[row]) - len(rest)
        content = rest.lstrip(" \t")
        if content:
            return Spot(row, len(lines[row]) - len(content)) if spaces >= indent else None
        if rest and spaces < indent:         # a tab where spaces are due: not a blank line of the scalar
            return None
    return None


def gather_lines(lines: list[str], spot: Spot, indent: int, part: re.Pattern[str]) -> tuple[Spot, str]:
    """What `part` matches from `spot` on; where it reaches the end of the line, on further lines too."""
    parts, end, begin = [], spot, spot
    while begin:
        line = lines[begin.row]
        stop = part.match(line, begin.column).end()
        parts += [""] * (begin.row - end.row - 1) + [line[begin.column:stop]]
        end = Spot(begin.row, stop)
        begin = find_continuation(lines, end, indent) if stop == len(line) else None
    return end, "\n".join(parts)


def unescape(found: "re.Match[str]") -> str:
    """What a match of ESCAPED or FOLDABLE stands for: one break is a space, of several the first goes."""
    token = found[0]
    if "\n" in token:
        kept = "\n" * (token.count("\n") - 1)
        return kept if token[0] == "\\" else kept or " "
    if token[0] != "\\":
        return token
    return chr(int(token[2:], 16)) if len(token) > 2 else ESCAPES[token[1]]


def parse_quoted(lines: list[str], spot: Spot, indent: int) -> tuple[Spot, Node]:
    """A scalar in single or double quotes."""
    quote = lines[spot.row][spot.column]
    end, text = gather_lines(lines, spot.after(1), indent, QUOTED[quote])
    found = lines[end.row][end.column:end.column + 2]
    if not found:
        raise yaml_error(spot, "a quote that is not closed", f"close it with {quote}, and indent every line")
    if found[0] != quote:
        raise yaml_error(end, f"an unknown escape {found}", "write \\\\ for a backslash")
    if quote == '"' and "\n\\\n" in text:
        raise yaml_error(spot, "within quotes, a line of one backslash alone", "remove the line")
    text = FOLDABLE.sub(unescape, text).replace("''", "'") if quote == "'" else ESCAPED.sub(unescape, text)
    return end.after(1), new_node(spot, text, text)


def resolve_plain(spot: Spot, text: str) -> Node:
    """The node of a scalar without quotes: what it means by the core schema."""
    if text in CONSTANTS:
        return new_node(spot, CONSTANTS[text], text)
    found = NUMBER.fullmatch(text)
    if not found:
        return new_node(spot, text, text)
    if len(text) <= MAX_DIGITS:
        number = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)) if found[1] else float(text)
        if abs(number) < TOO_LARGE:
            return new_node(spot, number, text)
    raise yaml_error(spot, "a number that is too large", "quote it if it is text")


def parse_scalar(lines: list[str], spot: Spot, indent: int, *, style: tuple) -> tuple[Spot, Node]:
    """A scalar with or without quotes; its further lines begin with `indent` spaces or more."""
    first, (begin, part) = lines[spot.row][spot.column], style
    if first in QUOTED:
        return parse_quoted(lines, spot, indent)
    if not begin.match(lines[spot.row], spot.column):
        otherwise = (f"a value cannot begin with {first}", "quote it if it is text")
        raise yaml_error(spot, *RESERVED.get(first, otherwise))
    end, text = gather_lines(lines, spot, indent, part)
    return end, resolve_plain(spot, FOLDABLE.sub(unescape, text.rstrip(" \t\n")))


def find_block_width(lines: list[str], row: int, indent: int) -> int:
    """The spaces before a block text: those of its first line that is not blank, at least `indent`."""
    blank = Spot(row, indent)                # the end of the longest blank line so far
    for below in range(row, len(lines)):
        spaces = len(lines[below]) - len(lines[below].lstrip(" "))
        if spaces == len(lines[below]):
            blank = max(blank, Spot(below, spaces), key=lambda end: end.column)
        elif blank.column > max(spaces, indent):
            raise yaml_error(blank, "a blank line with more spaces than the text below it", "remove them")
        else:
            return max(spaces, indent)
    return blank.column


def cut_block_lines(lines: list[str], row: int, width: int) -> list[str]:
    """The lines of a block text without the `width` spaces before each, down to the first that has fewer."""
    cut, pad = [], " " * width
    for below in range(row, len(lines)):
        line, rest = lines[below], lines[below].lstrip(" ")
        if not line.startswith(pad) and rest.startswith("\t"):
            raise yaml_error(Spot(below, line.index("\t")), "a tab in the indentation", "indent with spaces")
        if not line.startswith(pad) and rest:
            break
        cut.append(line[width:])
    return cut


def parse_block_text(lines: list[str], spot: Spot, indent: int) -> tuple[Spot, Node]:
    """A literal (|) or folded (>) text. The end of the file counts as the break of its last line."""
    header = BLOCK_HEADER.match(lines[spot.row], spot.column)
    if not header:
        raise yaml_error(spot, "text after a | or >", "begin the text on the next line, or quote it")
    chomping, digit = header[2].strip("123456789"), header[2].strip("-+")
    if digit and not indent:                 # YAML's letter says one thing, its programs say another
        raise yaml_error(spot, "a width is not supported outside of lists and maps", "leave the digit out")
    width = indent - 1 + int(digit) if digit else find_block_width(lines, spot.row + 1, indent)
    cut = cut_block_lines(lines, spot.row + 1, width)
    whole = "".join([line + "\n" for line in cut])
    text = whole.rstrip("\n")
    tail = {"-": "", "": "\n" if text else "", "+": whole[len(text):]}[chomping]
    if header[1] == ">":
        text = BLOCK_FOLDABLE.sub(lambda found: found[1] + (found[2] or " "), text)
    last = spot.row + len(cut)
    return Spot(last, len(lines[last])), new_node(spot, text + tail, text + tail)


def find_flow_colon(lines: list[str], begin: Spot, end: Spot) -> "Optional[Spot]":
    """The spot after the colon that makes a key of what is from `begin` to `end` within brackets."""
    pattern = QUOTED_COLON if lines[begin.row][begin.column] in QUOTED else FLOW_COLON
    colon = pattern.match(lines[end.row], end.column)
    return Spot(end.row, colon.end()) if colon else None


def add_flow_entry(node: Node, first: Node, value: Optional[Node]) -> None:
    """Puts an entry within brackets into its list or map; `value` is None where there is no colon."""
    if isinstance(node.value, dict):
        add_entry(node, first, value or Node(None, "", first.line, first.column))
    elif value:                              # [k: v] is a list with a map of one pair
        pair = Node({}, "", first.line, first.column)
        add_entry(pair, first, value)
        add_entry(node, None, pair)
    else:
        add_entry(node, None, first)


def skip_comma(lines: list[str], spot: Spot, indent: int, *, opener: Spot) -> Spot:
    """Where the text goes on after an entry within the brackets at `opener`: at the next entry or the end."""
    at = skip_in_flow(lines, spot, indent, opener=opener)
    if lines[at.row][at.column] == ",":
        return skip_in_flow(lines, at.after(1), indent, opener=opener)
    closer = BRACKETS[lines[opener.row][opener.column]]
    if lines[at.row][at.column] != closer:
        raise yaml_error(at, f"neither a comma nor {closer} after a value within brackets",
                         "put one in, or quote the text; key and colon go on one line, with a space after")
    return at


def parse_flow(lines: list[str], spot: Spot, parents: tuple[int, ...]) -> tuple[Spot, Node]:
    """A value in or with brackets: they themselves, a scalar, or nothing. `parents` as in parse_block."""
    opener, indent = lines[spot.row][spot.column], parents[-1] + 1
    if opener in ",]}":
        return spot, new_node(spot, None)
    if opener not in BRACKETS:
        return parse_scalar(lines, spot, indent, style=IN_FLOW)
    node, inside = open_node(spot, {} if opener == "{" else [], parents), parents + parents[-1:]
    at = skip_in_flow(lines, spot.after(1), indent, opener=spot)
    while lines[at.row][at.column] != BRACKETS[opener]:
        begin, value = at, None
        at, first = parse_flow(lines, begin, inside)
        if at == begin:
            raise yaml_error(at, f"no value before {lines[at.row][at.column]}", "remove one of them")
        colon = find_flow_colon(lines, begin, at)
        if colon or opener == "{":
            check_key(lines, first, at if colon else begin)
        if colon:
            at, value = parse_flow(lines, skip_in_flow(lines, colon, indent, opener=spot), inside)
        add_flow_entry(node, first, value)
        at = skip_comma(lines, at, indent, opener=spot)
    return at.after(1), node


def parse_leaf(lines: list[str], spot: Spot, parents: tuple[int, ...]) -> tuple[Spot, Node]:
    """A value outside of brackets: a block text, brackets or a scalar. `parents` as in parse_block."""
    first = lines[spot.row][spot.column]
    if first in "|>":
        return parse_block_text(lines, spot, parents[-1] + 1)
    if first in BRACKETS:
        return parse_flow(lines, spot, parents)
    return parse_scalar(lines, spot, parents[-1] + 1, style=IN_BLOCK)


def parse_key(lines: list[str], spot: Spot, parents: tuple[int, ...]) -> tuple[Spot, Node]:
    """The key of an entry outside of brackets, and the spot after its colon. `parents` as in parse_block."""
    end, key = parse_leaf(lines, spot, parents)
    colon = COLON.match(lines[end.row], end.column)
    if not colon:
        raise yaml_error(spot, "neither a key with a colon nor a part of what is above it",
                         "write `key: value`, with a space after the colon; indent further lines of a text")
    check_key(lines, key, end)
    return Spot(end.row, colon.end()), key


def is_dash(lines: list[str], spot: Spot) -> bool:
    """Whether an entry of a list begins here."""
    return bool(DASH.match(lines[spot.row], spot.column))


def parse_block(lines: list[str], spot: Spot, parents: tuple[int, ...]) -> tuple[Spot, Node]:
    """A value outside of brackets, and the spot where the text goes on after it.

    `parents` are the columns of the lists and maps around it, outermost first, -1 for the document itself.
    """
    is_list, column, inside = is_dash(lines, spot), spot.column, parents + (spot.column,)
    if not is_list:
        at, leaf = parse_leaf(lines, spot, parents)
        if not COLON.match(lines[at.row], at.column):
            return skip_after_value(lines, at), leaf
    node, at = open_node(spot, [] if is_list else {}, parents), spot
    while at.column == column and is_dash(lines, at) == is_list:
        end, key = (at.after(1), None) if is_list else parse_key(lines, at, inside)
        at, value = skip_in_block(lines, end), new_node(end, None)
        is_list_below = key and at.column == column and is_dash(lines, at)   # it need not be indented
        if at.row == end.row and (key or "\t" in lines[at.row][end.column:at.column]):
            at, value = parse_leaf(lines, at, inside)
            at = skip_after_value(lines, at)
        elif at.column > column or is_list_below:
            at, value = parse_block(lines, at, inside)
        add_entry(node, key, value)
    if at.column > column:
        raise yaml_error(at, f"indented by {at.column}, but what is above it by {column}", "align it")
    if at.column == column != parents[-1]:
        raise yaml_error(at, "a key among dashes, or a dash among keys", "indent what is part of another")
    return at, node


def cut_document(lines: list[str]) -> tuple[list[str], Spot]:
    """The lines down to the end of the one document, and where it begins."""
    at, begin = skip_blank(lines, Spot(0, 0)), Spot(0, 0)
    if at.column == 0 and lines[at.row][0] == "%":
        raise yaml_error(at, "a directive is not supported", "remove it, or quote text that begins with %")
    if at.column == 0 and lines[at.row][0] == "-" and MARK.match(lines[at.row]):
        begin = Spot(at.row, 3)
    # A mark ends the document wherever it begins a line, even within quotes.
    first = begin.row + (begin.column > 0)
    end = next((row for row in range(first, len(lines)) if MARK.match(lines[row])), len(lines))
    at = Spot(end, 0 if end < len(lines) else -1)
    while at.column >= 0:
        if at.column > 0 or lines[at.row][0] != "." or not MARK.match(lines[at.row]):
            raise yaml_error(at, "text after the end of the document", "keep one document")
        at = skip_blank(lines, Spot(at.row, 3))
    return lines[:end], begin


def parse_yaml(text: str) -> Node:
    """The value of a text that is one YAML document (null when empty), or Unusable with line and column."""
    lines, begin = cut_document(split_yaml_lines(text))
    at = skip_in_block(lines, begin)
    if at.column < 0:
        return new_node(Spot(0, 0), None)
    if at.row == begin.row and begin.column > 0:     # on the line of --- no list or map may begin
        end, node = parse_leaf(lines, at, (-1,))
        at = skip_after_value(lines, end)
    else:
        at, node = parse_block(lines, at, (-1,))
    if at.column >= 0:
        raise yaml_error(at, "text after the end of the value", "align it with the first line, or quote all")
    return node


def plain(node: Node) -> object:
    """The value as plain Python, without places."""
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    if isinstance(node.value, dict):
        return {key: plain(item) for key, item in node.value.items()}
    return node.value


# =============================================================================
# 4. Config
# =============================================================================
# Plain values -> profiles. A config is read once, checked whole, and refused with line and column.

CONFIG_KEYS = ("default_profile", "headless", "profiles", "max_depth")
PROFILE_KEYS = ("command", "interface", "args", "env", "prompt", "headless")
PROMPT_WAYS = ("argument", "stdin", "prompt-file-arg")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class FromEnv(NamedTuple):
    """An environment value that is taken from the caller's environment when a worker starts."""

    name: str


class Profile(NamedTuple):
    """How a user wants an agent run."""

    name: str
    command: str
    agent: Agent
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, Union[str, FromEnv]], ...] = ()
    prompt: str = "argument"   # one of PROMPT_WAYS
    headless: bool = False


class Config(NamedTuple):
    """All that a config says."""

    source: str                      # the path it was read from, or "built-in"
    profiles: dict[str, Profile]
    default_profile: str = ""        # "" when none is named
    max_depth: int = 0               # how deep runs may nest; 0: no limit


def find_near_miss(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or ""."""
    import difflib  # 2 ms, and only on the way to an error
    near = difflib.get_close_matches(word, list(known), n=1)
    return near[0] if near else ""


def advise_word(word: str, known: Iterable[str]) -> str:
    """What to write instead of a word that is not known."""
    near = find_near_miss(word, known)
    return "did you mean `%s`?" % near if near else "one of: %s" % ", ".join(known)


def refuse_node(node: Node, what: str, fix: str) -> Unusable:
    """The failure for a value that is YAML, but not a config."""
    return Unusable("line %d, column %d: %s" % (node.line, node.column, what), fix)


def refuse_key(node: Node, what: str, fix: str) -> Unusable:
    """The failure for a key, at the place of the key."""
    return Unusable("line %d, column %d: %s" % (node.key_line, node.key_column, what), fix)


def read_map(node: Node, what: str) -> dict[str, Node]:
    """The entries of a map; an empty value is an empty map. `Unusable` for anything else."""
    if node.value is None:
        return {}
    if not isinstance(node.value, dict):
        raise refuse_node(node, "%s must be a map" % what, "write `key: value` lines, indented, below it")
    return node.value


def check_keys(entries: dict[str, Node], known: tuple[str, ...], what: str) -> None:
    """Raises `Unusable` for the first key that nobody reads."""
    for key, value in entries.items():
        if key not in known:
            raise refuse_key(value, "unknown key `%s` in %s" % (key, what), advise_word(str(key), known))


def read_text_value(node: Node, what: str) -> str:
    """A scalar as its author wrote it: `1.10` stays "1.10" and `true` stays "true"."""
    if node.value is None or isinstance(node.value, (dict, list)):
        raise refuse_node(node, "%s must be a text" % what,
                          "write it on one line, in quotes when it is empty")
    text = node.value if isinstance(node.value, str) else node.text
    if "\0" in text:
        raise refuse_node(node, "%s holds a NUL character" % what,
                          "leave it out: no program can be given one")
    return text


def read_choice(node: Node, choices: Iterable[str], what: str) -> str:
    """A text that must be one of `choices`."""
    text = read_text_value(node, what)
    if text not in choices:
        raise refuse_node(node, "%s `%s` is not known" % (what, text), advise_word(text, choices))
    return text


def read_bool(node: Node, what: str) -> bool:
    """true or false."""
    if not isinstance(node.value, bool):
        raise refuse_node(node, "%s must be true or false" % what, "write `true` or `false`, without quotes")
    return node.value


def read_args(node: Node, what: str) -> tuple[str, ...]:
    """A list of texts; an empty value is an empty list."""
    if node.value is None:
        return ()
    if not isinstance(node.value, list):
        raise refuse_node(node, "%s must be a list" % what,
                          "write `[--flag, value]`, or `- --flag` lines below it")
    return tuple(read_text_value(item, "an item of %s" % what) for item in node.value)


def check_env_name(node: Node, name: object, what: str) -> str:
    """`name` when a shell could use it as a variable."""
    if not isinstance(name, str) or not ENV_NAME.match(name):
        raise refuse_node(node, "%s `%s` is no variable name" % (what, name), "use letters, digits and _")
    return name


def read_env(node: Node, what: str) -> tuple[tuple[str, Union[str, FromEnv]], ...]:
    """Variables with their literal value, or with the name of the caller's variable to take it from."""
    found: list[tuple[str, Union[str, FromEnv]]] = []
    for name, value in read_map(node, what).items():
        check_env_name(value, name, "the key in %s" % what)
        if not isinstance(value.value, dict):
            found.append((name, read_text_value(value, "`%s` in %s" % (name, what))))
            continue
        check_keys(value.value, ("from_env",), "`%s` in %s" % (name, what))
        if "from_env" not in value.value:
            raise refuse_node(value, "`%s` in %s is an empty map" % (name, what),
                              "write `from_env: NAME`, or a text")
        source = value.value["from_env"]
        text = read_text_value(source, "from_env")
        found.append((name, FromEnv(check_env_name(source, text, "from_env"))))
    return tuple(found)


def read_profile(name: object, node: Node) -> Profile:
    """One profile, checked."""
    what = "profile `%s`" % name
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or name.startswith("-"):
        raise refuse_node(node, "%s has no usable name" % what, "use a word, in quotes when it is a number")
    entries = read_map(node, what)
    check_keys(entries, PROFILE_KEYS, what)
    command = read_text_value(entries["command"], "command of %s" % what) if "command" in entries else ""
    if not command.strip():
        raise refuse_node(node, "%s has no command" % what, "add `command: NAME` to it")
    read = {
        "interface": lambda value: AGENTS[read_choice(value, AGENTS, "interface")],
        "args":      lambda value: read_args(value, "args of %s" % what),
        "env":       lambda value: read_env(value, "env of %s" % what),
        "prompt":    lambda value: read_choice(value, PROMPT_WAYS, "prompt"),
        "headless":  lambda value: read_bool(value, "headless"),
    }
    fields = {key: read[key](value) for key, value in entries.items() if key != "command"}
    agent = fields.pop("interface", GENERIC)
    profile = Profile(name, os.path.expanduser(command), agent, **fields)
    if profile.prompt == "prompt-file-arg" and not any("{prompt_file}" in arg for arg in profile.args):
        raise refuse_node(node, "%s has no `{prompt_file}` in its args" % what,
                          "add it, or use `prompt: argument`")
    return profile


def read_config(text: str, source: str) -> Config:
    """The config in a text. `Unusable` names the line, the column and what to write instead."""
    top = parse_yaml(text)
    entries = read_map(top, "the config")
    check_keys(entries, CONFIG_KEYS, "the config")
    profiles = {name: read_profile(name, node) for name, node in
                read_map(entries["profiles"], "profiles").items()} if "profiles" in entries else {}
    if not profiles:
        raise refuse_node(top, "the config has no profiles",
                          "add `profiles:` with a name and a `command:` below it")
    if "headless" in entries and read_bool(entries["headless"], "headless"):
        profiles = {name: profile._replace(headless=True) for name, profile in profiles.items()}
    config = Config(source, profiles)
    if "default_profile" in entries:
        default = read_choice(entries["default_profile"], profiles, "default_profile")
        config = config._replace(default_profile=default)
    if "max_depth" in entries:
        depth = entries["max_depth"]
        if type(depth.value) is not int or depth.value < 1:
            raise refuse_node(depth, "max_depth must be a number above 0", "write for example `max_depth: 3`")
        config = config._replace(max_depth=depth.value)
    return config


def built_in_config() -> Config:
    """What holds when there is no config: one profile for each agent that can start by itself."""
    rows = [agent for agent in AGENTS.values() if agent.start.unattended]
    profiles = {row.name: Profile(row.name, row.command, row, row.start.unattended) for row in rows}
    return Config("built-in", profiles)


def find_profile(config: Config, name: str) -> Profile:
    """The profile with that name, or the default one. `Unusable` when there is none: never a guess."""
    wanted = name or config.default_profile
    if not wanted:
        raise Unusable("no profile named and no default_profile in %s" % config.source,
                       "add -p NAME; profiles: %s" % ", ".join(config.profiles))
    if wanted not in config.profiles:
        raise Unusable("profile `%s` is not defined in %s" % (wanted, config.source),
                       advise_word(wanted, config.profiles))
    return config.profiles[wanted]


# =============================================================================
# 5. Screen
# =============================================================================
# Pure. Given what a pane shows, says what state the agent is in, and by which rule. Knows no agent by name.

UNKNOWN = Verdict("unknown")

CONTROLS = re.compile(r"""
    \x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)    # OSC, DCS and the like, with what they carry
  | (?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]           # CSI: colours, cursor, screen
  | \x1b[ -/]*[0-~]                            # other escapes
  | [\x00-\x08\x0b-\x1f\x7f-\x9f]              # what is left of C0 and C1, but not tab and newline
""", re.VERBOSE)
SPINNING = re.compile(r"[\d\s⠀-⣿✢✳✶✻✽✦·*•◦○●■⬝□◐◑◒◓.…]+")   # what moves on a screen while nothing happens


def clean_text(text: str) -> str:
    """`text` without anything a terminal would obey; line ends are \\n. Workers' words go through here.

    Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes U+FFFD.
    """
    plain_text = CONTROLS.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return plain_text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def progress_mark(screen: Screen) -> str:
    """A text that stays the same while only spinners turn and seconds count."""
    return SPINNING.sub(" ", screen.text)


def checksum(value: object) -> str:
    """Eight digits that differ when `value` does."""
    return "%08x" % binascii.crc32(repr(value).encode("utf-8", "replace"))


def cut_region(screen: Screen, region: str, marks: dict[str, str]) -> str:
    """The part of a screen a rule looks at.

    "title" · "screen" (all of it) · "bottom:N" (the last N lines that are not blank) · "below:MARK" (the
    lines after the last line that the agent's regex MARK matches; all of them when none does) · "at:MARK"
    (that line and below; nothing when none does).
    """
    if region == "title":
        return screen.title
    lines = [line.rstrip() for line in screen.text.split("\n")]
    kind, _, operand = region.partition(":")
    if kind == "bottom":
        return "\n".join([line for line in lines if line][-int(operand):])
    if kind in ("below", "at"):
        found = [number for number, line in enumerate(lines) if re.search(marks[operand], line)]
        if kind == "at":
            return "\n".join(lines[found[-1]:]) if found else ""
        return "\n".join(lines[found[-1] + 1:] if found else lines)
    return "\n".join(lines)


def find_question(screen: Screen) -> str:
    """The last line of a screen that asks something; "" when none does."""
    lines = [line.strip(" │┃|*") for line in screen.text.split("\n")]
    return next((line for line in reversed(lines) if line.endswith("?")), "")


def judge_screen(screen: Screen, rules: tuple[Rule, ...], marks: dict[str, str]) -> Verdict:
    """The verdict of the first rule that matches, else `unknown`: a screen is never ready by default."""
    for rule in rules:
        text = cut_region(screen, rule.region, marks)
        hits = [re.search(need, text, re.MULTILINE) for need in rule.needs]
        if all(hits) and not any(re.search(veto, text, re.MULTILINE) for veto in rule.unless):
            return Verdict(rule.state, rule.name, rule.region, hits[0].group(0).strip())
    return UNKNOWN


class Option(NamedTuple):
    """One row of a dialog's list."""

    label: str
    selected: bool


_ROW = re.compile(
    r"^[ │┃]*(?P<mark>[❯›>●▶] +)?"             # the marker, inside a frame or not
    r"(?P<tick>✔ )?(?P<at>(?:(?P<number>\d+)\. +)?)"
    r"(?P<label>\S.*?)(?: ✔)?(?: {2,}.*)?[ │┃]*$"
)
_EDGE = re.compile(r"^ *(?:─|╹▀)")   # of an input box; dialogs end in a line of keys or in a frame's corner


def _is_neighbour(row: "re.Match[str]", other: "Optional[re.Match[str]]", step: int) -> bool:
    """Whether `other` is the option before (-1) or after (1) `row`: same column, and next number if any."""
    if other is None or other.start("at") != row.start("at") or bool(other["number"]) != bool(row["number"]):
        return False
    return not row["number"] or int(other["number"]) == int(row["number"]) + step


def find_options(text: str) -> tuple[Option, ...]:
    """The options of the list at the bottom of a screen; () when none of its rows is marked as selected."""
    rows = [_ROW.match(row) for row in text.rstrip().split("\n")][-24:]
    marked = [i for i, row in enumerate(rows) if row and row["mark"]]
    if not marked:
        return ()
    found = {marked[-1]}
    for step in (-1, 1):
        here = marked[-1]
        for i in range(here + step, len(rows) if step > 0 else -1, step):
            if _is_neighbour(rows[here], rows[i], step):
                found.add(i)
                here = i
            elif not rows[here]["number"]:     # only numbered options may have other rows between them
                break
    if len(found) < 2 or any(row and _EDGE.match(row.string) for row in rows[max(found) + 1:]):
        return ()                              # one row is no list; above an input box it is somebody's prose
    return tuple(Option(rows[i]["label"], i == marked[-1]) for i in sorted(found))


def plan_keys(options: tuple[Option, ...], choose: str) -> tuple[str, ...]:
    """The keys that move to the option whose label matches `choose` and confirm it; () when impossible."""
    chosen = [i for i, option in enumerate(options) if option.selected]
    wanted = [i for i, option in enumerate(options) if re.search(choose, option.label)]
    if not chosen or not wanted:
        return ()
    steps = 0 if chosen[0] in wanted else wanted[0] - chosen[0]
    return ("Down" if steps > 0 else "Up",) * abs(steps) + ("Enter",)


# =============================================================================
# 6. Formats
# =============================================================================
# Pure. What agents write down about themselves, one JSON object after the other, folded into what they said.


def join_texts(blocks: object, kind: str) -> str:
    """The texts of those content blocks whose type is `kind`; a plain text is its own only block."""
    if isinstance(blocks, str):
        return blocks
    if not isinstance(blocks, list):
        return ""
    return "\n".join(str(block.get("text") or "") for block in blocks
                     if isinstance(block, dict) and block.get("type") == kind)


def count_tokens(usage: object, names: dict[str, str]) -> Optional[dict[str, int]]:
    """{"input": …, "output": …} from an agent's own names for them; None when it tells none."""
    if not isinstance(usage, dict):
        return None
    counts = {ours: usage[theirs] for theirs, ours in names.items() if isinstance(usage.get(theirs), int)}
    return counts or None


def as_map(value: object) -> dict[str, Any]:
    """`value` when it is a JSON object, else an empty one: foreign formats change without notice."""
    return value if isinstance(value, dict) else {}


CLAUDE_TOKENS = {"input_tokens": "input", "output_tokens": "output", "cache_read_input_tokens": "cached"}


def fold_claude_error(said: Said, line: dict[str, Any], text: str) -> Said:
    """An assistant line that the CLI made itself, from an API error (2.1.329: model "<synthetic>")."""
    kind, status = line.get("error"), line.get("apiErrorStatus")
    if re.search(r"You['’]ve hit your .{1,40} limit|usage limit", text):
        return said._replace(state="limited", error=text)
    if kind == "authentication_failed" or status in (401, 403) or "Please run /login" in text:
        return said._replace(state="login", error=text)
    return said._replace(state="failed", error=text)


def fold_claude_line(said: Said, line: dict[str, Any]) -> Said:
    """One line of Claude Code's transcript. A turn is over at its `turn_duration` line (2.1.197, 2.1.329)."""
    if line.get("isSidechain") or line.get("isMeta") is True:
        return said
    kind, message = line.get("type"), as_map(line.get("message"))
    content = message.get("content")
    if kind == "user" and join_texts(content, "text").startswith("[Request interrupted by user"):
        return said._replace(state="failed", error="the turn was interrupted")
    if kind == "user":
        blocks = content if isinstance(content, list) else []
        is_tool_result = any(as_map(block).get("type") == "tool_result" for block in blocks)
        return said._replace(state="busy") if is_tool_result else Said("busy")
    if kind == "system" and line.get("subtype") == "turn_duration":
        return said._replace(state="ready") if said.state == "busy" else said
    if kind != "assistant":
        return said
    text = join_texts(content, "text")
    if line.get("isApiErrorMessage") or message.get("model") == "<synthetic>":
        return fold_claude_error(said, line, text)
    return said._replace(state="busy", text=text or said.text, model=str(message.get("model") or ""),
                         tokens=count_tokens(message.get("usage"), CLAUDE_TOKENS) or said.tokens)


CODEX_TOKENS = {"input_tokens": "input", "output_tokens": "output", "cached_input_tokens": "cached"}


def fold_codex_end(said: Said, payload: dict[str, Any]) -> Said:
    """The end of a Codex turn: an answer, or `error` with the CLI's own words."""
    error = as_map(payload.get("error"))
    if not error:
        return said._replace(state="ready", text=str(payload.get("last_agent_message") or said.text))
    limited = error.get("codex_error_info") == "usage_limit_exceeded"
    words = str(error.get("message") or "no reason given")
    return said._replace(state="limited" if limited else "failed", error=words)


def fold_codex_line(said: Said, line: dict[str, Any]) -> Said:
    """One line of Codex's rollout (0.169.0): a turn lies between `task_started` and `task_complete`."""
    payload = as_map(line.get("payload"))
    kind = payload.get("type")
    if line.get("type") == "turn_context":
        return said._replace(model=str(payload.get("model") or ""))
    if kind == "task_started":
        return Said("busy", model=said.model)
    if kind == "task_complete":
        return fold_codex_end(said, payload)
    if kind == "turn_aborted":
        return said._replace(state="failed", error="the turn was %s" % payload.get("reason", "aborted"))
    if kind == "item_completed" and as_map(payload.get("item")).get("type") == "AgentMessage":
        return said._replace(text=join_texts(payload["item"].get("content"), "Text") or said.text)
    if kind == "token_count":
        usage = as_map(payload.get("info")).get("total_token_usage")
        return said._replace(tokens=count_tokens(usage, CODEX_TOKENS) or said.tokens)
    return said


def fold_opencode_row(said: Said, row: dict[str, Any]) -> Said:
    """A message of OpenCode's database with the texts of its parts (1.18.33): {"data": {…}, "texts": […]}."""
    data = as_map(row.get("data"))
    if data.get("role") == "user":
        return Said("busy")
    if data.get("role") != "assistant":
        return said
    error, tokens = as_map(data.get("error")), as_map(data.get("tokens"))
    said = said._replace(text="\n".join(text for text in row.get("texts") or [] if text) or said.text,
                         model=str(data.get("modelID") or ""),
                         tokens=count_tokens(tokens, {"input": "input", "output": "output"}) or said.tokens)
    if error:
        words = str(as_map(error.get("data")).get("message") or error.get("name"))
        state = "login" if error.get("name") == "ProviderAuthError" else "failed"
        return said._replace(state=state, error=words)
    return said._replace(state="ready" if data.get("finish") == "stop" else "busy")


FORMATS: dict[str, Callable[[Said, dict[str, Any]], Said]] = {
    "claude-transcript": fold_claude_line,
    "codex-rollout":     fold_codex_line,
    "opencode-rows":     fold_opencode_row,
}


def fold_record(said: Said, text: str, format: str) -> Said:
    """`said` after the JSON lines in `text`; what is no JSON object is passed over."""
    for line in text.split("\n"):
        with contextlib.suppress(ValueError, RecursionError):
            said = FORMATS[format](said, as_map(json.loads(line)))
    return said


# =============================================================================
# 7. System
# =============================================================================
# The only room that starts, signals, sleeps, locks and writes files. Knows no agent and no tmux.


class Ran(NamedTuple):
    """A command that has ended."""

    status: int
    out: str
    err: str


class Process(NamedTuple):
    """A process that cannot be mistaken for another: pids are reused, a pid with its start time is not."""

    pid: int
    started: str   # opaque; equal for the same process


class ProcessRow(NamedTuple):
    """What the system says of a process."""

    process: Process
    parent: int
    session: int   # pid of the session's leader; 0 where the system does not tell


def until(deadline_s: float, *, shortest_s: float = 0.005, longest_s: float = 0.2,
          clock: Callable[[], float] = time.monotonic,
          pause: Callable[[float], object] = time.sleep) -> Iterator[float]:
    """Yields the seconds waited so far, pauses in between, and ends after `deadline_s`.

    A pause is 3 % of what was waited already, from `shortest_s` up to `longest_s`: an event is seen within
    3 % of the time it took, and a long wait costs next to nothing. `pause` may return early, on an event.
    """
    started = clock()
    while True:
        waited = clock() - started
        yield waited
        if waited >= deadline_s:
            return
        pause(min(longest_s, max(shortest_s, 0.03 * waited), max(0.0, deadline_s - waited)))


def decode(data: bytes) -> str:
    """Bytes of the outside world as text; what is not UTF-8 becomes U+FFFD."""
    return data.decode("utf-8", "replace")


def run_command(*argv: str, timeout_s: float = 10.0, stdin: str = "", env: Optional[dict[str, str]] = None,
                echo: Optional[Tell] = None) -> Ran:
    """Runs a command to its end. `Missing` when there is no such program, `Failure` past the deadline."""
    import subprocess   # 5 ms
    if echo:
        echo("+ " + " ".join(shlex.quote(word) for word in argv))
    try:
        ran = subprocess.run(argv, input=stdin.encode("utf-8", "surrogateescape"), env=env, timeout=timeout_s,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError as error:
        raise Missing("%s: not found" % argv[0], "install it, or add its folder to PATH") from error
    except OSError as error:
        kind = Missing if error.errno in (errno.EACCES, errno.ENOEXEC) else Failure   # else E2BIG and its kin
        raise kind("%s: cannot be run: %s" % (argv[0], (error.strerror or "").lower()),
                   "run %s in a shell to see why" % argv[0]) from error
    except subprocess.TimeoutExpired as error:
        raise Failure("%s: no answer within %g s" % (argv[0], timeout_s),
                      "look whether the machine is overloaded") from error
    return Ran(ran.returncode, decode(ran.stdout), decode(ran.stderr))


def find_program(name: str, folders: str, base: str) -> str:
    """A program's path: `name` itself when it has a slash (relative to `base`), else one in `folders`."""
    places = [base] if "/" in name else folders.split(os.pathsep)
    for place in places:
        path = os.path.abspath(os.path.join(place, name))
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return ""


# --- files -------------------------------------------------------------------

def refuse_file(path: str, error: OSError) -> Unusable:
    """The failure for a file that cannot be written."""
    advice = {errno.ENOSPC: "free some space there", errno.EDQUOT: "free some space there",
              errno.EROFS: "set XDG_STATE_HOME to a folder that can be written"}
    return Unusable("%s: cannot be written: %s" % (path, (error.strerror or str(error)).lower()),
                    advice.get(error.errno or 0, "make it yours, or set XDG_STATE_HOME to a folder that is"))


def make_folder(path: str) -> None:
    """Makes a folder that only we can enter, and those above it. No harm when it is there."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise refuse_file(path, error) from error


def write_file(path: str, text: str, mode: int = 0o600) -> None:
    """Writes a file whole or not at all: to a temporary name, then renamed."""
    temporary = "%s.%d.tmp" % (path, os.getpid())
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise refuse_file(path, error) from error


def append_line(path: str, line: str) -> None:
    """Adds one line to a file, in one write, so that two writers do not mix."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(handle, line.encode("utf-8", "replace") + b"\n")
        finally:
            os.close(handle)
    except OSError as error:
        raise refuse_file(path, error) from error


def read_bytes(path: str, start: int = 0) -> Optional[bytes]:
    """A file from byte `start` on; None when it is not there, not readable, or a pipe, say."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            file.seek(start)
            return file.read()
    except OSError:
        return None


def read_file(path: str) -> Optional[str]:
    """The text of a file; None when it is not there or not readable."""
    data = read_bytes(path)
    return None if data is None else decode(data)


def query_database(path: str, query: str, parameters: dict[str, Any]) -> list[str]:
    """The first column of each row of an SQLite query; none when the database cannot be read now."""
    import sqlite3  # 5 ms, and only for agents that keep a database
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    try:
        address = "file:%s?mode=ro" % quoted
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=1.0)) as database:
            return [str(row[0]) for row in database.execute(query, parameters)]
    except sqlite3.Error:   # locked, or another version's tables: the screen is read instead
        return []


def file_stamp(path: str) -> tuple[int, float]:
    """Bytes and time of the last change: differs when a file was written to. (-1, 0.0) when there is none."""
    try:
        facts = os.stat(path)
    except OSError:
        return -1, 0.0
    return facts.st_size, facts.st_mtime


def was_renamed(path: str) -> bool:
    """Whether a file was surely renamed since it was last written to: that changes its ctime only."""
    try:
        facts = os.stat(path)
    except OSError:
        return False
    return facts.st_ctime_ns > facts.st_mtime_ns


def file_size(path: str) -> int:
    """Bytes; -1 when there is no such file."""
    return file_stamp(path)[0]


@contextlib.contextmanager
def hold_lock(path: str) -> Iterator[None]:
    """Holds a lock that the system takes back when we die. Waits for whoever has it."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise refuse_file(path, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def make_pipe(path: str) -> None:
    """Makes a named pipe that only we can use."""
    try:
        os.mkfifo(path, 0o600)
    except OSError as error:
        raise refuse_file(path, error) from error


def feed_pipe(path: str, text: str, deadline_s: float) -> bool:
    """Writes a text into a named pipe once somebody reads it, then removes the pipe. False: nobody came."""
    try:
        for _ in until(deadline_s):
            with contextlib.suppress(OSError):   # ENXIO: no reader yet
                handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                os.set_blocking(handle, True)
                with os.fdopen(handle, "wb") as pipe:
                    pipe.write(text.encode("utf-8", "surrogateescape"))
                return True
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):   # the run's folder was removed meanwhile
            os.unlink(path)


# --- processes ---------------------------------------------------------------

def name_machine() -> str:
    """Where a pid means something: this boot and this pid namespace, as far as the system tells."""
    boot = (read_file("/proc/sys/kernel/random/boot_id") or "").strip()
    try:
        return "%s %s" % (boot, os.readlink("/proc/self/ns/pid"))
    except OSError:
        return os.uname().nodename


def parse_stat(line: str) -> Optional[ProcessRow]:
    """One /proc/PID/stat line; None for a dead process. The name in brackets may hold anything."""
    pid, _, rest = line.partition(" (")
    fields = rest.rpartition(") ")[2].split()
    if len(fields) < 20 or fields[0] in "ZX":
        return None
    return ProcessRow(Process(int(pid), fields[19]), int(fields[1]), int(fields[3]))


def parse_ps(line: str) -> Optional[ProcessRow]:
    """One line of `ps -axo pid=,ppid=,state=,lstart=`, for systems without /proc; None for a dead process."""
    fields = line.split(None, 3)
    if len(fields) < 4 or fields[2].startswith("Z"):
        return None
    return ProcessRow(Process(int(fields[0]), fields[3].strip()), int(fields[1]), 0)


def read_process_rows() -> list[ProcessRow]:
    """Every living process."""
    if not os.path.isdir("/proc/self"):
        steady = dict(os.environ, LC_ALL="C", TZ="UTC0")   # a start time is to read the same to every caller
        out = run_command("ps", "-axo", "pid=,ppid=,state=,lstart=", env=steady).out
        return [row for row in map(parse_ps, out.splitlines()) if row]
    lines = [read_file("/proc/%s/stat" % name) for name in os.listdir("/proc") if name.isdigit()]
    return [row for row in (parse_stat(line) for line in lines if line) if row]


def read_process(pid: int) -> Optional[Process]:
    """The process that has this pid now; None when there is none."""
    if os.path.isdir("/proc/self"):
        row = parse_stat(read_file("/proc/%d/stat" % pid) or "")
        return row.process if row else None
    return next((row.process for row in read_process_rows() if row.process.pid == pid), None)


def has_process(pid: int) -> bool:
    """Whether any process has this pid: cheaper than is_alive, and enough to see one end."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0


def is_alive(process: Process) -> bool:
    """Whether this very process lives, not one that got its pid."""
    return process.pid > 0 and read_process(process.pid) == process


def holds_variable(pid: int, assignment: str) -> bool:
    """Whether a process was started with `NAME=value` in its environment; False where nobody tells."""
    data = read_bytes("/proc/%d/environ" % pid)
    return bool(data) and os.fsencode(assignment) in data.split(b"\0")


def is_older(process: Process, other: Process) -> bool:
    """Whether a process was started before another one, where start times are numbers."""
    return process.started.isdigit() and other.started.isdigit() and int(process.started) < int(other.started)


def find_tree(root: Process, assignment: str) -> list[Process]:
    """A worker's living processes, never ourselves: below `root`, in its session, or started with the mark.

    The mark, `NAME=value` in the environment, finds what left tree and session: children that called setsid
    and whose parent is gone. What is older than `root` is not asked: that halves the cost of an ending.
    """
    rows = read_process_rows()
    family = {root.pid} if any(row.process == root for row in rows) else set()
    family |= {row.process.pid for row in rows if row.session in family}
    grown = True
    while grown:
        more = {row.process.pid for row in rows if row.parent in family} - family
        family, grown = family | more, bool(more)
    return [row.process for row in rows if row.process.pid != os.getpid() and (
        row.process.pid in family
        or not is_older(row.process, root) and holds_variable(row.process.pid, assignment))]


def has_open(process: Process, path: str) -> bool:
    """Whether a process has a file open; False where the system does not tell."""
    folder = "/proc/%d/fd" % process.pid
    with contextlib.suppress(OSError):   # it has ended, or is not ours
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(os.path.join(folder, name)) == path:
                    return True
    return False


def signal_process(process: Process, number: int) -> None:
    """Sends a signal to this very process, if it still lives."""
    if is_alive(process):
        with contextlib.suppress(ProcessLookupError, PermissionError):   # of a child that sudo started
            os.kill(process.pid, number)


def end_processes(find: Callable[[], list[Process]], grace_s: float = 2.0) -> list[Process]:
    """Ends what `find` returns: TERM, `grace_s` to go, then KILL. Returns what is still alive.

    `find` is asked again each time, since a process can start another one while it is ended.
    """
    left = find()
    steps = ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s), (signal.SIGKILL, grace_s))
    for number, patience_s in steps:
        for process in left:
            signal_process(process, number)
        for _ in until(patience_s if left else 0.0, shortest_s=0.001):
            if not any(is_alive(process) for process in left):
                break
        left = find()
        if not left:
            return []
    return left


@contextlib.contextmanager
def watch_death(pid: int) -> Iterator[Optional[int]]:
    """A file descriptor that becomes readable when a process ends; None where the system has none."""
    opener = getattr(os, "pidfd_open", None)
    handle = None
    if opener and pid > 0:
        with contextlib.suppress(OSError):   # already dead, old kernel, sandbox: the slow look finds it too
            handle = opener(pid)
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def pause_for(handles: Iterable[Optional[int]]) -> Callable[[float], object]:
    """A pause that ends early when one of the file descriptors becomes readable; each one does so once."""
    watched = {handle for handle in handles if handle is not None}

    def pause(pause_s: float) -> None:
        fired = select.select(watched, [], [], pause_s)[0]
        watched.difference_update(fired)

    return pause


# =============================================================================
# 8. Tmux
# =============================================================================
# One class = one tmux server; one method = one tmux command. Knows no agent.

TMUX_FLOOR = (3, 0)
PANE_SIZE = (200, 50)          # wide enough that no agent wraps its status line
PANE_ROOM = (60, 15)           # a pane beside the caller must not be smaller
PANE_FACTS = "#{pid} #{session_id} #{pane_id} #{pane_pid} #{socket_path}"
CLIENT_FLAGS = "no-output,ignore-size"   # tmux 3.2; a control client that only answers questions


class PaneFacts(NamedTuple):
    """Where a worker's pane is."""

    socket: str
    server_pid: int
    session: str     # "$0"
    pane: str        # "%0"
    pane_pid: int    # of the launcher


class ServerGone(Failure):
    """The tmux server, or the pane, is not there any more."""


def socket_identity(path: str) -> Optional[list[int]]:
    """Tells a server's socket from one that another makes at the same path later; None without a file."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return [facts.st_ino, facts.st_mtime_ns]   # not the ctime: tmux changes the mode when a client comes


def socket_path(name: str, folder: str) -> str:
    """Where tmux puts the socket of the server called `name`; `folder` is $TMUX_TMPDIR, or ""."""
    return os.path.join(folder or "/tmp", "tmux-%d" % os.getuid(), name)


def parse_tmux_version(text: str) -> Optional[tuple[int, int]]:
    """(3, 3) from `tmux 3.3a`, `tmux next-3.5`, `tmux openbsd-7.4`; None without a number (`tmux master`)."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def check_tmux() -> tuple[int, int]:
    """The version of tmux. `Missing` when there is none, or one that is too old."""
    try:
        version = parse_tmux_version(run_command("tmux", "-V").out)
    except Missing as error:
        raise Missing("tmux: not found", "apt install tmux, dnf install tmux or brew install tmux") from error
    if version and version < TMUX_FLOOR:
        raise Missing("tmux: version %d.%d is too old, selftalk needs %d.%d" % (version + TMUX_FLOOR),
                      "install a newer tmux")
    return version or TMUX_FLOOR


def explain_tmux(ran: Ran, doing: str) -> Failure:
    """The failure for a tmux command that did not work."""
    words = ran.err.strip().splitlines()[0] if ran.err.strip() else "exit status %d" % ran.status
    if "not permitted" in words.lower() or "permission denied" in words.lower():
        return Unusable("tmux: %s: %s" % (doing, words),
                        "allow this sandbox to use tmux, or run outside of it")
    if "too long" in words.lower():
        return Unusable("tmux: %s: %s" % (doing, words), "set TMUX_TMPDIR to a folder with a short path")
    return Failure("tmux: %s: %s" % (doing, words), "run it again with -v to see the tmux commands")


class TmuxServer:
    """One tmux server: named by -L when it is still to be started, by the path of its socket afterwards."""

    def __init__(self, socket: str, version: tuple[int, int], echo: Optional[Tell] = None) -> None:
        self.socket, self.version, self.echo = socket, version, echo

    def keep_dead(self, *target: str) -> tuple[str, ...]:
        """The commands that keep an ended program's pane, without a line about it that scrolls the screen."""
        silence = (";", "set-option", *target, "remain-on-exit-format", "") if self.version >= (3, 3) else ()
        return ("set-option", *target, "remain-on-exit", "on", *silence)

    def run(self, *words: str, stdin: str = "", env: Optional[dict[str, str]] = None,
            timeout_s: float = 15.0) -> Ran:
        """Runs tmux commands on this server, separated by ";"."""
        address = "-S" if "/" in self.socket else "-L"
        return run_command("tmux", "-u", address, self.socket, *words, stdin=stdin, env=env, echo=self.echo,
                           timeout_s=timeout_s)

    def start(self, argv: tuple[str, ...], env: dict[str, str]) -> PaneFacts:
        """Starts the server with one session that runs `argv`, at a fixed size that no client changes.

        tmux 3.2a takes the size from resize-window only, and `window-size manual` as an option kills 3.3 to
        3.6: resize-window sets it for this window without harm. The user's own tmux.conf is not read.
        """
        width, height = map(str, PANE_SIZE)
        ran = self.run("-f", "/dev/null", "set-option", "-g", "mouse", "on", ";",
                       "set-option", "-g", "history-limit", "50000", ";",
                       "new-session", "-d", "-P", "-F", PANE_FACTS, "-s", "main",
                       "-x", width, "-y", height, *argv, ";",
                       "resize-window", "-t", "main", "-x", width, "-y", height, ";",
                       *self.keep_dead("-w", "-t", "main"), env=env, timeout_s=60.0)
        return self._read_facts(ran, "starting a session")

    def split(self, beside: str, direction: str, argv: tuple[str, ...], assignment: str) -> PaneFacts:
        """Opens a pane that runs `argv` beside another one, and leaves the focus where it is. `assignment` is
        set in its environment."""
        ran = self.run("split-window", "-d", direction, "-P", "-F", PANE_FACTS, "-e", assignment,
                       "-t", beside, *argv)   # no -c: tmux would obey what a folder's name holds
        return self._read_facts(ran, "opening a pane")

    def keep_pane(self, pane: str) -> None:
        """Lets a pane stay when its program ends."""
        self.run(*self.keep_dead("-p", "-t", pane))

    def _read_facts(self, ran: Ran, doing: str) -> PaneFacts:
        words = ran.out.split("\n")[0].split(" ", 4)
        if ran.status or len(words) < 5:
            raise explain_tmux(ran, doing)
        return PaneFacts(words[4], int(words[0]), words[1], words[2], int(words[3]))

    def pane_size(self, pane: str) -> tuple[int, int]:
        """Columns and lines of a pane; (0, 0) when it is not there."""
        found = re.match(r"(\d+) (\d+)$", self.run("display-message", "-p", "-t", pane,
                                                   "#{pane_width} #{pane_height}").out.strip())
        return (int(found.group(1)), int(found.group(2))) if found else (0, 0)

    def send_keys(self, pane: str, keys: Iterable[str]) -> None:
        """Presses keys in a pane. A scrolled one is brought back first: keys would be lost (tmux 3.3a)."""
        self.run("if-shell", "-F", "-t", pane, "#{pane_in_mode}", "send-keys -t %s -X cancel" % pane, ";",
                 "send-keys", "-t", pane, *keys)

    def kill_pane(self, pane: str) -> None:
        """Removes a pane."""
        self.run("kill-pane", "-t", pane)

class ControlClient:
    """One `tmux -C` client: asks a server questions without starting a process for each."""

    def __init__(self, server: TmuxServer, session: str) -> None:
        # -t with a pane would move the focus to it, and without -E the session would get our environment.
        flags = ("-f", CLIENT_FLAGS) if server.version >= (3, 2) else ()
        argv = ("tmux", "-u", "-C", "-S", server.socket, "attach-session", "-E", "-t", session, *flags)
        if server.echo:
            server.echo("+ " + " ".join(map(shlex.quote, argv)))
        import subprocess
        self._buffer = b""
        self._client = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL)
        try:
            self._read_block(time.monotonic() + 15.0)   # the answer to attach-session itself
        except Failure:
            self.close()
            raise

    def __enter__(self) -> "ControlClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends and reaps the client: a server with an unread one once lived on for an hour (tmux 3.3a)."""
        import subprocess
        for pipe in (self._client.stdin, self._client.stdout):
            with contextlib.suppress(OSError):   # it may be gone already
                pipe.close()
        try:
            self._client.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._client.kill()
            self._client.wait()

    def ask(self, *commands: str, deadline_s: float = 15.0) -> list[str]:
        """The output of each tmux command. `ServerGone` when the server or the pane has ended."""
        try:
            self._client.stdin.write("".join(command + "\n" for command in commands).encode())
            self._client.stdin.flush()
        except OSError as error:
            raise ServerGone("tmux: the server is gone") from error
        deadline = time.monotonic() + deadline_s
        return [self._read_block(deadline) for _ in commands]

    def _read_line(self, deadline: float) -> bytes:
        while b"\n" not in self._buffer:
            stdout = self._client.stdout.fileno()
            if not select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Failure("tmux: the control client does not answer",
                              "look whether the machine is overloaded")
            data = os.read(stdout, 1 << 16)
            if not data:
                raise ServerGone("tmux: the server is gone")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _read_block(self, deadline: float) -> str:
        """What stands between %begin and its own %end; notifications in between blocks are passed over."""
        line = self._read_line(deadline)
        while not line.startswith(b"%begin "):
            line = self._read_line(deadline)
        stamp, lines = line[len(b"%begin"):], []
        while True:
            line = self._read_line(deadline)
            if line == b"%end" + stamp:
                return decode(b"\n".join(lines))
            if line == b"%error" + stamp:
                raise ServerGone("tmux: %s" % decode(b" ".join(lines)))
            lines.append(line)


# =============================================================================
# 9. Runs
# =============================================================================
# The folder of a run: its id, its state on disk, its events. The folder is the only state there is: any
# process of the same user can go on where another one was killed. It keeps what other rooms
# write down of sockets and panes, and asks nothing of them.

RUN_FORMAT = 1   # of run.json; a copy of another version names what it cannot read and leaves it alone
START_FACTS = ("id", "state", "outcome", "profile", "agent", "workspace", "keep", "max_time_s", "stall_s",
               "tmux", "started_at", "caller", "machine", "record_home")   # from the start on
PLACE_FACTS = ("place", "socket", "socket_identity", "session", "pane", "launcher",
               "server")   # once there is a worker
RUN_VARIABLE = "SELFTALK_RUN"       # the folder of the run a process belongs to
DEPTH_VARIABLE = "SELFTALK_DEPTH"   # how many runs it is inside of


def state_folder(env: dict[str, str]) -> str:
    """The folder of all runs' state."""
    home = env.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    if not os.path.isabs(home):
        raise Unusable("XDG_STATE_HOME: `%s` is not an absolute path" % home, "set it to one, or unset it")
    return os.path.join(home, "selftalk")


def read_run_facts(folder: str) -> dict[str, Any]:
    """What the run.json in a folder says. `Unusable` when this copy cannot read it."""
    try:
        facts = json.loads(read_file(os.path.join(folder, "run.json")) or "")
    except (ValueError, RecursionError) as error:
        raise Unusable("%s: no readable run.json" % folder, "look into the folder") from error
    if not isinstance(facts, dict) or facts.get("format") != RUN_FORMAT:
        raise Unusable("%s: written by another version of selftalk" % folder, "use that version for it")
    needed = START_FACTS + (PLACE_FACTS if facts.get("state") == "running" else ())
    missing = [fact for fact in needed if fact not in facts]
    if missing:
        raise Unusable("%s: run.json lacks `%s`" % (folder, missing[0]), "look into the folder")
    if facts["agent"] not in AGENTS:
        raise Unusable("%s: agent `%s` is not known here" % (folder, facts["agent"]), "use a newer selftalk")
    return facts


class Run:
    """One run: its folder, and what run.json says."""

    def __init__(self, folder: str, facts: dict[str, Any]) -> None:
        self.folder, self.facts = folder, facts

    @property
    def id(self) -> int:
        return int(os.path.basename(self.folder))

    @property
    def is_over(self) -> bool:
        return self.facts["state"] == "over"

    @property
    def is_settled(self) -> bool:
        """Whether its turn has an outcome that stays: then only the worker may still have to be ended."""
        return self.facts["outcome"] not in (None, *OPEN_OUTCOMES)

    @property
    def is_here(self) -> bool:
        """Whether its pids mean something to us: it may belong to a container, or to before the last boot."""
        return self.facts["machine"] == name_machine()

    def check_here(self) -> None:
        """Raises `Unusable` for a run whose processes cannot be told from ours by their pids."""
        if not self.is_here:
            where = "another machine, container or boot"
            raise Unusable("run %d: belongs to %s" % (self.id, where), "call from there")

    @property
    def mark(self) -> str:
        """The environment assignment that every process of this run was started with."""
        return "%s=%s" % (RUN_VARIABLE, self.folder)

    def path(self, name: str) -> str:
        """The path of one of its files."""
        return os.path.join(self.folder, name)

    def update(self, **facts: Any) -> None:
        """Changes facts, on disk first."""
        changed = dict(self.facts, **facts)
        write_file(self.path("run.json"), json.dumps(changed, indent=1) + "\n")
        self.facts = changed

    def log(self, event: str, **facts: Any) -> None:
        """Adds an event to events.jsonl."""
        entry = {"at": round(time.time(), 3), "event": event, **facts}
        append_line(self.path("events.jsonl"), json.dumps(entry))

    def reload(self) -> None:
        """Reads run.json again: somebody else may have ended the run."""
        self.facts = read_run_facts(self.folder)

    def locked(self) -> "contextlib.AbstractContextManager[None]":
        """Held by whoever ends the run, so that it is ended once."""
        return hold_lock(self.path("lock"))


def read_run(folder: str) -> Run:
    """The run in a folder. `Unusable` when there is none that this copy can read."""
    return Run(folder, read_run_facts(folder))


def list_numbers(folder: str) -> list[int]:
    """The entries of a folder that are numbers, in order; none when there is no folder."""
    try:
        return sorted(int(name) for name in os.listdir(folder) if str(as_number(name)) == name)
    except OSError:
        return []


def claim_folder(state: str) -> str:
    """Makes the folder of a new run. mkdir either makes it or finds that another start was faster."""
    runs = os.path.join(state, "runs")
    make_folder(runs)
    make_folder(os.path.join(state, "open"))
    number = max(list_numbers(runs), default=0) + 1
    while True:
        folder = os.path.join(runs, str(number))
        try:
            os.mkdir(folder, 0o700)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise refuse_file(folder, error) from error


def open_mark(run: Run) -> str:
    """The empty file that says a run is not over: so that nobody has to read all runs to find those."""
    return os.path.join(run.folder, "..", "..", "open", str(run.id))


def remove_folder(folder: str) -> None:
    """Removes a folder of ours with all that is in it; what cannot be removed stays. No link is followed."""
    if os.path.islink(folder) or not os.path.isdir(folder):
        return
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            remove_folder(path)
            continue
        with contextlib.suppress(OSError):   # disk trouble brought us here; the first error is reported
            os.unlink(path)
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def new_run(state: str, facts: dict[str, Any]) -> Run:
    """Makes a run in state "starting"."""
    folder = claim_folder(state)
    run = Run(folder, {})
    try:
        make_folder(run.path("turns"))
        run.update(format=RUN_FORMAT, id=run.id, version=VERSION, state="starting", outcome=None, **facts)
        write_file(run.path("lock"), "")   # made now: on a full disk a run can still be ended
        write_file(open_mark(run), "")
    except BaseException:
        remove_folder(folder)
        raise
    return run


def find_run(state: str, word: str) -> Run:
    """The run with that id, or the newest one for "last"."""
    numbers = list_numbers(os.path.join(state, "runs"))
    if word == "last" and numbers:
        return read_run(os.path.join(state, "runs", str(numbers[-1])))
    if as_number(word) in numbers and word == str(as_number(word)):
        return read_run(os.path.join(state, "runs", word))
    raise Unusable("run `%s` does not exist" % word, own_command("list"))


def read_runs(state: str, kind: str, tell: Tell) -> list[Run]:
    """The runs of a state folder, in order: all of them ("runs"), or those that are not over ("open"). A run
    that this copy cannot read is named and left alone."""
    runs = []
    for number in list_numbers(os.path.join(state, kind)):
        try:
            runs.append(read_run(os.path.join(state, "runs", str(number))))
        except Unusable as failure:
            tell(failure.what)
    return [run for run in runs if kind == "runs" or not run.is_over]


def close_run(run: Run, **facts: Any) -> None:
    """Marks a run as over."""
    run.update(state="over", **facts)
    with contextlib.suppress(FileNotFoundError):   # `stop` was faster
        os.unlink(open_mark(run))


def process_fact(process: Optional[Process]) -> Optional[list[Any]]:
    """A process as run.json holds it."""
    return list(process) if process else None


def fact_process(fact: Any) -> Process:
    """The process that run.json holds; one that never lives when it holds none."""
    return Process(int(fact[0]), str(fact[1])) if fact else Process(0, "")


# =============================================================================
# 10. Workspaces
# =============================================================================
# Where an agent works.


def resolve_workspace(folder: str) -> str:
    """The real path of a folder that can be entered: agents remember trust by real path."""
    try:
        path = os.path.realpath(os.path.expanduser(folder))
    except OSError as error:   # "." in a folder that was removed
        raise Unusable("%s: no such folder" % folder, "name a folder that exists") from error
    if not os.path.isdir(path):
        raise Unusable("%s: no such folder" % folder, "name a folder that exists")
    if not os.access(path, os.R_OK | os.X_OK):
        raise Unusable("%s: cannot be entered" % folder, "name a folder that is yours")
    return path


# =============================================================================
# 11. Panes
# =============================================================================
# An agent in tmux: start it, look at it, answer its dialogs, end it.

ARGUMENT_LIMIT_BYTES = 120_000   # Linux takes 131,072 in one argument; a longer prompt is given as a file
FIRST_LOOK_S = 0.25              # looks at screen and record: the first one, and how far apart they get
LONGEST_LOOK_S = 1.0
QUIT_PATIENCE_S = 3.0            # claude, codex and opencode went within 2 s of their quit keys
DROPPED_VARIABLES = ("TMUX", "TMUX_PANE", "COLUMNS", "LINES")
SHELL_VARIABLES = ("TERM", "TERM_PROGRAM", "PWD", "SHLVL", "_", "UID", "EUID", "PPID", "SHELLOPTS",
                   "BASHOPTS", "BASH_VERSINFO")   # a pane's own, and those that a shell refuses to set

DONE_FILE_PROMPT = """{prompt}

---
When all of this is done, as your very last step, write a short summary to the file
{folder}/done.md.tmp
and then rename it to
{folder}/done.md
The summary is all that the one who asked will see: name the files you changed, the checks you ran and how
they went, and what is left open. Do not write these two files before everything else is finished."""

POINTER_PROMPT = "Read the file {folder}/prompt.md and do exactly what it says."

LAUNCHER = """#!/bin/sh
# selftalk run {id}: profile {profile}, agent {agent}.
# Starts the agent in its workspace and writes its exit status to `exit`. Can be run again: sh launch.sh
# No variables here: a worker would inherit them under the names of its own.
trap : HUP INT TERM     # the status is written also when the terminal goes away
prompt() {{ {prompt}; }}
{receive}unset {dropped}   # else a tmux command of the agent reaches the server it lives in
{needed}cd {workspace} &&
{command}
set -- $?
echo "$1" > {folder}/exit.tmp && mv {folder}/exit.tmp {folder}/exit
exit "$1"
"""


class Launch(NamedTuple):
    """All that is needed to start a worker."""

    profile: Profile
    workspace: str
    prompt: str            # as given, without instructions
    env: dict[str, str]    # the worker's environment
    program: str           # the path of the agent's binary


class Sight(NamedTuple):
    """All that one look at a worker has shown."""

    exit_status: Optional[int] = None   # None while it runs, and when it ended without telling
    is_gone: bool = False               # the launcher has ended
    screen: Screen = Screen("")
    verdict: Verdict = UNKNOWN
    said: Said = Said()
    done: Optional[str] = None          # the text of done.md


# --- starting ----------------------------------------------------------------

def note_place(run: Run, **facts: Any) -> None:
    """Writes down where a run is being started. `Failure` when it was stopped meanwhile."""
    with run.locked():
        run.reload()
        if run.is_over:
            raise Failure("run %d: was stopped while it was starting" % run.id, "start it again")
        run.update(**facts)


def needs_utf8(env: dict[str, str]) -> bool:
    """Whether an environment asks for no UTF-8: agents draw their screens with it."""
    chosen = env.get("LC_ALL") or env.get("LC_CTYPE") or env.get("LANG") or ""
    return "utf" not in chosen.lower()


def compose_env(profile: Profile, base: dict[str, str], is_root: bool) -> dict[str, str]:
    """The environment of a worker: the caller's, less what would bend a nested agent, plus row and profile.

    `Unusable` names a `from_env` variable that is not set.
    """
    markers = {marker for row in AGENTS.values() for marker in row.start.markers}
    env = {name: value for name, value in base.items()
           if name not in markers and name not in DROPPED_VARIABLES}
    if needs_utf8(env):
        env["LC_ALL"] = "en_US.UTF-8" if sys.platform == "darwin" else "C.UTF-8"
    env.update(profile.agent.start.env)
    env.update(profile.agent.start.root_env if is_root else ())
    for name, value in profile.env:
        if isinstance(value, FromEnv) and value.name not in base:
            raise Unusable("profile `%s`: %s is not set in the environment" % (profile.name, value.name),
                           "export %s=…, it becomes %s of the worker" % (value.name, name))
        env[name] = base[value.name] if isinstance(value, FromEnv) else value
    return env


def record_home(agent: Agent, env: dict[str, str]) -> str:
    """The folder in which an agent that runs with `env` writes down what it says; "" when it does not."""
    if not agent.record:
        return ""
    variable, otherwise = agent.record.home
    return env.get(variable) or otherwise.replace("~", env.get("HOME") or os.path.expanduser("~"), 1)


def fill_holes(words: Iterable[str], holes: dict[str, str]) -> tuple[str, ...]:
    """`words` with each {name} of `holes` replaced."""
    pattern = re.compile("|".join(re.escape("{%s}" % name) for name in holes))
    return tuple(pattern.sub(lambda found: holes[found.group(0)[1:-1]], word) for word in words)


def added_args(profile: Profile, workspace: str) -> tuple[str, ...]:
    """The row's own args, less those that the profile decides itself."""
    words = tuple(word for sign, words in profile.agent.start.added for word in words
                  if not any(re.match(sign, arg) for arg in profile.args))
    quoted = json.dumps(workspace, ensure_ascii=False)   # TOML knows no surrogate pairs
    return fill_holes(words, {"workspace": workspace, "workspace_json": quoted})


def agent_args(profile: Profile, workspace: str, folder: str) -> tuple[str, ...]:
    """What stands between the agent's binary and the prompt."""
    prompt_file = os.path.join(folder, "prompt.md")
    return added_args(profile, workspace) + fill_holes(profile.args, {"prompt_file": prompt_file})


def prompt_words(profile: Profile, folder: str) -> str:
    """How the launcher's command line gives the prompt, in shell."""
    if profile.prompt == "stdin":
        return " < %s/prompt.md" % shlex.quote(folder)
    if profile.prompt == "prompt-file-arg":
        return ""
    words = profile.agent.start.prompt
    return "".join(' "$(prompt)"' if word == "{prompt}" else " " + shlex.quote(word) for word in words)


def is_command(prompt: str, start: Start) -> bool:
    """Whether an agent would take a prompt for a command of its own."""
    return prompt.lstrip()[:1] in tuple(start.commands)


def run_prompt(run: Run, prompt: str, start: Start) -> str:
    """The prompt of a task as it is sent: with the instructions for done.md."""
    lead = start.lead if is_command(prompt, start) else ""
    return lead + DONE_FILE_PROMPT.replace("{folder}", run.folder).replace("{prompt}", prompt.rstrip("\n"), 1)


def goes_by_file(text: str, start: Start) -> bool:
    """Whether a prompt cannot be an argument: too long for one, or a command whatever stands before it."""
    too_long = len(text.encode("utf-8", "surrogateescape")) > ARGUMENT_LIMIT_BYTES
    return too_long or is_command(text, start) and not start.lead


def render_launcher(run: Run, launch: Launch, receives_env: bool) -> str:
    """The launcher's text. It holds names of variables, never a value: a value may be a secret."""
    profile, folder = launch.profile, shlex.quote(run.folder)
    by_file = goes_by_file(run_prompt(run, launch.prompt, profile.agent.start), profile.agent.start)
    command = [launch.program, *agent_args(profile, launch.workspace, run.folder)]
    pointer = "printf %%s %s" % shlex.quote(POINTER_PROMPT.format(folder=run.folder))
    return LAUNCHER.format(
        id=run.id, profile=profile.name, agent=profile.agent.name, folder=folder,
        dropped=" ".join(DROPPED_VARIABLES), workspace=shlex.quote(launch.workspace),
        receive='[ -p {0}/env ] && eval "$(cat {0}/env)"\n'.format(folder) if receives_env else "",
        needed="".join(': "${%s?is set by the profile}"\n' % name for name, _ in profile.env),
        prompt=pointer if by_file else "cat %s/prompt.md" % folder,
        command=" ".join(map(shlex.quote, command)) + prompt_words(profile, run.folder))


def split_direction(width: int, height: int) -> str:
    """The tmux flag that splits a pane of this size best, or "" when there is no room."""
    if width >= 2 * PANE_ROOM[0] + 1 and height >= PANE_ROOM[1]:
        return "-h"
    if height >= 2 * PANE_ROOM[1] + 1 and width >= PANE_ROOM[0]:
        return "-v"
    return ""


def find_room(caller_env: dict[str, str], version: tuple[int, int],
              echo: Optional[Tell]) -> tuple[Optional[TmuxServer], str]:
    """The caller's tmux server and the direction to split its pane; (None, "") without a pane or room."""
    socket, pane = caller_env.get("TMUX", "").split(",")[0], caller_env.get("TMUX_PANE", "")
    if not socket or not pane:
        return None, ""
    server = TmuxServer(socket, version, echo)
    direction = split_direction(*server.pane_size(pane))
    return (server, direction) if direction else (None, "")


def open_session(run: Run, launch: Launch, version: tuple[int, int], echo: Optional[Tell]) -> PaneFacts:
    """Starts the worker in a detached session, on a server of its own.

    Another state folder may have a run of the same number: then the server gets another name. It is written
    down before the server starts, so that a start that is cut short can be undone.
    """
    write_file(run.path("launch.sh"), render_launcher(run, launch, False), mode=0o700)
    env = dict(launch.env, SELFTALK_RUN=run.folder)
    for number in range(1, 100):
        name = "selftalk-%d" % run.id if number == 1 else "selftalk-%d-%d" % (run.id, number)
        note_place(run, socket=socket_path(name, launch.env.get("TMUX_TMPDIR", "")))
        try:
            return TmuxServer(name, version, echo).start(("sh", run.path("launch.sh")), env)
        except Failure as error:
            if "duplicate session" not in error.what:
                raise
    raise Failure("tmux: no free name for run %d's server" % run.id, "end old ones: tmux -L NAME kill-server")


def open_beside(run: Run, launch: Launch, server: TmuxServer, direction: str, beside: str) -> PaneFacts:
    """Starts the worker in a pane beside the caller.

    That server was started by somebody else, with another environment. The worker's comes through a named
    pipe: it is never on disk, in an argument or in an option of tmux. The pane is written down before it gets
    it, so that a start that is cut short can be undone.
    """
    write_file(run.path("launch.sh"), render_launcher(run, launch, True), mode=0o700)
    make_pipe(run.path("env"))
    facts = server.split(beside, direction, ("sh", run.path("launch.sh")), run.mark)
    note_place(run, place="pane", socket=facts.socket, pane=facts.pane,
               server=process_fact(read_process(facts.server_pid)))
    server.keep_pane(facts.pane)
    lines = ["export %s=%s" % (name, shlex.quote(value)) for name, value in launch.env.items()
             if ENV_NAME.match(name) and name not in SHELL_VARIABLES]
    if not feed_pipe(run.path("env"), "\n".join(lines) + "\n", 15.0):
        raise Failure("tmux: the new pane did not start", "use --session")
    return facts


# --- the agent's own record --------------------------------------------------

def find_begin(text: str, needle: str, since: float) -> str:
    """When a record that speaks of our run was begun; "" for one that does not, or was begun before `since`.

    An agent that called us has our folder's name in its record too, but its record is older.
    """
    found = re.search(r'"timestamp": ?"([0-9T:.-]+)Z"', text)
    earliest = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since - 1.0))
    is_ours = found and found.group(1) >= earliest and json.dumps(needle)[1:-1] in text
    return found.group(1) if is_ours else ""


class RecordFollower:
    """Follows what an agent writes down about itself, from the moment its file is found."""

    def __init__(self, record: Optional[Record], run: Run) -> None:
        self.record, self.said = record, Said()
        self._needle = run.folder + "/"   # each prompt of ours names a file in it, so the record does too
        self._since = run.facts["started_at"]
        self._path, self._offset, self._partial, self._stamp = "", 0, b"", ()
        self._home = run.facts["record_home"]

    @property
    def has_grown(self) -> bool:
        """Whether the file has changed since the last read."""
        return bool(self._path) and self._written() != self._stamp

    def read(self) -> Said:
        """What the agent said up to now."""
        if not self.record:
            return self.said
        self._path = self._path or self._find()
        if self.has_grown:
            self._stamp = self._written()
            self.said = self._read_rows() if self.record.query else self._read_lines()
        return self.said

    def _written(self) -> tuple[Any, ...]:
        """Changes when the record does; SQLite writes into the file beside the database first."""
        return file_stamp(self._path), file_stamp(self._path + "-wal")

    def _find(self) -> str:
        """The record that was begun first of those that speak of our run: a later one may quote it."""
        import glob   # 3 ms, and only for agents that keep a record
        paths = glob.glob(os.path.join(glob.escape(self._home), self.record.files))
        if self.record.query:
            return paths[0] if paths else ""
        recent = [path for path in paths if file_stamp(path)[1] >= self._since - 1.0]
        begins = [(find_begin(read_file(path) or "", self._needle, self._since), path) for path in recent]
        return min((pair for pair in begins if pair[0]), default=("", ""))[1]

    def _read_lines(self) -> Said:
        data = read_bytes(self._path, self._offset) or b""
        self._offset += len(data)
        whole, _, self._partial = (self._partial + data).rpartition(b"\n")
        return fold_record(self.said, decode(whole), self.record.format)

    def _read_rows(self) -> Said:
        rows = query_database(self._path, self.record.query,
                              {"needle": self._needle, "since_ms": int(self._since * 1000) - 1000})
        return fold_record(Said(), "\n".join(rows), self.record.format)


# --- looking -----------------------------------------------------------------

def read_exit(run: Run) -> Optional[int]:
    """The exit status that the launcher wrote; None when it did not."""
    text = (read_file(run.path("exit")) or "").strip()
    return as_number(text)


class Worker:
    """A worker in its pane, held open for questions. Closing it leaves the worker as it is."""

    def __init__(self, run: Run, echo: Optional[Tell] = None) -> None:
        self.run, self.agent = run, AGENTS[run.facts["agent"]]
        self.pane = run.facts["pane"]
        self.server = TmuxServer(run.facts["socket"], tuple(run.facts["tmux"]), echo)
        self.record = RecordFollower(self.agent.record, run)
        self.launcher = fact_process(run.facts["launcher"])
        self._client, self.last_screen = None, Screen("")
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> "Worker":
        death = self._exits.enter_context(watch_death(self.launcher.pid))
        self.pause = pause_for([death])
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def has_news(self) -> bool:
        """A cheap look, a few system calls: whether the worker ended, published, or wrote in its record."""
        return (file_size(self.run.path("exit")) > 0 or file_size(self.run.path("done.md")) > 0
                or self.record.has_grown or not has_process(self.launcher.pid))

    def look(self) -> Sight:
        """A whole look. What ends a turn is read first and its fruits last, so none is missed in between."""
        is_dead = not is_alive(self.launcher)
        status = read_exit(self.run)   # written before the launcher ends, so read after that was asked
        is_gone = is_dead or status is not None
        said = self.record.read()
        if is_gone:
            self.await_drained()
        screen = self.capture()
        verdict = judge_screen(screen, self.agent.pane.rules, self.agent.pane.marks)
        return Sight(status, is_gone, screen, verdict, said, read_file(self.run.path("done.md")))

    def await_drained(self) -> None:
        """Waits until tmux has read the last words of a worker that ended: they come after its exit status.
        A child that still has the terminal open keeps tmux from saying so; then half a second has to do."""
        with contextlib.suppress(ServerGone):
            for _ in until(0.5):
                if self._ask("display-message -p -t %s '#{pane_dead}'" % self.pane)[0] == "1":
                    return

    def capture(self) -> Screen:
        """What the pane shows; what it showed last when it is gone."""
        try:
            title, text = self._ask("display-message -p -t %s '#{pane_title}'" % self.pane,
                                    "capture-pane -p -t %s" % self.pane)
        except ServerGone:
            return self.last_screen
        text = re.sub(r"(^|\n)Pane is dead[^\n]*", "", text)   # tmux's own line
        self.last_screen = Screen(text.expandtabs(8), title)     # tmux 3.6 keeps tabs, older ones do not
        return self.last_screen

    def capture_all(self) -> str:
        """The screen with what scrolled out of it, as far as the agent lets the terminal scroll."""
        try:
            return self._ask("capture-pane -p -J -S -5000 -t %s" % self.pane)[0].rstrip()
        except ServerGone:
            return self.last_screen.text.rstrip()

    def is_publishing(self) -> bool:
        """Whether a process of the worker has done.md open: it writes there instead of renaming a file."""
        path = os.path.realpath(self.run.path("done.md"))
        if was_renamed(path):
            return False
        return any(has_open(process, path) for process in find_tree(self.launcher, self.run.mark))

    def press(self, keys: Iterable[str]) -> None:
        """Presses keys in the worker's pane."""
        self.server.send_keys(self.pane, keys)

    def _ask(self, *commands: str) -> list[str]:
        if not self._client:
            self._client = self._exits.enter_context(ControlClient(self.server, self.run.facts["session"]))
        try:
            return self._client.ask(*commands)
        except ServerGone:
            self._client.close()
            self._client = None
            raise


# --- dialogs -----------------------------------------------------------------

def find_dialog(screen: Screen, dialogs: tuple[Dialog, ...]) -> Optional[Dialog]:
    """The known dialog at the bottom of a screen."""
    text = cut_region(screen, "bottom:20", {})
    return next((dialog for dialog in dialogs
                 if all(re.search(need, text, re.MULTILINE) for need in dialog.needs)), None)


def dialog_keys(screen: Screen, dialog: Dialog) -> tuple[str, ...]:
    """The keys that answer a dialog, or only those that move to the wanted option while it is not selected
    yet; none when it cannot be seen. So the option is seen to be selected before it is taken."""
    if not dialog.choose:
        return dialog.keys
    moves = plan_keys(find_options(cut_region(screen, "bottom:20", {})), dialog.choose)
    return moves[:-1] or dialog.keys if moves else ()


def was_just_asked(run: Run, screen: Screen) -> bool:
    """Whether some waiter pressed keys on this very screen a moment ago: it has not redrawn yet."""
    is_recent = time.time() - file_stamp(run.path("asked"))[1] < LONGEST_LOOK_S
    return is_recent and read_file(run.path("asked")) == checksum(screen.text)


def answer_dialog(worker: Worker, screen: Screen, answered: tuple[str, ...]) -> Optional[str]:
    """Goes one step towards the answer of the dialog on the screen. Its name; "" when it may not be answered;
    None when the screen is another one by now, or has not yet shown what the step before did.

    A dialog that is still there after six steps is not touched any more.
    """
    dialog = find_dialog(screen, worker.agent.pane.dialogs)
    keys = dialog_keys(screen, dialog) if dialog else ()
    if not keys or answered.count(dialog.name) >= 6:
        return ""
    with worker.run.locked():   # two waiters would press twice
        if was_just_asked(worker.run, screen) or worker.capture().text != screen.text:
            return None
        worker.run.log("dialog", name=dialog.name, keys=list(keys))
        write_file(worker.run.path("asked"), checksum(screen.text))
        worker.press(keys)
    return dialog.name


# --- ending ------------------------------------------------------------------

def quit_worker(worker: Worker) -> None:
    """Presses the agent's quit keys, when it is ready for them, and gives it some time to go."""
    pane = worker.agent.pane
    keys = pane.quit
    if not keys or judge_screen(worker.capture(), pane.rules, pane.marks).state != "ready":
        return
    worker.press(keys)
    for _ in until(QUIT_PATIENCE_S, pause=worker.pause):
        if not is_alive(worker.launcher):
            return


def remove_socket(run: Run) -> None:
    """Removes what a server of ours leaves at its socket's path, unless another server has it by now."""
    if socket_identity(run.facts["socket"]) == run.facts["socket_identity"]:
        with contextlib.suppress(FileNotFoundError):   # TERM is like kill-server: the socket may stay
            os.unlink(run.facts["socket"])


def end_pane(run: Run, echo: Optional[Tell] = None) -> list[Process]:
    """Ends all that a run's worker started, then its pane or server. Returns what could not be ended."""
    server, launcher = fact_process(run.facts["server"]), fact_process(run.facts["launcher"])
    is_shared = run.facts["place"] == "pane"
    left = end_processes(lambda: [one for one in find_tree(launcher, run.mark) if one != server]
                         + [server] * (not is_shared and is_alive(server)))
    if not is_shared:
        remove_socket(run)
    elif is_alive(server):   # another server on that socket would have another pane of this number
        TmuxServer(run.facts["socket"], tuple(run.facts["tmux"]), echo).kill_pane(run.facts["pane"])
    return left


def end_start(run: Run) -> None:
    """Ends what a start that was cut short has left: a pane or a server of which run.json may know little."""
    end_processes(lambda: find_tree(Process(0, ""), run.mark))
    path, server = run.facts.get("socket"), fact_process(run.facts.get("server"))
    if not path or not os.path.exists(path):
        return
    tmux = TmuxServer(path, tuple(run.facts["tmux"]))
    if run.facts.get("place") == "pane":
        if is_alive(server):
            tmux.kill_pane(run.facts["pane"])
        return
    told = tmux.run("show-environment", "-g", RUN_VARIABLE)
    if told.out.strip() == run.mark:   # where processes cannot be found by their environment
        tmux.run("kill-server")
    if told.status or told.out.strip() == run.mark:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


# =============================================================================
# 12. Pipes
# =============================================================================
# An agent without a terminal. Not there yet: a headless profile is refused in room 14.


# =============================================================================
# 13. Quota
# =============================================================================
# What is left of an account, and who is to be asked instead. Not there yet.


# =============================================================================
# 14. Conduct
# =============================================================================
# One run, from request to outcome: start, wait, end. The rules of waiting: a pure function of what was seen.

HEARTBEAT_S = 60.0
STALL_S = 600.0


class Request(NamedTuple):
    """What a person, a script or another agent wants done."""

    profile: Profile
    prompt: str
    workspace: str
    place: str = ""              # "session", "pane", or "" for a pane where there is one
    keep: bool = False           # leave the worker alive when it is done
    max_time_s: float = 0.0      # 0: no limit
    stall_s: float = STALL_S
    max_depth: int = 0


class Progress(NamedTuple):
    """What a wait has learnt from its looks so far."""

    began: bool = False                # the turn was seen to start
    state: str = ""                    # of the last look
    looks: int = 0                     # in a row that saw this state
    trace: str = ""                    # a checksum of what was on the screen and in the record, less spinners
    moved_s: float = 0.0               # when that last changed; all times are seconds since the run's start
    face: str = ""                     # a checksum of the screen with its spinners
    stirred_s: float = 0.0             # when that last changed
    answered: tuple[str, ...] = ()     # the dialogs that keys were pressed for
    next_look_s: float = 0.0
    beat_s: float = HEARTBEAT_S        # when the next heartbeat is due


# --- turns on disk ----------------------------------------------------------

def read_turn(run: Run) -> dict[str, Any]:
    """What turns/1.json says; nothing before it is written, or when a full disk has cut it."""
    try:
        return as_map(json.loads(read_file(run.path("turns/1.json")) or "{}"))
    except (ValueError, RecursionError):
        return {}


def write_turn(run: Run, facts: dict[str, Any]) -> None:
    """Writes turns/1.json, over what it held."""
    old = read_turn(run)
    write_file(run.path("turns/1.json"), json.dumps(dict(old, turn=1, **facts), indent=1) + "\n")


# --- starting ----------------------------------------------------------------

def count_depth(env: dict[str, str], max_depth: int) -> int:
    """How deep the new run is: 1 for one that no run started. `Unusable` when that is too deep."""
    given = env.get(DEPTH_VARIABLE, "")
    depth = (as_number(given) or 0) + 1
    if max_depth and depth > max_depth:
        raise Unusable("this run would be number %d inside of each other, the config allows %d"
                       % (depth, max_depth), "do the work here, or raise max_depth")
    return depth


def prepare_launch(request: Request, base: dict[str, str], depth: int) -> Launch:
    """All that can be found missing is found before anything starts."""
    profile = request.profile
    if profile.headless:
        raise Unusable("profile `%s` is headless: this version runs workers in tmux only" % profile.name,
                       "set `headless: false`")
    env = compose_env(profile, base, os.getuid() == 0)
    env[DEPTH_VARIABLE] = str(depth)
    program = find_program(profile.command, env.get("PATH", os.defpath), request.workspace)
    if not program:
        install = profile.agent.install
        advice = "install it: %s" % install if install else "check `command` in the config"
        raise Missing("profile `%s`: %s: not found" % (profile.name, profile.command), advice)
    return Launch(profile, request.workspace, request.prompt, env, program)


def open_place(run: Run, launch: Launch, place: str, base: dict[str, str],
               echo: Optional[Tell]) -> tuple[str, PaneFacts]:
    """Starts the worker where it was asked for; a session when there is no room for a pane."""
    version = tuple(run.facts["tmux"])
    server, direction = find_room(base, version, echo) if place != "session" else (None, "")
    if server:
        return "pane", open_beside(run, launch, server, direction, base["TMUX_PANE"])
    return "session", open_session(run, launch, version, echo)


def discard_run(run: Run) -> None:
    """Ends what a start that failed has left, and removes its folder, unless somebody has stopped the run."""
    attempt(lambda: end_start(run))   # the trouble that brought us here is the one to report
    with run.locked():
        attempt(run.reload)
        if run.is_over:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(open_mark(run))
        remove_folder(run.folder)


def note_start(run: Run, launch: Launch, place: str, facts: PaneFacts) -> None:
    """Writes down that a worker runs, and where."""
    argv = [launch.program, *agent_args(launch.profile, launch.workspace, run.folder)]
    note_place(run, state="running", place=place, argv=argv, socket=facts.socket, session=facts.session,
               pane=facts.pane, socket_identity=socket_identity(facts.socket),
               launcher=process_fact(read_process(facts.pane_pid)),
               server=process_fact(read_process(facts.server_pid)))
    run.log("spawned", place=place, socket=facts.socket, pane=facts.pane)


def start_run(request: Request, base: dict[str, str], echo: Optional[Tell] = None) -> Run:
    """Starts a worker and returns its run. When that fails nothing of it is left."""
    if request.place == "pane" and not base.get("TMUX"):
        raise Unusable("--pane: not inside tmux", "leave it out, or use --session")
    version = check_tmux()
    depth = count_depth(base, request.max_depth)
    launch = prepare_launch(request, base, depth)
    run = new_run(state_folder(base), {
        "profile": request.profile.name, "agent": request.profile.agent.name, "form": "task", "depth": depth,
        "parent": as_number(os.path.basename(base.get(RUN_VARIABLE, ""))),
        "workspace": request.workspace, "keep": request.keep, "max_time_s": request.max_time_s,
        "stall_s": request.stall_s, "tmux": version, "started_at": time.time(),
        "caller": process_fact(read_process(os.getpid())), "machine": name_machine(),
        "parent_folder": base.get(RUN_VARIABLE, ""),
        "record_home": record_home(request.profile.agent, launch.env)})
    try:
        write_file(run.path("prompt.md"), run_prompt(run, request.prompt, request.profile.agent.start))
        write_turn(run, {"prompt": request.prompt, "outcome": None})
        place, facts = open_place(run, launch, request.place, base, echo)
        note_start(run, launch, place, facts)
    except BaseException as error:
        discard_run(run)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("interrupted; nothing was started") from error
        raise
    return run


# --- waiting: the rules ------------------------------------------------------

def settle_state(sight: Sight) -> str:
    """One state from two sources. The agent's record outranks its screen, but for what only the screen knows:
    that a question is open, that a limit holds up the turn, and that something still runs behind a finished
    one."""
    shown, told = sight.verdict.state, sight.said.state
    if shown in ("asks", "login") or told == "unknown":
        return shown
    return shown if (told, shown) in (("ready", "busy"), ("busy", "limited")) else told


def look_pause_s(agent: Agent, at_s: float) -> float:
    """Seconds to the next look. A screen that no rule reads is looked at for its silence only, so seldom."""
    if not agent.pane.rules:
        return min(5.0, max(1.0, 0.25 * at_s))
    return min(LONGEST_LOOK_S, max(FIRST_LOOK_S, 0.05 * at_s))


def note_sight(progress: Progress, sight: Sight, at_s: float) -> Progress:
    """What is known after one more look, `at_s` seconds after the run's start."""
    state, face = settle_state(sight), checksum(sight.screen.text)
    trace = checksum((progress_mark(sight.screen), sight.said))
    return progress._replace(
        state=state, looks=progress.looks + 1 if state == progress.state else 1,
        began=progress.began or state == "busy" or sight.said.state != "unknown",
        trace=trace, moved_s=at_s if trace != progress.trace else progress.moved_s,
        face=face, stirred_s=at_s if face != progress.face else progress.stirred_s)


def judge_trouble(state: str, sight: Sight) -> Ending:
    """The ending of a turn that cannot go on, in the agent's own words."""
    words = find_question(sight.screen) if state == "asks" else sight.said.error
    words = clean_text(words or sight.verdict.text).split("\n")[0]
    fix = {"asks":    "look at it, answer it there, then wait again",
           "login":   "start the agent once by hand and log in",
           "limited": "wait for the reset, or name another profile",
           "failed":  "look at it"}[state]
    verb = "asks" if state == "asks" else "says"
    return Ending(state, "the agent %s: %s" % (verb, words), fix, said=sight.said)


def judge_exit(sight: Sight) -> Ending:
    """The ending of a worker that is gone, and has published no done.md."""
    if sight.said.state == "ready" and sight.said.text:
        return Ending("answered", answer=sight.said.text, source="transcript", said=sight.said)
    if sight.said.state in ("failed", "limited", "login"):
        return judge_trouble(sight.said.state, sight)
    how = "vanished" if sight.exit_status is None else "exited with status %d" % sight.exit_status
    return Ending("died", "the worker %s before it published anything" % how, "look at it",
                  said=sight.said)


def judge_stall(progress: Progress, sight: Sight, at_s: float, agent: Agent,
                stall_s: float) -> Optional[Ending]:
    """The ending of a turn in which nothing has moved for too long."""
    silent_s = at_s - progress.moved_s
    if silent_s >= stall_s:
        was_taken = progress.began or not agent.pane.rules
        seen = "no progress for %d s" % silent_s if was_taken else "the turn was not seen to start"
        return Ending("stalled", seen, "look at it; then wait again, or stop it", said=sight.said)
    still_s = at_s - progress.stirred_s
    if agent.pane.silence_s and still_s >= agent.pane.silence_s:
        return Ending("answered", "nothing moved for %d s; taken as the end of the turn" % still_s,
                      source="screen")
    return None


def judge_turn(progress: Progress, sight: Sight, at_s: float, agent: Agent,
               stall_s: float) -> Optional[Ending]:
    """The ending of the turn, or None while it goes on. `progress` has `sight` in it already.

    In order of trust: done.md, the worker's end, the agent's record, its screen, silence. What only a screen
    says has to be said twice in a row; and a screen that waits for input is no end before the turn was seen
    to start.
    """
    if sight.done and sight.done.strip():
        return Ending("answered", answer=sight.done, source="done.md", said=sight.said)
    if sight.is_gone:
        return judge_exit(sight)
    is_sure = progress.looks >= 2 or progress.state == sight.said.state
    if progress.state == "ready" and progress.began and is_sure:
        source = "transcript" if sight.said.text else "screen"
        return Ending("answered", "the worker went idle without publishing done.md", answer=sight.said.text,
                      source=source, said=sight.said)
    if progress.state in ("asks", "login", "limited", "failed") and is_sure:
        return judge_trouble(progress.state, sight)
    return judge_stall(progress, sight, at_s, agent, stall_s)


# --- ending ------------------------------------------------------------------

def write_ending(run: Run, ending: Ending) -> None:
    """Keeps an ending: the answer whole in turns/1.md, all else in turns/1.json."""
    now = time.time()
    write_file(run.path("turns/1.md"), ending.answer)
    write_turn(run, {"outcome": ending.outcome, "what": ending.what, "fix": ending.fix,
                     "source": ending.source, "model": ending.said.model, "tokens": ending.said.tokens,
                     "ended_at": round(now, 3), "seconds": round(now - run.facts["started_at"], 3)})


def read_summary(run: Run) -> str:
    """What the worker has published; "" for nothing."""
    return clean_text(read_file(run.path("done.md")) or "").rstrip("\n")


def read_ending(run: Run) -> Ending:
    """The ending that was kept, as far as it was."""
    turn = read_turn(run)
    said = Said(model=turn.get("model") or "", tokens=turn.get("tokens"))
    answer = read_file(run.path("turns/1.md")) or read_summary(run)
    outcome = turn.get("outcome") or run.facts["outcome"]
    what, fix, source = (turn.get(name) or "" for name in ("what", "fix", "source"))
    return Ending(outcome, what, fix, answer, source, said)


def end_worker(run: Run, outcome: str, echo: Optional[Tell]) -> None:
    """Ends all that a run has started, and the run. `Failure` names what could not be ended."""
    left = end_pane(run, echo)
    run.log("ended", left=[process.pid for process in left])
    close_run(run, outcome=outcome, exit_status=read_exit(run), ended_at=time.time())
    if left:
        pids = " ".join(str(one.pid) for one in left)
        raise Failure("run %d: processes that could not be ended: %s" % (run.id, pids), "end them by hand")


def read_children(run: Run) -> list[Run]:
    """The runs that were started inside a run and are not over: who asked for them goes with it."""
    state = os.path.dirname(os.path.dirname(run.folder))
    runs = read_runs(state, "open", lambda line: None)
    return [child for child in runs if child.facts.get("parent_folder") == run.folder]


def published_ending(run: Run) -> Ending:
    """What a stop leaves of a turn: the summary, when the worker was faster than the stop."""
    answer = read_summary(run)
    if answer:
        return Ending("answered", answer=answer, source="done.md")
    return Ending("stopped", "the run was stopped", "start a new one")


def stop_run(run: Run, echo: Optional[Tell] = None) -> bool:
    """Ends a run now, and the runs that were started inside it; False when it was over already."""
    with run.locked():
        run.reload()
        if run.is_over:
            return False
        run.check_here()
        if run.facts["state"] == "starting":
            end_start(run)
            close_run(run, outcome="stopped")
            return True
        ending = read_ending(run) if run.is_settled else published_ending(run)
        trouble = attempt(lambda: None if run.is_settled else write_ending(run, ending),
                          *[functools.partial(stop_run, child, echo) for child in read_children(run)],
                          lambda: end_worker(run, ending.outcome, echo))
    if trouble:
        raise Failure("run %d: %s" % (run.id, trouble), "look into %s" % run.folder)
    return True


def is_kept(run: Run, ending: Ending) -> bool:
    """Whether the worker stays after this ending."""
    return ending.outcome in OPEN_OUTCOMES or run.facts["keep"] and ending.outcome != "late"


def dismiss_worker(worker: Worker, ending: Ending) -> None:
    """Ends the worker of a turn that is over, unless it is to be kept."""
    if is_kept(worker.run, ending):
        return
    if ending.outcome == "answered":
        quit_worker(worker)
    run, echo = worker.run, worker.server.echo
    trouble = attempt(*[functools.partial(stop_run, child, echo) for child in read_children(run)],
                      lambda: end_worker(run, ending.outcome, echo))
    if trouble:
        raise Failure(trouble)


def keep_ending(worker: Worker, ending: Ending) -> None:
    """Writes down how a turn ended, with the last screen."""
    run = worker.run
    write_ending(run, ending)
    write_file(run.path("screen.txt"), clean_text(worker.capture().text).rstrip() + "\n")
    run.log(ending.outcome, source=ending.source, what=ending.what)
    run.update(outcome=ending.outcome)


def finish_turn(worker: Worker, ending: Ending) -> Ending:
    """Keeps the ending and ends the worker, once: whoever comes second gets what the first one kept.

    Trouble with either of the two is added to the ending: it must not cost the answer.
    """
    run = worker.run
    with run.locked():
        run.reload()
        if run.is_settled:
            return read_ending(run)
        answer = worker.capture_all() if ending.source == "screen" else ending.answer
        ending = ending._replace(answer=clean_text(answer).rstrip("\n"))
        trouble = attempt(lambda: keep_ending(worker, ending), lambda: dismiss_worker(worker, ending))
    return ending._replace(what="; ".join(filter(None, (ending.what, trouble))))


# --- waiting: the deed -------------------------------------------------------

def await_start(run: Run, wait_s: float) -> None:
    """Waits until whoever starts a run has done so, or died over it: then what there is of it is ended."""
    for _ in until(wait_s):
        run.reload()
        if run.facts["state"] != "starting":
            return
        if not is_alive(fact_process(run.facts["caller"])):
            stop_run(run)
            return


def try_dialog(worker: Worker, sight: Sight, ending: Ending, progress: Progress,
               at_s: float) -> tuple[Optional[Ending], Progress]:
    """Answers a dialog that may be answered; the wait then goes on as if it had not been there."""
    progress = progress._replace(next_look_s=at_s + FIRST_LOOK_S)
    name = answer_dialog(worker, sight.screen, progress.answered)
    if name == "":
        return ending, progress
    return None, progress._replace(answered=progress.answered + (name,) if name else progress.answered)


def beat(run: Run, progress: Progress, at_s: float, tell: Tell) -> Progress:
    """Says now and then that the run goes on: hosts take silence for a hang."""
    if at_s < progress.beat_s:
        return progress
    tell("run %d: %s, %d s" % (run.id, progress.state or "starting", at_s))
    return progress._replace(beat_s=at_s + HEARTBEAT_S)


def read_progress(run: Run, at_s: float) -> Progress:
    """What the waits before this one have learnt: a stall is one, into however many waits it was cut."""
    try:
        kept = as_map(json.loads(read_file(run.path("progress.json")) or "{}"))
        times = [min(at_s, float(kept.get(name, 0.0))) for name in ("moved_s", "stirred_s")]
    except (ValueError, TypeError):   # half of it, or not ours: then this wait begins anew
        kept, times = {}, [0.0, 0.0]
    return Progress(began=bool(kept.get("began")), trace=str(kept.get("trace", "")), moved_s=times[0],
                    face=str(kept.get("face", "")), stirred_s=times[1], beat_s=at_s + HEARTBEAT_S)


def write_progress(run: Run, progress: Progress) -> None:
    """Keeps what the next wait has to know; on a full disk it finds out anew, and no answer is lost."""
    names = ("began", "trace", "moved_s", "face", "stirred_s")
    facts = {name: getattr(progress, name) for name in names}
    attempt(lambda: write_file(run.path("progress.json"), json.dumps(facts) + "\n"))


def check_folder(run: Run) -> None:
    """Ends the worker of a run whose folder was removed: nothing of it could be brought back any more."""
    if not os.path.isdir(run.folder):
        end_pane(run)
        raise Unusable("run %d: its folder was removed; the worker was ended" % run.id, "start it again")


def await_ending(worker: Worker, wait_s: float, tell: Tell) -> Optional[Ending]:
    """The loop: looks when there is news or when a look is due; None when the wait is over first."""
    run, facts = worker.run, worker.run.facts
    before_s = max(0.0, time.time() - facts["started_at"])
    progress = read_progress(run, before_s)
    for waited_s in until(wait_s, pause=worker.pause):
        at_s = before_s + waited_s
        is_late = bool(facts["max_time_s"]) and at_s >= facts["max_time_s"]
        if not (worker.has_news() or at_s >= progress.next_look_s or waited_s >= wait_s or is_late):
            continue
        check_folder(run)
        sight = worker.look()
        next_look_s = at_s + look_pause_s(worker.agent, at_s)
        had_begun = progress.began
        progress = note_sight(progress, sight, at_s)._replace(next_look_s=next_look_s)
        if progress.began != had_begun:
            write_progress(run, progress)
        ending = judge_turn(progress, sight, at_s, worker.agent, facts["stall_s"])
        if ending and ending.outcome == "asks":
            ending, progress = try_dialog(worker, sight, ending, progress, at_s)
        if ending and not (ending.source == "done.md" and worker.is_publishing()):
            write_progress(run, progress._replace(moved_s=at_s))   # so that a new wait begins a new stall
            return ending
        if is_late and not (progress.state == "ready" and progress.looks == 1):   # then one more look decides
            return Ending("late", "not done after %g s" % facts["max_time_s"], "give it more --max-time",
                          said=sight.said)
        progress = beat(run, progress, at_s, tell)
    write_progress(run, progress)
    return None


def settle_run(run: Run, echo: Optional[Tell] = None) -> None:
    """Ends the worker of a turn that is over: who wrote its ending down may have been killed over it."""
    if run.is_over or is_kept(run, Ending(run.facts["outcome"])):
        return
    stop_run(run, echo)


def await_run(run: Run, wait_s: float, tell: Tell, echo: Optional[Tell] = None) -> Ending:
    """Waits until a run's turn has ended, or for `wait_s`, and returns the ending; from any process, any
    number of times. A run that has ended gives the same ending again."""
    if not run.is_over:
        run.check_here()
    if run.facts["state"] == "starting":
        await_start(run, wait_s)
    if run.is_settled:
        settle_run(run, echo)
        return read_ending(run)
    if run.facts["state"] != "starting":
        with Worker(run, echo) as worker:
            ending = await_ending(worker, wait_s, tell)
            if ending:
                return finish_turn(worker, ending)
    words = "the wait of %g s is over, the worker goes on" % wait_s
    return Ending("running", words, own_command("wait %d" % run.id))


@contextlib.contextmanager
def named_interrupt(run: Run) -> Iterator[None]:
    """A Ctrl-C in here, or trouble with tmux, is told with the run that goes on."""
    fix = own_command("wait %d" % run.id)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted("run %d: interrupted; the worker goes on" % run.id, fix) from error
    except Failure as failure:
        if type(failure) is not Failure or not failure.what:
            raise
        raise Failure("run %d: %s" % (run.id, failure.what), fix) from failure


def has_ended(run: Run) -> bool:
    """Whether a look at a run is worth while: it published, exited, vanished, or ran out of time."""
    facts = run.facts
    return (file_size(run.path("done.md")) > 0 or file_size(run.path("exit")) > 0
            or not is_alive(fact_process(facts["launcher"]))
            or bool(facts["max_time_s"]) and time.time() - facts["started_at"] >= facts["max_time_s"])


def collect_run(run: Run, tell: Tell) -> None:
    """Ends one run whose caller is gone, if it has come to an end."""
    if run.facts["state"] == "starting":
        stop_run(run)
    elif run.is_settled:
        settle_run(run)
    elif has_ended(run):
        ending = await_run(run, 0.0, tell)
        if ending.outcome != "running":
            tell("run %d: its caller is gone; collected: %s" % (run.id, ending.outcome))


def collect_runs(state: str, tell: Tell) -> None:
    """Ends what a caller that died has left: starts that got nowhere, and tasks that have finished since."""
    for run in read_runs(state, "open", tell):
        if not run.is_here or is_alive(fact_process(run.facts["caller"])) or run.facts["keep"]:
            continue
        try:
            collect_run(run, tell)
        except Failure as failure:   # trouble with an old run is not to stop a new one
            tell("run %d: not collected: %s" % (run.id, failure.what))


# =============================================================================
# 15. Skill
# =============================================================================
# The text a host agent reads, and how it is installed. Not there yet: SKILL.md lies beside this file.


# =============================================================================
# 16. Report
# =============================================================================
# Records -> text and JSON. What a worker said is cleaned before it gets here.

LAST_LINES = 12   # of a screen that is shown with a failure


def watch_command(facts: dict[str, Any], how: str = "-r ") -> str:
    """How to look at a worker, from any terminal of the same user, also inside tmux; "" to type as well."""
    return "tmux -S %s attach %s-t %s" % (shlex.quote(facts["socket"]), how, shlex.quote(facts["pane"]))


def started_line(run: Run) -> str:
    """The first line a person sees."""
    head = "run %d: %s started" % (run.id, run.facts["profile"])
    if run.facts["place"] == "pane":
        return "%s in pane %s, beside this one" % (head, run.facts["pane"])
    return "%s; watch: %s" % (head, watch_command(run.facts))


def last_lines(text: str) -> list[str]:
    """The end of a screen, as a quotation."""
    lines = [line.rstrip() for line in text.split("\n") if line.strip()]
    return ["  | " + line for line in lines[-LAST_LINES:]]


def ending_lines(run: Run, ending: Ending) -> list[str]:
    """What a person is told when a wait is over."""
    seconds = read_turn(run).get("seconds")
    head = "run %d: %s" % (run.id, ending.outcome)
    if ending.outcome == "answered":
        source = {"screen": "its screen"}.get(ending.source, ending.source)
        head += " after %.1f s, from %s" % (seconds or 0.0, source)
        return [head + ("; " + ending.what if ending.what else "")]
    if ending.outcome == "running":
        return ["%s: %s" % (head, ending.what), "  try: %s" % ending.fix]
    is_open = ending.outcome in OPEN_OUTCOMES
    where = watch_command(run.facts, "") if is_open else "its last screen is in %s" % run.path("screen.txt")
    fix = "%s: %s" % (ending.fix, where)
    screen = read_file(run.path("screen.txt")) or ""
    return ["%s: %s" % (head, ending.what), *last_lines(screen), "  try: %s" % fix]


def run_object(run: Run) -> dict[str, Any]:
    """A run as --json shows it."""
    facts = run.facts
    return {"id": run.id, "folder": run.folder, "watch": watch_command(facts) if "pane" in facts else None,
            **{key: facts.get(key) for key in ("profile", "agent", "form", "place", "workspace", "state",
                                               "outcome", "parent", "depth", "started_at", "ended_at",
                                               "exit_status")}}


def result_object(run: Run, ending: Ending) -> dict[str, Any]:
    """A run and its ending as --json shows them."""
    return {**run_object(run), "outcome": ending.outcome, "answer": ending.answer,
            "source": ending.source or None, "what": ending.what or None, "fix": ending.fix or None,
            "model": ending.said.model or None, "tokens": ending.said.tokens,
            "seconds": read_turn(run).get("seconds")}


def failure_object(failure: Failure) -> dict[str, Any]:
    """Expected trouble as --json shows it."""
    return {"error": {"word": failure.word, "code": failure.code, "what": failure.what,
                      "fix": failure.fix or None}}


def profile_object(profile: Profile, config: Config, workspace: str) -> dict[str, Any]:
    """A profile as --json shows it, with all that a start would use but the value of a from_env."""
    return {"name": profile.name, "default": profile.name == config.default_profile, "config": config.source,
            "command": profile.command, "interface": profile.agent.name, "args": list(profile.args),
            "added_args": list(added_args(profile, workspace)),
            "env": {name: {"from_env": value.name} if isinstance(value, FromEnv) else value
                    for name, value in profile.env},
            "prompt": profile.prompt, "headless": profile.headless}


def profile_line(profile: Profile, config: Config) -> str:
    """A profile for a person: the default one is marked."""
    mark = "*" if profile.name == config.default_profile else " "
    return "%s %-20s %s" % (mark, profile.name, " ".join(map(shlex.quote, (profile.command, *profile.args))))


def run_line(run: Run, now: float) -> str:
    """A run for a person."""
    facts = run.facts
    minutes = (now - facts["started_at"]) / 60
    age = "%d min" % minutes if minutes < 120 else "%d h" % (minutes / 60)
    outcome = facts["outcome"] or facts["state"]
    workspace = clean_text(facts["workspace"]).replace("\n", "?")
    return "%4d  %-9s %-16s %8s  %s" % (run.id, outcome, facts["profile"], age, workspace)


def event_line(event: dict[str, Any]) -> str:
    """An event for a person."""
    rest = " ".join("%s=%s" % (key, value) for key, value in event.items() if key not in ("at", "event"))
    return "  %s  %-9s %s" % (time.strftime("%H:%M:%S", time.localtime(event["at"])), event["event"], rest)


# =============================================================================
# 17. Command line
# =============================================================================
# Verbs, parser, main. The only room that prints or exits.

PIPE_PATIENCE_S = 5.0                  # a pipe that neither sends nor closes for so long is not going to
LARGEST_PROMPT_BYTES = 16 << 20


HIDDEN = "==SUPPRESS=="                # argparse.SUPPRESS: not in the help


class Arg(NamedTuple):
    """One argument of a verb, as argparse takes it."""

    names: tuple[str, ...]
    options: dict[str, Any]


class Verb(NamedTuple):
    """One verb: what `selftalk.py NAME …` does."""

    deed: Callable[[Any], int]
    help: str
    args: tuple[Arg, ...]


def forget_output(handle: int) -> None:
    """Sends to nowhere what stdout or stderr still holds: else the interpreter complains about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), handle)


def emit(text: str) -> None:
    """Prints a result. A reader that has gone is no news; anything else is a `Failure`."""
    try:
        print(text, flush=True)
    except OSError as error:
        forget_output(1)
        words = "" if isinstance(error, BrokenPipeError) else "stdout: cannot be written: %s" % error.strerror
        raise Failure(words.lower(), "look at where the output goes" if words else "") from error


def say(line: str) -> None:
    """Talk: to stderr. When nobody listens any more, the run matters more than its talk."""
    try:
        for part in line.split("\n"):
            print(part if part.startswith("  ") else "selftalk: " + part, file=sys.stderr, flush=True)
    except OSError:
        forget_output(2)


def choose_tell(args: "argparse.Namespace") -> Tell:
    """Where the talk of a wait goes: nowhere with -q."""
    return (lambda line: None) if args.quiet else say


def choose_echo(args: "argparse.Namespace") -> Optional[Tell]:
    """Where commands are shown as they are run: nowhere without -v."""
    return (lambda line: say("  " + line)) if args.verbose else None


def emit_object(value: object) -> None:
    """One JSON value on stdout."""
    emit(json.dumps(value, indent=1))


# --- prompts -----------------------------------------------------------------

def check_prompt(data: bytes, source: str) -> str:
    """The text of a prompt. `Unusable` for what no agent can be given."""
    if len(data) > LARGEST_PROMPT_BYTES:
        raise Unusable("%s: the prompt has %d bytes, more than %d"
                       % (source, len(data), LARGEST_PROMPT_BYTES), "name the file in a short prompt instead")
    if b"\0" in data:
        raise Unusable("%s: the prompt holds a NUL byte at %d" % (source, data.index(b"\0")), "send text")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable("%s: the prompt is not UTF-8 at byte %d" % (source, error.start),
                       "convert it: iconv -t utf-8") from error
    if not text.strip():
        raise Unusable("%s: the prompt is empty" % source, "say what is to be done")
    return text


def read_prompt_file(path: str) -> str:
    """The prompt in a file."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise Unusable("%s: is not a file" % path, "name a file, or pipe it in")
    try:
        with open(path, "rb") as file:
            return check_prompt(file.read(LARGEST_PROMPT_BYTES + 1), path)
    except OSError as error:
        raise Unusable("%s: cannot be read: %s" % (path, (error.strerror or str(error)).lower()),
                       "check its name and its permissions") from error


def read_stdin_prompt(handle: int) -> str:
    """The prompt on stdin, when stdin is a file or a pipe: a terminal and /dev/null are no prompt."""
    try:
        kind = os.fstat(handle).st_mode
    except OSError:
        kind = 0
    if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
        raise Unusable("no prompt", "add it as words, as -f FILE, or on stdin")
    if not select.select([handle], [], [], PIPE_PATIENCE_S)[0]:
        raise Unusable("stdin: a pipe that sends nothing and does not close",
                       "close it (< /dev/null) or give the prompt as words")
    with open(handle, "rb", closefd=False) as file:
        return check_prompt(file.read(LARGEST_PROMPT_BYTES + 1), "stdin")


def choose_prompt(args: "argparse.Namespace") -> str:
    """The prompt: words, or a file, or stdin."""
    if args.words and args.prompt_file is not None:
        raise Unusable("a prompt in words and one in %s" % args.prompt_file, "give one of them")
    if args.words:
        return check_prompt(b" ".join(map(os.fsencode, args.words)), "the command line")
    if args.prompt_file not in (None, "-"):
        return read_prompt_file(args.prompt_file)
    return read_stdin_prompt(0)


# --- the worker of the demo --------------------------------------------------

def draw(*lines: str) -> None:
    """Draws the demo worker's screen anew."""
    sys.stdout.write("\x1b[2J\x1b[H" + "\r\n".join(lines))
    sys.stdout.flush()


def ask_first_question() -> bool:
    """A first-run question as the real agents ask it: plain Enter leaves."""
    import termios
    import tty
    saved, chosen = termios.tcgetattr(0), 0
    tty.setraw(0)
    try:
        while True:
            labels = enumerate(("No, leave", "Yes, work here"))
            rows = [("❯ " if number == chosen else "  ") + label for number, label in labels]
            draw("Demo worker: may I work in this folder?", "", *rows, "", "Enter to confirm")
            for key in re.findall(rb"\x1b\[.|.", os.read(0, 64), re.DOTALL):
                if key in b"\r\n":
                    return chosen == 1
                chosen = {b"\x1b[B": 1, b"\x1b[A": 0}.get(key, chosen)
    finally:
        termios.tcsetattr(0, termios.TCSANOW, saved)


def play_demo_worker(prompt: str) -> int:
    """A worker with the manners of a real one: it asks, gets ready, works a moment, answers, and stays."""
    folder = re.search(r"^(.*)/done\.md\.tmp$", prompt, re.MULTILINE)
    if not folder or not os.isatty(0):
        raise Unusable("demo --worker: is started by the demo only", own_command("demo"))
    if not ask_first_question():
        return 1
    draw("Demo worker, ready.", "", "> ")
    for waited_s in until(1.0):
        draw("Demo worker", "", "* Working… (%.1f s · esc to interrupt)" % waited_s)
    answer = "I am the demo worker: I asked a question, worked for a second, and published this summary."
    draw("Demo worker", "", answer, "", "> ")
    write_file(os.path.join(folder.group(1), "done.md.tmp"), answer + "\n")
    os.replace(os.path.join(folder.group(1), "done.md.tmp"), os.path.join(folder.group(1), "done.md"))
    select.select([0], [], [], 30.0)   # it stays, as the real ones do, but not for ever
    return 0


# --- verbs -------------------------------------------------------------------

def load_config(args: "argparse.Namespace") -> Config:
    """The config that was named, or the user's, or what is built in."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    home = home if os.path.isabs(home) else os.path.expanduser("~/.config")   # as the XDG specification says
    path = args.config or os.path.join(home, "selftalk", "config.yaml")
    if not args.config and not os.path.lexists(path):
        return built_in_config()
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
        return read_config(text, path)
    except OSError as error:
        words = (error.strerror or str(error)).lower()
        raise Unusable("%s: cannot be read: %s" % (path, words), "check --config") from error
    except UnicodeDecodeError as error:
        raise Unusable("%s: is not UTF-8 at byte %d" % (path, error.start),
                       "convert it: iconv -t utf-8") from error
    except Unusable as error:
        raise Unusable("%s: %s" % (path, error.what), error.fix) from error


def current_folder() -> str:
    """The folder we are in."""
    try:
        return os.getcwd()
    except OSError as error:
        raise Unusable("the current folder does not exist any more", "cd to one that does") from error


def show_ending(run: Run, ending: Ending, args: "argparse.Namespace") -> int:
    """Prints how a wait ended; the exit code."""
    if args.json:
        emit_object(result_object(run, ending))
    elif ending.answer:
        emit(ending.answer)
    for line in ending_lines(run, ending):
        choose_tell(args)(line)
    return OUTCOMES[ending.outcome][0]


def cmd_run(args: "argparse.Namespace") -> int:
    """Starts a worker on a task and waits for its answer."""
    config = load_config(args)
    profile = find_profile(config, args.profile)
    profile = profile._replace(args=profile.args + tuple(args.arg))
    request = Request(profile, choose_prompt(args), resolve_workspace(args.cwd or current_folder()),
                      args.place, args.keep, args.max_time, args.stall, config.max_depth)
    run, tell = start_run(request, dict(os.environ), choose_echo(args)), choose_tell(args)
    with named_interrupt(run):
        tell(started_line(run))
        if args.place == "pane" and run.facts["place"] != "pane":
            tell("run %d: no room for a pane here: it is in a session" % run.id)
        return show_ending(run, await_run(run, args.wait, tell, choose_echo(args)), args)


def cmd_wait(args: "argparse.Namespace") -> int:
    """Goes on waiting for a run."""
    run = find_run(state_folder(dict(os.environ)), args.id)
    with named_interrupt(run):
        return show_ending(run, await_run(run, args.wait, choose_tell(args), choose_echo(args)), args)


def cmd_stop(args: "argparse.Namespace") -> int:
    """Ends runs: all of them, also when there is trouble with one."""
    runs = [find_run(state_folder(dict(os.environ)), word) for word in args.ids]
    tell, trouble = choose_tell(args), None
    for run in runs:
        try:
            was_alive = stop_run(run, choose_echo(args))
            tell("run %d: %s" % (run.id, "stopped" if was_alive else "was over already"))
        except Failure as failure:
            trouble = trouble or failure
    if trouble:
        raise trouble
    if args.json:
        emit_object([run_object(run) for run in runs])
    return 0


def cmd_list(args: "argparse.Namespace") -> int:
    """Shows the runs."""
    runs = read_runs(state_folder(dict(os.environ)), "runs", choose_tell(args))
    if args.json:
        emit_object([run_object(run) for run in runs])
        return 0
    for run in runs:
        emit(run_line(run, time.time()))
    return 0


def cmd_profiles(args: "argparse.Namespace") -> int:
    """Shows the profiles."""
    config = load_config(args)
    if args.json:
        emit_object([profile_object(profile, config, current_folder())
                      for profile in config.profiles.values()])
        return 0
    for profile in config.profiles.values():
        emit(profile_line(profile, config))
    return 0


def cmd_demo(args: "argparse.Namespace") -> int:
    """Runs the whole cycle with the built-in worker, in a state folder that is removed afterwards."""
    if args.worker:
        return play_demo_worker(" ".join(args.words))
    import tempfile
    signal.signal(signal.SIGTERM, signal.default_int_handler)   # so that nothing stays behind
    with tempfile.TemporaryDirectory(prefix="selftalk-demo-") as folder:
        profile = Profile("demo", sys.executable, DEMO, (os.path.abspath(__file__), "demo", "--worker"))
        request = Request(profile, "Say what you are.", os.path.realpath(folder), place="session")
        run = start_run(request, dict(os.environ, XDG_STATE_HOME=folder), choose_echo(args))
        say(started_line(run))
        try:
            ending = await_run(run, 60.0, say, choose_echo(args))
        finally:
            stop_run(run)
        say("what happened, from %s:" % run.path("events.jsonl"))
        for line in (read_file(run.path("events.jsonl")) or "").splitlines():
            say(event_line(json.loads(line)))
        return show_ending(run, ending, args)


# --- parser and main ---------------------------------------------------------

def parse_seconds(text: str) -> float:
    """Seconds above 0, for argparse: as 90, 90s, 5m or 2h."""
    import argparse
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?|\.[0-9]{1,9})([smh]?)", text)
    number = float(found.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[found.group(2)] if found else 0.0
    if number <= 0:
        raise argparse.ArgumentTypeError("`%s` is no time: write 90, 5m or 2h" % text)
    return number


COMMON = (
    Arg(("--json",),           dict(action="store_true", help="one JSON value on stdout")),
    Arg(("-q", "--quiet"),     dict(action="store_true", help="no talk on stderr")),
    Arg(("-v", "--verbose"),   dict(action="store_true", help="show the tmux commands")),
)
CONFIG = (
    Arg(("--config",),         dict(metavar="PATH", default="",
                                    help="a config instead of ~/.config/selftalk/config.yaml")),
)
WAIT = (
    Arg(("--wait",),           dict(type=parse_seconds, default=float("inf"), metavar="S",
                                    help="wait so long, then exit with 75")),
)
TASK = (
    Arg(("words",),            dict(nargs="*", metavar="PROMPT", help="the prompt; else -f FILE or stdin")),
    Arg(("-p", "--profile"),   dict(default="", metavar="NAME", help="the profile to use")),
    Arg(("-f", "--prompt-file"), dict(metavar="FILE", help="read the prompt from a file")),
    Arg(("--cwd",),            dict(default="", metavar="DIR",
                                    help="where the agent works; else the current folder")),
    Arg(("--pane",),           dict(dest="place", action="store_const", const="pane",
                                    help="in a pane beside this one")),
    Arg(("--session",),        dict(dest="place", action="store_const", const="session",
                                    help="in a detached session")),
    Arg(("--keep",),           dict(action="store_true", help="leave the worker alive when it is done")),
    Arg(("--max-time",),       dict(type=parse_seconds, default=0.0, metavar="S",
                                    help="end the worker after so long")),
    Arg(("--stall",),          dict(type=parse_seconds, default=STALL_S, metavar="S",
                                    help="give up when nothing moves for so long")),
    Arg(("--arg",),            dict(action="append", default=[], metavar="ARG",
                                    help="one more argument for the agent")),
)
COMMANDS = {
    "run":      Verb(cmd_run,      "hand a task to an agent and print its answer",
                     TASK + CONFIG + WAIT + COMMON),
    "wait":     Verb(cmd_wait,     "go on waiting for a run",
                     (Arg(("id",), dict(metavar="ID", help="a run's number, or last")),) + WAIT + COMMON),
    "stop":     Verb(cmd_stop,     "end runs",
                     (Arg(("ids",), dict(nargs="+", metavar="ID", help="runs' numbers, or last")),) + COMMON),
    "list":     Verb(cmd_list,     "show the runs", COMMON),
    "profiles": Verb(cmd_profiles, "show the profiles", CONFIG + COMMON),
    "demo":     Verb(cmd_demo,     "see the whole cycle with a built-in worker, no account needed",
                     (Arg(("--worker",), dict(action="store_true", help=HIDDEN)),
                      Arg(("words",), dict(nargs="*", help=HIDDEN))) + COMMON),
}

COMING_VERBS = ("send", "answer", "show", "result", "screen", "log", "attach", "interrupt", "prune", "usage",
                "doctor", "explain", "install-skill", "skill", "monitor", "trust", "diff", "merge")

HELP = """selftalk %s: hand a prompt to another coding agent and get its answer back.

  selftalk.py run -p NAME "prompt"
  selftalk.py run -p NAME < plan.md
  selftalk.py -p NAME "prompt"

%s

selftalk.py VERB --help tells more. stdout is the answer, stderr is talk.
Exit codes:
%s
"""


def help_text() -> str:
    """What --help prints."""
    verbs = "\n".join("  %-10s %s" % (name, verb.help) for name, verb in COMMANDS.items())
    codes = [(code, outcome) for outcome, (code, _) in OUTCOMES.items()]
    codes += [(failure.code, failure.word) for failure in FAILURES if failure is not Failure]
    ordered = ["%d %s" % pair for pair in sorted(codes)]
    rows = "\n".join("  " + " · ".join(ordered[at:at + 5]) for at in range(0, len(ordered), 5))
    return HELP % (VERSION, verbs, rows)


def version_text() -> str:
    """Which copy this is: it is vendored, so the version alone does not tell."""
    return "selftalk %s (%08x)" % (VERSION, binascii.crc32(read_bytes(os.path.abspath(__file__)) or b""))


def refuse_arguments(message: str) -> None:
    """What argparse calls for a command line it cannot read."""
    raise Unusable(message, "--help shows what there is; put -- before a prompt that begins with a dash")


def make_parser(name: str) -> "argparse.ArgumentParser":
    """The parser of one verb."""
    import argparse   # 8 ms, and neither --version nor --help needs it
    parser = argparse.ArgumentParser(prog="selftalk.py " + name, description=COMMANDS[name].help,
                                     allow_abbrev=False, add_help=False)
    parser.error = refuse_arguments
    for arg in COMMANDS[name].args:
        parser.add_argument(*arg.names, **arg.options)
    return parser


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first --, and what stands behind it and is a prompt whatever it looks like."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1:]


def check_verb(words: list[str]) -> None:
    """Refuses what is rather a verb than a prompt: a worker that was started by a typo is a nuisance."""
    word, rest = words[0], words[1:]
    if not all(as_number(one) is not None or one == "last" or one.startswith("-") for one in rest):
        return
    near = word if word in COMING_VERBS else find_near_miss(word, COMMANDS)
    if word in COMING_VERBS:
        raise Unusable("`%s` is not in this version" % word, "as a prompt: selftalk.py run -- %s" % word)
    if near and word.isalpha():
        raise Unusable("`%s` is no verb" % word,
                       "did you mean `%s`? As a prompt: selftalk.py run -- %s" % (near, word))


def dispatch(words: list[str]) -> int:
    """Does what the command line says; the exit code. Without a verb it is a task."""
    words, literal_words = split_words(words)
    if words[:1] in (["--help"], ["-h"], ["help"]):
        emit(help_text().rstrip("\n"))
        return 0
    if words[:1] == ["--version"]:
        emit(version_text())
        return 0
    has_verb = bool(words) and words[0] in COMMANDS
    name = words[0] if has_verb else "run"
    if words and not has_verb:
        check_verb(words)
    parser = make_parser(name)
    if {"-h", "--help"} & set(words):
        emit(parser.format_help().rstrip("\n"))
        return 0
    args = parser.parse_intermixed_args(words[1:] if has_verb else words)
    if literal_words:
        args.words = getattr(args, "words", []) + literal_words
    if name != "demo":
        collect_runs(state_folder(dict(os.environ)), choose_tell(args))
    return COMMANDS[name].deed(args)


def prepare_streams() -> None:
    """Makes printing work in any locale, and when the caller has closed stdout or stderr."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
        getattr(sys, name).reconfigure(encoding="utf-8", errors="replace")


def report_failure(failure: Failure, as_json: bool) -> int:
    """Tells a person, and a program, what went wrong; the exit code."""
    try:
        if as_json:
            emit_object(failure_object(failure))
    except Failure as output_failure:
        say(output_failure.what)
    if failure.what:
        say(failure.what)
    if failure.fix:
        say("  try: " + failure.fix)
    return failure.code


def main(words: list[str]) -> int:
    """Runs a command line; the only catcher. Tracebacks are bugs."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    prepare_streams()
    try:
        return dispatch(words)
    except Failure as failure:
        return report_failure(failure, "--json" in split_words(words)[0])
    except KeyboardInterrupt:
        return report_failure(Interrupted("interrupted"), "--json" in split_words(words)[0])


if __name__ == "__main__":
    if sys.getfilesystemencoding().lower() != "utf-8":   # Latin-1 would mangle names and prompts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.argv])
    status = main(sys.argv[1:])
    os._exit(status)   # all is written and flushed; taking the interpreter apart would cost 5 ms more
