"""Room 5, and the screen rules of room 2: real screens give their verdict, and prose fools nobody."""
import pathlib
import random
import re
import time

import pytest

from selftalk import (AGENTS, Rule, Screen, Verdict, clean_ansi, clean_text, cut_pieces, cut_region, find_options, holds_prompt,
                      judge_screen, letters, next_key, read_composer)

SCREENS = pathlib.Path(__file__).resolve().parent / "screens"
FILES = sorted(SCREENS.glob("*/*/*/*.txt"))
CAPTURES = [path for path in FILES if path.parent.name not in ("prose", "composer")]
COMPOSED = [path for path in FILES if path.parent.name == "composer"]
PROSE = [path for path in FILES if path.parent.name == "prose"]
STATES = ("ready", "busy", "asks", "limited", "failed", "login", "unknown")
AGENTS_SEEN = sorted({path.parts[-4] for path in FILES})
SETTLED = ("ready", "limited", "failed")       # what would end a turn: never to be said of half a screen
LOWER_EDGE = {                                 # the last row of the input, the footer follows
    "claude": r"^─{20,}$", "codex": r"^› ", "gemini": r"^ [*>!] ", "opencode": r"^ +╹▀{20,}",
}


def read_capture(path):
    """A recorded screen: FILE.txt, and the title in FILE.info where one matters."""
    info = path.with_suffix(".info")
    title = re.match(r"title=\[(.*)\]$", info.read_text(encoding="utf-8").strip()) if info.exists() else None
    return Screen(path.read_text(encoding="utf-8"), title.group(1) if title else "")


def judge(agent, screen, rules=None):
    pane = AGENTS[agent].pane
    return judge_screen(screen, pane.rules if rules is None else rules, pane.marks)


def judge_capture(path, rules=None):
    return judge(path.parts[-4], read_capture(path), rules)


def name_of(path):
    return "/".join(path.parts[-4:])


def captures_of(agent, state="*"):
    return [path for path in CAPTURES if path.parts[-4] == agent and state in ("*", path.parts[-2])]


