"""Writes `loomos/client/synchronous.py`, the twin of the async client; `make sdk` runs it.

Every public method of `LoomOSClient` and of its parts gets one of the same name, arguments and
words that returns instead of being awaited; what streams becomes an iterator.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import cache
from types import ModuleType
from typing import Any

from loomos.arguments import take_arguments
from loomos.client import http
from loomos.client.transport import Transport

HEADER = '''\
"""The client for code that is not async, such as notebooks. Written by `make sdk`; do not edit.

Each method does what the one of the same name in `LoomOSClient` does, and returns when it is done.
What streams there is an iterator here. Longer than other modules since it is written by a program.
"""

from __future__ import annotations

import builtins
'''
CLIENT = '''\
class SyncLoomOSClient:
    """`LoomOSClient` without `await`, also where an event loop runs already, as in Jupyter.

    Args:
        endpoint: URL of the gateway. Default: from the settings.
        auth_token: bearer token. Default: from the settings.
        timeout: seconds a request may take. Default: from the settings.

    Example:
        >>> with SyncLoomOSClient() as client:                    # doctest: +SKIP
        ...     job = client.submit_job("job.yaml")
        ...     for status in client.stream_job_status(job.job_id):
        ...         print(status.progress, status.current_stage)
    """

    def __init__(
        self,
        endpoint: str | None = None,
        auth_token: str | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        self._portal = Portal()
        self._awaited = LoomOSClient(endpoint, auth_token, timeout=timeout)
        self.endpoint = self._awaited.endpoint
        """URL of the gateway."""
{parts}
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections."""
        if not self._portal.is_closed:
            self._portal.run(self._awaited.close())
            self._portal.close()
'''
PART = '''\
class Sync{name}:
    """{doc}"""

    def __init__(self, portal: Portal, awaited: {name}) -> None:
        self._portal, self._awaited = portal, awaited
'''


def write() -> str:
    """The module's text, unformatted."""
    parts = _parts()
    classes: list[str] = []
    used: dict[str, str] = {}
    for part in parts.values():
        doc = inspect.cleandoc(part.__doc__ or part.__name__).splitlines()[0]
        text = PART.format(name=part.__name__, doc=doc)
        classes.append(text + _methods(part, used))
        used[part.__name__] = part.__module__
    lines = [
        f"        self.{name} = Sync{part.__name__}(self._portal, self._awaited.{name})\n"
        for name, part in parts.items()
    ]
    client = CLIENT.format(parts="".join(lines)) + _methods(http.LoomOSClient, used)
    used |= {"LoomOSClient": "loomos.client.http", "Portal": "loomos.client.portal"}
    used |= {"Iterator": "collections.abc", "Self": "typing"}
    imports = "\n".join(f"from {module} import {name}" for name, module in sorted(used.items()))
    return HEADER + imports + "\n\n\n" + "\n\n".join([*classes, client])


def _parts() -> dict[str, type]:
    """The client's parts by attribute."""
    source = textwrap.dedent(inspect.getsource(http.LoomOSClient.__init__))
    found = re.findall(r"self\.(\w+) = (\w+Api)\(self", source)
    return {name: getattr(http, kind) for name, kind in found}


def _methods(of: type, used: dict[str, str]) -> str:
    """Twins of a class's public async methods, those that it inherits too."""
    written: dict[str, str] = {}
    for cls in of.__mro__:
        if cls is Transport or cls.__module__ in ("builtins", "typing"):
            continue
        module = inspect.getmodule(cls)
        assert module is not None
        for node in ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AsyncFunctionDef) and not node.name.startswith("_"):
                written.setdefault(node.name, _twin(node, _meant(of, used), module, used))
    return "".join(written.values())


def _meant(of: type, used: dict[str, str]) -> dict[str, str]:
    """What the type variables of a generic base stand for."""
    found: dict[str, str] = {}
    for base in getattr(of, "__orig_bases__", ()):
        parameters = getattr(base.__origin__, "__parameters__", ())
        for variable, kind in zip(parameters, base.__args__, strict=False):
            found[variable.__name__] = kind.__name__
            used.setdefault(kind.__name__, kind.__module__)
    return found


def _twin(
    node: ast.AsyncFunctionDef, meant: dict[str, str], module: ModuleType, used: dict[str, str]
) -> str:
    arguments, returns = ast.unparse(node.args), ast.unparse(node.returns or ast.Constant(None))
    for variable, kind in meant.items():
        arguments = re.sub(rf"\b{variable}\b", kind, arguments)
        returns = re.sub(rf"\b{variable}\b", kind, returns)
    streams = returns.startswith("AsyncIterator")
    returns = returns.replace("AsyncIterator", "Iterator")
    # A method may be called `list`, which hides the type from those after it.
    arguments, returns = (re.sub(r"\blist\[", "builtins.list[", t) for t in (arguments, returns))
    for name in re.findall(r"\b[A-Za-z_]\w*\b", f"{arguments} {returns}"):
        _note(name, module, used)
    call = f"self._awaited.{node.name}({_passed(node.args)})"
    does = "iterate" if streams else "run"
    doc = ast.get_docstring(node) or ""
    body = textwrap.indent(f'"""{doc}\n"""' if "\n" in doc else f'"""{doc}"""', " " * 8)
    return (
        f"\n    def {node.name}({arguments}) -> {returns}:\n{body}\n"
        f"        return self._portal.{does}({call})\n"
    )


def _passed(arguments: ast.arguments) -> str:
    words = [argument.arg for argument in arguments.args if argument.arg != "self"]
    words += [f"{argument.arg}={argument.arg}" for argument in arguments.kwonlyargs]
    words += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return ", ".join(words)


@cache
def _imports(module: ModuleType) -> dict[str, str]:
    """Where a module's names are imported from."""
    return {
        alias.name: node.module
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
    }


def _note(name: str, module: ModuleType, used: dict[str, str]) -> None:
    """Remember where an annotation's name is imported from, if it is imported at all."""
    if home := _imports(module).get(name):
        used.setdefault(name, home)
        return
    value: Any = getattr(module, name, None)
    if value is not None and getattr(value, "__module__", "") == module.__name__:
        used.setdefault(name, module.__name__)


if __name__ == "__main__":
    take_arguments("loomos.client.twin", __doc__)
    print(write())
