"""Lottery tickets as data: masks, scores, scopes, pruning steps, rewinding, controls and the ticket file."""

from bnfree.tickets.controls import random_masks, reinitialize, shuffle_signs
from bnfree.tickets.elastic import squeeze, stretch
from bnfree.tickets.evidence import FlipCounts, effective_gradients
from bnfree.tickets.keyed import new_key
from bnfree.tickets.layers import LayerChoice, layer_choices, prunable_layers
from bnfree.tickets.masks import Masks, apply, checksum, current_masks, pack_masks, unpack_masks, zero_pruned
from bnfree.tickets.ownership import Signature, commitment, occupancy, sign
from bnfree.tickets.pruning import least_density, prune
from bnfree.tickets.rewinding import Snapshot, rewind, signs_of, take_snapshot
from bnfree.tickets.schedule import kept_count, level_densities
from bnfree.tickets.scopes import SCOPES, Scope
from bnfree.tickets.scores import SCORES, Score, ScoredLayer
from bnfree.tickets.scoring import score_weights
from bnfree.tickets.splitting import join_key, split_key
from bnfree.tickets.statistics import (
    LayerDensity,
    MaskOverlap,
    MaskStatistics,
    effective_zeros,
    hamming_distance,
    mask_statistics,
    overlap,
)
from bnfree.tickets.ticket_file import Ticket, is_ticket, load_ticket, read_ticket, save_ticket
from bnfree.tickets.verification import Verification, verify

__all__ = [
    "SCOPES",
    "SCORES",
    "FlipCounts",
    "LayerChoice",
    "LayerDensity",
    "MaskOverlap",
    "MaskStatistics",
    "Masks",
    "Scope",
    "Score",
    "ScoredLayer",
    "Signature",
    "Snapshot",
    "Ticket",
    "Verification",
    "apply",
    "checksum",
    "commitment",
    "current_masks",
    "effective_gradients",
    "effective_zeros",
    "hamming_distance",
    "is_ticket",
    "join_key",
    "kept_count",
    "layer_choices",
    "least_density",
    "level_densities",
    "load_ticket",
    "mask_statistics",
    "new_key",
    "occupancy",
    "overlap",
    "pack_masks",
    "prunable_layers",
    "prune",
    "random_masks",
    "read_ticket",
    "reinitialize",
    "rewind",
    "save_ticket",
    "score_weights",
    "shuffle_signs",
    "sign",
    "signs_of",
    "split_key",
    "squeeze",
    "stretch",
    "take_snapshot",
    "unpack_masks",
    "verify",
    "zero_pruned",
]
