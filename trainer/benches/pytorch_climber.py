#!/usr/bin/env python3
"""Climber-Pilot's training step in PyTorch: what `trainer device throughput` is compared with.

    python3 trainer/benches/pytorch_climber.py --d 256 --length 200 --sequences 1024 --items 1000000 --mode compile

The same step on made-up histories of the same lengths: an id table of which a step updates the rows that it needs, pre-norm
layers with GELU, dropout, a temperature for each head, position and time bias, branches with a layer of their own, a softmax
of each target against negatives that all targets share, Adam, clipped gradients. In 16 bits by autocast (`--precision bf16`).
It does less than the trainer in these: no weight decay and no sampling correction, clipping without the table's gradient, only
the target itself is left out of its negatives, and all histories have the same times, so that one bias serves all.

  --mode eager     as it is written
  --mode compile   layers and loss through torch.compile

  --layout padded  every history as long as the longest; padding is on the right, and no logits are computed for it
  --layout nested  no padding but inside of attention, which takes jagged nested tensors; scaled_dot_product_attention takes no bias
                   for those, so there is none: less work

  --attention bias    position and time bias, as an attention mask of floats
  --attention causal  none of them: the fused causal kernel; less work than the trainer's

Prints one JSON object; memory is `torch.cuda.max_memory_allocated`.
"""

import argparse
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

TIME_BUCKETS = 64
MAX_DISTANCE = 128
DROPOUT = 0.2
WARM_UP, ROUNDS, BATCHES = 8, 5, 4


class Layer(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.position = nn.Parameter(torch.zeros(heads, MAX_DISTANCE))
        self.time = nn.Parameter(torch.zeros(heads, TIME_BUCKETS))
        self.log_temperature = nn.Parameter(torch.full((heads,), 0.5 * math.log(d / heads)))

    def forward(self, x, pairs, jagged):
        """`x` is [histories, tokens, d], or with `jagged` [all tokens, d]."""
        parts = self.qkv(self.attention_norm(x)).chunk(3, -1)
        if jagged is None:
            q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        else:
            offsets, shortest, longest = jagged
            nested = torch.nested.nested_tensor_from_jagged
            q, k, v = (
                nested(p.unflatten(-1, (self.heads, -1)), offsets, min_seqlen=shortest, max_seqlen=longest).transpose(1, 2)
                for p in parts
            )
        if pairs is None:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            distance, bucket, hidden = pairs
            bias = (self.position[:, distance] + self.time[:, bucket]).masked_fill(hidden, -torch.inf)
            q = q * torch.exp(-self.log_temperature).to(q.dtype).view(1, -1, 1, 1)
            mask = bias.to(q.dtype).expand(q.shape[0], -1, -1, -1)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        attended = attended.transpose(1, 2)
        attended = (attended if jagged is None else attended.values()).flatten(-2)
        x = x + F.dropout(self.out(attended), DROPOUT, self.training)
        inner = F.gelu(self.up(self.feed_forward_norm(x)), approximate="tanh")
        return x + F.dropout(self.down(inner), DROPOUT, self.training)


class ClimberPilot(nn.Module):
    def __init__(self, options):
        super().__init__()
        d = options.d
        self.start = nn.Parameter(torch.randn(d) * 0.02)
        self.backbone = nn.ModuleList(Layer(d, options.heads) for _ in range(options.layers))
        self.branches = nn.ModuleList(Layer(d, options.heads) for _ in range(options.branches))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(options.branches))
        self.d = d

    def forward(self, embedded, pairs, jagged):
        x = F.dropout(embedded * math.sqrt(self.d), DROPOUT, self.training)
        for layer in self.backbone:
            x = layer(x, pairs, jagged)
        return [norm(layer(x, pairs, jagged)) for layer, norm in zip(self.branches, self.norms)]


def loss_of(hidden, own, negatives, target, drawn):
    """The mean cross-entropy of each row's own item against the shared negatives, itself left out of them."""
    logits = (hidden @ negatives.t()).float().masked_fill(target[:, None] == drawn[None, :], -torch.inf)
    own = (hidden * own).sum(-1, dtype=torch.float32)
    return (torch.logsumexp(torch.cat([own[:, None], logits], 1), 1) - own).mean()


