"""Every error a user can cause, in one tree.

    CascadeError             exit status 1, one line, no traceback
    ├── BundleError          the bundle is damaged, foreign, or not what was certified: status 3
    ├── TargetError          this machine cannot run the target, or answers otherwise: status 4
    ├── ImageError           one image cannot be read; the others of its batch go on
    ├── DataError            a data set, a splits file or a label is not usable
    └── ConfigError          an option, a preset or a run folder is not usable

Anything else that is raised is a bug and shows its traceback.
"""


class CascadeError(Exception):
    """Base of every error that is the input's fault; the message says what to do about it."""


class BundleError(CascadeError):
    """The bundle is damaged, of an unknown format, or does not match its certificate."""


class TargetError(CascadeError):
    """The target cannot run here, or not as recorded: a library, device or processor feature."""


class ImageError(CascadeError):
    """One image cannot be decoded; says which file and why."""


class DataError(CascadeError):
    """A labelled data set cannot be used; names the file, the row or the class."""


class ConfigError(CascadeError):
    """A setting cannot be used; names the field, its value and the accepted ones."""
