"""What the review server lets through and what it refuses: raw requests to the real command."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from dataengine.cli import main
from dataengine.review.guard import MOST_BYTES
from tests.exporters.folders import our_run, picture, prompt, save
from tests.review.serving import MASKS, decisions, make_runs, serving

SECRET = b"nobody outside may see this"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders, some with links that lead out, beside a secret and another's run folder."""
    root = tmp_path_factory.mktemp("desk")
    made = make_runs(root)
    (root / "secret.txt").write_bytes(SECRET)
    other = our_run(root / "elsewhere", root / "photos" / "photo_0.png", "out_region_refine_other", masks=MASKS)
    (made / "out_region_refine_linked").symlink_to(other, target_is_directory=True)
    first = made / "out_region_refine_0"
    for name, target in (("original_image.png", save(root / "private.png", picture())), ("link.txt", "secret.txt")):
        (first / name).unlink(missing_ok=True)
        (first / name).symlink_to(root / target)
    second = made / "out_region_refine_1" / "accepted_regions"
    (second / "masks").rename(root / "elsewhere" / "masks")
    (second / "masks").symlink_to(root / "elsewhere" / "masks", target_is_directory=True)
    return made


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[tuple[str, int]]:
    with serving(runs, "--reviewer", "ana") as (url, _):
        parts = urlsplit(url)
        yield known(str(parts.hostname), int(parts.port or 0))


DESKS: dict[tuple[str, int], str] = {}  # names of desks, in place of `{desk}` in a path


def known(host: str, port: int) -> tuple[str, int]:
    """A server, its desk's name noted."""
    DESKS[host, port] = json.loads(ask((host, port), "/prompts?reviewer=ana")[1])["desk"]
    return host, port


