"""``lrphooks stream``: explain a video or a camera, frame after frame."""

from __future__ import annotations

import argparse
import sys
import time

from PIL import Image, ImageDraw, ImageFont

from lrphooks.cli import arguments, reporting, video
from lrphooks.cli.command import FAILURE, SUCCESS, CommandError
from lrphooks.cli.explaining import Explanation
from lrphooks.cli.output import complain, emit
from lrphooks.models import PictureModel
from lrphooks.visualization import heatmap

_LETTERS, _STRIP = 16, 28


def run(options: argparse.Namespace) -> int:
    """Explain the frames of a video."""
    cv2 = video.opencv()
    sink = video.sink_for(cv2, options.output)
    with video.Capture(cv2, options.video) as capture:
        model = arguments.model_of(options)
        explainer = arguments.explainer_of(options, model, options.composite)
        for line in (
            reporting.field("video", options.video),
            *reporting.of_model(model, options.model),
            reporting.of_composite(options.composite.text, explainer.composite),
        ):
            emit(line)
        frames = failures = 0
        began = told = time.monotonic()
        try:
            with sink:
                for picture in capture.frames(options.frames):
                    frames += 1
                    try:
                        x = model.prepare(picture)
                        found = explainer.explain([x])[0]
                    except ValueError as error:
                        found = CommandError(str(error))
                    if isinstance(found, CommandError):
                        failures += 1
                        complain(f"frame {frames}: {found}")
                        continue
                    sink.write(drawn(model, model.show(x), found), capture.rate)
                    now = time.monotonic()
                    if frames == 1 or now - told >= 1.0:
                        told = now
                        emit(f"frame {frames}: {found.prediction}; {_rate(frames, now - began)}")
        except KeyboardInterrupt:
            print("lrphooks: stopped; what was written until now is kept", file=sys.stderr)
        if not frames:
            raise CommandError(f"{options.video} has no frame that can be read.")
        emit(f"{frames} frames, {_rate(frames, time.monotonic() - began)}")
        if options.output is not None and failures < frames:
            emit(reporting.field("written", str(options.output)))
    return FAILURE if failures else SUCCESS


def _rate(frames: int, seconds: float) -> str:
    return f"{frames / max(seconds, 1e-9):.3g} frames per second"


def drawn(model: PictureModel, shown: Image.Image, found: Explanation) -> Image.Image:
    """Draw what the network saw beside its relevance, with the explained class below; always of one size."""
    relevance = heatmap(found.relevance[0], percentile=model.percentile)
    width, height = relevance.size
    # Codecs want even sides.
    canvas = Image.new("RGB", (2 * width, (height + _STRIP + 1) // 2 * 2), "white")
    canvas.paste(shown.convert("RGB").resize(relevance.size, Image.Resampling.NEAREST), (0, 0))
    canvas.paste(relevance, (width, 0))
    (explained,) = found.explained
    text = f"{explained.name}, f(x) = {explained.output:.3g}"
    ImageDraw.Draw(canvas).text((6, height + 4), text, fill="black", font=ImageFont.load_default(_LETTERS))
    return canvas
