"""bnfree: binary neural networks without batch normalisation.

The method itself needs torch alone: `bnfree.backbones`, `bnfree.calibration`, `bnfree.clipping`, `bnfree.tickets`,
`bnfree.packing`. On top of it stand `bnfree.lightning_modules`, `bnfree.datamodules` and `bnfree.callbacks`.
"""

from bnfree import import_names

__version__ = "0.1.0"

import_names.install()
