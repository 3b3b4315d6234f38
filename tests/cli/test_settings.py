"""Settings: precedence, origins, and errors that say where and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.config import Config
from app.errors import InputError
from app.settings import DEFAULT, Flag, keys, load, reference

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str, name: str = "everlog.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_defaults_alone() -> None:
    loaded = load(env={})
    assert loaded.config == Config()
    assert set(loaded.origins.values()) == {DEFAULT}
    assert loaded.file is None


def test_each_source_beats_the_one_before(folder: Path) -> None:
    write(folder, '[server]\nport = 1\nhost = "a"\n\n[engine]\n# why\nmax_batch = 2\n')
    env = {"EVERLOG_SERVER__PORT": "3", "EVERLOG_STREAM_MAX_TOKENS": "4"}
    loaded = load({"stream.max_tokens": Flag("--max-tokens", "5")}, env=env)
    config = loaded.config
    assert (config.server.host, config.server.port) == ("a", 3)
    assert (config.engine.max_batch, config.stream.max_tokens) == (2, 5)
    assert loaded.origins["server.host"] == "everlog.toml:3"
    assert loaded.origins["server.port"] == "EVERLOG_SERVER__PORT"
    assert loaded.origins["engine.max_batch"] == "everlog.toml:7"
    assert loaded.origins["stream.max_tokens"] == "--max-tokens"
    assert loaded.origins["chat.name"] == DEFAULT


def test_names_of_platforms_are_weaker_than_ours() -> None:
    env = {"PORT": "1", "HOST": "0.0.0.0", "DATABASE_URL": "memory:", "EVERLOG_SERVER_PORT": "2"}
    loaded = load(env=env)
    assert loaded.config.server.port == 2
    assert loaded.config.server.host == "0.0.0.0"
    assert loaded.origins["database.url"] == "DATABASE_URL"


def test_exact_variable_beats_the_short_one() -> None:
    env = {"EVERLOG_SERVER__PORT": "1", "EVERLOG_SERVER_PORT": "2"}
    assert load(env=env).config.server.port == 1


@pytest.mark.parametrize(
    ("name", "text", "path", "value"),
    [
        ("EVERLOG_ENGINE_ENABLED", "false", "engine.enabled", False),
        ("EVERLOG_ENGINE_ENABLED", "0", "engine.enabled", False),
        ("EVERLOG_LOG_LEVEL", "WARNING", "log.level", "warning"),
        ("EVERLOG_SERVER_ORIGINS", "https://a.example, https://b.example", "server.origins", None),
        ("EVERLOG_STREAM_FLOOR_MS", "2.5", "stream.floor_ms", 2.5),
        ("EVERLOG_CHAT_SYSTEM_PROMPT", "", "chat.system_prompt", ""),
    ],
)
def test_text_is_converted(name: str, text: str, path: str, value: object) -> None:
    section, _, key = path.partition(".")
    got = getattr(getattr(load(env={name: text}).config, section), key)
    assert got == (["https://a.example", "https://b.example"] if value is None else value)


@pytest.mark.parametrize(
    "name", ["EVERLOG_PORT", "EVERLOG_SERVICE_HOST", "EVERLOG_PORT_8000_TCP_ADDR", "EVERLOG_CACHE"]
)
def test_variables_that_are_no_settings_are_left_alone(name: str) -> None:
    assert load(env={name: "tcp://10.0.0.1:8000"}).config == Config()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[server]\nprot = 1", "server.prot (everlog.toml:2)", "server.port"),
        ("[serve]\nport = 1", "serve.port (everlog.toml:2)", "server.port"),
        ("port = 1", "port (everlog.toml:1)", "server.port"),
        ("[egnine]\nmodel = ''", "egnine.model (everlog.toml:2)", "engine.model"),
        ("[zzz]", "zzz (everlog.toml:1)", "config show"),
        ("[server.deep]\nx = 1", "server.deep", "server."),
    ],
)
def test_unknown_keys_name_place_and_nearest(
    folder: Path, text: str, message: str, hint: str
) -> None:
    write(folder, text)
    with pytest.raises(InputError) as caught:
        load(env={})
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_unknown_variables_too() -> None:
    with pytest.raises(InputError, match="EVERLOG_SERVER_PROT") as caught:
        load(env={"EVERLOG_SERVER_PROT": "1"})
    assert "EVERLOG_SERVER__PORT" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[server]\nport = 70000", ["server.port", "70000", "everlog.toml:2", "0 to 65535"]),
        ("[server]\nport = '80'", ["server.port", '"80"', "whole number"]),
        ("server.port = 1.5", ["server.port", "1.5", "everlog.toml:1"]),
        ("[engine]\ndevice = 'tpu'", ["engine.device", "tpu", "auto, cpu, cuda"]),
        ("[engine]\nenabled = 1", ["engine.enabled", "true or false"]),
        ("[server]\norigins = 'x'", ["server.origins", "list"]),
        ("[log]\nseal_seconds = 0", ["log.seal_seconds", "above 0"]),
        ("[server", ["everlog.toml", "TOML"]),
    ],
)
def test_refused_values_name_key_value_origin_and_what_is_allowed(
    folder: Path, text: str, parts: list[str]
) -> None:
    write(folder, text)
    with pytest.raises(InputError) as caught:
        load(env={})
    for part in parts:
        assert part in f"{caught.value} {caught.value.hint}"


def test_refused_flag_and_variable_are_named() -> None:
    with pytest.raises(InputError, match="--port"):
        load({"server.port": Flag("--port", "x")}, env={})
    with pytest.raises(InputError, match="EVERLOG_SERVER_PORT"):
        load(env={"EVERLOG_SERVER_PORT": "nan"})


def test_named_file_must_exist(folder: Path) -> None:
    path = write(folder, "[chat]\nname = 'Other'\n", "other.toml")
    assert load(env={}, file=path).config.chat.name == "Other"
    with pytest.raises(InputError, match=r"missing\.toml"):
        load(env={}, file=folder / "missing.toml")


def test_every_key_is_documented() -> None:
    for key in keys().values():
        assert len(key.doc) > 8, f"{key.path} has no documentation"
        assert key.doc.endswith("."), key.path


def test_reference_is_current() -> None:
    page = ROOT / "docs" / "configuration.md"
    assert page.read_text() == reference(), "run: everlog config reference > docs/configuration.md"
