"""Settings: one struct per section; every key has a default, a type and a line of documentation."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "ApiConfig",
    "ArchiveConfig",
    "ChatConfig",
    "Config",
    "DatabaseConfig",
    "EngineConfig",
    "LogConfig",
    "ObjectsConfig",
    "ServerConfig",
    "StreamConfig",
    "TelemetryConfig",
]


def _doc(text: str, **limits: float) -> Meta:
    return Meta(description=text, **limits)  # type: ignore[call-overload,no-any-return]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ServerConfig(_Section, frozen=True, kw_only=True):
    """The edge."""

    host: Annotated[str, _doc("Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, _doc("Port to listen on; 0 takes a free one.", ge=0, le=65535)] = 8000
    drain_seconds: Annotated[float, _doc("Longest wait for a clean end on SIGTERM.", ge=0)] = 10.0
    origins: Annotated[
        list[str], _doc("Origins of other sites whose pages may open a WebSocket.")
    ] = []
    cors_origins: Annotated[
        list[str],
        _doc(
            "Origins of other sites whose scripts may use the HTTP API (CORS); * with a key only."
        ),
    ] = []
    max_frame: Annotated[int, _doc("Largest WebSocket message in bytes.", ge=1024)] = 1_048_576
    node: Annotated[
        str,
        _doc("Name of this process among those of the log; empty: host name and port."),
    ] = ""
    lease_seconds: Annotated[
        float, _doc("How long a silent process counts as alive; then others take over.", ge=1)
    ] = 10.0
    max_queue: Annotated[
        int, _doc("Most requests that wait in the log; then nobody can ask more. 0: any.", ge=0)
    ] = 10_000
    max_queue_tenant: Annotated[
        int, _doc("Most requests of one user or API key that wait in the log; 0: any.", ge=0)
    ] = 1000
    auth: Annotated[
        Literal["auto", "required", "off"],
        _doc("Whether an API key is needed; auto: unless host is a loopback address."),
    ] = "auto"


class DatabaseConfig(_Section, frozen=True, kw_only=True):
    """Where the log is kept."""

    url: Annotated[
        str,
        _doc(
            "sqlite:///file.db, postgresql://user@host/database, or memory: for a log that is lost "
            "on exit."
        ),
    ] = "sqlite:///everlog.db"
    synchronous: Annotated[
        Literal["full", "normal"],
        _doc("full: a power cut loses nothing acknowledged; normal: it may lose the last commits."),
    ] = "full"
    pool: Annotated[
        int,
        _doc(
            "Postgres: most connections of a process for reading; it has a few more beside.",
            ge=1,
            le=1000,
        ),
    ] = 8


class EngineConfig(_Section, frozen=True, kw_only=True):
    """The inference engine."""

    enabled: Annotated[bool, _doc("Whether this process runs an engine.")] = True
    model: Annotated[
        str, _doc("Name of a known model, a GGUF file, or a folder with config.json.")
    ] = "smollm2-135m-instruct"
    device: Annotated[Literal["auto", "cpu", "cuda"], _doc("Where to compute.")] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], _doc("Precision of weights and cache.")
    ] = "auto"
    threads: Annotated[int, _doc("CPU threads; 0 means one a core.", ge=0)] = 0
    block_size: Annotated[int, _doc("Tokens in one KV cache block.", ge=1, le=256)] = 16
    kv_memory: Annotated[int, _doc("Bytes for the KV cache; 0 chooses.", ge=0)] = 0
    max_batch: Annotated[int, _doc("Most sequences in one step.", ge=1)] = 64
    max_tokens_per_step: Annotated[int, _doc("Token budget of one step.", ge=16)] = 512
    max_context: Annotated[int, _doc("Longest sequence; 0 takes the model's.", ge=0)] = 0
    policy: Annotated[
        Literal["fcfs", "priority"],
        _doc("Which request goes first: the larger priority, or whatever comes first (fcfs)."),
    ] = "priority"
    fair: Annotated[
        bool, _doc("Users and API keys share the engine evenly, however much each of them asks.")
    ] = True
    prefix_cache: Annotated[bool, _doc("Share computed blocks between requests.")] = True
    prefix_scope: Annotated[
        Literal["all", "tenant"],
        _doc("Whose requests share blocks: everybody's, or only those of one user or API key."),
    ] = "all"
    deterministic: Annotated[
        bool,
        _doc(
            "Same request, same tokens and probabilities to the bit, whatever else runs; CPU only."
        ),
    ] = False
    pooling: Annotated[
        Literal["mean", "last", "off"],
        _doc("What embeddings are made of: the mean over all tokens, or the last one; off: none."),
    ] = "mean"
    speculation: Annotated[
        Literal["ngram", "off"],
        _doc("ngram: compute tokens ahead that follow from repetition, where it pays."),
    ] = "off"
    draft_tokens: Annotated[int, _doc("Most tokens ahead in a step.", ge=1, le=64)] = 16
    lease_seconds: Annotated[float, _doc("How long a silent worker keeps its requests.", ge=1)] = (
        30.0
    )


class ApiConfig(_Section, frozen=True, kw_only=True):
    """The API that OpenAI's clients speak."""

    timeout_seconds: Annotated[
        float,
        _doc(
            "Longest time from a request to the end of its answer, waiting included; 0: any.", ge=0
        ),
    ] = 600.0
    max_file: Annotated[int, _doc("Largest file that can be uploaded, in bytes.", ge=1)] = 200 << 20
    batch_requests: Annotated[
        int, _doc("Most lines of a batch in the queue and at work at once.", ge=1)
    ] = 32


