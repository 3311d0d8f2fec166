"""One process of a dry run of configs/fsdp2.yaml: accelerate's own wrapping of the model with gloo, one step.

The main process prints what differs from an unsharded model. accelerate turns FSDP on for GPUs only, so what it would
look up in its state is handed over here.
"""
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.device_mesh import init_device_mesh

from scclm.model import build_model, model_config
from scclm.planner import fixed_batch
from scclm.pretrain import one_table_
from scclm.trainer import count_labels, seq2seq_loss


def shard(model):
    "What accelerate does with the file's settings."
    settings = yaml.safe_load(Path(sys.argv[1]).read_text(encoding='utf-8'))['fsdp_config']
    c = {k.removeprefix('fsdp_'): v for k, v in settings.items()}
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=c['version'], auto_wrap_policy=c['auto_wrap_policy'], state_dict_type=c['state_dict_type'],
        transformer_cls_names_to_wrap=[c['transformer_layer_cls_to_wrap']],
        reshard_after_forward=c['reshard_after_forward'], cpu_ram_efficient_loading=c['cpu_ram_efficient_loading'])
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision='no', is_main_process=dist.get_rank() == 0,
        device=torch.device('cpu'), torch_device_mesh=init_device_mesh('cpu', (dist.get_world_size(),),
                                                                       mesh_dim_names=('fsdp',)),
        parallelism_config=SimpleNamespace(fsdp_dim_names=('fsdp',)))
    return fsdp2_prepare_model(accelerator, model)

def main():
    "One backward pass of the whole model and of the sharded one."
    dist.init_process_group('gloo')
    torch.manual_seed(0)
    config, rank, world = model_config('tiny', 200), dist.get_rank(), dist.get_world_size()
    batch = fixed_batch(config, (4, 10, 8))
    whole, n = build_model(config), count_labels(batch)
    loss = seq2seq_loss(whole, batch) / n
    loss.backward()
    sharded = shard(one_table_(build_model(config)))
    part = seq2seq_loss(sharded, {k: v[rank::world] for k, v in batch.items()}) * world / n
    part.backward()
    total = part.detach() / world
    dist.all_reduce(total)
    grads = {k: p.grad.full_tensor() for k, p in sharded.named_parameters()}
    apart = max((grads[k] - p.grad).abs().max().item() for k, p in whole.named_parameters())
    own = sum(p.to_local().numel() for p in sharded.parameters()) / sum(p.numel() for p in whole.parameters())
    figures = dict(loss=loss.item(), sharded_loss=total.item(), gradients_apart=apart, own=own)
    if rank == 0: print(json.dumps(figures))
    dist.destroy_process_group()

if __name__ == '__main__': main()
