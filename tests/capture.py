"""Records what a pane shows into the folder of captures: capture.py AGENT VERSION STATE NAME SOCKET PANE."""
import pathlib
import subprocess
import sys

SCREENS = pathlib.Path(__file__).resolve().parent / "screens"


def ask(socket, *words):
    ran = subprocess.run(["tmux", "-u", "-S", socket, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if ran.returncode:
        sys.exit("capture: %s" % ran.stderr.decode().strip())
    return ran.stdout.decode()


def main(agent, version, state, name, socket, pane):
    width, height, title = ask(socket, "display-message", "-p", "-t", pane,
                               "#{pane_width} #{pane_height} #{pane_title}").rstrip("\n").split(" ", 2)
    folder = SCREENS / agent / version / state
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("%s-%sx%s.txt" % (name, width, height))
    path.write_text(ask(socket, "capture-pane", "-p", "-t", pane), encoding="utf-8")
    path.with_suffix(".info").write_text("title=[%s]\n" % title, encoding="utf-8")
    print("%s\nlook through it for names, keys and paths of yours before you commit it" % path)


if __name__ == "__main__":
    if len(sys.argv) != 7 or not all(sys.argv[1:]):
        sys.exit("usage: make capture AGENT=claude VERSION=2.1.329 STATE=ready NAME=start SOCKET=/tmp/… PANE=%0")
    main(*sys.argv[1:])
