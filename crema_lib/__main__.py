"""The command line: `python -m crema_lib COMMAND`. Each command imports what it needs, so that --help answers at once."""

import argparse
import sys

from . import __version__
from .errors import CremaError


def _data_commands(commands):
    parser = commands.add_parser("data", help="list, fetch, verify and prepare ECG data sets")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    actions.add_parser("list", help="data sets of the manifest").set_defaults(run=_data_list)

    fetch = actions.add_parser("fetch", help="download a data set from its archive (resumes, checks checksums)")
    fetch.add_argument("name", help="a name that `data list` prints")
    fetch.add_argument("--dest", metavar="DIR", help="folder to hold it (default: $CREMA_DATA/NAME)")
    fetch.add_argument("--only", metavar="PATTERN", help="only files whose path matches, e.g. 'records100/*'")
    fetch.set_defaults(run=_data_fetch)

    verify = actions.add_parser("verify", help="compare a folder with the archive's checksums")
    verify.add_argument("name")
    verify.add_argument("--source", metavar="DIR", help="folder that holds it (default: $CREMA_DATA/NAME)")
    verify.set_defaults(run=_data_verify)

    prepare = actions.add_parser("prepare", help="turn recordings into one memory-mapped store")
    prepare.add_argument("name")
    prepare.add_argument("--source", metavar="DIR", help="folder that holds the recordings (default: $CREMA_DATA/NAME)")
    prepare.add_argument("--out", metavar="DIR", help="folder of the store (default: $CREMA_DATA/stores/NAME-FShz-SECONDSs)")
    prepare.add_argument("--fs", type=int, default=100, help="sampling rate, Hz (default: %(default)s)")
    prepare.add_argument("--seconds", type=int, default=10, help="length of a record, s (default: %(default)s)")
    prepare.add_argument("--unit", help="of recordings that name none: mV, uV, nV or V")
    prepare.add_argument("--rate", type=float, help="sampling rate of recordings that name none, Hz")
    prepare.add_argument("--workers", type=int, help="processes (default: one a core)")
    prepare.add_argument("--limit", type=int, help="only the first so many records")
    prepare.set_defaults(run=_data_prepare)


def _data_list(args):
    from .data import manifest

    print(manifest.listing())


def _data_fetch(args):
    from .data import archive

    archive.fetch(args.name, **_given(args, "dest", "only"))


def _data_verify(args):
    from .data import archive

    print(f"{args.name}: {len(archive.verify(args.name, **_given(args, 'source'))):,} files, all as the archive publishes them")


def _data_prepare(args):
    from .data import prepare

    store, report = prepare.prepare(args.name, **_given(args, "source", "out", "fs", "seconds", "unit", "rate", "workers", "limit"))
    out = report[report["action"] == "left out"]
    for _, row in out.head(5).iterrows():
        print(f"left out {row['record']}: {row['reason']}")
    _tell_passed_over(report)
    print(f"{store.path}: {len(store):,} records, {len(out):,} left out, {len(report) - len(out):,} notes (report.csv)")


def _tell_passed_over(report):
    for reason in report.loc[report["action"] == "passed over", "reason"]:
        print(reason)


def _book_command(commands):
    parser = commands.add_parser("book", help="run the chapters with a profile and render the book")
    parser.add_argument("--profile", default="quick", help="quick, ptbxl, colab or a YAML file (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NN", help="run only these chapters, e.g. --only 03 04")
    parser.add_argument("-p", dest="overrides", action="append", default=[], metavar="NAME=VALUE", help="overrule one parameter")
    parser.add_argument("--out", default="_build", metavar="DIR", help="build folder (default: %(default)s)")
    parser.add_argument("--no-render", dest="render_pages", action="store_false", help="run the chapters, make no pages")
    parser.add_argument("--jobs", type=int, help="chapters that run at the same time (two if there are two cores or more)")
    parser.set_defaults(run=_book)


def _book(args):
    from . import bookbuild

    print(bookbuild.build(**_given(args, "profile", "only", "overrides", "out", "render_pages", "jobs")))


def _site_command(commands):
    parser = commands.add_parser("site", help="render the book with the kept outputs of a run on real recordings, without running anything")
    parser.add_argument("--profile", default="ptbxl", help="whose outputs in results/PROFILE/pages (default: %(default)s)")
    parser.add_argument("--out", default="_build/site", metavar="DIR", help="build folder (default: %(default)s)")
    parser.add_argument(
        "--collect", nargs="+", metavar="FILE", help="keep what these executed notebooks (or folders of them) show; no rendering"
    )
    parser.set_defaults(run=_site)


