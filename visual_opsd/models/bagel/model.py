"""BAGEL: one decoder that reads text and images and draws images, at any size."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from visual_opsd.contexts import IMAGE_START, Context, DrawingContext, Image, Role
from visual_opsd.models.bagel import flow, observing
from visual_opsd.models.bagel.attention import Kernel
from visual_opsd.models.bagel.canvas import Canvas
from visual_opsd.models.bagel.codec import LatentCodec
from visual_opsd.models.bagel.config import BagelConfig
from visual_opsd.models.bagel.decoder import (
    GENERATION,
    UNDERSTANDING,
    KeyValueCache,
    LanguageModel,
    Layout,
    OneTokenLayout,
    Streams,
)
from visual_opsd.models.bagel.latents import (
    ImageNoise,
    LatentImage,
    context_noise,
    encode,
    noised,
    start_noise,
    training_noise,
)
from visual_opsd.models.bagel.packing import (
    Images,
    Packed,
    Row,
    completed_rows,
    context_rows,
    grid_ids,
    pack,
    segment_lengths,
)
from visual_opsd.models.bagel.vision import Connector, PositionTable, TimeEmbedding, VisionModel
from visual_opsd.models.interface import Completions, Drawing, Sampling, Watch
from visual_opsd.models.sampling import decode_rows

Decode = Callable[[list[int]], str]


class Predictions(NamedTuple):
    """What a training row has to produce, and what the model makes of it."""

    hidden: Float[Tensor, "text width"]
    """The state before every token of the target texts."""
    targets: Int[Tensor, " text"]
    velocity: Float[Tensor, "latents token"]
    """At every token of the noised images."""
    target_velocity: Float[Tensor, "latents token"]


class BagelModel(nn.Module):
    """Weights under their official names; see ``models/interface.py`` for what it offers."""

    def __init__(
        self, config: BagelConfig, codec: LatentCodec | None = None, decode: Decode | None = None
    ) -> None:
        """Build the model; without a codec it reads and writes but cannot draw.

        ``decode`` turns ids into text: needed to notice that a completion asks for a drawing.
        """
        super().__init__()
        width, latent = config.decoder.hidden_size, config.latent
        self.config = config
        self.language_model = LanguageModel(config.decoder)
        self.vit_model = VisionModel(config.vision)
        self.connector = Connector(config.vision.hidden_size, width)
        self.vit_pos_embed = PositionTable(config.vision.patches_per_side, width)
        if config.can_draw:
            self.time_embedder = TimeEmbedding(width)
            self.vae2llm = nn.Linear(latent.token_size, width)
            self.llm2vae = nn.Linear(width, latent.token_size)
            self.latent_pos_embed = PositionTable(latent.tokens_per_side, width)
        elif codec is not None:
            raise ValueError("experts 'understanding' cannot draw: it takes no codec")
        self.codec = codec
        self.decode = decode
        self.goes_on: Callable[[bool], bool] = bool
        """See ``decode_rows``: how decoding keeps in step with other ranks."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.connector.fc1.weight.device

    def run_with(self, *, kernel: Kernel = "auto", recomputes_layers: bool = False) -> None:
        """How attention is computed, and whether a layer runs again in the backward pass.

        Of a run, not of a model: nothing of it is saved.
        """
        self.language_model.model.kernel = kernel
        self.language_model.model.recomputes_layers = recomputes_layers

    def drawing_parameters(self) -> list[nn.Parameter]:
        """Of the generation experts, and of what stands before and behind them."""
        outside = ("time_embedder.", "vae2llm.", "llm2vae.")
        return [
            parameter
            for name, parameter in self.named_parameters()
            if GENERATION in name or name.startswith(outside)
        ]

    # Reading and writing

    @property
    def end(self) -> int:
        """Id of the mark that ends a completion."""
        return self.config.tokens.end

    def forward(
        self, contexts: Sequence[Context], completions: Sequence[Int[Tensor, " _tokens"]]
    ) -> Float[Tensor, "tokens width"]:
        """The state that predicts each completion token, rows concatenated."""
        rows, images = completed_rows(contexts, completions, self.config)
        packed, streams = self._run(rows, images)
        return self._predicting(packed, streams)

    def attention(
        self,
        contexts: Sequence[Context],
        completions: Sequence[Int[Tensor, " _tokens"]],
        *,
        by_head: bool = False,
    ) -> Float[Tensor, "layers *heads tokens segments"]:
        """What each completion token gives to every segment of its context, layer by layer."""
        return observing.attention(self, contexts, completions, by_head=by_head)

    def segment_lengths(self, context: Context) -> tuple[int, ...]:
        """Tokens of every segment, marks included."""
        return segment_lengths(context, self.config)

    def logits(
        self,
        hidden: Float[Tensor, "tokens width"],
        reduce: Callable[[Tensor, slice], Any] | None = None,
    ) -> Any:
        """Next-token logits, or what ``reduce(logits, rows)`` makes of chunk after chunk."""
        return self.language_model.lm_head(hidden, reduce)

    @torch.no_grad()
    def sample(
        self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]
    ) -> Completions:
        """Sample one completion a context; the noise of a row depends on its seed alone."""
        if len(contexts) != len(seeds):
            raise ValueError(f"{len(contexts)} contexts for {len(seeds)} seeds")
        cache = self._prefill(contexts, room=sampling.max_tokens)

        def step(ids: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
            return self._decode_step(ids, cache)

        return decode_rows(
            step,
            cache.select,
            begin=self.config.tokens.begin,
            end=self.config.tokens.end,
            sampling=sampling,
            seeds=seeds,
            asks_for_drawing=self._asks_for_drawing,
            device=self.device,
            goes_on=self.goes_on,
        )

    def _asks_for_drawing(self, ids: list[int]) -> bool:
        return self.decode is not None and IMAGE_START in self.decode(ids)

    # Drawing

    @torch.no_grad()
    def draw(
        self,
        contexts: Sequence[DrawingContext],
        drawing: Drawing,
        seeds: Sequence[int],
        watch: Watch | None = None,
    ) -> list[Image]:
        """Draw the next image of every context, as large as ``drawing`` says or its last image."""
        if self.codec is None:
            raise ValueError("this model was loaded without a codec: it cannot draw")
        sizes = [self._grid(context, drawing) for context in contexts]
        noise = [
            start_noise(h * w, self.config.latent, seed)
            for (h, w), seed in zip(sizes, seeds, strict=True)
        ]
        tokens = self.flow(contexts, drawing, torch.cat(noise).to(self.device), sizes, watch)
        return self._decoded(tokens, sizes)

    def _decoded(
        self, tokens: Float[Tensor, "tokens width"], sizes: Sequence[tuple[int, int]]
    ) -> list[Image]:
        """Images of the latent tokens of several grids."""
        assert self.codec is not None
        drawn = []
        for part, grid in zip(tokens.split([h * w for h, w in sizes]), sizes, strict=True):
            pixels = self.codec.decode(self.latents_of(part, grid))
            grey = ((pixels * 0.5 + 0.5) * 255).to(torch.uint8)  # truncated, as the official code
            drawn.append(Image(grey.float() / 127.5 - 1, role=Role.VISUAL_THOUGHT))
        return drawn

    def _grid(self, context: DrawingContext, drawing: Drawing) -> tuple[int, int]:
        """Rows and columns of a drawing's latent tokens."""
        side, most = self.config.latent.pixels_per_token, self.config.latent.tokens_per_side
        images = [segment for segment in context.main if isinstance(segment, Image)]
        if drawing.size is None and not images:
            raise ValueError("a drawing needs drawing.size, or an image in its context")
        height, width = drawing.size or images[-1].drawn_pixels.shape[1:]
        if drawing.size and any(x % side or x > most * side for x in drawing.size):
            raise ValueError(
                f"drawing.size {height} x {width} px must be multiples of {side} px, at most "
                f"{most * side}"
            )
        return height // side, width // side

    @torch.no_grad()
    def flow(
        self,
        contexts: Sequence[DrawingContext],
        drawing: Drawing,
        noise: Float[Tensor, "tokens width"],
        sizes: Sequence[tuple[int, int]],
        watch: Watch | None = None,
    ) -> Float[Tensor, "tokens width"]:
        """Carry ``noise`` to latent tokens; guidance branches share a batch or come one by one."""
        branches: list[list[Context]] = [[context.main for context in contexts]]
        if drawing.text_guidance > 1:
            branches.append([context.text_free for context in contexts])
            if drawing.image_guidance > 1:
                branches.append([context.image_free for context in contexts])
        if drawing.branches_in_one_batch:
            branches = [[context for branch in branches for context in branch]]
        canvases = [Canvas(self, branch, sizes) for branch in branches]
        lengths = [height * width for height, width in sizes]

        euler, series = flow.scheduler(drawing), flow.VelocitySeries(drawing.step_cache)
        x = noise
        for step, timestep in enumerate(euler.timesteps):
            time = float(timestep) / 1000
            is_guided = flow.is_guided(drawing, time)
            used = canvases if is_guided else canvases[:1]

            def evaluate(x: Tensor = x, time: float = time, used: list[Canvas] = used) -> Tensor:
                return torch.cat([canvas.velocity(x, time) for canvas in used]).float()

            parts = series.at(step, len(used), evaluate).split(len(x))
            v = parts[0]
            if is_guided:
                image_free = parts[2] if len(parts) > 2 else None
                v = flow.guide(v, parts[1], image_free, drawing, lengths)
            if watch is not None:
                watch(time, self._decoded(x - time * v, sizes))
            x = euler.step(v, timestep, x).prev_sample
        return x

    def interleaved_loss(
        self, contexts: Sequence[Context], seeds: Sequence[int], *, pads_images: bool = False
    ) -> dict[str, Tensor]:
        """Cross-entropy of target texts (nats a token) and flow loss of target images.

        Flow: x_t = (1 - t) x_0 + t e, target e - x_0, squared error averaged over the noised
        tokens; t = sigmoid(normal), shifted (BAGEL, section 3). An absent kind of target gives 0.
        ``pads_images``: see :meth:`predict_targets`.
        """
        _, images = context_rows(contexts, self.config)
        noise = training_noise(images, self.config.latent, seeds, pads_images=pads_images)
        made = self.predict_targets(contexts, noise, pads_images=pads_images)
        text, drawing = made.hidden.sum() * 0, made.velocity.sum() * 0
        if len(made.targets):
            text = F.cross_entropy(self.logits(made.hidden).float(), made.targets)
        if len(made.velocity):
            drawing = (made.velocity - made.target_velocity).square().mean()
        return {"text": text, "drawing": drawing}

    def predict_targets(
        self, contexts: Sequence[Context], noise: Sequence[ImageNoise], *, pads_images: bool = False
    ) -> Predictions:
        """One pass over training rows; ``noise`` belongs to their latent images, in order.

        ``pads_images`` encodes all images in one batch, padded at the right and bottom with grey,
        as the official trainer does: what an image becomes then depends on its batch mates.
        """
        rows, images = context_rows(contexts, self.config)
        packed = pack(rows, is_padded=self.is_padded)
        pixels = [image.to(self.device) for image in images.drawn]
        posteriors = [one.posterior.to(self.device) for one in noise]
        config = self.config.latent
        shown = encode(self.codec, config, pixels, posteriors, pads_images=pads_images)
        wanted = []
        for index, one in enumerate(noise):
            if images.is_noised[index]:
                shown[index], velocity = noised(shown[index], one, config)
                wanted.append(velocity)
        streams = self._embed(packed, images.read, shown)
        streams = self.language_model.model(streams, self._layout(packed))
        predicted = streams[UNDERSTANDING].new_zeros(0, config.token_size)
        if wanted:
            parts = streams[GENERATION].split([len(latent.tokens) for latent in shown])
            drawn = [part for part, n in zip(parts, images.is_noised, strict=True) if n]
            predicted = self.llm2vae(torch.cat(drawn))
        return Predictions(
            hidden=self._predicting(packed, streams),
            targets=packed.targets[packed.targets >= 0].to(self.device),
            velocity=predicted.float(),
            target_velocity=torch.cat(wanted).float() if wanted else predicted,
        )

    # Inside

    @property
    def is_padded(self) -> bool:
        """Rows are padded on a CPU and packed into one row elsewhere; both give the same."""
        return self.device.type == "cpu"

    def _run(self, rows: Sequence[Row], images: Images) -> tuple[Packed, Streams]:
        """Embed and decode rows whose images are all clean."""
        packed = pack(rows, is_padded=self.is_padded)
        streams = self._embed(packed, images.read, self._encode(images.drawn))
        return packed, self.language_model.model(streams, self._layout(packed))

    def _prefill(self, contexts: Sequence[Context], room: int, multiple: int = 1) -> KeyValueCache:
        """Read contexts into a cache that takes ``room`` more tokens a row."""
        rows, images = context_rows(contexts, self.config)
        packed = pack(rows)
        weight = self.language_model.lm_head.weight
        capacity = packed.order.shape[1] + room
        cache = KeyValueCache(self.config.decoder, weight, len(rows), capacity, multiple)
        if len(packed.text_ids):  # guidance without a prompt sees nothing at all
            streams = self._embed(packed, images.read, self._encode(images.drawn))
            self.language_model.model(streams, self._layout(packed, cache), cache)
        next_positions = torch.tensor(packed.next_positions, device=self.device)
        cache.keep(packed.lengths.to(self.device), next_positions)
        if packed.is_hidden is not None:
            cache.hidden = F.pad(packed.is_hidden.to(self.device), (0, room))
        return cache

    def _decode_step(self, ids: Int[Tensor, " rows"], cache: KeyValueCache) -> Tensor:
        """Append one token a row; the logits of the next."""
        cache.reserve(1)
        rows = torch.arange(len(ids), device=self.device)
        cos, sin = self.language_model.model.rotary(cache.next_positions[:, None])
        keys = torch.arange(cache.longest + 1, device=self.device)
        is_seen = keys <= cache.lengths[:, None]
        if cache.hidden is not None:
            is_seen = is_seen & ~cache.hidden[:, : len(keys)]
        mask = is_seen[:, None, None]
        layout = OneTokenLayout(order=rows[:, None], inverse=rows, cos=cos, sin=sin, mask=mask)
        streams = {UNDERSTANDING: self.language_model.model.embed_tokens(ids)}
        streams = self.language_model.model(streams, layout, cache)
        cache.keep(torch.ones_like(cache.lengths), cache.next_positions + 1)
        return self.logits(streams[UNDERSTANDING])

    def _layout(self, packed: Packed, cache: KeyValueCache | None = None) -> Layout:
        """Index tensors on the device, with the mask over cached and new keys."""
        cos, sin = self.language_model.model.rotary(packed.positions.to(self.device))
        visibility = packed.visibility.to(self.device)
        if cache is not None:
            time = packed.order.shape[1]
            visibility = visibility.behind(cache.lengths, cache.num_keys(time) - time)
        return Layout(
            order=packed.order.to(self.device),
            inverse=packed.inverse.to(self.device),
            cos=cos,
            sin=sin,
            mask=visibility.mask(self.language_model.model.kernel),
        )

    def latents_of(
        self, tokens: Float[Tensor, "tokens width"], grid: tuple[int, int]
    ) -> Float[Tensor, "channels rows columns"]:
        """Latent tokens of a grid, put together for the codec."""
        side, (height, width) = self.config.latent.patch_size, grid
        return rearrange(
            tokens, "(h w) (p q z) -> z (h p) (w q)", h=height, w=width, p=side, q=side
        )

    def _encode(self, images: Sequence[Tensor]) -> list[LatentImage]:
        """Clean latents of a context."""
        config = self.config.latent
        noise = [context_noise(pixels, config).to(self.device) for pixels in images]
        pixels = [image.to(self.device) for image in images]
        return encode(self.codec, config, pixels, noise)

    def _embed(
        self, packed: Packed, read: Sequence[Tensor], latents: Sequence[LatentImage]
    ) -> Streams:
        """Every token of the streams at decoder width."""
        understood = [self.language_model.model.embed_tokens(packed.text_ids.to(self.device))]
        if read:
            states, ids = self.vit_model([pixels.to(self.device) for pixels in read])
            understood.append(self.connector(states) + self.vit_pos_embed(ids))
        streams = {UNDERSTANDING: torch.cat(understood)}
        if latents:
            streams[GENERATION] = self._embed_latents(latents)
        return streams

    def _embed_latents(self, latents: Sequence[LatentImage]) -> Tensor:
        """Latent tokens with their time (0 where clean) and place."""
        stride = self.config.latent.tokens_per_side
        ids = torch.cat([grid_ids(*latent.grid, stride) for latent in latents]).to(self.device)
        moments = [latent.time for latent in latents]
        times = torch.tensor(moments, device=self.device)
        if len(set(moments)) == 1:  # as in every drawing: computed alike for any number of images
            time = self.time_embedder(times[:1])
        else:
            lengths = torch.tensor([len(latent.tokens) for latent in latents], device=self.device)
            time = self.time_embedder(times).repeat_interleave(lengths, dim=0)
        tokens = torch.cat([latent.tokens for latent in latents])
        return self.vae2llm(tokens.to(self.vae2llm.weight)) + time + self.latent_pos_embed(ids)

    def _predicting(self, packed: Packed, streams: Streams) -> Tensor:
        """States of the text tokens that predict something, in row order."""
        index = (packed.targets >= 0).nonzero()[:, 0].to(self.device)
        return streams[UNDERSTANDING][index]
