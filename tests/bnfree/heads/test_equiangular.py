"""Fixed class vectors: how near they come to the bound, and what the head leaves out."""

import pytest
import torch

from bnfree.backbones import ReActNet18
from bnfree.classifiers import named_classifier
from bnfree.errors import InputError
from bnfree.heads.equiangular import Equiangular, equiangular_vectors, welch_bound
from bnfree.packing import pack


def largest_cosine(vectors):
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    return (vectors @ vectors.T - torch.eye(len(vectors))).abs().max().item()


def test_vectors_stand_apart():
    # Figures of the literature's example: 100 vectors of 64 numbers.
    assert welch_bound(100, 64) == pytest.approx(0.0754, abs=5e-5)
    assert 0.0754 < largest_cosine(equiangular_vectors(100, 64)) <= 0.1207
    assert welch_bound(3, 2) == pytest.approx(0.5)
    assert largest_cosine(equiangular_vectors(10, 64)) < 1e-6


def test_vectors_are_those_of_their_seed_alone():
    before = torch.get_rng_state()
    assert equiangular_vectors(12, 5).equal(equiangular_vectors(12, 5))
    assert not equiangular_vectors(12, 5).equal(equiangular_vectors(12, 5, seed=1))
    assert torch.get_rng_state().equal(before)


def test_logits_do_not_know_the_strength_of_the_features():
    head, features = Equiangular(6, 3), torch.randn(4, 6)
    expected = torch.nn.functional.cosine_similarity(features[:, None], head.vectors[None], dim=2) / 0.07
    torch.testing.assert_close(head(features), expected)
    torch.testing.assert_close(head(100 * features), expected)


def test_nothing_is_trained_and_it_is_the_classifier():
    network = ReActNet18(num_classes=5, width=2, head="equiangular")
    assert not list(network.classifier.parameters())
    assert named_classifier(network) is network.classifier
    with pytest.raises(InputError, match="model has the head Equiangular, which is no linear layer"):
        pack(network)


def test_mistakes():
    with pytest.raises(InputError, match=r"max_cosine=0.1 is less than 0.5000, which 3 vectors of 2 numbers"):
        Equiangular(2, 3, max_cosine=0.1)
    with pytest.raises(InputError, match="temperature=0 must"):
        Equiangular(2, 3, temperature=0)