def ask(
    server: tuple[str, int], path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers; underscores in the names of headers are hyphens."""
    connection = http.client.HTTPConnection(*server, timeout=10)
    try:
        path = path.replace("{desk}", DESKS.get(server, ""))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def a_decision(server: tuple[str, int], **other: Any) -> bytes:
    """A good decision on the first prompt of the last run folder, with other fields replaced."""
    listing = json.loads(ask(server, "/prompts?reviewer=ana")[1])
    prompts = listing["prompts"]
    first = next(prompt for prompt in prompts if prompt["run"] == prompts[-1]["run"])
    told = {name: first[name] for name in ("run", "concept", "negative", "index", "basis")}
    asked = {
        "id": "0123456789abcdef",
        "reviewer": "ana",
        "action": "accept",
        "prompt": "Segment thing 0",
        "satisfying": [0],
    }
    return json.dumps({"desk": listing["desk"], **asked, **told, "undoes": None, **other}).encode()


JSON = {"Content_Type": "application/json"}


# Files.


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../secret.txt",
        "%2e%2e%2fsecret.txt",
        "%252e%252e%252fsecret.txt",
        "..%5csecret.txt",
        "/etc/passwd",
        "out_region_refine_0/../../secret.txt",
        "out_region_refine_0/link.txt",
        "out_region_refine_linked",
        "%00",
        "",
    ],
)
@pytest.mark.parametrize("kind", ["view", "photo"])
def test_only_run_folders_of_the_desk_are_served(server: tuple[str, int], kind: str, name: str) -> None:
    status, body, _ = ask(server, f"/{kind}?desk={{desk}}&run={name}")
    assert status == 404
    assert SECRET not in body


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/static/../../secret.txt",
        "//etc/passwd",
        "/runs/out_region_refine_0/original_image.png",
        "/page.js",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_other_path_is_there(server: tuple[str, int], path: str) -> None:
    status, body, _ = ask(server, path)
    assert status == 404
    assert SECRET not in body


def test_a_photo_that_is_a_link_out_of_the_folder_is_not_served(server: tuple[str, int]) -> None:
    assert ask(server, "/photo?desk={desk}&run=out_region_refine_0")[0] == 404
    status, data, headers = ask(server, "/photo?desk={desk}&run=out_region_refine_1")
    assert (status, headers["content-type"], data[:2]) == (200, "image/jpeg", b"\xff\xd8")


def test_masks_behind_a_link_out_of_the_folder_are_not_shown(server: tuple[str, int]) -> None:
    regions = {
        number: [
            region["path"] != ""
            for region in json.loads(ask(server, f"/view?desk={{desk}}&run=out_region_refine_{number}")[1])["regions"]
        ]
        for number in (1, 2)
    }
    assert regions == {1: [False] * 4, 2: [True] * 4}


def test_decisions_are_not_written_through_a_link(tmp_path: Path) -> None:
    runs = make_runs(tmp_path, images=1)
    (tmp_path / "victim").write_bytes(b"")
    (runs / "out_region_refine_0" / "reviews.jsonl").symlink_to(tmp_path / "victim")
    with serving(runs, "--reviewer", "ana") as (url, _):
        parts = urlsplit(url)
        at = (str(parts.hostname), int(parts.port or 0))
        status, told, _ = ask(at, "/decisions", "POST", a_decision(at), **JSON)
    assert status == 507
    assert b"a link" in told
    assert (tmp_path / "victim").read_bytes() == b""


# Who asks.


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::2]:80", "", "10.0.0.1", "localhost.evil:1"],
)
@pytest.mark.parametrize("path", ["/", "/prompts?reviewer=ana", "/photo?desk={desk}&run=out_region_refine_1"])
def test_a_foreign_host_is_refused(server: tuple[str, int], host: str, path: str) -> None:
    assert ask(server, path, Host=host)[0] in (400, 403)


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{port}", "LOCALHOST", "[::1]:{port}"])
def test_this_machine_by_its_own_names_is_not(server: tuple[str, int], host: str) -> None:
    assert ask(server, "/", Host=host.format(port=server[1]))[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Type": "multipart/form-data; boundary=x"}, 415),
    ],
)
def test_what_another_sites_page_can_send_is_refused(
    runs: Path, server: tuple[str, int], headers: dict[str, str], status: int
) -> None:
    told = {**JSON, **{name: value.format(port=server[1]) for name, value in headers.items()}}
    assert ask(server, "/decisions", "POST", a_decision(server, id="f" * 16), **told)[0] == status
    assert "f" * 16 not in {decision.id for decision in decisions(runs)}


def test_a_link_on_another_page_opens_the_page_and_nothing_else(server: tuple[str, int]) -> None:
    def follow(path: str, mode: str) -> int:
        return ask(server, path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode=mode)[0]

    assert follow("/", "navigate") == 200
    assert follow("/prompts?reviewer=ana", "navigate") == 403
    assert follow("/photo?desk={desk}&run=out_region_refine_1", "no-cors") == 403


def test_the_page_may_load_nothing_from_elsewhere_and_stand_in_no_other(server: tuple[str, int]) -> None:
    status, body, headers = ask(server, "/")
    policy = headers["content-security-policy"]
    assert status == 200
    assert "unsafe" not in policy
    for rule in (
        "default-src 'none'",
        "connect-src 'self'",
        "img-src 'self'",
        "frame-ancestors 'none'",
        "form-action 'none'",
    ):
        assert rule in policy.split("; ")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers
    assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")


# How much is sent.


def test_a_body_of_100_mb_is_refused_before_it_is_read(server: tuple[str, int]) -> None:
    with socket.create_connection(server, timeout=10) as connection:
        head = f"POST /decisions HTTP/1.1\r\nHost: 127.0.0.1:{server[1]}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {100 << 20}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_long_body_that_does_not_say_so_is_refused(server: tuple[str, int]) -> None:
    with socket.create_connection(server, timeout=10) as connection:
        head = f"POST /decisions HTTP/1.1\r\nHost: 127.0.0.1:{server[1]}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        sent, answer = 0, b""
        try:
            while sent < (100 << 20) and not answer:
                connection.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
                sent += 0x10000
                connection.settimeout(0.02)
                try:
                    answer = connection.recv(100)
                except TimeoutError:
                    connection.settimeout(10)
        except OSError:  # the server has closed it
            pass
        assert sent <= MOST_BYTES * 8
        assert not answer or answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "headers",
    [b"Content-Length: x\r\n", b"Content-Length: -1\r\n", b"Host: evil.example\r\n", b"Origin: a\r\nOrigin: b\r\n"],
)
def test_a_head_that_says_two_things_is_refused(server: tuple[str, int], headers: bytes) -> None:
    with socket.create_connection(server, timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n")
        assert connection.recv(100).split()[1] in (b"400", b"403", b"413")


# What is decided.


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("id", "short", 422),
        ("id", "a\nb" * 5, 422),
        ("reviewer", "", 422),
        ("reviewer", "x" * 65, 422),
        ("action", "delete", 422),
        ("concept", "../x", 422),
        ("satisfying", ["0"], 422),
        ("prompt", "x" * 10_001, 409),
        ("more", 1, 422),
        ("desk", "another", 421),
        ("run", "../elsewhere/out_region_refine_other", 409),
        ("run", "out_region_refine_linked", 409),
        ("basis", "0" * 16, 409),
        ("index", 99, 409),
        ("prompt", "what is not on the page", 409),
        ("satisfying", [1], 409),
    ],
)
def test_a_decision_that_fits_no_prompt_is_refused(
    runs: Path, server: tuple[str, int], field: str, value: object, status: int
) -> None:
    before = decisions(runs)
    found, told, _ = ask(server, "/decisions", "POST", a_decision(server, **{field: value}), **JSON)
    assert found == status
    assert json.loads(told)["error"]
    assert decisions(runs) == before


def test_what_is_no_json_is_refused(server: tuple[str, int]) -> None:
    for body in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
        assert ask(server, "/decisions", "POST", body, **JSON)[0] == 422


def test_a_decision_sent_twice_is_written_once(runs: Path, server: tuple[str, int]) -> None:
    body = a_decision(server, id="twice-0123456789", reviewer="eve")
    answers = {ask(server, "/decisions", "POST", body, **JSON)[:2] for _ in range(2)}
    [(status, told)] = answers
    assert status == 200
    assert json.loads(told)["words"]["eve"]["verdict"] == "ACCEPT"
    assert [decision.reviewer for decision in decisions(runs)].count("eve") == 1


# The command.


def test_a_name_that_needs_escaping_is_text_on_the_page(tmp_path: Path) -> None:
    with serving(make_runs(tmp_path, images=1), "--reviewer", "</script><b>") as (url, _):
        parts = urlsplit(url)
        body = ask((str(parts.hostname), int(parts.port or 0)), "/")[1]
    assert b"</script><b>" not in body


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sample", "0"], "--sample 0"),
        (["--reviewer", "x" * 65], "--reviewer"),
        (["--port", "{taken}"], "cannot listen at 127.0.0.1:{taken}"),
        (["--port", "99999"], "cannot listen at 127.0.0.1:99999"),
        (["--host", "no.such.host.invalid"], "cannot listen at no.such.host.invalid"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        told = [flag.format(taken=taken) for flag in flags]
        assert main(["review", str(make_runs(tmp_path, images=1)), *told]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said.format(taken=taken) in line


def test_run_folders_without_a_prompt_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    our_run(tmp_path / "runs", save(tmp_path / "a.png", picture()), prompts={"entities": []})
    assert main(["review", str(tmp_path / "runs")]) == 2
    assert "no prompt in its run folders" in capsys.readouterr().err


def test_a_name_that_is_a_path_is_asked_for_as_it_is(tmp_path: Path) -> None:
    name = "out_region_refine_a b&c%2f"
    our_run(tmp_path / "runs", save(tmp_path / "a.png", picture()), name, masks=MASKS, prompts={"entities": [prompt()]})
    with serving(tmp_path / "runs") as (url, _):
        parts = urlsplit(url)
        status, body, _ = ask(
            known(str(parts.hostname), int(parts.port or 0)), f"/view?desk={{desk}}&run={quote(name, safe='')}"
        )
    assert status == 200
    assert json.loads(body)["run"] == name


def test_pictures_of_another_desk_are_not_shown(server: tuple[str, int]) -> None:
    assert ask(server, "/view?desk=another&run=out_region_refine_2")[0] == 421
    assert ask(server, "/photo?desk=another&run=out_region_refine_2")[0] == 404
    assert ask(server, "/photo?desk={desk}&run=out_region_refine_2")[2]["cache-control"] == "no-store"
