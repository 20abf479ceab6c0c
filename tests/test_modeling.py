"""Stage 2 over several LLMs: what transformers, PEFT and a user may rely on, whichever causal LM it is."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    modeling_utils,
)

from scmmgpt.modeling_scmmgpt import (
    ScMMGPTConfig,
    ScMMGPTForConditionalGeneration,
    ScMMGPTForPreTraining,
    ScMMGPTModel,
)

LLMS = ["llama", "qwen3", "opt", "gemma", "mistral"]
CELL = [5, 5, 5, 5]
GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
LORA_ON_LLM = r".*language_model.*\.(q_proj|v_proj)"


@pytest.fixture
def build(tiny_config):
    def model(name="llama", **config):
        return ScMMGPTForConditionalGeneration(tiny_config(name, **config)).eval()

    return model


def pad_left(prompts):
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def chat(make_cells):
    """Three prompts of different lengths with two, one and no cell, interleaved with words."""
    prompts = [[6, *CELL, 7, *CELL, 8], [9, 10, *CELL, 11, 12, 13], [14, 15]]
    return prompts, {**pad_left(prompts), **make_cells((12, 7, 9))}


def of_prompt(chat, i):
    """One prompt with its own cells alone."""
    prompts, inputs = chat
    first = sum(prompt.count(5) for prompt in prompts[:i]) // 4
    number = prompts[i].count(5) // 4
    cells = {name: inputs[name][first : first + number] for name in ("gene_ids", "gene_values", "gene_mask")}
    return {**pad_left([prompts[i]]), **(cells if number else {})}


# ---- the shared suite


@pytest.mark.parametrize("name", LLMS)
def test_a_batch_writes_what_each_prompt_writes_alone(build, chat, name):
    model, (prompts, inputs) = build(name), chat

    together = model.generate(**inputs, **GREEDY)[:, -6:]

    for i in range(len(prompts)):
        torch.testing.assert_close(model.generate(**of_prompt(chat, i), **GREEDY)[0, -6:], together[i])


@pytest.mark.parametrize("name", LLMS)
def test_beams_of_a_batch_are_the_beams_of_each_prompt_alone(build, chat, name):
    model, (prompts, inputs) = build(name), chat
    beams = {**GREEDY, "num_beams": 3, "num_return_sequences": 2}

    together = model.generate(**inputs, **beams)[:, -6:].view(3, 2, 6)

    for i in range(len(prompts)):
        torch.testing.assert_close(model.generate(**of_prompt(chat, i), **beams)[:, -6:], together[i])


@pytest.mark.parametrize("name", LLMS)
def test_with_and_without_a_cache_the_text_is_the_same(build, chat, name):
    model, (_, inputs) = build(name), chat

    with_cache = model.generate(**inputs, **GREEDY)

    torch.testing.assert_close(model.generate(**inputs, **GREEDY, use_cache=False), with_cache)
    torch.testing.assert_close(model.generate(**inputs, **GREEDY, cache_implementation="static"), with_cache)


@pytest.mark.parametrize("name", LLMS)
def test_the_cells_decide_what_is_written(build, chat, make_cells, name):
    model, (_, inputs) = build(name), chat
    others = {**inputs, **make_cells((12, 7, 9), seed=1)}

    logits, other_logits = model(**inputs).logits, model(**others).logits

    assert (logits[:2, -1] - other_logits[:2, -1]).abs().amax(-1).min() > 1e-3
    torch.testing.assert_close(logits[2, -1], other_logits[2, -1])  # it has no cell


@pytest.mark.parametrize("name", LLMS)
def test_saved_and_loaded_says_the_same_in_shards_too(build, chat, tmp_path, name):
    model, (_, inputs) = build(name), chat
    model.save_pretrained(tmp_path, max_shard_size="40KB")

    loaded, info = AutoModelForMultimodalLM.from_pretrained(tmp_path, output_loading_info=True)

    assert type(loaded) is ScMMGPTForConditionalGeneration
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)
    head, words = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
    assert (head is words) == loaded.config.tie_word_embeddings


@pytest.mark.parametrize("name", LLMS)
def test_lora_with_new_token_rows_is_trained_saved_and_merged(build, chat, tmp_path, name):
    model, (_, inputs) = build(name), chat
    model.save_pretrained(tmp_path / "base")
    model.resize_token_embeddings(42, mean_resizing=False)
    new_rows = {"embed_tokens": [40, 41]}
    if not model.config.tie_word_embeddings:
        new_rows["lm_head"] = [40, 41]
    lora = LoraConfig(r=4, target_modules=LORA_ON_LLM, trainable_token_indices=new_rows, init_lora_weights=False)
    tuned = get_peft_model(model, lora)
    new_words = torch.tensor([[41, 40]]).expand(3, -1)
    inputs = {
        **inputs,
        "input_ids": torch.cat([inputs["input_ids"], new_words], dim=1),
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, 2), value=1),
    }
    inputs["labels"] = inputs["input_ids"].where(inputs["input_ids"] == 40, -100)
    before = {name: weight.detach().clone() for name, weight in tuned.named_parameters()}
    optimizer = torch.optim.AdamW([w for w in tuned.parameters() if w.requires_grad], lr=1e-2, weight_decay=0.0)

    tuned(**inputs).loss.backward()
    optimizer.step()

    moved = {name for name, weight in tuned.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert any("trainable_tokens" in name for name in moved)
    assert not any(part in name for name in moved for part in ("cell_encoder", "qformer"))

    tuned.eval().save_pretrained(tmp_path / "adapter")
    base = ScMMGPTForConditionalGeneration.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(42, mean_resizing=False)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    expected = tuned(**inputs).logits
    for token in (40, 41):
        torch.testing.assert_close(
            loaded.get_input_embeddings()(torch.tensor(token)), tuned.get_input_embeddings()(torch.tensor(token))
        )
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-4, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    again = ScMMGPTForConditionalGeneration.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again(**inputs).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", LLMS)
def test_the_loss_reads_the_answer_alone(build, chat, name):
    model, (_, inputs) = build(name), chat
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[1, -1] = 13

    output = model(**inputs, labels=labels)

    expected = torch.nn.functional.cross_entropy(output.logits[1, -2], torch.tensor(13))
    torch.testing.assert_close(output.language_loss, expected)
    torch.testing.assert_close(output.loss, expected)
    assert output[0] is output.loss


# ---- what trains


def batch_of_both_directions(chat, make_texts):
    texts = make_texts((7, 4, 6))
    counts = torch.randint(0, 9, (3, 58))
    return {
        **chat[1],
        "labels": chat[1]["input_ids"],
        "cell_prompt_ids": texts["input_ids"],
        "cell_prompt_mask": texts["attention_mask"],
        "target_gene_ids": torch.arange(2, 60),
        "target_counts": counts,
    }


# Stage 1 trains these; stage 2 embeds no text with the Q-Former.
STAGE_1_ONLY = (
    "text_feed_forward",
    "word_embeddings",
    "position_embeddings",
    "_projection",
    "match_head",
    "logit_scale",
)


@pytest.mark.parametrize("llm", ["full", "frozen"])
def test_in_stage_2_every_weight_that_should_moves_and_no_other(build, chat, make_texts, llm):
    model = build(decoder={"text_dropout": 0.5}).train()
    model.model.language_model.requires_grad_(llm == "full")
    should_stay = [name for name, _ in model.named_parameters() if any(part in name for part in STAGE_1_ONLY)]
    should_stay += [name for name, weight in model.named_parameters() if not weight.requires_grad]
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    for _ in range(4):
        optimizer.zero_grad()
        model(**batch_of_both_directions(chat, make_texts)).loss.backward()
        optimizer.step()

    stayed = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
    # Keys are invariant to their bias, and so are shares to a bias that all genes have in common.
    assert {name for name in stayed if not name.endswith("k_proj.bias")} <= set(should_stay)
    assert set(should_stay) <= stayed


def test_checkpointed_activations_give_the_same_gradients(build, chat):
    still = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    model, inputs = build(cell={"hidden_dropout": 0.0}, qformer=still).train(), chat[1]
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    model.activation_checkpointing_enable()

    model(**inputs, labels=inputs["input_ids"]).loss.backward()

    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, msg=name)


# ---- checkpoints across stages


class RecordingFile:
    """A safetensors file that remembers which tensors were read."""

    read: list[str] = []

    def __init__(self, *args, **kwargs):
        self.file = safe_open(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def get_tensor(self, name):
        self.read.append(name)
        return self.file.get_tensor(name)

    def get_slice(self, name):
        return RecordingSlice(name, self.file.get_slice(name))


class RecordingSlice:
    def __init__(self, name, slice_):
        self.name, self.slice = name, slice_

    def __getattr__(self, name):
        return getattr(self.slice, name)

    def __getitem__(self, where):
        RecordingFile.read.append(self.name)
        return self.slice[where]


def test_automodel_loads_the_towers_of_a_stage_2_checkpoint_without_its_llm(build, make_cells, tmp_path, monkeypatch):
    model, cells = build(), make_cells()
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(modeling_utils, "safe_open", RecordingFile)
    RecordingFile.read.clear()

    towers, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)

    assert type(towers) is ScMMGPTModel
    assert not any(info.values())
    assert sorted(RecordingFile.read) == sorted(f"model.{name}" for name in towers.state_dict())
    expected = model.get_cell_features(**cells).pooler_output
    torch.testing.assert_close(towers.get_cell_features(**cells).pooler_output, expected)


@pytest.mark.parametrize("larger", [ScMMGPTForPreTraining, ScMMGPTForConditionalGeneration])
def test_towers_of_every_checkpoint_load_into_every_class(tiny_config, make_cells, tmp_path, larger):
    cells = make_cells()
    model = larger(tiny_config()).eval()
    expected = model.get_cell_features(**cells).pooler_output
    model.save_pretrained(tmp_path)

    for smaller in (ScMMGPTModel, ScMMGPTForPreTraining, ScMMGPTForConditionalGeneration):
        loaded, info = smaller.from_pretrained(tmp_path, output_loading_info=True)
        towers = ("cell_encoder.", "qformer.", "match_head.", "projection.", "logit_scale")
        assert not [key for key in info["missing_keys"] if key.removeprefix("model.").startswith(towers)]
        assert not info["unexpected_keys"]
        torch.testing.assert_close(loaded.get_cell_features(**cells).pooler_output, expected)


def test_a_missing_weight_is_named(build, tmp_path, caplog):
    build().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.qformer.layers.1.query_feed_forward.linear1.weight"]
    save_file({**weights, "model.stranger": torch.ones(2)}, tmp_path / "model.safetensors", {"format": "pt"})

    _, info = AutoModelForMultimodalLM.from_pretrained(tmp_path, output_loading_info=True)

    assert set(info["missing_keys"]) == {"model.qformer.layers.1.query_feed_forward.linear1.weight"}
    assert set(info["unexpected_keys"]) == {"model.stranger"}


# ---- what is refused, and what else it can


def test_too_few_cells_are_refused_with_both_numbers(build, chat):
    inputs = {**chat[1], **{name: chat[1][name][:2] for name in ("gene_ids", "gene_values", "gene_mask")}}

    with pytest.raises(ValueError, match="12 <cell> placeholder tokens.*3 cells of 4 tokens, but 2 cells"):
        build()(**inputs)


def test_with_the_shortcut_a_new_model_embeds_a_cell_by_its_summary_and_queries_start_from_it(tiny_config, make_cells):
    config = tiny_config(cell={"num_pooled_tokens": 2, "pooled_shortcut": True}, qformer={"num_hidden_layers": 0})
    model, cells = ScMMGPTModel(config).eval(), make_cells()
    summary = model.cell_encoder.pool(**cells)

    features = model.get_cell_features(**cells)

    torch.testing.assert_close(
        features.pooler_output, torch.nn.functional.normalize(model.project_summary(summary), dim=-1)
    )
    tokens = model.qformer.embeddings.query_tokens + model.qformer.embeddings.summary_in(summary.flatten(1))[:, None]
    torch.testing.assert_close(features.last_hidden_state, model.qformer.embeddings.norm(tokens))


@pytest.mark.parametrize(("call", "options"), [("forward", {}), ("generate", {"max_new_tokens": 1})])
def test_placeholders_without_any_cell_are_refused(build, call, options):
    with pytest.raises(ValueError, match="4 <cell> placeholder tokens.*1 cells, but 0 cells"):
        getattr(build(), call)(**pad_left([[6, *CELL, 7]]), **options)


@pytest.mark.parametrize("as_embeddings", [False, True])
def test_a_model_whose_llm_has_no_word_for_cells_reads_text_alone(build, as_embeddings):
    model, text = build(), pad_left([[6, 7, 8]])
    model.config.cell_token_id = None
    if as_embeddings:
        text["inputs_embeds"] = model.get_input_embeddings()(text.pop("input_ids"))

    assert model(**text).logits.shape == (1, 3, model.config.text_config.vocab_size)


def test_cells_for_a_model_whose_llm_has_no_word_for_them_are_refused(build, make_cells):
    model = build()
    model.config.cell_token_id = None

    with pytest.raises(ValueError, match="0 <cell> placeholder tokens.*0 cells of 4 tokens, but 1 cells"):
        model(**pad_left([[6, 7, 8]]), **make_cells((9,)))


@pytest.mark.parametrize("model_class", [ScMMGPTModel, ScMMGPTForPreTraining])
def test_a_class_without_an_llm_has_no_generate(tiny_config, model_class):
    model = model_class(tiny_config())

    assert not hasattr(model, "generate")
    assert not model.can_generate()


@pytest.mark.parametrize("name", LLMS)
def test_the_head_names_the_words_that_it_is_tied_to(build, name):
    model = build(name)

    (target, source), *_ = model._tied_weights_keys.items()

    assert model.get_parameter(target) is model.get_output_embeddings().weight
    assert model.get_parameter(source) is model.get_input_embeddings().weight
    assert ScMMGPTForConditionalGeneration._tied_weights_keys == {
        "lm_head.weight": "model.language_model.embed_tokens.weight"
    }


def test_trl_finds_what_it_asks_of_a_multimodal_model(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)

    assert model.config.image_token_id == model.config.cell_token_id  # GRPO, RLOO and distillation never sample it
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is ScMMGPTForConditionalGeneration


def test_an_encoder_decoder_is_refused(tiny_config):
    config = tiny_config()
    config.text_config = AutoConfig.for_model("t5")

    with pytest.raises(ValueError, match="t5 is an encoder-decoder"):
        ScMMGPTForConditionalGeneration(config)


@pytest.mark.parametrize("field", ["projection_dims", "cell_configs", "contrast_weigth"])
def test_a_misspelt_field_of_the_config_is_refused(field):
    with pytest.raises(ValueError, match="Did you mean `(projection_dim|cell_config|contrast_weight)`"):
        ScMMGPTConfig(**{field: 1})


def test_embeddings_can_be_resized_and_saved(build, chat, tmp_path):
    model = build()
    model.resize_token_embeddings(50)

    model.save_pretrained(tmp_path)

    loaded = ScMMGPTForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded(**chat[1]).logits.shape[-1] == loaded.config.text_config.vocab_size == 50


def test_embeddings_of_prompts_may_take_the_place_of_their_ids(build, chat):
    model, inputs = build(), dict(chat[1])
    expected = model.generate(**inputs, **GREEDY, num_beams=2)[:, -6:]
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))

    torch.testing.assert_close(model.generate(**inputs, **GREEDY, num_beams=2), expected)


def test_packed_cells_and_several_samples_of_a_prompt_go_together(build, chat, pack):
    model, (_, inputs) = build(), chat
    cells = ("gene_ids", "gene_values", "gene_mask")
    packed = {name: value for name, value in inputs.items() if name not in cells}
    packed |= pack({name: inputs[name] for name in cells})

    expected = model.generate(**inputs, **GREEDY, num_beams=2)

    torch.testing.assert_close(model.generate(**packed, **GREEDY, num_beams=2), expected)


def test_a_placeholder_is_never_written(build, chat):
    model, (_, inputs) = build(), chat
    with torch.no_grad():
        model.lm_head.weight[5] = model.lm_head.weight[5] * 0 + 100 * torch.randn(32)

    written = model.generate(**inputs, do_sample=True, max_new_tokens=20, use_cache=False)
    written = written[:, inputs["input_ids"].shape[1] :]  # fewer than 20 where every prompt ends its text

    assert not (written == 5).any()


def test_layers_of_all_parts_are_known_to_those_who_wrap_and_split(build):
    model = build()

    assert {"LlamaDecoderLayer", "ScMMGPTCellLayer", "ScMMGPTQFormerLayer"} <= set(model._no_split_modules)
    assert model._tp_plan["model.language_model.layers.*.self_attn.q_proj"] == "colwise"
    assert "lm_head" in model._tp_plan


def test_a_device_map_may_leave_the_llm_on_disk(build, chat, tmp_path):
    model, (_, inputs) = build(), chat
    model.save_pretrained(tmp_path / "model")
    places = {f"model.{name}": "cpu" for name, _ in model.model.named_children()}
    places |= {"model.logit_scale": "cpu", "lm_head": "cpu", "cell_decoder": "cpu", "model.language_model": "disk"}

    # transformers wants a place for the parameter too, and then says that it is no module
    with pytest.warns(UserWarning, match=r"do not match any submodules in the model: \['model.logit_scale'\]"):
        placed = ScMMGPTForConditionalGeneration.from_pretrained(
            tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded"
        )

    assert placed.model.language_model.layers[0].self_attn.q_proj.weight.is_meta
    torch.testing.assert_close(placed(**inputs).logits, model(**inputs).logits)


def test_half_precision_gives_unit_embeddings_in_float32(build, make_cells):
    embeds = build().to(torch.bfloat16).get_cell_features(**make_cells()).pooler_output

    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(3))
