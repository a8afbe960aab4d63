"""The code sandbox: honest programs run; forty attacks do no harm, and attempts are reported."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import psutil
import pytest

from loomos.rl.environments import FamilyEnvironment
from loomos.rl.environments.code import CodeTask, run
from loomos.rl.environments.programs import PROGRAMS, TELLING, Program, telling_inputs
from loomos.rl.sandbox import Limits, SandboxMissing, run_function, run_jailed, run_query

LIMITS = Limits(wall_s=4, cpu_s=2, memory_bytes=256 * 2**20)


def test_honest_programs_run() -> None:
    python = (
        "import math, collections, re\ndef f(a, b):\n    print('hello')\n    return math.gcd(a, b)"
    )
    assert run_function("python", python, "f", [[12, 18], [7, 5]], limits=LIMITS).values == [
        {"value": 6},
        {"value": 1},
    ]
    script = "function f(a, b) { return a + b; }"
    found = run_function("javascript", script, "f", [[1, 2], ["a", "b"]], limits=LIMITS)
    assert found.values == [{"value": 3}, {"value": "ab"}]
    tables = [["CREATE TABLE t (x)", "INSERT INTO t VALUES (3), (4)"]]
    assert run_query("SELECT SUM(x) FROM t", tables, limits=LIMITS).values == [{"value": [[7]]}]


def test_an_error_of_one_call_leaves_the_others() -> None:
    code = "def f(a):\n    return 6 // a"
    found = run_function("python", code, "f", [[2], [0], [3]], limits=LIMITS).values
    assert found == [{"value": 3}, {"error": "ZeroDivisionError"}, {"value": 2}]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_every_planted_fault_is_one(program: Program) -> None:
    """Each broken program differs from the right one on inputs that are among every task's."""
    inputs = json.dumps(telling_inputs(program))
    right = run(program.language, program.name, program.source, inputs, 10.0)
    assert len(right.values) == TELLING and all("value" in value for value in right.values)
    for before, after in program.faults:
        broken = program.source.replace(before, after, 1)
        assert broken != program.source
        assert run(program.language, program.name, broken, inputs, 10.0).values != right.values
    if program.slow:
        slow = run(program.language, program.name, program.slow, inputs, 10.0)
        assert slow.values == right.values


# --- attacks ------------------------------------------------------------------------------------

