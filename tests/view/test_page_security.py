"""What the page gives to whom: host names, origins, keys, sizes, headers, and what hostile names become."""

import base64
import hashlib
import re

import pytest
from httpx2 import Client

from helpers.page_server import HOSTILE, serve_page
from helpers.studies import build_study
from moeworks.errors import BadData
from moeworks.study import save_study
from moeworks.trace import Trace
from moeworks.view.app import build_page
from moeworks.view.run import page_address, view
from moeworks.view.security import LOOPBACK_NAMES, Guard, content_policy, script_hashes
from moeworks.view.sources import Sources

KEY = "one key & more"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A page with traces alone, without a key."""
    with serve_page(tmp_path_factory.mktemp("open"), model=False) as site:
        yield site


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A page with a key, and a study."""
    folder = tmp_path_factory.mktemp("locked")
    (folder / "study").mkdir()
    save_study(build_study(), folder / "study" / "study.json")
    (folder / "study" / "report.html").write_text(f"<!doctype html><h1>{HOSTILE}</h1>")
    with serve_page(folder / "traces", model=False, key=KEY, more=[folder / "study"]) as site:
        yield site


@pytest.fixture
def web(site):
    with Client(base_url=site.url) as web:
        yield web


def message(answer):
    assert answer.headers["content-type"] == "application/json"
    return answer.json()["error"]["message"]


def test_a_foreign_name_for_this_machine_gets_nothing(web, site):
    port = site.url.rsplit(":", 1)[1]
    for path in ("/view/", "/view/api/sources", "/view/static/js/app.js", "/health"):
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", ""):
            answer = web.get(path, headers={"host": host})
            assert answer.status_code in (400, 403), (path, host)
            assert "languages" not in answer.text
            assert "plain" not in answer.text
    assert "evil.example" in message(web.get("/view/", headers={"host": "evil.example"}))
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", "LOCALHOST", f"[::1]:{port}"):
        assert web.get("/view/api/sources", headers={"host": host}).status_code == 200, host


