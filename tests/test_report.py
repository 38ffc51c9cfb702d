"""Records -> text and JSON objects. Pure, so no process is started in here."""
import json
import random
import re
import time
import xml.etree.ElementTree as ET

import pytest

import selftalk
from selftalk import OUTCOMES, Doing, Ending, FromEnv, Run, Said

FACTS = {"profile": "codex", "agent": "codex", "form": "task", "place": "session", "workspace": "/w", "state": "over",
         "outcome": "answered", "parent": None, "depth": 1, "started_at": 1000.0, "ended_at": 1012.5, "exit_status": 0,
         "socket": "/s p/selftalk-7", "pane": "%0", "turn": 1, "session_id": ""}
ENDED = Doing("answered", 12.5)


@pytest.fixture
def run(tmp_path):
    """Run 7 as it looks on disk when it is over."""
    folder = tmp_path / "runs" / "7"
    (folder / "turns").mkdir(parents=True)
    (folder / "turns" / "1.json").write_text('{"seconds": 12.5}')
    return Run(str(folder), dict(FACTS))


def test_the_first_line_names_the_run_and_a_command_to_watch_it_that_can_be_pasted(run):
    assert selftalk.started_line(run) == "run 7: codex started; watch: tmux -S '/s p/selftalk-7' attach -r -t %0"


@pytest.mark.parametrize("source, words", [("done.md", "from done.md"), ("transcript", "from transcript"), ("screen", "from its screen")])
def test_an_answer_is_announced_with_its_time_and_source(run, source, words):
    assert selftalk.ending_lines(run, Ending("answered", source=source)) == ["run 7: answered after 12.5 s, %s" % words]


def test_an_answer_that_came_in_another_way_says_so(run):
    line, = selftalk.ending_lines(run, Ending("answered", "the worker went idle", source="screen"))
    assert line.endswith("; the worker went idle")


@pytest.mark.parametrize("outcome", sorted(set(OUTCOMES) - {"answered", "ready"}))
def test_every_other_ending_says_what_happened_and_last_what_to_do(run, outcome):
    lines = selftalk.ending_lines(run, Ending(outcome, "it happened", "do this"))
    assert lines[0] == "run 7: %s: it happened" % outcome and lines[-1].startswith("  try: do this")
    assert all(line.startswith("  ") for line in lines[1:])


def test_a_worker_that_is_kept_is_shown_where_to_look_and_one_that_ended_by_its_last_screen(run, tmp_path):
    assert "attach" in selftalk.ending_lines(run, Ending("asks", "it asks", "look"))[-1]
    assert selftalk.ending_lines(run, Ending("died", "it died", "read"))[-1].endswith("/7/screen.txt")


def test_the_end_of_the_last_screen_is_quoted_without_blank_lines(run):
    with open(run.path("screen.txt"), "w") as file:
        file.write("\n\n".join("line %d   " % number for number in range(40)) + "\n\n\n")
    quoted = selftalk.ending_lines(run, Ending("died", "it died", "read"))[1:-1]
    assert quoted == ["  | line %d" % number for number in range(40 - selftalk.LAST_LINES, 40)]


def test_a_run_that_never_got_a_socket_can_be_shown(run):
    for key in ("socket", "pane", "place", "ended_at"):
        del run.facts[key]
    run.facts.update(outcome="stopped", ended_at=None)
    assert selftalk.run_object(run)["watch"] is None
    assert selftalk.ending_lines(run, Ending("stopped", "the run was stopped", "start a new one"))
    assert "answered" in selftalk.run_line(run, ENDED, 1060.0)


def test_the_keys_of_a_run_are_pinned(run):
    assert set(selftalk.run_object(run)) == {
        "id", "folder", "watch", "name", "profile", "agent", "form", "place", "workspace", "state", "outcome", "turn", "session_id", "parent", "depth",
        "started_at", "ended_at", "exit_status", "took_over"}


def test_the_keys_of_a_result_are_those_of_a_run_and_these(run):
    ending = Ending("answered", answer="größe", source="done.md", said=Said(model="m", tokens={"input": 1}))
    found = selftalk.result_object(run, ending)
    assert set(found) - set(selftalk.run_object(run)) == {"answer", "source", "what", "fix", "model", "tokens", "options", "seconds", "resets_at",
                                                           "cost_usd", "denied"}
    assert (found["answer"], found["source"], found["what"], found["model"], found["tokens"], found["seconds"]) == (
        "größe", "done.md", None, "m", {"input": 1}, 12.5)
    assert json.loads(json.dumps(found)) == found


