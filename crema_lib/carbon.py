"""Electricity and carbon of a run, by the formula of Lannelongue et al. (2021, doi:10.1002/advs.202100707)."""

from .errors import CremaError

# Watts of a core are ours, amid those that Lannelongue et al. (2021) list; what a building adds is the default
# of their calculator where nothing is known. Watts of a GPU are its maker's limit. Grams of CO2 equivalents a kWh: the world's average of
# 2018 in the Global Energy & CO2 Status Report 2019 of the International Energy Agency.
CORE_WATTS, OVERHEAD, INTENSITY = 12.0, 1.67, 475.0
GPU_WATTS = {"T4": 70.0, "A100": 400.0, "H100": 700.0, "H200": 700.0}


def power(device):
    """Watts of the computer of a run, by the `device` of its record: `CORE_WATTS` a core, or `GPU_WATTS`.

    Raises:
        CremaError: a GPU whose watts are not known.
    """
    if device["type"] == "cpu":
        return device["cpus"] * CORE_WATTS
    known = [watts for name, watts in GPU_WATTS.items() if name in device["name"]]
    if not known:
        raise CremaError(f"the watts of {device['name']} are not known: add the device to GPU_WATTS of {__name__}, with its source")
    return known[0]


def seconds(record):
    """Time that stands behind a record, s: its run's, or that of its trainings by their own logs where that is more. A chapter that finds
    trained networks takes seconds itself."""
    kept = record.get("extra", {})
    logged = [60 * kept.get("minutes", 0), *(curve["seconds"][-1] for curve in kept.get("curves", {}).values())]
    return max(record["wall_seconds"], sum(logged) + sum(run["seconds"] for run in kept.get("trained", ())))


def energy(record):
    """Electricity that the computer of a run took, kWh: hours x watts x `OVERHEAD`.

    All cores are taken to be busy, and memory is left out. Raises as `power` does.
    """
    return seconds(record) / 3600 * power(record["device"]) / 1000 * OVERHEAD
