"""Plain values -> profiles: what a config may say, and how it is refused."""
import pytest

import selftalk
from selftalk import AGENTS, FromEnv, Unusable, find_profile, read_config


def profile_of(body, name="p"):
    """The profile that has `body` as its lines."""
    lines = "".join("    %s\n" % line for line in body.splitlines())
    return read_config("profiles:\n  %s:\n    command: x\n%s" % (name, lines), "test").profiles[name]


def refusal(text):
    """(what, fix) of the failure that a config is refused with."""
    with pytest.raises(Unusable) as caught:
        read_config(text, "test")
    return caught.value.what, caught.value.fix


def profile_refusal(body):
    return refusal("profiles:\n  p:\n    command: x\n" + "".join("    %s\n" % line for line in body.splitlines()))


# --- what a config may say -----------------------------------------------------

def test_a_profile_with_all_its_keys_is_read_as_written():
    profile = profile_of("""interface: codex
args: [--model, gpt-6, 'a b']
env:
  A: one
prompt: stdin
headless: true""")
    assert profile == selftalk.Profile("p", "x", AGENTS["codex"], ("--model", "gpt-6", "a b"), (("A", "one"),), "stdin", True)


def test_a_profile_with_only_a_command_is_generic_takes_an_argument_and_is_not_headless():
    assert profile_of("") == selftalk.Profile("p", "x", AGENTS["generic"], (), (), "argument", False)


@pytest.mark.parametrize("interface", ["generic", "claude", "codex", "cursor", "opencode", "gemini"])
def test_every_interface_of_the_table_is_known(interface):
    assert profile_of("interface: %s" % interface).agent.name == interface


@pytest.mark.parametrize("written, value", [
    ("1.10", "1.10"), ("0x10", "0x10"), ("010", "010"), ("0o17", "0o17"), ("1e3", "1e3"), ("-0", "-0"), ("+1", "+1"), (".5", ".5"),
    ("true", "true"), ("True", "True"), ("no", "no"), (".inf", ".inf"), ("2026-01-02", "2026-01-02"),
    ("plain words", "plain words"), ("a#b", "a#b"), ("a # remark", "a"), ("'it''s'", "it's"), ('"a\\nb"', "a\nb"),
    ('""', ""), ("' x '", " x "), ("'null'", "null"), ("http://h:1/x", "http://h:1/x"), ("größe", "größe")])
def test_an_env_literal_is_taken_as_written(written, value):
    assert profile_of("env:\n  A: %s" % written).env == (("A", value),)


@pytest.mark.parametrize("written, value", [("1.10", "1.10"), ("true", "true"), ("-1", "-1"), ("'a \"b\"'", 'a "b"'),
                                            ('"two\\nlines"', "two\nlines"), ('""', "")])
def test_an_argument_is_taken_as_written(written, value):
    assert profile_of("args:\n  - %s" % written).args == (value,)


def test_a_block_text_is_an_env_value_with_its_line_ends():
    assert profile_of("env:\n  A: |\n    one\n    two").env == (("A", "one\ntwo\n"),)


def test_from_env_names_the_callers_variable():
    assert profile_of("env:\n  A:\n    from_env: B\n  C: {from_env: D}").env == (("A", FromEnv("B")), ("C", FromEnv("D")))


def test_the_order_of_env_and_args_is_kept():
    profile = profile_of("args: [c, a, b]\nenv: {Z: 1, A: 2}")
    assert (profile.args, profile.env) == (("c", "a", "b"), (("Z", "1"), ("A", "2")))


def test_empty_args_and_env_are_none():
    assert profile_of("args:\nenv:") == profile_of("args: []\nenv: {}") == profile_of("")


def test_a_command_below_the_home_folder_is_written_with_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    assert read_config("profiles: {p: {command: ~/bin/x}}", "").profiles["p"].command == "/h/bin/x"


def test_the_prompt_file_stands_in_the_args():
    profile = profile_of("prompt: prompt-file-arg\nargs: ['--file={prompt_file}']")
    assert profile.args == ("--file={prompt_file}",)
    run = selftalk.Run("/f/7", {"workspace": "/w", "session_id": ""})
    assert selftalk.agent_argv(run, profile) == ["x", "--file=/f/7/prompt.md"]


