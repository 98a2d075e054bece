"""Every objective is one graph to torch.compile, also in half precision: nothing in a step waits for the device."""

import pytest
import torch
from test_objectives_all import batch, model, run

from crema_lib.objectives import OBJECTIVES

VARIANTS = [(name, {"regulariser": "uniformity"} if name == "cr_mae" else {}) for name in OBJECTIVES]  # other regularisers are in others


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=list(OBJECTIVES))
def test_one_graph(name, options):
    torch.manual_seed(0)
    m, records = model(name, **options), batch()
    torch._dynamo.reset()
    compiled = torch.compile(m, fullgraph=True, backend="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, fast = run(m, records), run(compiled, records)
    for key, value in plain.items():
        assert fast[key].item() == pytest.approx(value.item(), rel=1e-4), key
