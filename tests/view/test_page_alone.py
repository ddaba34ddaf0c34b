"""Pages of their own: traces without a model, a server that stops, a long trace, cards made side by side."""

import json
import subprocess
import sys
import threading

import torch
from httpx2 import Client

from helpers.page_answers import PICKS, PROBE, arrow, refused
from helpers.page_server import make_site, serve_page
from helpers.servers import in_thread
from helpers.traces import make_trace
from moeworks.serve import Limits
from moeworks.view.app import build_page
from moeworks.view.cards import expert_card
from moeworks.view.sources import Sources

torch.set_num_threads(1)


def test_traces_alone_need_no_torch_and_refuse_work(tmp_path):
    with serve_page(tmp_path, model=False) as site, Client(base_url=f"{site.url}/view/") as web:
        assert web.get("api/sources").json()["can"] == {"generate": False, "record": False, "evaluate": False}
        for path in ("api/record", "api/evidence"):
            assert "moeworks view" in refused(web.post(path, json={"text": "a"}), 400)
        assert "for a model" in refused(web.post("api/plan", json={"operations": PICKS}), 400)
        assert web.post("api/plan", json={"operations": PICKS, "trace": "plain"}).json()["touched"] == 3
    code = f"""
import asyncio, sys
from moeworks.view import Sources
from moeworks.view.asking import asking
from moeworks.view.app import build_page
from moeworks.view.cards import expert_card
sources = Sources([{str(tmp_path / "plain")!r}])
build_page(sources)
with asking(sources) as get:
    assert get("api/traces/plain/tokens") and get("api/traces/plain/map") and get("api/traces/plain/experts/L0.E1")
print([name for name in ("torch", "transformers", "openai") if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_server_that_stops_ends_the_work_with_a_word(tmp_path):
    found = []
    with (
        serve_page(tmp_path, limits=Limits(grace_seconds=0.5)) as site,
        Client(base_url=f"{site.url}/view/", timeout=60) as web,
    ):
        plan = web.post("api/plan", json={"operations": PICKS}).json()["plan"]
        body = {"plan": plan, "probe": PROBE, "controls": 100}
        with web.stream("POST", "api/evidence", json=body) as answer:
            for line in filter(None, answer.iter_lines()):
                found.append(json.loads(line.removeprefix("data: ")))
                if found[-1].get("done") == 2:
                    site.app.state.server.should_exit = True
    assert "the server is stopping" in found[-1]["error"]["message"]


def test_of_a_long_trace_only_what_is_asked_for_is_sent(tmp_path):
    rows = 200_000
    trace = make_trace(tmp_path / "long", rows_per_request=1000, requests=200, layers=range(4), experts=64, top_k=4)
    assert len(trace) == rows
    with in_thread(build_page(Sources([tmp_path / "long"]))) as url, Client(base_url=f"{url}/view/") as web:
        assert web.get("api/sources").json()["traces"][0]["rows"] == rows
        assert arrow(web.get("api/traces/long/requests")).num_rows == 200
        assert arrow(web.get("api/traces/long/tokens?start=199000&stop=200000")).num_rows == 1000
        assert refused(web.get("api/traces/long/tokens?start=0&stop=200000"), 413)
        assert web.get("api/traces/long/tokens?stop=2000").num_bytes_downloaded < 1_000_000


def test_cards_made_at_the_same_time_do_not_touch_the_model(tmp_path):
    """The decoded tokens need weights alone, so that cards collide neither with each other nor with a generation."""
    engine, traces = make_site(tmp_path)
    sources = Sources(traces, engine=engine)
    passes, cards = [], {}
    engine.model.register_forward_pre_hook(lambda *_: passes.append(1))

    def make(address):
        trace, decoder = sources.trace("plain"), sources.decoder("plain")
        cards[address] = expert_card(trace, address, decoder=decoder, engine=engine, unembedding=sources.unembedding)

    threads = [threading.Thread(target=make, args=(f"L{layer}.E{expert}",)) for layer in (1, 2) for expert in (1, 4, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cards) == len(threads)
    assert all(card["decoded"] for card in cards.values())
    assert not passes
    alone = expert_card(sources.trace("plain"), "L1.E4", decoder=sources.decoder("plain"), engine=engine)
    assert passes  # without the reading it is made by running the model
    assert cards["L1.E4"]["decoded"] == alone["decoded"]