@pytest.mark.parametrize("top, own, headless", [("", "", False), ("", "headless: true", True), ("headless: true", "", True),
                                                ("headless: false", "", False), ("headless: false", "headless: true", True)])
def test_headless_is_said_on_top_or_in_the_profile(top, own, headless):
    text = "%s\nprofiles:\n  p:\n    command: x\n    %s\n" % (top, own)
    assert read_config(text, "").profiles["p"].headless is headless


@pytest.mark.parametrize("name", ["a b", "größe", "a/b", "..", "1.10", "a.b:c", "🎉", "$(x)"])
def test_a_profile_may_have_any_printable_name(name):
    assert list(read_config("profiles: {'%s': {command: x}}" % name, "").profiles) == [name]


def test_the_default_profile_and_the_depth_are_read():
    config = read_config("default_profile: p\nmax_depth: 3\nprofiles: {p: {command: x}, q: {command: y}}", "f")
    assert (config.source, list(config.profiles), config.default_profile, config.max_depth) == ("f", ["p", "q"], "p", 3)


# --- how it is refused ----------------------------------------------------------

@pytest.mark.parametrize("text, line, key, meant", [
    ("default_profil: p\nprofiles: {p: {command: x}}", "line 1, column 1", "default_profil", "default_profile"),
    ("profilez:\n  p: {command: x}", "line 1, column 1", "profilez", "profiles"),
    ("profiles:\n  p:\n    command: x\n    arg: [a]", "line 4, column 5", "arg", "args"),
    ("profiles:\n  p:\n    command: x\n    envs:\n      A: b", "line 4, column 5", "envs", "env"),
    ("profiles:\n  p:\n    comand: x", "line 3, column 5", "comand", "command"),
    ("profiles:\n  p:\n    command: x\n    env:\n      A: {from_emv: B}", "line 5, column 11", "from_emv", "from_env")])
def test_an_unknown_key_is_refused_where_it_stands_with_the_near_miss(text, line, key, meant):
    what, fix = refusal(text)
    assert what.startswith(line + ": unknown key `%s` in " % key)
    assert fix == "did you mean `%s`?" % meant


def test_an_unknown_key_like_no_other_is_refused_with_all_that_are_known():
    what, fix = refusal("zzz: 1\nprofiles: {p: {command: x}}")
    assert "zzz" in what and all(key in fix for key in selftalk.CONFIG_KEYS)


@pytest.mark.parametrize("text", ["", "\n", "# only a remark\n", "---\n", "null", "{}", "profiles:\n", "profiles: {}", "profiles: null"])
def test_a_config_without_profiles_is_refused_with_what_to_write(text):
    what, fix = refusal(text)
    assert "the config has no profiles" in what and "`profiles:`" in fix


@pytest.mark.parametrize("text", ["[a, b]", "- a\n- b", "word", "1", "true", "'text'", "profiles: [a]", "profiles: x", "profiles: 3",
                                  "profiles: {p: claude}", "profiles: {p: [command, x]}", "profiles: {p: 1}"])
def test_a_document_of_another_shape_is_refused(text):
    what, fix = refusal(text)
    assert what.startswith("line 1, column ") and "must be a map" in what and fix


@pytest.mark.parametrize("text", ["profiles: {p: null}", "profiles:\n  p:\n", "profiles: {p: {}}", "profiles: {p: {command: ''}}",
                                  "profiles: {p: {command: ' '}}", "profiles: {p: {interface: codex}}"])
def test_a_profile_without_a_command_is_refused_by_its_name(text):
    assert "profile `p` has no command" in refusal(text)[0]


