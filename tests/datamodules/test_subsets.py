"""Subsets of the training images: another one in each epoch, or one that scores choose."""

import pytest
import torch

from bnfree.datamodules.randomness import epoch_order, subset_order
from bnfree.datamodules.sampler import GlobalBatchSampler
from bnfree.datamodules.score_subsets import choose_by_score, read_scores, write_scores
from bnfree.errors import InputError


def test_without_replacement_every_image_comes_once_before_one_comes_again():
    epochs = [subset_order(100, 25, 7, epoch) for epoch in range(8)]
    for start in (0, 4):
        assert sorted(torch.cat(epochs[start : start + 4]).tolist()) == list(range(100))
    assert not torch.equal(torch.cat(epochs[:4]), torch.cat(epochs[4:]))
    # Also where epochs do not divide the set: so much of the second round is seen.
    uneven = torch.cat([subset_order(10, 4, 0, epoch) for epoch in range(5)])
    assert uneven.bincount().tolist() == [2] * 10


def test_with_replacement_subsets_are_independent():
    epochs = [subset_order(100, 25, 7, epoch, replacement=True) for epoch in range(8)]
    assert all(len(set(epoch.tolist())) == 25 for epoch in epochs)
    assert 60 < len(set(torch.cat(epochs[:4]).tolist())) < 90


@pytest.mark.parametrize("replacement", [False, True])
def test_the_whole_set_is_the_ordinary_order(replacement):
    assert torch.equal(subset_order(40, 40, 3, 5, replacement), epoch_order(40, 3, 5))


def test_processes_share_the_subset_and_resuming_goes_on_in_it():
    def sampler(world=1, rank=0):
        found = GlobalBatchSampler(96, 8 // world, world, rank, shuffle=True, drop_last=True, subset=24)
        found.set_epoch(2)
        return found

    alone = torch.cat(list(sampler()))
    assert torch.equal(alone, subset_order(96, 24, 0, 2))
    ranks = [torch.cat(list(sampler(4, rank))) for rank in range(4)]
    assert len(set(torch.cat(ranks).tolist())) == 24
    assert set(torch.cat(ranks).tolist()) == set(alone.tolist())
    assert torch.equal(torch.cat(list(sampler().iterate_from(8))), alone[8:])
    assert len(sampler()) == 3


def test_a_data_module_shows_the_subset(tiny):
    data = tiny(epoch_fraction=0.25, batch_size=4, augment=False)
    loader = data.train_dataloader()
    seen = [loader.sampler.set_epoch(epoch) or [b.positions.tolist() for b in loader] for epoch in range(4)]
    assert [len(epoch) for epoch in seen] == [3] * 4
    assert sorted(place for epoch in seen for batch in epoch for place in batch) == list(range(48))


def test_the_hardest_are_kept_in_their_order(tmp_path):
    indices = torch.tensor([7, 3, 5, 1])
    scores = {7: 0.1, 3: 0.9, 5: 0.5, 1: 0.7}
    assert choose_by_score(indices, scores, 0.5).tolist() == [3, 1]
    assert choose_by_score(indices, scores, 0.5, skip=0.25).tolist() == [5, 1]
    assert choose_by_score(indices, scores, 1.0).tolist() == [7, 3, 5, 1]
    with pytest.raises(InputError, match=r"scores have none for 1 of 4 training images, such as image 5"):
        choose_by_score(indices, {7: 0.0, 3: 0.0, 1: 0.0}, 0.5)
    write_scores(tmp_path / "scores.csv", ["a", "b,c"], [4, 2], [0.1, 1 / 3])
    assert read_scores(tmp_path / "scores.csv") == {4: 0.1, 2: 1 / 3}


def test_training_on_what_scores_choose(tiny, tmp_path):
    path = str(tmp_path / "scores.csv")
    write_scores(path, [""] * 60, range(60), range(60))
    whole, half = tiny(), tiny(scores=path, keep=0.5)
    assert half.num_training_images == 24
    kept = half._parts["train"].indices if half.setup("fit") is None else None
    everything = whole._parts["train"].indices if whole.setup("fit") is None else None
    assert sorted(kept.tolist()) == sorted(everything.tolist())[24:]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epoch_fraction": 0}, "epoch_fraction=0 must be a share"),
        ({"keep": 0.5}, "keep=0.5 needs scores"),
        ({"scores": "x", "keep": 0.9, "skip_hardest": 0.2}, "skip_hardest=0.2 must be"),
        ({"scores": "nowhere.csv"}, r"scores='nowhere.csv' cannot be read"),
    ],
)
def test_mistakes(tiny, options, sentence):
    with pytest.raises(InputError, match=sentence):
        tiny(**options).setup("fit")


def test_files_of_other_content_are_refused(tmp_path):
    for text in ("", "image,score\n1,x\n", "a,b\n1,2\n", "image,name,score\n1,a,nan\n"):
        (tmp_path / "scores.csv").write_text(text)
        if not text:
            assert read_scores(tmp_path / "scores.csv") == {}
            continue
        with pytest.raises(InputError, match="scores="):
            read_scores(tmp_path / "scores.csv")
