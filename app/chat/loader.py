"""Load a chat author's file as a fresh module."""

from __future__ import annotations

import difflib
import importlib
import itertools
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import app as public
from app.chat.errors import LoadError, trace
from app.chat.hooks import ChatApp, collecting

__all__ = ["load"]

_serial = itertools.count(1)


def load(path: str | Path) -> ChatApp:
    """Run the file and return the hooks it declared.

    Every call makes a new module, and modules beside the file are imported anew, so nothing of an
    earlier load is left in the result. When it fails, ``sys.modules`` is as it was before.

    Raises:
        LoadError: The file is missing, has a syntax error, raises, or declares no ``on_message``.

    """
    file = Path(path).resolve()
    try:
        source = file.read_bytes()
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror}") from error
    app = ChatApp(file.stem, path=file)
    module = ModuleType(f"everlog_app_{next(_serial)}_{file.stem}")
    module.__file__ = str(file)
    with _fresh_imports(file.parent, module), collecting(app):
        try:
            exec(compile(source, str(file), "exec", dont_inherit=True), module.__dict__)
        except SyntaxError as error:
            raise LoadError(f"{error.filename}:{error.lineno}: {error.msg}") from error
        except LoadError:
            raise
        except (Exception, SystemExit) as error:
            raise LoadError(
                f"{_blame(error, file)}: {type(error).__name__}: {error}",
                hint=_advice(error) or trace(error),
            ) from error
        if not app.has("on_message"):
            raise LoadError(
                f"{file}:1: no function has @on_message",
                hint="Add: from app import on_message, Message; "
                "@on_message async def main(message): ...",
            )
    return app


@contextmanager
def _fresh_imports(folder: Path, module: ModuleType) -> Iterator[None]:
    """Import the folder's modules anew; undo on failure.

    No byte code is written meanwhile: Python tells an old ``.pyc`` by whole seconds and size, so
    two quick saves of the same length would look like one.
    """
    before = {name: loaded for name, loaded in sys.modules.items() if _beside(loaded, folder)}
    for name in before:
        del sys.modules[name]
    sys.modules[module.__name__] = module
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    wrote, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    except BaseException:
        for name in [name for name, loaded in sys.modules.items() if _beside(loaded, folder)]:
            del sys.modules[name]
        sys.modules.update(before)
        raise
    finally:
        sys.dont_write_bytecode = wrote


def _beside(module: ModuleType, folder: Path) -> bool:
    """Whether a module is the author's own: in the folder, not installed, and not Everlog's."""
    name, file = getattr(module, "__name__", ""), getattr(module, "__file__", None)
    if not isinstance(file, str) or name in ("app", "__main__") or name.startswith("app."):
        return False
    path = Path(file)
    return path.is_relative_to(folder) and not any(
        part in ("site-packages", "dist-packages") for part in path.relative_to(folder).parts
    )


def _blame(error: BaseException, file: Path) -> str:
    """``file:line`` of the innermost frame that is the author's."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(file.parent)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else f"{file}:1"


def _advice(error: BaseException) -> str | None:
    """What to do about a name that Everlog does not have, or an import of Chainlit."""
    if isinstance(error, ModuleNotFoundError) and error.name == "chainlit":
        return "Write `import app as cl`; docs/chat.md lists the names that are there."
    said = str(error)
    found = re.match(r"cannot import name '(\w+)' from 'app'|module 'app' has no \w+ '(\w+)'", said)
    if found is None:
        return None
    name = found[1] or found[2]
    close = difflib.get_close_matches(name, public.__all__, n=1)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{meant}docs/chat.md lists the names that are there; some of Chainlit's are not yet."
