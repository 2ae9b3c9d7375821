"""Answers that are wrong and try to count as right, or as not counted at all."""

from __future__ import annotations

from typing import Any

EQUAL = {"test_list": ["assert add(1, 2) == 3"]}
LINES = {"test_list": ["result = add(1, 2)\nassert result == 3, 'sum'"]}
CHECK = {"test": "def check(f):\n    assert f(1, 2) == 3\n    assert f(2, 2) == 4", "entry_point": "add"}
CALL = {"tests": {"inputs": ["1\n2"], "outputs": ["3"], "fn_name": "add"}}
STDIN = {"tests": {"inputs": ["1 2\n"], "outputs": ["3\n"]}}
FLOAT = {"tests": {"inputs": ["1\n2"], "outputs": ["1.5"], "fn_name": "add"}}
KINDS = {"equal": EQUAL, "lines": LINES, "check": CHECK, "call": CALL}

EVERYTHING = """
class Everything({base}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __gt__ = __le__ = __ge__ = __contains__ = __lt__
    def __hash__(self): return 3
    def __sub__(self, other): return 0.0
    __rsub__ = __add__ = __radd__ = __abs__ = __sub__
    def __bool__(self): return True
    def __getattr__(self, name): return lambda *a, **k: True
    @property
    def __class__(self): return int
def add(*a, **k): return Everything()
"""
WRONG = "\ndef add(*a, **k): return 0\n"
SPRAY = """
import os
def spray(text):
    for fd in range(1, 64):
        if fd != 4:
            try: os.write(fd, text)
            except OSError: pass
"""

