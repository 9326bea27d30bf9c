"""The manuals of `bnfree lottery` and its actions, which answer without importing torch."""

FRONT = """usage: bnfree lottery ACTION ...

Looks for lottery tickets: small parts of a network that, put back to an early moment of training, train as well as the
whole network does.

actions:
{actions}

Examples:
  bnfree lottery run digits_lottery
  bnfree lottery controls runs/digits_lottery
  bnfree lottery report runs/digits_lottery

Help on an action: bnfree lottery ACTION --help
"""

RUN_MANUAL = """usage: bnfree lottery run FILE [--run_dir DIR] [--seeds 0,1,2] [--controls LIST] [options]

Iterative magnitude pruning with rewinding. Level 0 trains the dense network. Each further level prunes what the level
before has trained, puts the surviving weights back to an early moment, and trains again, with a Trainer of its own in a
run directory of its own.

  FILE                 YAML file, or the name of a shipped one, such as digits_lottery
  --run_dir DIR        where everything goes (default: runs/<name of the file>)
  --seeds 0,1,2        one run of all levels for each: data order, augmentation and initial weights
  --controls LIST      such as random_layerwise,reinit: trained after the levels, see bnfree lottery controls --help
  --lottery.KEY=VALUE  a setting of the file's section lottery, such as --lottery.rate=0.5

Any other option is one of `bnfree fit` and holds for every level:

  bnfree lottery run cifar10_lottery_small --data.data_dir=data/cifar10 --trainer.max_epochs=20

The file:

  config: digits.yaml             # or a list, relative to this file or shipped: what each level trains
  options: {trainer.max_epochs: 5}
  lottery:
    densities: [0.5, 0.2, 0.05]   # share of the weights that each level keeps; or in its place
    rate: 0.2                     #   share of the survivors that each level prunes, with
    levels: 3                     #   so many levels, or
    target_density: 0.05          #   down to this density
    score: standardized           # what is kept: standardized, effective, latent, magnitude, flip, snip,
                                  #   random, or a class of your own, my_scores.MyScore; so are scopes
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

CONTROLS_MANUAL = """usage: bnfree lottery controls DIR [--controls LIST] [--levels 1-3] [--seeds 0,1] [options]

Trains sanity controls beside the tickets of a lottery run. A ticket has a mask, early weights and their signs; each
control takes one of these away and leaves the rest, and is trained exactly as its ticket was. Where a control does as
well as the ticket, what it lacks does not matter there.

  DIR               directory of bnfree lottery run, which may have been stopped before its last level
  --controls LIST   some of random_layerwise,random_global,reinit,shuffle_signs (default: all four), or controls of your
                    own, such as my_controls.HalfSigns, see bnfree.tickets.controls
  --levels LIST     levels to check, such as 2 or 1-3,5 (default: every level that has finished)
  --seeds LIST      seeds of the run, such as 0,1 (default: all of them)

Any other option is one of `bnfree fit` and says where it runs, such as --trainer.devices=2; one that would train
otherwise than the run did is refused. Paths in the run's settings are taken from the directory that the command is
given in, so give it where the run was started.

controls:
  random_layerwise  the mask: each layer keeps as many weights as in the ticket, in places drawn at random
  random_global     the mask and the densities of its layers: as many weights in all, anywhere in the pruned layers
  reinit            the weights: the ticket's mask, and in the pruned layers fresh normal weights, with the standard
                    deviation that the layer's weights have where the ticket starts
  shuffle_signs     the signs: the ticket's mask and weights, but in each filter the signs of the survivors have
                    changed places; a filter keeps its numbers of positive and negative weights

