"""What every test can ask for: a sandbox in which nothing may be left alive."""
import os
import signal

import pytest

from sandboxes import Sandbox, until_true


@pytest.fixture
def sandbox(tmp_path):
    """A sandbox; afterwards nothing that was started in it may be alive."""
    box = Sandbox(tmp_path)
    yield box
    left = box.processes()
    until_true(lambda: not box.processes(), 2.0 if left else 0.0)
    left = box.processes()
    for pid, _ in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "left behind: %s" % left
