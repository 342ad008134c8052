"""The page and its server; needs gradio."""

from __future__ import annotations

import base64
import socket

import gradio as gr
import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image

from mmvssm.analysis import KINDS

from .explorer import MAX_SIDE, Explorer, Scene, enlarged

ROUTES = """## Routes of a layer
A layer reads the pixels of its map one after the other, along each of its routes. Colours show the
time of the visit, from violet to yellow; the latest pixels are white."""
INFLUENCE = """## Influence on a pixel
Click a pixel of the left picture: the maps show the contribution of each pixel of the layer to it,
along each route and in total. Red raises its output, blue lowers it; the box marks the pixel."""
FIELD = """## Effective receptive field
The pixels of this image on which the centre of the last map depends: lighter pixels contribute more
(contributions to the power of 0.2)."""
#: System fonts, so that none is downloaded.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
MIDDLE = (0.5, 0.5)


def build_page(explorer: Explorer) -> gr.Blocks:
    """Build the page of a network, which communicates with its own server only.

    Args:
        explorer: The network.
    """
    kinds = [(f"{kind}: {words}", kind) for kind, words in KINDS.items()]

    def predict(path: str | None) -> tuple:
        if path is None:
            return None, [], None, "", MIDDLE
        try:
            picture, rows = explorer.predict(path)
            scene = explorer.look(path)
        except OSError as error:
            raise gr.Error(f"this file cannot be used: {error}") from error
        return picture, rows, enlarged(scene.picture), _describe(scene), MIDDLE

    def show_routes(path: str | None, layer: int) -> tuple:
        if path is None:
            return "", ""
        try:
            movie, words = explorer.routes(explorer.look(path), layer)
        except ValueError as error:
            return "", f"There are no routes: {error}."
        source = f"data:image/webp;base64,{base64.b64encode(movie).decode()}"
        return f'<img src="{source}" alt="Routes over the image">', f"{words}."

    def show_influence(
        path: str | None, layer: int, query: tuple[float, float] | int, kind: str
    ) -> tuple:
        if path is None:
            return None, ""
        try:
            return explorer.influence(explorer.look(path), layer, query, kind), ""
        except ValueError as error:
            return None, f"There is no map: {error}."

    def show_field(path: str | None) -> Image.Image | None:
        return None if path is None else explorer.receptive_field(explorer.look(path))

    def place_of(picture: np.ndarray, event: gr.SelectData) -> tuple[float, float]:
        """Return the position of the clicked pixel as fractions of height and width."""
        (x, y), (height, width) = event.index, picture.shape[:2]
        return (y + 0.5) / height, (x + 0.5) / width

    with gr.Blocks(title=f"{explorer.name} · mmvssm", analytics_enabled=False) as page:
        gr.Markdown(f"# {explorer.name}\n{_network(explorer)}")
        with gr.Row():
            image = gr.Image(
                type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Image",
                height=360, elem_id="image",
            )  # fmt: skip
            # pass the file unchanged: the config's own pipeline reads it and reports errors
            image.preprocess = lambda upload: None if upload is None else upload.path
            picture = _picture("Prediction", "prediction")
            table = gr.Dataframe(
                headers=explorer.columns,
                label="Results",
                interactive=False,
                max_height=360,
                elem_id="results",
            )
        size = gr.Markdown(elem_id="size")
        layer = gr.Dropdown(
            _layers(explorer), value=explorer.first_layer, label="Layer", elem_id="layer"
        )
        gr.Markdown(ROUTES)
        routes_note = gr.Markdown(elem_id="routes-note")
        routes = gr.HTML(elem_id="routes")
        gr.Markdown(INFLUENCE)
        influence_note = gr.Markdown(elem_id="influence-note")
        kind = gr.Dropdown(kinds, value="influence", label="Kind of map", elem_id="kind")
        tokens = [
            (gr.Button(f"Class token {token}", elem_id=f"token-{token}"), token)
            for token in range(explorer.num_tokens)
        ]
        with gr.Row():
            seen = _picture("What the network sees: click it", "seen", height=None)
            influence = _picture("Influence", "influence", height=None, show_label=False, scale=2)
        with gr.Row():
            gr.Markdown(FIELD)
            field = _picture("Receptive field", "field", height=300, show_label=False, scale=2)
        query = gr.State(MIDDLE)

        # one call at a time, because recordings hook into the network
        one = dict(concurrency_id="network", concurrency_limit=1)
        to_routes = dict(
            fn=show_routes, inputs=[image, layer], outputs=[routes, routes_note], **one
        )
        to_influence = dict(
            fn=show_influence, inputs=[image, layer, query, kind],
            outputs=[influence, influence_note], **one,
        )  # fmt: skip
        predicted = image.change(predict, image, [picture, table, seen, size, query], **one)
        done = predicted.success(**to_routes).success(**to_influence)
        done.success(show_field, image, field, **one)
        layer.change(**to_routes).success(**to_influence)
        kind.change(**to_influence)
        seen.select(place_of, seen, query).success(**to_influence)
        for button, token in tokens:
            button.click(lambda token=token: token, None, query).success(**to_influence)
    return page


def _picture(label: str, name: str, **options) -> gr.Image:
    return gr.Image(
        label=label, elem_id=name, interactive=False, format="png",
        buttons=["download", "fullscreen"], **{"height": 360, **options},
    )  # fmt: skip


def _layers(explorer: Explorer) -> list[tuple[str, int]]:
    return [
        (f"{layer.number}: {layer.name}{'' if layer.scans else ' (no scan)'}", layer.number)
        for layer in explorer.layers
    ]


def _network(explorer: Explorer) -> str:
    kind, count = type(explorer.backbone).__name__, len(explorer.layers)
    scanning = sum(layer.scans for layer in explorer.layers)
    words = f"A {kind} of {count} layers"
    if scanning == count:
        return f"{words}, all of which scan."
    return (
        f"{words}, {scanning} of which scan. The others use convolution or attention: they have"
        " neither routes nor influence maps."
    )


def _describe(scene: Scene) -> str:
    height, width = scene.network_size
    words = f"The network sees this image at {height}x{width} pixels"
    if scene.picture.shape[:2] != scene.network_size:
        height, width = scene.picture.shape[:2]
        words += f"; layers are shown at {height}x{width}, since no side may exceed {MAX_SIDE}"
    return f"{words}."


def serve(page: gr.Blocks, listener: socket.socket) -> None:
    """Serve the page until the program is interrupted.

    Args:
        page: The page.
        listener: Socket bound to the address to listen on.
    """
    address, port = listener.getsockname()[:2]
    app = gr.mount_gradio_app(
        FastAPI(), page, "/", server_name=address, server_port=port, theme=THEME, footer_links=[],
        run_history=False, ssr_mode=False, mcp_server=False, max_file_size="64mb",
    )  # fmt: skip
    listener.listen()
    shown = f"[{address}]" if ":" in address else address
    print(f"the page is at http://{shown}:{port} (Ctrl+C ends the program)", flush=True)
    # open pages hold connections, which would delay the shutdown
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])