def cuts_of(text, edge):
    """The same screen half drawn: its upper parts, and all of it but the footer."""
    rows = text.rstrip().split("\n")
    filled = [number for number, row in enumerate(rows) if row.strip()]
    ends = {filled[len(filled) * part // 12] for part in (3, 4, 6, 8, 9)}
    ends |= {filled[-lost] for lost in (3, 4, 5, 6) if lost < len(filled)}
    edges = [number + 1 for number, row in enumerate(rows) if re.search(edge, row)]
    return ["\n".join(rows[:end]) for end in sorted(ends | set(edges[-1:])) if end < len(rows)]


RULES = [pytest.param(agent, rule, id="%s-%s" % (agent, rule.name))
         for agent in AGENTS_SEEN for rule in AGENTS[agent].pane.rules]
BUSY = [param for param in RULES if param.values[1].state == "busy"]


# --- regions and the first match
MARKS = {"line": r"^-{3,}$"}
DRAWN = Screen("one\n---\ntwo\n\n---\nthree   \n\nfour\n\n", "a title")


@pytest.mark.parametrize("region, expected", (
    ("title",      "a title"),
    ("screen",     "one\n---\ntwo\n\n---\nthree\n\nfour\n\n"),
    ("bottom:1",   "four"),
    ("bottom:3",   "---\nthree\nfour"),
    ("bottom:99",  "one\n---\ntwo\n---\nthree\nfour"),
    ("below:line", "three\n\nfour\n\n"),
    ("at:line",    "---\nthree\n\nfour\n\n"),
))
def test_a_region_is_a_part_of_the_screen(region, expected):
    assert cut_region(DRAWN, region, MARKS).rstrip("\n") == expected.rstrip("\n")


def test_without_the_mark_below_is_everything_and_at_is_nothing():
    screen = Screen("one\ntwo")
    assert cut_region(screen, "below:line", MARKS) == "one\ntwo"
    assert cut_region(screen, "at:line", MARKS) == ""


def test_a_line_separator_in_prose_begins_no_row():
    prose = "said:\u2028---\u2028three\x85---\x0cfour"
    assert cut_region(Screen(prose), "at:line", MARKS) == ""
    assert cut_region(Screen(prose), "bottom:1", MARKS) == prose


def test_the_first_rule_that_matches_wins_and_names_itself():
    rules = (Rule("a", "asks", "screen", (r"^nowhere",)), Rule("b", "busy", "screen", (r"^tw\w", r"^one")),
             Rule("c", "ready", "screen", (r"one",)))
    assert judge_screen(DRAWN, rules, MARKS) == Verdict("busy", "b", "screen", "two")


def test_a_veto_silences_a_rule_only_within_its_region():
    rule = Rule("a", "ready", "below:line", (r"four",), unless=(r"one",))
    assert judge_screen(DRAWN, (rule,), MARKS).state == "ready"
    assert judge_screen(DRAWN, (rule._replace(region="screen"),), MARKS).state == "unknown"


@pytest.mark.parametrize("agent", AGENTS_SEEN)
@pytest.mark.parametrize("text", ("", "\n\n\n", "$ ", "user@host:~$ claude\n", "❯\xa0",
                                  "› Ask Codex to do anything",
                                  " *   Type your message or @path/to/file", "  ┃  Ask anything…"))
def test_what_no_rule_knows_is_unknown_and_never_ready(agent, text):
    assert judge(agent, Screen(text)).state == "unknown"


@pytest.mark.parametrize("agent", AGENTS_SEEN)
@pytest.mark.parametrize("row", (" " * 200, "─" * 200, "  ┃" + " " * 197, "  x · " * 33, "│ " * 100,
                                 "1m " * 66, "     ▣  B · M" + " " * 180, "❯ " + "x " * 99,
                                 "● API Error: " * 15, "• Working (1s " * 14, "  ╹" + "▀" * 197))
def test_judging_takes_no_time_whatever_the_screen_shows(agent, row):
    """A regex that can match in many ways stalls a run; 50 rows of the same text are its worst case."""
    begin = time.perf_counter()
    judge(agent, Screen("\n".join([row] * 50), row))
    judge(agent, Screen("\n\n".join([row, "  ┃  " + row[:190]] * 12), row))
    assert time.perf_counter() - begin < 1.0


# --- the tables
def test_there_are_captures_and_prose_of_every_agent():
    assert CAPTURES and PROSE
    assert set(AGENTS_SEEN) >= {"claude", "codex", "gemini", "opencode"}
    assert {path.parts[-4] for path in PROSE} == {path.parts[-4] for path in CAPTURES} <= set(AGENTS)
    assert {path.parts[-2] for path in CAPTURES} == set(STATES)


@pytest.mark.parametrize("agent, rule", RULES)
def test_a_rule_compiles_and_its_region_and_state_exist(agent, rule):
    kind, _, operand = rule.region.partition(":")
    assert kind in ("title", "screen", "bottom", "below", "at")
    assert operand.isdigit() if kind == "bottom" else operand in AGENTS[agent].pane.marks or not operand
    assert rule.state in STATES and rule.state != "unknown"
    assert rule.needs and (rule.seen or AGENTS[agent].seen)
    for regex in rule.needs + rule.unless + tuple(AGENTS[agent].pane.marks.values()):
        re.compile(regex)


@pytest.mark.parametrize("agent", AGENTS_SEEN)
def test_rules_have_names_of_their_own_and_marks_are_used(agent):
    pane = AGENTS[agent].pane
    names = [rule.name for rule in pane.rules]
    assert len(set(names)) == len(names)
    used = {rule.region.split(":")[1] for rule in pane.rules if rule.region.startswith(("at:", "below:"))}
    assert used == set(pane.marks)


@pytest.mark.parametrize("agent, rule", RULES)
def test_every_rule_fires_on_a_capture(agent, rule):
    assert any(judge_capture(path).rule == rule.name or judge_capture(path, (rule,)).state == path.parts[-2]
               for path in captures_of(agent)), "no capture shows what this rule is for"


@pytest.mark.parametrize("agent", AGENTS_SEEN)
def test_an_agent_has_captures_of_every_state_it_claims(agent):
    claimed = {rule.state for rule in AGENTS[agent].pane.rules}
    assert claimed >= {"ready", "busy", "asks", "limited", "failed", "login"}
    assert claimed <= {path.parts[-2] for path in captures_of(agent)}


@pytest.mark.parametrize("agent", AGENTS_SEEN)
@pytest.mark.parametrize("state", ("ready", "busy", "asks", "limited"))
def test_an_agent_has_captures_in_a_wide_and_a_small_window(agent, state):
    names = [path.stem for path in captures_of(agent, state)]
    for size in ("200x50", "80x24"):
        assert any(name.endswith(size) for name in names), "no %s capture" % size


# --- what screens show
@pytest.mark.parametrize("path", CAPTURES, ids=name_of)
def test_a_capture_gives_the_verdict_of_its_folder(path):
    verdict = judge_capture(path)
    assert verdict.state == path.parts[-2], "rule %r matched %r" % (verdict.rule, verdict.text)


@pytest.mark.parametrize("path", PROSE, ids=name_of)
def test_prose_never_fools(path):
    verdict = judge_capture(path)
    assert verdict.state == path.stem.split("-")[0], "rule %r matched %r" % (verdict.rule, verdict.text)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_half_drawn_screen_is_never_ready_limited_or_failed(path):
    screen = read_capture(path)
    for text in cuts_of(screen.text, LOWER_EDGE[path.parts[-4]]):
        verdict = judge(path.parts[-4], Screen(text, screen.title))
        rows = text.count("\n") + 1
        assert verdict.state not in SETTLED, "rule %r matched the first %d rows" % (verdict.rule, rows)


@pytest.mark.parametrize("agent, rule", BUSY)
def test_each_busy_sign_is_enough_when_the_others_are_gone(agent, rule):
    others_gone = tuple(other for other in AGENTS[agent].pane.rules if other is rule or other.state != "busy")
    fired = {judge_capture(path, others_gone).rule for path in captures_of(agent, "busy")}
    assert rule.name in fired, "no busy capture is known by this sign"


THINKING = [path for path in CAPTURES if path.parts[-2] == "busy" and "thinking" in path.stem]


@pytest.mark.parametrize("path", THINKING, ids=name_of)
def test_a_thinking_agent_shows_two_signs_that_do_not_hang_together(path):
    """Two busy rules match different texts of one screen: if a new version changes one, the other is left."""
    rules = [rule for rule in AGENTS[path.parts[-4]].pane.rules if rule.state == "busy"]
    assert len({judge_capture(path, (rule,)).text for rule in rules} - {""}) > 1


def test_every_version_has_a_thinking_capture():
    assert {path.parts[-4:-2] for path in THINKING} == {path.parts[-4:-2] for path in CAPTURES}


@pytest.mark.parametrize("agent", AGENTS_SEEN)
def test_without_its_busy_rules_no_busy_screen_would_be_called_limited_or_failed(agent):
    """An old error, or half a retry, must not speak while a turn runs, even if all busy signs change."""
    deaf = tuple(rule for rule in AGENTS[agent].pane.rules if rule.state != "busy")
    for path in captures_of(agent, "busy"):
        assert judge_capture(path, deaf).state in ("ready", "unknown"), name_of(path)


def test_codex_that_streams_its_answer_is_known_by_the_title_only():
    path = SCREENS / "codex" / "0.169.0" / "busy" / "busy-streaming-200x50.txt"
    assert judge_capture(path).rule == "busy-title"
    assert judge("codex", read_capture(path)._replace(title="demo")).state == "ready"


@pytest.mark.parametrize("path", captures_of("claude", "ready"), ids=name_of)
def test_a_prompt_that_waits_in_the_box_changes_no_verdict(path):
    """What waits in the input box is ours: it may quote anything."""
    quoting = "❯\xa0is it esc to interrupt?\n  ⎿ \xa0You've hit your limit · resets 8:10am\n"
    screen = read_capture(path)
    assert judge("claude", screen._replace(text=screen.text.replace("❯\xa0\n", quoting))).state == "ready"


# --- options of a dialog
UP, DOWN, ENTER = ("Up",), ("Down",), ("Enter",)
ANSWERED = (
    # capture                                          choose                     keys
    ("claude/2.1.197/asks/onboarding-next-200x50",     r"^Yes, I trust",          ENTER),
    ("claude/2.1.329/asks/trust-200x50",               r"^Yes, I trust",          DOWN + ENTER),
    ("claude/2.1.329/asks/trust-80x24",                r"^Yes, I trust",          DOWN + ENTER),
    ("claude/2.1.197/asks/bypass-warning-200x50",      r"^Yes, I accept$",        DOWN + ENTER),
    ("claude/2.1.329/asks/bypass-warning-80x24",       r"^Yes, I accept$",        DOWN + ENTER),
    ("claude/2.1.197/asks/onboarding-apikey-200x50",   r"^Yes$",                  UP + ENTER),
    ("claude/2.1.329/asks/api-key-80x24",              r"^Yes$",                  UP + ENTER),
    ("claude/2.1.197/asks/onboarding-theme-200x50",    r"^Light mode$",           DOWN + ENTER),
    ("claude/2.1.329/asks/theme-80x24",                r"^Light mode$",           DOWN * 2 + ENTER),
    ("claude/2.1.329/asks/question-200x50",            r"^Chat about this$",      DOWN * 3 + ENTER),
    ("claude/2.1.329/asks/permission-80x24",           r"^No$",                   DOWN * 3 + ENTER),
    ("codex/0.169.0/asks/trust-80x24",                 r"^Trust and continue$",   ENTER),
    ("codex/0.169.0/asks/update-80x24",                r"^Skip$",                 DOWN + ENTER),
    ("codex/0.169.0/asks/hooks-80x24",                 r"^Continue without",      DOWN * 2 + ENTER),
    ("codex/0.169.0/asks/permission-80x24",            r"^No, and tell",          DOWN * 2 + ENTER),
    ("gemini/0.61.0/asks/firstrun-nokey-200x50",       r"^Trust folder\b",        ENTER),
    ("gemini/0.61.0/asks/trust-80x24",                 r"^Don't trust$",          DOWN * 2 + ENTER),
    ("gemini/0.61.0/limited/x-caq2-after-200x50",      r"^Stop$",                 DOWN * 2 + ENTER),
)


@pytest.mark.parametrize("capture, choose, keys", ANSWERED, ids=[row[0] for row in ANSWERED])
@pytest.mark.parametrize("region", ("screen", "bottom:20"))
def test_the_keys_lead_to_the_option_that_was_chosen(capture, choose, keys, region):
    options = find_options(cut_region(read_capture(SCREENS / (capture + ".txt")), region, {}))
    assert next_key(options, r"^no such option$") == ""
    at, pressed = [option.selected for option in options].index(True), []
    while pressed[-1:] != ["Enter"]:   # each key moves the selection
        pressed.append(next_key(tuple(row._replace(selected=i == at) for i, row in enumerate(options)), choose))
        at += {"Down": 1, "Up": -1, "Enter": 0}[pressed[-1]]
    assert tuple(pressed) == keys


def test_one_option_is_selected_and_labels_are_bare():
    options = find_options(read_capture(SCREENS / "claude/2.1.197/asks/onboarding-theme-200x50.txt").text)
    assert [option.label for option in options if option.selected] == ["Dark mode"]
    assert [option.label for option in options][0] == "Auto (match terminal)" and len(options) == 7


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[-2] in ("prose", "ready", "busy")],
                         ids=name_of)
