"""Tests of transformers that say nothing about our classes, each with the reason. What fails for another reason fails."""

# {test: (classes of this suite, reason)}; a name ends a test's own or stands before its parameters.
SKIPS: dict[str, tuple[tuple[str, ...], str]] = {
    "test_generation_tester_mixin_inheritance": (
        ("ForConditionalGenerationTest",),
        "GenerationTesterMixin is not in the sdist; tests/test_modeling.py holds the same for `generate`",
    ),
    "test_tp_plan_matches_params": (
        ("ModelTest", "ForPreTrainingTest"),
        "the only plan is the LLM's, which this class does not hold",
    ),
    "test_resize_tokens_embeddings": (
        ("CellEncoderTest", "CellEncoderForMaskedValuesTest"),
        "it writes to `input_ids`, and genes are `gene_ids`; tests/test_cell_encoder.py resizes the gene table",
    ),
    "test_training_overfit": (
        ("ForConditionalGenerationTest",),
        "it is written for text models alone (`config.vocab_size`); tests/test_stage2.py overfits",
    ),
}


def reason_to_skip(test_class: str, test: str) -> str | None:
    for name, (classes, reason) in SKIPS.items():
        if test_class in classes and (test == name or test.startswith(f"{name}_")):
            return reason
    return None