What a control starts from, by the run's rewind (bnfree lottery run --help):
  weights        The weights at the rewind point, as the ticket. All that is not drawn (gains, shifts, stem, classifier)
                 is that of the rewind point too. So are step, epoch, order of the images and learning rate, which go on
                 from there. The optimizer's momentum of that moment is kept under a random mask, whose weights have it;
                 where weights or signs are others, it begins afresh.
  sign           the same, and then of the survivors nothing but their signs; the optimizer begins afresh, as the
                 ticket's does
  learning_rate, Random masks: the trained weights of the dense network, the only ones that have all weights. The
  none           others: the trained weights that the ticket starts from, where reinit draws with the standard
                 deviation of the dense network. Schedule as in the ticket, optimizer afresh.
  With find_in: step1, a control is made where the ticket was found: it is trained with real weights in step 1, and its
  mask and weights are carried to step 2, as the ticket's were.

How to read the outcome:
  all controls below the ticket   its mask fits its weights: a ticket
  random_layerwise as good        only the layers' densities matter; if random_global is worse, they do matter
  random_global as good           any network of this size would do
  reinit as good                  a good architecture for any weights: the mask matters, the early weights do not
  shuffle_signs as good           magnitudes and places matter, the signs do not
Differences below a point mean little with few seeds; the spread over the seeds stands beside them. Survivors are
larger than other weights, also where a ticket starts, and reinit draws without regard to that. Large weights change
their signs slowly: signs that were shuffled are held more firmly than fresh ones, and may do worse than them.

What it leaves:
  DIR/seed_0/controls/reinit/level_01/   as a level of the run: ticket.pt with what the control starts from, written
                                         before it trains; finished.yaml, written last
  DIR/report.md, levels.csv, *.png       what bnfree lottery report writes, controls included

Draws depend on the run's seed, the level and the control alone: the same in all processes and every time. The same
command again goes on where it was stopped, and finished controls are not repeated.

Examples:
  bnfree lottery controls runs/digits_lottery
  bnfree lottery controls runs/digits_lottery --controls random_layerwise,reinit --levels 2-3 --seeds 0
"""

EARLY_BIRD_MANUAL = """\
usage: bnfree lottery early-bird FILE --density D [--window 5] [--tolerance 0.1] [--run_dir DIR] [options]

Looks for the ticket early: trains the dense network only until the mask that pruning would give has settled, then
prunes once, puts the surviving weights back to the rewind point, and trains them. The dense training is stopped when
the masks of the last --window epochs all differ from the newest one in less than --tolerance of the weights (Drawing
early-bird tickets, ICLR 2020).

  FILE                 the file of bnfree lottery run, or its name; score, scope, rewind, rewind_point and seeds are its
                       own
  --density D          share of the weights that the ticket keeps (default: the file's, if it has one level only)
  --window N           epochs whose masks are compared (default: 5)
  --tolerance T        share of the weights, 0 to 1 (default: 0.1). Two unrelated masks of density D differ in
                       2 * D * (1 - D) of the weights: 0.5 at density 0.5, 0.32 at 0.2, 0.1 at 0.05. A tolerance that
                       is not below is refused; at low densities give a smaller one
  --run_dir DIR        where everything goes (default: runs/<name of the file>, as for bnfree lottery run)
  --seeds 0,1,2        one search and one ticket for each
  --lottery.KEY=VALUE  another setting of the file's section lottery

Any other option is one of `bnfree fit` and holds for both trainings:

  bnfree lottery early-bird digits_lottery --density 0.5 --trainer.max_epochs=20

What it leaves, beside what bnfree lottery run left in the same directory:

  DIR/seed_0/early_bird/density_0.5/search/     the dense run, which stopped early; ticket.pt is the mask with the
                                                weights of that moment, metrics.csv has ticket/mask_distance
  DIR/seed_0/early_bird/density_0.5/level_01/   the ticket's run, as a level of bnfree lottery run
  DIR/report.md, levels.csv, *.png              what bnfree lottery report writes, with the early-bird tickets

The length of the schedule is that of the file in both trainings: a search that stops early has not seen its end.
The same command again goes on where it was stopped. A mask that has not settled by the end of the search is an error.
"""
