"""The program of a warm Python: it imports what a step asked for, then forks for each script.

The child becomes ``python script``: ``sys.argv``, ``sys.path[0]``, ``__main__`` and the standard streams are made anew, tracebacks begin at the
script, and the interpreter ends as it always does. What modules seeded at their import is seeded again, or all tasks would draw
the same numbers.
"""

from __future__ import annotations

import json
from typing import Final

from merlin_study import nested

# It must not import anything of ours: it runs in the user's Python. Names of its own are few and gone before the script begins.
_PROGRAM: Final = r"""
def _serve(names):
    import gc, importlib, os, sys, threading
    os.close(3)  # what this program was read from
    sys.path[0] = ""
    for name in names:
        importlib.import_module(name)
    sys.path[0] = "/dev/fd"
    if threading.active_count() > 1:
        raise RuntimeError("threads run after the imports, and a fork would lose them")
    gc.collect()
    gc.freeze()
    os.write(1, b"ready 1\n")
    text, base, script, out, err, extra = bytearray(), b"", b"", b"", b"", b""
    while True:
        while b"\n" not in text:
            piece = os.read(0, 65536)
            if not piece:
                os._exit(0)
            text += piece
        line, _, rest = bytes(text).partition(b"\n")
        text = bytearray(rest)
        if line.startswith(b"="):
            base, script, out, err, extra = line[1:].split(b"\x1d")
            continue
        token, _, last = line.partition(b"/")
        directory = base + b"/" + last
        pid = os.fork()
        if not pid:
            break
        _, status = os.waitpid(pid, 0)
        os.write(1, b"\x1e%d\n" % status)
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    try:
        os.setpgid(0, 0)
        os.chdir(directory)
        streams = [os.open("/dev/null", os.O_RDONLY), os.open(out, append, 0o666), os.open(err, append, 0o666)]
    except OSError:
        os.write(1, b"\x1d\n")
        os._exit(1)
    for number, handle in enumerate(streams):
        os.dup2(handle, number)
        os.close(handle)
    own = {b"TOKEN": token} if token else {}
    for pair in extra.split(b"\x1f"):
        if pair:
            own[pair.partition(b"=")[0]] = pair.partition(b"=")[2]
    os.environb.update(own)
    import io
    def stream(old, number, mode, how):
        direct = old.write_through
        raw = io.FileIO(number, mode, closefd=False)
        raw.name = old.name
        if not direct:
            raw = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
        made = io.TextIOWrapper(raw, old.encoding, old.errors, None if mode == "r" else "\n", how, direct)
        made.mode = mode
        return made
    sys.stdin = sys.__stdin__ = stream(sys.stdin, 0, "r", False)
    sys.stdout = sys.__stdout__ = stream(sys.stdout, 1, "w", False)
    sys.stderr = sys.__stderr__ = stream(sys.stderr, 2, "w", True)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()
    path = os.fsdecode(directory + b"/" + script)
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.fsdecode(os.path.realpath(directory))
    sys.argv[:] = [path]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = [sys.orig_argv[0], path]
    return path

def _run(path):
    import sys, types, importlib.machinery
    main = types.ModuleType("__main__")
    main.__dict__.update(
        __file__=path, __builtins__=__builtins__, __annotations__={}, __cached__=None,
        __loader__=importlib.machinery.SourceFileLoader("__main__", path),
    )
    sys.modules["__main__"] = main
    del sys, types, importlib
    try:
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec", dont_inherit=True)
    except BaseException as error:
        return main, error.with_traceback(None)
    try:
        exec(code, main.__dict__)
    except BaseException as error:
        return main, error.with_traceback(error.__traceback__.tb_next)
    return main, None

_main, _error = _run(_serve(NAMES))
if _error is not None:
    import signal, sys
    if isinstance(_error, SystemExit):
        raise _error
    sys.excepthook(type(_error), _error, _error.__traceback__)
    if isinstance(_error, KeyboardInterrupt):
        import os, atexit, threading
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(1)
"""


def program(modules: tuple[str, ...]) -> str:
    """Return the program that has imported these modules."""
    return _PROGRAM.replace("NAMES", json.dumps(modules)).replace("TOKEN", nested.TOKEN)