def test_options_quoted_in_prose_are_not_options(path):
    assert find_options(read_capture(path).text) == ()


def test_a_list_without_a_visible_selection_is_not_typed_into():
    text = read_capture(SCREENS / "claude/2.1.329/asks/trust-200x50.txt").text.replace("❯", " ")
    assert next_key(find_options(text), r"^Yes") == ""


@pytest.mark.parametrize("agent", AGENTS_SEEN)
def test_a_dialog_that_may_be_answered_is_recognised_on_its_captures_only(agent):
    dialogs = AGENTS[agent].pane.dialogs
    found = {}
    for path in (path for path in FILES if path.parts[-4] == agent):
        bottom = cut_region(read_capture(path), "bottom:20", {})
        for dialog in dialogs:
            assert len(dialog.needs) > 1 and AGENTS[agent].seen
            if all(re.search(need, bottom, re.MULTILINE) for need in dialog.needs):
                assert path.parts[-2] == "asks", "%s would be answered on %s" % (dialog.name, name_of(path))
                assert not dialog.choose or next_key(find_options(bottom), dialog.choose)
                found.setdefault(dialog.name, path)
    assert set(found) == {dialog.name for dialog in dialogs}


# --- the composer ---------------------------------------------------------------------------------------------

def texts_of(size):
    """What was pasted for the captures of one size, by the capture's name."""
    width = int(size.split("x")[0])

    def lines(form, last):
        return "\n".join(form % number for number in range(1, last + 1))

    return {
        "one-line": "Fix the failing test, please.", "at-word": "look at @README", "at-word-none": "mail to me@nowhere",
        "long-line": " ".join("word%d of a long line" % number for number in range(40))[:int(width * 2.4)],
        "three-lines": "First line of three\n\tsecond - indented\nthird, the last", "blank-between": "First paragraph\n\nsecond paragraph",
        "twelve-lines": lines("line %d of twelve", 12), "chip-30-lines": lines("line %d of thirty", 30),
        "chip-30-lines-hint-gone": lines("row %d", 30), "expanded-30-lines": lines("line %d of thirty", 30),
        "pieces-20-lines": lines("piece line %d of twenty", 20), "sixty-lines": lines("r%d", 60), "chip-10k-one-line": "tenk " * 2000,
        "chip-200k": "\n".join("row %05d %s" % (number, "x" * 89) for number in range(2000)),
        "emoji-cjk": "Grüße 😀👩\u200d💻 漢字かな한글 مرحبا é", "wide-long-line": "漢字かな交じり文" * (width // 10),
        "quoting-frames": "❯ is it esc to interrupt?\n" + "─" * 24 + "\n  > no",
        "backslash": "ends in a backslash\\", "question": "?", "short-a": "a", "dollar": "use $name",
        "three-long-lines": "\n".join(("line %d " % number) * (width // 12) for number in range(3)),
        "leading-slash": " /help me", "hash": "# heading", "sigil-bang": " !echo hi", "typed-after-finished": "a second, please",
        "typed-after-failed": "try that again", "typed-over-ghost": "typed over a ghost",
    }


def composer_of(path):
    submit = AGENTS[path.parts[-4]].pane.submit
    return read_composer(read_capture(path), submit), submit


def test_every_agent_that_can_be_typed_into_has_composers_at_three_sizes():
    for row in AGENTS.values():
        sizes = {path.stem.rpartition("-")[2] for path in COMPOSED if path.parts[-4] == row.name}
        assert sizes == ({"200x50", "120x40", "80x24"} if row.pane.submit else set()), row.name


@pytest.mark.parametrize("path", COMPOSED, ids=name_of)
def test_a_composer_shows_what_was_pasted_into_it_and_nothing_else(path):
    (held, submit), (what, _, size) = composer_of(path), path.stem.rpartition("-")
    if what.startswith(("empty-", "ghost-", "interrupted-")):
        assert held == ""
    elif what.startswith("put-back"):      # after Esc; some agents do not
        assert held == "" or any(holds_prompt(held, text, submit) for text in ("be slow now", "slow a\nb\nc\nd\ne\nf"))
    else:
        assert held and holds_prompt(held, texts_of(size)[what], submit)
        assert re.fullmatch(submit.chip, held) or not holds_prompt(held, "%", submit)
    assert judge_capture(path).state not in ("busy", "asks", "limited")


@pytest.mark.parametrize("path", [path for path in CAPTURES if path.parts[-2] == "ready"], ids=name_of)
def test_a_composer_that_waits_is_seen_to_be_empty(path):
    held, _ = composer_of(path)
    assert held == "" or path.name.startswith(("interrupted", "odd-trailbs", "paste-30lines"))


def test_a_ghost_has_the_cursor_before_it_and_what_was_typed_has_not():
    edge = "─" * 40
    text = "%s\n❯\xa0Try to fix the tests\n%s\n" % (edge, edge)
    submit = AGENTS["claude"].pane.submit
    assert read_composer(Screen(text, cursor=(2, 1)), submit) == ""
    assert read_composer(Screen(text, cursor=(23, 1)), submit) == "Try to fix the tests"
    assert read_composer(Screen("no composer here"), submit) is None


def test_hostile_screens_cost_no_time():
    rows = (" " * 200, "─" * 200, "  ┃" + " " * 197, "  ┃  " + "x" * 195, "› " + "x · " * 49, "❯\xa0" + "x" * 198, "  x · " * 33,
            " * " + "x " * 98, "   " + "x" * 197, "", "  ┃", "─── ↑ 1 more " + "─" * 187, "  ╹" + "▀" * 197, "›", "  ⚠ 1")
    screens = [Screen("\n".join([one, other] * 25)) for one in rows for other in rows]
    screens += [Screen("\n".join([one] + [other] * 49)) for one in rows for other in rows]
    begin = time.process_time()
    for row in AGENTS.values():
        for screen in screens if row.pane.submit else ():
            read_composer(screen, row.pane.submit)
    assert time.process_time() - begin < 20.0      # 2 s here; one bad regex takes minutes


@pytest.mark.parametrize("held, prompt, does", [
    ("…line 7\n  line 8", "line 6\nline 7\nline 8", True), ("line 7\n  line 8", "line 6\nline 7\nline 8", False),
    ("line 7", "line 7\nline 8", False), ("line 6 and more", "line 6", False),
    ("[Pasted text #3 +29 lines]", "x\n" * 29 + "x", True), ("[Pasted text #3 +29 lines]", "x\n" * 12, False), ("", "", False),
    ("[Pasted text #1 +29 lines][Pasted text #2 +29 lines]", "x\n" * 29 + "x", False), ("??", "??", True), ("!!", "??", False)])
def test_a_composer_holds_a_prompt_or_not(held, prompt, does):
    assert holds_prompt(held, prompt, AGENTS["claude"].pane.submit) is does


def test_letters_are_what_an_agent_leaves_as_it_is():
    assert letters("a b\n\t│ c_d · é — 漢") == letters("abcde\u0301漢")


@pytest.mark.parametrize("text", ["", "a", "a\nb\nc\nd", "\n\na\n\n", "x" * 2000, "x\n" * 500, "é漢" * 900])
def test_the_pieces_of_a_prompt_are_the_prompt(text):
    pieces = cut_pieces(text, (12_000, 2, 600))
    assert "".join(pieces) == text and all(len(piece) <= 600 and piece.count("\n") <= 2 for piece in pieces)
    assert cut_pieces(text, (0, 0, 0)) == [text]


# --- colours --------------------------------------------------------------------

ANY_SGR = re.compile("\x1b\\[[0-9;]*m")


def states_of(line):
    """(sign, the SGR codes in force), as a terminal that starts anew would have them: only 0 switches off."""
    found, codes = [], ()
    for sgr, sign in re.findall("\x1b\\[([0-9;]*)m|(.)", line):
        codes = codes if sign else () if sgr == "0" else codes + (sgr,)
        found.append((sign, "".join(codes)))
    return found


def is_clean(text):
    return not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", ANY_SGR.sub("", text))


def test_a_line_has_the_colours_tmux_told_of_in_a_line_above():
    told = "\x1b[31mred\nred too\n\n\x1b[1;4m\x1b[44mall\n\x1b[0;4m\x1b[31m\x1b[49mno blue\n\x1b[0m\x1b[39m\x1b[49mplain\n"   # tmux 3.3a
    assert clean_ansi(told) == ("\x1b[31mred\x1b[0m\n\x1b[31mred too\x1b[0m\n\n\x1b[31;1;4;44mall\x1b[0m\n"
                                "\x1b[4;31mno blue\x1b[0m\nplain\n")


@pytest.mark.parametrize("text", ["\x1b[31mred", "\x1b[31mred\nred\x1b[0m", "\x1b[7ma\n\x1b[1mb\x1b[0mc", "\x1b[48;5;9m \n\x1b[38;2;1;2;3mx\n"])
def test_no_colour_leaks_over_the_end_of_a_line(text):
    lines = [states_of(line) for line in clean_ansi(text).split("\n")]
    assert any(codes for line in lines for _, codes in line)
    assert not [line for line in lines if line and line[-1][1]]


def test_text_without_colours_stays_as_it_is():
    text = "┌──┐ 漢字 👍\n\n  é — x  \n"
    assert clean_ansi(text) == text


@pytest.mark.parametrize("codes, kept", [
    ("31", "31"), ("97;107", "97;107"), ("38;5;208", "38;5;208"), ("48:5:208", "48;5;208"), ("38;2;1;2;3", "38;2;1;2;3"),
    ("38:2::1:2:3", "38;2;1;2;3"), ("38:2:1:2:3", "38;2;1;2;3"), ("48:2:7:1:2:3;1", "48;2;1;2;3;1"), ("4:3", "4"),
    ("58;5;9", ""), ("58:2::1:2:3;3", "3"), ("5:3", ""), ("1;2;22", ""), ("3;23", ""), ("4;24", ""), ("7;27", ""), ("9;29", ""),
    ("8;28", ""), ("31;39", ""), ("101;49", ""), ("31;42;39", "42"), ("1;31;0", ""), ("1;31;", ""), ("31;;1", "1"), ("31;32", "32"),
    ("38;5", ""), ("38", ""), ("38;5;31", "38;5;31"), ("31;38;5;1;1", "38;5;1;1"), ("99", ""), ("31;%s" % ("9" * 40), "31")])
def test_what_sgr_codes_set_is_known_and_told_in_the_plainest_form(codes, kept):
    assert clean_ansi("\x1b[%smx" % codes) == ("\x1b[%sm" % kept + "x\x1b[0m" if kept else "x")


@pytest.mark.parametrize("told, kept", [
    ("a\x1b]52;c;ZXZpbA==\x07b", "ab"), ("a\x1b]52;c;ZXZpbA==\x1b\\b", "ab"), ("a\x1b[2J\x1b[Hb", "ab"), ("a\x1bPq#0\x1b\\b", "ab"),
    ("\x1b]8;;http://x/\x1b\\link\x1b]8;;\x1b\\", "link"), ("a\x9b2Jb\x85\x8d", "ab"), ("a\x1b[>4;2mb\x1b[?25hc", "abc"), ("a\x1b_Gx\x1b\\b", "ab"),
    ("a\x08\x00\x7f\x0e\x0fb", "ab"), ("a\r\nb\rc", "a\nb\nc"), ("\x1b\x1b[31m\x1b", ""), ("a\x1b[3\n1mb", "a3\n1mb"),
    ("a\x1b[\x1b[2Jb", "ab"), ("a\x1b]0;\x1b[31m\x07b", "a0;\x1b[31mb\x1b[0m"), ("a\x1b[%smb" % ("1;" * 60), "ab"), ("a\ud83db", "a\ufffdb"),
    ("a\tb\n\x1b[1mabc\x1b[0m\tb", "a       b\n\x1b[1mabc\x1b[0m     b"), ("\x1b[١mx", "١mx")])
def test_nothing_else_that_a_terminal_would_obey_is_left(told, kept):
    assert clean_ansi(told) == kept


def test_whatever_a_screen_holds_only_colours_are_left_and_all_the_words():
    dice = random.Random(7)
    bits = ["\x1b", "\x1b[", "\x1b]", "\x1bP", "\x1b\\", "\x07", "\x9b", "\x9d", "m", ";", ":", "0", "1", "38", "48;5;", "2;1;2;3", "\x1b[31m",
            "\x1b[0m", "\n", "\r", "\t", "J", "x", "漢", "\x00", "\x0e", "\x85", "\ud83d", "\u200d", "é", " "]
    for _ in range(3000):
        text = "".join(dice.choice(bits) if dice.random() < 0.9 else chr(dice.randrange(0x300)) for _ in range(dice.randrange(40)))
        clean = clean_ansi(text)
        assert is_clean(clean), repr(text)
        assert clean_ansi(clean) == clean, repr(text)
        assert all(not states_of(line)[-1][1] for line in clean.split("\n") if line), repr(text)
        if "\t" not in text and "\r" not in text and "\n" not in text:   # which may be inside of what is cut
            assert ANY_SGR.sub("", clean) == clean_text(text), repr(text)


@pytest.mark.parametrize("text", ["\x1b[31m" * 200_000, "\x1b[31mx\n" * 60_000, "\x1b[" + "1" * 1_000_000, "\x1b]" * 300_000, "x" * 1_000_000,
                                  "\x1b[1mx\x1b[m" * 50_000, "\t\x1b[1mx" * 50_000, "\x1b[38;5;9m" + "x\n" * 200_000])
def test_cleaning_takes_time_by_the_length_of_a_text_only(text):
    begin = time.process_time()
    clean_ansi(text)
    assert time.process_time() - begin < 10.0      # 1 s here; what is quadratic takes minutes
