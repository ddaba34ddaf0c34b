"""What the page's endpoints answer, read for tests, and what tests ask them for."""

import io
import json

import pyarrow as pa

PROBE = "language/fr"
PICKS = [{"op": "demote", "experts": ["L0.E1", "L1.E2"]}, {"op": "mask", "experts": ["L2.E3"], "refill": False}]


def arrow(answer):
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
    return pa.ipc.open_stream(io.BytesIO(answer.content)).read_all()


def refused(answer, status):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["message"]


def events(answer):
    """Return the events of a stream, which was read whole."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(event.removeprefix("data: ")) for event in answer.text.split("\n\n") if event]
