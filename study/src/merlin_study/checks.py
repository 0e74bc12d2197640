"""What no schema can say about a study: names that are safe, steps that exist, graphs without circles, lists that fit.

Pure functions on plain data, so that the parser asks them about the text as written and the compiler once more when the
tokens are gone. A name or dependency that still holds a ``$(TOKEN)`` is left alone until then.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from merlin_study.errors import (
    CYCLE_DETECTED,
    DUPLICATE_STEP,
    INVALID_SPEC,
    UNEQUAL_PARAMETERS,
    UNKNOWN_DEPENDENCY,
    UNSAFE_NAME,
    Fault,
    did_you_mean,
)
from merlin_study.plan import DEPENDENCIES_STEP
from merlin_study.spec import RESERVED
from merlin_study.workspace import INFO, safe_name

MAX_NAME_BYTES: Final = 200
"""File names end at 255 bytes, and a script's name adds a label and an ending."""
BATCH_TYPES: Final = ("local", "slurm", "flux", "lsf", "lsf-srun", "pbs")
MAX_CYCLE_SHOWN: Final = 12

_LETTERS: Final = "use letters, digits, '_', '-' and '.'"


def holds_token(text: str) -> bool:
    """Whether something in the text is still to be expanded."""
    return "$(" in text


def check_step_name(name: str, path: str) -> Fault | None:
    """Judge a step's name, which becomes a directory of the workspace.

    Refused is only what could leave the workspace or what no file can carry; spaces, dots and other letters that
    upstream takes are taken.

    Args:
        name: The name as written, or expanded.
        path: Where it stands, for the message.

    Returns:
        A fault with reason ``UnsafeName``, or None.
    """
    if fault := _check_directory(name, path, "a step"):
        return fault
    if name == DEPENDENCIES_STEP:
        return Fault(path, f"'{DEPENDENCIES_STEP}' is what sees to env.dependencies; take another name", UNSAFE_NAME)
    if not holds_token(name) and safe_name(name).casefold() == INFO:
        return Fault(path, f"'{INFO}' is the directory of the study's own files; take another name", UNSAFE_NAME)
    return None


def check_study_name(name: str, path: str) -> Fault | None:
    """Judge ``description.name``, which becomes the workspace's own directory; as `check_step_name`."""
    return _check_directory(name, path, "a study")


def check_clone_name(name: str, path: str) -> Fault | None:
    """Judge the name of a git dependency, which becomes the directory of its clone; as `check_step_name`."""
    return _check_directory(name, path, "a clone")


def _check_directory(name: str, path: str, what: str) -> Fault | None:
    """Judge a name that becomes one directory: as it is written, and as `safe_name` will write it."""
    if not name:
        return Fault(path, f"expected the name of {what}, found ''", UNSAFE_NAME)
    shown = repr(name if len(name) <= 60 else f"{name[:57]}...")
    safe = safe_name(name)
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > MAX_NAME_BYTES:
        why = f"it has {size} bytes, at most {MAX_NAME_BYTES} fit a file name"
    elif "/" in name:
        why = f"'/' would lead to another directory; {_LETTERS}"
    elif any(ord(c) < 0x20 or ord(c) == 0x7F for c in name):
        why = f"it holds a control character; {_LETTERS}"
    elif name.startswith("-"):
        why = "commands would read the leading '-' as an option"
    elif holds_token(name):
        return None
    elif safe in {"", ".", ".."} or safe.startswith("-"):
        why = f"its directory would be {safe!r}; {_LETTERS}"
    else:
        return None
    return Fault(path, f"{shown} cannot be the name of {what}: {why}", UNSAFE_NAME)


def check_batch_type(text: str, path: str) -> Fault | None:
    """Judge a ``batch.type``: one of six words, or a token that becomes one."""
    if holds_token(text) or text in BATCH_TYPES:
        return None
    return Fault(path, f"expected one of {', '.join(BATCH_TYPES)}, found '{text}'{did_you_mean(text, BATCH_TYPES)}")


def parse_depends(text: str) -> tuple[str, bool]:
    """Read one entry of ``depends``.

    Args:
        text: ``s``, or the funnel forms ``s_*`` and ``s*``.

    Returns:
        The name of the step, and whether all its tasks are waited for. ``s_*`` always means ``s``, as upstream reads it,
        so a step whose own name ends in ``*`` cannot be named here.
    """
    for ending in ("_*", "*"):
        if text.endswith(ending):
            return text[: -len(ending)], True
    return text, False


def duplicate_faults(names: Sequence[str], path: str = "spec.study") -> list[Fault]:
    """Find steps that share a name or a directory.

    Args:
        names: The steps' names in their order; an empty one stands for a name that was refused already.
        path: Path of the list.

    Returns:
        One fault for each step that comes after its double. Names that differ only by case count as doubles, since file
        systems and queues exist that do not tell them apart.
    """
    faults: list[Fault] = []
    seen: dict[str, str] = {}
    for index, name in enumerate(names):
        if not name:
            continue
        key = name.casefold() if holds_token(name) else (safe_name(name) or name).casefold()
        other = seen.setdefault(key, name)
        if other is name and list(names).index(name) == index:
            continue
        if other == name:
            message = f"another step is called '{name}' already; names are unique"
        elif other.casefold() == name.casefold():
            message = f"'{name}' and '{other}' differ only by case; take another name"
        else:
            message = f"'{name}' and '{other}' would share the directory '{safe_name(name)}'; take another name"
        faults.append(Fault(f"{path}[{index}].name", message, DUPLICATE_STEP))
    return faults


