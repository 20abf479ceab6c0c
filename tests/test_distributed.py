"""Two processes compute what one does: global negatives, sharded layers, a split LLM."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_worker import STEP

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration, ScMMGPTForPreTraining

WORKER = Path(__file__).with_name("distributed_worker.py")
PLACEHOLDERS = [5, 5, 5, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two_processes")


def without_dropout(tiny_config, **top):
    still = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    return tiny_config(cell={"hidden_dropout": 0.0}, qformer=still, **top)


@pytest.fixture
def batches(make_cells, make_texts):
    cells, texts = make_cells((12, 7, 9, 5)), make_texts((7, 4, 6, 5))
    stage1 = {
        **cells,
        **texts,
        "text_groups": torch.tensor([0, 1, 0, 2]),  # cells 0 and 2, in different processes, share a text
        "text_lineage": torch.tensor([[9, 1, -1], [1, -1, -1], [9, 1, -1], [8, 2, 1]]),
    }
    prompts = torch.tensor([[6 + i, *PLACEHOLDERS, 7, 8, 9] for i in range(4)])
    stage2 = {**cells, "input_ids": prompts, "attention_mask": torch.ones_like(prompts), "labels": prompts}
    return {"stage1": stage1, "stage2": stage2}


@pytest.fixture
def results(folder, batches, tiny_config):
    """What both processes found; they run once for all tests."""
    if not (folder / "results1.pt").exists():
        alone = {"match_weight": 0.0, "caption_weight": 0.0}
        ScMMGPTForPreTraining(without_dropout(tiny_config, **alone)).save_pretrained(folder / "stage1")
        ScMMGPTForConditionalGeneration(without_dropout(tiny_config)).save_pretrained(folder / "stage2")
        torch.save(batches, folder / "batches.pt")
        command = [sys.executable, str(WORKER), str(folder)]
        processes = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for rank in range(2)
        ]
        for process in processes:
            said, _ = process.communicate(timeout=240)
            assert process.returncode == 0, said
    return [torch.load(folder / f"results{rank}.pt") for rank in range(2)]


def compare(found, model, loss):
    loss.backward()
    torch.testing.assert_close(found["loss"], loss.detach(), atol=1e-5, rtol=0)
    expected = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert expected.keys() == found["gradients"].keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found["gradients"][name], gradient, atol=1e-5, rtol=0, msg=name)


def test_global_negatives_give_the_loss_and_gradients_of_the_whole_batch(results, folder, batches):
    model = ScMMGPTForPreTraining.from_pretrained(folder / "stage1")

    compare(results[0]["contrast"], model, model(**batches["stage1"]).loss)


def test_local_negatives_would_give_another_loss(results, folder, batches):
    model = ScMMGPTForPreTraining.from_pretrained(folder / "stage1")
    halves = [{name: value.chunk(2)[i] for name, value in batches["stage1"].items()} for i in range(2)]

    local = sum(model(**half).loss for half in halves) / 2

    assert abs(local - results[0]["contrast"]["loss"]) > 0.1


def test_sharded_layers_give_the_loss_and_gradients_of_one_process(results, folder, batches):
    model = ScMMGPTForConditionalGeneration.from_pretrained(folder / "stage2")
    halves = [{name: value.chunk(2)[i] for name, value in batches["stage2"].items()} for i in range(2)]
    found = results[0]["sharded"]
    found["loss"] = (found["loss"] + results[1]["sharded"]["loss"]) / 2

    compare(found, model, sum(model(**half).loss for half in halves) / 2)


def test_sharded_layers_step_and_save_a_checkpoint_that_one_process_reloads(results, folder, batches):
    model = ScMMGPTForConditionalGeneration.from_pretrained(folder / "stage2")
    model(**batches["stage2"]).loss.backward()
    torch.optim.SGD(model.parameters(), lr=STEP).step()

    reloaded = ScMMGPTForConditionalGeneration.from_pretrained(folder / "stepped")

    assert not torch.equal(
        reloaded.lm_head.weight, ScMMGPTForConditionalGeneration.from_pretrained(folder / "stage2").lm_head.weight
    )
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(reloaded.state_dict()[name], weight, atol=1e-5, rtol=0, msg=name)


def test_an_llm_split_over_two_processes_says_the_same(results, folder, batches):
    model = ScMMGPTForConditionalGeneration.from_pretrained(folder / "stage2")

    expected = model(**batches["stage2"]).logits

    for result in results:
        assert result["tensor_parallel"]["sharded"] > 0
        torch.testing.assert_close(result["tensor_parallel"]["logits"], expected, atol=1e-5, rtol=0)
