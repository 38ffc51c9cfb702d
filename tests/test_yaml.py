"""Yaml: what is accepted means what YAML 1.2 says; all else is refused with line, column and advice.

The folders are the verdict. `yaml/good/NAME.yaml` has the value of `NAME.json`, which fills the gaps of JSON by
{"$float": ".inf"} (also "-.inf", ".nan") and {"$pairs": [[key, value], …]}, a map whose keys are not all text.
`yaml/bad/NAME.yaml` is refused: NAME.txt has the place, and on its second line a word of the message or advice.
"""
import json
import math
import pathlib
import random
import re
import time

import pytest

from selftalk import Unusable, parse_yaml

FOLDER = pathlib.Path(__file__).resolve().parent / "yaml"
GOOD = sorted((FOLDER / "good").glob("*.yaml"))
BAD = sorted((FOLDER / "bad").glob("*.yaml"))
assert GOOD and BAD, "the folders of cases are empty"

FLOATS = {".inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}


def read_text(path):
    return path.read_bytes().decode("utf-8")             # read_text would translate the line breaks


def restore(value):
    """The Python value behind the JSON of a good case; of integers even the long ones."""
    if isinstance(value, list):
        return [restore(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$float"}:
        return FLOATS[value["$float"]]
    if set(value) == {"$pairs"}:
        return {restore(key): restore(item) for key, item in value["$pairs"]}
    return {key: restore(item) for key, item in value.items()}


def plain(node):
    """The value as plain Python, without places."""
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    if isinstance(node.value, dict):
        return {key: plain(item) for key, item in node.value.items()}
    return node.value


def refusal(text):
    with pytest.raises(Unusable) as caught:
        parse_yaml(text)
    return caught.value


def value_of(text):
    return plain(parse_yaml(text))


@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.stem)
def test_a_good_text_means_what_yaml_says(path):
    expected = restore(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    assert repr(value_of(read_text(path))) == repr(expected)      # repr: 1 is not true, nan is nan, order counts


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_text_is_refused_with_its_place_and_advice(path):
    place, word = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    failure = refusal(read_text(path))
    assert failure.what.startswith(place + ": ")
    assert failure.fix
    assert word in failure.what + "\n" + failure.fix


def test_every_case_has_its_two_files_and_no_file_is_left_over():
    for folder, suffix in (("good", ".json"), ("bad", ".txt")):
        stems = {path.stem for path in (FOLDER / folder).glob("*.yaml")}
        assert stems == {path.stem for path in (FOLDER / folder).glob("*" + suffix)}


def test_a_node_knows_the_text_and_the_place_of_values_and_keys():
    node = parse_yaml("# c\nlist:\n  - 0x1F\n  - 1.10\nmap: {a: True, 'b':  \"x\\ty\"}\nnone:\n")
    numbers, inner, none = node.value["list"], node.value["map"], node.value["none"]
    assert (node.line, node.column, node.key_line) == (2, 1, 0)
    assert (numbers.line, numbers.column, numbers.key_line, numbers.key_column) == (3, 3, 2, 1)
    assert [(item.value, item.text, item.line, item.column) for item in numbers.value] == [
        (31, "0x1F", 3, 5), (1.1, "1.10", 4, 5)]
    assert inner.value["a"] == (True, "True", 5, 10, 5, 7)
    assert inner.value["b"] == ("x\ty", "x\ty", 5, 22, 5, 16)
    assert none == (None, "", 6, 6, 6, 1)


def test_places_count_characters_after_the_byte_order_mark_and_lines_of_any_break():
    assert parse_yaml("\ufeff é: 'x'").value["é"][2:] == (1, 5, 1, 2)
    assert parse_yaml("a: 1\r\rb:\r\n\n  c").value["b"][2:] == (5, 3, 3, 1)
    assert refusal("\ufeff@").what.startswith("line 1, column 1:")


def test_plain_gives_python_values_of_python_types():
    value = value_of("[1, 1.0, true, null, '', {a: []}]")
    assert value == [1, 1.0, True, None, "", {"a": []}]
    assert [type(item) for item in value] == [int, float, bool, type(None), str, dict]


# The law on texts nobody thought of: a value, or Unusable with its place. The seed is fixed.

PIECES = ["a", "b", "1", ".5", "é", "😀", ": ", ":", "- ", "-", "? ", "\n", "\n", "\n ", "\n  ", "\n    ", " ", "\t",
          "[", "]", "{", "}", ",", ", ", "'", '"', "''", "\\", "\\n", "\\x4", "\\u00e9", "#", " # c", "|", ">", "|-",
          ">+", "|2", "&", "*", "!", "%", "@", "`", "<<", "~", "true", "---", "\n---\n", "\n...\n", "\r", "\r\n",
          "\ufeff", "\0", "\x7f", "\x85", "\u2028", "\ud800", "0x", "1e9", "9" * 20]
PLACE = re.compile(r"line ([0-9]+), column ([0-9]+): [^ ]")


def assert_the_law(text):
    try:
        plain(parse_yaml(text))
    except Unusable as failure:
        place = PLACE.match(failure.what)
        assert place and failure.fix, repr(text)
        lines = re.split("\r\n|\r|\n", text[text.startswith("\ufeff"):])
        line, column = int(place[1]), int(place[2])
        assert 1 <= line <= len(lines) and 1 <= column <= len(lines[line - 1]) + 1, repr(text)


def test_any_small_text_is_a_value_or_a_refusal_with_a_place_in_the_text():
    chance = random.Random(12)
    for _ in range(8000):
        assert_the_law("".join(chance.choices(PIECES, k=chance.randrange(1, 12))))


def test_any_text_of_three_pieces_keeps_the_law():
    few = ["a", ": ", "- ", "\n", "\n ", "[", "]", "{", "}", ",", "'", '"', "|", ">", "#", "\\", "\t", "?", "---"]
    for text in (one + two + three for one in few for two in few for three in few):
        assert_the_law(text)


def test_a_good_text_with_one_character_more_or_less_keeps_the_law():
    chance = random.Random(34)
    for path in GOOD + BAD:
        text = read_text(path)
        for _ in range(20 if len(text) < 1000 else 2):
            at = chance.randrange(len(text) + 1)
            assert_the_law(text[:at] + text[at + 1:])
            assert_the_law(text[:at] + chance.choice(PIECES) + text[at:])
            assert_the_law(text[:at])


# No text is slow: each of these is up to 1 MB or 100,000 lines, and read within seconds on a slow machine.

MILLION = 1000000
HUGE = {
    "one word": "a" * MILLION,
    "one run of spaces": "a" + " " * MILLION + "b",
    "spaces in double quotes": '"\\n' + " " * MILLION + 'b"',
    "spaces in single quotes": "'a" + " " * MILLION + "b\n c'",
    "spaces before the end of a line": "'a" + " " * MILLION + "\n b'",
    "escapes": '"' + "\\n" * (MILLION // 2) + '"',
    "quotes in quotes": "'" + "''" * (MILLION // 2) + "'",
    "quotes that never close": "a: '" + "b\n  " * (MILLION // 4),
    "digits": "1" * MILLION,
    "almost a number": "1" * MILLION + "e",
    "colons": ":" * MILLION,
    "colons and letters": "a:" * (MILLION // 2),
    "dashes": "- " * (MILLION // 2),
    "brackets": "[" * MILLION,
    "brackets on lines": "[\n" * (MILLION // 2),
    "a list in brackets": "[" + "a," * (MILLION // 8) + "]",
    "a list in brackets on lines": "a: [\n" + "  'b', # c\n" * 100000 + "  ]",
    "a map in brackets": "{" + ",".join("k%d: v" % number for number in range(100000)) + "}",
    "a text of many lines": "a:\n" + "  b\n" * 100000,
    "blank lines in a text": "a:\n" + "  b\n\n\n\n" * 25000,
    "texts between blank lines": "".join("a%d: b\n\n\n" % number for number in range(30000)),
    "a literal text": "a: |\n" + "  b\n" * 100000,
    "a folded text": "a: >\n" + "  b\n\n   c\n\n" * 25000,
    "blank lines in a folded text": ">\n a\n" + "\n" * MILLION + "  b",
    "many small literal texts": "".join("a%d: |\n\n  b\n\n" % number for number in range(25000)),
    "deep indentation": "".join(" " * (50 * depth) + "a:\n" for depth in range(99)) + "\n" * 100000,
    "far too deep indentation": "".join(" " * depth + "a:\n" for depth in range(1400)),
    "comments": "# c\n" * 100000,
    "marks": "...\n" * 100000,
    "NUL": "\0" * MILLION,
}


@pytest.mark.parametrize("name", HUGE)
def test_no_huge_text_costs_its_square(name):
    begin = time.perf_counter()
    assert_the_law(HUGE[name])
    assert time.perf_counter() - begin < 10               # a square would take minutes


def test_ten_thousand_lines_of_config_are_read_in_well_under_a_second():
    agent = ('agent-%d:\n  - name: "agent %d"\n    args: [\'--model\', "x\\ty", plain]\n    env: {A: "1", B: two}\n'
             "  - name: other\n    limit: 0x1F\n    prompt: |\n      do this\n        and that\n      end\n")
    begin = time.perf_counter()
    value = value_of("".join(agent % (number, number) for number in range(1000)))
    assert time.perf_counter() - begin < 2                # 0.2 s where it was written
    assert len(value) == 1000 and value["agent-999"][1]["prompt"] == "do this\n  and that\nend\n"