ATTACKS = {
    "fork bomb": "import os\ndef f():\n    while True:\n        os.fork()",
    "fork by ctypes": "import ctypes\ndef f():\n    ctypes.CDLL(None).fork()",
    "fork by multiprocessing": (
        "import multiprocessing\ndef f():\n    multiprocessing.Process(target=f).start()"
    ),
    "thread bomb": (
        "import threading, time\ndef f():\n    while True:\n"
        "        threading.Thread(target=time.sleep, args=(60,)).start()"
    ),
    "memory bomb": "def f():\n    x = []\n    while True:\n        x.append('a' * 10**7)",
    "memory by one allocation": "def f():\n    return len(bytearray(10**11))",
    "memory by a number": "def f():\n    return len(str(9 ** 9 ** 9))",
    "endless loop": "def f():\n    while True:\n        pass",
    "endless loop in C": "import re\ndef f():\n    re.match('(a+)+$', 'a' * 40 + 'b')",
    "endless sleep": "import time\ndef f():\n    time.sleep(10**6)",
    "endless import": "while True:\n    pass",
    "endless recursion": "def f():\n    return f()",
    "recursion in C": (
        "def f():\n    x = []\n    for _ in range(10**6):\n        x = [x]\n    return x"
    ),
    "output flood": "def f():\n    while True:\n        print('x' * 10**5)",
    "error flood": "import sys\ndef f():\n    while True:\n        sys.stderr.write('x' * 10**5)",
    "flood of the answers": (
        "import os\ndef f():\n    while True:\n        os.write(3, b'x' * 10**5)"
    ),
    "huge answer": "def f():\n    return 'x' * 10**8",
    "read passwd": "def f():\n    return open('/etc/passwd').read()",
    "read by os.open": "import os\ndef f():\n    return os.open('/etc/shadow', os.O_RDONLY)",
    "read the secret": "def f():\n    return open('{secret}').read()",
    "read the parent's memory": "def f():\n    return open('/proc/1/environ').read()",
    "list the root": "import os\ndef f():\n    return os.listdir('/')",
    "write to the library": "def f():\n    open('/usr/lib/evil', 'w').write('x')",
    "write its own code": "def f():\n    open('/jail/code.py', 'w').write('x')",
    "fill the disk": (
        "def f():\n    with open('/tmp/x', 'wb') as file:\n        while True:\n"
        "            file.write(b'x' * 10**6)"
    ),
    "remove files": "import shutil\ndef f():\n    shutil.rmtree('/jail')",
    "symlink": "import os\ndef f():\n    os.symlink('/etc', '/tmp/etc')",
    "connect to the host": (
        "import socket\ndef f():\n    socket.create_connection(('127.0.0.1', {port}))"
    ),
    "listen": "import socket\ndef f():\n    socket.socket().bind(('', 0))",
    "raw socket by _socket": "import _socket\ndef f():\n    _socket.socket(2, 1, 0)",
    "fetch a page": "import urllib.request\ndef f():\n    urllib.request.urlopen('http://1.1.1.1')",
    "ptrace": "import ctypes\ndef f():\n    ctypes.CDLL(None).ptrace(0, 0, 0, 0)",
    "ctypes from memory": "import ctypes\ndef f():\n    return ctypes.string_at(0)",
    "run a shell": "import os\ndef f():\n    os.system('echo owned')",
    "subprocess": "import subprocess\ndef f():\n    subprocess.run(['ls'])",
    "exec another program": "import os\ndef f():\n    os.execv('/bin/sh', ['sh'])",
    "ignore signals": (
        "import signal\ndef f():\n    for n in range(1, 32):\n"
        "        try:\n            signal.signal(n, signal.SIG_IGN)\n"
        "        except OSError:\n            pass\n    while True:\n        pass"
    ),
    "kill its parent": "import os\ndef f():\n    os.kill(os.getppid(), 9)",
    "kill everybody": "import os\ndef f():\n    os.kill(-1, 9)",
    "pickle": (
        "import pickle\ndef f():\n    pickle.loads(b\"cos\\nsystem\\n(S'echo owned'\\ntR.\")"
    ),
    "exit early": "import os\ndef f():\n    os._exit(0)",
    "exit at import": "raise SystemExit(0)",
    "print the answer": "def f():\n    print('{\"value\": 42}')",
    "always equal": (
        "class Same:\n    def __eq__(self, other):\n        return True\n"
        "def f():\n    return Same()"
    ),
    "a dictionary that lies": (
        "class Lies(dict):\n    def __eq__(self, other):\n        return True\n"
        "def f():\n    return Lies()"
    ),
    "drop the hook": (
        "import gc\ndef f():\n    for x in gc.get_objects():\n"
        "        if getattr(x, '__name__', '') == 'hook':\n            return str(x)"
    ),
    "trace": "import sys\ndef f():\n    sys.settrace(print)",
    "break json": (
        "import json\njson.dumps = lambda *a, **k: '{\"value\": 42}'\ndef f():\n    return 1"
    ),
    "mount": "import ctypes\ndef f():\n    ctypes.CDLL(None).mount(b'a', b'/tmp', b'tmpfs', 0, 0)",
}

