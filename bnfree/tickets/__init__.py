"""Lottery tickets as data: masks, scores, scopes, pruning steps, rewinding, controls and the ticket file."""

from bnfree.tickets.carrying import carry
from bnfree.tickets.controls import Control, ControlledTicket, random_masks, reinitialize, shuffle_signs
from bnfree.tickets.elastic import known_betas, squeeze, stretch
from bnfree.tickets.evidence import FlipCounts, effective_gradients
from bnfree.tickets.keyed import new_key
from bnfree.tickets.layers import LayerChoice, layer_choices, prunable_layers
from bnfree.tickets.learned_masks import masks_of_scores
from bnfree.tickets.locking import TicketKey, lock, unlock
from bnfree.tickets.mask_history import MaskHistory
from bnfree.tickets.masks import Masks, apply, checksum, current_masks, pack_masks, unpack_masks, zero_pruned
from bnfree.tickets.multi_prize import MultiPrize
from bnfree.tickets.ownership import Signature, commitment, occupancy, sign
from bnfree.tickets.pruning import least_density, prune
from bnfree.tickets.rewind_points import RewindPoint
from bnfree.tickets.rewinding import Snapshot, rewind, signs_of, take_snapshot, weights_checksum
from bnfree.tickets.schedule import kept_count, level_densities, ramped_density
from bnfree.tickets.scopes import Scope
from bnfree.tickets.scores import Score, ScoredLayer
from bnfree.tickets.scoring import score_weights
from bnfree.tickets.splitting import join_key, split_key
from bnfree.tickets.statistics import (
    LayerDensity,
    MaskOverlap,
    MaskStatistics,
    effective_density,
    effective_zeros,
    hamming_distance,
    mask_statistics,
    overlap,
)
from bnfree.tickets.ticket_file import Ticket, is_ticket, load_ticket, read_ticket, save_ticket
from bnfree.tickets.transferring import transfer
from bnfree.tickets.verification import Verification, verify

__all__ = [
    "Control",
    "ControlledTicket",
    "FlipCounts",
    "LayerChoice",
    "LayerDensity",
    "MaskHistory",
    "MaskOverlap",
    "MaskStatistics",
    "Masks",
    "MultiPrize",
    "RewindPoint",
    "Scope",
    "Score",
    "ScoredLayer",
    "Signature",
    "Snapshot",
    "Ticket",
    "TicketKey",
    "Verification",
    "apply",
    "carry",
    "checksum",
    "commitment",
    "current_masks",
    "effective_density",
    "effective_gradients",
    "effective_zeros",
    "hamming_distance",
    "is_ticket",
    "join_key",
    "kept_count",
    "known_betas",
    "layer_choices",
    "least_density",
    "level_densities",
    "load_ticket",
    "lock",
    "mask_statistics",
    "masks_of_scores",
    "new_key",
    "occupancy",
    "overlap",
    "pack_masks",
    "prunable_layers",
    "prune",
    "ramped_density",
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
    "transfer",
    "unlock",
    "unpack_masks",
    "verify",
    "weights_checksum",
    "zero_pruned",
]