def test_a_page_of_another_site_may_ask_for_no_work(web, site):
    body = {"operations": [{"op": "demote", "experts": ["L0.E1"]}], "trace": "plain"}
    post = "/view/api/plan"
    assert web.post(post, json=body).status_code == 200  # no browser
    assert web.post(post, json=body, headers={"origin": site.url}).status_code == 200
    assert web.post(post, json=body, headers={"sec-fetch-site": "same-origin"}).status_code == 200
    port = int(site.url.rsplit(":", 1)[1])
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": f"http://127.0.0.1:{port + 1}"},
        {"origin": f"http://localhost:{port}"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        answer = web.post(post, json=body, headers={**headers, "content-type": "text/plain"})
        assert answer.status_code == 403, headers
        assert "another site" in message(answer)


def test_the_key_opens_the_data_and_the_page_itself_is_open(locked):
    with Client(base_url=locked.url) as web:
        assert web.get("/view/").status_code == 200
        assert web.get("/view/static/js/app.js").status_code == 200
        for path in (
            "/view/api/sources",
            "/view/api/traces/plain/tokens",
            "/view/static/../api/sources",
            "/view//api/sources",
            "/VIEW/api/sources",
            "/view/api/studies/study/report",
        ):
            answer = web.get(path)
            assert answer.status_code in (401, 404), path
            assert "plain" not in answer.text
        for word in ("", "Bearer", "Bearer one key", f"Bearer {KEY}x", f"Basic {KEY}"):
            assert web.get("/view/api/sources", headers={"authorization": word}).status_code == 401, word
        right = {"authorization": f"Bearer {KEY}"}
        assert web.get("/view/api/sources", headers=right).status_code == 200
        # With a key, any name will do: others reach this machine by names that we do not know.
        assert web.get("/view/api/sources", headers={**right, "host": "lab.example"}).status_code == 200
        assert web.post("/view/api/plan", json={"operations": []}).status_code == 401


def test_a_link_to_a_report_opens_that_report_alone(locked):
    with Client(base_url=locked.url) as web:
        (study,) = web.get("/view/api/sources", headers={"authorization": f"Bearer {KEY}"}).json()["studies"]
        link = study["report"]
        assert KEY not in link
        assert "key" not in link
        answer = web.get(link)
        assert answer.status_code == 200
        assert HOSTILE in answer.text
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("sandbox;")
        assert "script-src" not in policy
        assert "default-src 'none'" in policy
        assert web.get(link.split("?")[0]).status_code == 401
        assert web.get(link[:-1] + ("0" if link[-1] != "0" else "1")).status_code == 401
        assert web.get(link.replace("/study?", "/other?")).status_code == 401
        assert web.get(link.split("=")[0] + "=é").status_code == 401
        assert answer.headers["x-frame-options"] == "SAMEORIGIN"  # the page shows it in a frame
        assert "frame-ancestors 'self'" in policy
        assert web.get("/view/api/sources?" + link.split("?")[1]).status_code == 401


def test_the_policy_allows_the_import_map_and_no_other_inline_script(web):
    answer = web.get("/view/")
    policy = answer.headers["content-security-policy"]
    (text,) = re.findall(r'<script type="importmap">(.*?)</script>', answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives == {
        "default-src": "'none'",
        "script-src": f"'self' 'sha256-{digest}'",
        "style-src": "'self'",
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "font-src": "'self'",
        "frame-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert script_hashes('<script src="a.js"></script><script>x</script>') == script_hashes("<script>x</script>")
    assert "unsafe" not in content_policy(["'sha256-x'"])


def test_every_answer_carries_its_headers(web, locked):
    for path in ("/", "/view/", "/view/static/style.css", "/view/api/sources", "/view/api/traces/none/map", "/nowhere"):
        headers = web.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
    with Client(base_url=locked.url) as other:
        assert other.get("/view/api/sources").headers["x-content-type-options"] == "nosniff"  # a refusal at the door
    assert "access-control-allow-origin" not in web.get("/view/api/sources").headers
    assert web.get("/view/api/sources").headers["cache-control"].startswith("private")


def test_only_the_pages_own_files_are_given(web):
    for path in (
        "/view/static/../app.py",
        "/view/static/%2e%2e/app.py",
        "/view/static/..%2fapp.py",
        "/view/static//etc/passwd",
        "/view/static/js",
        "/view/static/",
        "/view/static/js/../../app.py",
        "/view/static/js\\app.js",
    ):
        assert web.get(path).status_code == 404, path
    assert web.get("/view/static/js/app.js").headers["content-type"].startswith("text/javascript")


def test_bodies_are_bounded(web):
    answer = web.post("/view/api/plan", content=b'{"operations": [], "description": "' + b"x" * (4 << 20) + b'"}')
    assert answer.status_code == 413
    assert "bytes" in message(answer)
    assert web.post("/view/api/plan", json={"operations": [], "description": "x" * 2001}).status_code == 400
    many = [{"op": "demote", "experts": ["L0.E1"]}] * 65
    assert web.post("/view/api/plan", json={"operations": many, "trace": "plain"}).status_code == 400
    experts = {"op": "demote", "experts": ["L0.E1"] * 4097}
    assert web.post("/view/api/plan", json={"operations": [experts], "trace": "plain"}).status_code == 400
    assert web.post("/view/api/plan", content=b"no json").status_code == 400
    assert web.get("/view/api/traces/plain/tokens?start=0&stop=20001").status_code in (200, 413)
    assert web.get(f"/view/api/traces/plain/tokens?layers={'1,' * 9000}1").status_code in (400, 414)


def test_hostile_names_come_back_as_data(tmp_path):
    with serve_page(tmp_path, model=False) as site, Client(base_url=site.url) as web:
        trace = Trace.open(tmp_path / "plain")
        id = site.sources.add_trace(trace, name=HOSTILE)
        assert re.fullmatch(r"[A-Za-z0-9._-]+", id)
        answer = web.get("/view/api/sources")
        assert answer.headers["content-type"] == "application/json"
        found = next(one for one in answer.json()["traces"] if one["id"] == id)
        assert found["name"] == HOSTILE
        assert HOSTILE in found["labels"]["domain"]
        refused = web.get(f"/view/api/traces/{id}/map", params={"by": HOSTILE})
        assert refused.status_code == 400
        assert refused.headers["content-type"] == "application/json"
        assert web.get("/view/api/traces/<script>/map").headers["content-type"] == "application/json"


def test_open_addresses_need_a_key():
    sources = Sources()
    with pytest.raises(BadData, match="--api-key"):
        view(sources, host="0.0.0.0", key="", open_browser=False)
    assert page_address("127.0.0.1", 8642, "") == "http://127.0.0.1:8642/view/"
    assert page_address("::1", 1, KEY) == "http://[::1]:1/view/#key=one%20key%20%26%20more"


def test_the_guard_knows_loopback_by_default_and_any_name_with_a_key():
    assert Guard(None).hosts == frozenset(LOOPBACK_NAMES)
    names = [one.kwargs["hosts"] for one in build_page(Sources(), key="k").user_middleware if one.cls is Guard]
    assert names == [None]
