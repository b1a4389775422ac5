"""The web application: the page, and the few addresses that it asks."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles

from finetune.fitted import Fitted
from finetune.recipe import GenerationSection
from pretrain.errors import UserError
from tools.serve.facts import facts
from tools.serve.talks import RefusedError, Talks

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page")
LOCAL = ("127.0.0.1", "localhost", "::1")
"""Names by which a browser on this machine, or at the end of a tunnel, calls the server."""
MOST_BYTES = 1 << 17
"""Of a request's body."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Wishes(_Body):
    """How a reply is made; what is left out is as in the recipe."""

    beams: int | None = Field(None, ge=1, le=16)
    sample: bool | None = None
    temperature: float | None = Field(None, ge=0.01, le=10)
    top_k: int | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_new_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=1 << 31)


Sentence = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]


class Beginning(_Body):
    """How a conversation begins."""

    persona: list[Sentence] = Field([], max_length=20)


class Message(_Body):
    """What a person says, whether to answer with memory reset as well, and settings of the reply."""

    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000)]
    compare: bool = False
    wishes: Wishes = Wishes()  # type: ignore[call-arg]


def make_app(fitted: Fitted, hosts: Sequence[str] = LOCAL) -> FastAPI:
    """The application for a model.

    Args:
        hosts: names by which it may be called; a request for another, as a page elsewhere makes it after
            changing its own name's address, is refused.
    """
    app = FastAPI(title="membart serve", docs_url=None, redoc_url=None, openapi_url=None)
    talks, about = Talks(fitted), facts(fitted)

    @app.get("/api/about")
    def tell() -> dict[str, Any]:
        return about

    @app.post("/api/talks")
    def begin(wanted: Beginning) -> dict[str, Any]:
        name, talk = talks.open(tuple(wanted.persona))
        return {"name": name, **talk.state()}

    @app.get("/api/talks/{name}")
    def look(name: str) -> dict[str, Any]:
        return {"name": name, **talks.find(name).state()}

    @app.post("/api/talks/{name}/reset")
    def reset(name: str, wanted: Beginning) -> dict[str, Any]:
        return {"name": name, **talks.replace(name, tuple(wanted.persona)).state()}

    @app.post("/api/talks/{name}/say")
    def say(name: str, message: Message) -> dict[str, Any]:
        how = _settled(fitted.recipe.generation, message.wishes, about["most_tokens"])
        try:
            return {"name": name, **talks.say(name, message.text, how, message.compare).state()}
        except (RefusedError, UserError):
            raise
        except Exception as error:
            logger.exception("a reply failed")
            reason = (str(error).splitlines() or [""])[0]
            raise RefusedError(
                500, f"the reply failed ({type(error).__name__}: {reason}); nothing was kept of it"
            ) from error

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    app.middleware("http")(_guard)
    names = [f"[{host}]" if ":" in host else host for host in hosts]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)
    app.add_exception_handler(RequestValidationError, _refuse_input)
    app.add_exception_handler(UserError, _refuse_input)
    app.add_exception_handler(RefusedError, _refuse)
    return app


def _settled(recipe: GenerationSection, wishes: Wishes, most: int) -> GenerationSection:
    asked = wishes.model_dump(exclude_none=True)
    how = GenerationSection.model_validate({**recipe.model_dump(), **asked, "replies": 1})
    if how.max_new_tokens > most:
        raise RefusedError(422, f"max_new_tokens: at most {most}")
    return how


async def _guard(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
    """Requests of pages that are not ours, and such as are too long, go no further."""
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    length = request.headers.get("content-length", "")
    if origin is not None and urlsplit(origin).netloc != host:
        response: Response = _error(403, f"a page at {origin} may not use this server")
    elif request.method == "POST" and not (length.isdigit() and int(length) <= MOST_BYTES):
        response = _error(413, f"a request has at most {MOST_BYTES} bytes, and says how many")
    else:
        response = await proceed(request)
    response.headers.update(HEADERS)
    return response


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return _error(error.status, str(error))


def _refuse_input(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        return _error(422, str(error))
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return _error(422, f"{place}: {first['msg']}" if place else str(first["msg"]))


def _error(status: int, what: str) -> Response:
    return JSONResponse({"error": what}, status_code=status)
