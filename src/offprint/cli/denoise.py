"""``offprint denoise SOUND``: a voice without the noise around it, of one file or a folder of them."""

from __future__ import annotations

from pathlib import Path

import typer

from offprint.cli.console import bar, errors, out


def denoise(
    sound: Path = typer.Argument(help="A sound file, or a folder of them at any depth."),
    output: Path = typer.Option(..., "--out", help="Sound (.wav .flac .ogg ...) or folder to write. Never the input."),
    model: str = typer.Option("frcrn_16k", "--model", "-m", help="frcrn_16k, ..., or the folder of a run."),
    checkpoint: str = typer.Option(None, help="Weight file; default the released weights."),
    stream: bool = typer.Option(
        False, "--stream", help="In windows of 1 s, as a sound that comes in would be done; over 120 s always."
    ),
    loudness: str = typer.Option(
        "active",
        help="active: brought to -25 dB for the network and back (ClearerVoice); given: as it is (ModelScope).",
    ),
) -> None:
    """Take the noise out of recordings of a voice.

    Rate (8 to 192 kHz), channels, length and depth stay as they are; memory does not grow with the file.
    """
    from offprint.api import find
    from offprint.errors import OffprintError
    from offprint.tasks.denoising import denoise_file, planned
    from offprint.tasks.folder import is_run

    pairs = planned(sound, output)
    folder = sound.is_dir()
    run = is_run(model)
    ready = find(model, checkpoint is None and not run, checkpoint, task=None if run else "enhancement")
    if ready.task.name != "enhancement":
        raise OffprintError(f"{model} {ready.task.does}; denoise takes a model that enhances speech, such as frcrn_16k")
    network = ready.model.eval()
    if callable(getattr(network, "merge", None)):
        network.merge()
    unread: list[OffprintError] = []
    with bar() as progress:
        task = progress.add_task("denoising", total=None)

        def advance(total: float | None = None, seconds: float = 0.0) -> None:
            progress.update(task, total=total, completed=0) if total else progress.update(task, advance=seconds)

        for source, target in pairs:
            try:
                done = denoise_file(network, source, target, stream=stream, loudness=loudness, progress=advance)
            except OffprintError as error:
                if not folder:
                    raise
                unread.append(error)
                continue
            what = f"{done.seconds:.2f} s, {done.channels} x {done.rate} Hz"
            out.print(
                f"{done.file}: {what}, real-time factor {done.real_time_factor:.2f}", highlight=False, soft_wrap=True
            )
            for note in done.notes:
                errors.print(f"{done.source}: {note}", highlight=False, markup=False, soft_wrap=True)
    for error in unread:
        errors.print(f"left out: {error}", highlight=False, markup=False, soft_wrap=True)
    if unread:
        errors.print(f"{len(unread)} of {len(pairs)} sounds could not be read", highlight=False)
        raise typer.Exit(2)
