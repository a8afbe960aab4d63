"""Functions that the tests' experiments search over; nodes import them from the repository."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from loomos.weaver import Trial
from loomos.weaver.functions import branin_at


def note(trial: Trial, what: str) -> None:
    """Leave a line that says what happened, whatever happens next."""
    line = json.dumps({"trial": trial.number, "what": what, "pid": os.getpid()}) + "\n"
    file = os.open(
        Path(trial.arguments["folder"]) / "notes.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT
    )
    os.write(file, line.encode())
    os.close(file)


def notes(folder: Path) -> list[dict]:
    file = folder / "notes.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def counted(trial: Trial) -> float:
    """Branin's function, with a note at its beginning and its end."""
    note(trial, "begun")
    time.sleep(trial.arguments.get("seconds", 0.05))
    note(trial, "done")
    return branin_at(trial.params["x"], trial.params["y"])


def stepwise(trial: Trial) -> float:
    """Ten steps towards a value, saved after each; noted, so that repeated ones are seen."""
    step = int(trial.load() or b"0")
    note(trial, f"from {step}")
    value = 0.0
    while step < 10:
        time.sleep(trial.arguments.get("seconds", 0.05))
        step += 1
        value = branin_at(trial.params["x"], trial.params["y"]) + 10.0 / step
        trial.report(step, value)
        trial.save(str(step).encode())
    note(trial, "done")
    return value


def clumsy(trial: Trial) -> dict:
    """Fails as its parameter says, at first or always."""
    tries = sum(1 for n in notes(Path(trial.arguments["folder"])) if n["trial"] == trial.number)
    note(trial, "begun")
    match trial.params["how"]:
        case "raises":
            raise RuntimeError("as it was asked to")
        case "raises once" if tries == 0:
            raise RuntimeError("only once")
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        case "gives nothing":
            return {}
        case "gives nan":
            return {"value": float("nan")}
        case "hangs":
            time.sleep(3600)
    print("what functions print goes to the log")
    return {"value": 1.0, "seconds": 0.5 if trial.params["how"] == "is fine" else 9.0}


def two_goals(trial: Trial) -> tuple[float, float]:
    """Zitzler, Deb and Thiele's first function, in two dimensions."""
    x, y = trial.params["x"], trial.params["y"]
    g = 1 + 9 * y
    return x, g * (1 - (x / g) ** 0.5)


def grows(trial: Trial) -> float:
    """Jaderberg's toy: theta climbs by a rate; only a population finds that the rate may change."""
    theta = float(trial.load() or b"0")
    for _ in range(5):
        theta += trial.params["rate"]
    trial.save(str(theta).encode())
    return -theta


def secrets(trial: Trial) -> float:
    """How many of the worker's own settings it can see."""
    return float(sum(name.startswith(("LOOMOS_", "AWS_")) for name in os.environ))
