"""What is left of an account: read from samples and from scripted agents, kept, and decided on."""
import datetime
import json
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import time
from datetime import timezone

import pytest

import selftalk
from sandboxes import PROGRAM, until_true
from selftalk import (AGENTS, NO_WINDOWS, USAGE_FORMATS, Agent, Failure, Missing, Probe, Profile, Quota, Unusable, Usage,
                      Window, choose_route, find_limits, find_reason, keep_usage, load_usage, make_window, note_limit,
                      parse_reset, read_account, read_config, usage_lines, usage_object, usage_path)

FOLDER = pathlib.Path(__file__).parent / "quota"
FORMAT_OF = {"claude-get-usage": "claude-get-usage", "claude-usage-text": "usage-text", "claude-screen": "usage-text",
             "codex-rate-limits": "codex-limits", "codex-screen": "usage-text", "limit-reached": "codex-limits"}
SAMPLES = sorted(path for path in FOLDER.glob("*/*") if not path.name.endswith(".expected.json"))
LIMITS = {"session": 80.0}


def seconds(text):
    """Seconds since 1970 of a time in UTC: 2026-11-21 15:11:00."""
    return datetime.datetime.fromisoformat(text + "+00:00").timestamp()


def utc(at):
    return None if at is None else datetime.datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def name_of(path):
    return "%s/%s" % (path.parent.name, path.stem)


NOW = seconds("2026-11-21 15:11:00")


