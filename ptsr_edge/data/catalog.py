"""The recorded data sets: their sheets, folders, classes and published counts, as data.

The three classes are those of MEGC2019's composite (See et al., MEGC 2019 - The Second Facial
Micro-Expressions Grand Challenge, FG 2019): happiness is positive, surprise is surprise, anger, contempt,
disgust, fear, sadness and repression are negative; what the sheet calls others is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NEGATIVE, POSITIVE, SURPRISE = 0, 1, 2
"""Places in `config.LABELS`."""

SIGNED = (
    "whose licence, signed with its owners, allows non-commercial academic research only and no passing on"
)
"""Half a sentence on the licence of every recorded set, for the card of a model."""


@dataclass(frozen=True)
class Columns:
    """Headings of a sheet; `apex` is None where there is no such column."""

    subject: str
    clip: str
    onset: str
    apex: str | None
    offset: str
    emotion: str

    @property
    def needed(self) -> tuple[str, ...]:
        """The headings that must be there."""
        named = (self.subject, self.clip, self.onset, self.apex, self.offset, self.emotion)
        return tuple(name for name in named if name is not None)


@dataclass(frozen=True)
class Published:
    """Counts to hold against what is found; None where none is published.

    Attributes:
        clips: of the three classes.
        classes: clips that are negative, positive, surprise.
        subjects: people in these clips.
        rows: of the sheet.
    """

    clips: int | None = None
    classes: tuple[int, int, int] | None = None
    subjects: int | None = None
    rows: int | None = None


@dataclass(frozen=True)
class RecordedSet:
    """A data set that is a sheet and folders of frames: all that is needed to read it.

    Attributes:
        name: as in `datasets.load`.
        title: as its owners call it.
        fps: frames per second.
        sheets: names of its table, without suffix: the first is the owners', the others are met too; a
            pattern after `fnmatch`.
        worksheet: of the workbook; None for its first.
        columns: of the sheet.
        subject_folder: pattern of a subject's folder, whose last digits are the number.
        subject_name: how subjects are named here, the same as in the published flow fields.
        clip_globs: where below a subject its clips lie.
        inside: folder of the frames within a clip.
        passed_over: folders that are another camera's.
        classes: emotion of the sheet, lower case: class.
        dropped: emotions that are none of the three.
        left_out: (subject, clip) that the composite's published list does not have.
        published: counts to compare with.
        layout: what the folder must look like, for messages.
        by_place: whether frames may be counted from the clip's first one, where the names have other numbers.
        named_by_onset: whether a clip's name needs its onset to be unique.
    """

    name: str
    title: str
    fps: int
    sheets: tuple[str, ...]
    columns: Columns
    subject_folder: str
    subject_name: str
    clip_globs: tuple[str, ...]
    classes: dict[str, int]
    dropped: tuple[str, ...]
    published: Published
    layout: str
    worksheet: str | None = None
    inside: str = ""
    passed_over: str = r"$^"
    left_out: frozenset[tuple[int, str]] = field(default_factory=frozenset)
    by_place: bool = False
    named_by_onset: bool = False


CASME2 = RecordedSet(
    name="casme2",
    title="CASME II",
    fps=200,
    sheets=("CASME2-coding-20140508", "CASME2-coding*"),
    columns=Columns("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Estimated Emotion"),
    subject_folder=r"sub\d+",
    subject_name="sub{:02d}",
    clip_globs=("*",),
    classes={"happiness": POSITIVE, "disgust": NEGATIVE, "repression": NEGATIVE, "surprise": SURPRISE},
    dropped=("others", "sadness", "fear"),
    left_out=frozenset({(4, "EP12_01f"), (24, "EP02_07")}),
    published=Published(145, (88, 32, 25), 24),
    layout="CASME2-coding-20140508.xlsx and Cropped/sub01/EP02_01f/reg_img46.jpg, or "
    "CASME2_RAW_selected/sub01/EP02_01f/img46.jpg",
)
SAMM = RecordedSet(
    name="samm",
    title="SAMM",
    fps=200,
    sheets=("SAMM_Micro_FACS_Codes_v2", "*SAMM*Micro_FACS_Codes*"),
    columns=Columns("Subject", "Filename", "Onset Frame", "Apex Frame", "Offset Frame", "Estimated Emotion"),
    subject_folder=r"\d{1,3}",
    subject_name="{:03d}",
    clip_globs=("*",),
    classes={
        "happiness": POSITIVE, "surprise": SURPRISE, "anger": NEGATIVE, "contempt": NEGATIVE,
        "disgust": NEGATIVE, "fear": NEGATIVE, "sadness": NEGATIVE,
    },
    dropped=("other", "others"),
    published=Published(133, (92, 26, 15), 28),
    layout="SAMM_Micro_FACS_Codes_v2.xlsx and 006/006_1_2/006_05562.jpg",
)  # fmt: skip
SMIC = RecordedSet(
    name="smic",
    title="SMIC-HS",
    fps=100,
    sheets=("SMIC-HS-E_annotation", "SMIC-HS-E_annotation*"),
    columns=Columns("Subject", "Filename", "OnsetF", None, "OffsetF", "Emotion"),
    subject_folder=r"s\d+",
    subject_name="s{:02d}",
    clip_globs=("micro/*/*", "*"),
    classes={"negative": NEGATIVE, "positive": POSITIVE, "surprise": SURPRISE},
    dropped=(),
    passed_over=r"(?<![a-z])(vis|nir)(?![a-z])|non_micro",
    published=Published(164, (70, 51, 43), 16),
    layout="SMIC-HS-E_annotation.xlsx and SMIC_all_cropped/HS/s1/micro/negative/s1_ne_01/*.bmp",
    by_place=True,
)
CASME3 = RecordedSet(
    name="casme3",
    title="CAS(ME)^3 part A",
    fps=30,
    sheets=("cas(me)3_part_A_ME_label_JpgIndex_v2", "cas(me)3_part_A_ME*", "casme3_part_A_annotations*"),
    worksheet="label",
    columns=Columns("Subject", "Filename", "Onset", "Apex", "Offset", "emotion"),
    subject_folder=r"spno\.\d+",
    subject_name="spNO.{:d}",
    clip_globs=("*",),
    inside="color",
    classes={
        "happy": POSITIVE, "surprise": SURPRISE, "disgust": NEGATIVE, "fear": NEGATIVE, "anger": NEGATIVE,
        "sad": NEGATIVE,
    },
    dropped=("others",),
    published=Published(rows=860),
    layout="cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx and spNO.1/b/color/175.jpg",
    named_by_onset=True,
)  # fmt: skip

RECORDED = {known.name: known for known in (CASME2, SAMM, SMIC, CASME3)}
"""The data sets that are read from their frames."""

COMPOSITE = ("casme2", "smic", "samm")
"""Members of `megc2019` and of the published flow fields."""

COMPOSITE_FOLDERS = {
    "casme2": ("casme2", "casmeii"),
    "smic": ("smic", "smichs", "smicallcropped", "smicallraw"),
    "samm": ("samm",),
}
"""Names of a member's folder in the composite's root, in lower case and without what is no letter or digit."""
