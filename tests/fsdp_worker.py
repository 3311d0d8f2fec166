"""One process of a dry run of configs/fsdp2.yaml: accelerate's own wrapping of the model with gloo, one step; the main process prints what differs.

accelerate turns FSDP on for GPUs only, so what it would look up in its state is handed over here.
"""
import json, sys
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
    c = {k.removeprefix('fsdp_'): v for k, v in yaml.safe_load(Path(sys.argv[1]).read_text(encoding='utf-8'))['fsdp_config'].items()}
    plugin = FullyShardedDataParallelPlugin(fsdp_version=c['version'], auto_wrap_policy=c['auto_wrap_policy'], state_dict_type=c['state_dict_type'],
        transformer_cls_names_to_wrap=[c['transformer_layer_cls_to_wrap']], reshard_after_forward=c['reshard_after_forward'],
        cpu_ram_efficient_loading=c['cpu_ram_efficient_loading'])
    mesh = init_device_mesh('cpu', (dist.get_world_size(),), mesh_dim_names=('fsdp',))
    return fsdp2_prepare_model(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision='no', is_main_process=dist.get_rank() == 0,
        device=torch.device('cpu'), torch_device_mesh=mesh, parallelism_config=SimpleNamespace(fsdp_dim_names=('fsdp',))), model)

def main():
    dist.init_process_group('gloo')
    torch.manual_seed(0)
    config, rank, world = model_config('tiny', 200), dist.get_rank(), dist.get_world_size()
    batch = fixed_batch(config, (4, 10, 8))
    whole, n = build_model(config), count_labels(batch)
    (loss := seq2seq_loss(whole, batch) / n).backward()
    sharded = shard(one_table_(build_model(config)))
    (part := seq2seq_loss(sharded, {k: v[rank::world] for k, v in batch.items()}) * world / n).backward()
    dist.all_reduce(total := part.detach() / world)
    grads = {k: p.grad.full_tensor() for k, p in sharded.named_parameters()}
    apart = max((grads[k] - p.grad).abs().max().item() for k, p in whole.named_parameters())
    own = sum(p.to_local().numel() for p in sharded.parameters()) / sum(p.numel() for p in whole.parameters())
    if rank == 0: print(json.dumps(dict(loss=loss.item(), sharded_loss=total.item(), gradients_apart=apart, own=own)))
    dist.destroy_process_group()

if __name__ == '__main__': main()
