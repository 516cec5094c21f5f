#!/usr/bin/env python3
"""SASRec in PyTorch on the rows of `sequences`: what `trainer pretrain` is compared with.

    pip install torch pyarrow numpy
    python3 trainer/benches/pytorch_sasrec.py --root DIR [--batches bucketed] [--loss sampled]

The model is that of `[model] architecture = "sasrec"` with its default sizes: learned positions, a start-of-sequence
token, pre-norm causal Transformer layers (GELU, `scaled_dot_product_attention`), a last layer norm, and one item
table for input and output. It learns the same targets, every pre-training position of every row from all that is
before it, with Adam and clipped gradients.

Written as one would for speed: all rows are one padded tensor before the clock starts, padding is on the right so that
the causal kernel needs no mask, and logits are computed for real targets only, never for padding.

  --batches padded     every batch is as long as the longest row may be (--max-len)
  --batches bucketed   rows of about the same length go together, and a batch is as long as its longest row

  --loss full          softmax over the whole catalogue
  --loss sampled       softmax over the target and 512 uniform negatives that all targets of a step share

Prints one JSON object: targets and seconds of training (`seconds`, without reading, importing and validating), of an
epoch, of validating (HR@10 of the validation targets over the whole catalogue without the row's earlier items) and of
the whole process; peak memory is the process's largest resident set. The rates are over all epochs, the first steps,
where memory is still being allocated, included.
"""

import argparse
import json
import math
import pathlib
import resource
import sys
import time
import urllib.parse

STARTED = time.monotonic()

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

# As `role` in `sequences` has them.
PRETRAIN, VALIDATION = 0, 2
# Item 0 is no item: the padding. The start-of-sequence token has the row after the last item.
PADDING = 0
# Rows of so many batches are sorted by length together.
BUCKET_BATCHES = 32


def snapshot(root, table):
    """The files of the table's newest version, replayed from its log."""
    directory = pathlib.Path(root, table)
    files = {}
    log = sorted(path for path in directory.glob("_delta_log/*.json") if path.stem.isdigit())
    if not log or int(log[0].stem) != 0:
        sys.exit(f"the log of {directory} does not begin at version 0; this script reads no checkpoints")
    for entry in log:
        for line in entry.read_text().splitlines():
            action = json.loads(line)
            if "add" in action:
                files[action["add"]["path"]] = True
            elif "remove" in action:
                files.pop(action["remove"]["path"], None)
    return sorted(str(directory / urllib.parse.unquote(path)) for path in files)


class Rows:
    """All rows, padded on the right: token `p` of a row stands for its first `p` items, and predicts item `p`.

    `tokens` and `targets` are `[rows, max_len]`; a token without a target has the target `PADDING`. `lengths` says how
    many tokens of a row lead to a target. Only rows with a target are there.
    """

    def __init__(self, root, max_len):
        tables = [pq.read_table(path, columns=["item_index", "role", "target_from"])
                  for path in snapshot(root, "sequences")]
        items, roles, offsets, target_from = [], [], [np.zeros(1, np.int64)], []
        for table in tables:
            for chunk in table.to_batches():
                column = chunk.column("item_index")
                ends = column.offsets.to_numpy().astype(np.int64)
                items.append(column.values.to_numpy()[ends[0]:ends[-1]])
                roles.append(chunk.column("role").values.to_numpy()[ends[0]:ends[-1]])
                offsets.append(ends[1:] - ends[0] + offsets[-1][-1])
                target_from.append(chunk.column("target_from").to_numpy())
        items = np.concatenate(items).astype(np.int64)
        roles = np.concatenate(roles)
        offsets = np.concatenate(offsets)
        target_from = np.concatenate(target_from)
        lengths = np.diff(offsets)
        if lengths.max() > max_len:
            sys.exit(f"`sequences` has rows of {lengths.max()} items; use --max-len {lengths.max()}")
        row = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)
        # The catalogue, which may be larger than what the rows show: unseen items compete too.
        self.items = max(int(items.max()), sum(pq.read_metadata(path).num_rows for path in snapshot(root, "items")))
        self.start = self.items + 1

        tokens = np.full((len(lengths), max_len), PADDING, np.int64)
        tokens[:, 0] = self.start
        inner = place + 1 < max_len
        tokens[row[inner], place[inner] + 1] = items[inner]
        targets = np.full((len(lengths), max_len), PADDING, np.int64)
        learned = (roles == PRETRAIN) & (place >= np.repeat(target_from, lengths))
        targets[row[learned], place[learned]] = items[learned]
        used = np.zeros(len(lengths), np.int64)
        np.maximum.at(used, row[learned], place[learned] + 1)
        some = used > 0
        self.tokens, self.targets = torch.from_numpy(tokens[some]), torch.from_numpy(targets[some])
        self.lengths = torch.from_numpy(used[some])
        asked = (roles == VALIDATION) & (place > 0)
        self.asked = (torch.from_numpy(tokens[row[asked]]), torch.from_numpy(place[asked]),
                      torch.from_numpy(items[asked]))

    def batches(self, size, bucketed, generator):
        """Row numbers and length of the batches of one epoch, in random order."""
        order = torch.randperm(len(self.lengths), generator=generator)
        if not bucketed:
            return [(rows, self.tokens.shape[1]) for rows in order.split(size)]
        batches = []
        for window in order.split(size * BUCKET_BATCHES):
            for rows in window[self.lengths[window].argsort()].split(size):
                batches.append((rows, int(self.lengths[rows].max())))
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