def _site(args):
    from . import site

    if args.collect:
        for path in (path for name in args.collect for path in site.collect(name)):
            print(path)
    else:
        print(site.render(args.profile, args.out))


def _study_command(commands):
    parser = commands.add_parser(
        "study",
        help="run what is left of a profile's chapters within a budget, then keep records and pages",
        description="Run what is left of a profile's chapters, in as many sittings as it takes. When all is done, records are copied to "
        "results/PROFILE and what the pages show is kept. When the minutes are spent, or on Ctrl-C or SIGTERM, chapters that run are "
        "stopped: pretraining and fine-tuning save and go on at that step, any other computation of an unfinished chapter starts anew. "
        "Finished chapters are run again where their source, parameters or data, or a chapter that they need, have changed; a change of "
        "crema_lib is not seen (delete records/NN_name.key in the run's folder).",
    )
    parser.add_argument("--minutes", type=float, help="start nothing after so many, and stop what runs (default: no limit)")
    parser.add_argument("--profile", default="ptbxl", help="quick, ptbxl, colab or a YAML file (default: %(default)s)")
    parser.add_argument("-p", dest="overrides", action="append", default=[], metavar="NAME=VALUE", help="overrule one parameter")
    parser.add_argument("--out", metavar="DIR", help="folder of the run (default: _runs/PROFILE-sSEED)")
    parser.add_argument("--jobs", type=int, help="chapters that run at the same time (two if there are two cores or more)")
    parser.set_defaults(run=_study)


def _study(args):
    from .study import study

    study(**_given(args, "profile", "minutes", "overrides", "out", "jobs"))


def _pretrain_command(commands):
    parser = commands.add_parser(
        "pretrain",
        help="pretrain an encoder with one objective",
        description="Pretrain an encoder with one objective. For several GPUs or machines: accelerate launch -m crema_lib pretrain ...",
    )
    parser.add_argument("--objective", help="cr_mae, mae, st_mem, simclr, vicreg, cmsc, w2v_cmsc_rlm or jepa (default: the profile's)")
    parser.add_argument("--profile", default="quick", help="quick, ptbxl, colab or a YAML file (default: %(default)s)")
    parser.add_argument("-p", dest="overrides", action="append", default=[], metavar="NAME=VALUE", help="overrule one parameter")
    parser.add_argument("--out", metavar="DIR", help="folder of the run (default: _runs/PROFILE-OBJECTIVE-sSEED)")
    parser.set_defaults(run=_pretrain)


def _pretrain(args):
    from types import SimpleNamespace

    from accelerate import PartialState

    from . import notebook, params
    from .paths import resolve
    from .pretrain import OPTIONS, PARAMETERS, pretrain, unused

    chosen = {}
    for text in args.overrides:
        name, chosen[name] = params.parse_pair(text)
        if name not in PARAMETERS:
            raise CremaError(f"pretraining reads no parameter {name}: it reads {', '.join(PARAMETERS)}")
    if args.objective:
        chosen["objective"] = params.parse("objective", args.objective)
    p = SimpleNamespace(**params.load_profile(args.profile) | chosen)
    if wrong := [name for name in unused(p.objective, p.latent_weight) if name in chosen]:
        has = [name for name in OPTIONS if name not in unused(p.objective, p.latent_weight)]
        raise CremaError(f"the objective {p.objective} has no {wrong[0]}: it has {', '.join(has)}")
    p.run_dir = resolve(args.out or f"_runs/{p.profile}-{p.objective}-s{p.seed}")
    process = PartialState(cpu=p.device == "cpu")
    with process.main_process_first():  # the first one may have to write the simulated recordings
        store = notebook.open_data(p)
    pretrain(p, store)
    if process.is_main_process:
        print(f"the model is in {p.run_dir / 'pretrain' / 'model'}")


