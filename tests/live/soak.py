"""Turn after turn with one real agent on a busy machine: `python tests/live/soak.py AGENT TURNS [SEED]`.

Counts false idles (an answer that is cut, or another turn's) and missed ends (no answer within 30 s of the
model's last word), and prints one line of figures.
"""
from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from typing import Any

from model_server import Act, Answer, Shell, Think
from talks import Talk, open_home

MISSED_S = 30.0
BURN = "while True: pass"


def choose_acts(chance: random.Random, number: int) -> tuple[list[Act], str]:
    """What the model does in a turn, and the answer."""
    # no two words are the same: gemini 0.61.0 asks what to do about a model that repeats itself
    words = " ".join("%x" % chance.getrandbits(32) for _ in range(chance.choice((1, 30, 800))))
    answer = "answer %d: %s, end of %d" % (number, words, number)
    acts: list[Act] = []
    for _ in range(chance.choice((0, 0, 1, 2, 3))):
        acts.append(Think(chance.choice((0.0, 0.1, 0.5, 2.0))))
        acts.append(Shell(chance.choice((
            "echo quick", "sleep 1; echo slow", "seq 1 3000", "sleep 3 >/dev/null 2>&1 &",
            "printf '\\342\\235\\257 esc to interrupt\\n'")), text=chance.choice(("", "I look."))))
    acts.append(Think(chance.choice((0.0, 0.05, 0.3, 1.0, 3.0))))
    chunks = chance.choice((1, 1, 5, 20))
    acts.append(Answer(answer, chunks=chunks, chunk_pause_s=chance.choice((0.0, 0.05, 0.2))))
    return acts, answer


def soak(agent: str, turns: int, seed: int) -> dict[str, Any]:
    chance, counts, waits = random.Random(seed), {"good": 0, "false idle": 0, "missed end": 0, "other": 0}, []
    with open_home(agent) as home:
        talk = Talk(home)
        talk.make_ready()
        for number in range(1, turns + 1):
            acts, answer = choose_acts(chance, number)
            home.server.next_prompt(*acts)
            seen = len(home.server.prompts)
            process = talk.start_sending("prompt %d" % number, "--stall", "60")
            kind, result = watch(talk, process, answer, seen, waits)
            counts[kind] += 1
            if kind != "good":
                print(json.dumps({"turn": number, "kind": kind, "acts": [str(act)[:120] for act in acts],
                                  "outcome": result and result["outcome"], "what": result and result["what"],
                                  "answer": result and result["answer"][:200]}), file=sys.stderr, flush=True)
                talk.run("stop", str(talk.number))
                talk.make_ready()
    waits.sort()
    return {"agent": agent, "turns": turns, **counts,
            "median_after_s": waits[len(waits) // 2] if waits else None, "worst_after_s": waits[-1] if waits else None}


def watch(talk: Talk, process: subprocess.Popen, answer: str, seen: int, waits: list[float]) -> tuple[str, Any]:
    """(what became of the turn, the result): waits until the model has said its last word, and 30 s more."""
    said_at = None
    while process.poll() is None:
        requests = [request for request in talk.server.requests if request.kind in ("prompt", "again")]
        is_said = len(talk.server.prompts) > seen and isinstance(requests[-1].act, Answer) and \
            requests[-1].fate == "sent"
        said_at = (said_at or time.monotonic()) if is_said else None
        if said_at and time.monotonic() - said_at > MISSED_S:
            process.kill()
            process.communicate()
            return "missed end", None
        time.sleep(0.02)
    out, _ = process.communicate()
    result = json.loads(out)
    if result.get("outcome") != "answered":
        return "other", result
    if result["answer"] != answer:
        return "false idle", result
    waits.append(round(time.monotonic() - said_at, 2) if said_at else 0.0)
    return "good", result


def main() -> None:
    agent, turns, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1
    burners = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(2)]
    try:
        print(json.dumps(soak(agent, turns, seed)))
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


if __name__ == "__main__":
    main()
