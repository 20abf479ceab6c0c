"""Converted checkpoints compute what the originals compute; everything else is refused in one line."""

import json
import pickle
import re

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    PreTrainedTokenizerFast,
)

from scmmgpt.errors import UserError
from scmmgpt.modeling_scmmgpt import ScMMGPTCellEncoderForMaskedValues, ScMMGPTForConditionalGeneration, ScMMGPTModel
from scmmgpt.processing import ScMMGPTGeneTokenizer
from scmmgpt.training.conversion.checkpoints import convert_checkpoint
from scmmgpt.training.conversion.parts import from_parts

GENES = [f"ENSG{i:011d}" for i in range(30)]


# ---- scGPT


class ReferenceScGPT(nn.Module):
    """scGPT from its paper and torch's own transformer, with the names of its checkpoints."""

    def __init__(self, vocab_size, width=32, heads=4, inner=48, layers=2):
        super().__init__()
        self.encoder = nn.ModuleDict({"embedding": nn.Embedding(vocab_size, width), "enc_norm": nn.LayerNorm(width)})
        self.value_encoder = nn.ModuleDict(
            {"linear1": nn.Linear(1, width), "linear2": nn.Linear(width, width), "norm": nn.LayerNorm(width)}
        )
        layer = nn.TransformerEncoderLayer(width, heads, inner, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        rectifier = nn.LeakyReLU
        self.decoder = nn.ModuleDict(
            {
                "fc": nn.Sequential(
                    nn.Linear(width, width), rectifier(), nn.Linear(width, width), rectifier(), nn.Linear(width, 1)
                )
            }
        )
        self.flag_encoder = nn.Embedding(2, width)
        for weight in self.parameters():  # layers of torch start alike, norms as the identity: tell them apart
            nn.init.normal_(weight, std=0.2)

    def forward(self, gene_ids, values, is_padding):
        genes = self.encoder["enc_norm"](self.encoder["embedding"](gene_ids))
        values = F.relu(self.value_encoder["linear1"](values.clamp(max=512).unsqueeze(-1)))
        values = self.value_encoder["norm"](self.value_encoder["linear2"](values))
        states = self.transformer_encoder(genes + values, src_key_padding_mask=is_padding)
        return states, self.decoder["fc"](states).squeeze(-1)


def with_one_matrix(state):
    """The names of scGPT's flash-attn layers."""
    return {re.sub(r"in_proj_(weight|bias)", r"Wqkv.\1", name): weight for name, weight in state.items()}


@pytest.fixture
def scgpt_folder(tmp_path):
    """A public-looking checkpoint and the model that it came from; special tokens stand behind the genes."""

    def write(rename=dict, **settings):
        folder = tmp_path / "scgpt"
        folder.mkdir()
        vocabulary = {name: i for i, name in enumerate([*reversed(GENES), "<pad>", "<cls>", "<eoc>"])}
        reference = ReferenceScGPT(len(vocabulary)).eval()
        torch.save(rename(reference.state_dict()), folder / "best_model.pt")
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        sizes = {"embsize": 32, "d_hid": 48, "nlayers": 2, "nheads": 4, "pad_value": -2, "n_bins": 51}
        (folder / "args.json").write_text(json.dumps({**sizes, "max_seq_len": 20, **settings}))
        return folder, reference, vocabulary

    return write


@pytest.mark.parametrize("naming", [dict, with_one_matrix], ids=["in_proj", "Wqkv"])
def test_scgpt_weights_give_the_numbers_of_torchs_transformer(scgpt_folder, tmp_path, naming):
    folder, reference, old = scgpt_folder(naming)
    convert_checkpoint("scgpt", folder, tmp_path / "ours")
    model = ScMMGPTCellEncoderForMaskedValues.from_pretrained(tmp_path / "ours")
    new = ScMMGPTGeneTokenizer.from_pretrained(tmp_path / "ours").vocabulary
    names = [["<cls>", *GENES[3:12]], ["<cls>", *GENES[20:25], *["<pad>"] * 4]]
    values = torch.randint(1, 51, (2, 10)).float()
    real = torch.tensor([[name != "<pad>" for name in row] for row in names])
    as_scgpt_reads = torch.where(torch.arange(10) == 0, -2.0, values)
    old_ids, new_ids = (torch.tensor([[ids[name] for name in row] for row in names]) for ids in (old, new))

    states, predictions = reference(old_ids, as_scgpt_reads, ~real)
    output = model(new_ids, values, real.long())

    torch.testing.assert_close(output.last_hidden_state[real], states[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.value_predictions[real], predictions[real], atol=1e-5, rtol=0)


def test_a_converted_scgpt_reads_cells_with_its_own_settings(scgpt_folder, tmp_path):
    folder, _, _ = scgpt_folder()

    convert_checkpoint("scgpt", folder, tmp_path / "ours")

    tokenizer = ScMMGPTGeneTokenizer.from_pretrained(tmp_path / "ours")
    inputs = tokenizer((torch.arange(1, 31).float().numpy()[None], GENES), return_tensors="pt")
    assert (tokenizer.value_mode, tokenizer.num_bins, tokenizer.max_genes) == ("bins", 51, 19)
    assert tokenizer.genes == GENES[::-1]
    assert AutoModel.from_pretrained(tmp_path / "ours")(**inputs).pooler_output.shape == (1, 32)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(lambda s: s.pop("transformer_encoder.layers.1.norm2.bias"), "lack.*final_norm.bias", id="lacks"),
        pytest.param(lambda s: s.update(dsbn=torch.ones(2)), "1 are unknown .dsbn", id="unknown"),
        pytest.param(
            lambda s: s.update({"encoder.enc_norm.bias": torch.ones(7)}), "another size.*gene_norm.bias", id="size"
        ),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused_with_the_names(scgpt_folder, tmp_path, spoil, reason):
    def spoilt(state):
        spoil(state)
        return state

    folder, _, _ = scgpt_folder(spoilt)

    with pytest.raises(UserError, match=reason):
        convert_checkpoint("scgpt", folder, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_is_more_than_tensors_is_refused_and_not_run(scgpt_folder, tmp_path):
    folder, _, _ = scgpt_folder(lambda state: {**state, "extra": RunsCode(tmp_path / "harm")})

    with pytest.raises(UserError, match="more than tensors") as caught:
        convert_checkpoint("scgpt", folder, tmp_path / "ours")

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_a_pickle_of_no_table_of_tensors_is_refused(scgpt_folder, tmp_path):
    folder, _, _ = scgpt_folder(lambda state: {"model": state, "epoch": 3})

    with pytest.raises(UserError, match="is not a state_dict"):
        convert_checkpoint("scgpt", folder, tmp_path / "ours")


def test_values_embedded_in_another_way_are_refused(scgpt_folder, tmp_path):
    folder, _, _ = scgpt_folder(input_emb_style="category")

    with pytest.raises(UserError, match="'category'"):
        convert_checkpoint("scgpt", folder, tmp_path / "ours")


@pytest.mark.parametrize("missing", ["args.json", "vocab.json", "best_model.pt"])
def test_a_missing_file_is_named_with_those_that_are_there(scgpt_folder, tmp_path, missing):
    folder, _, _ = scgpt_folder()
    (folder / missing).unlink()

    with pytest.raises(UserError, match=f"lacks .*{missing.partition('.')[0]}.*it holds"):
        convert_checkpoint("scgpt", folder, tmp_path / "ours")


# ---- BERT


BERT = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,
}


@pytest.fixture
def geneformer_folder(tmp_path):
    def write(specials=("<pad>", "<mask>"), dictionary=None):
        folder = tmp_path / "geneformer"
        tokens = {name: i for i, name in enumerate([*specials, *reversed(GENES)])}
        model = BertForMaskedLM(BertConfig(**BERT, vocab_size=len(tokens))).eval()
        model.save_pretrained(folder)
        (folder / "token_dictionary.pkl").write_bytes(pickle.dumps(tokens if dictionary is None else dictionary))
        (folder / "gene_median_dictionary.pkl").write_bytes(pickle.dumps(dict.fromkeys(GENES, 2.5)))
        return folder, model.bert, tokens

    return write


@pytest.mark.parametrize("specials", [("<pad>", "<mask>"), ("<pad>", "<mask>", "<cls>", "<eos>")], ids=["V1", "V2"])
def test_the_geneformer_route_gives_the_numbers_of_bert(geneformer_folder, tmp_path, tiny_config, specials):
    folder, reference, old = geneformer_folder(specials)
    convert_checkpoint("geneformer", folder, tmp_path / "ours")
    tokenizer = ScMMGPTGeneTokenizer.from_pretrained(tmp_path / "ours")
    config = tiny_config()
    config.cell_config = AutoConfig.from_pretrained(tmp_path / "ours")
    model = ScMMGPTModel(type(config)(cell_config=config.cell_config, qformer_config=config.qformer_config))
    encoder = AutoModel.from_pretrained(tmp_path / "ours", add_pooling_layer=False)
    model.cell_encoder.load_state_dict(encoder.state_dict())
    model.eval()
    counts = torch.rand(3, 30).mul(40).round() * (torch.rand(3, 30) > 0.3)
    inputs = tokenizer((counts.numpy(), GENES), return_tensors="pt")
    names = list(tokenizer.vocabulary)
    old_ids = torch.tensor([[old[names[token]] for token in row] for row in inputs["gene_ids"]])
    mask = inputs["gene_mask"]

    states, _ = model.encode_cells(**inputs)
    expected = reference(input_ids=old_ids, attention_mask=mask).last_hidden_state

    assert tokenizer.add_cls == ("<cls>" in specials)
    assert set(tokenizer.gene_statistics["median"]) == {2.5}
    torch.testing.assert_close(states[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)
    assert model.get_cell_features(**inputs).pooler_output.shape == (3, 256)


def test_a_token_dictionary_that_could_run_code_is_refused_and_not_run(geneformer_folder, tmp_path):
    folder, _, _ = geneformer_folder(dictionary=RunsCode(tmp_path / "harm"))

    with pytest.raises(UserError, match="more than names and numbers.*io.open") as caught:
        convert_checkpoint("geneformer", folder, tmp_path / "ours")

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("with_head", [True, False])
def test_a_qformer_from_bert_reads_text_as_bert_does(tmp_path, make_texts, with_head):
    reference = BertForMaskedLM(BertConfig(**BERT, vocab_size=40)).eval()
    (reference if with_head else reference.bert).save_pretrained(tmp_path / "bert")
    convert_checkpoint("bert", tmp_path / "bert", tmp_path / "ours")
    texts = make_texts()

    output = AutoModel.from_pretrained(tmp_path / "ours")(**texts)
    expected = reference.bert(**texts).last_hidden_state

    real = texts["attention_mask"].bool()
    torch.testing.assert_close(output.text_states[real], expected[real], atol=1e-5, rtol=0)


def test_queries_of_a_qformer_from_bert_start_from_the_texts_feed_forward(tmp_path):
    BertModel(BertConfig(**BERT, vocab_size=40)).save_pretrained(tmp_path / "bert")

    convert_checkpoint("bert", tmp_path / "bert", tmp_path / "ours")

    for layer in AutoModel.from_pretrained(tmp_path / "ours").layers:
        for name, weight in layer.query_feed_forward.named_parameters():
            torch.testing.assert_close(weight, layer.text_feed_forward.get_parameter(name))


@pytest.mark.parametrize("kind", ["bert", "geneformer"])
def test_another_model_type_is_refused(tmp_path, tiny_config, kind):
    AutoModelForCausalLM.from_config(tiny_config("llama").text_config).save_pretrained(tmp_path / "llama")

    with pytest.raises(UserError, match="type 'llama'; expected 'bert'"):
        convert_checkpoint(kind, tmp_path / "llama", tmp_path / "ours")


def test_an_unknown_kind_and_a_missing_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match="Kinds: scgpt, geneformer"):
        convert_checkpoint("scbert", tmp_path, tmp_path / "ours")
    with pytest.raises(UserError, match="no folder"):
        convert_checkpoint("scgpt", tmp_path / "nowhere", tmp_path / "ours")


# ---- parts


@pytest.fixture
def llm_folder(tmp_path, tiny_config):
    def write(text_config):
        words = {name: i for i, name in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, 40))])}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
        fast.save_pretrained(tmp_path / "parts" / "text")
        llm = AutoModelForCausalLM.from_config(text_config).eval()
        llm.save_pretrained(tmp_path / "parts" / "text")
        return tmp_path / "parts", llm

    return write


