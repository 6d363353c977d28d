"""A bucket of an S3-compatible store, by the extra `[s3]` (obstore).

obstore is called in threads, never by its coroutines: with those the interpreter aborts when it ends (obstore 0.12).
"""

from __future__ import annotations

from typing import Any

from obstore.exceptions import BaseError
from obstore.store import S3Store

_ANSWER_S, _CONNECT_S = 10, 3
_RETRIES = 3


def open_bucket(url: str) -> S3Store:
    """The bucket at `s3://BUCKET` or `s3://BUCKET/FOLDER`; nothing is called yet.

    Keys, region and endpoint are the environment's (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`,
    `AWS_ENDPOINT_URL`), or the machine's role. Raises ValueError for an invalid address.
    """
    options: dict[str, Any] = {
        "client_options": {"timeout": f"{_ANSWER_S}s", "connect_timeout": f"{_CONNECT_S}s", "allow_http": True},
        "retry_config": {"max_retries": _RETRIES},
    }
    try:
        return S3Store.from_url(url, **options)
    except BaseError as error:
        raise ValueError(f"{url!r} is no address of a bucket: {error}") from error
