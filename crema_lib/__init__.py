"""crema_lib: the thin module behind the CREMA notebook book.

One direction of flow, each module one step, importing only what is to its left::

    errors, paths -> weights -> data (archive ... store, labels, splits) -> parallel, precision, views, sit, xresnet -> embeddings
        -> metrics, handcrafted -> probes -> objectives -> checkpoints, batches, sharding, state, allocation, engine
        -> cost, pretrain, finetune -> baselines
        -> evaluation, efficiency, folds, leakage, identity, leadwise, readings, reconstruction, shift, maps
        -> reader -> runs -> results, publish, cards -> plots -> params, notebook -> kernels -> bookbuild -> site, study -> __main__
"""

import warnings

# Progress bars here are text; what the libraries below say of missing notebook widgets would only spoil a chapter's page.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
