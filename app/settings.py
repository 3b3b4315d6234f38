"""Where settings come from: defaults < everlog.toml < environment < flags."""

from __future__ import annotations

import difflib
import functools
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import msgspec

from app.config import Config
from app.errors import InputError

__all__ = ["DEFAULT", "FILE", "Flag", "Key", "Loaded", "keys", "load", "reference"]

FILE = "everlog.toml"
DEFAULT = "default"

#: Names other platforms set, weaker than ours.
PLATFORM = {
    "HOST": "server.host",
    "PORT": "server.port",
    "DATABASE_URL": "database.url",
}

#: Variables with our prefix that are no settings: three of our own, and what Kubernetes puts into
#: every pod beside a Service named ``everlog``.
_FOREIGN = re.compile(
    r"EVERLOG_(CACHE|KEY|SKIP_WEB|SERVICE_(HOST|PORT\w*)|PORT(_\d+_(TCP|UDP|SCTP)\w*)?)"
)


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One setting.

    Attributes:
        path: ``section.name``.
        type: Its annotated type, as msgspec converts it.
        default: Its default value.
        doc: One line of documentation.
        allowed: What it may be, in words.

    """

    path: str
    type: Any
    default: Any
    doc: str
    allowed: str

    @property
    def env(self) -> str:
        """Its environment variable."""
        return "EVERLOG_" + self.path.replace(".", "__").upper()


class Flag(msgspec.Struct, frozen=True):
    """A value given on the command line, under the flag ``name``."""

    name: str
    value: Any


class _Found(msgspec.Struct, frozen=True):
    """A value before conversion. ``text``: its source knows only text (environment, flags)."""

    value: Any
    origin: str
    text: bool


class Loaded(msgspec.Struct, frozen=True):
    """Settings, and where each came from.

    ``origins`` maps every ``section.name`` to ``default``, ``everlog.toml:12``, the name of an
    environment variable, or a flag. ``file`` is the file that was read, if any.
    """

    config: Config
    origins: dict[str, str]
    file: Path | None


def load(
    flags: Mapping[str, Flag] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Loaded:
    """Read all settings.

    Args:
        flags: Values from the command line by ``section.name``.
        env: The environment; the process's own by default.
        file: A TOML file that must exist; by default ``everlog.toml`` in the working directory,
            if there is one.

    Raises:
        InputError: for an unknown key (names the nearest one) or a value that is not allowed
            (names key, value, origin and what is allowed).

    """
    path = _find(file)
    found = _from_file(path) if path else {}
    found |= _from_env(os.environ if env is None else env)
    found |= {key: _Found(flag.value, flag.name, True) for key, flag in (flags or {}).items()}
    return _build(found, path)


def _build(found: Mapping[str, _Found], file: Path | None) -> Loaded:
    sections: dict[str, dict[str, Any]] = {}
    for path, given in found.items():
        section, _, name = path.partition(".")
        sections.setdefault(section, {})[name] = _convert(keys()[path], given)
    types = get_type_hints(Config)
    config = Config(**{name: types[name](**values) for name, values in sections.items()})
    origins = {path: found[path].origin if path in found else DEFAULT for path in keys()}
    return Loaded(config, origins, file)


def _convert(key: Key, given: _Found) -> Any:
    value, kind = given.value, get_origin(_plain(key.type))
    if given.text and isinstance(value, str):
        if kind is list:
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif kind is Literal:
            value = value.lower()
    try:
        return msgspec.convert(value, type=key.type, strict=not given.text)
    except msgspec.ValidationError:
        raise InputError(
            f"{_show(given.value)} (from {given.origin}) is not {key.allowed}",
            field=key.path,
            hint=key.doc,
        ) from None


def _show(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()


# --------------------------------------------------------------------------------- sources


def _find(file: Path | None) -> Path | None:
    if file is None:
        file = Path(FILE)
        return file if file.is_file() else None
    if not file.is_file():
        raise InputError(f"There is no settings file {file}", hint="Check the path of --config.")
    return file


def _from_file(path: Path) -> dict[str, _Found]:
    try:
        text = path.read_text("utf-8")
        tree = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}", hint="It must be a TOML file in UTF-8."
        ) from None
    lines = _lines(text)
    found: dict[str, _Found] = {}
    for name, value in _leaves(tree):
        origin = f"{path}:{lines[name]}" if name in lines else str(path)
        if name not in keys():
            _unknown(name, origin, list(keys()))
        found[name] = _Found(value, origin, False)
    return found


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, values in tree.items():
        if not isinstance(values, dict):
            yield section, values
            continue
        for name, value in values.items():
            yield f"{section}.{name}", value
        if not values and section not in get_type_hints(Config):
            yield section, values


def _lines(text: str) -> dict[str, int]:
    """Line of each key, for files in the usual layout; ``tomllib`` keeps no positions."""
    lines: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
            section = header[1]
            lines.setdefault(section, number)
        elif key := re.match(r"\s*([\w-]+(?:\s*\.\s*[\w-]+)?)\s*=", line):
            name = re.sub(r"\s", "", key[1])
            lines.setdefault(f"{section}.{name}" if section else name, number)
    return lines


def _from_env(env: Mapping[str, str]) -> dict[str, _Found]:
    found = {
        path: _Found(env[name], name, True) for name, path in PLATFORM.items() if env.get(name)
    }
    exact = {key.env: path for path, key in keys().items()}
    short = {name.replace("__", "_"): path for name, path in exact.items()}
    ours = {n: v for n, v in env.items() if n.startswith("EVERLOG_") and not _FOREIGN.fullmatch(n)}
    for name in ours:
        if name not in exact and name not in short:
            _unknown(name, "the environment", list(exact))
    for names in (short, exact):  # the exact name wins
        found |= {names[n]: _Found(v, n, True) for n, v in ours.items() if n in names}
    return found


def _unknown(name: str, origin: str, known: list[str]) -> NoReturn:
    leaf = name.rpartition(".")[2]
    close = [path for path in known if path.rpartition(".")[2] == leaf]
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    raise InputError(
        f"There is no setting {name} ({origin})",
        hint=f"Did you mean {close[0]}?"
        if close
        else "See docs/configuration.md, or run: everlog config show",
    )


# ------------------------------------------------------------------------- what there is


@functools.cache
def keys() -> dict[str, Key]:
    """Return every setting by ``section.name``, in the order of the structs."""
    found = {}
    for section, struct in get_type_hints(Config).items():
        hints = get_type_hints(struct, include_extras=True)
        for field in msgspec.structs.fields(struct):
            found[f"{section}.{field.name}"] = _key(section, field, hints[field.name])
    return found


def _key(section: str, field: msgspec.structs.FieldInfo, hint: Any) -> Key:
    default = field.default
    if default is msgspec.NODEFAULT:
        default = field.default_factory()
    meta = next(m for m in get_args(hint)[1:] if isinstance(m, msgspec.Meta))
    return Key(
        path=f"{section}.{field.name}",
        type=hint,
        default=default,
        doc=meta.description or "",
        allowed=_allowed(_plain(hint), meta),
    )


def _plain(hint: Any) -> Any:
    return get_args(hint)[0]


def _allowed(plain: Any, meta: msgspec.Meta) -> str:
    if get_origin(plain) is Literal:
        return "one of " + ", ".join(get_args(plain))
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    word = words.get(plain, "a list of texts")
    if meta.ge is not None and meta.le is not None:
        return f"{word} from {meta.ge} to {meta.le}"
    if meta.ge is not None:
        return f"{word}, at least {meta.ge}"
    if meta.gt is not None:
        return f"{word} above {meta.gt}"
    return word


_INTRO = f"""\
# Settings

