"""The manual of `bnfree lottery run`, which answers without importing torch."""

from __future__ import annotations

from collections.abc import Sequence

HELP = """usage: bnfree lottery run FILE [--run_dir DIR] [--seeds 0,1,2] [--controls LIST] [options]

Iterative magnitude pruning with rewinding. Level 0 trains the dense network. Each further level prunes what the level
before has trained, puts the surviving weights back to an early moment, and trains again, with a Trainer of its own in a
run directory of its own.

  FILE                 YAML file, such as configs/digits_lottery.yaml
  --run_dir DIR        where everything goes (default: runs/<name of the file>)
  --seeds 0,1,2        one run of all levels for each: data order, augmentation and initial weights
  --controls LIST      such as random_layerwise,reinit: trained after the levels, see bnfree lottery controls --help
  --lottery.KEY=VALUE  a setting of the file's section lottery, such as --lottery.rate=0.5

Any other option is one of `bnfree fit` and holds for every level:

  bnfree lottery run configs/cifar10_lottery_small.yaml --data.data_dir=data/cifar10 --trainer.max_epochs=20

The file:

  config: digits.yaml             # or a list, relative to this file: what each level trains, as for bnfree fit
  options: {trainer.max_epochs: 5}
  lottery:
    densities: [0.5, 0.2, 0.05]   # share of the weights that each level keeps; or in its place
    rate: 0.2                     #   share of the survivors that each level prunes, with
    levels: 3                     #   so many levels, or
    target_density: 0.05          #   down to this density
    score: standardized           # what is kept: standardized, effective, latent, flip, snip, random
    scope: global                 # ranked among: global, layer, filter, block32, block64
    include: ["body.*"]           # layers that are pruned (default: the convolutions of the residual units)
    exclude: ["body.0.*"]         # layers that stay dense
    min_per_filter: 1             # weights that each filter keeps
    min_layer_density: 0          # share of its weights that each layer keeps
    rewind: weights               # what survivors start from, see below
    rewind_point: init            # the moment of the dense training: init, 500it, 2ep, 3%
    seeds: [0]
    find_in: step1                # find masks on real weights, carry each to binary ones; leave out for one step
    step1_options: {trainer.max_epochs: 10}   # of bnfree fit, for the fits of step 1 alone

rewind:
  weights        the weights before the optimizer step that rewind_point names. A level then trains from that step to
                 the end: step, epoch, order of the images, learning rate and the optimizer's momentum are those of that
                 moment, so that a level that pruned nothing would repeat the dense training to the bit.
  sign           of the survivors' latent weights only the signs of that moment, times one constant for each layer
  learning_rate  the trained weights; learning rate and schedule start again at the rewind point, the optimizer afresh
  none           the trained weights, fine-tuned: the whole schedule again at a tenth of the learning rate

What it leaves:

  DIR/lottery.yaml                     the settings
  DIR/seed_0/level_00/                 the dense run, a run directory of bnfree fit; rewind.pt is the rewind point
  DIR/seed_0/level_01/ticket.pt        masks and rewound weights, written before the level trains; a start for
                                       --model.init_from, and what bnfree ticket works with
  DIR/seed_0/level_01/finished.yaml    the result, written last: it makes the level final
  DIR/seed_0/level_01/step1/           with find_in: where the mask was found
  DIR/report.md, levels.csv, *.png     what bnfree lottery report writes

The same command again goes on where it was stopped: finished levels are not run again, an interrupted one resumes from
its last checkpoint, and all ends with the masks and weights that it would have had. Seeds, and levels at the end, may
be added; a run whose score, scope, rate or other settings have changed is refused. Layers and levels are listed, and
mistakes are told, before anything is trained. With several processes (--trainer.devices=2) the masks are the same in
all of them.
"""


def run(arguments: Sequence[str]) -> None:
    """Runs a lottery, or prints the manual.

    Args:
        arguments: `run` and its options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    if len(arguments) < 2 or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    from bnfree.lightning_modules.experiments.lottery import levels

    levels.run(arguments)