def _search_command(commands):
    parser = commands.add_parser(
        "search",
        help="try changes of a profile and keep what each reaches on fold 9",
        description="Try changes of a profile, one after another, and keep what each reaches on fold 9 in a log that the book prints. A "
        "change of pretraining (mask_ratio=0.75, patch=50+lr=1e-3, objective=jepa) is judged by linear probes, one of fine-tuning "
        "(finetune_lr=1e-3) by the network itself. Trials in the log are not run again; an interrupted one goes on.",
    )
    parser.add_argument("changes", nargs="+", metavar="CHANGE", help="name=value, several joined by +; '' for the profile as it is")
    parser.add_argument("--profile", default="ptbxl", help="quick, ptbxl, colab or a YAML file (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", help="folder of the run (default: _runs/PROFILE-sSEED)")
    parser.add_argument("--log", metavar="FILE", help="CSV file of the log (default: results/PROFILE/search.csv)")
    parser.add_argument("--checkpoint", metavar="MODEL", help="encoder to fine-tune: a name in weights/ or a folder")
    parser.add_argument("--note", help="kept with the rows")
    parser.set_defaults(run=_search)


def _search(args):
    from types import SimpleNamespace

    from . import notebook, params
    from .paths import resolve
    from .precision import chosen_device
    from .search import search
    from .weights import locate

    p = SimpleNamespace(**params.load_profile(args.profile))
    p.run_dir = resolve(args.out or f"_runs/{p.profile}-s{p.seed}")
    p.device = chosen_device(p.device)
    checkpoint = locate(args.checkpoint) if args.checkpoint else None
    log = args.log or f"results/{p.profile}/search.csv"
    search(p, notebook.open_data(p), args.changes, log, checkpoint=checkpoint, **_given(args, "note"))
    print(resolve(log))


def _embed_command(commands):
    parser = commands.add_parser("embed", help="features of your own recordings from a pretrained encoder")
    parser.add_argument("files", nargs="+", metavar="FILE", help="WFDB records, CSV tables (a column a lead), or folders of recordings")
    parser.add_argument("--out", required=True, metavar="FILE", help="Parquet file (*.parquet): record, quality, then one column a feature")
    parser.add_argument("--checkpoint", metavar="MODEL", help="name of a model in weights/, or a folder (default: the first in weights/)")
    parser.add_argument(
        "--readout", help="how tokens become one embedding: mean (default), layers (which the committed probe and novelty read) or moments"
    )
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), help="of the matrix products (default: bf16 where that is faster)")
    parser.add_argument("--unit", help="of recordings that name none: mV, uV, nV or V")
    parser.add_argument("--rate", type=float, help="sampling rate of recordings that name none, Hz")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to compute (default: cpu)")
    parser.set_defaults(run=_embed)


