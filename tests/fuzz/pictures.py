"""Pictures in all formats, as one's own picture and as an image of a data set."""

import functools
import io

import numpy as np
from PIL import Image, features

from nstvis import crops, decoding, images
from nstvis.data import Example
from tests.fuzz import mutations

# One's own picture may be larger, and takes as much more memory.
decoding.MAX_PIXELS = decoding.MAX_IMAGE_PIXELS


@functools.cache
def whole():
    """Returns pictures of all modes and formats, as bytes, with their suffixes."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8)
    picture = Image.fromarray(noise)
    exif = Image.Exif()
    exif[274] = 6
    kinds = [("RGBA", {}), ("RGB", {"exif": exif}), ("L", {}), ("P", {}), ("1", {})]
    kinds += [("I;16", {}), ("CMYK", {}), ("LA", {}), ("RGB", {"progressive": True})]
    kinds += [("RGB", {"save_all": True, "append_images": [picture.convert("RGB")]})]
    found = []
    for mode, options in kinds:
        for suffix in (".png", ".jpg", ".gif", ".tif", ".webp"):
            if suffix == ".webp" and not features.check("webp"):
                continue
            file = io.BytesIO()
            source = picture.convert("L" if mode == "I;16" else mode)
            if mode == "I;16":
                source = Image.fromarray(np.asarray(source).astype(np.uint16) * 257)
            try:
                source.save(file, Image.registered_extensions()[suffix], **options)
            except (OSError, ValueError, KeyError):
                continue  # of a mode that the format has not
            found.append((suffix, file.getvalue()))
    return found


def case(random, folder):
    suffix, raw = random.choice(whole())
    raw = mutations.of_bytes(random, raw, random.choice(whole())[1])
    path = folder / f"x{suffix}"
    path.write_bytes(raw)
    match random.randrange(3):
        case 0:
            return lambda: images.read(path)
        case 1:
            return lambda: images.read_stored(path)
    return lambda: crops.centered(Example("x", -1, raw), 32)
