"""A recipe is one yaml file; what it says is checked before anything runs."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from transformers import TrainingArguments
from trl import SFTConfig

import scmmgpt.training
from scmmgpt.errors import UserError
from scmmgpt.training.corpus.recipe import CorpusRecipe
from scmmgpt.training.eval_suite import Suite
from scmmgpt.training.mini.recipe import MiniRecipe
from scmmgpt.training.run import check_trackers, training_arguments
from scmmgpt.training.settings import Stage1Settings, Stage2Settings, read_recipe
from scmmgpt.training.strict_yaml import RecipeError, read_settings

RECIPES = Path(scmmgpt.training.__file__).parent / "recipes"
MINIMAL = "output: out\ndata: {corpus: somewhere}\n"
STAGES = {"1": Stage1Settings, "2": Stage2Settings}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_recipe_needs_only_an_output_and_a_corpus(tmp_path):
    settings = read_recipe(write(tmp_path / "r.yaml", MINIMAL), Stage1Settings)

    assert settings.output == "out"
    assert settings.data.corpus == "somewhere"
    assert settings.towers.qformer == "full"


@pytest.mark.parametrize(
    ("line", "nearest"),
    [
        pytest.param("evalution: {}", "evaluation", id="section"),
        pytest.param("lora: {rnk: 4}", "rank", id="key-of-a-section"),
        pytest.param("towers: {q_former: full}", "qformer", id="tower"),
    ],
)
def test_a_key_that_does_not_exist_is_refused_with_the_nearest_real_name(tmp_path, line, nearest):
    recipe = write(tmp_path / "r.yaml", MINIMAL + line)

    with pytest.raises(RecipeError, match=f"does not exist. Did you mean `{nearest}`"):
        read_recipe(recipe, Stage1Settings)


def test_a_value_of_the_wrong_type_is_named_with_its_place(tmp_path):
    recipe = write(tmp_path / "r.yaml", MINIMAL + "lora: {rank: many}")

    with pytest.raises(RecipeError, match=r"`lora\.rank`.*'many'"):
        read_recipe(recipe, Stage1Settings)


@pytest.mark.parametrize(
    ("stage", "line", "key", "owner"),
    [
        pytest.param("2", "mask_share: 0.1", "mask_share", "stage 1", id="section"),
        pytest.param("1", "model: {language_model: x}", "model.language_model", "stage 2", id="model"),
        pytest.param("1", "towers: {cell_decoder: full}", "towers.cell_decoder", "stage 2", id="tower"),
        pytest.param("1", "learning_rates: {cell_decoder: 1.0}", "learning_rates.cell_decoder", "stage 2", id="rate"),
        pytest.param("1", "training: {packing: true}", "training.packing", "stage 2", id="trainer"),
        *(
            pytest.param("1", f"data: {{corpus: x, {key}: 1}}", f"data.{key}", "stage 2", id=key)
            for key in ("unlabelled_share", "cells_to_text", "text_to_cells", "num_target_genes")
        ),
        *(
            pytest.param("1", f"evaluation: {{{key}: 1}}", f"evaluation.{key}", "stage 2", id=key)
            for key in ("num_generated_texts", "num_generated_cells")
        ),
    ],
)
def test_a_key_of_the_other_stage_is_refused_and_the_stage_named(tmp_path, stage, line, key, owner):
    minimal = "output: out\n" if line.startswith("data") else MINIMAL
    recipe = write(tmp_path / "r.yaml", minimal + line)

    with pytest.raises(RecipeError, match=rf"r\.yaml(.|\n)*`{key}` is a key of {owner}"):
        read_recipe(recipe, STAGES[stage])


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("value_mode: nonsense", "`model.gene_tokenizer.value_mode`.*'rank'"),
        ("value_mode: count", "Did you mean `counts`"),
        ("value_mod: rank", "`model.gene_tokenizer.value_mod` does not exist. Did you mean `value_mode`"),
        ("max_genes: many", "`model.gene_tokenizer.max_genes`.*'many'"),
        ("genes: [A]", "`model.gene_tokenizer.genes` does not exist"),
    ],
)
def test_what_the_gene_tokenizer_does_not_take_is_refused_with_file_and_key(tmp_path, stage, line, says):
    recipe = write(tmp_path / "r.yaml", MINIMAL + f"model: {{gene_tokenizer: {{{line}}}}}")

    with pytest.raises(RecipeError, match=rf"r\.yaml(.|\n)*{says}"):
        read_recipe(recipe, stage)


@pytest.mark.parametrize(
    ("kind", "published", "line", "place", "nearest"),
    [
        pytest.param(
            CorpusRecipe, "corpus_dev", "tokens: {value_mod: rank}", "tokens.value_mod", "value_mode", id="corpus"
        ),
        pytest.param(
            CorpusRecipe, "corpus_dev", "sources: {a: {wieght: 2}}", "sources.a.wieght", "weight", id="source"
        ),
        pytest.param(
            CorpusRecipe, "corpus_dev", "splits: {held_out: {stdy: {}}}", "splits.held_out.stdy", "study", id="split"
        ),
        pytest.param(
            Suite, "eval_dev", "parts: [{name: a, studies: [{fil: b}]}]", "parts.0.studies.0.fil", "file", id="suite"
        ),
        pytest.param(Suite, "eval_dev", "tasks: [anotation]", "tasks.0", "annotation", id="task"),
        pytest.param(MiniRecipe, "mini", "simulator: {cell_nois: 1}", "simulator.cell_nois", "cell_noise", id="mini"),
        pytest.param(
            MiniRecipe, "mini", "sources: [{file: a, license: b}]", "sources.0.license", "licence", id="mini-source"
        ),
    ],
)
def test_every_recipe_is_read_by_the_same_strict_reader(tmp_path, kind, published, line, place, nearest):
    content = yaml.safe_load((RECIPES / f"{published}.yaml").read_text()) | yaml.safe_load(line)
    recipe = write(tmp_path / "r.yaml", yaml.safe_dump(content))

    with pytest.raises(RecipeError, match=rf"r\.yaml(.|\n)*`{place}(.|\n)*Did you mean `{nearest}`"):
        read_settings(recipe, kind)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    recipe = write(tmp_path / "r.yaml", MINIMAL + "training: {learning_rate: 1e-3}")

    assert read_recipe(recipe, Stage1Settings).training == {"learning_rate": 0.001}


def test_a_trainers_argument_of_the_wrong_type_is_named_with_its_place(tmp_path):
    recipe = write(tmp_path / "r.yaml", MINIMAL + "training: {max_steps: many}")

    with pytest.raises(RecipeError, match=r"`training\.max_steps`.*'many'"):
        read_recipe(recipe, Stage1Settings)


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(RecipeError, match="`output` is missing"):
        read_recipe(write(tmp_path / "r.yaml", "data: {corpus: x}"), Stage1Settings)


def test_changes_from_the_command_line_win(tmp_path):
    recipe = write(tmp_path / "r.yaml", MINIMAL)

    settings = read_recipe(recipe, Stage1Settings, ["training.max_steps=3", "lora.rank=2", "data.sources=[a, b]"])

    assert settings.training == {"max_steps": 3}
    assert settings.lora.rank == 2
    assert settings.data.sources == ["a", "b"]


def test_environment_variables_are_filled_in_and_asked_for_by_name(tmp_path, monkeypatch):
    recipe = write(tmp_path / "r.yaml", "output: ${SOME_PLACE}/out\ndata: {corpus: x}")
    with pytest.raises(RecipeError, match="SOME_PLACE"):
        read_recipe(recipe, Stage1Settings)

    monkeypatch.setenv("SOME_PLACE", "/data")

    assert read_recipe(recipe, Stage1Settings).output == "/data/out"


def test_learning_rates_are_for_towers_that_exist(tmp_path):
    with pytest.raises(RecipeError, match="`learning_rates.decoder` does not exist"):
        read_recipe(write(tmp_path / "r.yaml", MINIMAL + "learning_rates: {decoder: 1.0e-3}"), Stage1Settings)


def test_a_missing_recipe_says_where_recipes_lie(tmp_path):
    with pytest.raises(RecipeError, match="training/recipes"):
        read_recipe(tmp_path / "none.yaml", Stage1Settings)


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*stage*.yaml")), ids=lambda path: path.stem)
def test_every_published_recipe_can_be_read(recipe, monkeypatch):
    monkeypatch.setenv("SCMMGPT_DATA", "/data")
    monkeypatch.setenv("SCMMGPT_CORPUS", "/corpus")
    monkeypatch.setenv("SCMMGPT_WEIGHTS", "/weights")

    stage = STAGES[recipe.stem.partition("stage")[2][0]]

    assert isinstance(read_recipe(recipe, stage), stage)


def test_attention_is_flash_where_a_gpu_runs_half_precision_and_sdpa_elsewhere():
    from scmmgpt.training.assembly import attention_for

    assert attention_for(half_precision_gpu=False, has_flash_attn=True) == "sdpa"
    assert attention_for(half_precision_gpu=True, has_flash_attn=False)["cell_config"] == "torch_varlen"
    assert attention_for(half_precision_gpu=True, has_flash_attn=True)["cell_config"] == "flash_attention_2"


def test_a_bare_no_means_never_as_the_trainer_spells_it(tmp_path):
    recipe = write(tmp_path / "r.yaml", MINIMAL + "training: {eval_strategy: no}")

    arguments = training_arguments(read_recipe(recipe, Stage1Settings), TrainingArguments)

    assert arguments.eval_strategy == "no"


def test_a_value_that_the_trainer_does_not_know_is_refused_in_one_line(tmp_path):
    recipe = write(tmp_path / "r.yaml", MINIMAL + "training: {save_strategy: sometimes}")

    with pytest.raises(RecipeError, match="`training` of the recipe: sometimes is not a valid"):
        training_arguments(read_recipe(recipe, Stage1Settings), TrainingArguments)


@pytest.mark.parametrize("part", ["cell_encoder: a", "qformer: a", "tokenizer: a", "qformer_tokenizer: a"])
@pytest.mark.parametrize("kind", [Stage1Settings, Stage2Settings])
def test_a_part_that_the_starting_checkpoint_brings_is_never_ignored(kind, part, tmp_path):
    recipe = write(tmp_path / "r.yaml", MINIMAL + f"model: {{start_from: runs/before, {part}}}")

    with pytest.raises(RecipeError, match=rf"r\.yaml.*\n.*`model`.* {part.split(':')[0]} of its own"):
        read_recipe(recipe, kind)


@pytest.mark.parametrize("kind", [TrainingArguments, SFTConfig])
@pytest.mark.parametrize("value", [True, False])
def test_the_former_name_of_a_training_argument_is_read_with_a_warning(kind, value, tmp_path):
    recipe = write(tmp_path / "r.yaml", MINIMAL + f"training: {{gradient_checkpointing: {value}}}")

    with pytest.warns(FutureWarning, match="Use `activation_checkpointing` instead"):
        arguments = training_arguments(read_recipe(recipe, Stage1Settings), kind)

    assert arguments.activation_checkpointing is value


@pytest.mark.parametrize("kind", [TrainingArguments, SFTConfig])
def test_activation_checkpointing_is_as_each_trainer_has_it_and_nothing_is_said(kind, tmp_path):
    arguments = training_arguments(read_recipe(write(tmp_path / "r.yaml", MINIMAL), Stage1Settings), kind)

    assert arguments.activation_checkpointing is (kind is SFTConfig)


@pytest.mark.parametrize(
    ("tracker", "reason"),
    [
        ("trakio", "did you mean 'trackio'"),
        ("<script>", "there is no tracker"),
        (["tensorboard", "wandbs"], "'wandb'"),
    ],
)
def test_an_unknown_tracker_is_refused_by_its_name(tracker, reason):
    with pytest.raises(RecipeError, match=reason):
        check_trackers(tracker)


def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)

    with pytest.raises(UserError, match="track"):
        check_trackers(["trackio"])


@pytest.mark.parametrize("name", ["stage1", "stage2", "unseen_pairs", "eval_suite", "mini/train"])
def test_a_script_names_what_it_needs_for_those_that_run_it_alone(name):
    script = (RECIPES.parent / f"{name}.py").read_text(encoding="utf-8")
    head = re.search(r"(?m)^# /// script\n((?:# .*\n)+)# ///$", script)

    needs = tomllib.loads(re.sub(r"(?m)^# ", "", head[1]))

    assert needs["requires-python"] == ">=3.11"
    assert needs["dependencies"] == ["scmmgpt[train,eval]"]
