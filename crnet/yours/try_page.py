"""``crnet try``: a page of this machine on which a support is painted and queries are dropped, made with Gradio.

Nothing leaves the machine: the page listens on the loopback address unless told otherwise, has no share link and no
telemetry, and all that is uploaded or made lies in one temporary folder, which is removed at the end.
"""

import importlib.util
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import click
import numpy as np
from PIL import Image

from crnet.config.defaults import EVALUATE_LIMITS
from crnet.errors import CrnetError
from crnet.yours.model import Model
from crnet.yours.segment import overlay

LOOPBACK = "127.0.0.1"
MOST_SUPPORTS, MOST_QUERIES = 5, 50  # of the page
UPLOAD = "20mb"  # a file
KINDS = [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"]
PAINT = "#ff7800"
HALF_OPAQUE = 127
HELP = """Drop a photo as support and paint what is meant over it, or give its mask as a file: a PNG of the photo's
size, 0 and 255. Drop photos as queries: the like is marked in each."""


def serve(model: Model, title: str, host: str = LOOPBACK, port: int = 0, browser: bool = True) -> None:
    """Show the page until it is interrupted, and say its address.

    Args:
        title: Stands above the page: which network it is.
        host: Address that is listened on.
        port: 0: the first free one from 7860 on.
        browser: Open it in the browser.

    Raises:
        CrnetError: Gradio is not installed, or host or port cannot be had.
    """
    require_gradio()
    with _own_folder() as folder:
        gradio = _gradio(folder)
        page = build(gradio, model, title)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port or None,
                share=False,
                inbrowser=browser,
                prevent_thread_lock=True,
                quiet=True,
                show_error=True,
                max_file_size=UPLOAD,
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                enable_monitoring=False,
                pwa=False,
                mcp_server=False,
                theme=gradio.themes.Default(font="sans-serif", font_mono="monospace"),  # of the browser, none fetched
            )
        except OSError as error:
            raise CrnetError(f"--host {host} --port {port}: cannot be listened on; give another.") from error
        click.echo(f"{title}: {address} (Ctrl-C ends it)")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            click.echo("")
        finally:
            page.close(verbose=False)


def require_gradio() -> None:
    """Raise CrnetError where Gradio is not installed; it is not imported."""
    if importlib.util.find_spec("gradio") is None:
        raise CrnetError("crnet try: needs Gradio, which is not here; `pip install 'crnet[try]'` brings it.")


