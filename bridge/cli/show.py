"""`bridge show`: one call, as a page, as text, or as a recording."""

import os
from pathlib import Path
from typing import Annotated

import typer

from bridge.cli.terminal import load_settings, out, stop_with
from bridge.telemetry import trace

SUFFIXES = (trace.SUFFIX, trace.PLAIN_SUFFIX)


CallArgument = Annotated[
    str, typer.Argument(help="a trace, or the SID of a call: CA...")
]
LastOption = Annotated[
    bool, typer.Option("--last", help="the call whose trace was written last")
]
TextOption = Annotated[bool, typer.Option("--text", help="print the call as text")]
SvgOption = Annotated[
    bool, typer.Option("--svg", help="write the text as a picture, for documents")
]
WavOption = Annotated[
    bool,
    typer.Option("--wav", help="write what both sides heard: caller left, agent right"),
]
PageOption = Annotated[bool, typer.Option("--page", help="write the page; the default")]
FolderOption = Annotated[
    Path | None, typer.Option(help="folder of the traces, instead of BRIDGE_RECORD_DIR")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="the file to write")]


def show(
    call: CallArgument = "",
    last: LastOption = False,
    text: TextOption = False,
    svg: SvgOption = False,
    wav: WavOption = False,
    page: PageOption = False,
    folder: FolderOption = None,
    write: OutOption = None,
) -> None:
    """Show one call from its trace: what was said, what was heard, what went wrong.

    Writes a page that a browser opens from the disk, and prints the file's name. A
    running call can be shown, too: up to the last block that was written.
    """
    from bridge.picture import files, reading, recording
    from bridge.picture import page as as_page
    from bridge.picture import text as as_text

    makers = {
        files.WAV_SUFFIX: (wav, recording.stereo_wav),
        files.SVG_SUFFIX: (svg, lambda view: as_text.svg(view).encode()),
        files.PAGE_SUFFIX: (page, lambda view: as_page.page(view).encode()),
    }
    wanted = [it for it, (is_wanted, _) in makers.items() if is_wanted]
    if write and len(wanted) > 1:
        stop_with("--out names one file: choose one of --page, --svg and --wav.")
    found = _traces(call, folder, last=last)
    if write and len(found) > 1 and not text:
        stop_with(f"{call} has {len(found)} traces: name one of them, or omit --out.")
    for path in found:
        try:
            view = reading.view(path)
        except (trace.TraceFormatError, OSError) as error:
            stop_with(f"{path}: {error}")
        if text:
            as_text.show(view, out)
            continue
        for suffix in wanted or [files.PAGE_SUFFIX]:
            made = write or files.beside(path, suffix)
            try:
                files.write_private(made, makers[suffix][1](view))
            except OSError as error:
                stop_with(f"{made} cannot be written: {error.strerror}")
            out.print(str(made), highlight=False, markup=False, soft_wrap=True)


def _traces(call: str, folder: Path | None, *, last: bool) -> list[Path]:
    """The traces of the call, the oldest first: one for each instance that had it."""
    if bool(call) == last:
        stop_with("Name a trace or a call's SID, or use --last.")
    if call and (call.endswith(SUFFIXES) or os.sep in call):
        return [Path(call)]
    if folder is None:
        folder = load_settings().record_dir
    if folder is None:
        stop_with("No traces: set BRIDGE_RECORD_DIR, or use --folder.")
    begin = f"{trace.plain_name(call)}." if call else ""
    try:
        names = [it for it in folder.iterdir() if it.name.endswith(SUFFIXES)]
    except OSError as error:
        stop_with(f"{folder} cannot be read: {error.strerror}")
    found = [it for it in names if it.name.startswith(begin)]
    if not found:
        stop_with(f"{folder} has no trace of {call or 'any call'}.")
    found.sort(key=_written_at)
    return found[-1:] if last else found


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # it was deleted just now
