"""One of two processes of `test_distributed.py`: python distributed_worker.py FOLDER RANK"""

import os
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from scmmgpt.modeling_scmmgpt import ScMMGPTForConditionalGeneration, ScMMGPTForPreTraining

STEP = 0.1


def half(batch, rank):
    return {name: value.chunk(2)[rank] for name, value in batch.items()}


def contrast(folder, batch, rank):
    model = DistributedDataParallel(
        ScMMGPTForPreTraining.from_pretrained(folder / "stage1"), find_unused_parameters=True
    )
    loss = model(**half(batch, rank)).loss
    loss.backward()
    distributed.all_reduce(loss)
    gradients = {name: weight.grad for name, weight in model.module.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach() / 2, "gradients": gradients}


def sharded(folder, batch, rank):
    """FSDP2 over the layers that the model names itself."""
    model = ScMMGPTForConditionalGeneration.from_pretrained(folder / "stage2")
    mesh = init_device_mesh("cpu", (2,))
    for module in list(model.modules()):
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    loss = model(**half(batch, rank)).loss
    loss.backward()
    gradients = {
        name: weight.grad.full_tensor() for name, weight in model.named_parameters() if weight.grad is not None
    }
    torch.optim.SGD(model.parameters(), lr=STEP).step()
    stepped = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        model.save_pretrained(folder / "stepped", state_dict=stepped)
    return {"loss": loss.detach(), "gradients": gradients}


def tensor_parallel(folder, batch, rank):
    model = ScMMGPTForConditionalGeneration.from_pretrained(folder / "stage2", tp_plan="auto")
    sharded = sum(tuple(w.shape) != tuple(getattr(w, "to_local", lambda w=w: w)().shape) for w in model.parameters())
    with torch.no_grad():
        return {"logits": model(**batch).logits, "sharded": sharded}


def main(folder, rank):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting_point", rank=rank, world_size=2)
    batches = torch.load(folder / "batches.pt")
    results = {
        "contrast": contrast(folder, batches["stage1"], rank),
        "sharded": sharded(folder, batches["stage2"], rank),
        "tensor_parallel": tensor_parallel(folder, batches["stage2"], rank),
    }
    torch.save(results, folder / f"results{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