SMALL = {"vocab_size": 40, "initializer_range": 0.2}
OTHER_LLMS = {
    # Its base has no prefix in old checkpoints.
    "gpt2": {**SMALL, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    # Its head is called `embed_out`.
    "gpt_neox": {
        **SMALL,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}


@pytest.mark.parametrize("name", ["llama", "qwen3", "opt", "gemma", *OTHER_LLMS])
def test_a_joined_llm_says_what_it_said_alone_and_after_a_save(llm_folder, tiny_config, tmp_path, make_texts, name):
    text_config = (
        AutoConfig.for_model(name, **OTHER_LLMS[name]) if name in OTHER_LLMS else tiny_config(name).text_config
    )
    parts, llm = llm_folder(text_config)
    texts = make_texts((7, 7))
    config = tiny_config()

    model, processor = from_parts(parts / "text", config=config)
    model.save_pretrained(tmp_path / "joined")
    loaded = ScMMGPTForConditionalGeneration.from_pretrained(tmp_path / "joined")

    expected = llm(**texts).logits
    assert processor is None
    assert config.cell_token_id == 40
    torch.testing.assert_close(model(**texts).logits[..., :40], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(loaded(**texts).logits[..., :40], expected, atol=1e-5, rtol=0)


def test_all_parts_together_chat_about_cells(llm_folder, scgpt_folder, tiny_config, tmp_path):
    parts, _ = llm_folder(tiny_config().text_config)
    folder, _, _ = scgpt_folder()
    BertModel(BertConfig(**BERT, vocab_size=40)).save_pretrained(tmp_path / "bert")
    convert_checkpoint("scgpt", folder, parts / "cell")
    convert_checkpoint("bert", tmp_path / "bert", parts / "qformer")
    cell = AutoModel.from_pretrained(parts / "cell")
    for file in (parts / "text").glob("*token*"):
        (parts / "qformer" / file.name).write_bytes(file.read_bytes())

    model, processor = from_parts(parts / "text", parts / "cell", parts / "qformer", config=tiny_config())
    counts = torch.randint(0, 9, (2, 30)).float().numpy()
    inputs = processor(cells=(counts, GENES), text=["w7 <cell> w8", "<cell> w9"], return_tensors="pt")

    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 2
    for name, weight in model.model.cell_encoder.named_parameters():
        torch.testing.assert_close(weight, cell.get_parameter(name))


def test_an_llm_with_a_bias_on_its_logits_is_refused(llm_folder, tiny_config):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    parts, _ = llm_folder(AutoConfig.for_model("phi", **SMALL, **sizes))

    with pytest.raises(ValueError, match="phi has a bias in its `lm_head`"):
        from_parts(parts / "text", config=tiny_config())


def test_an_llm_that_caps_its_logits_is_refused(llm_folder, tiny_config):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model("gemma2", **SMALL, **sizes, head_dim=8, final_logit_softcapping=0.5)
    parts, _ = llm_folder(config)

    with pytest.raises(ValueError, match="gemma2 applies a function to its logits"):
        from_parts(parts / "text", config=tiny_config())