class StreamConfig(_Section, frozen=True, kw_only=True):
    """How tokens are batched into events."""

    floor_ms: Annotated[float, _doc("Least time between two token events of a request.", ge=0)] = (
        10.0
    )
    max_tokens: Annotated[int, _doc("Most tokens in one event.", ge=1, le=1024)] = 16


class ChatConfig(_Section, frozen=True, kw_only=True):
    """The built-in chat, and defaults of ``llm``."""

    name: Annotated[str, _doc("Name shown in the browser.")] = "Everlog"
    system_prompt: Annotated[str, _doc("First message of every prompt; empty for none.")] = (
        "You are a helpful assistant."
    )
    temperature: Annotated[float, _doc("Sampling temperature; 0 is greedy.", ge=0)] = 0.0
    max_tokens: Annotated[int, _doc("Longest answer in tokens.", ge=1)] = 1024


class LogConfig(_Section, frozen=True, kw_only=True):
    """Seals of the event log, and the process's own messages."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], _doc("Least severe message to print.")
    ] = "info"
    format: Annotated[
        Literal["auto", "text", "json"], _doc("auto: text on a terminal, else JSON lines.")
    ] = "auto"
    seal_every: Annotated[int, _doc("Most events between two seals.", ge=1)] = 1000
    seal_seconds: Annotated[float, _doc("Longest wait before new events are sealed.", gt=0)] = 60.0


class ObjectsConfig(_Section, frozen=True, kw_only=True):
    """Where files and archived events are kept. Credentials come from the usual AWS chain."""

    url: Annotated[
        str,
        _doc(
            "A directory or s3://bucket/prefix; empty: the directory <database>.objects beside a "
            "database file, else everlog.objects."
        ),
    ] = ""
    endpoint: Annotated[str, _doc("URL of an S3 service that is not AWS.")] = ""
    region: Annotated[str, _doc("Region of the bucket; empty: as the AWS chain says.")] = ""
    path_style: Annotated[
        bool, _doc("Name the bucket in the path, as many services need, not in the host.")
    ] = False
    presign_seconds: Annotated[
        int,
        _doc(
            "Send clients that fetch a file (`/v1/files/{id}/content`) to S3 itself, by URLs valid "
            "so long; 0 is off.",
            ge=0,
        ),
    ] = 0


class ArchiveConfig(_Section, frozen=True, kw_only=True):
    """When `everlog serve` moves old events out of the database, into objects.

    Readers find archived events as before, only slower.
    """

    after_days: Annotated[
        float, _doc("Age at which what was streamed, and vectors, are archived; 0 is never.", ge=0)
    ] = 0.0
    threads_after_days: Annotated[
        float, _doc("Age at which whole idle threads are archived; 0 is never.", ge=0)
    ] = 0.0
    cache: Annotated[
        int, _doc("Bytes of archived events kept in memory for reading.", ge=1 << 20)
    ] = 64 << 20


class TelemetryConfig(_Section, frozen=True, kw_only=True):
    """Spans for OpenTelemetry. Headers and the service's name: by the usual OTEL_* variables."""

    endpoint: Annotated[
        str, _doc("URL of a receiver of OTLP over HTTP, such as http://localhost:4318; empty: off.")
    ] = ""
    content: Annotated[
        bool, _doc("Whether spans hold what was said: prompts, answers, inputs and outputs.")
    ] = False


class Config(_Section, frozen=True, kw_only=True):
    """All settings."""

    server: ServerConfig = ServerConfig()
    database: DatabaseConfig = DatabaseConfig()
    engine: EngineConfig = EngineConfig()
    stream: StreamConfig = StreamConfig()
    api: ApiConfig = ApiConfig()
    chat: ChatConfig = ChatConfig()
    log: LogConfig = LogConfig()
    objects: ObjectsConfig = ObjectsConfig()
    archive: ArchiveConfig = ArchiveConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
