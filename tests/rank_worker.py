"""One process of a training run, for `torchrun`: what test_ranks.py starts.

    torchrun --standalone --nproc_per_node 2 tests/rank_worker.py HOME OUT '{"steps": 12}'

The options are TrainCfg fields, and: dropout, budget_tok, kill (step, rank: SIGKILL to itself), term (step, rank: SIGTERM to itself).
Every process notes the prompts it trained on, step by step, in OUT/seen-RANK.jsonl: an independent record of who saw what."""
import json, os, signal, sys
from pathlib import Path

import torch

from scclm.dataset import PairStream
from scclm.model import build_model, model_config
from scclm.tokenizer import load_tokenizer
from scclm.trainer import TrainCfg, fit, processes, seq2seq_loss


def main(home:str, out:str, options:str):
    torch.set_num_threads(1)
    home, out, o = Path(home), Path(out), json.loads(options)
    state, tok, now = processes(), load_tokenizer(home/'tokenizer'), []
    extra = {k: o.pop(k, None) for k in ('dropout', 'budget_tok', 'kill', 'term')}
    sizes = dict(d_model=32, num_heads=2, d_ff=64, dropout_rate=extra['dropout'] or 0.)
    stream = PairStream([home/'data/train.parquet'], tok, budget_tok=extra['budget_tok'] or 256, max_len=64, window=200, seed=1, rank=state.process_index,
                        world=state.num_processes, index_dir=home/'lengths')

    def loss(model, batch):
        real = batch['labels'].ne(-100).any(1)
        if real.any(): now.extend(tok.batch_decode(batch['input_ids'][real], skip_special_tokens=True))
        return seq2seq_loss(model, batch)

    def note(run):
        with open(out/f'seen-{state.process_index}.jsonl', 'a') as f: f.write(json.dumps([run.step, list(now)], ensure_ascii=False) + '\n')
        now.clear()
        for name, sig in (('kill', signal.SIGKILL), ('term', signal.SIGTERM)):
            if extra[name] == [run.step, state.process_index]: os.kill(os.getpid(), sig)

    run = fit(build_model(model_config('tiny', len(tok), **sizes), seed=1), stream, TrainCfg(**dict(dict(lr=1e-3, precision='fp32', log_every=1, seed=1), **o)), out,
              loss, callbacks=[note], progress=False)
    print(f'rank {state.process_index} of {state.num_processes}: step {run.step}, stopped by {run.stopped}', flush=True)


if __name__ == '__main__': main(*sys.argv[1:])
