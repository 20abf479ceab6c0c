"""The served OpenAPI holds: whatever a schema-driven tester sends gets an answer that the schema knows."""

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis", reason="pip install schemathesis")
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tiny_models import make_repository

from scmmgpt.hub_cards.handler import EndpointHandler
from scmmgpt.hub_cards.serve import create_app

pytestmark = pytest.mark.slow
NUM_REQUESTS = 200  # for each operation


@pytest.fixture(scope="module")
def web_api(tmp_path_factory):
    repository = make_repository(tmp_path_factory.mktemp("repository") / "model")
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(EndpointHandler(str(repository), device="cpu")))


def test_every_answer_is_one_that_the_schema_knows(web_api):
    operations = [result.ok() for result in web_api.get_all_operations()]

    assert operations
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=NUM_REQUESTS, deadline=None, suppress_health_check=list(HealthCheck))
        def every_answer_is_known(case):
            # A schema cannot say which genes are known: a refusal with its reason is an answer too.
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        every_answer_is_known()
