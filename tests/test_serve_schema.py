"""The served OpenAPI holds: whatever a schema-driven tester sends gets an answer that the schema knows."""

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis", reason="pip install schemathesis")
import schemathesis
from hypothesis import HealthCheck, settings
from tiny_repository import make_repository

from scmmgpt.hub_cards.handler import EndpointHandler
from scmmgpt.hub_cards.serve import create_app

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def web_api(tmp_path_factory):
    repository = make_repository(tmp_path_factory.mktemp("repository") / "model")
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(EndpointHandler(str(repository), device="cpu")))


schema = schemathesis.pytest.from_fixture("web_api")


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_that_the_schema_knows(case):
    case.call_and_validate()
