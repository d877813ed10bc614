#!/usr/bin/env python3
"""Times the same work as `cargo bench --bench step` in PyTorch and diffusers, on the CPU in float32.

Networks have the size of Stable Diffusion 1.5 and AnimateDiff v3 and random weights. Prints one JSON object a line:
`{"name", "seconds": {"median", "min", "max"}, "samples", "threads", "versions"}`. Names:

    unet2d_forward  one image, 32x32 latents, one forward pass
    spatial_step    the same with LoRA (rank 32, blocks 2 and 6): forward, backward, Lion
    video_forward   16 frames, 32x32 latents, one forward pass of UNet and motion modules
    vae_decode      one 256x256 picture
    gemm_<M>x<N>x<K>               (M,K) by (N,K) transposed: the Linear layers and 1x1 convolutions of one image
    conv_<H>x<W>x<Cin>x<Cout>      3x3, padding 1, H and W of the output; `_s2` behind a name is stride 2
"""

import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

GEMMS = [
    # GEGLU in, FF out, merged q k v, and the square ones (attention out, proj in and out, cross-attention q).
    (1024, 2560, 320), (256, 5120, 640), (64, 10240, 1280), (16, 10240, 1280),
    (1024, 320, 1280), (256, 640, 2560), (64, 1280, 5120), (16, 1280, 5120),
    (1024, 960, 320), (256, 1920, 640), (64, 3840, 1280), (16, 3840, 1280),
    (1024, 320, 320), (256, 640, 640), (64, 1280, 1280), (16, 1280, 1280),
    # Shortcuts of the residual blocks.
    (1024, 320, 640), (1024, 320, 960), (256, 640, 320), (256, 640, 960), (256, 640, 1280), (256, 640, 1920),
    (64, 1280, 640), (64, 1280, 1920), (64, 1280, 2560), (16, 1280, 2560),
]
CONVS = [
    # (size, in, out, stride)
    (32, 4, 320, 1), (32, 320, 320, 1), (32, 640, 320, 1), (32, 960, 320, 1), (32, 640, 640, 1), (32, 320, 4, 1),
    (16, 320, 320, 2), (16, 320, 640, 1), (16, 640, 640, 1), (16, 960, 640, 1), (16, 1280, 640, 1),
    (16, 1920, 640, 1), (16, 1280, 1280, 1),
    (8, 640, 640, 2), (8, 640, 1280, 1), (8, 1280, 1280, 1), (8, 1920, 1280, 1), (8, 2560, 1280, 1),
    (4, 1280, 1280, 2), (4, 1280, 1280, 1), (4, 2560, 1280, 1),
]
RANK, LORA_BLOCKS = 32, ("down_blocks.2.", "up_blocks.1.")
LEARNING_RATE, WEIGHT_DECAY, BETAS = 1e-5, 0.1, (0.9, 0.99)


# -- whole networks ------------------------------------------------------------------------------------------------

def frozen(model: torch.nn.Module, args) -> torch.nn.Module:
    model = model.eval().requires_grad_(False)
    return model.to(memory_format=torch.channels_last) if args.channels_last else model


def maybe_compiled(model: torch.nn.Module, args):
    return torch.compile(model) if args.compile else model


def sd15_unet():
    import diffusers
    return diffusers.UNet2DConditionModel(
        sample_size=32, cross_attention_dim=768, attention_head_dim=8,
        block_out_channels=(320, 640, 1280, 1280))


def unet2d_forward(args):
    model = maybe_compiled(frozen(sd15_unet(), args), args)
    sample, timestep, context = torch.randn(1, 4, 32, 32), torch.tensor([500]), torch.randn(1, 77, 768)

    @torch.inference_mode()
    def run():
        return model(sample, timestep, encoder_hidden_states=context).sample
    return run


def video_forward(args):
    import diffusers
    frames = 16
    model = maybe_compiled(frozen(diffusers.UNetMotionModel(
        sample_size=32, cross_attention_dim=768, num_attention_heads=8, motion_max_seq_length=32,
        motion_num_attention_heads=8, use_motion_mid_block=False), args), args)
    sample, timestep = torch.randn(1, 4, frames, 32, 32), torch.tensor([500])
    context = torch.randn(1, 77, 768).repeat_interleave(frames, dim=0)

    @torch.inference_mode()
    def run():
        return model(sample, timestep, encoder_hidden_states=context).sample
    return run


def vae_decode(args):
    import diffusers
    model = frozen(diffusers.AutoencoderKL(
        latent_channels=4, block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4), args)
    decode = maybe_compiled(model.decode, args)
    latent = torch.randn(1, 4, 32, 32)

    @torch.inference_mode()
    def run():
        return decode(latent).sample
    return run