def test_a_result_without_an_ending_on_disk_is_shown_too(run, tmp_path):
    (tmp_path / "runs" / "7" / "turns" / "1.json").unlink()
    assert selftalk.result_object(run, Ending("running"))["seconds"] is None


@pytest.mark.parametrize("failure, code, word", [(selftalk.Failure("w", "f"), 1, "failed"), (selftalk.Unusable("w", "f"), 2, "usage"),
                                                 (selftalk.Missing("w", "f"), 3, "missing")])
def test_expected_trouble_is_an_object_with_its_word_and_code(failure, code, word):
    assert selftalk.failure_object(failure) == {"error": {"word": word, "code": code, "what": "w", "fix": "f"}}


def test_the_value_of_a_from_env_is_never_shown(monkeypatch):
    monkeypatch.setenv("TOKEN", "SECRET-123")
    profile = selftalk.Profile("p", "x", selftalk.AGENTS["claude"], ("--a b",), (("A", FromEnv("TOKEN")), ("B", "text")))
    config = selftalk.Config("f", {"p": profile}, "p")
    found = selftalk.profile_object(profile, config, "/w")
    assert found["env"] == {"A": {"from_env": "TOKEN"}, "B": "text"} and found["default"] is True
    assert "SECRET-123" not in json.dumps(found) + selftalk.profile_line(profile, config)
    assert "--settings" in found["added_args"]


def test_the_default_profile_is_marked_and_its_command_can_be_pasted():
    profile = selftalk.Profile("p", "x", selftalk.AGENTS["generic"], ("a b",))
    assert selftalk.profile_line(profile, selftalk.Config("", {}, "p")).split(None, 2) == ["*", "p", "x 'a b'"]
    assert selftalk.profile_line(profile, selftalk.Config("", {}, "q")).startswith("  p ")


@pytest.mark.parametrize("later_s, age", [(0, "0 min"), (59, "0 min"), (3600, "60 min"), (7200, "2 h"), (90000, "25 h")])
def test_a_run_is_one_line_with_its_age(run, later_s, age):
    line = selftalk.run_line(run, ENDED, 1000.0 + later_s)
    assert line.split() == ["7", "answered", "codex", *age.split(), "/w"]


def test_a_run_that_goes_on_is_shown_by_what_it_is_doing(run):
    run.facts.update(state="running", outcome=None)
    line = selftalk.run_line(run, Doing("busy", 62.0, "Bash npm test"), 1000.0)
    assert line.split() == ["7", "busy", "codex", "1:02", "/w", "Bash", "npm", "test"]


@pytest.mark.parametrize("show", [lambda run: selftalk.run_line(run, ENDED, 0.0), selftalk.started_line])
def test_a_line_about_a_run_is_one_line_whatever_its_workspace_is_called(run, show):
    run.facts["workspace"] = "/w\n\x1b[2Jodd"
    assert "\n" not in show(run) and "\x1b" not in show(run)


def test_an_event_is_one_line():
    assert selftalk.event_line(b'{"at": 0.0, "event": "dialog", "name": "trust", "keys": ["Down"]}\n').endswith(
        "dialog    name=trust keys=['Down']\n")


# --- an image of a screen -------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def parse_svg(text, size=(80, 24), title="run 7"):
    """(what is written: (column, row, words, attributes), what is drawn below it: (column, y, cells, height, colour))."""
    tree = ET.fromstring(selftalk.render_svg(text, size, title))
    written = [(int(node.get("x")) / 9, (int(node.get("y")) - 13) / 17, node.text, node.attrib) for node in tree.iter(SVG + "text")]
    drawn = [(int(node.get("x")) / 9, int(node.get("y")), int(node.get("width")) / 9, int(node.get("height")), node.get("fill"))
             for node in tree.iter(SVG + "rect")]
    return written, drawn[1:]        # without the paper


def places(text):
    return {words: (column, row) for column, row, words, _ in parse_svg(text)[0]}