class Step:
    def __init__(self, options):
        self.options = options
        torch.manual_seed(1)
        device = options.device
        self.table = nn.Embedding(options.items + 1, options.d, sparse=True, device=device)
        with torch.no_grad():
            self.table.weight.normal_(0, 0.02)
        self.model = ClimberPilot(options).to(device)
        self.adam = torch.optim.Adam(self.model.parameters(), lr=5e-4, fused=device == "cuda")
        self.of_rows = torch.optim.SparseAdam(self.table.parameters(), lr=5e-4)
        self.forward, self.loss = self.model, loss_of
        if options.mode == "compile":
            self.forward = torch.compile(self.model, dynamic=options.layout == "nested")
            self.loss = torch.compile(loss_of, dynamic=True)
        self.pairs = self.all_pairs()
        self.batches = [self.batch(number) for number in range(BATCHES)]
        self.taken = 0

    def batch(self, number):
        """Items of all tokens, and for each branch the tokens that predict, the tokens whose items they predict, and those items."""
        o = self.options
        generator = torch.Generator().manual_seed(number)
        lengths = torch.randint(o.shortest, o.length + 1, (o.sequences,), generator=generator)
        places = torch.arange(o.length)
        uniform = torch.rand(o.sequences, o.length, generator=generator)
        items = 1 + (uniform**3 * o.items).long().clamp(max=o.items - 1)
        there = places < lengths[:, None]
        if o.layout == "nested":
            # The number of each token among those that are there.
            number_of = (there.flatten().cumsum(0) - 1).view(there.shape)
            kept = items[there]
        else:
            number_of = torch.arange(items.numel()).view(items.shape)
            kept = items.flatten()
        branches = []
        for k in range(o.branches):
            # Row `t` stands for the first `t` items and predicts item `t + k`.
            rows = (places + k < lengths[:, None]).nonzero()
            predicting, predicted = number_of[rows[:, 0], rows[:, 1]], number_of[rows[:, 0], rows[:, 1] + k]
            branches.append([t.to(o.device) for t in (predicting, predicted, kept[predicted])])
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        jagged = (offsets.to(o.device), o.shortest, o.length) if o.layout == "nested" else None
        # The token before each, whose item it stands behind; the start token has none.
        starts = number_of[:, 0].to(o.device)
        return kept.to(o.device), starts, branches, jagged

    def all_pairs(self):
        o = self.options
        if o.attention == "causal" or o.layout == "nested":
            return None
        i = torch.arange(o.length, device=o.device)
        apart = (i[:, None] - i[None, :]).clamp(min=0)
        bucket = (1 + 2 * torch.log2(1 + 60.0 * apart)).long().clamp(max=TIME_BUCKETS - 1)
        return apart.clamp(max=MAX_DISTANCE - 1), bucket, i[:, None] < i[None, :]

    def __call__(self):
        o = self.options
        items, starts, branches, jagged = self.batches[self.taken % BATCHES]
        self.taken += 1
        self.adam.zero_grad(set_to_none=True)
        self.of_rows.zero_grad(set_to_none=True)
        drawn = torch.randint(1, o.items + 1, (o.negatives,), device=o.device)
        # One lookup of all rows, so that the table gets one gradient.
        vectors = self.table(torch.cat([items, drawn]))
        inputs, negatives = vectors[: len(items)], vectors[len(items) :]
        # Every history begins with the start token, and each token stands behind the item before it.
        embedded = F.pad(inputs[:-1], (0, 0, 1, 0)).index_copy(0, starts, self.model.start.expand(len(starts), -1))
        if jagged is None:
            embedded = embedded.view(o.sequences, o.length, -1)
        with torch.autocast(o.device, dtype=torch.bfloat16, enabled=o.precision == "bf16"):
            total = 0
            for (rows, own, target), hidden in zip(branches, self.forward(embedded, self.pairs, jagged)):
                hidden = hidden.reshape(-1, o.d).index_select(0, rows)
                total = total + self.loss(hidden, inputs.index_select(0, own), negatives, target, drawn)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0, foreach=True)
        self.adam.step()
        self.of_rows.step()
        return total.detach()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = dict(d=128, layers=3, heads=4, branches=2, length=100, sequences=256, items=6_000_000, negatives=8_192)
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shortest", type=int, help="lengths are drawn between this and --length [default: --length]")
    parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
    parser.add_argument("--layout", choices=["padded", "nested"], default="padded")
    parser.add_argument("--attention", choices=["bias", "causal"], default="bias")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    options.shortest = options.shortest or options.length
    step = Step(options)
    cuda = options.device == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(WARM_UP):
        step()
    wait()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step()
    wait()
    # All batches equally often.
    in_round = BATCHES * math.ceil(options.seconds / max(time.perf_counter() - start, 1e-6) / ROUNDS / BATCHES)
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(in_round):
            loss = step()
        wait()
        rounds.append((time.perf_counter() - start) / in_round)
    seconds = statistics.median(rounds)
    targets = sum(len(target) for batch in step.batches for *_, target in batch[2]) / BATCHES
    print(json.dumps({
        "setting": {name: getattr(options, name) for name in (*numbers, "shortest")},
        "torch": torch.__version__,
        "card": torch.cuda.get_device_name() if cuda else "cpu",
        "mode": options.mode, "layout": options.layout, "attention": options.attention, "precision": options.precision,
        "step_ms": seconds * 1e3,
        "targets_per_s": targets / seconds,
        "peak_memory": torch.cuda.max_memory_allocated() if cuda else None,
        "loss": float(loss),
    }))


if __name__ == "__main__":
    main()
