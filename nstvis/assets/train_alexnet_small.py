"""Trains `alexnet_small` on Tiny ImageNet with PyTorch: two CPU cores, two hours.

    python -m nstvis.assets.train_alexnet_small tiny-imagenet-200.zip run/

made the `alexnet_small.safetensors` beside this file: batch norm while training,
folded into plain convolutions at the end; random resized crops that grow from 48 to 64
pixels, flips, brightness and contrast; one cycle of SGD.
A second call resumes after the last whole epoch.
"""

import io
import json
import math
import pathlib
import sys
import zipfile

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

EPOCHS = 18
BATCH = 128
PEAK_LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4
SMOOTHING = 0.1
MEAN = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)


def conv(inputs, outputs, size, stride, padding):
    """A convolution without bias, batch norm and a ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class AlexNetSmall(nn.Module):
    """The network of `nstvis/models/alexnet_small.py`, with batch norm."""

    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 64, 7, 2, 3)
        self.conv2 = conv(64, 192, 5, 1, 2)
        self.conv3 = conv(192, 384, 3, 1, 1)
        self.conv4 = conv(384, 256, 3, 1, 1)
        self.conv5 = conv(256, 256, 3, 1, 1)
        self.fc6 = nn.Linear(256 * 9, 768)
        self.fc7 = nn.Linear(768, 768)
        self.fc8 = nn.Linear(768, 200)

    def forward(self, x):
        x = F.max_pool2d(self.conv1(x), 3, 2)
        x = F.max_pool2d(self.conv2(x), 3, 2)
        x = F.max_pool2d(self.conv5(self.conv4(self.conv3(x))), 3, 2)
        x = F.adaptive_avg_pool2d(x, 3).flatten(1)
        x = F.relu(self.fc6(F.dropout(x, 0.2, self.training)))
        x = F.relu(self.fc7(F.dropout(x, 0.2, self.training)))
        return self.fc8(x)


def decode(archive, names):
    """Decodes images to uint8 `[n, 3, 64, 64]`."""
    images = np.empty((len(names), 64, 64, 3), np.uint8)
    for i, name in enumerate(names):
        image = Image.open(io.BytesIO(archive.read(name)))
        images[i] = np.asarray(image.convert("RGB"))
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def load(path):
    """Reads images, labels and class names from the official archive."""
    archive = zipfile.ZipFile(path)
    root = "tiny-imagenet-200/"
    wnids = archive.read(root + "wnids.txt").decode().split()
    train = sorted(
        n for n in archive.namelist() if "/train/" in n and n.endswith(".JPEG")
    )
    train_labels = torch.tensor([wnids.index(n.split("/")[2]) for n in train])
    rows = [
        r.split("\t")
        for r in archive.read(root + "val/val_annotations.txt").decode().splitlines()
    ]
    present = set(archive.namelist())
    rows = [r for r in rows if root + "val/images/" + r[0] in present]
    val_labels = torch.tensor([wnids.index(r[1]) for r in rows])
    val = [root + "val/images/" + r[0] for r in rows]
    words = archive.read(root + "words.txt").decode().splitlines()
    meanings = dict(row.split("\t") for row in words)
    classes = [meanings[wnid] for wnid in wnids]
    images = decode(archive, train), decode(archive, val)
    return (images[0], train_labels), (images[1], val_labels), classes


def normalise(x):
    """Does the preprocessing of the network."""
    return ((x.float() - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def augment(images, size):
    """Random resized crop (area 0.3-1, aspect 3/4-4/3), flip, brightness, contrast."""
    n = len(images)
    area = torch.empty(n).uniform_(0.3, 1).sqrt()
    aspect = torch.empty(n).uniform_(math.log(3 / 4), math.log(4 / 3)).div(2).exp()
    w, h = (area * aspect).clamp(max=1), (area / aspect).clamp(max=1)
    flip = torch.randint(0, 2, (n,)) * 2.0 - 1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = w * flip, h
    theta[:, 0, 2] = (1 - w) * torch.empty(n).uniform_(-1, 1)
    theta[:, 1, 2] = (1 - h) * torch.empty(n).uniform_(-1, 1)
    grid = F.affine_grid(theta, [n, 3, size, size], align_corners=False)
    x = F.grid_sample(
        images.float(), grid, padding_mode="reflection", align_corners=False
    )
    gain = torch.empty(n, 1, 1, 1).uniform_(0.7, 1.3)
    shift = torch.empty(n, 1, 1, 1).uniform_(-25, 25)
    return normalise((x - 128) * gain + 128 + shift)


def image_size(epoch):
    """Side of the training images, which grows."""
    return 48 if epoch < EPOCHS / 3 else 56 if epoch < EPOCHS * 2 / 3 else 64


def learning_rate(progress):
    """Rises linearly for a fifth of the time, then falls as a cosine."""
    warm = 0.2
    return PEAK_LEARNING_RATE * (
        max(progress / warm, 0.02)
        if progress < warm
        else 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))
    )


@torch.no_grad()
def accuracy(model, images, labels):
    """Share of images whose class comes first."""
    model.eval()
    correct = [
        (model(normalise(images[i : i + 250])).argmax(1) == labels[i : i + 250]).sum()
        for i in range(0, len(images), 250)
    ]
    return float(torch.stack(correct).sum()) / len(labels)


@torch.no_grad()
def folded(model):
    """State dict with batch norm folded into the convolutions."""
    state = {}
    for name in ["conv1", "conv2", "conv3", "conv4", "conv5"]:
        layer, norm = getattr(model, name)[0], getattr(model, name)[1]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        state[f"{name}.weight"] = layer.weight * scale.view(-1, 1, 1, 1)
        state[f"{name}.bias"] = norm.bias - norm.running_mean * scale
    for name in ["fc6", "fc7", "fc8"]:
        state[f"{name}.weight"] = getattr(model, name).weight
        state[f"{name}.bias"] = getattr(model, name).bias
    return {k: v.detach().clone().contiguous() for k, v in state.items()}


def train_epoch(model, optimiser, images, labels, epoch):
    """Takes one pass over the images; returns the mean loss."""
    torch.manual_seed(epoch)
    model.train()
    order, steps, total = torch.randperm(len(images)), len(images) // BATCH, 0.0
    for step in tqdm(range(steps), f"epoch {epoch + 1}/{EPOCHS}"):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate((epoch + step / steps) / EPOCHS)
        index = order[step * BATCH : (step + 1) * BATCH]
        x = augment(images[index], image_size(epoch))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x).float()
        loss = F.cross_entropy(logits, labels[index], label_smoothing=SMOOTHING)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        total += loss.item()
    return total / steps


def main(archive, out):
    """Trains, and writes `alexnet_small.safetensors` into `out`."""
    out = pathlib.Path(out)
    out.mkdir(exist_ok=True)
    torch.manual_seed(0)
    (images, labels), validation, classes = load(archive)
    model = AlexNetSmall()
    model.to(memory_format=torch.channels_last)  # pyright: ignore
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimiser = torch.optim.SGD(
        [{"params": kernels, "weight_decay": WEIGHT_DECAY}, {"params": others}],
        lr=PEAK_LEARNING_RATE,
        momentum=0.9,
        nesterov=True,
    )
    parts = {"model": model, "optimiser": optimiser}
    first = 0
    if (out / "last.pth").exists():
        saved = torch.load(out / "last.pth")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first = saved["epoch"] + 1
    for epoch in range(first, EPOCHS):
        loss = train_epoch(model, optimiser, images, labels, epoch)
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"epoch": epoch}, out / "partial")
        (out / "partial").replace(out / "last.pth")
        print(f"loss {loss:.3f} top-1 {accuracy(model, *validation):.4f}", flush=True)
    weights = {name: tensor.half() for name, tensor in folded(model).items()}
    notes = {"classes": json.dumps(classes)}
    save_file(weights, out / "alexnet_small.safetensors", metadata=notes)


if __name__ == "__main__":
    main(*sys.argv[1:])