def test_an_image_is_as_large_as_the_pane_and_has_its_title():
    tree = ET.fromstring(selftalk.render_svg("x", (80, 24), "run 7: <b> & \x1b[2Jco"))
    paper = tree.find(SVG + "rect")
    assert (tree.get("width"), tree.get("height"), tree.get("viewBox")) == ("738", "426", "-9 -9 738 426")
    assert [paper.get(name) for name in ("x", "y", "width", "height")] == ["-9", "-9", "738", "426"]
    assert tree.find(SVG + "title").text == "run 7: <b> & co"


@pytest.mark.parametrize("codes, colour", [
    ("30", "#000000"), ("31", "#cd3131"), ("37", "#e5e5e5"), ("90", "#666666"), ("91", "#f14c4c"), ("97", "#ffffff"), ("38;5;1", "#cd3131"),
    ("38;5;9", "#f14c4c"), ("38;5;16", "#000000"), ("38;5;21", "#0000ff"), ("38;5;208", "#ff8700"), ("38:5:208", "#ff8700"),
    ("38;5;231", "#ffffff"), ("38;5;232", "#080808"), ("38;5;255", "#eeeeee"), ("38;5;999", "#eeeeee"), ("38;2;1;2;3", "#010203"),
    ("38:2::1:2:3", "#010203"), ("38:2:1:2:3", "#010203"), ("38;2;999;0;255", "#ff00ff"), ("", None)])
def test_ink_and_paper_have_their_colours(codes, colour):
    (column, row, words, attributes), = parse_svg("ab\n \x1b[%smx" % codes)[0][1:]
    assert (column, row, words, attributes.get("fill")) == (1, 1, "x", colour)
    papers = re.sub("^(38|3|9)", lambda found: {"38": "48", "3": "4", "9": "10"}[found[0]], codes)
    assert parse_svg("ab\n \x1b[%smxy" % papers)[1] == ([(1, 17, 2, 17, colour)] if colour else [])


def test_reverse_swaps_ink_and_paper_also_those_of_the_image():
    for codes, ink, paper in (("7", "#1e1e1e", "#d4d4d4"), ("7;31", "#1e1e1e", "#cd3131"), ("7;41", "#cd3131", "#d4d4d4"),
                              ("31;42;7", "#0dbc79", "#cd3131"), ("31;42;7;27", "#cd3131", "#0dbc79")):
        written, drawn = parse_svg("\x1b[%smx" % codes)
        assert (written[0][3]["fill"], drawn) == (ink, [(0, 0, 1, 17, paper)])


def test_bold_dim_and_italic_are_looks_and_underline_and_strike_are_lines_of_the_ink():
    assert "font-weight" not in parse_svg("x")[0][0][3]
    for codes, name, look in (("1", "font-weight", "bold"), ("2", "opacity", ".6"), ("3", "font-style", "italic")):
        assert parse_svg("\x1b[%smx" % codes)[0][0][3][name] == look
    assert parse_svg("a\x1b[4;31mbb\x1b[24;39;9mc")[1] == [(1, 15, 2, 1, "#cd3131"), (3, 8, 1, 1, "#d4d4d4")]
    assert parse_svg("\x1b[8msecret\x1b[28m shown")[0][0][:3] == (7, 0, "shown")


def test_a_style_goes_on_in_the_next_line_as_tmux_means_it():
    written, _ = parse_svg("\x1b[31mred\nred too\n\x1b[39mplain")
    assert [(row, attributes.get("fill")) for _, row, _, attributes in written] == [(0, "#cd3131"), (1, "#cd3131"), (2, None)]


@pytest.mark.parametrize("sign, cells", [   # as tmux 3.3a puts the cursor
    ("漢", 2), ("한", 2), ("Ａ", 2), ("ｱ", 1), ("\u3000", 2), ("😀", 2), ("☕", 2), ("👩\u200d💻", 2), ("👨\u200d👩\u200d👧", 2), ("🇩🇪", 2), ("👍🏽", 4),
    ("❤\ufe0f", 1), ("1\ufe0f\u20e3", 1), ("e\u0301", 1), ("\u1112\u1161\u11ab", 2), ("ก็", 1), ("नि", 2), ("…", 1), ("⏺", 1), ("─", 1), ("\xad", 1),
    ("\u200b", 0), ("\u202e", 0)])
