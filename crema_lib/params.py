"""The one schema of every parameter that a chapter may have, and the check that papermill does not make.

Papermill takes an unknown name in silence and turns `-p x false` into the true string "false": `check` stops both.
"""

import difflib
import math
from dataclasses import dataclass

import yaml

from .errors import CremaError
from .paths import home, resolve


@dataclass(frozen=True)
class Parameter:
    """One parameter: its type, what it means (with the unit), and the values it may take (bounds are inclusive)."""

    name: str
    type: type
    meaning: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple = ()
    empty: bool = False  # a list may have no entry
    changed: bool = False  # a choice may be followed by changes, see `parse_variant`

    @property
    def allowed(self):
        if self.choices:
            return "one of " + ", ".join(self.choices)
        bounds = [f"at least {self.low:g}"] * (self.low > -math.inf) + [f"at most {self.high:g}"] * (self.high < math.inf)
        return " and ".join(bounds)


SHIFTS = ("baseline wander", "muscle artefact", "electrode motion", "powerline", "white", "gain", "low-pass", "high-pass", "sampling rate",
          "lost lead", "leads", "reversal", "length")  # fmt: skip
OBJECTIVES = ("cr_mae", "mae", "st_mem", "simclr", "vicreg", "cmsc", "w2v_cmsc_rlm", "jepa")
LEADS = ("12", "8", "6", "4", "3", "2", "1")  # numbers of leads with a subset of their own, see `data.leads.SUBSETS`
SCHEMA = {
    p.name: p
    for p in (
        Parameter("profile", str, "name of the profile; part of the folder of results"),
        Parameter("data", str, "'simulated', or the name of a prepared data set"),
        Parameter("records", int, "recordings to simulate, 0 for all of a prepared set", 0, 10_000_000),
        Parameter("fs", int, "sampling rate, Hz", 25, 1000),
        Parameter("seconds", int, "length of a record, s", 1, 60),
        Parameter("seed", int, "start of every random generator", 0, 2**32 - 1),
        Parameter("model", str, "size of the Signal Transformer", choices=("xs", "ti", "s", "b")),
        Parameter("width", int, "width of a token, 0 for as the size says", 0, 4096),
        Parameter("depth", int, "transformer blocks, 0 for as the size says", 0, 64),
        Parameter("patch", int, "length of a token, samples", 1, 1000),
        Parameter("stem", str, "how samples become tokens", choices=("patch", "conv")),
        Parameter("objective", str, "pretraining objective", choices=OBJECTIVES),
        Parameter("objectives", list, "pretraining objectives to compare, each NAME or NAME+CHANGES", choices=OBJECTIVES, changed=True),
        Parameter("once", list, "those of the objectives that get a single run", choices=OBJECTIVES, empty=True, changed=True),
        Parameter("objective_records", int, "recordings to simulate for that comparison, 0 for all of a prepared set", 0, 10_000_000),
        Parameter("objective_epochs", int, "passes over the training records of each objective that is compared", 1, 100_000),
        Parameter("ablations", list, "changes to CR-MAE, each NAME=VALUE, several at once joined by +", empty=True),
        Parameter("mask_ratio", float, "share of tokens that is hidden", 0.05, 0.95),
        Parameter("block", int, "patches that are hidden together, 0 for as the objective says", 0, 1000),
        Parameter("decoder_width", int, "width of the decoder, 0 for as the objective says", 0, 4096),
        Parameter("decoder_depth", int, "its transformer blocks, 0 for as the objective says", 0, 64),
        Parameter("contrast_weight", float, "lambda, the weight of the contrastive regulariser", 0, 100),
        Parameter("contrast_schedule", str, "how lambda moves over the run", choices=("constant", "rising", "falling")),
        Parameter("regulariser", str, "what CR-MAE adds to its reconstruction", choices=("infonce", "vicreg", "uniformity", "cmsc")),
        Parameter("temperature", float, "of the contrastive softmax", 0.001, 10),
        Parameter("contrasted", str, "what CR-MAE pools for its regulariser", choices=("mean", "middle", "layers", "moments")),
        Parameter("projected", bool, "a projector stands between that and the regulariser"),
        Parameter("latent_weight", float, "mu, the weight of predicted latents, 0 for no teacher", 0, 100),
        Parameter("measured_weight", float, "nu, the weight of predicted measurements, 0 for none", 0, 100),
        Parameter("lead_drop", float, "probability that a view loses a random subset of its leads", 0, 1),
        Parameter("noise", float, "largest level of white noise and of wander added to a view, mV", 0, 10),
        Parameter("gain", float, "spread of the random gain of a view", 0, 2),
        Parameter("momentum", float, "of a teacher (JEPA, CR-MAE with latents) at the first step", 0, 1),
        Parameter("patch_norm", bool, "draw each patch without its own level and size"),
        Parameter("epochs", int, "passes over the training records", 1, 100_000),
        Parameter("batch_size", int, "records a step", 2, 65_536),
        Parameter("lr", float, "highest learning rate", 1e-8, 10),
        Parameter("weight_decay", float, "of AdamW", 0, 10),
        Parameter("warmup", float, "share of the steps in which the learning rate rises", 0, 0.9),
        Parameter("precision", str, "mixed precision", choices=("no", "bf16", "fp16")),
        Parameter("accumulate", int, "parts that a batch is computed in, where memory is short", 1, 4096),
        Parameter("recompute", bool, "compute activations a second time in the backward pass, where memory is short"),
        Parameter("shard", bool, "share weights, gradients and optimiser states among several processes, where memory is short"),
        Parameter("compile", bool, "torch.compile the objective: pays in runs of many minutes"),
        Parameter("checkpoint", str, "folder of a pretrained model, '' for what the pretraining chapter made"),
        Parameter("pretrainings", int, "runs of pretraining, with seeds SEED, SEED + 1, ...", 1, 100),
        Parameter("checkpoints", list, "further pretrained models, each NAME=FOLDER", empty=True),
        Parameter("readout", str, "how tokens become one embedding", choices=("mean", "cls", "layers", "moments")),
        Parameter("tasks", list, "label sets to probe", choices=("all", "diag", "sub", "super", "form", "rhythm", "shared", "sex")),
        Parameter("curve_tasks", list, "label sets to draw curves of", choices=("all", "diag", "sub", "super", "form", "rhythm", "sex")),
        Parameter("fractions", list, "labelled training recordings, per cent", choices=("1", "2", "5", "10", "25", "50", "100")),
        Parameter("draws", int, "how often each fraction is drawn", 1, 100),
        Parameter("models", list, "what is trained on a fraction", choices=("probe", "finetune", "boosting")),
        Parameter("lead_counts", list, "numbers of leads that frozen encoders are shown", choices=LEADS),
        Parameter("tuned_leads", list, "numbers of leads that networks are fine-tuned on", choices=LEADS, empty=True),
        Parameter("heads", list, "what one network learns", choices=("all", "diag", "sub", "super", "form", "rhythm", "sex", "age")),
        Parameter(
            "networks",
            list,
            "what to train",
            choices=("CR-MAE", "CR-MAE, last 2 blocks", "random initialisation", "xresnet1d101", "features + boosting"),
        ),
        Parameter("seeds", int, "runs of each network, with seeds 0, 1, ...", 1, 100),
        Parameter("finetune_epochs", float, "passes over the labelled records", 0.01, 10_000),
        Parameter("finetune_batch", int, "labelled records a step", 2, 65_536),
        Parameter("finetune_lr", float, "highest learning rate of fine-tuning", 1e-8, 10),
        Parameter("finetune_checks", int, "how often a run is scored on fold 9", 1, 1000),
        Parameter("layer_decay", float, "factor on the learning rate from each layer to the one before it", 0.1, 1),
        Parameter("drop_path", float, "stochastic depth, probability at the last block", 0, 0.9),
        Parameter("token_drop", float, "share of tokens left out in fine-tuning", 0, 0.95),
        Parameter("crop", float, "window of fine-tuning, s, 0 for the whole record", 0, 60),
        Parameter("cnn_epochs", float, "passes of the convolutional network", 0.01, 10_000),
        Parameter("cnn_lr", float, "highest learning rate of the convolutional network", 1e-8, 10),
        Parameter("cnn_crop", float, "its window, s, 0 for the whole record", 0, 60),
        Parameter("bins", int, "bins of probability for reliability and ECE", 1, 100),
        Parameter("sensitivity", float, "share of positives that a threshold must find", 0.01, 1),
        Parameter("others", list, "further prepared data sets to compare with", empty=True),
        Parameter("groupings", list, "what is held out at home, group by group", choices=("device", "site", "year")),
        Parameter("group_size", int, "recordings that a group needs to be held out", 2, 10_000_000),
        Parameter("label_size", int, "positives and negatives that a label needs at home and away", 1, 10_000),
        Parameter("away_records", int, "recordings of each other source that are looked at, 0 for all", 0, 10_000_000),
        Parameter("few", list, "labelled recordings away from home", choices=("25", "50", "100", "200", "500", "1000")),
        Parameter("few_draws", int, "how often those are drawn", 1, 100),
        Parameter("map_records", int, "training records that a map is fitted on, 0 for all", 0, 10_000_000),
        Parameter("map_neighbours", int, "neighbours of a record that shape a map", 2, 500),
        Parameter("map_seeds", int, "maps with seeds 0, 1, ... that are held against each other", 2, 20),
        Parameter("shift_task", str, "label set to judge controlled shifts on", choices=("super", "all", "shared")),
        Parameter("wave_folder", str, "folder of LUDB with its marks of waves, '' for the fetched ludb, else no errors by wave"),
        Parameter("noise_folder", str, "folder of noise recordings, '' for the fetched nstdb, else simulated ones"),
        Parameter("snrs", list, "signal-to-noise ratios, dB", choices=("24", "18", "12", "6", "0", "-6")),
        Parameter("conditions", list, "kinds of controlled shift", choices=SHIFTS),
        Parameter("duplicate_threshold", float, "correlation from which two recordings count as one", 0.5, 1),
        Parameter("repeats", int, "seeds of the experiments with a covariate", 2, 10_000),
        Parameter("bootstrap", int, "resamplings of the patients for an interval", 1, 100_000),
        Parameter("device", str, "where to compute", choices=("auto", "cpu", "cuda")),
        Parameter("out", str, "folder of what a run leaves behind, '' for _runs/PROFILE-sSEED"),
    )
}
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "True or False", list: "a list of texts"}