# Tried against every kind of test that calls a function.
TRICKS: dict[str, str] = {
    "exec": "import builtins\nbuiltins.exec = lambda *a, **k: None" + WRONG,
    "compile": "import builtins\nreal = compile\nbuiltins.compile = lambda *a, **k: real('', 'x', 'exec')" + WRONG,
    "everything": EVERYTHING.format(base=""),
    "everything-int": EVERYTHING.format(base="int"),
    "everything-str": EVERYTHING.format(base="str"),
    "everything-list": EVERYTHING.format(base="list"),
    "everything-dict": EVERYTHING.format(base="dict"),
    "any": "from unittest.mock import ANY\ndef add(a, b): return ANY",
    "mock": "from unittest.mock import MagicMock\nadd = MagicMock()",
    "frames": """
import json, os, sys
def add(*a):
    frame = sys._getframe()
    while frame:
        for names in (frame.f_locals, frame.f_globals):
            for key, value in list(names.items()):
                if key in ("token", "task", "test", "told", "names", "expected"):
                    os.write(3, json.dumps({"token": str(value), "passed": True}).encode())
                    os._exit(0)
        frame = frame.f_back
    return 0
""",
    "gc": """
import gc, json, os
def add(*a):
    for found in gc.get_objects():
        if isinstance(found, dict) and ({"token", "test", "mode"} & set(map(str, found))):
            os.write(3, json.dumps({"token": str(found.get("token")), "passed": True, "value": True}).encode())
            os._exit(0)
    return 0
""",
    "fds": SPRAY + """spray(b'{"passed": true}')\nos._exit(0)""",
    "fds-in-call": SPRAY + """def add(*a):\n    spray(b'{"passed": true, "value": true}')\n    os._exit(0)""",
    "fds-value": SPRAY + """spray(b'{"told": true, "printed": ""}\\n' * 20)""" + WRONG,
    "fds-raised": SPRAY + """spray(b'{"raised": ["StopIteration"], "with": []}\\n' * 20)""" + WRONG,
    "fds-answer": SPRAY + """spray(b'{"told": {"d": [["add", ["value", {"o": 0}]]]}}\\n')\nos._exit(0)""",
    "fds-ask": SPRAY + """spray(b'{"ask": ["call", [{"h": 0}, [], {"d": []}]]}\\n' * 9)""" + WRONG,
    "fds-rubbish": SPRAY + """spray(b'\\x00[[[[\\n' * 20)""" + WRONG,
    "fds-deep": SPRAY + """spray(b'{"told": ' + b'[' * 100000 + b'\\n')""" + WRONG,
    "exit": "import os\nos._exit(0)",
    "exit-in-call": "import os\ndef add(*a): os._exit(0)",
    "system-exit": "import sys\ndef add(*a): sys.exit(0)",
    "system-exit-at-once": "raise SystemExit(0)",
    "quit": "def add(*a): raise SystemExit",
    "interrupt": "def add(*a): raise KeyboardInterrupt",
    "stop-iteration": "def add(*a): raise StopIteration(3)",
    "generator-exit": "def add(*a): raise GeneratorExit",
    "assertion": "import builtins\nbuiltins.AssertionError = SystemExit\ndef add(*a): return 0",
    "assertion-class": "class AssertionError(BaseException): pass\ndef check(f): pass" + WRONG,
    "json": "import json\njson.dumps = lambda *a, **k: '{\"passed\": true, \"value\": true}'" + WRONG,
    "os-write": "import os\nreal = os.write\n"
    "os.write = lambda fd, b: real(fd, b'{\"passed\": true}\\n') and len(b)" + WRONG,
    "exchange": """
import sys
exchange, harness = sys.modules["nemotron.sandbox.exchange"], sys.modules["__main__"]
exchange.encode = lambda value, refer: True
exchange.decode = lambda tree, resolve: [3, 3]
""" + WRONG,
    "lying-names": """
import sys
from nemotron.sandbox import harness
harness.Answer._described = lambda self, name: ["module", "unittest.mock"]
""" + WRONG,
    "lying-typing": """
from nemotron.sandbox import harness
harness.Answer._described = lambda self, name: ["typing", "Any"]
""" + WRONG,
    "lying-base": EVERYTHING.format(base="int") + """
from nemotron.sandbox import harness
harness.base_of = lambda value: Everything()
""",
    "builtins": "import builtins\nfor n in ('len', 'set', 'abs', 'all', 'any', 'isinstance', 'sorted', 'repr'):\n"
    "    setattr(builtins, n, lambda *a, **k: True)" + WRONG,
    "trace": """
import sys
def tracer(frame, event, argument):
    for key in list(frame.f_locals):
        if key in ("value", "passed", "reply"): frame.f_locals[key] = True
    return tracer
sys.settrace(tracer); sys.setprofile(tracer)
""" + WRONG,
    "excepthook": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\nraise ValueError",
    "audit": "import sys\nsys.addaudithook(lambda *a: None)" + WRONG,
    "import": "import builtins\nbuiltins.__import__ = lambda *a, **k: __builtins__" + WRONG,
    "atexit": SPRAY + """import atexit\natexit.register(spray, b'{"passed": true}')""" + WRONG,
    "thread": SPRAY + """
import threading, time
def later():
    for _ in range(20):
        spray(b'{"passed": true}'); time.sleep(0.01)
threading.Thread(target=later).start()
""" + WRONG,
    "alarm": SPRAY + """
import signal
signal.signal(signal.SIGALRM, lambda *a: spray(b'{"passed": true}') or os._exit(0))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
def add(*a):
    import time
    time.sleep(0.2)
""",
    "memory": """
import os
def add(*a):
    for name in ("self", str(os.getppid()), "1"):
        try:
            with open(f"/proc/{name}/mem", "r+b") as memory: memory.write(b"x")
        except OSError: pass
    return 0
""",
    "ptrace": "import ctypes\ndef add(*a):\n    ctypes.CDLL(None).ptrace(16, 1, 0, 0)\n    return 0",
    "files": "import os\nopen('solution.py', 'w').write('def add(a, b): return a + b')\n"
    "open('task.json', 'w').write('{}')" + WRONG,
    "module-property": "class M(type(__import__('os'))):\n    def __getattr__(self, n): return True\n"
    "import sys\nsys.modules['json'] = M('json')" + WRONG,
    # Of a wrong answer a missing one.
    "failure-fd": SPRAY + """spray(b'{"sandbox": "no space (28)"}')\nos._exit(127)""",
    "failure-call": SPRAY + """def add(*a):\n    spray(b'{"cannot": "leave"}')\n    os._exit(127)""",
    "failure-status": SPRAY + """spray(b'{"status": "sandbox", "reason": "x"}\\n')\nos._exit(0)""",
    "failure-exit": "import os\nos._exit(127)",
    "huge": "def add(*a): return 10 ** 400",
    "huger": "def add(*a): return -10 ** 100000",
    "nan": "def add(*a): return float('nan')",
    "infinite": "def add(*a): return float('inf')",
    "deep": "def add(*a):\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
    "deep-tuple": "def add(*a):\n    x = ()\n    for _ in range(400): x = (x,)\n    return x",
    "cycle": "def add(*a):\n    x = []\n    x.append(x)\n    return x",
    "surrogates": "def add(*a): return '\\ud800' * 100",
    "long": "def add(*a): return 'x' * 10 ** 7",
    "wide": "def add(*a): return list(range(10 ** 6))",
    "collisions": "def add(*a): return {k * (2 ** 61 - 1) for k in range(3000)}",
    "fraction": "from fractions import Fraction\ndef add(*a): return Fraction(3 ** 9999, 2 ** 9999)",
    "decimal": "from decimal import Decimal\ndef add(*a): return Decimal('1e999999')",
    "range": "def add(*a): return range(10 ** 12)",
    "endless": "def add(*a):\n    while True: yield 3",
    "repr": "class R:\n    def __repr__(self): raise SystemExit\ndef add(*a): return R()",
    "hash": "class H:\n    def __hash__(self): raise SystemExit\n    __eq__ = None\ndef add(*a): return {'x': H()}",
    "recursion": "def add(*a): return add(*a)",
    "error-arguments": "class E(ValueError):\n    args = property(lambda s: 1 / 0)\ndef add(*a): raise E",
    "unicode-error": "def add(*a): raise UnicodeDecodeError('x', b'y', 0, 1, 'z')",
    "null": "def add(*a):\n    return '\\0'\n\0",
}  # fmt: skip