def build(gradio: ModuleType, model: Model, title: str) -> Any:
    """The page, as Gradio's Blocks."""
    default, most = model.spec["evaluate"]["refinements"], EVALUATE_LIMITS["refinements"][1]
    with gradio.Blocks(title="crnet try", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(f"### {title}\n\n{HELP}")
        with gradio.Row():
            with gradio.Column():
                number = gradio.Slider(1, MOST_SUPPORTS, value=1, step=1, label="Supports", elem_id="supports")
                columns, editors, files = [], [], []
                for place in range(1, MOST_SUPPORTS + 1):
                    with gradio.Column(visible=place == 1) as column:
                        editors.append(_editor(gradio, place))
                        files.append(_file(gradio, f"Mask of support {place}, if not painted", f"mask-{place}"))
                    columns.append(column)
            with gradio.Column():
                queries = _file(gradio, "Queries", "queries", many=True)
                refinements = gradio.Slider(1, most, value=default, step=1, label="Refinements", elem_id="refinements")
                button = gradio.Button("Segment", variant="primary", elem_id="segment")
                said = gradio.Markdown(elem_id="said")
                overlays = gradio.Gallery(label="Found", columns=2, format="png", elem_id="overlays")
                masks = gradio.Gallery(label="Masks", columns=2, format="png", elem_id="masks")
        number.change(lambda count: [gradio.Column(visible=i < count) for i in range(len(columns))], number, columns)

        def run(count: int, steps: int, photos: list[str] | None, *drawn: Any) -> tuple[list, list, str]:
            try:
                chosen = zip(drawn[:count], drawn[MOST_SUPPORTS : MOST_SUPPORTS + count], strict=True)
                return answer(model, list(chosen), photos or [], int(steps))
            except CrnetError as error:
                raise gradio.Error(str(error), duration=None) from error

        # One at a time: the network is one, and its finetuning changes it for a while.
        inputs, outputs = [number, refinements, queries, *editors, *files], [overlays, masks, said]
        button.click(run, inputs, outputs, concurrency_limit=1)
    return page


def answer(
    model: Model, supports: Sequence[tuple[dict[str, Any] | None, str | None]], queries: Sequence[str], refinements: int
) -> tuple[list[tuple[Image.Image, str]], list[tuple[Image.Image, str]], str]:
    """Overlays and masks with captions, and a sentence.

    Args:
        supports: What the editor holds, and the file of a mask or None.
        queries: Files of photos.

    Raises:
        CrnetError: Something is missing, or cannot be used.
    """
    pairs = [(_photo(drawn, i), file or painted(drawn, i)) for i, (drawn, file) in enumerate(supports, 1)]
    if not 1 <= len(queries) <= MOST_QUERIES:
        raise CrnetError(f"Queries: are {len(queries)}; drop 1 to {MOST_QUERIES} photos.")
    start, overlays, masks = time.monotonic(), [], []
    for query, found in zip(queries, model.each(pairs, queries, refinements=refinements), strict=True):
        mask = found.mask
        caption = f"{Path(query).name}: {100 * mask.mean():.1f} % foreground"
        overlays.append((overlay(found), caption))
        masks.append((Image.fromarray(mask.astype(np.uint8) * 255), caption))
    many = f"{len(queries)} photo{'s' if len(queries) > 1 else ''}, {len(pairs)} support{'s' if len(pairs) > 1 else ''}"
    return overlays, masks, f"{many}, {refinements} refinements: {time.monotonic() - start:.1f} s"


def _photo(drawn: dict[str, Any] | None, place: int) -> Image.Image:
    if drawn is None or drawn["background"] is None:
        raise CrnetError(f"Support {place}: has no photo; drop one.")
    return drawn["background"].convert("RGB")


def painted(drawn: dict[str, Any], place: int) -> np.ndarray:
    """The mask uint8 {0, 1} (H, W) of what was painted over a photo, on any layer."""
    layers = [np.asarray(layer.convert("RGBA"))[..., 3] > HALF_OPAQUE for layer in drawn["layers"]]
    mask = np.any(layers, axis=0) if layers else np.zeros(1, bool)
    if not mask.any():
        raise CrnetError(f"Support {place}: nothing is painted; paint what is meant, or give its mask as a file.")
    return mask.astype(np.uint8)


def _editor(gradio: ModuleType, place: int) -> Any:
    return gradio.ImageEditor(
        label=f"Support {place}",
        type="pil",
        image_mode="RGBA",
        sources=["upload"],
        transforms=(),
        layers=False,
        brush=gradio.Brush(default_size=24, colors=[PAINT], color_mode="fixed"),
        elem_id=f"support-{place}",
    )


def _file(gradio: ModuleType, label: str, name: str, many: bool = False) -> Any:
    count = "multiple" if many else "single"
    return gradio.File(label=label, file_count=count, file_types=KINDS, type="filepath", height=120, elem_id=name)


@contextmanager
def _own_folder() -> Iterator[str]:
    """A folder that is removed at the end, also where SIGTERM ends the program."""

    def leave(signal_number: int, frame: FrameType | None) -> None:
        sys.exit(128 + signal_number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with tempfile.TemporaryDirectory(prefix="crnet-try-", ignore_cleanup_errors=True) as folder:
            yield folder
    finally:
        signal.signal(signal.SIGTERM, before)


def _gradio(folder: str) -> ModuleType:
    """Gradio, told before it is imported to send nothing and to write into ``folder`` alone."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="0", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_TEMP_DIR=folder)
    os.environ |= {"GRADIO_SHARE": "0", "GRADIO_EXAMPLES_CACHE": folder}
    os.environ |= {"MPLCONFIGDIR": folder, "XDG_CACHE_HOME": folder}  # of what Gradio imports
    tempfile.tempdir = folder
    return importlib.import_module("gradio")
