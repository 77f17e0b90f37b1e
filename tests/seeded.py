"""Deterministic, platform-independent random weights and images (numpy only).

Only ``numpy.random.PCG64(seed).random_raw`` is used: NumPy guarantees that the
raw stream of a BitGenerator (and SeedSequence) never changes, while the
streams of ``Generator.standard_normal`` etc. may.  No libm function is
involved, so arrays are bit-identical on every platform:

    seed  = first 8 bytes (little endian) of SHA-256("<case>/<array name>")
    u_i   = (raw_i >> 11) * 2**-53                      # float64 in [0, 1)
    x_i   = float32(offset + half_width * (2*u_i - 1))  # uniform

Half widths (a uniform distribution of half width w has std w/sqrt(3)):

    kernel of a Dense/Conv : w = GAIN * sqrt(3 / fan_in)   (std = GAIN/sqrt(fan_in))
                             GAIN = 1 except Dense_0 (2.0) and head (1.0)
    bias  of a Dense/Conv  : w = 0.5
    LayerNorm scale        : 1 + w, w = 0.5      LayerNorm bias: w = 0.5
    images                 : uint8 = raw >> 56, x = (uint8 - 127.5) / 127.5

No parameter is zero or one, so a swapped, dropped or transposed parameter, a
wrong LayerNorm epsilon/order or a wrong GELU changes the outputs.
Dense_0 has gain 2 so that GELU sees inputs far outside its linear range.
"""

import hashlib

import numpy as np

CASES = {
    # name: image, patch, blocks, hidden, tokens_mlp, channels_mlp, classes, batch
    "tiny": dict(image=32, patch=8, num_blocks=2, hidden_dim=48, tokens_mlp_dim=24, channels_mlp_dim=96, num_classes=10, batch=3),
}


def raw(case, name, n):
    seed = int.from_bytes(hashlib.sha256(f"{case}/{name}".encode()).digest()[:8], "little")
    return np.random.PCG64(seed).random_raw(n)


def uniform(case, name, shape, half_width, offset=0.0):
    r = raw(case, name, int(np.prod(shape)))
    u = (r >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (offset + half_width * (2.0 * u - 1.0)).astype(np.float32).reshape(shape)


def images_uint8(case, batch, size):
    r = raw(case, "images", batch * size * size * 3)
    return (r >> np.uint64(56)).astype(np.uint8).reshape(batch, size, size, 3)


def normalise(u8):
    return (u8.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)


def shapes(cfg):
    """Official parameter names and shapes (vit_jax MlpMixer), in checkpoint order."""
    c, p = cfg["hidden_dim"], cfg["patch"]
    s = (cfg["image"] // p) ** 2
    ds, dc, n = cfg["tokens_mlp_dim"], cfg["channels_mlp_dim"], cfg["num_classes"]
    out = {}
    for i in range(cfg["num_blocks"]):
        b = f"MixerBlock_{i}/"
        for ln in ("LayerNorm_0", "LayerNorm_1"):
            out[f"{b}{ln}/bias"] = (c,)
            out[f"{b}{ln}/scale"] = (c,)
        for m, (a, h) in (("token_mixing", (s, ds)), ("channel_mixing", (c, dc))):
            out[f"{b}{m}/Dense_0/bias"] = (h,)
            out[f"{b}{m}/Dense_0/kernel"] = (a, h)
            out[f"{b}{m}/Dense_1/bias"] = (a,)
            out[f"{b}{m}/Dense_1/kernel"] = (h, a)
    out["head/bias"] = (n,)
    out["head/kernel"] = (c, n)
    out["pre_head_layer_norm/bias"] = (c,)
    out["pre_head_layer_norm/scale"] = (c,)
    out["stem/bias"] = (c,)
    out["stem/kernel"] = (p, p, 3, c)
    return dict(sorted(out.items(), key=lambda kv: kv[0].split("/")))


def weights(case, cfg=None):
    """Flat dict {official name: float32 array}."""
    cfg = cfg or CASES[case]
    out = {}
    for name, shape in shapes(cfg).items():
        if name.endswith("kernel"):
            fan_in = int(np.prod(shape[:-1]))
            gain = 2.0 if "Dense_0" in name else 1.0
            out[name] = uniform(case, name, shape, gain * np.sqrt(3.0 / fan_in))
        elif name.endswith("scale"):
            out[name] = uniform(case, name, shape, 0.5, offset=1.0)
        else:
            out[name] = uniform(case, name, shape, 0.5)
    return out


def digest(arrays):
    """SHA-256 over the little-endian bytes of the arrays, in the dict's order."""
    h = hashlib.sha256()
    for k, v in arrays.items():
        h.update(k.encode())
        h.update(np.ascontiguousarray(v).tobytes())
    return h.hexdigest()


# ---- inputs of the other fixtures in this folder


def training_batches():
    """4 batches of 6 images (4,6,32,32,3 float32 in [-1,1], NHWC) and labels (4,6) for tiny_train.json."""
    images = normalise(images_uint8("tiny_train", 24, 32)).reshape(4, 6, 32, 32, 3)
    labels = (raw("tiny_train", "labels", 24) % np.uint64(10)).astype(np.int64).reshape(4, 6)
    return images, labels


def probe(name, a):
    """(sum, l2 norm, dot with a seeded +-1 vector) of an array: the fingerprints in tiny_train.json and fewshot.json."""
    a = np.asarray(a, np.float64).ravel()
    signs = 1.0 - 2.0 * (raw("probe", name, a.size) >> np.uint64(63)).astype(np.float64)
    return [a.sum(), np.sqrt((a * a).sum()), (a * signs).sum()]


def fewshot_features(name, n, d, classes, n_test):
    """(x_train, y_train, x_test, y_test) of a case of fewshot.json ("n_gt_d", "d_gt_n"), float64 features."""
    case = "fewshot/" + name
    x_train, x_test = uniform(case, "x", (n, d), 1.5, 0.3), uniform(case, "xt", (n_test, d), 1.5, 0.3)
    mu = uniform(case, "mu", (classes, d), 0.8)
    y_train, y_test = np.arange(n) % classes, np.arange(n_test) % classes
    return (x_train + mu[y_train]).astype(np.float64), y_train, (x_test + mu[y_test]).astype(np.float64), y_test


def preprocessing_image(height, width):
    """uint8 image (H,W,3) of a case of pp_expected.npz: 8x8 block noise (3/4) + pixel noise (1/4)."""
    bh, bw = -(-height // 8), -(-width // 8)
    b = (raw("pp", f"blocks{height}x{width}", bh * bw * 3) >> np.uint64(56)).astype(np.int64).reshape(bh, bw, 3)
    n = (raw("pp", f"noise{height}x{width}", height * width * 3) >> np.uint64(56)).astype(np.int64).reshape(height, width, 3)
    return ((3 * b.repeat(8, 0).repeat(8, 1)[:height, :width] + n) // 4).astype(np.uint8)
