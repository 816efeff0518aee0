"""What `spatialfeat export` can write: every format's exact tree, the options that it uses, and who writes it.

Text only, so that `spatialfeat export --help` stays fast. A new format is a class derived from
`exports.source.ExportJob`, in a module of its own in `exports/`, and its `ExportFormat` here.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import indent


@dataclass(frozen=True, kw_only=True)
class ExportFormat:
    """One format as the user sees it.

    Attributes:
        job: "module:Class" of the `ExportJob` that writes it.
        tree: exactly what is written, one line per file or folder.
        unlabelled: the values of --unlabelled that the format takes, the default first.
        options: the fields of `ExportConfig` that not every format uses, and this one does.
        suffixes: OUT is one file with one of these suffixes; empty where OUT is a folder.
    """

    name: str
    job: str
    summary: str
    tree: str
    unlabelled: tuple[str, ...] = ("keep", "drop", "refuse")
    options: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()

    @property
    def needs_labels(self) -> bool:
        return self.unlabelled[0] == "refuse"


_FORMATS = (
    ExportFormat(
        name="ms-tcn",
        job="spatialfeat.exports.mstcn:MsTcnExport",
        summary="for MS-TCN, ASFormer and their relatives; OUT's own name is the data set's name there",
        tree="""\
OUT/
  features/{video}.npy         (D, T) float32, little-endian, C order
  groundTruth/{video}.txt      T lines: the phase name of each frame
  splits/train.split1.bundle   one {video}.txt a line
  splits/test.split1.bundle    one {video}.txt a line
  splits/val.split1.bundle     with --val-to own, if there are videos of split val
  mapping.txt                  C lines: number and phase name
With --folds: {train,test}.split1.bundle to {train,test}.splitK.bundle""",
        unlabelled=("refuse", "drop", "background"),
        options=(
            "val_to",
            "folds",
            "background_name",
            "id_replacement",
            "name_replacement",
            "skip_short",
            "allow_small_bundles",
        ),
    ),
    ExportFormat(
        name="tecno",
        job="spatialfeat.exports.tecno:TecnoExport",
        summary="for the second stage of TeCNO; videos are numbered train first, then val, test and others",
        tree="""\
OUT/
  {fps:.1f}fps/video_{nn:02d}_{fps:.1f}fps.pkl   pickled list of three arrays:
                                   stem (T, D) float32, logits (T, C) float32, labels (T,) int64
  videos.csv                       columns nn, video, split, frames""",
        unlabelled=("refuse", "drop", "keep"),
        options=("keep_anyway",),
    ),
    ExportFormat(
        name="npy",
        job="spatialfeat.exports.plain:NpyExport",
        summary="one file per frame, for data loaders that read frame by frame",
        tree="""\
OUT/
  features_{split}/{id}.npy        (D,) float32, little-endian; split is train, val, test, ...
  {split}_ResNet_DB.csv            columns id, label; -100 where unlabelled, no label column if none has one""",
    ),
    ExportFormat(
        name="hdf5",
        job="spatialfeat.exports.plain:Hdf5Export",
        summary="one file, one group per video, time first; OUT ends in .h5 or .hdf5",
        tree="""\
OUT                                attributes: format, schema, phase_names, fps, weights_sha256, ...
  {video}/                         attributes: video_id, patient_id, split, source
    features                       (T, D) float32
    logits                         (T, C) float32; not there if the feature files have none
    labels                         (T,) int64, -100 where unlabelled
    frame_ids                      (T,) UTF-8
    segment, frame                 (T,) int64""",
        suffixes=(".h5", ".hdf5"),
    ),
    ExportFormat(
        name="csv",
        job="spatialfeat.exports.plain:CsvExport",
        summary="text tables, for a look or a spreadsheet; slow and large",
        tree="""\
OUT/
  {video}.csv                      T rows; columns id, label (-100 where unlabelled), f0 ... f2047""",
    ),
)

FORMATS = {form.name: form for form in _FORMATS}

LIMITED_OPTIONS = tuple(sorted({option for form in FORMATS.values() for option in form.options}))
"""Fields of `ExportConfig` that not every format uses."""


def export_help() -> str:
    """The text of `spatialfeat export --help`. The mark \\b keeps Typer from wrapping the lines below it."""
    trees = "\n\n".join(f"\b\n{form.name}: {form.summary}\n{indent(form.tree, '  ')}" for form in FORMATS.values())
    return (
        "Write features as a temporal model reads them.\n\nFORMAT is "
        f"{', '.join(FORMATS)}.\n\n{trees}\n\nEverything is written beside OUT under a hidden name, read back and "
        "checked, and only then renamed to OUT. (parquet is left out: it needs a library that spatialfeat does not "
        "depend on.)"
    )
