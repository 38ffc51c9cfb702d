"""The skill: its text, where it is put, and what `doctor` finds."""
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

import selftalk
from sandboxes import PROGRAM, ROOT

SKILL_MD = (ROOT / "SKILL.md").read_text(encoding="utf-8")
HEAD, BODY = SKILL_MD.split("---\n", 2)[1:]
VERSION = selftalk.VERSION
OLDER = PROGRAM.read_text(encoding="utf-8").replace('VERSION = "%s"' % VERSION, 'VERSION = "0.0.9"').replace(
    "# selftalk: hand work to another coding agent", "# selftalk: hand work to one more coding agent")
OLDER_MD = SKILL_MD.replace("to another coding agent\n\n`self", "to one more coding agent\n\n`self")
HOMES = {   # host: where its skills lie, and the variable that moves its folder
    "claude": (".claude/skills", "CLAUDE_CONFIG_DIR", "skills"), "codex": (".codex/skills", "CODEX_HOME", "skills"),
    "gemini": (".gemini/skills", "GEMINI_CLI_HOME", ".gemini/skills"),
    "opencode": (".config/opencode/skills", "XDG_CONFIG_HOME", "opencode/skills"),
    "cursor": (".cursor/skills", "", ""), "copilot": (".copilot/skills", "", ""),
    "pi": (".pi/agent/skills", "PI_CODING_AGENT_DIR", "skills"), "amp": (".config/agents/skills", "XDG_CONFIG_HOME", "agents/skills"),
    "goose": (".config/goose/skills", "XDG_CONFIG_HOME", "goose/skills"), "qwen": (".qwen/skills", "", ""),
    "agents": (".agents/skills", "", ""),
}


@pytest.fixture
def box(sandbox):
    """A sandbox in which no agent is on the PATH."""
    sandbox.env["PATH"] = "/usr/bin:/bin"
    return sandbox


def tree(folder):
    """All that lies in a folder: paths, kinds, contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = os.readlink(path) if path.is_symlink() else "" if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(folder))] = kind
    return found


def make_git(folder):
    """What makes a folder the root of a repository."""
    (folder / ".git").mkdir()
    (folder / ".git/HEAD").write_text("ref: refs/heads/main\n")


def have(box, *hosts):
    """Makes hosts that are there, and returns the folders in which they have the skill."""
    folders = [box.home / HOMES[host][0] / "selftalk" for host in hosts]
    for folder in folders:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
    return folders


def install(box, *words, status=0, **options):
    """What became of the copies: {host: row}."""
    done, rows = box.run_json("install-skill", *words, **options)
    assert done == status, rows
    return {", ".join(row["hosts"]): row for row in rows}


def put(folder, script=OLDER, skill=None):
    """A copy that somebody has made by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "selftalk.py").write_text(script, encoding="utf-8")
    (folder / "SKILL.md").write_text(OLDER_MD if skill is None else skill)


def install_by(box, text, *words, name="other"):
    """Lets another copy of the program install itself; its path."""
    path = box.folder / name / "selftalk.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    ran = subprocess.run([sys.executable, path, "install-skill", *words], env=box.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert b"Traceback" not in ran.stdout and ran.returncode == 0, ran.stdout.decode()
    return path