def check(values):
    """Check parameters against the `SCHEMA`.

    Args:
        values: dict name -> value.

    Returns:
        The same parameters as a new dict, whole numbers made floats where the schema says float.

    Raises:
        CremaError: a name is unknown, a type is wrong or a value is out of range; the sentence names the parameter.
    """
    for name in values:
        if name not in SCHEMA:
            close = difflib.get_close_matches(str(name), SCHEMA, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise CremaError(f"unknown parameter {name}{hint}: known are {', '.join(sorted(SCHEMA))}")
    return {name: _checked(SCHEMA[name], value) for name, value in values.items()}


def _checked(p, value):
    if p.type is float and type(value) is int:
        value = float(value)
    if type(value) is not p.type:
        raise CremaError(f"parameter {p.name} must be {_NAMES[p.type]}, not {value!r}{_hint(p, value)}")
    if p.type is list and (not (value or p.empty) or any(type(entry) is not str for entry in value)):
        raise CremaError(f"parameter {p.name} must be a list of {'' if p.empty else 'one or more '}texts, not {value!r}")
    if p.type in (int, float) and not p.low <= value <= p.high:  # a NaN fails both comparisons
        raise CremaError(f"parameter {p.name} = {value!r} is out of range: {p.meaning}, {p.allowed}")
    for entry in value if p.type is list else [value]:
        if p.choices and (parse_variant(entry)[0] if p.changed else entry) not in p.choices:
            raise CremaError(f"parameter {p.name} = {entry!r} is not known: {p.meaning}, {p.allowed}")
    return value


def _hint(p, value):
    """The second half of the sentence, for the slips that YAML and papermill provoke."""
    if type(value) is not str:
        return ""
    if p.type is bool and value.lower() in ("true", "false", "yes", "no"):
        return f": write {'True' if value.lower() in ('true', 'yes') else 'False'} (papermill -p reads only True and False)"
    if p.type is list:
        entries = value.strip("[] ").replace("'", '"')  # papermill -p hands a list over as text
        return f": write [{entries}] in YAML, or papermill -y '{p.name}: [{entries}]'"
    if p.type is float:
        try:
            number = float(value)
        except ValueError:
            return ""
        mantissa, e, exponent = value.lower().partition("e")
        fixed = f"{mantissa if '.' in mantissa else mantissa + '.0'}e{int(exponent):+d}" if e else repr(number)
        return f": YAML reads {value} as text, write {fixed}"
    return ""


def parse(name, text):
    """The value of a command-line override `name=text`, by the type that the schema gives the name, checked.

    Raises:
        CremaError: as `check`.
    """
    kind = SCHEMA[name].type if name in SCHEMA else str
    if kind is str:
        value = text
    elif kind is list:
        value = [entry.strip() for entry in text.strip("[] ").split(",") if entry.strip()]
    else:
        try:
            value = float(text) if kind is float else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError):
            value = text
    return check({name: value})[name]


