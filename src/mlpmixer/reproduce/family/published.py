"""The papers' own account of the family: what mixes where, and ImageNet-1k accuracies."""

from mlpmixer.models.names import MODELS
from mlpmixer.reproduce.family.measured import deployed_size
from mlpmixer.reproduce.published import cells

MIXING = """
Mixer     | all | an MLP, one for all channels | fixed | an MLP | 8
ResMLP    | all | a matrix, one for all channels | fixed | an MLP | 8
gMLP      | all | a matrix for half of the channels | fixed; it gates the other half | both in one branch | 8
S2-MLP    | 4 neighbours | shifts of four groups | none | two layers, an MLP | 8
S2-MLPv2  | 4 neighbours | shifts of two parts of three | none; their shares: content | two layers, an MLP | 16, 8
AS-MLP    | 2 steps along row, column | shifts | none; a norm over the map: content | four layers, an MLP | 16, 8
ViP       | row, column | matrices, also across channels | fixed; their shares: content | a third branch, an MLP | 16, 8
RepMLPNet | all | a matrix, one for each set of channels | fixed; a factor: content | an MLP | 16, 8
EAMLP     | all | a memory of 64 slots | fixed memory, addressed by content | an MLP | 8
ViT       | all | attention | content | an MLP | 8
ResNet    | 3 x 3 | convolutions, also across channels | fixed | nothing apart | 32 to 4
"""
HEADINGS = ("network", "across locations", "by", "weights across locations", "per location", "grid at 32 px, side")
# name in MODELS or parameters, multiply-adds | top-1, % | arXiv | recipe; what another paper measured is said there
PUBLISHED = """
Mixer-B/16     | B/16          | 76.44 | 2105.01601 | 300 epochs, RandAugment, mixup
ResMLP-S12     | resmlp-s12    | 76.6  | 2105.03404 | 400 epochs, LAMB, otherwise as DeiT
ResMLP-S24     | resmlp-s24    | 79.4  | 2105.03404 | the same
gMLP-Ti        | gmlp-ti/16    | 72.3  | 2105.08050 | 300 epochs, AutoAugment, mixup, CutMix
gMLP-S         | gmlp-s/16     | 79.6  | 2105.08050 | the same
gMLP-B         | gmlp-b/16     | 81.6  | 2105.08050 | the same
S2-MLP-wide    | s2-mlp-wide   | 80.0  | 2106.07477 | 300 epochs, as DeiT
S2-MLP-deep    | s2-mlp-deep   | 80.7  | 2106.07477 | the same
S2-MLPv2-S/7   | s2-mlpv2-s/7  | 82.0  | 2108.01072 | 300 epochs, RandAugment, mixup, CutMix, CutOut, average of weights
S2-MLPv2-M/7   | s2-mlpv2-m/7  | 83.6  | 2108.01072 | the same
AS-MLP-T       | as-mlp-t      | 81.3  | 2107.08391 | 300 epochs, as Swin
AS-MLP-S       | as-mlp-s      | 83.1  | 2107.08391 | the same
AS-MLP-B       | as-mlp-b      | 83.3  | 2107.08391 | the same
ViP-S/7        | vip-s/7       | 81.5  | 2106.12368 | 300 epochs, RandAugment, erasing, mixup, CutMix
ViP-M/7        | vip-m/7       | 82.7  | 2106.12368 | the same
ViP-L/7        | vip-l/7       | 83.2  | 2106.12368 | the same
RepMLPNet-T224 | repmlpnet-t224| 76.4  | 2112.11081 | 100 epochs, RandAugment, mixup, CutMix
RepMLPNet-B224 | repmlpnet-b224| 80.1  | 2112.11081 | the same
RepMLPNet-L256 | repmlpnet-l256| 81.8  | 2112.11081 | the same, at 256 px
EAMLP-14       | 29,877,070, 6.45 | 78.9 | 2105.02358 | 300 epochs; stem of T2T-ViT; figure as quoted in 2106.12368
EAMLP-19       | 54,559,054, 11.60 | 79.4 | 2105.02358 | the same
Mixer-B/16     | B/16          | 76.7  | 2112.11081 | RepMLPNet's, by its authors
Mixer-B/16     | B/16          | 77.3  | 2105.08050 | gMLP's, by its authors
Mixer-B/16     | B/16          | 78.5  | 2106.12368 | ViP's, by its authors
"""


def mixing_rows() -> list[dict[str, object]]:
    return [dict(zip(HEADINGS, row, strict=True)) for row in cells(MIXING)]


def published_rows() -> list[dict[str, object]]:
    rows = []
    for network, size, top1, arxiv, recipe in cells(PUBLISHED):
        if size in MODELS:
            counted = deployed_size(MODELS[size])
            params, gmacs = f"{counted['params']:,}", f"{counted['flops'] / 2e9:.2f}"
        else:
            params, gmacs = size.rsplit(", ", 1)
        row: dict[str, object] = {"network": network, "top-1, %": top1, "parameters": params, "multiply-adds, G": gmacs}
        rows.append(row | {"source": f"arXiv:{arxiv}", "recipe": recipe})
    return rows