def holds_both(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == {
        "selftalk.py": PROGRAM.read_text(encoding="utf-8"), "SKILL.md": SKILL_MD}


# --- the text

def test_the_program_holds_the_text_that_lies_beside_it(box):
    assert selftalk.SKILL == SKILL_MD
    assert box.run("skill") == (0, SKILL_MD, "")
    assert box.run_json("skill") == (0, {"name": "selftalk", "version": VERSION, "text": SKILL_MD})


def test_its_head_is_what_the_specification_allows():
    fields = dict(line.split(": ", 1) for line in HEAD.strip().split("\n"))
    assert set(fields) == {"name", "description", "license", "compatibility", "allowed-tools"} and fields["name"] == "selftalk"
    description = json.loads(fields["description"])   # in quotes: a colon in it is what most hosts stumble over
    assert 100 < len(description) <= 1024 and len(fields["compatibility"]) <= 500
    assert "Delegate" in description[:20] and all(word in description for word in ("Claude Code", "Codex", "Gemini", "OpenCode", "quota"))


def test_it_is_short_and_nothing_in_it_is_replaced_by_a_host():
    assert SKILL_MD.count("\n") < 300 and len(SKILL_MD) / 3.5 < 3000   # an English token has some 4 letters
    assert not re.findall(r"\$\d|\$ARGUMENTS|!`", SKILL_MD)
    assert set(re.findall(r"\$\{\w+\}", SKILL_MD)) == {"${CLAUDE_SKILL_DIR}"}


def test_each_command_that_it_teaches_can_be_read_by_the_program():
    commands = re.findall(r"^    SELFTALK (.+?)(?: {2,}\S.*)?$", BODY, re.MULTILINE) + re.findall(r"`SELFTALK ([^`]+)`", BODY)
    assert len(commands) > 20
    for command in commands:
        words = [word for word in shlex.split(command.replace("<<'EOF'", "").replace("VERB", "run")) if word != "--help"]
        verb = words[0] if words[0] in selftalk.COMMANDS else "run"
        args = selftalk.make_parser(verb).parse_intermixed_args(words[1:] if verb == words[0] else words)
        assert not getattr(args, "words", []) or verb in ("run", "send"), command


def test_it_teaches_each_exit_code_and_outcome_that_needs_a_deed():
    codes = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", BODY, re.MULTILINE) for code in row.split(",")}
    assert codes == {code for code, _ in selftalk.OUTCOMES.values()} | {2, 3}


def test_the_rule_for_tools_covers_how_selftalk_itself_prints_its_commands(monkeypatch):
    rules = re.findall(r"Bash\((python3 \S+) \*\)", dict(line.split(": ", 1) for line in HEAD.strip().split("\n"))["allowed-tools"])
    for folder in ("/home/u/.claude/skills/selftalk", "/home/a user/.claude/skills/selftalk"):
        monkeypatch.setattr(selftalk, "__file__", folder + "/selftalk.py")
        assert any(selftalk.own_command("wait 7").startswith(rule.replace("${CLAUDE_SKILL_DIR}", folder) + " ") for rule in rules)


# --- putting it somewhere

@pytest.mark.parametrize("host", HOMES)
def test_each_host_gets_both_files_where_it_looks_for_them(box, host):
    folder = box.home / HOMES[host][0] / "selftalk"
    rows = install(box, "--provider", host)
    assert rows == {host: {"hosts": [host], "folder": str(folder), "did": "installed", "version": VERSION, "was": "", "what": "", "fix": ""}}
    assert holds_both(folder) and os.access(folder / "selftalk.py", os.X_OK)
    assert install(box, "--provider", host)[host]["did"] == "up-to-date"
    ran = subprocess.run([sys.executable, folder / "selftalk.py", "--version"], stdout=subprocess.PIPE, env=box.env)
    assert ran.stdout.decode().startswith("selftalk %s " % VERSION)


@pytest.mark.parametrize("host", [host for host, row in HOMES.items() if row[1]])
def test_a_folder_that_a_variable_has_moved_is_honoured(box, host):
    _, variable, below = HOMES[host]
    moved = box.folder / "moved to"
    assert install(box, "--provider", host, env={variable: str(moved)})[host]["folder"] == str(moved / below / "selftalk")
    assert holds_both(moved / below / "selftalk") and not (box.home / HOMES[host][0]).exists()
    assert install(box, "--provider", host, env={variable: "relative"})[host]["folder"] == str(box.home / HOMES[host][0] / "selftalk")


def test_without_a_name_all_hosts_that_are_there_get_it_and_no_other(box):
    have(box, "codex", "qwen")
    programs = box.folder / "programs"
    programs.mkdir()
    (programs / "claude").symlink_to("/bin/true")
    rows = install(box, env={"PATH": "%s:/usr/bin:/bin" % programs})
    assert {host: row["did"] for host, row in rows.items()} == {"claude": "installed", "codex": "installed", "qwen": "installed"}
    assert not any((box.home / HOMES[host][0]).exists() for host in ("gemini", "opencode", "agents"))


def test_without_any_host_it_says_which_there_are(box):
    status, out, err = box.run("install-skill")
    assert (status, out) == (3, "") and "no agent that reads skills is found here" in err and "--provider claude codex" in err
    status, out, err = box.run("install-skill", "--provider", "cluade")
    assert (status, out) == (2, "") and "did you mean `claude`?" in err


def test_a_person_is_told_what_was_done_where(box):
    claude, codex = have(box, "claude", "codex")
    put(codex)
    status, out, err = box.run("install-skill")
    assert status == 0 and err.startswith("selftalk: sessions that begin now have it")
    assert [line.split() for line in out.splitlines()] == [["claude", "installed", VERSION, str(claude)],
                                                           ["codex", "updated", "0.0.9", "->", VERSION, str(codex)]]


def test_another_version_that_was_copied_by_hand_is_replaced_and_its_litter_too(box):
    folder, = have(box, "claude")
    put(folder)
    (folder / "selftalk.py.123.456.tmp").write_text("half of")
    row = install(box)["claude"]
    assert (row["did"], row["was"], row["version"]) == ("updated", "0.0.9", VERSION) and holds_both(folder)


def test_another_build_of_this_version_is_replaced_when_it_was_put_there_by_us(box):
    folder, = have(box, "claude")
    other = install_by(box, PROGRAM.read_text() + "# another build\n")
    assert (folder / "selftalk.py").read_text() == other.read_text()
    assert install(box)["claude"]["did"] == "updated" and holds_both(folder)


FOREIGN = {
    "a newer version": lambda folder: put(folder, OLDER.replace("0.0.9", "0.10.0")),
    "a skill of somebody else": lambda folder: put(folder, "print('mine')\n", "---\nname: selftalk\n---\nmine\n"),
    "a SKILL.md alone": lambda folder: (folder.mkdir(parents=True), (folder / "SKILL.md").write_text("mine")),
    "a text that was changed": lambda folder: put(folder, PROGRAM.read_text(), SKILL_MD + "and my own words\n"),
    "a text of another version that was changed": lambda folder: put(folder, OLDER, SKILL_MD + "and my own words\n"),
    "a program that was changed": lambda folder: put(folder, PROGRAM.read_text() + "# mine\n", SKILL_MD),
    "a git clone": lambda folder: (put(folder), (folder / ".git").mkdir()),
    "a file": lambda folder: (folder.parent.mkdir(parents=True), folder.write_text("mine")),
    "a link": lambda folder: (put(folder.parent / "elsewhere"), folder.symlink_to(folder.parent / "elsewhere")),
    "a dead link": lambda folder: (folder.parent.mkdir(parents=True), folder.symlink_to("nowhere")),
    "a linked program": lambda folder: (put(folder), (folder / "selftalk.py").rename(folder / "x"), (folder / "selftalk.py").symlink_to("x")),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ours_stays_as_it_is_and_the_others_are_served(box, kind):
    FOREIGN[kind](box.home / ".claude/skills/selftalk")
    have(box, "codex")
    before = tree(box.home / ".claude")
    rows = install(box, status=2)
    assert (rows["claude"]["did"], rows["codex"]["did"]) == ("refused", "installed") and rows["claude"]["what"] and rows["claude"]["fix"]
    assert tree(box.home / ".claude") == before
    status, out, err = box.run("install-skill", "--provider", "claude")
    assert status == 2 and out.startswith("claude     refused") and rows["claude"]["what"] in err and "try: " in err
    for words in (["--uninstall"], ["--uninstall", "--provider", "claude"]):
        box.run("install-skill", *words)
        assert tree(box.home / ".claude") == before


@pytest.mark.parametrize("kind", FOREIGN)
def test_force_replaces_it_and_nothing_else(box, kind):
    folder = box.home / ".claude/skills/selftalk"
    FOREIGN[kind](folder)
    before = tree(box.home)
    assert install(box, "--force")["claude"]["did"] in ("updated", "installed")
    assert (folder / "SKILL.md").read_text() == SKILL_MD and not (folder / "selftalk.py").is_symlink() and not folder.is_symlink()
    own = (".claude/skills/selftalk", ".local")
    assert {name: what for name, what in tree(box.home).items() if not name.startswith(own)} == {
        name: what for name, what in before.items() if not name.startswith(own)}


def test_one_host_whose_folder_cannot_be_written_does_not_keep_it_from_the_others(box):
    have(box, "claude", "codex")
    (box.home / ".claude/skills").write_text("in the way")
    rows = install(box, status=2)
    assert rows["claude"]["did"] == "refused" and "cannot be written" in rows["claude"]["what"] and rows["codex"]["did"] == "installed"
    assert box.run("install-skill", "--uninstall")[0] == 0 and (box.home / ".claude/skills").read_text() == "in the way"


def test_a_program_of_an_older_version_that_was_changed_since_stays(box):
    folder, = have(box, "claude")
    install_by(box, OLDER)
    (folder / "selftalk.py").write_text(OLDER + "# my patch\n")
    assert install(box, status=2)["claude"]["did"] == "refused" and (folder / "selftalk.py").read_text() == OLDER + "# my patch\n"
    put(folder, OLDER, "")
    (folder / "SKILL.md").write_text("")   # a person has switched it off
    assert install(box, status=2)["claude"]["did"] == "refused"


def test_providers_may_be_written_with_commas(box):
    assert set(install(box, "--provider", "claude,codex", "pi,")) == {"claude", "codex", "pi"}


# --- links

def test_a_link_leads_to_this_copy_and_stays_one(box):
    folder, = have(box, "claude")
    assert install(box, "--link")["claude"]["did"] == "installed" and os.readlink(folder) == str(ROOT)
    assert install(box)["claude"]["did"] == install(box, "--link")["claude"]["did"] == "up-to-date" and folder.is_symlink()
    assert install(box, "--copy")["claude"]["did"] == "updated" and not folder.is_symlink() and holds_both(folder)
    assert install(box, "--link")["claude"]["did"] == "updated" and os.readlink(folder) == str(ROOT)
    assert install(box, "--uninstall")["claude"]["did"] == "removed" and (ROOT / "SKILL.md").exists() and not os.path.lexists(folder)


def test_a_link_is_not_put_over_files_of_others(box):
    folder, = have(box, "claude")
    install(box)
    (folder / "notes").write_text("mine")
    before = tree(folder)
    row = install(box, "--link", status=2)["claude"]
    assert (row["did"], row["what"]) == ("refused", "holds other files: notes") and tree(folder) == before
    assert install(box)["claude"]["did"] == "up-to-date"


def test_a_forced_link_that_is_refused_makes_nothing_ours(box):
    folder, = have(box, "claude")
    put(folder, "mine", "mine")
    (folder / "notes").write_text("mine")
    before = tree(box.home)
    assert install(box, "--link", "--force", status=2)["claude"]["did"] == "refused" and tree(box.home) == before
    assert install(box, "--uninstall") == {} and tree(box.home) == before


def test_litter_is_no_file_of_others(box):
    folder, = have(box, "claude")
    install(box)
    (folder / "selftalk.py.12.34.tmp").write_text("half of")
    assert install(box, "--link")["claude"]["did"] == "updated" and folder.is_symlink()


def test_a_copy_can_be_made_through_the_link_that_it_replaces(box):
    folder, = have(box, "claude")
    install(box, "--link")
    ran = subprocess.run([sys.executable, folder / "selftalk.py", "install-skill", "--copy"], env=box.env, stdout=subprocess.PIPE)
    assert ran.returncode == 0 and holds_both(folder) and not folder.is_symlink()
    assert install(box, "--uninstall")["claude"]["did"] == "removed" and tree(box.home) == {".claude": ""}


def test_a_link_to_another_copy_stays_one(box):
    folder, = have(box, "claude")
    clone = box.folder / "clone"
    put(clone)
    install_by(box, OLDER, "--link", name="clone")
    row = install(box)["claude"]
    assert (row["did"], row["version"]) == ("left", "0.0.9") and os.readlink(folder) == str(clone) in row["what"]
    assert install(box, "--copy")["claude"]["did"] == "updated" and holds_both(folder) and (clone / "selftalk.py").read_text() == OLDER


@pytest.mark.parametrize("litter", ["selftalk.py.12.34.tmp", "../.selftalk.12.1.tmp"])
def test_what_a_killed_one_has_left_goes(box, litter):
    folder, = have(box, "claude")
    install(box)
    for name in ("SKILL.md", "selftalk.py"):
        (folder / name).unlink()
    if ".." in litter:
        (folder / litter).symlink_to(ROOT)
    else:
        (folder / litter).write_text("half of")
    before = install(box, *["--uninstall"] if ".." not in litter else ["--link"])
    assert before["claude"]["did"] in ("removed", "installed") and not os.path.lexists(folder / litter)
    install(box, "--uninstall")
    assert tree(box.home) == {".claude": ""}


def test_a_copy_that_lies_alone_cannot_be_linked_to(box):
    alone = box.folder / "bin" / "selftalk.py"
    alone.parent.mkdir()
    shutil.copy(PROGRAM, alone)
    ran = subprocess.run([sys.executable, alone, "install-skill", "--provider", "claude", "--link"], env=box.env, stderr=subprocess.PIPE)
    assert ran.returncode == 2 and b"or make copies" in ran.stderr and not (box.home / ".claude").exists()


def test_the_copy_in_a_hosts_own_folder_completes_itself_and_never_becomes_a_link_to_itself(box):
    folder = box.home / ".claude/skills/selftalk"
    folder.mkdir(parents=True)
    shutil.copy(PROGRAM, folder)
    ran = [subprocess.run([sys.executable, folder / "selftalk.py", "install-skill", *words], env=box.env, stdout=subprocess.PIPE)
           for words in ([], ["--link"], [])]
    assert [one.returncode for one in ran] == [0, 0, 0] and b"up-to-date" in ran[2].stdout
    assert holds_both(folder) and not folder.is_symlink()


# --- one copy, not two

def test_a_host_that_has_it_from_the_shared_folder_gets_no_second_one(box):
    have(box, "claude", "codex", "gemini")
    shared = box.home / ".agents/skills/selftalk"
    put(shared)
    rows = install(box)
    assert {host: row["did"] for host, row in rows.items()} == {"claude": "installed", "codex, gemini": "updated"}
    assert holds_both(shared) and not (box.home / ".codex/skills").exists()


def test_the_shared_folder_can_be_named_and_serves_those_that_read_it(box):
    have(box, "claude", "codex", "gemini")
    rows = install(box, "--provider", "claude", "codex", "gemini", "--provider", "agents")
    assert set(rows) == {"claude", "codex, gemini, agents"} and holds_both(box.home / ".agents/skills/selftalk")
    row = install(box, "--uninstall", "--provider", "codex")["codex"]
    assert (row["did"], row["what"]) == ("left", "is used by agents, gemini as well") and holds_both(box.home / ".agents/skills/selftalk")
    assert install(box, "--uninstall", "--provider", "agents", "gemini")["agents, gemini"]["did"] == "removed"


def test_uninstall_leaves_what_serves_others_only(box):
    install(box, "--provider", "agents")
    assert box.run("install-skill", "--uninstall", "--provider", "codex") == (0, "", "selftalk: nothing is installed\n")
    make_git(box.work)
    install(box, "--project", "--provider", "codex")
    assert install(box, "--project", "--provider", "gemini")["gemini"]["did"] == "up-to-date"
    assert install(box, "--uninstall", "--project", "--provider", "opencode") == {}
    assert install(box, "--uninstall", "--project", "--provider", "codex")["codex"]["did"] == "left"
    assert holds_both(box.work / ".agents/skills/selftalk") and holds_both(box.home / ".agents/skills/selftalk")


def test_a_shared_copy_takes_the_place_of_those_that_were_installed_one_by_one(box):
    codex, gemini = have(box, "codex", "gemini")
    install(box)
    (gemini / "SKILL.md").write_text("mine")
    rows = install(box, "--provider", "agents", status=2)
    assert {host: row["did"] for host, row in rows.items()} == {"agents": "installed", "codex": "removed", "gemini": "refused"}
    assert not codex.exists() and (gemini / "SKILL.md").read_text() == "mine"


def test_an_own_copy_stays_when_the_shared_one_cannot_be_made_or_is_the_same(box):
    codex, = have(box, "codex")
    install(box)
    shared = box.home / ".agents/skills/selftalk"
    put(shared, "mine", "mine")
    rows = install(box, "--provider", "agents", status=2)
    assert {host: row["did"] for host, row in rows.items()} == {"agents": "refused"} and holds_both(codex)
    shutil.rmtree(shared.parent)
    shutil.move(codex.parent, shared.parent)
    codex.parent.symlink_to(os.path.relpath(shared.parent, codex.parent.parent))
    assert {row["did"] for row in install(box, "--provider", "agents").values()} == {"up-to-date"} and holds_both(codex)


def test_gemini_in_another_home_does_not_read_the_shared_folder_of_this_one(box):
    rows = install(box, "--provider", "agents", "gemini", env={"GEMINI_CLI_HOME": str(box.folder / "gh")})
    assert set(rows) == {"agents", "gemini"} and holds_both(box.folder / "gh/.gemini/skills/selftalk")


def test_what_another_installer_has_put_there_with_more_files_is_left_to_it(box):
    folder, = have(box, "codex")
    put(folder)
    (folder / "README.md").write_text("all of the repository")
    row = install(box, status=2)["codex"]
    assert row["did"] == "refused" and "by somebody else, with more files" in row["what"] and (folder / "selftalk.py").read_text() == OLDER


@pytest.mark.parametrize("link", [".claude/skills/selftalk", ".claude/skills"])
def test_a_link_of_somebody_else_into_the_shared_folder_is_that_folder(box, link):
    have(box, "codex")
    shared = box.home / ".agents/skills/selftalk"
    put(shared)
    (box.home / link).parent.mkdir(parents=True)
    (box.home / link).symlink_to(os.path.relpath(shared if link.endswith("talk") else shared.parent, (box.home / link).parent))
    if not link.endswith("talk"):
        shutil.rmtree(shared)
    for did in ("updated" if link.endswith("talk") else "installed", "up-to-date"):
        assert {host: row["did"] for host, row in install(box).items()} == {"claude, codex": did}
    assert holds_both(shared) and not (box.home / ".codex/skills").exists() and (box.home / link).is_symlink()


def test_a_project_has_one_copy_for_claude_and_one_for_all_that_share(box):
    have(box, "claude", "codex", "opencode", "amp")
    make_git(box.work)
    (box.work / "src/deep").mkdir(parents=True)
    box.work = box.work / "src/deep"
    rows = install(box, "--project")
    root = box.folder / "work"
    assert {host: row["folder"] for host, row in rows.items()} == {
        "claude": str(root / ".claude/skills/selftalk"), "codex, opencode, amp": str(root / ".agents/skills/selftalk")}
    assert not (box.home / ".claude/skills").exists()
    rows = install(box, "--uninstall")
    assert {row["did"] for row in rows.values()} == {"left"} and all("cd %s && " % root in row["fix"] for row in rows.values())
    assert set(install(box, "--uninstall", "--project")) == {"claude", "amp, codex, opencode"} and install(box, "--uninstall") == {}
    assert tree(root) == {".git": "", ".git/HEAD": b"ref: refs/heads/main\n", "src": "", "src/deep": ""}


# --- taking it back

@pytest.mark.parametrize("mode", ["--copy", "--link"])
def test_uninstall_takes_back_exactly_what_was_put_there(box, mode):
    have(box, "claude", "codex")
    (box.home / ".codex/skills/other").mkdir(parents=True)
    (box.home / ".codex/skills/other/SKILL.md").write_text("of somebody else")
    before = tree(box.home)
    assert len(install(box, mode, "--provider", *HOMES)) == 3   # those that share one folder are one
    install(box, mode, "--provider", "opencode", "amp", "goose")
    install(box, mode, "--provider", "pi")
    assert tree(box.home) != before
    assert {row["did"] for row in install(box, "--uninstall").values()} == {"removed"}
    assert tree(box.home) == before
    assert box.run("install-skill", "--uninstall") == (0, "", "selftalk: nothing is installed\n") and tree(box.home) == before


def test_uninstall_leaves_what_a_person_has_changed_or_added(box):
    claude, codex = have(box, "claude", "codex")
    install(box)
    (claude / "SKILL.md").write_text("mine")
    (codex / "notes").write_text("mine")
    rows = install(box, "--uninstall", status=2)
    assert (rows["claude"]["did"], rows["codex"]["did"]) == ("refused", "removed")
    assert "SKILL.md" in rows["claude"]["what"] and (claude / "selftalk.py").exists()
    assert tree(codex) == {"notes": b"mine"}
    assert install(box, "--uninstall", "--force")["claude"]["did"] == "removed" and not claude.exists()


def test_uninstall_leaves_a_copy_that_it_has_not_made(box):
    folder, = have(box, "claude")
    put(folder, PROGRAM.read_text(), SKILL_MD)
    assert install(box)["claude"]["did"] == "up-to-date"
    row = install(box, "--uninstall")["claude"]
    assert row["did"] == "left" and "not put there by install-skill" in row["what"] and holds_both(folder)
    assert install(box, "--uninstall", "--force")["claude"]["did"] == "removed" and not folder.exists()


def test_uninstall_leaves_a_version_that_somebody_else_has_put_over_ours(box):
    folder, = have(box, "claude")
    install(box)
    put(folder)
    assert install(box, "--uninstall", status=2)["claude"]["did"] == "refused" and (folder / "selftalk.py").read_text() == OLDER


def test_a_record_of_another_version_is_named_and_left_alone(box):
    have(box, "claude")
    box.state.mkdir(parents=True)
    (box.state / "skills.json").write_text('{"format": 99}')
    status, _, err = box.run("install-skill")
    assert status == 2 and "written by another version" in err and (box.state / "skills.json").read_text() == '{"format": 99}'


@pytest.mark.parametrize("text", ['{"format": 1, "made": 5, "skills": {"%s": {"hosts": 5, "links": 5, "files": {"SKILL.md": 5}}, "\\u0000": {"a": 1}}}', "", "{", "[]", "null", '{"format": 1, "skills": [1]}', '{"format": 1, "skills": {"/x": 1}, "made": null}'])
def test_a_damaged_record_is_none(box, text):
    folder, = have(box, "claude")
    box.state.mkdir(parents=True)
    (box.state / "skills.json").write_text(text.replace("%s", str(folder)))
    assert install(box)["claude"]["did"] == "installed"
    assert install(box, "--uninstall")["claude"]["did"] == "removed" and not folder.exists()


BROKEN = """
import errno, os, signal, sys
sys.path.insert(0, %r)
import selftalk
how, left = sys.argv[1], [int(sys.argv[2])]
def broken(name, deed):
    def instead(*words, **more):
        if name == "open" and not words[1] & os.O_CREAT:
            return deed(*words, **more)
        left[0] -= 1
        if not left[0] and how == "full" and name in ("open", "mkdir", "symlink"):
            raise OSError(errno.ENOSPC, "No space left on device", words[0])
        result = deed(*words, **more)
        if not left[0] and how != "full":
            os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGINT)
        return result
    return instead
for name in ("open", "mkdir", "symlink", "replace", "rename", "unlink", "rmdir"):
    setattr(os, name, broken(name, getattr(os, name)))
code = selftalk.main(sys.argv[3:])
os._exit(code if left[0] <= 0 else 99)
""" % str(ROOT)
BEFORE = {"none": [], "an older one": [OLDER], "a copy": ["--copy"], "a link": ["--link"]}


@pytest.mark.parametrize("how", ["kill", "interrupt", "full"])
@pytest.mark.parametrize("before, words", [("none", []), ("an older one", []), ("a copy", ["--link"]), ("a link", ["--copy"]),
                                           ("a copy", ["--uninstall"])])
def test_whoever_is_cut_off_at_any_step_leaves_whole_files_and_all_can_be_taken_back(box, how, before, words):
    folder, = have(box, "claude")
    for step in range(1, 60):
        for word in BEFORE[before]:
            install_by(box, word) if word is OLDER else install(box, word)
        ran = subprocess.run([sys.executable, "-X", "pycache_prefix=%s" % (box.folder / "cache"), "-c", BROKEN, how, str(step),
                              "install-skill", *words], env=box.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert b"Traceback" not in ran.stderr, ran.stderr.decode()
        found = [path.read_text() for path in (folder / "selftalk.py", folder / "SKILL.md") if path.exists()]
        assert all(text in (OLDER, PROGRAM.read_text(), SKILL_MD, OLDER_MD) for text in found), step
        assert len(found) == 2 or before == "none" or "--uninstall" in words or how == "kill", (step, ran.stdout, ran.stderr)
        install(box, "--uninstall")
        left = {name: what for name, what in tree(box.home).items() if not (name.startswith(".local") and what == "")}
        assert left == {".claude": ""}, (step, left)
        if ran.returncode == 99:
            break
    assert step > 5 and ran.returncode == 99


def test_install_and_uninstall_at_once_do_no_harm(box):
    folder, = have(box, "claude")
    for _ in range(3):
        callers = [box.start("install-skill", *words) for words in [[], ["--uninstall"]] * 4]
        assert [(caller.communicate()[1].decode(), caller.returncode) for caller in callers if caller.wait(timeout=30)] == []
    install(box, "--uninstall")
    assert tree(box.home) == {".claude": ""}


def test_many_at_once_leave_one_whole_copy(box):
    folder, = have(box, "claude")
    callers = [box.start("install-skill", *words) for words in [[], ["--copy"], [], ["--copy"]] * 2]
    assert [caller.wait(timeout=30) for caller in callers] == [0] * 8 and holds_both(folder)
    for caller in callers:
        caller.communicate()
    assert install(box, "--uninstall")["claude"]["did"] == "removed" and not (box.home / ".claude/skills").exists()


def test_it_can_be_piped_nowhere_but_says_so(box):
    ran = subprocess.run([sys.executable, "-", "install-skill"], input=PROGRAM.read_bytes(), env=box.env,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert ran.returncode == 2 and b"Traceback" not in ran.stderr and b"save it to a file" in ran.stderr


# --- doctor

AGENT = "#!/bin/sh\necho \"$0 $*\" >> %s\ncase \"$*\" in\n--version) echo '%s';;\n*) echo '%s';;\nesac\n"


def program(box, name, version="", says=""):
    """A program on the PATH that tells its version."""
    folder = box.folder / "programs"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(AGENT % (box.folder / "calls", version, says))
    (folder / name).chmod(0o755)
    box.env["PATH"] = "%s:/usr/bin:/bin" % folder


def doctor(box, **options):
    """(status, whether all is well, {what: [findings]})."""
    status, result = box.run_json("doctor", **options)
    found = {}
    for one in result["findings"]:
        found.setdefault(one["what"], []).append(one)
    return status, result["ok"], found


def test_doctor_on_a_machine_without_any_agent(box):
    status, ok, found = doctor(box)
    assert (status, ok) == (1, False)
    assert found["agents"][0]["mark"] == "wrong" and "npm install -g" in found["agents"][0]["fix"]
    assert [found[name][0]["text"] for name in ("claude", "codex", "gemini", "opencode")] == ["not installed"] * 4
    assert [found[name][0]["mark"] for name in ("selftalk", "python", "tmux", "state", "config", "leftovers")] == ["ok"] * 6
    assert found["selftalk"][0]["version"] == VERSION and found["python"][0]["version"] == sys.version.split()[0]
    assert tree(box.home) == {}


def test_doctor_tells_a_person_one_thing_a_line_and_what_to_do_below(box):
    program(box, "opencode", "1.18.33")
    status, out, err = box.run("doctor")
    assert (status, err) == (0, "")
    assert "ok     opencode   1.18.33, login unknown, %s/programs/opencode\n" % box.folder in out
    assert "note   claude     not installed\n                  try: npm install -g @anthropic-ai/claude-code\n" in out
    assert all(re.match(r"(ok|note|wrong) +\w|  +try: ", line) for line in out.splitlines())


@pytest.mark.parametrize("version, words", [("1.18.33", ""), ("1.19.0", "newer than 1.18.33"), ("1.9.40", "older than 1.18.33"),
                                            ("2.0.0-beta.1", "newer than 1.18.33")])
def test_doctor_compares_an_agent_with_the_one_that_the_rules_were_seen_on(box, version, words):
    program(box, "opencode", "opencode %s" % version)
    one = doctor(box)[2]["opencode"][0]
    assert (one["version"], one["seen"], one["mark"]) == (version, "1.18.33", "note" if words else "ok")
    assert words in one["text"] and bool(one["fix"]) == bool(words)


def test_doctor_reads_the_version_of_an_npm_package_without_a_start(box):
    package = box.folder / "lib/node_modules/opencode-ai"
    (package / "bin").mkdir(parents=True)
    (package / "package.json").write_text(json.dumps({"version": "1.18.30", "bin": {"opencode": "./bin/opencode.exe"}}))
    program(box, "opencode", "never asked")
    (box.folder / "programs/opencode").rename(package / "bin/opencode.exe")
    (box.folder / "programs/opencode").symlink_to(package / "bin/opencode.exe")
    assert doctor(box)[2]["opencode"][0]["version"] == "1.18.30" and not (box.folder / "calls").exists()


def test_doctor_does_not_take_the_package_json_of_a_project_for_an_agents(box):
    (box.folder / "package.json").write_text(json.dumps({"version": "9.9.9", "bin": {"opencode": "other.js"}}))
    program(box, "opencode", "1.18.33")
    assert doctor(box)[2]["opencode"][0]["version"] == "1.18.33"


def test_doctor_knows_who_is_not_logged_in(box):
    program(box, "claude", "2.1.329 (Claude Code)", "")
    (box.folder / "programs/claude").write_text("#!/bin/sh\ncase \"$*\" in --version) echo 2.1.329;; auth*) exit 1;; *) echo '"
                                                '{"type":"control_response","response":{"subtype":"success","request_id":"r1",'
                                                '"response":{"rate_limits_available":false}}}' "';; esac\n")
    status, ok, found = doctor(box)
    assert (found["claude"][0]["login"], found["claude"][0]["mark"], found["claude"][0]["fix"]) == ("no", "note", "start claude and log in")
    assert (status, ok) == (1, False) and found["agents"][0]["text"] == "none is logged in"


def test_doctor_says_when_an_agent_tells_nothing_or_hangs(box):
    program(box, "opencode", "no number")
    assert doctor(box)[2]["opencode"][0]["text"].startswith("version unknown, ")
    assert not box.processes()


@pytest.mark.parametrize("deed", ["trap '' TERM; setsid sleep 7777 & while :; do sleep 300; done", "exec yes 'codex 1.2'", "exec yes 1"])
def test_an_agent_that_hangs_or_never_stops_leaves_nothing(box, deed, monkeypatch):
    program(box, "codex")
    (box.folder / "programs/codex").write_text("#!/bin/sh\n%s\n" % deed)
    for name, value in (("PROBE_S", 1.0), ("LEAVE_S", 0.1)):
        monkeypatch.setattr(selftalk, name, value)
    monkeypatch.setenv("TMPDIR", box.env["TMPDIR"])
    monkeypatch.setattr("tempfile.tempdir", None)
    one = selftalk.examine_agent(selftalk.AGENTS["codex"], box.env, None)
    assert (one.mark, one.facts["version"]) == ("wrong", None) if "trap" in deed else one.facts["version"] == ("1.2" if "1.2" in deed else None)
    assert not box.processes() and not list((box.folder / "tmp").iterdir())


def test_doctor_without_tmux_or_with_an_old_one(box):
    folder = box.folder / "programs"
    program(box, "opencode", "1.18.33")
    for name in ("sh", "env"):
        (folder / name).symlink_to(shutil.which(name))
    status, ok, found = doctor(box, env={"PATH": str(folder)})
    assert status == 1 and (found["tmux"][0]["mark"], found["tmux"][0]["text"]) == ("wrong", "tmux: not found")
    (folder / "tmux").write_text("#!/bin/sh\necho tmux 2.7\n")
    (folder / "tmux").chmod(0o755)
    assert "2.7 is too old" in doctor(box)[2]["tmux"][0]["text"]
    (folder / "tmux").write_text("#!/bin/sh\n[ $1 = -V ] && echo tmux 3.3a || { echo 'error connecting (Operation not permitted)' >&2; exit 1; }\n")
    one = doctor(box)[2]["tmux"][0]
    assert one["mark"] == "wrong" and "Operation not permitted" in one["text"] and "sandbox" in one["fix"]


@pytest.mark.parametrize("folder", ["nowhere", "a-file", "a-file/below"])
def test_doctor_with_a_folder_for_sockets_that_is_none(box, folder):
    program(box, "opencode", "1.18.33")
    (box.folder / "a-file").write_text("")
    found = doctor(box, env={"TMUX_TMPDIR": str(box.folder / folder)})[2]["tmux"][0]
    assert found["mark"] == "wrong" and "TMUX_TMPDIR" in found["fix"] if folder == "a-file" else found["mark"] == "ok"
    assert not list(pathlib.Path("/tmp/tmux-%d" % os.getuid()).glob("selftalk-%d" % os.getpid()))


def test_doctor_leaves_no_socket_of_tmux(box):
    program(box, "opencode", "1.18.33")
    assert doctor(box)[2]["tmux"][0]["mark"] == "ok" and not box.processes()
    assert [path.name for path in (box.folder / "sockets").rglob("*") if not path.is_dir()] == []


def test_doctor_names_what_is_wrong_with_the_config_and_the_state_folder(box):
    program(box, "opencode", "1.18.33")
    box.config("profiles:\n  a:\n    comand: x\n")
    one = doctor(box)[2]["config"][0]
    assert one["mark"] == "wrong" and "unknown key `comand`" in one["text"] and "line 3" in one["text"] and "command" in one["fix"]
    box.config("default_profile: a\nprofiles:\n  a: {command: nowhere-to-be-found}\n  b: {command: sh}\n")
    found = doctor(box)[2]
    assert "2 profiles, default a" in found["config"][0]["text"] and [one["text"] for one in found["profile"]] == [
        "a: its command nowhere-to-be-found is not found"]
    shutil.rmtree(box.state)
    box.state.write_text("a file")
    status, ok, found = doctor(box)
    assert status == 1 and found["state"][0]["mark"] == "wrong" and str(box.state) in found["state"][0]["text"]


def test_doctor_looks_at_each_copy_of_the_skill(box):
    program(box, "opencode", "1.18.33")
    claude, codex, gemini = have(box, "claude", "codex", "gemini")
    install(box, "--provider", "claude")
    put(codex)
    found = {one["hosts"][0]: one for one in doctor(box)[2]["skill"]}
    assert {host: (one["mark"], one["copy"], one["version"]) for host, one in found.items()} == {
        "claude": ("ok", "up-to-date", VERSION), "codex": ("note", "ours", "0.0.9"), "gemini": ("note", "absent", None)}
    assert found["gemini"]["hosts"] == ["gemini", "opencode"] and found["gemini"]["fix"].endswith(" install-skill")
    subprocess.run(shlex.split(found["codex"]["fix"]), env=box.env, check=True, stdout=subprocess.DEVNULL)
    assert holds_both(codex)
    put(gemini, OLDER.replace("0.0.9", "0.10.0"))
    one = next(one for one in doctor(box)[2]["skill"] if one["hosts"] == ["gemini"])
    assert "newer than this one" in one["text"] and one["fix"].startswith("use that one")
    put(box.home / ".agents/skills/selftalk", PROGRAM.read_text(), SKILL_MD)
    one = next(one for one in doctor(box)[2]["skill"] if one["hosts"] == ["codex"])
    assert one["mark"] == "note" and "once more in" in one["text"]


def test_doctor_finds_leftovers_and_prune_takes_them_away(box):
    program(box, "opencode", "1.18.33")
    (box.state / "runs" / "3" / "turns").mkdir(parents=True)
    os.utime(box.state / "runs" / "3", (1, 1))
    one = doctor(box)[2]["leftovers"][0]
    assert (one["mark"], one["count"]) == ("note", 1) and one["fix"].endswith("prune")
    assert box.run("prune")[0] == 0 and doctor(box)[2]["leftovers"][0]["text"] == "none"


@pytest.fixture
def sandboxed(box):
    """The environment in Codex's sandbox, in which no program may make a socket."""
    folder = box.folder / "sandbox"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import socket\ndef forbid(*words, **more):\n    raise PermissionError(1, 'Operation not permitted')\n"
                                             "socket.socket = forbid\n")
    return {"CODEX_CI": "1", "CODEX_SANDBOX_NETWORK_DISABLED": "1", "PYTHONPATH": str(folder)}


def test_doctor_knows_in_whose_shell_it_is_and_that_it_has_no_network(box, sandboxed):
    program(box, "opencode", "1.18.33")
    found = doctor(box, env=sandboxed)[2]
    assert found["host"][0]["names"] == ["codex"] and found["host"][0]["wait_s"] == 290
    assert found["network"][0]["mark"] == "wrong" and "sandbox of codex" in found["network"][0]["text"]
    assert "host" not in doctor(box)[2]


def test_what_codex_lets_run_outside_of_its_sandbox_has_a_network(box, sandboxed):
    found = doctor(box, env={name: value for name, value in sandboxed.items() if name != "PYTHONPATH"})[2]
    assert found["host"][0]["names"] == ["codex"] and "network" not in found


def test_a_run_in_a_sandbox_without_network_is_refused_before_anything_starts(box, sandboxed):
    program(box, "opencode", "1.18.33")
    status, out, err = box.run("run", "-p", "opencode", "do it", env=sandboxed)
    assert (status, out) == (2, "") and "gives this command no network" in err and "outside of the sandbox" in err
    assert not (box.state / "runs").exists()


def test_a_run_is_not_taken_up_again_in_a_sandbox_without_network(box, sandboxed):
    program(box, "codex", "0.169.0")
    (box.folder / "programs/codex").write_text("#!/bin/sh\ncat > /dev/null\necho '{\"type\":\"thread.started\",\"thread_id\":\"t1\"}'\n"
                                               "echo '{\"type\":\"item.completed\",\"item\":{\"type\":\"agent_message\",\"text\":\"done\"}}'\n"
                                               "echo '{\"type\":\"turn.completed\",\"usage\":{}}'\n")
    assert box.run("run", "-H", "-p", "codex", "do it")[:2] == (0, "done\n")
    status, out, err = box.run("send", "1", "again", env=sandboxed)
    assert (status, out) == (2, "") and "gives this command no network" in err
    assert box.run("send", "1", "again")[:2] == (0, "done\n")


@pytest.mark.parametrize("can_go_back", [True, False])
def test_a_copy_that_cannot_be_replaced_is_never_lost(tmp_path, monkeypatch, can_go_back):
    folder = tmp_path / "skills/selftalk"
    put(folder)
    calls, rename = [], os.rename

    def broken(source, target):
        calls.append(target)
        if len(calls) == 2 or len(calls) == 3 and not can_go_back:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(selftalk.Unusable, match="input/output error"):
        selftalk.place_skill(str(folder), {}, str(ROOT))
    [script] = (tmp_path / "skills").rglob("selftalk.py")
    assert script.read_text() == OLDER and (script.parent == folder) == can_go_back
