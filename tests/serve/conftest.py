"""The OpenAI client of a test module's server."""

import pytest

from serve.client_suite import client_of


@pytest.fixture(scope="module")
def client(served):
    with client_of(served) as client:
        yield client
