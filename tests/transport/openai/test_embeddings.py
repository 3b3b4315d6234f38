"""Embeddings: of an edge without an engine, then real clients and the real model."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from openai import OpenAI

from app.events.catalogue import (
    Embedding,
    RequestEmbedded,
    RequestFailed,
    RequestFinished,
    RequestQueued,
    Timings,
    Usage,
)
from app.events.codec import decode
from app.events.store import Claimed
from app.transport.openai import embeddings
from app.transport.server import Service
from tests.support.server import ROOT, Server, running
from tests.transport.openai.test_edge import Worker, types

MODEL = "smollm2-135m-instruct"
WIDTH = 576

# ----------------------------------------------------------------- the test is the worker


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the service."""
    async with httpx2.AsyncClient(base_url=service.url, timeout=10) as client:
        yield client


def packed(*values: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


async def embed(worker: Worker, claim: Claimed, *values: float) -> None:
    """Do as an engine host does."""
    await worker.start(claim)
    await worker.write(
        claim,
        RequestEmbedded(
            request=claim.request,
            epoch=claim.epoch,
            vector=packed(*values),
            dimensions=len(values),
            pooling="mean",
        ),
        RequestFinished(
            request=claim.request,
            epoch=claim.epoch,
            reason="stop",
            text="",
            usage=Usage(prompt_tokens=3),
            timings=Timings(),
            batches=0,
            digest="",
        ),
    )


async def test_inputs_are_requests_in_one_stream(
    service: Service, client: httpx2.AsyncClient
) -> None:
    body = {"input": ["a", [1, 2]], "model": "mine", "user": "u", "dimensions": 2, "x": 1}
    asking = asyncio.create_task(client.post("/v1/embeddings", json=body))
    worker = Worker(service)
    first, second = await worker.claim(), await worker.claim()
    assert first.stream == second.stream == f"request/{first.request}"
    queued: list[RequestQueued] = [decode(c.queued) for c in (first, second)]  # type: ignore[misc]
    assert (queued[0].text, queued[1].prompt) == ("a", [1, 2])
    assert queued[0].embed == Embedding(dimensions=2)
    assert queued[0].metadata == {"endpoint": "embeddings", "user": "u"}
    assert queued[1].metadata["input"] == 1
    assert queued[1].metadata["of"] == first.request
    await embed(worker, second, 0.0, 1.0)
    await embed(worker, first, 0.6, 0.8)
    answer = await asking
    assert answer.headers["x-request-id"] == first.request
    assert answer.headers["x-everlog-ignored"] == "x"
    assert answer.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.600000024, 0.800000012]},
            {"object": "embedding", "index": 1, "embedding": [0.0, 1.0]},
        ],
        "model": "mine",
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }


async def test_many_inputs_are_queued_as_others_end(
    service: Service, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "WINDOW", 8)
    body = {"input": [f"text {n}" for n in range(21)], "model": "mine", "encoding_format": "base64"}
    asking = asyncio.create_task(client.post("/v1/embeddings", json=body))
    worker = Worker(service)
    done, most = 0, 0
    while done < 21:
        claim = await worker.claim()
        seen = await types(service, claim.stream)
        most = max(most, seen.count("request.queued") - seen.count("request.finished"))
        await embed(worker, claim, float(done))
        done += 1
    assert most == 8
    answer = await asking
    assert [each["embedding"] for each in answer.json()["data"]] == [
        packed(float(n)) for n in range(21)
    ]


async def test_one_that_fails_is_named_and_ends_all(
    service: Service, client: httpx2.AsyncClient
) -> None:
    for code, message, said in (
        ("context", "the prompt has 9 tokens", "input[1]: the prompt has 9 tokens"),
        ("invalid", "prompt: token ids are 0 to 5, not 9", "input[1]: token ids are 0 to 5, not 9"),
    ):
        body = {"input": ["a", "b", "c"], "model": "mine"}
        asking = asyncio.create_task(client.post("/v1/embeddings", json=body))
        worker = Worker(service)
        claims = [await worker.claim() for _ in range(3)]
        failed = RequestFailed(request=claims[1].request, code=code, message=message)
        await worker.write(claims[1], failed)
        answer = await asking
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["message"]) == (400, "input[1]", said)
        async with asyncio.timeout(5):
            await service.store.wait(after=8, stream=claims[0].stream)
        assert (await types(service, claims[0].stream)).count("request.cancelled") == 2


async def test_the_trace_of_the_caller_is_recorded(
    service: Service, client: httpx2.AsyncClient
) -> None:
    good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for header, kept in ((good, {"traceparent": good}), ("nonsense", {})):
        body = {"input": "a", "model": "mine"}
        headers = {"traceparent": header}
        asking = asyncio.create_task(client.post("/v1/embeddings", json=body, headers=headers))
        worker = Worker(service)
        claim = await worker.claim()
        queued = decode(claim.queued)
        assert isinstance(queued, RequestQueued)
        assert queued.metadata == {"endpoint": "embeddings", **kept}
        await embed(worker, claim, 1.0)
        assert (await asking).status_code == 200


