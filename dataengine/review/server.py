"""The review page's server.

GET  /                       the page
GET  /prompts?reviewer=NAME  all prompts in short, what people said of them, what NAME can undo, the desk's name
GET  /view?desk=D&run=NAME   a run folder's prompts, regions and outlines
GET  /photo?desk=D&run=NAME  its photo, a JPEG
POST /decisions              an `Asked` as JSON; answered when it is on the disk
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from dataengine.errors import DataEngineError
from dataengine.report import policy
from dataengine.review.desk import LONGEST_NAME, AnotherDeskError, Asked, Desk, RefusedError
from dataengine.review.guard import App, Guard


def application(desk: Desk, *, reviewer: str, host: str) -> App:
    """The server as an ASGI application, behind its guard.

    Args:
        reviewer: the name the page starts with.
        host: the address it listens at.
    """
    page, page_policy = _page(reviewer)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    def root() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)

    @app.get("/prompts")
    def prompts(reviewer: Annotated[str, Query(min_length=1, max_length=LONGEST_NAME)]) -> JSONResponse:
        return JSONResponse(desk.listing(reviewer))

    @app.get("/view")
    def view(run: str, desk_name: Annotated[str, Query(alias="desk")]) -> Response:
        if desk_name != desk.name:
            return _told("this server has other run folders", 421)
        found = desk.view(run)
        return _told("no such run folder", 404) if found is None else JSONResponse(found)

    @app.get("/photo")
    def photo(run: str, desk_name: Annotated[str, Query(alias="desk")]) -> Response:
        data = desk.photo(run) if desk_name == desk.name else None
        if data is None:
            return _told("no such photo", 404)
        return Response(data, media_type="image/jpeg")

    @app.post("/decisions")
    async def decide(request: Request) -> Response:
        return await run_in_threadpool(_decided, desk, await request.body())

    return Guard(app, host, page_policy)


def _decided(desk: Desk, body: bytes) -> Response:
    try:
        return JSONResponse({"words": desk.decide(Asked.model_validate_json(body))})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return _told(f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}", 422)
    except AnotherDeskError as error:
        return _told(str(error), 421)
    except RefusedError as error:
        return _told(str(error), 409)
    except DataEngineError as error:
        return _told(str(error), 507)


def _told(text: str, status: int) -> JSONResponse:
    return JSONResponse({"error": text}, status)


def _page(reviewer: str) -> tuple[str, str]:
    """The page, and its Content-Security-Policy."""
    source = files(__package__)
    style, script, page = (
        source.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html")
    )
    name = json.dumps(reviewer).replace("<", "\\u003c")
    for mark, text in (("/*style*/", style), ("/*script*/", script), ("/*reviewer*/", name)):
        page = page.replace(mark, text)
    rules = policy(style, script, pictures="'self'")
    return page, f"{rules}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
