"""What is told of a failed request: enough to know what to do, and nothing that can hold a secret.

A server's answer may repeat the key and the signature that it refuses, and an address may carry a token. So of an
answer only its status and its code are told, of all else the first line without addresses, and what the environment
holds as credentials never.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, unquote

from substyle.kernels.errors import SubstyleError

_STATUS = re.compile(r"status code: (\d{3}(?: [A-Z][A-Za-z]*)*)")
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>|\"(?:code|reason)\": ?\"([A-Za-z]{1,60})\"")
_ADDRESS = re.compile(r"\S*://\S*")
_CREDENTIALS = re.compile(r"^(AWS|AZURE|GOOGLE|GCS|GCP|GCLOUD)_.*(KEY|SECRET|TOKEN|PASSWORD|SAS|CREDENTIAL)", re.ASCII)
_FRAME = re.compile(r"^Generic \w+ error: |Error performing [A-Z]+ \S+ in [^\s,]+(?:, after .*?)? +- ")
_NO_BUCKET = ("<Code>NoSuchBucket</Code>", "<Code>ContainerNotFound</Code>")
_SHORT = 6  # characters: less is no secret but a part of every text


class ObjectError(SubstyleError):
    """A bucket did not do what it was asked for: no connection, no answer in time, or an answer that refuses.

    It is no OSError: those are taken for what a file is or is not, and a file that could not be asked for is neither.
    """


@contextmanager
def told(place: object) -> Iterator[None]:
    """Turn what obstore raises into errors that name a place and the reason.

    Raises:
        FileNotFoundError: nothing is there.
        FileExistsError: what is to be created is there.
        OSError: with ESTALE, another object is there than the one that was meant.
        ObjectError: all else.
    """
    from obstore import exceptions

    where = str(place)
    # none is raised from the one before: what obstore says of itself may be shown with a traceback
    try:
        yield
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # told already; obstore's has no number
            raise
        if any(code in str(error) for code in _NO_BUCKET):
            raise ObjectError(f"{where}: there is no such bucket") from None
        raise FileNotFoundError(errno.ENOENT, "is not there", where) from None
    except exceptions.AlreadyExistsError:
        raise FileExistsError(errno.EEXIST, "is there already", where) from None
    except exceptions.PreconditionError:
        raise OSError(errno.ESTALE, "has changed since it was listed", where) from None
    except exceptions.BaseError as error:
        raise ObjectError(f"{where}: {reason(str(error))}") from None


def reason(text: str) -> str:
    """What may be told of obstore's account of a failure."""
    status, codes = _STATUS.search(text), _CODE.search(text)
    if status is not None:
        code = codes and (codes[1] or codes[2])
        return f"the server answers {status[1]}" + (f" ({code})" if code else "")
    line = _FRAME.sub("", _ADDRESS.sub("…", text.split("\n", 1)[0]))
    return without_credentials(" ".join(line.split())[:200]) or "the request failed"


def without_credentials(text: str) -> str:
    """A text without the values of the environment's credentials."""
    for name, value in os.environ.items():
        if _CREDENTIALS.match(name) and len(value) >= _SHORT:
            for form in {value, quote(value, safe=""), unquote(value)}:
                text = text.replace(form, "…")
    return text