async def test_what_the_engine_cannot_is_said_as_it_is(
    service: Service, client: httpx2.AsyncClient
) -> None:
    body = {"input": "a", "model": "mine", "dimensions": 9999}
    asking = asyncio.create_task(client.post("/v1/embeddings", json=body))
    worker = Worker(service)
    claim = await worker.claim()
    message = "dimensions: must be 1 to 576, not 9999"
    await worker.write(claim, RequestFailed(request=claim.request, code="invalid", message=message))
    answer = await asking
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dimensions")


async def test_who_goes_cancels_all(service: Service, client: httpx2.AsyncClient) -> None:
    asking = asyncio.create_task(
        client.post("/v1/embeddings", json={"input": ["a", "b", "c"], "model": "mine"})
    )
    worker = Worker(service)
    claim = await worker.claim()
    await worker.start(claim)
    asking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asking
    async with asyncio.timeout(5):
        await service.store.wait(after=7, stream=claim.stream)
    assert (await types(service, claim.stream)).count("request.cancelled") == 3


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": ["a", "b", "c", ""]}, "input[3]"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": ["a", [1, "b"]]}, "input[1][1]"),
        ({"input": [1, -2]}, "input[1]"),
        ({"input": [[]]}, "input[0]"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": "3"}, "dimensions"),
        ({"input": "a", "priority": 2**40}, "priority"),
    ],
)
async def test_bad_input_is_named(
    client: httpx2.AsyncClient, body: dict[str, Any], param: str
) -> None:
    answer = await client.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert error["type"] == "invalid_request_error"
    assert param in error["message"]


# ---------------------------------------------------------- real clients, the real model


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests below."""
    database = tmp_path_factory.mktemp("embeddings") / "log.db"
    env = {"EVERLOG_ENGINE__DTYPE": "float32", "EVERLOG_ENGINE__MAX_CONTEXT": "600"}
    with running(database, env=env) as server:
        yield server


@pytest.fixture
def asks(server: Server) -> Iterator[OpenAI]:
    """OpenAI's own client."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.model
def test_openai(asks: OpenAI, server: Server) -> None:
    texts = ["A cat sits on the mat.", "A kitten sits on a rug.", "Stock markets fell sharply."]
    made = asks.embeddings.create(model=MODEL, input=texts)  # the client asks for base64
    vectors = np.array([each.embedding for each in made.data])
    assert vectors.shape == (3, WIDTH)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]

    plain = asks.embeddings.create(model=MODEL, input=texts[0], encoding_format="float")
    assert np.abs(np.array(plain.data[0].embedding) - vectors[0]).max() < 1e-4
    url, body = f"{server.url}/tokenize", {"prompt": texts[0]}
    ids = httpx2.post(url, json=body, timeout=30).json()["tokens"]
    by_ids = asks.embeddings.create(model=MODEL, input=[ids, ids], dimensions=32)
    assert by_ids.usage.prompt_tokens == 2 * len(ids)
    cut = vectors[0][:32] / np.linalg.norm(vectors[0][:32])
    for each in by_ids.data:
        assert np.abs(np.array(each.embedding) - cut).max() < 1e-4


@pytest.mark.model
def test_long_inputs_and_too_long_ones(asks: OpenAI) -> None:
    made = asks.embeddings.create(model=MODEL, input=["word " * 20, [5] * 600])  # two chunks
    assert made.usage.prompt_tokens > 600 + 20
    for given, said in (
        (["a", [5] * 601], "input[1]: the prompt has 601 tokens; this engine has room for 600"),
        ([["a"], "b"], "input[0][0] must be a token id"),
        (["a", [49152]], "input[1]: token ids are 0 to 49151, not 49152"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            asks.embeddings.create(model=MODEL, input=given)  # type: ignore[arg-type]
        assert refused.value.body["message"] == said  # type: ignore[index]
    with pytest.raises(openai.BadRequestError) as refused:
        asks.embeddings.create(model=MODEL, input="a", dimensions=577)
    assert refused.value.param == "dimensions"


@pytest.mark.model
def test_langchain(server: Server) -> None:
    from langchain_openai import OpenAIEmbeddings  # takes a second to import

    model = OpenAIEmbeddings(
        model=MODEL,
        base_url=f"{server.url}/v1",
        api_key="none",
        check_embedding_ctx_length=False,
    )
    documents = model.embed_documents([f"Document number {n}." for n in range(100)])
    assert [len(each) for each in documents] == [WIDTH] * 100
    query = np.array(model.embed_query("Document number 7."))
    assert int(np.argmax(np.array(documents) @ query)) == 7


@pytest.mark.model
def test_timeline(server: Server) -> None:
    answer = httpx2.post(f"{server.url}/v1/embeddings", json={"input": ["a b", "c"]}, timeout=30)
    command = ["timeline", answer.headers["x-request-id"]]
    command += ["--database", f"sqlite:///{server.database}"]
    shown = subprocess.run(
        [sys.executable, "-m", "app", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.count("embedding") == 2
    assert shown.stdout.count("576 dimensions") == 2
    assert json.loads(answer.content)["model"] == MODEL
