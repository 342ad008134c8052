"""A complete VMamba in plain PyTorch: read it from top to bottom, or run it to train on digits.

    python examples/minimal_vmamba.py --epochs 10

The network computes what ``mmvssm.VMamba`` does (second version: one state, no gate, MLPs), but
its scan follows the definition, one step at a time. Paper: https://arxiv.org/abs/2401.10166.
"""

import argparse
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


def selective_scan(u, delta, A, B, C, D):
    """Scan u and delta (Bt, K, D, L), A (K, D, N), B and C (Bt, K, N, L), D (K, D) -> as u."""
    state, outputs = 0, []
    for step, x, b, c in zip(*(t.unbind(-1) for t in (delta, u, B, C))):
        decay = torch.exp(step[..., None] * A)  # how much is remembered: (Bt, K, D, N)
        state = decay * state + (step * x)[..., None] * b[:, :, None]
        outputs.append((state * c[:, :, None]).sum(-1) + D * x)
    return torch.stack(outputs, dim=-1)


def cross_routes(height, width):
    """Return four orders of visiting all pixels (4, H*W): rows, columns, and both reversed."""
    pixels = torch.arange(height * width).view(height, width)
    rows, columns = pixels.flatten(), pixels.t().flatten()
    return torch.stack([rows, columns, rows.flip(0), columns.flip(0)])


class SS2D(nn.Module):
    """2-D selective scan: (B, H, W, C) -> the same."""

    def __init__(self, dim, d_state=1, num_routes=4):
        super().__init__()
        rank = math.ceil(dim / 16)
        self.split = [rank, d_state, d_state]
        self.in_proj = nn.Linear(dim, dim, bias=False)
        self.conv2d = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        bound = dim**-0.5
        weight = torch.empty(num_routes, sum(self.split), dim).uniform_(-bound, bound)
        self.x_proj_weight = nn.Parameter(weight)
        bound = rank**-0.5
        weight = torch.empty(num_routes, dim, rank).uniform_(-bound, bound)
        self.dt_projs_weight = nn.Parameter(weight)
        # Steps start between 0.001 and 0.1: the bias is their inverse softplus.
        steps = torch.empty(num_routes, dim).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.dt_projs_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))
        rates = torch.arange(1.0, d_state + 1).repeat(num_routes * dim, 1)
        self.A_logs = nn.Parameter(torch.log(rates))
        self.Ds = nn.Parameter(torch.ones(num_routes * dim))
        self.out_norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        x = self.in_proj(x)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.out_proj(self.out_norm(self.scan(x)))

    def scan(self, x):
        batch, height, width, dim = x.shape
        routes = cross_routes(height, width).to(x.device)
        u = x.flatten(1, 2)[:, routes]  # every route's sequence of pixels: (B, K, L, C)
        # Step, B and C depend on the pixel: that makes the scan selective.
        projected = torch.einsum("bklc,koc->bkol", u, self.x_proj_weight)
        step, B, C = projected.split(self.split, dim=2)
        delta = torch.einsum("bkrl,kcr->bkcl", step, self.dt_projs_weight)
        delta = F.softplus(delta + self.dt_projs_bias[..., None])
        A, D = -torch.exp(self.A_logs), self.Ds
        A, D = A.view(len(routes), dim, -1), D.view(len(routes), dim)
        y = selective_scan(u.transpose(2, 3), delta, A, B, C, D)  # (B, K, C, L)
        back = routes.argsort(1)  # position of each pixel in its route
        y = sum(y[:, k, :, back[k]] for k in range(len(routes)))
        return y.transpose(1, 2).view(batch, height, width, dim)


class Block(nn.Module):
    """One layer: mix the pixels, then mix the channels."""

    def __init__(self, dim):
        super().__init__()
        self.norm1, self.mixer, self.norm2 = nn.LayerNorm(dim), SS2D(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ConvNorm(nn.Module):
    """A convolution of stride 2 and a norm: (B, H, W, C) -> (B, H/2, W/2, C')."""

    def __init__(self, dim, out):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(dim, out, 3, stride=2, padding=1), nn.LayerNorm(out)

    def forward(self, x):
        return self.norm(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class VMamba(nn.Module):
    """Four stages at strides 4 to 32, then a classifier: (B, 1, H, W) -> (B, num_classes)."""

    def __init__(self, num_classes=10, embed_dims=32, depths=(1, 1, 2, 1)):
        super().__init__()
        dims = [embed_dims * 2**i for i in range(len(depths))]
        self.stem = nn.ModuleList([ConvNorm(1, dims[0] // 2), ConvNorm(dims[0] // 2, dims[0])])
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim) for _ in range(depth))) for dim, depth in zip(dims, depths)
        )
        self.downsamples = nn.ModuleList(ConvNorm(a, b) for a, b in pairwise(dims))
        self.norm, self.head = nn.LayerNorm(dims[-1]), nn.Linear(dims[-1], num_classes)

    def forward(self, x):
        x = self.stem[1](F.gelu(self.stem[0](x.permute(0, 2, 3, 1))))
        for stage, downsample in zip(self.stages, [*self.downsamples, nn.Identity()]):
            x = downsample(stage(x))
        return self.head(self.norm(x).mean((1, 2)))


def main():
    parser = argparse.ArgumentParser(description="Train a small VMamba on handwritten digits.")
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = F.interpolate(images.view(-1, 1, 8, 8).float() / 8 - 1, scale_factor=4)
    train, test = torch.randperm(len(images)).tensor_split([len(images) * 4 // 5])
    model = VMamba()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * 23)
    for epoch in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        with torch.no_grad():
            accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean()
        print(f"epoch {epoch + 1}: loss {loss:.3f}, held-out accuracy {accuracy:.1%}", flush=True)


if __name__ == "__main__":
    main()