<!-- Made from app/config.py by `everlog config reference`; a test keeps it current. -->

A value is taken from the last of these that has one:

1. the default below;
2. `{FILE}` in the working directory, or the file named by `--config`;
3. the environment: `EVERLOG_SECTION__NAME`, or shorter `EVERLOG_SECTION_NAME`. The names
   platforms use work too, but `EVERLOG_*` is stronger: {", ".join(f"`{n}`" for n in PLATFORM)}.
   A list is written with commas;
4. a flag of the command.

`everlog config show --origin` prints every value in use and where it came from. An unknown key, a
value of the wrong type or out of range is an error that names the place and what is allowed.

```toml
# {FILE}
[server]
port = 9000

[engine]
model = "models/my-model.gguf"
```
"""


def reference() -> str:
    """Return ``docs/configuration.md``."""
    parts = [_INTRO]
    for section, struct in get_type_hints(Config).items():
        parts.append(f"\n## [{section}]\n\n{(struct.__doc__ or '').strip()}\n")
        parts.append("| key | default | allowed | meaning | environment |\n|---|---|---|---|---|")
        parts += [
            f"| `{key.path}` | `{_show(key.default)}` | {key.allowed} | {key.doc} | `{key.env}` |"
            for key in keys().values()
            if key.path.startswith(section + ".")
        ]
    return "\n".join(parts) + "\n"