def test_what_follows_a_sign_is_in_the_column_where_tmux_has_it(sign, cells):
    written, drawn = parse_svg("\x1b[42m│%s\x1b[m│" % sign)
    assert written[-1][:3] == (cells + 1, 0, "│")
    assert "".join(words for _, _, words, _ in written) == "│%s│" % sign.replace("\u3000", "")
    assert sum(bar[2] for bar in drawn) == cells + 1


def test_no_sign_that_fonts_have_in_another_width_shifts_another():
    found = places("│ 漢字 │ ok │\n⏺ Bash(ls) ✻ Thinking… now\n┌──── é ф ────┐")
    assert found == {"│": (0, 0), "漢": (2, 0), "字": (4, 0), "│ ok │": (7, 0), "⏺": (0, 1), "Bash(ls)": (2, 1), "✻": (11, 1),
                     "Thinking": (13, 1), "…": (21, 1), "now": (23, 1), "┌──── é ф ────┐": (0, 2)}
    for _, _, words, attributes in parse_svg("abc漢é")[0]:
        assert int(attributes["textLength"]) == {"abc": 27, "漢": 18, "é": 9}[words]


def test_no_space_is_where_a_viewer_drops_it():
    written, drawn = parse_svg("  a b   c \x1b[4;41m  d  \x1b[m e")
    assert [(column, words) for column, _, words, _ in written] == [(2, "a b"), (8, "c"), (12, "d"), (16, "e")]
    assert sum(cells for _, _, cells, high, _ in drawn if high == 1) == sum(cells for _, _, cells, high, _ in drawn if high > 1) == 5


def test_signs_of_xml_are_words():
    text = "<script>alert(1)</script> &amp; \"' ]]> x"
    assert places(text) == {text: (0, 0)}
    assert "".join(words for _, _, words, _ in parse_svg("a\ufffeb\uffffc\ud83dd\x85e")[0]) == "a?b?c\ufffdde"


def test_whatever_a_screen_holds_its_image_is_valid_and_has_nothing_that_acts():
    dice = random.Random(16)
    bits = ["\x1b", "\x1b[", "\x1b]52;c;", "\x1bP", "\x1b\\", "\x07", "m", ";", ":", "38", "48;5;", "2;1;2;3", "9" * 30, "\x1b[31m", "\x1b[48;2;;m",
            "\n", "\t", "<a href=\"http://x\">", "&", "]]>", "漢", "\u200d", "\u0301", "\ufffe", "\uffff", "\ud83d", "😀", "\x00", "\x9b", "─"]
    for _ in range(2000):
        text = "".join(dice.choice(bits) if dice.random() < 0.8 else chr(dice.randrange(0x11000)) for _ in range(dice.randrange(40)))
        svg = selftalk.render_svg(text, (dice.randrange(300), dice.randrange(100)), text)
        names = {(node.tag, name) for node in ET.fromstring(svg.encode()).iter() for name in node.attrib or [""]}
        assert {tag[len(SVG):] for tag, _ in names} <= {"svg", "title", "rect", "text"}, repr(text)
        assert not {name for _, name in names if "href" in name or name.startswith("on") or name == "style"}, repr(text)
        assert "http" not in re.sub(r'>[^<]*<', "><", svg).replace(SVG[1:-1], ""), repr(text)
        assert not re.search('fill="(?!#[0-9a-f]{6}")|textLength="0*"|-\\d+" y=', svg.split("\n", 3)[3]), repr(text)


def test_a_screen_of_an_agent_makes_a_small_image():
    rows = ["\x1b[38;5;%dm│\x1b[39m %s \x1b[38;5;246m(esc to interrupt)\x1b[39m" % (row, "words of an agent " * 8) for row in range(50)]
    assert len(selftalk.render_svg("\n".join(rows), (200, 50), "t")) < 4 * len("\n".join(rows))


@pytest.mark.parametrize("text", ["x" * 500_000, "漢" * 50_000, "\x1b[31mx\x1b[42my" * 20_000, "x\u0301" * 100_000, "\u0301" * 200_000,
                                  "\u200d" * 200_000, "\n" * 200_000, "\x1b[1;3;4;7;9m" * 50_000, "\x1b[" + "9" * 500_000 + "m", "a…" * 50_000])
def test_an_image_takes_time_by_the_length_of_its_text_only(text):
    begin = time.process_time()
    ET.fromstring(selftalk.render_svg(text, (10 ** 9, 1), "t"))
    assert time.process_time() - begin < 10.0      # 1 s here; what is quadratic takes minutes
