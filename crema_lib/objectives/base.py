"""What all objectives share: options that are remembered, and saving of encoder and heads."""

import contextlib
import json
from pathlib import Path
from typing import ClassVar

from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import CremaError
from ..sit import SiT


class Objective(nn.Module):
    """Base class. A subclass calls `super().__init__(encoder, **its options)`, builds its heads, and defines `forward(batch)`.

    Saved as a folder: `config.json` and `model.safetensors` are the encoder's (so `SiT.from_pretrained` reads the same folder),
    `objective.json` and `heads.safetensors` hold the options and everything that is not the encoder.
    """

    encoders: ClassVar = {"SiT": SiT}  # classes that `from_pretrained` may meet

    def __init__(self, encoder, **options):
        super().__init__()
        self.encoder, self.options = encoder, options

    def save_pretrained(self, folder):
        """Write encoder, heads and options; every file is safetensors or JSON."""
        folder = Path(folder)
        self.encoder.save_pretrained(folder)
        heads = {key: value.contiguous() for key, value in self.state_dict().items() if not key.startswith("encoder.")}
        save_file(heads, folder / "heads.safetensors")
        saved = {"class": type(self).__name__, "encoder": type(self.encoder).__name__, "options": self.options}
        (folder / "objective.json").write_text(json.dumps(saved, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, folder):
        """Read what `save_pretrained` wrote.

        Raises:
            CremaError: a file is missing, or was written by another class.
        """
        folder = Path(folder)
        try:
            saved = json.loads((folder / "objective.json").read_text())
            heads = load_file(folder / "heads.safetensors")
        except Exception as error:
            raise CremaError(f"{folder} holds no readable objective: {error}") from None
        if saved["class"] != cls.__name__:
            raise CremaError(f"{folder} holds the objective {saved['class']}, not {cls.__name__}")
        with contextlib.redirect_stdout(None):  # the hub's mixin prints where it loads from
            encoder = cls.encoders[saved.get("encoder", "SiT")].from_pretrained(str(folder))
        model = cls(encoder, **saved["options"])
        missing, unexpected = model.load_state_dict(heads, strict=False)
        if unexpected or any(not key.startswith("encoder.") for key in missing):
            raise CremaError(f"the heads in {folder} do not fit {cls.__name__} with the options beside them")
        return model