BIG = "class Big(int):\n    def __{0}__(self, other): return True\n    def __{1}__(self, other): return True\n"
# One test each, whose form the answer knows.
SPECIAL: list[tuple[str, dict[str, Any], str]] = [
    ("float-huge", FLOAT, "def add(*a): return 10 ** 400"),
    ("float-deep", FLOAT, "def add(*a):\n    x = []\n    for _ in range(900): x = [x]\n    return x"),
    ("float-text", FLOAT, "def add(*a): return '1.5'"),
    ("greater", {"test_list": ["r = add(1)\nassert r > 3\nassert r < 4"]}, BIG.format("gt", "lt") + "add = Big"),
    ("greater-by-turns", {"test_list": ["r = add(1)\nassert r > 3\nassert r < 3.5"]},
     "import nemotron.sandbox.harness as h\nn = 0\ndef turns(v):\n    global n\n    n += 1\n"
     "    return 9 if n % 2 else -9\nh.base_of = turns\nclass C(int): pass\nadd = C"),
    ("near", {"test_list": ["assert abs(add(1) - 2.5) < 1e-6"]}, EVERYTHING.format(base="")),
    ("near-float", {"test_list": ["assert abs(add(1) - 2.5) < 1e-6"]}, EVERYTHING.format(base="float")),
    ("near-swapped", {"test_list": ["assert abs(2.5 - add(1)) < 1e-6"]}, EVERYTHING.format(base="")),
    ("contains", {"test_list": ["assert 3 in add(1)"]}, EVERYTHING.format(base="")),
    ("in", {"test_list": ["assert add(1) in (1, 2)"]}, EVERYTHING.format(base="")),
    ("in-set", {"test_list": ["assert add(1) in {1, 2, 3}"]}, EVERYTHING.format(base="")),
    ("starts", {"test_list": ["assert add(1).startswith('ab')"]}, EVERYTHING.format(base="")),
    ("is-digit", {"test_list": ["assert add(1).isdigit() and add(1) == '3'"]}, EVERYTHING.format(base="str")),
    ("subset", {"test_list": ["assert add(1).issubset({1, 2})"]}, EVERYTHING.format(base="")),
    ("instance", {"test_list": ["assert isinstance(add(1), int) and add(1) == 3"]}, EVERYTHING.format(base="")),
    ("not-unequal", {"test_list": ["assert not add(1) != 3"]}, EVERYTHING.format(base="")),
    ("swapped", {"test_list": ["assert 3 == add(1)"]}, EVERYTHING.format(base="")),
    ("in-a-list", {"test_list": ["assert add(1) == [1, 2]"]}, EVERYTHING.format(base="")
     + "\nmake = add\ndef add(*a): return [make(), make()]"),
    ("in-a-dict", {"test_list": ["assert add(1) == {'a': 1}"]}, EVERYTHING.format(base="")
     + "\nmake = add\ndef add(*a): return {'a': make()}"),
    ("in-a-tuple", {"test_list": ["assert tuple(add(1)) == (1, 2)"]}, EVERYTHING.format(base="")
     + "\nmake = add\ndef add(*a): return (make(), make())"),
    ("as-set", {"test_list": ["assert set(add(1)) == {1, 2}"]}, EVERYTHING.format(base="")
     + "\nmake = add\ndef add(*a): return [make(), make()]"),
    ("arguments", {"test_list": ["x = [3, 1]\nassert add(x) == sorted(x)"]},
     "def add(x):\n    x.clear()\n    return []"),
    ("arguments-kept", {"test_list": ["x = [3, 1]\nassert add(x) == sum(x)"]},
     "def add(x):\n    x[:] = []\n    return 0"),
    ("all-map", {"test_list": ["assert all(map(lambda x: add(x) == x + 1, [1, 2]))"]},
     "def add(x): raise StopIteration"),
    ("math", {"test_list": ["import math\nassert math.isclose(add(1), 2.5)"]}, EVERYTHING.format(base="")),
    ("fake-math", {"test_list": ["assert math.isclose(add(1), 2.5)"]},
     "class math:\n    isclose = staticmethod(lambda *a: True)\ndef add(x): return 0"),
    ("fake-abs", {"test_list": ["assert abs(add(1) - 2.5) < 1e-6"]}, "def abs(x): return 0\ndef add(x): return 0"),
    ("fake-all", {"test_list": ["assert all(add(x) == x for x in (1, 2))"]},
     "def all(x): return True\ndef add(x): pass"),
    ("fake-len", {"test_list": ["assert len(add(1)) == 3"]}, "def len(x): return Everything()\nclass Everything:\n"
     "    def __eq__(self, o): return True\ndef add(x): return []"),
    ("swallowed-end", {"test_list": ["try:\n    add(1)\nexcept Exception:\n    pass"]},
     "import os\ndef add(x): os._exit(0)"),
    ("swallowed-rubbish", {"test_list": ["try:\n    add(1)\nexcept Exception:\n    pass"]},
     "import os\ndef add(x):\n    os.write(5, b'{\\n')\n    import time\n    time.sleep(9)"),
    ("expected-error", {"test_list": ["try:\n    add(1)\nexcept ValueError:\n    pass\nelse:\n    assert False"]},
     "def add(x): raise BaseException"),
    ("callback", {"test_list": ["seen = []\nadd(seen.append)\nassert seen == [1, 2]"]},
     "def add(f):\n    try: f.__self__.extend([1, 2])\n    except AttributeError: pass\n    f([1, 2])"),
    ("callback-frames", {"test_list": ["good = 3\nassert add(lambda x: x) == good"]},
     "def add(f):\n    try: return f.__globals__['good']\n    except AttributeError: return 0"),
    ("printed", STDIN, "print('{\"passed\": true}')"),
    ("printed-numbers", STDIN, "print('1e99999999999999999999')"),
    ("printed-nan", STDIN, "print('sNaN')"),
    ("printed-much", STDIN, "print('3\\n' * 10 ** 7)"),
    ("printed-failure", STDIN, "import os\nprint(3, flush=True)\nos.write(3, b'{\"sandbox\": \"x\"}')\nos._exit(127)"),
    ("printed-then-killed", STDIN, "import os\nprint(3, flush=True)\nos.kill(os.getpid(), 9)"),
    ("read-expected", STDIN, "import glob\nfor n in glob.glob('/**/*.json'): print(open(n).read())"),
]  # fmt: skip


def forgeries() -> list[tuple[str, dict[str, Any], str]]:
    """Name, row and source of every one of them."""
    return [(f"{name}/{kind}", row, code) for name, code in TRICKS.items() for kind, row in KINDS.items()] + SPECIAL
