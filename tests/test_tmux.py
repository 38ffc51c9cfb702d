"""Room 8: one tmux server, in real tmux."""
import os
import signal
import subprocess

import pytest

import selftalk
from sandboxes import until_true
from selftalk import (ControlClient, Missing, PANE_SIZE, Ran, ServerGone, TMUX_FLOOR, TmuxServer, check_tmux, explain_tmux,
                      is_alive, read_process, socket_identity)


@pytest.fixture
def server(sandbox):
    """A server that is started by the test, on sockets of its own."""
    opened = TmuxServer("tested", check_tmux())
    opened.env = dict(sandbox.env)
    saved, os.environ["TMUX_TMPDIR"] = os.environ.get("TMUX_TMPDIR"), sandbox.env["TMUX_TMPDIR"]
    os.environ.pop("TMUX", None)
    yield opened
    opened.run("kill-server")
    os.environ.pop("TMUX_TMPDIR")
    if saved is not None:
        os.environ["TMUX_TMPDIR"] = saved


def start(server, *argv):
    facts = server.start(argv, server.env)
    server.socket = facts.socket
    return facts


@pytest.mark.parametrize("text, version", [
    ("tmux 3.3a", (3, 3)), ("tmux 3.0", (3, 0)), ("tmux next-3.5", (3, 5)), ("tmux openbsd-7.4", (7, 4)),
    ("tmux 2.7", None), ("tmux master", TMUX_FLOOR), ("", TMUX_FLOOR)])
def test_versions_are_read_as_distributions_print_them(text, version, monkeypatch):
    monkeypatch.setattr(selftalk, "run_command", lambda *_: Ran(0, text, ""))
    if version:
        assert check_tmux() == version
        return
    with pytest.raises(Missing, match=r"version 2\.7 is too old"):
        check_tmux()


def test_a_session_has_its_size_and_no_client_changes_it(server):
    facts = start(server, "sh", "-c", "sleep 100")
    assert server.pane_size(facts.pane) == PANE_SIZE
    small = subprocess.Popen(["script", "-qfc", "stty cols 80 rows 24; tmux -S %s attach -r" % facts.socket, "/dev/null"],
                             stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=dict(server.env, TERM="xterm"))
    assert until_true(lambda: server.run("list-clients").out.strip())
    assert server.pane_size(facts.pane) == PANE_SIZE
    server.run("detach-client", "-s", "main")
    small.communicate(timeout=10)
    assert server.pane_size(facts.pane) == PANE_SIZE


def test_a_worker_inherits_the_environment_and_none_of_it_is_in_an_argument(server, tmp_path):
    server.env["SECRET"] = "obviously-a-secret\nwith two lines"
    facts = start(server, "sh", "-c", 'printf %%s "$SECRET" > %s/seen; sleep 100' % tmp_path)
    assert until_true(lambda: (tmp_path / "seen").exists() and (tmp_path / "seen").read_text() == server.env["SECRET"])
    assert "obviously" not in subprocess.run(["ps", "-axo", "args="], stdout=subprocess.PIPE).stdout.decode()
    assert "obviously" not in server.run("show-options", "-g").out + server.run("show-options", "-s").out
    assert facts.server_pid


def test_the_users_own_tmux_conf_is_not_read(server, sandbox):
    (sandbox.home / ".tmux.conf").write_text("set -g prefix C-a\n")
    start(server, "sh", "-c", "sleep 100")
    assert server.run("show-options", "-gv", "prefix").out.strip() == "C-b"


def test_a_dead_pane_keeps_its_screen_to_the_letter(server, tmp_path):
    # tmux 3.3a under load drops what it has not read yet when a program ends: this one waits until it was read
    facts = start(server, "sh", "-c", "echo first; echo last; until [ -e %s/go ]; do sleep 0.01; done; exit 3" % tmp_path)
    assert until_true(lambda: "last" in server.run("capture-pane", "-p", "-t", facts.pane).out)
    (tmp_path / "go").touch()
    assert until_true(lambda: server.run("display-message", "-p", "-t", facts.pane, "#{pane_dead}").out.strip() == "1")
    with ControlClient(server, facts.pane) as client:
        assert client.ask("capture-pane -p -t %s" % facts.pane)[0].split("\n")[:2] == ["first", "last"]


def test_the_control_client_answers_many_questions_and_leaves_no_process(server):
    facts = start(server, "sh", "-c", "printf 'a\\n%%end 1 2 3\\nünicode\\n'; sleep 100")
    with ControlClient(server, facts.pane) as client:
        assert until_true(lambda: "ünicode" in client.ask("capture-pane -p")[0])
        first, second = client.ask("capture-pane -p", "display-message -p '#{pane_id}'")
        assert first.split("\n")[:3] == ["a", "%end 1 2 3", "ünicode"] and second == facts.pane
        assert client.ask(*["display-message -p %d" % number for number in range(200)]) == [str(n) for n in range(200)]
        pid = client._client.pid
    assert not is_alive(read_process(pid) or read_process(os.getpid())._replace(pid=0))


def test_a_question_to_a_server_that_is_gone_is_a_failure_and_no_hang(server):
    facts = start(server, "sh", "-c", "sleep 100")
    with ControlClient(server, facts.pane) as client:
        os.kill(facts.server_pid, signal.SIGKILL)
        with pytest.raises(ServerGone):
            for _ in range(100):
                client.ask("capture-pane -p")
    with ControlClient(server, facts.pane) as client, pytest.raises(ServerGone):
        client.ask("capture-pane -p")


def test_a_control_client_that_somebody_detached_attaches_again(server):
    facts = start(server, "sh", "-c", "sleep 100")
    with ControlClient(server, facts.pane) as client:
        pids = []
        for number in range(3):
            assert client.ask("display-message -p %d" % number) == [str(number)]
            pids.append(client._client.pid)
            server.run("detach-client", "-s", "main")
    assert len(set(pids)) == 3 and not [pid for pid in pids if read_process(pid)]


def test_keys_reach_a_pane_that_somebody_has_scrolled(server, tmp_path):
    facts = start(server, "sh", "-c", "seq 200; read line; echo $line > %s/line; sleep 100" % tmp_path)
    assert until_true(lambda: "200" in server.run("capture-pane", "-p", "-t", facts.pane).out)
    server.run("copy-mode", "-t", facts.pane)
    server.run("send-keys", "-t", facts.pane, "-X", "page-up")
    server.send_keys(facts.pane, ("h", "i", "Enter"))
    assert until_true(lambda: (tmp_path / "line").exists() and (tmp_path / "line").read_text() == "hi\n")


def test_two_servers_at_one_path_are_told_apart(server):
    facts = start(server, "sh", "-c", "sleep 100")
    before = socket_identity(facts.socket)
    server.run("kill-server")
    assert until_true(lambda: not read_process(facts.server_pid))
    assert until_true(lambda: start(server, "sh", "-c", "sleep 100"))
    assert socket_identity(facts.socket) != before


@pytest.mark.parametrize("words, advice", [
    ("error connecting to /tmp/tmux-0/x (Operation not permitted)", "sandbox"),
    ("error connecting to /x: File name too long", "TMUX_TMPDIR"),
    ("anything else", "-v")])
def test_trouble_with_tmux_comes_with_advice(words, advice):
    failure = explain_tmux(Ran(1, "", words + "\nmore"), "starting")
    assert advice in failure.fix and words in failure.what


def test_without_tmux_the_person_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Missing) as caught:
        check_tmux()
    assert "apt install tmux" in caught.value.fix
