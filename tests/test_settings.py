"""A recipe is one yaml file; what it says is checked before anything runs."""

from pathlib import Path

import pytest
from transformers import TrainingArguments
from trl import SFTConfig

import scmmgpt.training
from scmmgpt.training.run import training_arguments
from scmmgpt.training.settings import RecipeError, RunSettings, read_recipe

RECIPES = Path(scmmgpt.training.__file__).parent / "recipes"
MINIMAL = "output: out\ndata: {corpus: somewhere}\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_recipe_needs_only_an_output_and_a_corpus(tmp_path):
    settings = read_recipe(write(tmp_path / "r.yaml", MINIMAL))

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
        read_recipe(recipe)


def test_a_value_of_the_wrong_type_is_named_with_its_place(tmp_path):
    recipe = write(tmp_path / "r.yaml", MINIMAL + "lora: {rank: many}")

    with pytest.raises(RecipeError, match=r"`lora\.rank`.*'many'"):
        read_recipe(recipe)


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(RecipeError, match="`output` is missing"):
        read_recipe(write(tmp_path / "r.yaml", "data: {corpus: x}"))


def test_changes_from_the_command_line_win(tmp_path):
    recipe = write(tmp_path / "r.yaml", MINIMAL)

    settings = read_recipe(recipe, ["training.max_steps=3", "lora.rank=2", "data.sources=[a, b]"])

    assert settings.training == {"max_steps": 3}
    assert settings.lora.rank == 2
    assert settings.data.sources == ["a", "b"]


def test_environment_variables_are_filled_in_and_asked_for_by_name(tmp_path, monkeypatch):
    recipe = write(tmp_path / "r.yaml", "output: ${SOME_PLACE}/out\ndata: {corpus: x}")
    with pytest.raises(RecipeError, match="SOME_PLACE"):
        read_recipe(recipe)

    monkeypatch.setenv("SOME_PLACE", "/data")

    assert read_recipe(recipe).output == "/data/out"


def test_learning_rates_are_for_towers_that_exist(tmp_path):
    with pytest.raises(RecipeError, match="learning_rates names 'decoder'"):
        read_recipe(write(tmp_path / "r.yaml", MINIMAL + "learning_rates: {decoder: 1.0e-3}"))


def test_a_missing_recipe_says_where_recipes_lie(tmp_path):
    with pytest.raises(RecipeError, match="training/recipes"):
        read_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*stage*.yaml")), ids=lambda path: path.stem)
def test_every_published_recipe_can_be_read(recipe, monkeypatch):
    monkeypatch.setenv("SCMMGPT_DATA", "/data")
    monkeypatch.setenv("SCMMGPT_CORPUS", "/corpus")
    monkeypatch.setenv("SCMMGPT_WEIGHTS", "/weights")

    assert isinstance(read_recipe(recipe), RunSettings)


def test_attention_is_flash_where_a_gpu_runs_half_precision_and_sdpa_elsewhere():
    from scmmgpt.training.assembly import attention_for

    assert attention_for(half_precision_gpu=False, has_flash_attn=True) == "sdpa"
    assert attention_for(half_precision_gpu=True, has_flash_attn=False)["cell_config"] == "torch_varlen"
    assert attention_for(half_precision_gpu=True, has_flash_attn=True)["cell_config"] == "flash_attention_2"


def test_a_bare_no_means_never_as_the_trainer_spells_it(tmp_path):
    recipe = write(tmp_path / "r.yaml", MINIMAL + "training: {eval_strategy: no}")

    arguments = training_arguments(read_recipe(recipe), TrainingArguments)

    assert arguments.eval_strategy == "no"


def test_a_value_that_the_trainer_does_not_know_is_refused_in_one_line(tmp_path):
    recipe = write(tmp_path / "r.yaml", MINIMAL + "training: {save_strategy: sometimes}")

    with pytest.raises(RecipeError, match="`training` of the recipe: sometimes is not a valid"):
        training_arguments(read_recipe(recipe), TrainingArguments)


@pytest.mark.parametrize("kind", [TrainingArguments, SFTConfig])
@pytest.mark.parametrize("value", [True, False])
def test_the_former_name_of_a_training_argument_is_read_with_a_warning(kind, value, tmp_path):
    recipe = write(tmp_path / "r.yaml", MINIMAL + f"training: {{gradient_checkpointing: {value}}}")

    with pytest.warns(FutureWarning, match="Use `activation_checkpointing` instead"):
        arguments = training_arguments(read_recipe(recipe), kind)

    assert arguments.activation_checkpointing is value


@pytest.mark.parametrize("kind", [TrainingArguments, SFTConfig])
def test_activation_checkpointing_is_as_each_trainer_has_it_and_nothing_is_said(kind, tmp_path):
    arguments = training_arguments(read_recipe(write(tmp_path / "r.yaml", MINIMAL)), kind)

    assert arguments.activation_checkpointing is (kind is SFTConfig)