def parse_pair(text):
    """(name, value) of a text `name=value`, see `parse`.

    Raises:
        CremaError: no equals sign, or as `parse`.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise CremaError(f"{text} is no name=value")
    return name, parse(name, value)


def parse_change(text):
    """Dict of the parameters that a change names: "mask_ratio=0.75", or several with "+" between them; "" changes nothing.

    Raises:
        CremaError: as `parse_pair`.
    """
    return dict(parse_pair(part) for part in text.split("+")) if text else {}


def parse_variant(text):
    """(name, change) of a choice with changes, such as "cr_mae+contrast_weight=0.0"; of a choice as it is the change is empty.

    Raises:
        CremaError: as `parse_pair`.
    """
    name, _, change = text.partition("+")
    return name, parse_change(change)


def load_profile(profile):
    """Parameters of a profile: a name (`quick` is params/quick.yaml) or the path of a YAML file, checked.

    Raises:
        CremaError: no such profile, no readable YAML, or a parameter that `check` refuses.
    """
    known = sorted(path.stem for path in (home() / "params").glob("*.yaml"))
    path = home() / "params" / f"{profile}.yaml" if str(profile) in known else resolve(profile)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise CremaError(f"no profile {profile}: known are {', '.join(known) or 'none'}, or give the path of a YAML file") from None
    except yaml.YAMLError as error:
        raise CremaError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise CremaError(f"{path} must hold one 'name: value' a line")
    try:
        return check(values)
    except CremaError as error:
        raise CremaError(f"{path}: {error}") from None