class LoraLinear(torch.nn.Module):
    """A frozen Linear plus a low-rank product; the leanest form, without adapters' bookkeeping."""

    def __init__(self, base: torch.nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.down = torch.nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.up = torch.nn.Parameter(torch.randn(base.out_features, rank) * 1e-3)

    def forward(self, x):
        return self.base(x) + F.linear(F.linear(x, self.down), self.up)


def add_lora(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    targets = [
        name for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and name.startswith(LORA_BLOCKS) and ".transformer_blocks." in name
    ]
    for name in targets:
        owner, _, child = name.rpartition(".")
        setattr(model.get_submodule(owner), child, LoraLinear(model.get_submodule(name), RANK))
    return [p for p in model.parameters() if p.requires_grad]


def spatial_step(args):
    unet = frozen(sd15_unet(), args)
    parameters = add_lora(unet)
    moments = [torch.zeros_like(p) for p in parameters]
    model = maybe_compiled(unet, args)
    sample, timestep, context = torch.randn(1, 4, 32, 32), torch.tensor([500]), torch.randn(1, 77, 768)
    noise = torch.randn(1, 4, 32, 32)

    @torch.no_grad()
    def lion(gradients):
        b1, b2 = BETAS
        torch._foreach_mul_(parameters, 1.0 - LEARNING_RATE * WEIGHT_DECAY)
        update = torch._foreach_lerp(moments, gradients, 1.0 - b1)
        torch._foreach_sign_(update)
        torch._foreach_add_(parameters, update, alpha=-LEARNING_RATE)
        torch._foreach_lerp_(moments, gradients, 1.0 - b2)

    def run():
        loss = F.mse_loss(model(sample, timestep, encoder_hidden_states=context).sample, noise)
        lion(torch.autograd.grad(loss, parameters))
        return loss.item()
    return run


# -- kernels -------------------------------------------------------------------------------------------------------

def gemm(m: int, n: int, k: int):
    def prepare(_args):
        x, w = torch.randn(m, k), torch.randn(n, k)

        @torch.inference_mode()
        def run():
            return F.linear(x, w)
        return run
    return prepare


def conv(size: int, cin: int, cout: int, stride: int):
    def prepare(args):
        x, w = torch.randn(1, cin, size * stride, size * stride), torch.randn(cout, cin, 3, 3)
        if args.channels_last:
            x, w = x.to(memory_format=torch.channels_last), w.to(memory_format=torch.channels_last)

        @torch.inference_mode()
        def run():
            return F.conv2d(x, w, stride=stride, padding=1)
        return run
    return prepare


def items() -> dict:
    table = dict(unet2d_forward=unet2d_forward, spatial_step=spatial_step, video_forward=video_forward,
                 vae_decode=vae_decode)
    for m, n, k in GEMMS:
        table[f"gemm_{m}x{n}x{k}"] = gemm(m, n, k)
    for size, cin, cout, stride in CONVS:
        suffix = "" if stride == 1 else f"_s{stride}"
        table[f"conv_{size}x{size}x{cin}x{cout}{suffix}"] = conv(size, cin, cout, stride)
    return table


def selected(names, only: str | None) -> list[str]:
    """The names that equal, or begin with, one of the comma-separated words of `only`; all without it."""
    words = [w for w in (only or "").split(",") if w]
    return [name for name in names if not words or name.startswith(tuple(words))]


def measure(run, args) -> list[float]:
    for _ in range(args.warmup):
        run()
    times, begin = [], time.perf_counter()
    while len(times) < args.min_samples or (
            time.perf_counter() - begin < args.seconds and len(times) < args.max_samples):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "torch": torch.__version__}
    if "diffusers" in sys.modules:
        found["diffusers"] = sys.modules["diffusers"].__version__
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated names or beginnings of names")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=2.0, help="time to spend on one item")
    parser.add_argument("--min-samples", type=int, default=3)
    parser.add_argument("--max-samples", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--channels-last", action="store_true", help="NHWC activations and weights")
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks")
    args = parser.parse_args()
    table = items()
    names = selected(table, args.only)
    if not names:
        parser.error(f"nothing is called {args.only}")
    if args.list:
        print("\n".join(names))
        return
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    for name in names:
        times = measure(table[name](args), args)
        print(json.dumps(dict(
            name=name, seconds=dict(median=statistics.median(times), min=min(times), max=max(times)),
            samples=len(times), threads=args.threads, versions=versions())), flush=True)


if __name__ == "__main__":
    main()
