"""Every recipe that ships is run for a few steps, with all that it sets, on stand-ins of the weights that it names."""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from test_conversion import ReferenceScGPT
from transformers import (
    BertTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

pytest.importorskip("trl", reason="stage 2 trains with TRL and PEFT: pip install 'scmmgpt[train]'")

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.modeling_scmmgpt import ScMMGPTQFormer, ScMMGPTQFormerConfig
from scmmgpt.processing.ontology_scmmgpt import read_ontology
from scmmgpt.processing.prompting_scmmgpt import ANNOTATION_QUESTIONS, label_text
from scmmgpt.training import stage1, stage2
from scmmgpt.training.conversion.checkpoints import convert_checkpoint
from scmmgpt.training.corpus.build import build_corpus
from scmmgpt.training.corpus.recipe import CorpusRecipe

RECIPES = Path(stage1.__file__).parent / "recipes"
CELLS = Path(__file__).parent / "data" / "pbmc_facs_300.h5ad"
CELL_WIDTH = 32
LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}

CORPORA = {"corpus_census": "weights/scgpt-whole-human", "tiny_corpus": None, "corpus_dev": None}
STUDIES = [
    "kang_lupus_muscat",
    "pbmc_facs",
    "pancreas_wang",
    "pbmc_10x3tech_symphony",
    "Human_Adult_Liver_HCA",
    "Human_Fetal_Eye_Descartes",
    "Mouse_Adult_Lung_MCA",
    "bare",
]
STARTS = {"tiny_stage2": "tiny_stage1", "paper_stage2_llama2": "paper_stage1", "paper_stage2_qwen3": "paper_stage1"}
RUNS = ["tiny_stage1", "paper_stage1", *STARTS]
ELSEWHERE = {
    "chat": "test_instruction_tuning",
    "eval_dev": "test_evaluate",
    "finetune": "test_finetune",
    "mini": "test_mini",
}
# Numbers alone: what a recipe switches on stays on.
SHORT = {
    "max_steps": 3,
    "warmup_steps": 1,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 4,
    "dataloader_num_workers": 1,
    "eval_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
}
CHANGES = [f"training.{name}={value}" for name, value in SHORT.items()]
STAGES = {
    "1": (stage1.main, ["evaluation.max_cells=8"]),
    "2": (
        stage2.main,
        ["evaluation.max_cells=8", "evaluation.num_generated_texts=4", "evaluation.num_generated_cells=2"],
    ),
}

USE_WITHOUT_PACKAGE = """
    import sys
    sys.modules["scmmgpt"] = None  # a machine where the package is not installed
    import anndata, torch
    from transformers import AutoModel, AutoModelForMultimodalLM, AutoModelForPreTraining, AutoProcessor
    place, cells = sys.argv[1:]
    adata = anndata.read_h5ad(cells)[:2]
    processor = AutoProcessor.from_pretrained(place, trust_remote_code=True)
    for kind in (AutoModel, AutoModelForPreTraining if "stage1" in place else AutoModelForMultimodalLM):
        model, report = kind.from_pretrained(place, trust_remote_code=True, output_loading_info=True)
        assert not report["missing_keys"], report
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        embeds = model.eval().get_cell_features(**processor(cells=adata, return_tensors="pt")).pooler_output
        assert embeds.isfinite().all()
    if kind is AutoModelForMultimodalLM:
        prompt = processor(cells=adata, text="<cell> What is it?", padding=True, return_tensors="pt")
        written = model.generate(**prompt, max_new_tokens=4)
        assert written.shape[1] > prompt["input_ids"].shape[1]
        texts = processor(text=["a B cell"], return_tensors="pt")
        model.generate_cells(texts["input_ids"], texts["attention_mask"], num_cells=1)
    print("all parts work")
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder to run in, where every name of a recipe stands for something small of the same kind."""
    place = tmp_path_factory.mktemp("workplace")
    torch.manual_seed(0)
    write_text_parts(place)
    write_cell_encoder(place)
    write_corpora(place)
    return place


def texts():
    ontology = read_ontology(EMBEDDED_MODEL, EMBEDDED_MODEL)
    known = [label_text(term.label, term.definition) for term in list(ontology.terms.values())[:400]]
    return [*known, *ANNOTATION_QUESTIONS]