REPORTED = {
    "fork bomb", "fork by ctypes", "fork by multiprocessing", "read passwd", "read by os.open",
    "read the secret", "read the parent's memory", "list the root", "write to the library",
    "write its own code", "fill the disk", "remove files", "symlink", "connect to the host",
    "listen", "raw socket by _socket", "fetch a page", "ptrace", "ctypes from memory",
    "run a shell", "subprocess", "exec another program", "kill its parent",
    "kill everybody", "pickle", "drop the hook", "trace", "mount",
}  # fmt: skip


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "secret"
    path.write_text("42")
    return path


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_does_no_harm(attack: str, secret: Path) -> None:
    """The expected answer is 42 and no attack gives it honestly; the host is as before."""
    reached = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            try:
                server.accept()
                reached.set()
            except OSError:
                return

        threading.Thread(target=accept, daemon=True).start()
        code = ATTACKS[attack].replace("{secret}", str(secret))
        code = code.replace("{port}", str(server.getsockname()[1]))
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        found = run_function("python", code, "f", [[]], limits=LIMITS)
        server.shutdown(socket.SHUT_RDWR)
    assert not reached.is_set()
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    assert secret.read_text() == "42"
    assert not os.path.exists("/usr/lib/evil")
    assert (found.stopped == "forbidden call") == (attack in REPORTED), found
    assert attack == "break json" or {"value": 42} not in found.values


def test_forty_attacks_are_tried() -> None:
    assert len(ATTACKS) >= 40


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("function f() { while (true) {} }", []),
        ("function f() { const x = []; while (true) x.push(new Array(1e6).fill(1)); }", []),
        (
            "function f() { return require('fs').readFileSync('/etc/passwd', 'utf8'); }",
            [{"error": "ReferenceError"}],
        ),
        ("function f() { return process.env; }", [{"error": "ReferenceError"}]),
        (
            "function f() { return this.constructor.constructor('return process')().pid; }",
            [{"error": "EvalError"}],
        ),
        ("function f() { return import('fs'); }", [{"value": {}}]),
        (
            "Object.prototype.toJSON = () => 42; function f() { return 1; }",
            [{"error": "NotAnOutput"}],
        ),
    ],
)
def test_javascript_attacks_do_no_harm(code: str, values: list[object]) -> None:
    assert run_function("javascript", code, "f", [[]], limits=LIMITS).values == values


@pytest.mark.parametrize(
    "query",
    [
        "ATTACH DATABASE '/tmp/x' AS x",
        "SELECT load_extension('/tmp/x')",
        "PRAGMA writable_schema = 1",
        "DROP TABLE t",
        "INSERT INTO t VALUES (42)",
    ],
)
def test_queries_only_read(query: str) -> None:
    found = run_query(query, [["CREATE TABLE t (x)"]], limits=LIMITS)
    assert found.stopped == "forbidden call"
    assert found.values == []


def test_an_endless_query_is_stopped() -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT SUM(x) FROM n"
    assert run_query(endless, [["CREATE TABLE t (x)"]], limits=LIMITS).stopped == "time"


def test_system_calls_are_refused_where_no_harness_looks() -> None:
    """Without the audit hook the filter and the walls hold alone."""
    for call, stops in (
        ("import os; os.fork()", "forbidden call"),
        ("import socket; socket.socket()", "forbidden call"),
        ("import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)", "forbidden call"),
        ("import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 39)", "forbidden call"),
        ("import os; os.unshare(0) if hasattr(os, 'unshare') else os.fork()", "forbidden call"),
    ):
        ran = run_jailed(["/usr/bin/python3", "-I", "-c", call], files={}, limits=LIMITS)
        assert ran.stopped == stops, (call, ran)
    looks = "import os; print(*map(os.path.exists, ('/etc/passwd', '/var')), os.getpid())"
    ran = run_jailed(["/usr/bin/python3", "-I", "-c", looks], files={}, limits=LIMITS)
    assert ran.output.split()[:2] == [b"False", b"False"]
    assert int(ran.output.split()[2]) < 10


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SandboxMissing, match="apt-get install bubblewrap"):
        run_function("python", "def f(): return 1", "f", [[]], limits=LIMITS)


def test_an_escape_scores_nothing_and_is_reported() -> None:
    environment = FamilyEnvironment("code", {"reward_shaping": {"partial_credit": True}})
    environment.reset(seed=0)
    assert isinstance(environment.task, CodeTask)
    name = environment.task.program.name
    code = f"import socket\ndef {name}(*_):\n    socket.socket()\n"
    _, reward, over, _, info = environment.reply(f"```python\n{code}```")
    assert over and reward == 0
    assert info["escape"].startswith("socket.")
