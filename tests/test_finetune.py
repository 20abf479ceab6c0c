"""Fine-tuning: your own labels, a complete model as the result, adapters that load onto the base, few cells a type."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tiny_models import tiny_cells, write_tiny_model
from transformers import AutoModel, AutoModelForMultimodalLM, AutoModelForPreTraining, AutoProcessor, pipeline

pytest.importorskip("peft", reason="LoRA comes with PEFT: pip install 'scmmgpt[train]'")

from peft import PeftModel

import scmmgpt
from scmmgpt.errors import UserError
from scmmgpt.training.finetune import RECIPE, BalancedOrder, finetune, split_cells

LABELS = np.array(["glowing cells", "dim cells"])
QUICK = {"max_steps": 2, "disable_tqdm": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def cells():
    adata = tiny_cells(60)
    adata.obs["kind"] = LABELS[adata.obs["leiden"].astype(int)]
    adata.obs["batch"] = np.where(np.arange(60) < 30, "one", "two")
    adata.obs["said"] = "It glows: " + adata.obs["kind"]
    return adata


@pytest.fixture(scope="module")
def finetuned(base, tmp_path_factory):
    """A LoRA run over two labels that no ontology knows."""
    adata = tiny_cells(60)
    adata.obs["kind"] = LABELS[adata.obs["leiden"].astype(int)]
    output = tmp_path_factory.mktemp("finetuned") / "model"
    figures = finetune(
        adata,
        label="kind",
        model=base,
        output=output,
        training={"max_steps": 10, "learning_rate": 0.003, "disable_tqdm": True},
    )
    return output, figures


def cell_inputs(directory):
    return dict(AutoProcessor.from_pretrained(directory)(cells=tiny_cells(8, seed=5)))


def embed(model, inputs):
    return model.eval().get_cell_features(**inputs).pooler_output


def test_the_cells_not_shown_are_named_before_and_after(finetuned):
    _, figures = finetuned

    assert figures["labels"] == 2
    assert figures["cells_shown"] + figures["cells_held_out"] == 60
    assert 0 <= figures["accuracy_before"] <= 1
    assert 0 <= figures["accuracy_after"] <= 1


def test_the_result_is_a_complete_model(finetuned):
    output, _ = finetuned

    generator = AutoModelForMultimodalLM.from_pretrained(output).eval()
    towers, report = AutoModel.from_pretrained(output, output_loading_info=True)

    assert not report["missing_keys"]
    assert generator.config.training_summary["finetuned_labels"] == sorted(LABELS)
    inputs = cell_inputs(output)
    torch.testing.assert_close(embed(towers, inputs), embed(generator, inputs))


def test_the_pipeline_on_the_result_calls_cells_as_annotate_does(finetuned):
    output, _ = finetuned
    cells, labels = tiny_cells(8, seed=5), [*LABELS.tolist(), "T cell", "CD4-positive, alpha-beta T cell"]

    with pytest.warns(UserWarning, match="not in the Cell Ontology"):
        annotated = scmmgpt.annotate(cells, labels, model=output, device="cpu", prior_share=0, progress=False)
    piped = pipeline("cell-annotation", model=str(output), device="cpu", trust_remote_code=True)(cells, labels=labels)

    columns = [name for name in piped.obs if name.startswith("scmmgpt_")]
    assert columns
    pd.testing.assert_frame_equal(
        piped.obs[columns], annotated.obs[columns], check_dtype=False, check_categorical=False
    )
    assert (output / "cell_ontology.json.gz").is_file()


@pytest.mark.parametrize("auto", [AutoModelForPreTraining, AutoModelForMultimodalLM], ids=["stage-1", "stage-2"])
def test_the_adapters_alone_turn_the_base_into_the_result(finetuned, base, auto):
    output, _ = finetuned
    inputs = cell_inputs(output)
    plain = embed(auto.from_pretrained(base), inputs)

    adapted = embed(PeftModel.from_pretrained(auto.from_pretrained(base), output / "adapter").get_base_model(), inputs)

    assert (adapted - plain).abs().max() > 1e-3
    torch.testing.assert_close(adapted, embed(AutoModel.from_pretrained(output), inputs), rtol=1e-4, atol=1e-4)


def test_the_language_model_and_the_decoder_of_the_base_are_kept(finetuned, base):
    output, _ = finetuned
    before, after = (AutoModelForMultimodalLM.from_pretrained(place).state_dict() for place in (base, output))

    kept = [name for name in before if name.startswith(("model.language_model", "lm_head", "cell_decoder"))]
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)


def test_the_cells_given_are_not_changed(base, cells, tmp_path):
    before = cells.copy()

    finetune(cells, label="kind", model=base, output=tmp_path / "out", training=QUICK)

    assert (cells.X != before.X).nnz == 0
    assert cells.obs.equals(before.obs)


def test_full_training_writes_no_adapters(base, cells, tmp_path):
    finetune(cells, label="kind", model=base, output=tmp_path / "out", lora=False, training=QUICK)

    assert not (tmp_path / "out" / "adapter").exists()
    assert not torch.equal(
        embed(AutoModel.from_pretrained(tmp_path / "out"), cell_inputs(base)),
        embed(AutoModel.from_pretrained(base), cell_inputs(base)),
    )


def test_a_recipe_without_adapters_gives_a_model_too(base, cells, tmp_path):
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["towers"] = {"cell_encoder": "freeze", "qformer": "full", "heads": "full"}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))

    finetune(cells, label="kind", model=base, output=tmp_path / "out", recipe=tmp_path / "own.yaml", training=QUICK)

    assert not (tmp_path / "out" / "adapter").exists()
    assert AutoModel.from_pretrained(tmp_path / "out").config.training_summary["finetuned_labels"]


def test_the_labels_of_the_training_are_those_to_choose_from(finetuned):
    output, _ = finetuned

    calls = scmmgpt.annotate(tiny_cells(20), model=output, min_confidence=0, progress=False).obs["scmmgpt_cell_type"]

    assert set(calls) <= set(LABELS)


def test_descriptions_of_your_own_are_learnt_by_the_language_model(base, cells, tmp_path):
    finetune(cells, label="kind", model=base, output=tmp_path / "out", text="said", training=QUICK)

    assert (tmp_path / "out" / "adapter_description").is_dir()
    AutoModelForMultimodalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("shots", [1, 5])
def test_few_shots_show_that_many_cells_of_each_label(shots):
    labels = np.array(["a"] * 20 + ["b"] * 3 + ["c"], dtype=object)

    shown, held_out = split_cells(labels, shots, seed=0)

    assert [int((labels[shown] == name).sum()) for name in "abc"] == [min(shots, size) for size in (20, 3, 1)]
    assert len(shown) + len(held_out) == len(labels)
    assert not set(shown) & set(held_out)


def test_every_batch_shows_a_label_equally_often():
    labels = np.array(["a"] * 90 + ["b"] * 10)
    batches = np.array(["one"] * 80 + ["two"] * 20)

    drawn = np.array(list(BalancedOrder(np.arange(100), labels, batches, 4000, seed=0)))

    assert np.mean(labels[drawn] == "a") == pytest.approx(0.5, abs=0.03)
    assert np.mean(batches[drawn][labels[drawn] == "a"] == "two") == pytest.approx(0.5, abs=0.04)


def test_a_column_that_is_not_there_is_named_with_those_that_are(base, cells, tmp_path):
    with pytest.raises(UserError, match="no column 'celltype'.*kind"):
        finetune(cells, label="celltype", model=base, output=tmp_path / "out")


def test_one_label_is_nothing_to_tell_apart(base, cells, tmp_path):
    cells.obs["kind"] = "same"

    with pytest.raises(UserError, match="at least two"):
        finetune(cells, label="kind", model=base, output=tmp_path / "out")


def test_no_shot_needs_no_training(base, cells, tmp_path):
    with pytest.raises(UserError, match="annotate"):
        finetune(cells, label="kind", model=base, output=tmp_path / "out", shots=0)