@pytest.fixture(autouse=True)
def zone(monkeypatch):
    """Sets our time zone: UTC until a test says another."""
    def set_zone(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()
    set_zone("UTC")
    yield set_zone
    monkeypatch.undo()
    time.tzset()


# --- samples -------------------------------------------------------------------------

def test_every_kind_of_sample_is_there():
    assert {path.parent.name for path in SAMPLES} == set(FORMAT_OF)


def says(usage):
    """A usage as the files beside the samples have it."""
    if usage is None:
        return {"says": "nothing"}
    facts = {"unknown": usage.unknown, "has_login": usage.has_login}
    windows = [[window.name, window.used_percent, utc(window.resets_at)] for window in usage.windows]
    return {**{key: value for key, value in facts.items() if value not in ("", None)}, "windows": windows}


@pytest.mark.parametrize("path", SAMPLES, ids=name_of)
def test_a_sample_says_what_lies_beside_it(path):
    expected = json.loads(path.with_suffix(".expected.json").read_text(encoding="utf-8"))
    text, now = path.read_text(encoding="utf-8"), seconds(expected.pop("now"))
    if "words" in expected:   # what a run leaves that has met its limit: when it ends is in the agent's words
        words, resets_at = expected.pop("words"), expected.pop("resets_at")
        assert words is None or words in text
        assert utc(parse_reset(words or "", now)) == resets_at
    if expected:
        assert says(USAGE_FORMATS[FORMAT_OF[path.parent.name]](text, now)) == expected


def test_each_expectation_has_its_sample():
    beside = {path.with_suffix(".expected.json") for path in SAMPLES}
    assert set(FOLDER.glob("*/*.expected.json")) == beside


@pytest.mark.parametrize("path", SAMPLES, ids=name_of)
def test_a_sample_names_no_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\b\d{1,3}(?:\.\d{1,3}){3}\b|localhost", text.replace("12.0.0", "").replace("0.0.0.0", ""))
    assert set(re.findall(r"/(?:home|Users)/(\w+)", text)) <= {"dev"} and str(pathlib.Path.home()) + "/" not in text


def test_an_answer_is_waited_for_among_other_lines():
    for path in SAMPLES:
        if path.parent.name in ("claude-get-usage", "codex-rate-limits"):
            lines, parse = path.read_text().splitlines(), USAGE_FORMATS[FORMAT_OF[path.parent.name]]
            before = [line for line in lines if "control_response" not in line and not re.search(r'"id":[23]', line)]
            assert parse("\n".join(before), NOW) is None, path
            assert parse("\n".join(["", "garbage {", "[1]", "null", '"x"', *lines]), NOW) == parse("\n".join(lines), NOW), path


NONSENSE = (None, True, -1, 1.5, 1e9, float("nan"), float("inf"), 10 ** 400, "81", "x", [], [1], [{}], {}, {"a": [{}]})
NOTED = ("claude-get-usage/2.1.329-weekly-scoped-fable", "codex-rate-limits/0.169.0-more-limits-by-id",
         "codex-rate-limits/made-account-api-key", "limit-reached/codex-0.169.0-rollout")


def places(value, path=()):
    """The paths to all values inside a JSON value."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def with_value(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = with_value(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("name", NOTED)
def test_nonsense_in_any_place_of_an_answer_is_no_trouble_and_no_percentage(name):
    path = next(path for path in SAMPLES if name_of(path) == name)
    parse, rows = USAGE_FORMATS[FORMAT_OF[path.parent.name]], [json.loads(line) for line in path.read_text().splitlines()]
    for number, row in enumerate(rows):
        for place in places(row):
            for new in NONSENSE:
                changed = rows[:number] + [with_value(row, place, new)] + rows[number + 1:]
                usage = parse("\n".join(map(json.dumps, changed)), NOW)
                assert all(window.used_percent is None or 0 <= window.used_percent <= 100
                           for window in (usage or Usage()).windows), (place, new)


# --- when a limit ends ----------------------------------------------------------------

@pytest.mark.parametrize("text, expected", [
    ("resets 5pm (UTC)", "2026-11-21 17:00:59"),
    ("Resets 5:30pm (UTC)", "2026-11-21 17:30:59"),
    ("Resets5:30pm(UTC)", "2026-11-21 17:30:59"),
    ("resets 6.59pm (Europe/Rome)", "2026-11-21 17:59:59"),
    ("resets 17:30 (UTC)", "2026-11-21 17:30:59"),
    ("resets 12am (UTC)", "2026-11-22 00:00:59"),
    ("resets 12pm (UTC)", "2026-11-22 12:00:59"),
    ("resets 12:01am (UTC)", "2026-11-22 00:01:59"),
    ("resets 7pm (America/Los_Angeles)", "2026-11-22 03:00:59"),
    ("resets 7pm (Asia/Kathmandu)", "2026-11-22 13:15:59"),
    ("Resets Nov 25, 5:55am (UTC)", "2026-11-25 05:55:59"),
    ("Resets November 25, 5:55am (UTC)", "2026-11-25 05:55:59"),
    ("Resets Nov25,5:55am(UTC)", "2026-11-25 05:55:59"),
    ("Resets Dec 2 at 12am (UTC)", "2026-12-02 00:00:59"),
    ("Resets Dec 2 t 12am (UTC)", "2026-12-02 00:00:59"),
    ("Reset Dec 2, 2:59am (UTC)", "2026-12-02 02:59:59"),
    ("(resets 05:43 on 24 Nov)", "2026-11-24 05:43:59"),
    ("(resets 05:43 on Nov 24)", "2026-11-24 05:43:59"),
    ("Resets Jan 2, 2028, 10:59pm (UTC)", "2028-01-02 22:59:59"),
    ("Resets Jan 2, 2026, 10:59pm (UTC)", "2026-01-02 22:59:59"),     # its year is named: long past is not to come
    ("or try again at 4:43 PM.", "2026-11-21 16:43:59"),
    ("or try again at Nov 22nd, 2026 4:43 PM.", "2026-11-22 16:43:59"),
    ("Usage limit reached · continuing automatically at 4:10pm · esc to cancel", "2026-11-21 16:10:59"),
    ("Resets in 24h", "2026-11-22 15:11:00"),
    ("resets in 3s", "2026-11-21 15:11:03"),
    ("Your quota will reset after 15h57m40s.", "2026-11-22 07:08:40"),
    ("[retrying in 1h 29m attempt #1]", "2026-11-21 16:40:00"),
    ("try again in 2 days 4 hours 5 minutes", "2026-11-23 19:16:00"),
    ("try again in 90 min", "2026-11-21 16:41:00"),
])
def test_a_reset_is_read_from_its_words(text, expected):
    assert utc(parse_reset(text, NOW)) == expected


@pytest.mark.parametrize("text", [
    "", "resets", "resets soon", "resets tomorrow", "resets at 5", "5pm (UTC)", "resets 25:10", "resets 5:75pm", "resets 99:99",
    "resets Feb 30, 5pm", "resets Foo 12, 5pm", "resets 5pm (Nowhere/Land)", "resets 5pm (Europe)", "presets 5pm",
    "resets " + "9" * 400, "resets in 5 parsecs"])
def test_words_that_tell_no_reset_tell_none(text):
    assert parse_reset(text, NOW) is None


@pytest.mark.parametrize("text", ["resets 13pm", "resets 59am", "resets in %sd" % ("9" * 12), "resets in %sh" % ("9" * 400)])
def test_a_reset_that_cannot_be_is_none(text):
    assert parse_reset(text, NOW) is None


@pytest.mark.parametrize("ours, expected", [
    ("UTC", "2026-11-21 17:00:59"), ("Europe/Vienna", "2026-11-21 16:00:59"), ("America/Los_Angeles", "2026-11-22 01:00:59"),
    ("Asia/Kolkata", "2026-11-22 11:30:59"), ("Pacific/Kiritimati", "2026-11-22 03:00:59"), ("Pacific/Pago_Pago", "2026-11-22 04:00:59"),
    ("Nowhere/Land", "2026-11-21 17:00:59")])
def test_a_time_without_a_zone_is_ours_and_one_with_a_zone_is_that_of_the_zone(zone, ours, expected):
    zone(ours)
    assert utc(parse_reset("resets 5pm", NOW)) == expected
    assert utc(parse_reset("resets 5pm (UTC)", NOW)) == "2026-11-21 17:00:59"
    assert utc(parse_reset("resets in 2h", NOW)) == "2026-11-21 17:11:00"


@pytest.mark.parametrize("now, text, expected", [
    ("2026-11-21 23:50:00", "resets 12:20am (UTC)", "2026-11-22 00:20:59"),      # the next day
    ("2026-11-21 15:11:00", "resets 3:10pm (UTC)", "2026-11-21 15:10:59"),       # has just passed
    ("2026-11-21 15:11:30", "resets 3:11pm (UTC)", "2026-11-21 15:11:59"),       # its minute is not over
    ("2026-11-21 15:11:00", "resets 2:30pm (UTC)", "2026-11-22 14:30:59"),       # so long past that it is tomorrow's
    ("2026-11-22 00:05:00", "resets 11:55pm (UTC)", "2026-11-21 23:55:59"),      # just passed, yesterday
    ("2026-11-21 23:50:00", "resets Nov 21, 11:40pm (UTC)", "2026-11-21 23:40:59"),
    ("2026-12-31 23:00:00", "resets 2am (UTC)", "2027-01-01 02:00:59"),          # the end of a year
    ("2026-12-30 12:00:00", "Resets Jan 2, 5am (UTC)", "2027-01-02 05:00:59"),
    ("2027-01-01 00:10:00", "Resets Jan 2, 5am (UTC)", "2027-01-02 05:00:59"),
    ("2026-12-30 12:00:00", "(resets 04:01 on 2 Jan)", "2027-01-02 04:01:59"),
    ("2028-02-27 12:00:00", "Resets Feb 29, 5am (UTC)", "2028-02-29 05:00:59"),
    ("2026-03-28 12:00:00", "Resets Mar 30, 5am (Europe/Paris)", "2026-03-30 03:00:59"),   # summer time has begun meanwhile
    ("2026-10-24 12:00:00", "Resets Oct 26, 5am (Europe/Paris)", "2026-10-26 04:00:59")])
def test_a_time_is_the_one_that_is_meant_now(now, text, expected):
    assert utc(parse_reset(text, seconds(now))) == expected


@pytest.mark.parametrize("now, expected", [("2026-03-28 22:00:00", "2026-03-29 03:00:59"), ("2026-10-24 21:00:00", "2026-10-25 04:00:59")])
def test_a_time_of_tomorrow_is_right_when_the_clocks_change_at_night(now, expected):
    assert utc(parse_reset("resets 5am (Europe/Paris)", seconds(now))) == expected


def test_utc_is_known_where_no_zones_are_installed():
    program = "import selftalk; print(selftalk.parse_reset('resets 5pm (UTC)', %r))" % NOW
    ran = subprocess.run([sys.executable, "-S", "-c", program], cwd=PROGRAM.parent, capture_output=True, text=True, check=True,
                         env={"PYTHONTZPATH": "", "PYTHONDONTWRITEBYTECODE": "1"})
    assert utc(float(ran.stdout)) == "2026-11-21 17:00:59"


# --- windows ----------------------------------------------------------------------------

@pytest.mark.parametrize("used, expected", [
    (0, 0.0), (0.0, 0.0), (12.5, 12.5), (100, 100.0), (117, 100.0), (None, None), (True, None), (False, None), (-1, None), (-0.5, None),
    (1e9, None), (10 ** 400, None), (float("nan"), None), (float("inf"), None), ("81", None), ("", None), ([81], None), ({}, None)])
def test_a_number_that_is_no_percentage_says_nothing(used, expected):
    assert make_window("session", used, None, NOW) == Window("session", expected, None)


@pytest.mark.parametrize("resets, expected", [
    (NOW + 60, NOW + 60), (int(NOW) + 60, NOW + 60), ("2026-11-21T15:12:00+00:00", NOW + 60), ("2026-11-21T15:12:00.000000Z", NOW + 60),
    ("2026-11-21T16:12:00+01:00", NOW + 60), (None, None), ("", None), ("soon", None), ("15:12", None), (True, None), (-1, None), (0, None),
    (float("nan"), None), (float("inf"), None), (10 ** 400, None), ((NOW + 60) * 1000, None), ([], None), ({}, None),
    ("0001-01-01T00:00:00", None), ("9999-12-31T23:59:59", None), ("9999-12-31T23:59:59+00:00", None)])
def test_a_reset_that_is_no_time_says_nothing(resets, expected):
    assert make_window("week", 7, resets, NOW) == Window("week", 7.0, expected)


@pytest.mark.parametrize("late_s", [0, 1, 86400, 30 * 86400])
def test_a_period_that_is_over_tells_no_percentage(late_s):
    assert make_window("session", 97, NOW - late_s, NOW) == Window("session", None, NOW - late_s)


def test_a_name_of_a_window_holds_nothing_that_a_terminal_obeys():
    assert make_window("week (\x1b[31mred)", 1, None, NOW).name == "week (red)"


# --- what is kept -----------------------------------------------------------------------

KEPT = Usage((Window("session", 91.0, NOW + 600), Window("week", 41.0, NOW + 86400)), source="asked", read_at=NOW, asked_at=NOW,
             has_login=True, limited_until=NOW + 300)


def kept_text(**changes):
    """What a file of KEPT holds, with changes."""
    facts = KEPT._asdict()
    return json.dumps({"format": selftalk.USAGE_FORMAT, "windows": facts.pop("windows"), "usage": facts, **changes})


def test_what_is_kept_is_read_again(tmp_path):
    keep_usage(str(tmp_path / "a.json"), KEPT)
    assert load_usage(str(tmp_path / "a.json"), NOW) == KEPT
    assert os.stat(tmp_path / "a.json").st_mode & 0o777 == 0o600 and [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "1", '"x"', "\0", "{}", kept_text()[:-20], kept_text(format=0), kept_text(format=2), kept_text(format="1"),
    kept_text(windows=None), kept_text(windows=[1]), kept_text(windows=[["session"]]), kept_text(windows=[["session", 1, 2, 3]]),
    kept_text(usage=None), kept_text(usage=[]), kept_text(usage={"frobnicated": 1}), kept_text(more=1), "[" * 100_000])
def test_what_is_damaged_or_of_another_version_counts_as_nothing(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert load_usage(str(tmp_path / "a.json"), NOW) == Usage()


@pytest.mark.parametrize("name", ["limited_until", "read_at", "asked_at"])
@pytest.mark.parametrize("value", ["x", None, [], {}])
def test_a_time_that_is_none_counts_as_nothing(tmp_path, name, value):
    (tmp_path / "a.json").write_text(kept_text(usage={**json.loads(kept_text())["usage"], name: value}))
    assert load_usage(str(tmp_path / "a.json"), NOW) == Usage()


def test_a_file_that_is_not_there_or_cannot_be_read_counts_as_nothing(tmp_path):
    assert load_usage(str(tmp_path / "none"), NOW) == load_usage(str(tmp_path), NOW) == Usage()


def test_a_window_counts_until_its_reset_and_a_limit_until_its_end(tmp_path):
    keep_usage(str(tmp_path / "a.json"), KEPT)
    later = load_usage(str(tmp_path / "a.json"), NOW + 400)
    assert (later.windows[0].used_percent, later.limited_until) == (91.0, 0.0)
    later = load_usage(str(tmp_path / "a.json"), NOW + 601)
    assert [window.used_percent for window in later.windows] == [None, 41.0]
    assert find_reason(later, LIMITS, NOW + 601) == ""


def test_a_limit_is_noted_beside_what_is_known_and_without_its_end_for_a_while(tmp_path):
    path, now = str(tmp_path / "quota" / "a.json"), time.time()
    note_limit(path, now + 60)
    assert load_usage(path, now) == Usage(limited_until=now + 60)
    keep_usage(path, Usage((Window("week", 5.0, None),), asked_at=now))
    note_limit(path, None)
    usage = load_usage(path, now)
    assert usage.windows == (Window("week", 5.0, None),) and 0 <= usage.limited_until - now - selftalk.FORGET_S < 10
    assert load_usage(path, now + selftalk.FORGET_S + 10).limited_until == 0.0


def test_an_account_is_known_by_agent_folder_and_keys():
    profile = Profile("claude", "claude", AGENTS["claude"])
    env = {"HOME": "/home/dev"}
    paths = [usage_path("/s", profile, {**env, **more}) for more in (
        {}, {"CLAUDE_CONFIG_DIR": "/other"}, {"HOME": "/home/other"}, {"ANTHROPIC_API_KEY": "sk-fake"}, {"ANTHROPIC_BASE_URL": "http://a"},
        {"CLAUDE_CODE_OAUTH_TOKEN": "x"})]
    assert len(set(paths)) == len(paths) and all(path.startswith("/s/quota/claude-") for path in paths)
    assert not any("sk-fake" in path for path in paths)
    assert usage_path("/s", profile._replace(name="other", args=("--model", "x")), {**env, "TERM": "x"}) == paths[0]


def test_another_address_is_another_account():
    profile, urls = Profile("claude", "claude", AGENTS["claude"]), ("http://a", "http://b")
    assert len({usage_path("/s", profile, {"HOME": "/h", "ANTHROPIC_BASE_URL": url}) for url in urls}) == 2


# --- the decision -------------------------------------------------------------------------

ONE, TWO, THREE = (Profile(name, name, AGENTS["generic"]) for name in ("one", "two", "three"))
GONE = Missing("one is not installed", "install it")
OUT = Usage(unknown="not logged in", has_login=False)
KEY = Usage(unknown=NO_WINDOWS, has_login=True)
HUNG = Usage(unknown="app-server: no answer")


def used(session=None, week=None, **more):
    """A usage with these windows, just read; a reset of each is set."""
    rows = (("session", session, NOW + 3600), ("week", week, NOW + 3 * 86400))
    windows = tuple(Window(name, float(percent), at) for name, percent, at in rows if percent is not None)
    return Usage(windows, **{"source": "asked", "read_at": NOW, "asked_at": NOW, **more})


def decide(*usages, limits=LIMITS):
    """The route between agents with these usages, or the trouble with them."""
    of = dict(zip(("one", "two", "three"), usages))

    def read(profile):
        if isinstance(of[profile.name], Failure):
            raise of[profile.name]
        return of[profile.name]
    return choose_route([ONE, TWO, THREE][:len(usages)], read, limits, NOW)


@pytest.mark.parametrize("usages, name, reason", [
    ((used(12),), "one", "one session at 12% (limit 80%) -> one"),
    ((used(12), used(0)), "one", "one session at 12% (limit 80%) -> one"),
    ((used(79.4), used(0)), "one", "one session at 79% (limit 80%) -> one"),
    ((used(80), used(0)), "two", "one session at 80% (limit 80%, resets 16:11) -> two"),
    ((used(91, 41), used(0)), "two", "one session at 91% (limit 80%, resets 16:11) -> two"),
    ((used(91), used(99)), "two", "one session at 91% (limit 80%, resets 16:11) -> two"),          # it is spared, not used up
    ((used(91), HUNG), "two", "one session at 91% (limit 80%, resets 16:11) -> two"),
    ((used(91), KEY), "two", "one session at 91% (limit 80%, resets 16:11) -> two"),
    ((used(12, 99), used(0)), "one", "one session at 12% (limit 80%) -> one"),                     # a week counts at 100 only
    ((used(12, 100), used(0)), "two", "one week at 100% (limit 100%, resets Nov 24 15:11) -> two"),
    ((used(week=5), used(0)), "one", "one week at 5% (limit 100%) -> one"),
    ((Usage((Window("week (Opus)", 100.0, None), Window("session", 3.0, None)), read_at=NOW), used(0)), "one",
     "one week (Opus) at 100% (limit 100%) -> one"),                                               # of one model only
    ((used(5, read_at=NOW - 300), used(0)), "one", "one session at 5% (limit 80%, read 5 min ago) -> one"),
    ((used(5, limited_until=NOW + 600), used(0)), "two", "one has reached its limit (until 15:21) -> two"),
    ((used(5, limited_until=NOW - 1), used(0)), "one", "one session at 5% (limit 80%) -> one"),
    ((GONE, used(0)), "two", "one is not installed -> two"),
    ((OUT, used(99)), "two", "one is not logged in -> two"),
    ((GONE, OUT, used(0)), "three", "one is not installed; two is not logged in -> three"),
    ((used(91), GONE, used(0)), "three", "one session at 91% (limit 80%, resets 16:11); one is not installed -> three"),
    ((used(91), used(100), used(7)), "three", "one session at 91% (limit 80%, resets 16:11); "
                                              "two session at 100% (limit 100%, resets 16:11) -> three"),
])
def test_a_route_is_chosen_and_said_in_one_line(usages, name, reason):
    route = decide(*usages)
    assert (route.profile.name, route.reason, route.is_inconclusive, route.is_used_up) == (name, reason, False, False)


@pytest.mark.parametrize("usage, words", [
    (HUNG, "app-server: no answer"), (KEY, NO_WINDOWS), (Usage(), "nothing is known"),
    (Usage((Window("session", None, NOW - 5),)), "nothing is known"),
    (Usage((Window("session", None, None),), unknown="the probe hung"), "the probe hung")])
def test_what_is_not_known_stays_with_the_preferred_agent_and_is_said(usage, words):
    route = decide(usage, used(0))
    assert (route.profile, route.reason) == (ONE, "one inconclusive: %s -> one" % words)
    assert route.is_inconclusive and not route.is_used_up


def test_a_limit_counts_where_nothing_else_is_known():
    assert decide(HUNG._replace(limited_until=NOW + 60), used(0)).profile == TWO


def test_when_all_are_used_up_the_first_of_them_does_it_and_that_is_said():
    route = decide(used(100), used(100), GONE)
    assert route.profile == ONE and route.is_used_up and route.reason.endswith("; nobody else has more left -> one")
    assert decide(GONE, used(100), used(100, limited_until=NOW + 5)).profile == TWO


def test_when_nobody_is_there_it_says_why_of_each():
    with pytest.raises(Missing) as caught:
        decide(GONE, OUT)
    assert caught.value.what == "smart-route: nobody can do it: one is not installed; two is not logged in" and caught.value.fix


def test_without_limits_only_what_is_used_up_is_passed_over():
    assert decide(used(99, 99), used(0), limits={}).profile == ONE
    assert decide(used(100), used(0), limits={}).profile == TWO


def test_a_week_and_a_model_count_when_they_are_named():
    assert decide(used(0, 71), used(0), limits={"session": 80.0, "week": 70.0}).profile == TWO
    opus = Usage((Window("session", 1.0, None), Window("week (Opus)", 60.0, None)), read_at=NOW)
    assert decide(opus, used(0), limits={"week (Opus)": 50.0}).reason == "one week (Opus) at 60% (limit 50%) -> two"


def test_the_windows_of_a_route_are_those_the_decision_stands_on():
    assert decide(used(91), used(3)).usage == used(91) and decide(GONE, used(3)).usage == used(3)


# --- asking an agent ----------------------------------------------------------------------

ANSWER = '{"id":2,"result":{"rateLimits":{"primary":{"usedPercent":%s,"windowDurationMins":300,"resetsAt":%d}}}}'


class Account:
    """A made agent whose command does what `deed`, a piece of shell, says; each call of it is counted."""

    def __init__(self, box):
        self.box, self.folder, self.program = box, box.folder / "account", str(box.folder / "account" / "made")
        self.folder.mkdir()
        pathlib.Path(self.program).write_text("#!/bin/sh\necho $$ >> %s/calls\n. %s/deed\n" % (self.folder, self.folder))
        os.chmod(self.program, 0o755)
        self.row = Agent("made", self.program, quota=Quota((Probe("asked", "codex-limits", ("ask",), send="how much is left\n"),)))
        self.state = selftalk.state_folder(box.env)
        self.has(12)

    def deed(self, text):
        (self.folder / "deed").write_text(text + "\n")

    def has(self, session):
        self.deed("read question\necho '%s'\nwhile read more; do :; done" % (ANSWER % (session, time.time() + 3600)))

    def read(self, **options):
        return read_account(self.profile, self.box.env, **options)

    @property
    def profile(self):
        return Profile("made", self.program, self.row)

    @property
    def path(self):
        return usage_path(self.state, self.profile, self.box.env)

    def calls(self):
        path = self.folder / "calls"
        return path.read_text().count("\n") if path.exists() else 0

    def grow_old(self, age_s=3600.0):
        """What is kept was read so long ago."""
        usage = load_usage(self.path, time.time())
        keep_usage(self.path, usage._replace(asked_at=usage.asked_at - age_s, read_at=usage.read_at - age_s))

    def alive(self):
        """What lives of all that was asked; a probe runs in an environment with a mark."""
        return self.box.processes()


@pytest.fixture
def account(sandbox):
    return Account(sandbox)


def percents(usage):
    return [(window.name, window.used_percent) for window in usage.windows]


def test_an_account_is_asked_once_a_minute(account):
    usage = account.read()
    assert (percents(usage), usage.source, usage.unknown) == ([("session", 12.0)], "asked", "")
    assert abs(usage.read_at - time.time()) < 30 and usage.read_at <= usage.asked_at
    account.has(50)
    assert account.read() == usage and account.calls() == 1
    account.grow_old(selftalk.CACHE_S + 1)
    assert percents(account.read()) == [("session", 50.0)] and account.calls() == 2


def test_fresh_asks_however_new_the_last_answer_is(account):
    account.read()
    account.has(50)
    assert percents(account.read(is_fresh=True)) == [("session", 50.0)] and account.calls() == 2


def test_a_clock_that_was_set_back_does_not_keep_an_answer_for_ever(account):
    account.read()
    account.grow_old(-7200.0)
    account.has(50)
    assert percents(account.read()) == [("session", 50.0)]


def test_what_was_known_last_is_kept_and_marked_when_nothing_can_be_read(account):
    account.read()
    account.grow_old()
    known = load_usage(account.path, time.time())
    account.deed("exit 1")
    usage = account.read()
    assert (usage.windows, usage.read_at, usage.source) == (known.windows, known.read_at, "asked")
    assert usage.unknown == "asked: no answer" and time.time() - usage.asked_at < 30
    assert account.read() == usage and account.calls() == 2     # and it is not asked again at once
    line = usage_lines("made", usage, time.time(), False)
    assert "12%" in line[0] and "s ago, by asked" in line[1] and "asked: no answer" in line[2]
    assert usage_object("made", usage, time.time())["age_s"] >= 3600


def test_a_limit_that_a_run_has_met_outlives_a_reading(account):
    account.read()
    note_limit(account.path, time.time() + 600)
    assert account.read(is_fresh=True).limited_until > time.time() and account.calls() == 2


@pytest.mark.parametrize("deed, unknown", [
    ("exit 0", "no answer"), ("exit 3", "no answer"), ("kill -9 $$", "no answer"), ("echo frobnicated; exit 1", "frobnicated"),
    ("echo 'error: unknown option --x' >&2; exit 1", "error: unknown option --x"), ("printf '\\033[31mred\\033[0m\\n'", "red"),
    ("head -c 100000 /dev/urandom", None), ("echo '{\"id\":2}'", "no answer"), ("echo '{\"id\":2,\"result\":'", None),
    ("echo '{\"id\":2,\"error\":{\"code\":1,\"message\":\"no\\u001b[31m luck\"}}'", "no luck")])
def test_an_agent_that_says_nothing_of_use_is_unknown_in_its_words(account, deed, unknown):
    account.deed(deed)
    usage = account.read()
    assert usage.windows == () and usage.has_login is None and usage.unknown.startswith("asked: ")
    assert len(usage.unknown) < 250 and "\x1b" not in usage.unknown
    if unknown and "id" not in deed:
        assert usage.unknown == "asked: " + unknown


def test_a_probe_that_hangs_is_ended_with_all_its_children_in_its_time(account, monkeypatch):
    monkeypatch.setattr(selftalk, "PROBE_S", 0.3)
    account.deed("trap '' TERM HUP INT\n(trap '' TERM; setsid sleep 100) &\nsleep 100 &\nsleep 101 <&0 &\nwhile :; do sleep 100; done")
    began = time.monotonic()
    usage = account.read()
    assert usage.unknown == "asked: no answer" and time.monotonic() - began < 12
    assert account.alive() == []


def test_an_agent_is_heard_that_answers_nothing_behind_a_closed_stdin(account):
    """As codex 0.169.0: it looks whether somebody still listens, and ends when nobody does."""
    answer = ANSWER % (7, time.time() + 3600)
    account.deed("read question\nif timeout 0.3 cat; then exit; fi\necho '%s'\ncat" % answer)   # 124: still open
    assert percents(account.read()) == [("session", 7.0)]


def test_a_probe_that_prints_without_end_is_ended(account, monkeypatch):
    monkeypatch.setattr(selftalk, "PROBE_S", 20.0)
    account.deed("while :; do head -c 1000000 /dev/zero | tr '\\0' x; done")
    began = time.monotonic()
    usage = account.read()
    assert usage.windows == () and len(usage.unknown) < 250 and time.monotonic() - began < 10 and account.alive() == []


def test_what_a_probe_leaves_running_is_ended_and_its_folder_removed(account):
    account.deed("pwd > %s/where; touch here $TMPDIR/there\nsetsid sleep 100 &\n%s" % (account.folder, "echo '%s'" % (ANSWER % (3, NOW + 1e8))))
    assert percents(account.read()) == [("session", 3.0)]
    where = (account.folder / "where").read_text().strip()
    assert where.startswith(account.box.env["TMPDIR"][:4]) and not os.path.exists(where) and account.alive() == []


@pytest.mark.parametrize("content", [b"\x7fELF nonsense", b"#!/none/such\n"])
def test_a_program_that_cannot_be_run_is_unknown(account, content):
    pathlib.Path(account.program).write_bytes(content)
    assert re.search("cannot be run|not found|failed to run|No such file", account.read().unknown)


def test_an_account_that_has_changed_to_a_key_shows_no_windows_any_more(account):
    account.read()
    account.deed("echo '{\"id\":2,\"error\":{\"message\":\"chatgpt authentication required to read rate limits\"}}'\n"
                 "echo '{\"id\":3,\"result\":{\"account\":{\"type\":\"apiKey\"}}}'")
    usage = account.read(is_fresh=True)
    assert (usage.windows, usage.unknown, usage.has_login) == ((), NO_WINDOWS, True)


def test_an_account_that_was_logged_out_shows_no_windows_any_more(account):
    account.read()
    account.deed("echo '{\"id\":2,\"error\":{\"message\":\"codex account authentication required to read rate limits\"}}'\n"
                 "echo '{\"id\":3,\"result\":{\"account\":null,\"requiresOpenaiAuth\":true}}'")
    usage = account.read(is_fresh=True)
    assert (usage.windows, usage.unknown, usage.has_login) == ((), "not logged in", False)


def test_the_next_source_is_asked_when_one_does_not_know(account):
    first, text = account.row.quota.probes[0], Probe("text", "usage-text", ("text",))
    account.row = account.row._replace(quota=Quota((first, text)))
    account.deed("case $1 in ask) exit 1;; text) echo 'Current session: 7% used';; esac")
    usage = account.read()
    assert (percents(usage), usage.source, usage.unknown) == ([("session", 7.0)], "text", "") and account.calls() == 2


@pytest.mark.parametrize("status, unknown, has_login", [(0, NO_WINDOWS, True), (1, "not logged in", False)])
def test_an_agent_that_does_not_tell_whether_anyone_is_logged_in_is_asked_that_too(account, status, unknown, has_login):
    probe = Probe("get_usage", "claude-get-usage", ("ask",), send="x\n")
    account.row = account.row._replace(quota=Quota((probe, Probe("text", "usage-text", ("text",))), login=("who",)))
    account.deed("case $1 in ask) echo '{\"type\":\"control_response\",\"response\":{\"response\":{\"rate_limits_available\":false}}}';; "
                 "who) exit %d;; text) echo 'Current session: 7%% used';; esac" % status)
    usage = account.read()
    assert (usage.windows, usage.unknown, usage.has_login) == ((), unknown, has_login) and account.calls() == 2


def test_a_login_check_that_hangs_leaves_it_unknown(account, monkeypatch):
    monkeypatch.setattr(selftalk, "PROBE_S", 0.3)
    account.row = account.row._replace(quota=Quota((Probe("get_usage", "claude-get-usage", ("ask",), send="x\n"),), login=("who",)))
    account.deed("case $1 in ask) echo '{\"type\":\"control_response\",\"response\":{\"response\":{\"rate_limits_available\":false}}}';; "
                 "who) exec sleep 100;; esac")
    usage = account.read()
    assert usage.windows == () and usage.has_login is None and usage.unknown


def test_an_agent_without_a_source_says_why(account):
    account.row = account.row._replace(quota=Quota(unknown="it keeps it to itself"))
    assert account.read().unknown == "it keeps it to itself" and account.calls() == 0
    assert AGENTS["gemini"].quota.unknown and AGENTS["opencode"].quota.unknown


def test_the_newest_rollout_tells_what_the_app_server_does_not(sandbox):
    home = sandbox.folder / "codex-home"
    program = sandbox.folder / "codex"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    line = '{"type":"event_msg","payload":{"type":"token_count","rate_limits":{"primary":{"used_percent":%d,"window_minutes":300,"resets_at":%d}}}}\n'
    for day, percent in (("20", 99), ("21", 7)):
        folder = home / "sessions" / "2026" / "11" / day
        folder.mkdir(parents=True)
        path = folder / ("rollout-2026-11-%s-x.jsonl" % day)
        path.write_text('{"garbage\n' + line % (50, time.time() + 60) + "x" * selftalk.TAIL_BYTES + "\n" + line % (percent, time.time() + 60))
        os.utime(path, (time.time() - 10_000 + percent, time.time() - (1000 if day == "20" else 500)))
    env = {**sandbox.env, "CODEX_HOME": str(home)}
    usage = read_account(Profile("codex", str(program), AGENTS["codex"]), env)
    assert (percents(usage), usage.source) == ([("session", 7.0)], "rollout")
    assert 499 < time.time() - usage.read_at < 600      # as old as the record, however new the look


# --- the command line ---------------------------------------------------------------------

class Agents:
    """A sandbox in which claude, codex and gemini are scripts; claude and codex tell what their accounts have used."""

    def __init__(self, box):
        self.box, self.folder = box, box.folder / "tools"
        self.folder.mkdir()
        box.env["PATH"] = "%s:/usr/bin:/bin" % self.folder
        box.env["TZ"] = "UTC"
        self.add("gemini", "echo asked >> %s/gemini-calls" % box.folder)

    def add(self, name, deed):
        path = self.folder / name
        path.write_text("#!/bin/sh\necho \"$*\" >> %s/%s-calls\n%s\n" % (self.box.folder, name, deed))
        path.chmod(0o755)

    def claude(self, session, week=41, at=None):
        at = at or time.time() + 7200
        limits = {"five_hour": {"utilization": session, "resets_at": utc(at).replace(" ", "T") + "Z"},
                  "seven_day": {"utilization": week, "resets_at": utc(at + 86400).replace(" ", "T") + "Z"}}
        answer = {"type": "control_response", "response": {"response": {"rate_limits_available": True, "rate_limits": limits}}}
        self.add("claude", "cat > /dev/null & echo '%s'" % json.dumps(answer))

    def codex(self, session):
        self.add("codex", "read line\necho '%s'\ncat > /dev/null" % (ANSWER % (session, time.time() + 7200)))

    def calls(self, name):
        path = self.box.folder / (name + "-calls")
        return len(path.read_text().splitlines()) if path.exists() else 0

    def decide(self, *words, status=0):
        """The line that says who does it."""
        code, out, err = self.box.run(*words, "--dry-run")
        assert (code, err if code == 0 else "") == (status, ""), err
        assert not (self.box.state / "runs").exists()
        return out.rstrip("\n")

    def decide_json(self, *words):
        status, facts = self.box.run_json(*words, "--dry-run")
        assert status == 0 and not (self.box.state / "runs").exists()
        return facts


@pytest.fixture
def agents(sandbox):
    made = Agents(sandbox)
    made.claude(12)
    made.codex(30)
    return made


def test_e_alone_prefers_claude_and_falls_back_to_gemini(agents):
    assert agents.decide("-e") == "smart-route: claude session at 12% (limit 80%) -> claude"
    agents.claude(91)
    assert re.fullmatch(r"smart-route: claude session at 91% \(limit 80%, resets \d\d:\d\d\) -> gemini", agents.decide("-e", "--fresh"))


@pytest.mark.parametrize("words, name", [
    (("-c", "-e", "-x"), "codex"), (("-ce", "-x"), "codex"), (("-cex",), "codex"), (("-e", "-c", "-x"), "codex"), (("-x", "-e", "-c"), "codex"),
    (("-c", "-e", "-g"), "gemini"), (("-c", "-e"), "gemini"), (("-g", "-e"), "gemini"), (("-x", "-e"), "codex"),
    (("run", "-e"), "gemini"), (("run", "-e", "-p", "codex"), "codex"), (("run", "-e", "-p", "claude"), "gemini"),
    (("-e", "-c", "-x", "-g"), "codex"), (("-c", "--smart-route", "-x"), "codex"),
    (("-c", "-e", "-x", "--threshold", "95"), "claude"), (("-c", "-e", "-x", "--threshold", "95", "--threshold", "week=40"), "codex"),
    (("-x", "-e", "-c", "--threshold", "30"), "claude"), (("-x", "-e", "-c", "--threshold", "30.5"), "codex")])
def test_the_targets_of_a_call_are_the_chain_in_their_order(agents, words, name):
    agents.claude(91)
    assert agents.decide_json(*words)["profile"] == name


def test_a_decision_as_json_has_what_a_caller_needs(agents):
    facts = agents.decide_json("-c", "-e", "-x")
    assert sorted(facts) == ["age_s", "agent", "inconclusive", "profile", "reason", "source", "windows"]
    assert (facts["agent"], facts["profile"], facts["inconclusive"], facts["source"]) == ("claude", "claude", False, "get_usage")
    assert facts["reason"] == "claude session at 12% (limit 80%) -> claude" and 0 <= facts["age_s"] < 60
    assert [(window["name"], window["used_percent"]) for window in facts["windows"]] == [("session", 12.0), ("week", 41.0)]
    assert all(window["resets_at"] > time.time() for window in facts["windows"])


def test_a_week_that_is_used_up_counts(agents):
    agents.claude(0, 100)
    assert "claude week at 100% (limit 100%, resets" in agents.decide("-c", "-e", "-x")


def test_what_cannot_be_told_stays_with_the_preferred_agent(agents):
    agents.add("claude", "exit 1")
    facts = agents.decide_json("-c", "-e", "-x")
    assert (facts["profile"], facts["inconclusive"], facts["windows"], facts["source"], facts["age_s"]) == ("claude", True, [], None, None)
    assert facts["reason"].startswith("claude inconclusive: get_usage: no answer") and facts["reason"].endswith(" -> claude")


def test_an_agent_that_is_not_installed_is_passed_over(agents):
    (agents.folder / "claude").unlink()
    assert agents.decide("-c", "-e", "-x") == "smart-route: claude is not installed -> codex"


def test_an_agent_that_is_not_logged_in_is_passed_over(agents):
    agents.add("claude", "case $1 in auth) exit 1;; esac\n"
                         "echo '{\"type\":\"control_response\",\"response\":{\"response\":{\"rate_limits_available\":false}}}'")
    assert agents.decide("-c", "-e", "-x") == "smart-route: claude is not logged in -> codex"


def test_when_nobody_is_there_nothing_is_started(agents):
    for name in ("claude", "codex"):
        (agents.folder / name).unlink()
    code, out, err = agents.box.run("-c", "-e", "-x", "--dry-run")
    assert code == 3 and "nobody can do it: claude is not installed; codex is not installed" in err


def test_g_and_x_alone_ask_nobody(agents):
    agents.add("tmux", "exit 1")   # so that the run itself ends at once
    for flag in ("-g", "-x", "-c"):
        agents.box.run(flag, "--here", "hello")
    assert agents.calls("claude") == agents.calls("codex") == 0


@pytest.mark.parametrize("words, what", [
    (("-c", "-x"), "more than one target"), (("-c", "-x", "--dry-run"), "--dry-run, --fresh and --threshold belong to -e"),
    (("-c", "--fresh", "hi"), "belong to -e"), (("-c", "--failover", "--threshold", "5", "hi"), "belong to -e"),
    (("-c", "-e", "-p", "codex"), "more than one target"), (("run", "-c", "-e"), "more than one target"),
    (("-e", "-p", "frob", "--dry-run"), "profile `frob` is not defined"),
    (("-e", "--threshold", "0", "--dry-run"), "`0` is no percentage"), (("-e", "--threshold", "101"), "no percentage"),
    (("-e", "--threshold", "-5"), "threshold"), (("-e", "--threshold", "nan"), "no percentage"), (("-e", "--threshold", "80%"), "no percentage"),
    (("-e", "--threshold", "week="), "no percentage"), (("-e", "--threshold", "week=x"), "no percentage"), (("-e", "--threshold"), "threshold"),
    (("usage", "frob"), "profile `frob` is not defined"), (("usage", "--threshold", "5"), "--threshold")])
def test_a_command_line_about_quota_that_makes_no_sense_starts_nothing(agents, words, what):
    code, out, err = agents.box.run(*words)
    lines = err.splitlines()
    assert code == 2 and out == "" and what in lines[0] and lines[1].startswith("  try: "), err
    assert not (agents.box.state / "runs").exists() and "Traceback" not in err
    assert agents.calls("claude") == agents.calls("codex") == 0


@pytest.mark.parametrize("words", [("run", "-p", "claude", "hi"), ("-c", "hi"), ("-c", "--failover", "hi")])
def test_a_dry_run_starts_nothing_whatever_stands_beside_it(agents, words):
    agents.box.run(*words, "--here", "--dry-run")
    assert not (agents.box.state / "runs").exists()


def test_usage_shows_each_agent_that_is_installed(agents):
    status, out, err = agents.box.run("usage")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert re.fullmatch(r"claude     session            12%  resets \d\d:\d\d \(in 1 h 59 min\)", lines[0]), lines[0]
    assert re.fullmatch(r"claude     week               41%  resets \w{3} \d\d \d\d:\d\d \(in 25 h 59 min\)", lines[1]), lines[1]
    assert re.fullmatch(r"claude     read             \d s ago, by get_usage", lines[2])
    assert lines[3].startswith("codex      session            30%  resets ") and lines[4].endswith(" s ago, by app-server")
    assert lines[5].startswith("gemini     unknown          only its own screens") and len(lines) == 6   # opencode is not installed


def test_usage_as_json_has_what_a_caller_needs(agents):
    status, (claude,) = agents.box.run_json("usage", "claude")
    assert sorted(claude) == ["age_s", "agent", "has_login", "limited_until", "source", "unknown", "windows"]
    assert (claude["agent"], claude["source"], claude["unknown"], claude["limited_until"]) == ("claude", "get_usage", None, None)
    assert sorted(claude["windows"][0]) == ["name", "resets_at", "used_percent"]
    status, rows = agents.box.run_json("usage", "gemini", "codex")
    assert [row["agent"] for row in rows] == ["gemini", "codex"]
    assert (rows[0]["windows"], rows[0]["source"], rows[0]["age_s"]) == ([], None, None) and rows[0]["unknown"]


def test_usage_of_one_that_is_not_installed_says_so_and_how_to_get_it(agents):
    status, out, err = agents.box.run("usage", "opencode")
    assert (status, out) == (3, "") and err.splitlines() == ["selftalk: opencode is not installed", "  try: npm install -g opencode-ai"]


def test_usage_asks_once_a_minute_and_fresh_at_once(agents):
    for words, calls in ((("usage", "codex"), 1), (("usage", "codex"), 1), (("usage", "codex", "--fresh"), 2),
                         (("-x", "-e", "-c", "--dry-run"), 2), (("-x", "-e", "-c", "--dry-run", "--fresh"), 3)):
        assert agents.box.run(*words)[0] == 0 and agents.calls("codex") == calls, words


def test_usage_on_a_terminal_has_bars(agents):
    import pty
    leader, follower = pty.openpty()
    with open(follower, "wb", buffering=0) as terminal:
        subprocess.run([sys.executable, str(PROGRAM), "usage", "claude"], env=agents.box.env, cwd=agents.box.work, stdout=terminal,
                       stdin=subprocess.DEVNULL, check=True, timeout=30)
    out = b""
    while select.select([leader], [], [], 0)[0]:
        try:
            out += os.read(leader, 65536)
        except OSError:
            break
    os.close(leader)
    lines = out.decode().splitlines()
    assert lines[0].startswith("claude     session          [██                  ]   12%  resets ")
    assert lines[1].startswith("claude     week             [████████            ]   41%  resets ")


def test_a_percentage_that_is_not_known_is_no_zero():
    usage = Usage((Window("session", None, None), Window("week", 0.0, None), Window("month", 100.0, NOW + 65)), source="x", read_at=NOW)
    lines = usage_lines("made", usage, NOW, True)
    assert lines[0] == "made       session          [                    ]   ?    "
    assert lines[1] == "made       week             [                    ]    0%  "
    assert lines[2] == "made       month            [████████████████████]  100%  resets 15:12 (in 0 h 01 min)"
    assert usage_lines("made", Usage(limited_until=NOW + 60, unknown="why"), NOW, False) == [
        "made       limited          until 15:12, by a run", "made       unknown          why"]


def open_locks(processes):
    """How many of these processes have the lock of an account open: one asks, the others wait."""
    count = 0
    for process in processes:
        folder = "/proc/%d/fd" % process.pid
        try:
            count += any(os.readlink(os.path.join(folder, name)).endswith(".lock") for name in os.listdir(folder))
        except OSError:
            continue
    return count


@pytest.mark.parametrize("words", [(), ("--fresh",)])
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="sees who waits for a lock in /proc")
def test_ten_that_ask_at_once_ask_the_agent_once(agents, words):
    go = agents.box.folder / "go"
    agents.add("codex", "while [ ! -e %s ]; do sleep 0.05; done\nread line\necho '%s'\ncat > /dev/null" % (go, ANSWER % (30, time.time() + 7200)))
    processes = [agents.box.start("usage", "codex", "--json", *words) for _ in range(10)]
    try:
        assert until_true(lambda: open_locks(processes) == 10)
    finally:
        go.touch()
    answers = [json.loads(process.communicate(timeout=30)[0])[0]["windows"] for process in processes]
    assert all(answer == answers[0] for answer in answers) and answers[0][0]["used_percent"] == 30.0
    assert agents.calls("codex") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_probe_ends_with_its_caller(agents, number):
    agents.add("codex", "trap '' TERM\nsleep 60 &\nwhile :; do sleep 1; done")
    process = agents.box.start("usage", "codex")
    assert until_true(lambda: agents.calls("codex") and len(agents.box.processes()) > 2)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert agents.box.processes() == [] and os.listdir(agents.box.env["TMPDIR"]) == []


def test_a_probe_whose_caller_was_killed_ends_by_itself(agents):
    text = PROGRAM.read_text(encoding="utf-8")
    for pattern, shorter in ((r"(?m)^PROBE_S = 15\.0", "PROBE_S = 1.0"), (r"deadline_s \+ 5\.0", "deadline_s")):
        text, count = re.subn(pattern, shorter, text)
        assert count == 1
    hurried = agents.box.folder / "selftalk.py"
    hurried.write_text(text, encoding="utf-8")
    agents.add("codex", "trap '' TERM\nsleep 60 &\nwhile :; do sleep 1; done")
    process = subprocess.Popen([sys.executable, str(hurried), "usage", "codex"], env=agents.box.env, cwd=agents.box.work,
                               stdin=subprocess.DEVNULL)
    assert until_true(lambda: agents.calls("codex") and len(agents.box.processes()) > 2)
    process.kill()
    process.wait()
    assert until_true(lambda: not agents.box.processes())


# --- config ---------------------------------------------------------------------------------

PROFILES = "profiles:\n  fast: {command: codex, interface: codex}\n  slow: {command: claude, interface: claude}\n"


def route_of(text):
    return read_config(PROFILES + text, "test").smart_route


def test_without_a_config_claude_is_preferred_up_to_80_percent_of_its_session():
    config = read_config(PROFILES, "test")
    assert config.smart_route == selftalk.SmartRoute(("claude", "gemini"), {})
    assert find_limits(config, config.profiles["fast"]) == {"session": 80.0}


def test_smart_route_is_read_as_written():
    config = read_config(PROFILES + """smart_route:
  chain: [slow, fast, gemini]
  threshold: 70
  agents:
    codex: {threshold: {session: 95, week: 90.5}}
    slow: {threshold: 60}
""", "test")
    assert config.smart_route.chain == ("slow", "fast", "gemini")
    assert find_limits(config, config.profiles["slow"]) == {"session": 60.0}
    assert find_limits(config, config.profiles["fast"]) == {"session": 95.0, "week": 90.5}
    assert find_limits(config, selftalk.find_target(config, "gemini")) == {"session": 70.0}


def test_the_smart_route_of_the_readme_is_one():
    blocks = re.findall(r"```yaml\n(.*?)```", (PROGRAM.parent / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    acp = read_config(blocks.pop(1), "test").profiles["kimi"]
    assert (acp.agent.name, acp.headless, acp.permissions) == ("acp", True, "reject")
    config = read_config("".join(blocks), "test")
    assert config.smart_route.chain == ("claude", "codex-spark", "gemini")
    assert find_limits(config, config.profiles["codex-spark"]) == {"session": 95.0}


def test_smart_route_needs_no_profiles_and_what_is_left_out_stays():
    config = read_config("smart_route:\n  threshold: {week: 90}\n", "test")
    assert config.smart_route == selftalk.SmartRoute(("claude", "gemini"), {"": {"week": 90.0}})
    assert find_limits(config, config.profiles["codex"]) == {"session": 80.0, "week": 90.0}
    assert "codex" in config.profiles and route_of("smart_route:\n").chain == ("claude", "gemini")
    assert route_of("smart_route: {chain: []}\n").chain == ("claude", "gemini")


@pytest.mark.parametrize("text, what", [
    ("smart_route: 80\n", "line 4, column 14: smart_route must be a map"),
    ("smart_route: {thresold: 80}\n", "line 4, column 15: unknown key `thresold` in smart_route"),
    ("smart_route: {threshold: high}\n", "line 4, column 26: threshold must be a percentage"),
    ("smart_route: {threshold: '80'}\n", "line 4, column 26: threshold must be a percentage"),
    ("smart_route: {threshold: 0}\n", "line 4, column 26: threshold must be a percentage"),
    ("smart_route: {threshold: -1}\n", "line 4, column 26: threshold must be a percentage"),
    ("smart_route: {threshold: 100.5}\n", "line 4, column 26: threshold must be a percentage"),
    ("smart_route: {threshold: true}\n", "line 4, column 26: threshold must be a percentage"),
    ("smart_route: {threshold: .nan}\n", "line 4, column 26: threshold must be a percentage"),
    ("smart_route: {threshold: [80]}\n", "line 4, column 26: threshold must be a percentage"),
    ("smart_route: {threshold: {session: x}}\n", "line 4, column 36: threshold must be a percentage"),
    ("smart_route: {chain: claude}\n", "line 4, column 22: chain must be a list"),
    ("smart_route: {chain: [claud]}\n", "line 4, column 23: chain `claud` is not known"),
    ("smart_route: {chain: [[claude]]}\n", "line 4, column 23: chain must be a text"),
    ("smart_route: {agents: [codex]}\n", "line 4, column 23: agents must be a map"),
    ("smart_route: {agents: {codx: {threshold: 5}}}\n", "line 4, column 24: agent `codx` is not known"),
    ("smart_route: {agents: {codex: {limit: 5}}}\n", "line 4, column 32: unknown key `limit` in codex"),
    ("smart_route: {agents: {codex: {threshold: x}}}\n", "line 4, column 43: threshold must be a percentage")])
def test_a_smart_route_that_makes_no_sense_is_refused_with_its_place(text, what):
    with pytest.raises(Unusable) as caught:
        route_of(text)
    assert caught.value.what == what and caught.value.fix


def test_the_chain_and_the_thresholds_of_the_config_are_those_of_the_command_line(agents):
    agents.box.config("smart_route:\n  chain: [codex, claude]\n  threshold: 20\n  agents: {codex: {threshold: {session: 29}}}\n")
    assert agents.decide("-e").endswith(" -> claude") and "codex session at 30% (limit 29%" in agents.decide("-e")
    assert agents.decide("-e", "--threshold", "31") == "smart-route: codex session at 30% (limit 31%) -> codex"
