"""Answers that reach for what is outside of their folder, or leave something behind. Right at nothing."""

from __future__ import annotations

from typing import Any

from tests.unit.rewards.attacks.forgeries import STDIN

# ``VICTIM`` is a file outside, ``PID`` a process outside, ``SHM``, ``SEM`` and ``QUEUE`` its System V things.
HARM: dict[str, str] = {
    "mode-0-folder": "import os\nfor n in ('solution.py', 'task.json', 'nemotron', 'x'):\n"
    "    try: os.unlink(n)\n    except OSError: pass\n    try: os.mkdir(n, 0)\n    except OSError: pass",
    "deep-folders": "import os\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')",
    "deep-locked-folders": "import os\nfor _ in range(1500):\n    os.mkdir('d', 0o700)\n    os.chdir('d')\n"
    "os.umask(0o777)\nopen('x', 'w')\nos.mkdir('y')",
    "odd-names": "import os\nfor n in (b'\\xff\\xfe', b'a\\nb', b'x' * 255, b'-rf', b'*'): open(n, 'w')",
    "many-files": "for i in range(3000): open(f'f{i}', 'w')",
    "many-folders": "import os\nfor i in range(1000): os.makedirs(f'{i}/a/b', 0o300)",
    "fifo": "import os\nos.mkfifo('pipe')\nos.mkfifo('task.json.x', 0)",
    "links": "import os\nos.symlink('.', 'loop')\nos.symlink('VICTIM', 'out')\nos.symlink('/', 'root')",
    "hard-links": "import os\nopen('a', 'w')\nfor i in range(500): os.link('a', f'l{i}')",
    "sparse": "open('s', 'wb').truncate(10 ** 6)",
    "chmod-own": "import os\nos.chmod('.', 0)",
    "chmod-file": "import os\nos.chmod('solution.py', 0)",
    "rename-own": "import os\nos.rename(os.getcwd(), os.getcwd() + '.moved')",
    "remove-own": "import os, shutil\nshutil.rmtree(os.getcwd(), True)\nos.rmdir(os.getcwd())",
    "truncate": "import os\nos.truncate('VICTIM', 0)",
    "open-truncate": "import os\nos.open('VICTIM', os.O_RDONLY | os.O_TRUNC)",
    "overwrite": "open('VICTIM', 'w').write('gone')",
    "unlink": "import os\nos.unlink('VICTIM')",
    "unlink-by-link": "import os\nos.symlink('VICTIM', 'v')\nos.truncate('v', 0)",
    "beside": "open('VICTIM.new', 'w')",
    "xattr": "import os\nos.setxattr('VICTIM', 'user.x', b'y')",
    "times": "import os\nos.utime('VICTIM', (1, 1))",
    "flags": "import fcntl, os\nfcntl.ioctl(os.open('VICTIM', 0), 0x40086602, bytes([64, *[0] * 7]))",
    "shm-attach": "import ctypes\nl = ctypes.CDLL(None)\nl.shmat.restype = ctypes.c_void_p\n"
    "p = l.shmat(SHM, None, 0)\nif p != ctypes.c_void_p(-1).value: ctypes.memset(p, 0, 8)",
    "shm-remove": "import ctypes\nctypes.CDLL(None).shmctl(SHM, 0, None)",
    "shm-all": "import ctypes\nl = ctypes.CDLL(None)\nfor i in range(200): l.shmctl(i, 0, None)",
    "sem-remove": "import ctypes\nctypes.CDLL(None).semctl(SEM, 0, 0)",
    "sem-change": "import ctypes, struct\nctypes.CDLL(None).semop(SEM, struct.pack('HhH', 0, 7, 0), 1)",
    "queue-remove": "import ctypes\nctypes.CDLL(None).msgctl(QUEUE, 0, None)",
    "queue-read": "import ctypes\nctypes.CDLL(None).msgrcv(QUEUE, bytearray(99) and bytes(99), 64, 0, 0o4000)",
    "queue-write": "import ctypes, struct\nctypes.CDLL(None).msgsnd(QUEUE, struct.pack('l4s', 1, b'evil'), 4, 0o4000)",
    "kill": "import os\nos.kill(PID, 9)",
    "kill-all": "import os\nos.kill(-1, 9)",
    "stop-all": "import os, signal\nos.kill(-1, signal.SIGSTOP)",
    "kill-group": "import os\nos.killpg(0, 9)",
    "kill-parent": "import os\nos.kill(os.getppid(), 9)",
    "kill-own": "import os\nos.kill(os.getpid(), 9)",
    "stop-own": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "sigqueue": "import ctypes\nctypes.CDLL(None).sigqueue(PID, 9, 0)",
    "pidfd": "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(PID), 9)",
    "thread-signal": "import ctypes\nl = ctypes.CDLL(None)\nl.syscall(200, PID, 9)\nl.syscall(234, PID, PID, 9)",
    "signal-of-a-pipe": """
import fcntl, os
r, w = os.pipe()
fcntl.fcntl(r, 8, PID)
fcntl.fcntl(r, 10, 9)
fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
os.write(w, b'x')
""",
    "signal-of-a-pipe-by-ioctl": """
import fcntl, os, struct
r, w = os.pipe()
fcntl.ioctl(r, 0x8901, struct.pack('i', PID))
fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
os.write(w, b'x')
""",
    "signal-of-a-pipe-to-its-kind": """
import fcntl, os, struct
r, w = os.pipe()
fcntl.fcntl(r, 15, struct.pack('ii', 1, PID))
fcntl.fcntl(r, 10, 9)
fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
os.write(w, b'x')
""",
    "limits": "import resource\nresource.prlimit(PID, resource.RLIMIT_CPU, (0, 0))",
    "priority": "import os\nos.setpriority(os.PRIO_PROCESS, PID, 19)",
    "affinity": "import os\nos.sched_setaffinity(PID, {0})",
    "death-signal": "import ctypes, os, time\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)",
    "daemon": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(600)
    os._exit(0)
""",
    "daemon-holding-pipes": "import os, time\nif os.fork() == 0:\n    time.sleep(600)\nos._exit(0)",
    "vfork": "import ctypes\nctypes.CDLL(None).vfork()",
    "spawn": "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])",
    "spawn-detached": "import subprocess, sys\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)",
    "fork-burst": "import os, time\nfor _ in range(50):\n    if os.fork() == 0: time.sleep(600)",
    "threads": "import threading, time\nfor _ in range(40):\n"
    "    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()",
    "descriptors": "import os\nf = []\nwhile True: f.append(os.open('/dev/null', 0))",
    "close-all": "import os\nos.closerange(0, 64)",
    "memory": "x = []\nwhile True: x.append(bytearray(10 ** 7))",
    "orphan-lock": "import fcntl\nf = open('solution.py')\nfcntl.flock(f, fcntl.LOCK_EX)",
    "lease": "import fcntl, os\nfcntl.fcntl(os.open('/usr/bin/env', 0), 1024, 0)",
    "memfd": "import os\nos.memfd_create('x')",
    "unshare": "import ctypes\nl = ctypes.CDLL(None)\nl.unshare(0x10000000)\nl.unshare(0x20000)",
    "unmount": "import ctypes\nl = ctypes.CDLL(None)\nl.umount2(b'/box', 2)\nl.umount2(b'/', 2)",
    "bind": "import ctypes\nctypes.CDLL(None).mount(b'/', b'.', None, 4096, None)",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)",
    "abstract-socket": "import socket\nsocket.socket(socket.AF_UNIX).bind('\\0nemotron')",
}  # fmt: skip


def leftovers(places: dict[str, str]) -> list[tuple[str, dict[str, Any], str]]:
    """Name, row and source; ``places`` says what stands for VICTIM, PID ..."""
    attacks = []
    for name, code in HARM.items():
        for word, place in places.items():
            code = code.replace(word, place)
        attacks.append((name, STDIN, code))
    return attacks