class Layer(nn.Module):
    """A pre-norm causal Transformer layer."""

    def __init__(self, d, heads, inner, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.up, self.down = nn.Linear(d, inner), nn.Linear(inner, d)

    def forward(self, x):
        rows, n, d = x.shape
        parts = self.qkv(self.attention_norm(x)).view(rows, n, 3, self.heads, d // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(rows, n, d)
        x = x + F.dropout(self.out(attended), self.dropout, self.training)
        inner = F.gelu(self.up(self.feed_forward_norm(x)), approximate="tanh")
        return x + F.dropout(self.down(inner), self.dropout, self.training)


class SasRec(nn.Module):
    """Hidden states of all tokens, `[rows, n, d]`; an item's score is the product with its embedding."""

    def __init__(self, items, max_len, d, layers, heads, feed_forward, dropout):
        super().__init__()
        self.items = nn.Embedding(items + 2, d)
        self.positions = nn.Embedding(max_len, d)
        self.layers = nn.ModuleList(Layer(d, heads, d * feed_forward, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(d)
        self.dropout = dropout
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        for name, weight in self.named_parameters():
            if name.startswith("layers") and weight.dim() == 2:
                residual = math.sqrt(2 * layers) if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5 / residual)
            elif name.startswith("layers") and name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens):
        x = self.items(tokens) * math.sqrt(self.items.embedding_dim)
        x = F.dropout(x + self.positions.weight[: tokens.shape[1]], self.dropout, self.training)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def full_loss(model, items, hidden, targets):
    """Cross-entropy over items 1 to `items`."""
    return F.cross_entropy(hidden @ model.items.weight[1:items + 1].T, targets - 1)


def sampled_loss(model, items, hidden, targets, negatives):
    """Cross-entropy over the target and `negatives` uniform items, the same for all; a target is no negative of itself."""
    drawn = torch.randint(1, items + 1, (negatives,))
    own = (hidden * model.items(targets)).sum(1, keepdim=True)
    others = hidden @ model.items(drawn).T
    others = others.masked_fill(targets[:, None] == drawn, -math.inf)
    return F.cross_entropy(torch.cat([own, others], 1), torch.zeros(len(targets), dtype=torch.long))


def train(model, rows, args):
    """Trains for `args.epochs`; gives the targets learned, and seconds and mean loss of each epoch."""
    adam = torch.optim.Adam(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    generator = torch.Generator().manual_seed(args.seed)
    model.train()
    count, seconds, losses = 0, [], []
    for epoch in range(args.epochs):
        started = time.monotonic()
        batches = rows.batches(args.batch_size, args.batches == "bucketed", generator)
        total = 0.0
        for of_batch, length in batches:
            tokens, targets = rows.tokens[of_batch, :length], rows.targets[of_batch, :length]
            real = targets != PADDING
            hidden, targets = model(tokens)[real], targets[real]
            if args.loss == "full":
                loss = full_loss(model, rows.items, hidden, targets)
            else:
                loss = sampled_loss(model, rows.items, hidden, targets, args.negatives)
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), args.clip_norm)
            adam.step()
            count += len(targets)
            total += loss.item()
        seconds.append(time.monotonic() - started)
        losses.append(total / len(batches))
        print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}, {seconds[-1]:.2f} s", file=sys.stderr)
    return count, seconds, losses


@torch.inference_mode()
def validate(model, rows, batch_size):
    """HR@10 over the whole catalogue, without the items before the target; `None` where nothing is held out."""
    model.eval()
    tokens, places, items = rows.asked
    hits = 0
    for chunk in torch.arange(len(items)).split(batch_size):
        place, item = places[chunk], items[chunk]
        length = int(place.max()) + 1
        context = tokens[chunk, :length]
        hidden = model(context)[torch.arange(len(chunk)), place]
        scores = hidden @ model.items.weight[:rows.items + 2].T
        scores[:, [PADDING, rows.start]] = -math.inf
        earlier = torch.where(torch.arange(length) <= place[:, None], context, PADDING)
        own = scores.gather(1, item[:, None])
        seen = (earlier == item[:, None]).any(1)
        scores.scatter_(1, earlier, -math.inf)
        hits += int((((scores > own).sum(1) < 10) & ~seen).sum())
    return hits / len(items) if len(items) else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", required=True, help="directory of the tables; reads `sequences` and `items`")
    parser.add_argument("--batches", choices=["padded", "bucketed"], default="padded")
    parser.add_argument("--loss", choices=["full", "sampled"], default="full")
    parser.add_argument("--negatives", type=int, default=512, help="for --loss sampled (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=256, help="rows in a step (default: %(default)s)")
    parser.add_argument("--max-len", type=int, default=50, help="longest row (default: %(default)s)")
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--feed-forward", type=int, default=4, help="inner width, times d (default: %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--weight-decay", type=float, default=1e-6)
    parser.add_argument("--clip-norm", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if min(args.epochs, args.batch_size, args.negatives, args.threads) < 1 or args.d % args.heads:
        parser.error("--epochs, --batch-size, --negatives and --threads must be at least 1, and --heads divide --d")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    rows = Rows(args.root, args.max_len)
    model = SasRec(rows.items, args.max_len, args.d, args.layers, args.heads, args.feed_forward, args.dropout)
    count, epochs, losses = train(model, rows, args)
    started = time.monotonic()
    hr_10 = validate(model, rows, args.batch_size)
    ended = time.monotonic()
    seconds = sum(epochs)
    print(json.dumps({
        "program": "pytorch", "torch": torch.__version__, "batches": args.batches, "loss": args.loss,
        "epochs": args.epochs, "targets": count, "seconds": seconds, "targets_per_second": count / seconds,
        "seconds_per_epoch": seconds / args.epochs, "epoch_seconds": epochs, "losses": losses,
        "validation_seconds": ended - started, "validation_hr_10": hr_10, "process_seconds": ended - STARTED,
        # Kilobytes on Linux, bytes on macOS.
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
    }))


if __name__ == "__main__":
    main()
