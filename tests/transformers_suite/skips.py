"""Tests of transformers that say nothing about our classes, each with the reason. What fails for another reason fails."""

# (classes of this suite, tests, reason); a test stands for all its parameters.
SKIPS = [
    (
        ["ForConditionalGenerationTest"],
        ["test_generation_tester_mixin_inheritance"],
        "GenerationTesterMixin is not in the sdist; tests/test_modeling.py and test_generation.py test `generate`",
    ),
    (
        ["ModelTest", "ForPreTrainingTest"],
        ["test_tp_plan_matches_params"],
        "the only plan is the LLM's, which this class does not hold",
    ),
    (
        ["CellEncoderTest", "CellEncoderForMaskedValuesTest"],
        ["test_resize_tokens_embeddings"],
        "it writes to `input_ids`, and genes are `gene_ids`; tests/test_placement.py resizes the gene table",
    ),
    (
        ["ModelTest", "ForPreTrainingTest"],
        ["test_resize_tokens_embeddings"],
        "it looks for the new size in the LLM's config, and the words are the Q-Former's; tests/test_placement.py resizes",
    ),
    (
        ["CellEncoderTest", "CellEncoderForMaskedValuesTest", "QFormerTest"],
        ["test_reverse_loading_mapping"],
        "it sets fields that only mixtures of experts have, which our configs refuse; no weight is renamed at loading",
    ),
    (
        ["ForConditionalGenerationTest"],
        ["test_training_overfit"],
        "it is written for text models alone (`config.vocab_size`); tests/test_stage2.py trains with cells",
    ),
    (
        ["ProcessorTest", "ProcessorWithCellsTest"],
        ["test_apply_chat_template_audio"],
        "it fetches a sound from the Hub; tests/test_processing.py applies chat templates to cells",
    ),
    (
        ["ProcessorTest"],
        [
            "test_flat_kwarg_applied_when_modality_dict_lacks_it",
            "test_kwargs_overrides_default_subprocessor_kwargs",
            "test_model_input_names",
            "test_processor_with_multiple_inputs",
            "test_structured_kwargs_nested_from_dict",
            "test_subprocessor_defaults_3_audio",
            "test_subprocessor_defaults_preserved_by_kwargs",
            "test_unstructured_kwargs",
        ],
        "it passes images or sounds, which are refused; ProcessorWithCellsTest passes cells in their place",
    ),
]


def reason_to_skip(test_class: str, test: str) -> str | None:
    for classes, names, reason in SKIPS:
        if test_class in classes and any(test == name or test.startswith(f"{name}_") for name in names):
            return reason
    return None