def write_text_parts(place):
    """Tokenizers of the kinds that the recipes name, made from local words, and models with their architectures."""
    words = texts()
    bert = BertTokenizer().train_new_from_iterator(iter(words), 500)
    llama = LlamaTokenizer(add_bos_token=True).train_new_from_iterator(iter(words), 500)
    qwen = Qwen2Tokenizer().train_new_from_iterator(iter(words), 600)
    qwen.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|im_end|>"})
    bert.save_pretrained(place / "microsoft" / "BiomedNLP-BiomedBERT-base-uncased-abstract")
    # What `scmmgpt convert bert` makes is as wide as scGPT is, 512, which is slow on a CPU.
    config = ScMMGPTQFormerConfig(**LAYERS, vocab_size=len(bert), encoder_hidden_size=CELL_WIDTH)
    ScMMGPTQFormer(config).save_pretrained(place / "weights" / "pubmedbert-qformer")
    sizes = {**LAYERS, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    llms = {
        "meta-llama/Llama-2-7b-hf": (LlamaForCausalLM, LlamaConfig(**sizes, vocab_size=len(llama)), llama),
        "Qwen/Qwen3-1.7B": (
            Qwen3ForCausalLM,
            Qwen3Config(**sizes, head_dim=8, vocab_size=len(qwen) + 8, tie_word_embeddings=True),
            qwen,
        ),
    }
    for name, (kind, config, tokenizer) in llms.items():
        for token in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(config, token, getattr(tokenizer, token))
        kind(config).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)


def write_cell_encoder(place):
    """A small scGPT, as `scmmgpt convert` reads it."""
    genes = anndata.read_h5ad(CELLS, backed="r").var_names.tolist()
    vocabulary = {name: i for i, name in enumerate([*genes, "<pad>", "<cls>", "<eoc>"])}
    folder = place / "scgpt"
    folder.mkdir()
    torch.save(ReferenceScGPT(len(vocabulary), CELL_WIDTH).state_dict(), folder / "best_model.pt")
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    sizes = {
        "embsize": CELL_WIDTH,
        "d_hid": 48,
        "nlayers": 2,
        "nheads": 4,
        "pad_value": -2,
        "n_bins": 51,
        "dropout": 0.2,
    }
    (folder / "args.json").write_text(json.dumps({**sizes, "max_seq_len": 1200}))
    convert_checkpoint("scgpt", folder, place / "weights" / "scgpt-whole-human")


def write_corpora(place):
    """Cells under the names that the recipes know, some without labels, built as each recipe of a corpus says."""
    (place / "cells").mkdir()
    adata = anndata.read_h5ad(CELLS)
    adata.obs["is_primary_data"] = True
    for number, name in enumerate(STUDIES):
        part = adata[number :: len(STUDIES)].copy()
        if name == "bare":
            part.obs = part.obs.drop(columns=["cell_type", "cell_type_ontology_term_id"])
        part.write_h5ad(place / "cells" / f"{name}.h5ad")
    for name, processor in CORPORA.items():
        recipe = CorpusRecipe.read(RECIPES / f"{name}.yaml")
        if name == "corpus_census":  # one in a hundred studies, of eight, would be none
            recipe = replace(recipe, splits=replace(recipe.splits, held_out={"study": {"validation": ["pbmc_facs"]}}))
        processor = processor and place / processor
        build_corpus(
            [str(place / "cells")], place / "runs" / name, recipe=recipe, processor=processor, say=lambda line: None
        )


@pytest.fixture
def run(workplace, monkeypatch):
    """Run a recipe by its name, in the workplace."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("SCMMGPT_WEIGHTS", "weights")
    monkeypatch.setenv("SCMMGPT_CORPUS", "runs/corpus_census")

    def run(name):
        main, changes = STAGES[name.partition("stage")[2][0]]
        main(["--config", str(RECIPES / f"{name}.yaml"), *CHANGES, *changes])
        return workplace / "runs" / name

    return run


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_recipe_is_left_untried(recipe):
    name = recipe.stem

    assert name in {*RUNS, *CORPORA, *ELSEWHERE}, f"run {recipe.name} here for a few steps, or say which test does"
    assert name not in ELSEWHERE or Path(__file__).with_name(f"{ELSEWHERE[name]}.py").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_trains_saves_and_loads_without_the_package(run, workplace, name):
    if name in STARTS and not (workplace / "runs" / STARTS[name]).exists():
        run(STARTS[name])

    output = run(name)

    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert len([entry for entry in history if np.isfinite(entry.get("loss", np.nan))]) == 3
    assert any(np.isfinite(entry.get("eval_loss", np.nan)) for entry in history)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(USE_WITHOUT_PACKAGE), str(output), str(CELLS)],
        cwd=workplace / "cells",
        capture_output=True,
        text=True,
        env={"PATH": "", "HF_HOME": str(workplace / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert "all parts work" in done.stdout, done.stderr