def graph_faults(names: Sequence[str], depends: Sequence[Sequence[str]], path: str = "spec.study") -> list[Fault]:
    """Find dependencies on steps that are not there or that come round to where they began.

    Args:
        names: The steps' names in their order.
        depends: For each of them its ``depends`` as written.
        path: Path of the list of steps.

    Returns:
        ``UnknownDependency`` for each name that no step has, ``InvalidSpec`` for each entry that stands twice, and
        ``CycleDetected`` for a step that waits for itself and for one circle of each group of steps that has one.
    """
    faults: list[Fault] = []
    known = {name for name in names if name}
    vague = any(holds_token(name) for name in names)
    edges: dict[str, list[str]] = {name: [] for name in known}
    for index, (name, entries) in enumerate(zip(names, depends, strict=True)):
        for at, entry in enumerate(entries):
            place = f"{path}[{index}].run.depends[{at}]"
            parent, _funnel = parse_depends(entry)
            if entry in entries[:at]:
                faults.append(Fault(place, f"'{entry}' stands twice; remove one", INVALID_SPEC))
            elif parent == name:
                faults.append(Fault(place, f"the step '{name}' waits for itself; remove it", CYCLE_DETECTED))
            elif parent in known:
                if name:
                    edges[name].append(parent)
            elif not vague and not holds_token(entry):
                hint = did_you_mean(parent, sorted(known - {name}))
                faults.append(Fault(place, f"no step named '{parent}'{hint}", UNKNOWN_DEPENDENCY))
    first = {name: index for index, name in reversed(list(enumerate(names)))}
    for cycle in find_cycles(edges, order=[name for name in names if name]):
        shown = [*cycle[:MAX_CYCLE_SHOWN], "..."] if len(cycle) > MAX_CYCLE_SHOWN else [*cycle, cycle[0]]
        message = (
            f"each of these steps waits for the next, so none can start: {' -> '.join(shown)}; remove one dependency"
        )
        faults.append(Fault(f"{path}[{first[cycle[0]]}].run.depends", message, CYCLE_DETECTED))
    return faults


def find_cycles(edges: Mapping[str, Sequence[str]], order: Iterable[str]) -> list[list[str]]:
    """Find circles, at most one for each start, each named from the step that stands first in the text.

    Args:
        edges: For each step those that it waits for; all of them are keys.
        order: The steps in the order of the text.

    Returns:
        Lists of steps of which each waits for the next and the last for the first.
    """
    position = {name: index for index, name in enumerate(order)}
    done: set[str] = set()
    cycles: list[list[str]] = []
    for start in position:
        trail = _walk(edges, start, done)
        if trail:
            turn = min(range(len(trail)), key=lambda at, trail=trail: position[trail[at]])  # type: ignore[misc]
            cycles.append(trail[turn:] + trail[:turn])
    return cycles


def _walk(edges: Mapping[str, Sequence[str]], start: str, done: set[str]) -> list[str]:
    """Go depth first from a step, without recursion; the first circle found, and everything seen marked done."""
    if start in done:
        return []
    trail, pending = [start], [iter(edges[start])]
    cycle: list[str] = []
    on_trail = {start}
    done.add(start)
    while pending:
        following = next(pending[-1], None)
        if following is None:
            on_trail.discard(trail.pop())
            pending.pop()
        elif following in on_trail:
            cycle = cycle or trail[trail.index(following) :]
        elif following not in done:
            done.add(following)
            on_trail.add(following)
            trail.append(following)
            pending.append(iter(edges[following]))
    return cycle


def parameter_faults(lengths: Mapping[str, int], path: str = "spec.global.parameters") -> list[Fault]:
    """Find lists of values that cannot be zipped.

    Args:
        lengths: For each parameter the number of its values.
        path: Path of the table.

    Returns:
        ``UnequalParameters`` once, with the lengths; ``InvalidSpec`` for each list without values.
    """
    faults = [
        Fault(f"{path}.{name}.values", "expected at least one value, found an empty list")
        for name, length in lengths.items()
        if length == 0
    ]
    if len(set(lengths.values())) > 1:
        by_length: dict[int, list[str]] = {}
        for name, length in lengths.items():
            by_length.setdefault(length, []).append(name)
        found = "; ".join(f"{length} for {', '.join(group[:5])}" for length, group in sorted(by_length.items()))
        message = f"all lists of values need one length, since they are zipped, found {found}"
        faults.append(Fault(path, message, UNEQUAL_PARAMETERS))
    return faults


def token_name_fault(name: str, path: str) -> Fault | None:
    """Judge the name of a variable, label, parameter or column, which ``$(NAME)`` has to be able to reach."""
    if name in RESERVED:
        return Fault(path, f"'{name}' is filled in by the system; take another name")
    if not name or len(name) > 253 or any(c in "$()" or c.isspace() or not c.isprintable() for c in name):
        return Fault(path, f"{name[:60]!r} cannot be referred to as $(NAME); use letters, digits and '_'")
    return None


def column_faults(columns: Sequence[str], parameters: Iterable[str], path: str = "spec.merlin.samples") -> list[Fault]:
    """Judge the labels of the sample table: each a name of its own, and none a parameter's.

    Args:
        columns: The labels in their order; one that still holds a token is left alone, an empty one was refused already.
        parameters: The names of all parameters.
        path: Path of the table.
    """
    faults: list[Fault] = []
    taken = frozenset(parameters)
    for index, column in enumerate(columns):
        if not column:
            continue
        place = f"{path}.column_labels[{index}]"
        if column in columns[:index]:
            faults.append(Fault(place, f"'{column}' stands twice; columns need different names"))
        if column in taken:
            faults.append(Fault(place, f"'{column}' is a parameter too; rename one of them"))
        if not holds_token(column) and (fault := token_name_fault(column, place)):
            faults.append(fault)
    return faults
