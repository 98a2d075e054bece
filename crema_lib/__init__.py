"""crema_lib: the thin module behind the CREMA notebook book.

One direction of flow, each module one step, importing only what is to its left::

    errors, paths, carbon, params, runs -> weights -> data (archive ... store, labels, splits) -> leakage
        -> parallel, precision, views, sit, xresnet -> embeddings -> metrics, handcrafted -> probes -> objectives
        -> checkpoints, batches, sharding, state, allocation, engine -> cost, pretrain, finetune -> baselines
        -> evaluation, efficiency, folds, identity, leadwise, readings, reconstruction, shift, maps
        -> reader -> search, composition, results, publish, cards -> plots -> notebook -> kernels -> bookbuild -> words, site, study
        -> __main__
"""

import warnings

# Progress bars here are text; what the libraries below say of missing notebook widgets would only spoil a chapter's page.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
