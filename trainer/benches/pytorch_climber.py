#!/usr/bin/env python3
"""Climber-Pilot's training step in PyTorch: what `trainer device throughput` is compared with.

    python3 trainer/benches/pytorch_climber.py --d 256 --length 200 --sequences 1024 --items 1000000 --mode compile

The same step on made-up histories of the same lengths: an id table of which a step updates the rows that it needs, pre-norm
layers with GELU, dropout, a temperature for each head, position and time bias, branches with a layer of their own, a softmax
of each target against negatives that all targets share, Adam, clipped gradients. In 16 bits by autocast (`--precision bf16`).

  --mode eager     as it is written
  --mode compile   through torch.compile

  --layout padded  every history as long as the longest; padding is on the right, and no logits are computed for it
  --layout nested  jagged nested tensors; scaled_dot_product_attention takes no bias there, so there is none: less work

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
WARM_UP, ROUNDS = 5, 5


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

    def forward(self, x, pairs):
        # [histories, heads, tokens, width], the second dimension jagged where `x` is.
        parts = self.qkv(self.attention_norm(x)).chunk(3, -1)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        if pairs is None:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            distance, bucket, hidden = pairs
            bias = (self.position[:, distance] + self.time[:, bucket]).masked_fill(hidden, -torch.inf)
            q = q * torch.exp(-self.log_temperature).view(1, -1, 1, 1)
            mask = bias.to(v.dtype).expand(q.shape[0], -1, -1, -1)
            attended = F.scaled_dot_product_attention(q.to(v.dtype), k, v, attn_mask=mask, scale=1.0)
        x = x + F.dropout(self.out(attended.transpose(1, 2).flatten(-2)), DROPOUT, self.training)
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

    def forward(self, embedded, pairs):
        x = F.dropout(embedded * math.sqrt(self.d), DROPOUT, self.training)
        for layer in self.backbone:
            x = layer(x, pairs)
        return [norm(layer(x, pairs)) for layer, norm in zip(self.branches, self.norms)]


def loss_of(hidden, own, negatives, hits, weight):
    """The mean cross-entropy of each row's own item against the shared negatives, itself left out of them."""
    logits = (hidden @ negatives.t()).float().masked_fill(hits, -torch.inf)
    own = (hidden * own).sum(-1, dtype=torch.float32)
    return (torch.logsumexp(torch.cat([own[:, None], logits], 1), 1) - own).sum() * weight


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
        self.batches = [self.batch(number) for number in range(4)]
        self.taken = 0

    def batch(self, number):
        o = self.options
        generator = torch.Generator().manual_seed(number)
        lengths = torch.randint(o.shortest, o.length + 1, (o.sequences,), generator=generator)
        items = 1 + (torch.rand(o.sequences, o.length, generator=generator) ** 3 * o.items).long().clamp(max=o.items - 1)
        there = torch.arange(o.length) < lengths[:, None]
        # Row `t` stands for the first `t` items; branch `k` predicts item `t + k`.
        targets = []
        for k in range(o.branches):
            row = torch.arange(o.length) + k < lengths[:, None]
            shifted = F.pad(items, (0, k))[:, k:]
            targets.append((row.to(o.device), shifted[row].to(o.device)))
        return items.to(o.device), there.to(o.device), lengths.to(o.device), targets

    def pairs(self):
        o = self.options
        if o.attention == "causal" or o.layout == "nested":
            return None
        i = torch.arange(o.length, device=o.device)
        apart = (i[:, None] - i[None, :]).clamp(min=0)
        bucket = (1 + 2 * torch.log2(1 + 60.0 * apart)).long().clamp(max=TIME_BUCKETS - 1)
        return apart.clamp(max=MAX_DISTANCE - 1), bucket, i[:, None] < i[None, :]

    def __call__(self):
        o = self.options
        items, there, lengths, targets = self.batches[self.taken % len(self.batches)]
        self.taken += 1
        self.adam.zero_grad(set_to_none=True)
        self.of_rows.zero_grad(set_to_none=True)
        negatives = torch.randint(1, o.items + 1, (o.negatives,), device=o.device)
        # One lookup of all rows, so that the table gets one gradient.
        asked = torch.cat([items.flatten(), negatives])
        vectors = self.table(asked)
        inputs, candidates = vectors[: items.numel()].view(*items.shape, -1), vectors[items.numel() :]
        first = self.model.start.expand(o.sequences, 1, -1)
        embedded = torch.cat([first, inputs[:, :-1]], 1)
        with torch.autocast(o.device, dtype=torch.bfloat16, enabled=o.precision == "bf16"):
            if o.layout == "nested":
                embedded = torch.nested.nested_tensor_from_jagged(
                    embedded[there], offsets=F.pad(lengths.cumsum(0), (1, 0)), max_seqlen=o.length
                )
            total = 0
            for k, hidden in enumerate(self.forward(embedded, self.pairs())):
                row, target = targets[k]
                hidden = hidden.values()[row[there]] if o.layout == "nested" else hidden[row]
                own = F.pad(inputs, (0, 0, 0, k))[:, k:][row]
                total = total + self.loss(hidden, own, candidates, target[:, None] == negatives[None, :], 1 / target.numel())
        total.backward()
        parameters = [*self.model.parameters()]
        torch.nn.utils.clip_grad_norm_(parameters, 5.0, foreach=True)
        self.adam.step()
        self.of_rows.step()
        return total.detach()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = dict(d=128, layers=2, heads=4, branches=2, length=100, sequences=256, items=6_000_000, negatives=8_192)
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
    in_round = math.ceil(options.seconds / max(time.perf_counter() - start, 1e-6) / ROUNDS)
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(in_round):
            loss = step()
        wait()
        rounds.append((time.perf_counter() - start) / in_round)
    seconds = statistics.median(rounds)
    targets = sum(target.numel() for _, target in step.batches[0][3])
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
