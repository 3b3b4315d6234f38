"""Objects in S3, or in anything that speaks its protocol.

Credentials come from the usual AWS chain alone (environment, shared files, roles). The client is
made at the first use, so a command that needs no object imports no AWS library.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from hashlib import md5
from hashlib import sha256 as new_sha256
from typing import Any, NoReturn
from urllib.parse import quote

from app.events.objects import (
    CHUNK,
    ObjectError,
    ObjectMissing,
    Stored,
    check_key,
    checked,
    join,
    pieces,
    refuse_other_hash,
)

__all__ = ["S3Objects"]

PART = 8 << 20
"""Bytes in a part of an upload: what one upload holds in memory. S3 takes 10,000 parts at most."""

PAGE = 1000
"""Objects listed by one request, which is also the most S3 allows."""

RESUMES = 4
"""How often a download goes on after its connection broke."""

_DENIED = {
    "403",
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}


class S3Objects:
    """Objects in a bucket, under a prefix. Close it with `aclose`.

    Args:
        bucket: The bucket; it must exist.
        prefix: Put before every key, with a slash.
        endpoint: URL of another provider than AWS.
        region: Overrides the region of the AWS chain.
        path_style: Address the bucket in the path, not in the host name.

    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        region: str | None = None,
        path_style: bool = False,
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix + "/" if prefix else ""
        self._endpoint = endpoint
        self._region = region
        self._path_style = path_style
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._made: Any = None

    @property
    def name(self) -> str:
        """The URL, and the endpoint if it is not AWS."""
        where = f" at {self._endpoint}" if self._endpoint else ""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/") + where

    async def aclose(self) -> None:
        """Close the connections."""
        self._made = None
        await self._stack.aclose()

    async def put(
        self, key: str, chunks: AsyncIterable[bytes] | bytes, *, sha256: str | None = None
    ) -> Stored:
        """See `Objects.put`; one request for a small object, a multipart upload for others."""
        place = self._place(key)
        source = pieces(chunks, PART)
        first = await anext(source, b"")
        second = await anext(source, None)
        if second is None:
            found = new_sha256(first).hexdigest()
            refuse_other_hash(key, found, sha256)
            async with self._client(key) as s3:
                await s3.put_object(
                    **place, Body=first, ContentMD5=_md5(first), Metadata={"sha256": found}
                )
            return Stored(key, len(first), found)
        return await self._put_parts(key, sha256, [first, second], source)

    async def _put_parts(
        self, key: str, sha256: str | None, begun: list[bytes], rest: AsyncIterator[bytes]
    ) -> Stored:
        place = self._place(key)
        known = {"Metadata": {"sha256": sha256}} if sha256 else {}
        async with self._client(key) as s3:
            upload = (await s3.create_multipart_upload(**place, **known))["UploadId"]
        try:
            parts: list[dict[str, Any]] = []
            digest, size = new_sha256(), 0
            async for piece in _chain(begun, rest):
                digest.update(piece)
                size += len(piece)
                parts.append(await self._put_part(key, upload, len(parts) + 1, piece))
            found = digest.hexdigest()
            refuse_other_hash(key, found, sha256)
            async with self._client(key) as s3:
                await s3.complete_multipart_upload(
                    **place, UploadId=upload, MultipartUpload={"Parts": parts}
                )
        except BaseException:
            await asyncio.shield(self._abort(key, upload))
            raise
        return Stored(key, size, found)

    async def _put_part(self, key: str, upload: str, number: int, piece: bytes) -> dict[str, Any]:
        async with self._client(key) as s3:
            answer = await s3.upload_part(
                **self._place(key),
                UploadId=upload,
                PartNumber=number,
                Body=piece,
                ContentMD5=_md5(piece),
            )
        return {"ETag": answer["ETag"], "PartNumber": number}

    async def _abort(self, key: str, upload: str) -> None:
        """Give the parts back; what cannot be reached now is left to the bucket's own rules."""
        with suppress(ObjectError):
            async with self._client(key) as s3:
                await s3.abort_multipart_upload(**self._place(key), UploadId=upload)

    async def get(self, key: str, *, sha256: str | None = None) -> AsyncIterator[bytes]:
        """See `Objects.get`."""
        async for chunk in checked(key, self._chunks(key), sha256):
            yield chunk

    async def _chunks(self, key: str) -> AsyncIterator[bytes]:
        """Read the object in one stream; where its connection breaks, go on with the rest of it."""
        from aiohttp import ClientError
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        done, size = 0, 1
        same: dict[str, str] = {}  # the object must not be another when we come back for the rest
        for left in range(RESUMES, -1, -1):
            async with self._client(key) as s3:
                asked = {"Range": f"bytes={done}-"} if done else {}
                answer = await s3.get_object(**self._place(key), **asked, **same)
                size, same = done + answer["ContentLength"], {"IfMatch": answer["ETag"]}
                try:
                    async with answer["Body"] as body:
                        while chunk := await body.content.read(CHUNK):
                            done += len(chunk)
                            yield chunk
                except (ClientError, HTTPClientError, IncompleteReadError, TimeoutError) as error:
                    if not left:
                        raise ObjectError(f"object {key} cannot be read whole: {error}") from error
            if done >= size:
                return
        raise ObjectError(f"object {key} cannot be read whole: {done} of {size} bytes came")

    async def read(self, key: str, *, sha256: str | None = None) -> bytes:
        """See `Objects.read`."""
        return await join(self.get(key, sha256=sha256))

    async def stat(self, key: str) -> Stored | None:
        """See `Objects.stat`."""
        try:
            async with self._client(key) as s3:
                found = await s3.head_object(**self._place(key))
        except ObjectMissing:
            return None
        return Stored(key, found["ContentLength"], found.get("Metadata", {}).get("sha256"))

    async def delete(self, key: str) -> None:
        """See `Objects.delete`."""
        with suppress(ObjectMissing):
            async with self._client(key) as s3:
                await s3.delete_object(**self._place(key))

    async def list(self, prefix: str = "") -> AsyncIterator[Stored]:
        """See `Objects.list`."""
        more: dict[str, str] = {}
        while True:
            async with self._client(prefix) as s3:
                page = await s3.list_objects_v2(
                    Bucket=self._bucket, Prefix=self._prefix + prefix, MaxKeys=PAGE, **more
                )
            for entry in page.get("Contents", ()):
                yield Stored(entry["Key"][len(self._prefix) :], entry["Size"])
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    async def presign(
        self, key: str, *, seconds: int, filename: str | None = None, mime: str | None = None
    ) -> str | None:
        """See `Objects.presign`."""
        params = self._place(key)
        if filename is not None:
            params["ResponseContentDisposition"] = (
                f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
            )
        if mime is not None:
            params["ResponseContentType"] = mime
        async with self._client(key) as s3:
            url: str = await s3.generate_presigned_url("get_object", params, ExpiresIn=seconds)
        return url

    # ------------------------------------------------------------------------------- the client

    def _place(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    @asynccontextmanager
    async def _client(self, key: str) -> AsyncIterator[Any]:
        """Give the client, and turn its errors into ours."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield await self._open()
        except ClientError as error:
            self._refused(key, error)
        except BotoCoreError as error:
            self._unreachable(error)

    async def _open(self) -> Any:
        async with self._opening:
            if self._made is None:
                import aioboto3
                from botocore.config import Config

                session = aioboto3.Session()
                config = Config(
                    connect_timeout=5,
                    read_timeout=30,
                    retries={"mode": "standard", "total_max_attempts": 3},
                    s3={"addressing_style": "path" if self._path_style else "auto"},
                    # Many other providers refuse the newer checksums; Content-MD5 all know, and
                    # what comes back is checked here.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    signature_version="s3v4",
                )
                client = session.client(
                    "s3",
                    endpoint_url=self._endpoint,
                    region_name=self._region or session.region_name or "us-east-1",
                    config=config,
                )
                self._made = await self._stack.enter_async_context(client)
            return self._made

    def _refused(self, key: str, error: Any) -> NoReturn:
        """Say what the server's refusal means."""
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code == "NoSuchBucket":
            raise ObjectError(
                f"there is no bucket {self._bucket!r}", hint="create it, or correct objects.url"
            ) from error
        if code in ("404", "NoSuchKey", "NotFound"):
            raise ObjectMissing(
                f"object {key} is not in {self.name}",
                hint="bring it back from a backup, or correct objects.url",
            ) from error
        if code in _DENIED:
            raise ObjectError(
                f"{self.name} refused access ({code})",
                hint="check the AWS credentials of this process and the bucket's policy",
            ) from error
        raise ObjectError(f"{self.name}: {error}") from error

    def _unreachable(self, error: Exception) -> NoReturn:
        from botocore.exceptions import NoCredentialsError, PartialCredentialsError

        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            raise ObjectError(
                f"there are no AWS credentials for {self.name}",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a profile or a role",
            ) from error
        raise ObjectError(
            f"{self.name} cannot be reached: {error}",
            hint="check objects.endpoint and the network",
        ) from error


async def _chain(begun: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while begun:
        yield begun.pop(0)  # not kept: a part is large
    async for piece in rest:
        yield piece


def _md5(data: bytes) -> str:
    return base64.b64encode(md5(data, usedforsecurity=False).digest()).decode()
