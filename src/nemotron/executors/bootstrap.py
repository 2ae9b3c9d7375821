"""What a Lepton job runs first; its source travels as text, so it needs nothing but Python's own library.

It unpacks code and run folder from the environment, starts the worker on them, and repeats the rows that the worker
writes on its output, one marked line each: the log is all that can be read of such a job from outside.

Usage: ``python3 -c SOURCE RUN_DIR CODE_DIR ATTEMPT COMMAND...``
"""

import base64
import io
import json
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import threading

PREFIX = "NEMOTRON_PAYLOAD_"
MARK = "\x1enemotron "
ROWS = ("metrics.jsonl", "samples.jsonl")
KEPT = ("status.json",)
EVERY_S = 2.0


def unpack(run_dir: str, code_dir: str) -> None:
    """The run folder's files, and the code under its hash unless an earlier job has brought it.

    What is sent of the run is what this attempt was submitted with, so it takes the place of an earlier attempt's; the
    status is the exception, which the worker keeps from then on.
    """
    names = sorted(name for name in os.environ if name.startswith(PREFIX))
    packed = base64.b64decode("".join(os.environ.pop(name) for name in names))
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(packed))) as tar:
        for member in tar.getmembers():
            root, _, rest = member.name.partition("/")
            if root == "code" and not os.path.isdir(code_dir):
                place(tar, member, code_dir + ".tmp." + str(os.getpid()), rest)
            elif root == "run" and not (rest in KEPT and os.path.exists(os.path.join(run_dir, rest))):
                place(tar, member, run_dir, rest)
    if not os.path.isdir(code_dir):
        try:
            os.rename(code_dir + ".tmp." + str(os.getpid()), code_dir)
        except OSError:
            # Another job was faster; its copy has the same content.
            if not os.path.isdir(code_dir):
                raise
    os.makedirs(os.path.join(run_dir, "checkpoints"), exist_ok=True)


def place(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: str, name: str) -> None:
    """Write one file of the archive."""
    source = tar.extractfile(member)
    if source is None:
        return
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".tmp", "wb") as file:
        file.write(source.read())
    os.replace(path + ".tmp", path)


class Mirror:
    """Repeats what the worker writes."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir
        self.offsets = dict.fromkeys(ROWS, 0)
        self.status = ""

    def send(self) -> None:
        """Whole lines that are new, and the status where it has changed."""
        for name in ROWS:
            try:
                with open(os.path.join(self.run_dir, name), "rb") as file:
                    file.seek(self.offsets[name])
                    new = file.read()
            except FileNotFoundError:
                continue
            whole = new[: new.rfind(b"\n") + 1]
            self.offsets[name] += len(whole)
            for line in whole.splitlines():
                say(name, line.decode())
        try:
            with open(os.path.join(self.run_dir, "status.json")) as file:
                status = file.read()
        except FileNotFoundError:
            return
        if status != self.status:
            self.status = status
            say("status.json", json.dumps(json.loads(status)))


def say(name: str, line: str) -> None:
    """One marked line, written at once."""
    os.write(1, (MARK + name + " " + line + "\n").encode())


def main() -> int:
    """Unpack, run, repeat; the worker's exit code."""
    run_dir, code_dir, command = sys.argv[1], sys.argv[2], sys.argv[3:]
    os.umask(0o077)
    unpack(run_dir, code_dir)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    mirror, over = Mirror(run_dir), threading.Event()

    def repeat() -> None:
        while not over.wait(EVERY_S):
            mirror.send()

    thread = threading.Thread(target=repeat)
    thread.start()
    code = process.wait()
    over.set()
    thread.join()
    mirror.send()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