@pytest.mark.parametrize("body, words", [
    ("args: {a: b}", "args of profile `p` must be a list"), ("args: --flag", "args of profile `p` must be a list"),
    ("args: [[a]]", "an item of args of profile `p` must be a text"), ("args: [~]", "an item of args of profile `p` must be a text"),
    ("args: [\"a\\0b\"]", "NUL"), ("env: {A: \"a\\0b\"}", "NUL"),
    ("env: [A]", "env of profile `p` must be a map"), ("env: A=b", "env of profile `p` must be a map"),
    ("env: {A: }", "`A` in env of profile `p` must be a text"), ("env: {A: [b]}", "`A` in env of profile `p` must be a text"),
    ("env: {A: {}}", "`A` in env of profile `p` is an empty map"), ("env: {A: {from_env: }}", "from_env must be a text"),
    ("env: {A-B: c}", "`A-B` is no variable name"), ("env: {'': c}", "`` is no variable name"), ("env: {1A: c}", "`1A` is no variable name"),
    ("env: {1: c}", "`1` is no variable name"), ("env: {\"A\\n\": c}", "is no variable name"), ("env: {größe: c}", "is no variable name"),
    ("env: {A: {from_env: B-C}}", "from_env `B-C` is no variable name"),
    ("env: {A: {from_env: [B]}}", "from_env must be a text"),
    ("headless: 'true'", "headless must be true or false"), ("headless: yes", "headless must be true or false"),
    ("headless: 1", "headless must be true or false"), ("headless:", "headless must be true or false"),
    ("prompt: file", "prompt `file` is not known"), ("prompt: prompt-file-arg", "no `{prompt_file}` in its args"),
    ("prompt: prompt-file-arg\nargs: ['{prompt}']", "no `{prompt_file}` in its args"), ("prompt: [stdin]", "prompt must be a text")])
def test_a_wrong_value_in_a_profile_is_refused_with_its_place_and_what_to_write(body, words):
    what, fix = profile_refusal(body)
    assert words in what and what.startswith("line ") and ", column " in what and fix


def test_a_wrong_interface_is_refused_with_the_near_miss():
    assert profile_refusal("interface: clade") == ("line 4, column 16: interface `clade` is not known", "did you mean `claude`?")


@pytest.mark.parametrize("name", ["1", "1.10", "true", "null", "''", "' '", "-p", "\"a\\nb\"", "\"\\e[2J\"", "\"a\\tb\""])
def test_a_profile_name_that_cannot_be_typed_is_refused(name):
    assert "has no usable name" in refusal("profiles: {%s: {command: x}}" % name)[0]


def test_the_same_profile_twice_is_refused():
    assert "duplicate" in refusal("profiles:\n  p: {command: x}\n  p: {command: y}")[0]


def test_the_default_profile_must_exist():
    what, fix = refusal("default_profile: cod\nprofiles: {codex: {command: x}}")
    assert what == "line 1, column 18: default_profile `cod` is not known" and fix == "did you mean `codex`?"


@pytest.mark.parametrize("value", ["", "[p]", "{p: q}"])
def test_the_default_profile_must_be_a_name(value):
    assert "default_profile must be a text" in refusal("default_profile: %s\nprofiles: {p: {command: x}}" % value)[0]


@pytest.mark.parametrize("value", ["0", "-1", "1.0", "true", "'3'", "", "[3]", ".inf", "many"])
def test_a_depth_that_is_no_number_above_0_is_refused(value):
    assert "max_depth must be a number above 0" in refusal("max_depth: %s\nprofiles: {p: {command: x}}" % value)[0]


@pytest.mark.parametrize("text", ["profiles: {p: {command: x}", "profiles:\n\tp: 1", "profiles: &a {p: {command: x}}", "a: 'b", "{", "a: b: c",
                                  "profiles: !!map {}", "%YAML 1.2\n---\n{}", "a: 1\n---\nb: 2"])
def test_what_is_no_yaml_of_ours_is_refused_with_line_column_and_what_to_write(text):
    what, fix = refusal(text)
    assert what.startswith("line ") and ", column " in what and fix


# --- which profile --------------------------------------------------------------

def test_without_a_config_every_agent_that_runs_unattended_is_a_profile_and_none_is_the_default():
    config = selftalk.built_in_config()
    assert {"claude", "codex", "gemini", "opencode"} <= set(config.profiles) and config.default_profile == ""
    assert not {"demo", "generic"} & set(config.profiles)
    assert all(profile.args == profile.agent.start.unattended for profile in config.profiles.values())


def test_a_profile_is_found_by_name_or_as_the_default_and_never_guessed():
    config = read_config("profiles: {codex: {command: x}}", "the file")
    assert find_profile(config, "codex").name == find_profile(config._replace(default_profile="codex"), "").name == "codex"
    with pytest.raises(Unusable, match="no profile named and no default_profile in the file"):
        find_profile(config, "")
    with pytest.raises(Unusable, match="profile `codx` is not defined in the file") as caught:
        find_profile(config, "codx")
    assert caught.value.fix == "did you mean `codex`?"
