"""Which of transformers' own tests are skipped, which are slow, and the marks that they bring along."""

from pathlib import Path

import pytest
from transformers_suite.skips import reason_to_skip

THEIR_MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_mps_test",
    "is_tensor_parallel_test",
    "is_training_test",
    "torch_compile_test",
)
# Of the tests of models, what runs on every change; configs and processor always do.
QUICK = (
    "test_save_load",
    "test_model_outputs_equivalence",
    "test_hidden_states_output",
    "test_attention_outputs",
    "test_resize_tokens_embeddings",
    "test_tied_weights_keys",
    "test_batching_equivalence",
    "test_can_be_initialized_on_meta",
)


def pytest_configure(config):
    for mark in THEIR_MARKS:
        config.addinivalue_line("markers", f"{mark}: one of transformers' own")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent != Path(__file__).parent or item.cls is None:
            continue
        # Their warnings are theirs; ours stay errors.
        item.add_marker(pytest.mark.filterwarnings("error:::scmmgpt"))
        item.add_marker(pytest.mark.filterwarnings("default"))
        if reason := reason_to_skip(item.cls.__name__, item.name):
            item.add_marker(pytest.mark.skip(reason=reason))
        if item.path.name == "test_models.py" and item.name not in QUICK:
            item.add_marker(pytest.mark.slow)