def _embed(args):
    import os
    from pathlib import Path

    from .cost import fast_precision
    from .embeddings import embed_files, write_features
    from .paths import digest, home
    from .precision import chosen_device
    from .sit import SiT
    from .weights import locate, names

    if not args.checkpoint and not names():
        raise CremaError(f"{home() / 'weights'} holds no model: name one with --checkpoint")
    folder = locate(args.checkpoint) if args.checkpoint else home() / "weights" / names()[0]
    options = _given(args, "readout", "precision", "unit", "rate", "device")
    options.setdefault("precision", fast_precision(chosen_device(options.get("device", "cpu"))))
    out = Path(args.out)
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:  # told before all the computing, not after it
        if out.is_dir():
            raise IsADirectoryError(f"{out} is a folder")
        if out.suffix.lower() != ".parquet":
            raise CremaError(f"{out} would be a Parquet file: give it a name that ends in .parquet with --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise CremaError(f"{out} cannot be written ({error}): give the name of a file with --out") from None
    try:
        encoder = SiT.from_pretrained(folder)
        features, report = embed_files(encoder, args.files, progress=True, **options)
        told = {key: {**embed_files.__kwdefaults__, **options}[key] for key in ("readout", "precision", "unit", "rate")}
        origin = {"model": str(args.checkpoint or folder.name), "model_sha256": digest(folder / "model.safetensors"), "fs": encoder.fs}
        write_features(part, features, {**origin, **told, "crema_lib": __version__})
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    for row in report[report["action"] == "left out"].itertuples():
        print(f"left out {row.record}: {row.reason}")
    _tell_passed_over(report)
    for record in features.loc[features["quality"].str.split(";").map(lambda flags: "amplitude" in flags), "record"]:
        print(f"in doubt {record}: its leads are too small or too large for an ECG, so its unit may be another (quality amplitude)")
    print(f"{out}: {len(features):,} recordings, {features.shape[1] - 2} features of {folder.name}")


def _reader_command(commands):
    parser = commands.add_parser("reader", help="fit what a model takes along to other recordings: a probe, a reference for novelty")
    parser.add_argument("data", metavar="NAME", help="prepared data set with labels and folds, or the folder of a store")
    parser.add_argument("--checkpoint", required=True, metavar="MODEL", help="name of a model in weights/, or a folder; the files go there")
    parser.add_argument("--task", help="labels of the probe: all, diag, sub, super, form, rhythm, shared or sex (default: super)")
    parser.add_argument("--readout", help="how tokens become one embedding: mean, layers or moments (default: layers)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to compute (default: cpu)")
    parser.set_defaults(run=_reader)


def _reader(args):
    from . import reader
    from .data.store import find
    from .precision import chosen_device

    chosen_device(args.device or "cpu")  # for its checks
    made = reader.make(args.checkpoint, find(args.data), progress=True, **_given(args, "task", "readout", "device"))
    print(f"{made.model.name}: a probe for {', '.join(made.model.names)}, and a reference for novelty")


def _leakage_command(commands):
    parser = commands.add_parser("leakage", help="patients, equal and near-equal recordings on two sides of a split or in two sets")
    parser.add_argument("names", nargs="+", metavar="NAME", help="prepared data sets, or folders of stores")
    parser.add_argument("--checkpoint", metavar="DIR", help="folder of a model: which of the recordings its pretraining saw")
    parser.add_argument("--threshold", type=float, help="correlation from which two recordings count as one (default: 0.99)")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 where anything leaks")
    parser.set_defaults(run=_leakage)


def _leakage(args):
    from . import leakage
    from .data.store import find

    report = leakage.examine([find(name) for name in args.names], progress=True, **_given(args, "checkpoint", "threshold"))
    print(report.wide().to_string(index=False))
    print(f"leaks: {report.sentence() or 'none found'}")
    if args.strict and report.sentence():
        raise CremaError(f"recordings or patients leak: {report.sentence()}")


def _publish_command(commands):
    parser = commands.add_parser("publish", help="put a trained model into weights/, in half precision and with checksums")
    parser.add_argument("folder", metavar="FOLDER", help="of the trained model, e.g. _runs/ptbxl-s0/pretrain/model")
    parser.add_argument("name", metavar="NAME", help="of the model in weights/; one of that name is replaced")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="of the matrices (default: float16)")
    parser.add_argument("--measure", metavar="SET", help="first measure on this prepared data set what half precision costs (a record)")
    parser.add_argument("--profile", default="ptbxl", help="whose records the measurement joins (default: %(default)s)")
    parser.set_defaults(run=_publish)


def _publish(args):
    from . import publish
    from .data.store import find
    from .paths import home

    if args.measure:
        path = home() / "results" / args.profile / "precision.json"
        record = publish.measure_precision(args.folder, find(args.measure), path, progress=True)
        print(f"{path}: {publish.gentlest(record)} changes fold 9 least")
    print(f"{publish.publish(args.folder, args.name, **_given(args, 'dtype'))}: next, python -m crema_lib cards")


def _cards_command(commands):
    parser = commands.add_parser("cards", help="write model card and datasheet anew from the committed records")
    parser.add_argument("--profile", default="ptbxl", help="whose records are read (default: %(default)s)")
    parser.add_argument("--count", metavar="SET", help="first count what this prepared data set holds (the record of the datasheet)")
    parser.set_defaults(run=_cards)


def _cards(args):
    from . import cards, composition
    from .data.store import find
    from .paths import home

    if args.count:
        composition.write_counts(find(args.count), home() / "results" / args.profile / "datasheet.json")
    print("\n".join(cards.write(args.profile)))


def _given(args, *names):
    """The named options that were given, so that the defaults of the function called stay the only ones."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def main(argv=None):
    """Run one command; returns the exit status: 0, 1 with one sentence on stderr, 2 for wrong usage, 130 or 143 when asked to stop."""
    parser = argparse.ArgumentParser(prog="crema_lib", description="CREMA: a 12-lead ECG foundation model, its data and its book.")
    parser.add_argument("--version", action="version", version=f"crema_lib {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _data_commands(commands)
    _book_command(commands)
    _site_command(commands)
    _study_command(commands)
    _pretrain_command(commands)
    _search_command(commands)
    _embed_command(commands)
    _reader_command(commands)
    _leakage_command(commands)
    _publish_command(commands)
    _cards_command(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except CremaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone (| head)
        sys.stderr.close()
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
