"""Operations counted from the configuration are those that torch counts while running."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration, ScMMGPTForPreTraining
from scmmgpt.training.flops import (
    BatchShape,
    cell_encoder_flops,
    language_model_flops,
    qformer_flops,
    stage_1_flops,
)
from scmmgpt.training.meter import shape_of
from scmmgpt.training.settings import TowerSettings


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.fixture
def config(tiny_config):
    config = tiny_config()
    config._attn_implementation = "eager"  # its products of matrices are all visible to the counter
    return config


def test_the_cell_encoder(config, make_cells):
    model, cells = ScMMGPTForPreTraining(config).eval(), make_cells((12, 12, 12))

    expected = cell_encoder_flops(config.cell_config, BatchShape(3, 12))

    assert counted(lambda: model.model.encode_cells(**cells)) == pytest.approx(expected, rel=0.02)


def test_the_qformer_over_cells_and_over_text(config, make_texts):
    qformer = ScMMGPTForPreTraining(config).eval().model.qformer
    states, text = torch.randn(3, 12, 32), make_texts((7, 7, 7))

    over_cells = counted(lambda: qformer(cell_states=states))
    over_text = counted(lambda: qformer(**text))

    assert over_cells == pytest.approx(3 * qformer_flops(config.qformer_config, 12), rel=0.02)
    assert over_text == pytest.approx(
        3 * qformer_flops(config.qformer_config, 12, queries=False, text_tokens=7), rel=0.02
    )


def test_the_language_model(config, make_texts):
    model = ScMMGPTForConditionalGeneration(config).eval()

    measured = counted(lambda: model(**make_texts((7, 7, 7))))

    assert measured == pytest.approx(3 * language_model_flops(config.text_config, 7), rel=0.02)


def test_a_frozen_encoder_costs_a_third_of_one_that_learns(config):
    shape = BatchShape(2, 10)
    learning = stage_1_flops(config, shape, TowerSettings())
    frozen = stage_1_flops(config, shape, TowerSettings(cell_encoder="freeze"))

    assert learning - frozen == pytest.approx(2 * cell_encoder_flops(config.cell_config, shape))


def test_packed_and_padded_batches_have_the_same_shape(make_cells, pack):
    cells = make_cells((12, 7, 9))

    assert shape_of(pack(cells)).num_genes == pytest.approx(shape_of(cells).num_genes)
    assert shape_of(cells).num_cells == shape_of(pack(cells)).num_cells == 3
