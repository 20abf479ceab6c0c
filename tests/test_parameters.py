"""Parameter counts at the size of the paper, against a sum by hand."""

from scmmgpt.training.parameters import count_parameters, paper_config


def linear(inputs, outputs, bias=True):
    return inputs * outputs + outputs * bias


def norm(width):
    return 2 * width


def attention(width, key_value_width=None):
    key_value_width = key_value_width or width
    return 2 * linear(width, width) + 2 * linear(key_value_width, width)


def test_counts_at_paper_size_match_a_sum_by_hand():
    genes, width, words, text = 60_697, 512, 30_522, 768

    counts = count_parameters(paper_config())

    gene_embeddings = genes * width + norm(width)
    value_encoder = linear(1, width) + linear(width, width) + norm(width)
    layer = attention(width) + 2 * linear(width, width) + 2 * norm(width)
    assert counts["cell_encoder"] == gene_embeddings + value_encoder + 12 * layer

    feed_forward = linear(text, 3072) + linear(3072, text) + norm(text)
    layer = attention(text) + norm(text) + 2 * feed_forward
    looks_at_cell = attention(text, width) + norm(text)
    embeddings = (words + 512 + 32) * text + norm(text)
    assert counts["qformer"] == embeddings + 12 * layer + 6 * looks_at_cell

    llama = 32_001 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 11_008 + 2 * 4096) + 4096
    assert counts["language_model"] == llama
    assert counts["lm_head"] == 32_001 * 4096
    assert counts["cell_projection"] == counts["text_projection"] == linear(text, 256)
    assert counts["cell_token_projector"] == linear(text, 256) + linear(256, 4096)
    assert counts["total"] == sum(count for part, count in counts.items() if part != "total")


def test_tied_weights_count_once(tiny_config):
    untied = count_parameters(tiny_config("llama"))
    tied = count_parameters(tiny_config("llama", text={"tie_word_embeddings": True}))

    assert untied["total"] - tied["total"] == untied["lm_head"] == 40 * 32
    assert "lm_head" not in tied
