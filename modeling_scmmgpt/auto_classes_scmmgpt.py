"""What every saved checkpoint tells the Auto classes and `pipeline(...)`, whichever class saved it."""

from typing import Any

AUTO_MAP = {
    "AutoConfig": "configuration_scmmgpt.ScMMGPTConfig",
    "AutoModel": "modeling_scmmgpt.ScMMGPTModel",
    "AutoModelForPreTraining": "modeling_scmmgpt.ScMMGPTForPreTraining",
    "AutoModelForMultimodalLM": "modeling_scmmgpt.ScMMGPTForConditionalGeneration",
    # By which TRL's trainers load a model of remote code that they know by its path alone.
    "AutoModelForImageTextToText": "modeling_scmmgpt.ScMMGPTForConditionalGeneration",
    "AutoProcessor": "processing_scmmgpt.ScMMGPTProcessor",
    "AutoFeatureExtractor": "gene_tokenization_scmmgpt.ScMMGPTGeneTokenizer",
}
# Tasks of `pipeline(...)`: their classes, which are saved with the processor, and the models that they run.
TOWER_PIPELINES = {"cell-annotation": "CellAnnotationPipeline", "cell-retrieval": "CellRetrievalPipeline"}
GENERATIVE_PIPELINES = {"cell-to-text": "CellToTextPipeline", "text-to-cell": "TextToCellPipeline"}


def custom_pipelines(can_generate: bool) -> dict[str, dict[str, Any]]:
    """The tasks that a checkpoint can do, as its config names them: without an LLM nothing is written."""
    generative = GENERATIVE_PIPELINES if can_generate else {}
    return {
        task: {"impl": f"pipeline_scmmgpt.{name}", "pt": [auto_class], "type": "multimodal"}
        for names, auto_class in ((TOWER_PIPELINES, "AutoModel"), (generative, "AutoModelForMultimodalLM"))
        for task, name in names.items()
    }
