#!/usr/bin/env python3
"""Fine-tunes one checkpoint by every paradigm of conditional generation and says how each complies and recommends (the
paper's Table 3).

    cargo build --release
    target/release/pipeline ingest --config config/movielens.toml --root runs/paradigms
    python3 trainer/benches/paradigms.py --config config/movielens.toml --root runs/paradigms --condition genre \\
        --sft-share 0.3 --out paradigms.json

ROOT holds `events` and `items`; `sequences`, `sft/CONDITION`, one pre-trained model `base` and the fine-tuned ones are made
in it. All learn from the same examples, from the same checkpoint, with the same settings but one: what is new has another
scale in every paradigm, so each is given the one of --condition-rates that validation prefers, tried with the first seed.
Seeds decide the order of the histories, the dropout and the first values of what is new:

  unconditional  the same examples without their conditions
  pinrec         an embedding of the condition is added to the query
  lum            the condition is a token
  adaln-zero     the condition modulates the branch layer
  cgsa-mask      the branch looks at matching items only (Eq. 5), and nothing else says the condition
  cgsa           the same, with the embedding

Every model is asked for the test targets under their own values of the condition, without and with a filter behind it:
`trainer compare` prints means and deviations over the seeds, and the paired difference to `unconditional` with its 95 %
interval over users. The same command continues where it was interrupted and repeats nothing that is done.
"""

import argparse
import json
import pathlib

from ablation import Programs

PARADIGMS = {
    "unconditional": ["sft.paradigm=unconditional"],
    "pinrec": ["sft.paradigm=pinrec"],
    "lum": ["sft.paradigm=lum"],
    "adaln-zero": ["sft.paradigm=adaln-zero"],
    "cgsa-mask": ["sft.paradigm=cgsa", "sft.condition_embedding=false"],
    "cgsa": ["sft.paradigm=cgsa", "sft.condition_embedding=true"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--root", required=True, type=pathlib.Path)
    parser.add_argument("--condition", required=True, help="an attribute of the catalogue, or a derived condition")
    parser.add_argument("--sft-share", type=float, default=0.3, help="share of the events that are examples")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--condition-rates", type=float, nargs="+", default=[1.5e-3, 6e-3, 2.4e-2],
                        help="learning rates of what is new, to choose from")
    parser.add_argument("--paradigms", nargs="+", choices=PARADIGMS, default=list(PARADIGMS))
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every command")
    parser.add_argument("--programs", type=pathlib.Path, default=pathlib.Path("target/release"))
    parser.add_argument("--threads", type=int, help="threads of the trainer")
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    parser.add_argument("--out", type=pathlib.Path, help="the comparison as JSON")
    args = parser.parse_args()

    programs = Programs(args)
    common = ["--config", args.config, "--root", str(args.root)]
    settings = [*args.set, f"sequences.sft_share={args.sft_share}", f'sft.conditions=["{args.condition}"]',
                "evaluate.baselines=false"]

    def run(program, command, arguments, more=()):
        return programs.run(str(args.programs / program), command, [*common, *arguments], [*settings, *more])[0]

    run("pipeline", "build-sequences", [])
    run("pipeline", "build-sft", ["--condition", args.condition])
    run("trainer", "pretrain", ["--name", "base"])
    asked = ["--condition", args.condition, "--split", args.split]
    run("trainer", "evaluate", ["--model", "base", *asked])
    groups, chosen = ["base"], {}
    for paradigm in args.paradigms:
        # Only `unconditional` has nothing new.
        rates = args.condition_rates if paradigm != "unconditional" else args.condition_rates[:1]
        rate = rates[0]
        if len(rates) > 1:
            best = {}
            for rate in rates:
                more = [*PARADIGMS[paradigm], f"seed={args.seeds[0]}", f"sft.condition_learning_rate={rate}"]
                outcome = run("trainer", "sft", ["--name", f"{paradigm}-at-{rate:g}", "--from", "base"], more)
                best[rate] = outcome["best"]["value"] if outcome else 0.0
            rate = max(best, key=best.get)
            chosen[paradigm] = {"condition_learning_rate": rate, "validation": best}
        names = [f"{paradigm}-{seed}" for seed in args.seeds]
        for name, seed in zip(names, args.seeds):
            more = [*PARADIGMS[paradigm], f"seed={seed}", f"sft.condition_learning_rate={rate}"]
            run("trainer", "sft", ["--name", name, "--from", "base"], more)
            run("trainer", "evaluate", ["--model", name, *asked], more)
        groups.append(f"{paradigm}={','.join(names)}")
    # The first is what the others are compared with.
    first = next((group for group in groups if group.startswith("unconditional=")), groups[0])
    groups.remove(first)
    comparison = run("trainer", "compare", [*asked, first, *groups])
    if args.out and comparison is not None:
        args.out.write_text(json.dumps({"condition_rates": chosen, **comparison}, indent=2) + "\n")


if __name__ == "__main__":
    main()
