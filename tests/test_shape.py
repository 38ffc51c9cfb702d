"""The promises of the style guide, checked by reading the program's text."""
import ast
import json
import pathlib
import re
import sys

import pytest

import selftalk
from sandboxes import PROGRAM, ROOT

SOURCE = PROGRAM.read_text(encoding="utf-8")
LINES = SOURCE.split("\n")
TREE = ast.parse(SOURCE)
HEADER = re.compile(r"^# (\d+\. .+)$")
ROOMS = [(number, HEADER.match(line).group(1)) for number, line in enumerate(LINES, 1)
         if HEADER.match(line) and LINES[number - 2].startswith("# ====")]


def room_of(line):
    return [name for number, name in ROOMS if number <= line][-1] if line >= ROOMS[0][0] else ""


def functions():
    return [node for node in ast.walk(TREE) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def top_level_names():
    found = {}
    for node in TREE.body:
        names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else \
            [target.id for target in getattr(node, "targets", []) + [getattr(node, "target", None)]
             if isinstance(target, ast.Name)]
        for name in names:
            found.setdefault(name, []).append(node)
    return found


def test_the_map_in_the_docstring_names_the_rooms_in_their_order():
    promised = re.findall(r"^ +(\d+\. [A-Z][a-z]+(?: [a-z]+)?)  ", ast.get_docstring(TREE, clean=False), re.MULTILINE)
    assert promised == [name for _, name in ROOMS]
    assert [int(name.split(".")[0]) for name in promised] == list(range(1, 18))


def test_names_point_up():
    where = {name: nodes[0] for name, nodes in top_level_names().items()}
    down = []
    for node in TREE.body:
        for use in ast.walk(node):
            if isinstance(use, ast.Name) and isinstance(use.ctx, ast.Load) and use.id in where:
                if where[use.id].lineno > node.end_lineno:
                    down.append("%s in line %d" % (use.id, use.lineno))
    assert not down


def test_no_name_is_defined_twice():
    assert not [name for name, nodes in top_level_names().items() if len(nodes) > 1]


def test_everything_defined_is_used():
    words = re.findall(r"\w+", SOURCE)
    assert not [name for name in top_level_names() if words.count(name) < 2]


def test_no_function_is_longer_than_50_lines_and_nine_in_ten_have_at_most_30():
    sizes = sorted(node.end_lineno - node.lineno + 1 for node in functions())
    assert sizes[-1] <= 50
    assert sizes[len(sizes) // 2] <= 10
    assert sizes[len(sizes) * 9 // 10] <= 30


def test_the_file_stays_below_7220_lines_of_110_columns():
    assert len(LINES) <= 7220
    assert not [number for number, line in enumerate(LINES, 1) if len(line) > 110]


def test_only_the_standard_library_is_imported():
    names = [alias.name for node in ast.walk(TREE) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(TREE) if isinstance(node, ast.ImportFrom)]
    known = getattr(sys, "stdlib_module_names", None) or pytest.skip("this python does not list its modules")
    assert names and not [name for name in names if name.split(".")[0] not in known]


@pytest.mark.parametrize("version", [(3, 9), (3, 6)])
def test_the_text_parses_as(version):
    ast.parse(SOURCE, feature_version=version)   # 3.6: so that the line about the version is what an old one prints


def test_costly_modules_are_not_imported_at_start():
    at_start = [alias.name for node in TREE.body if isinstance(node, ast.Import) for alias in node.names]
    assert not set(at_start) & {"dataclasses", "tempfile", "shutil", "sqlite3", "hashlib", "glob", "difflib", "urllib",
                                "logging", "inspect", "asyncio", "curses", "pathlib", "random", "uuid", "socket"}


@pytest.mark.parametrize("word, rooms", [
    (r"\bsubprocess\.", ("7. System", "8. Tmux")),
    (r"\btime\.sleep|\bclock\(", ("7. System",)),
    (r"\bos\.kill\(", ("7. System",)),
    (r"\bprint\(", ("17. Command line",)),
    (r"\bsys\.exit\(|\bos\._exit\(", ("17. Command line",)),
    (r"\bargparse\.", ("17. Command line",)),
    (r"\bfcntl\.", ("7. System",)),
])
def test_the_outside_world_is_touched_only_in_its_rooms(word, rooms):
    first = ROOMS[0][0]
    places = [(number, room_of(number)) for number, line in enumerate(LINES, 1)
              if number > first and re.search(word, line.split("  #")[0])]
    assert places and not [place for place in places if place[1] not in rooms]


def test_agents_are_named_in_their_room_only():
    docstrings = {id(node.body[0].value) for node in ast.walk(TREE)
                  if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)) and ast.get_docstring(node, False)}
    names = set(selftalk.AGENTS) - {"demo"}
    assert names
    wrong = [(node.value, node.lineno) for node in ast.walk(TREE)
             if isinstance(node, ast.Constant) and node.value in names and id(node) not in docstrings
             and room_of(node.lineno) != "2. Agents"]
    assert not wrong


def test_nothing_catches_everything_and_nothing_is_swallowed():
    handlers = [node for node in ast.walk(TREE) if isinstance(node, ast.ExceptHandler)]
    broad = [node.lineno for node in handlers if node.type is None or getattr(node.type, "id", "") == "Exception"]
    assert not broad
    for node in handlers:
        if getattr(node.type, "id", "") == "BaseException":
            assert isinstance(node.body[-1], ast.Raise), "line %d catches all and does not raise it again" % node.lineno
    assert not [node.lineno for node in ast.walk(TREE) if isinstance(node, ast.Pass)]


def test_everything_is_annotated():
    bare = []
    for node in functions():
        arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        named = [one for one in arguments if one.arg not in ("self", "cls")]
        if any(one.annotation is None for one in named) or node.returns is None:
            bare.append(node.name)
    assert not bare


def test_annotations_need_no_newer_python():
    """They are evaluated at start, and 3.9 has no `X | Y` for types."""
    notes = [one.annotation for node in functions() for one in node.args.args + node.args.kwonlyargs] + \
        [node.returns for node in functions()] + [node.annotation for node in ast.walk(TREE) if isinstance(node, ast.AnnAssign)]
    unions = [part.lineno for note in notes if note for part in ast.walk(note)
              if isinstance(part, ast.BinOp) and isinstance(part.op, ast.BitOr)]
    assert not unions


def test_every_public_function_and_record_says_what_it_is():
    silent = [node.name for node in TREE.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
              and not ast.get_docstring(node)]
    assert not silent


def test_failures_have_their_own_codes_and_words():
    assert len({failure.word for failure in selftalk.FAILURES}) == len(selftalk.FAILURES)
    subclasses = {failure for failure in vars(selftalk).values()
                  if isinstance(failure, type) and issubclass(failure, selftalk.Failure)}
    assert subclasses - set(selftalk.FAILURES) == {selftalk.ServerGone}   # never leaves the rooms that know tmux


# --- rows ---------------------------------------------------------------------

def row_words(row):
    start = row.start
    words = list(start.unattended) + list(start.prompt) + list(start.resume)
    words += [word for _, words in start.added for word in words] + [row.record.files if row.record else ""]
    return words


@pytest.mark.parametrize("row", selftalk.AGENT_ROWS, ids=lambda row: row.name)
def test_the_holes_of_a_row_are_known(row):
    holes = re.findall(r"\{([a-z_]+)(?::\.\d)?\}", " ".join(row_words(row)))
    assert set(holes) <= {"prompt", "workspace_json", "session"}
    assert not row.start.resume or "{session}" in row.start.resume and row.record
    assert row.start.prompt.count("{prompt}") == 1


@pytest.mark.parametrize("row", selftalk.AGENT_ROWS, ids=lambda row: row.name)
def test_the_rules_of_a_row_compile_and_name_known_states_regions_and_marks(row):
    for rule in row.pane.rules:
        assert rule.state in selftalk.STATES
        kind, _, operand = rule.region.partition(":")
        assert kind in ("title", "screen", "bottom", "below", "at")
        assert operand.isdigit() if kind == "bottom" else operand in row.pane.marks if operand else True
        assert rule.needs, rule.name
        for pattern in rule.needs + rule.unless:
            re.compile(pattern, re.MULTILINE)
    for dialog in row.pane.dialogs:
        assert len(dialog.needs) >= 2, "a dialog is known by two signs: %s" % dialog.name
        for pattern in dialog.needs + (dialog.choose,):
            re.compile(pattern, re.MULTILINE)
    assert len({rule.name for rule in row.pane.rules}) == len(row.pane.rules)


def test_formats_and_rows_name_each_other():
    named = {row.record.format for row in selftalk.AGENT_ROWS if row.record}
    assert named == set(selftalk.FORMATS)


def test_the_names_in_the_table_of_agents_are_those_of_the_rows():
    assert [row.name for row in selftalk.AGENT_ROWS] == list(selftalk.AGENTS)


# --- the project ---------------------------------------------------------------

def test_no_path_of_a_machine_stands_in_the_tree():
    home = str(pathlib.Path.home())
    texts = [path for path in ROOT.rglob("*") if path.is_file() and path.suffix in (".py", ".md", ".json", ".txt", ".yaml")
             and not {".git", ".venv", ".live", ".pytest_cache", "__pycache__"} & set(path.relative_to(ROOT).parts)]
    assert texts
    words = [home + "/", str(ROOT) + "/"] if home != "/" else [str(ROOT) + "/"]
    assert not [(str(path), word) for path in texts for word in words if word in path.read_text(errors="replace")]


def test_the_version_stands_in_the_changelog():
    assert re.search(r"^## %s\b" % re.escape(selftalk.VERSION), (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_version_stands_in_the_plugin_manifest():
    entry, = json.loads((ROOT / ".claude-plugin" / "marketplace.json").read_text(encoding="utf-8"))["plugins"]
    assert entry["version"] == selftalk.VERSION


def test_nothing_in_the_tree_confuses_a_host_or_an_installer():
    """They take the whole tree: a second SKILL.md would be a skill, `npx skills` drops a metadata.json, installers follow
    or refuse links, and with a plugin.json here Codex calls the skill selftalk:selftalk."""
    tree = [path for path in ROOT.rglob("*") if not {".git", ".venv", ".live"} & set(path.relative_to(ROOT).parts)]
    assert [path for path in tree if path.name == "SKILL.md"] == [ROOT / "SKILL.md"]
    assert not [path for path in tree if path.name in ("metadata.json", "plugin.json") or path.is_symlink()]


def test_the_exit_codes_in_the_readme_are_those_of_the_program():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict((word, int(code)) for code, word in re.findall(r"^\| (\d+) \| `(\w+)` \|", readme, re.MULTILINE))
    expected = {outcome: code for outcome, (code, _) in selftalk.OUTCOMES.items()}
    expected.update({failure.word: failure.code for failure in selftalk.FAILURES})
    assert rows == expected


def test_all_flags_are_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    flags = {name for _, _, args in selftalk.COMMANDS.values() for arg in args + selftalk.COMMON
             for name in arg.names.split() if name.startswith("--") and arg.help}
    assert flags and not [flag for flag in sorted(flags) if flag not in readme]


def test_json_samples_are_json():
    for path in (ROOT / "tests").rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
