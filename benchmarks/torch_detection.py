"""Mask R-CNN with and without clinical data in PyTorch: what `benchmarks.detection` is timed beside.

Runs inside the server of `benchmarks.torch_peer`, which hands the module `torch` over. The network is that of
Hsieh et al. (MDF-Net) with MobileNetV3-small trunks; modules have the names of the JAX side, so that weights come from
its flat names by one rule. Torchvision is not needed: suppression walks over the boxes kept, in NumPy, and RoIAlign is
`grid_sample` and a mean.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-5
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
ANCHOR_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
LARGEST_GROWTH = math.log(1000 / 16)
BETA = 1 / 9

BLOCKS = (
    # window, wide, out, squeeze and excitation, hard swish, stride: Howard et al. 2019, Table 2.
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)

Array = np.ndarray
Options = Mapping[str, Any]


class Work(NamedTuple):
    """What is timed, and how its result looks on the JAX side."""

    call: Any
    export: Any


def network(torch: Any, config: Options) -> Any:
    """The detector of a `DetectorConfig` in JSON: one level, batch norm, maps fused by addition."""
    nn = torch.nn
    relu, hardswish = nn.functional.relu, nn.functional.hardswish

    def eighths(channels: float) -> int:
        rounded = max(8, int(channels + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * channels else rounded + 8

    class Block(nn.Module):
        def __init__(self, before: int, design: tuple[int, int, int, bool, bool, int]) -> None:
            super().__init__()
            window, wide, out, excite, swish, stride = design

            def layer(name: str, last: int, after: int, size: int, steps: int = 1, groups: int = 1) -> None:
                conv = nn.Conv2d(last, after, size, steps, size // 2, groups=groups, bias=False)
                setattr(self, f"{name}_conv", conv)
                setattr(self, f"{name}_bn", nn.BatchNorm2d(after, eps=1e-3, momentum=0.01))

            self.widens, self.activate = wide != before, hardswish if swish else relu
            if self.widens:
                layer("expand", before, wide, 1)
            layer("depthwise", wide, wide, window, stride, wide)
            self.excite = excite
            if excite:
                self.se_reduce = nn.Linear(wide, eighths(wide // 4))
                self.se_expand = nn.Linear(eighths(wide // 4), wide)
            layer("project", wide, out, 1)
            self.adds = stride == 1 and before == out

        def forward(self, x: Any) -> Any:
            y = x
            if self.widens:
                y = self.activate(self.expand_bn(self.expand_conv(y)), inplace=True)
            y = self.activate(self.depthwise_bn(self.depthwise_conv(y)), inplace=True)
            if self.excite:
                weights = self.se_expand(relu(self.se_reduce(y.mean((2, 3))), inplace=True))
                y = y * nn.functional.hardsigmoid(weights)[:, :, None, None]
            y = self.project_bn(self.project_conv(y))
            return x + y if self.adds else y

    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem_conv = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
            self.stem_bn = nn.BatchNorm2d(16, eps=1e-3, momentum=0.01)
            before = 16
            for i, design in enumerate(BLOCKS):
                setattr(self, f"block_{i}", Block(before, design))
                before = design[2]
            self.head_conv = nn.Conv2d(before, 6 * before, 1, bias=False)
            self.head_bn = nn.BatchNorm2d(6 * before, eps=1e-3, momentum=0.01)

        def forward(self, x: Any) -> Any:
            x = hardswish(self.stem_bn(self.stem_conv(x)), inplace=True)
            for i in range(len(BLOCKS)):
                x = getattr(self, f"block_{i}")(x)
            return hardswish(self.head_bn(self.head_conv(x)), inplace=True)

    class Neck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(576, config["channels"], 3, padding=1)

        def forward(self, x: Any) -> Any:
            return self.conv(x)

    class Doubling(nn.Module):
        def __init__(self, width: int, out: int) -> None:
            super().__init__()
            self.deconv, self.deconv_bn = nn.ConvTranspose2d(width, width, 2, 2), nn.BatchNorm2d(width)
            self.conv, self.conv_bn = nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out)
            self.last = width != out

        def forward(self, x: Any) -> Any:
            x = self.conv_bn(self.conv(relu(self.deconv_bn(self.deconv(x)), inplace=True)))
            return x if self.last else relu(x, inplace=True)

    class Spatialise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width, self.count = config["vector"], int(math.log2(config["image_size"][0]))
            for i in range(self.count):
                setattr(self, f"block_{i}", Doubling(width, 3 if i == self.count - 1 else width))

        def forward(self, vector: Any) -> Any:
            x = vector[:, :, None, None]
            for i in range(self.count):
                x = getattr(self, f"block_{i}")(x)
            return x

    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            [levels] = config["levels"]
            self.embedding_0 = nn.Parameter(torch.zeros(levels, config["vector"] - config["numeric"]))

        def forward(self, clinical: Any) -> Any:
            numbers, code = clinical[:, : config["numeric"]], clinical[:, config["numeric"]].long()
            return torch.cat([numbers, nn.functional.embedding(code, self.embedding_0)], 1)

    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image_trunk, self.image_neck = Trunk(), Neck()
            if config["maps_fusion"] or config["roi_fusion"]:
                self.embedding = Embedding()
            if config["maps_fusion"]:
                self.spatialise, self.clinical_trunk, self.clinical_neck = Spatialise(), Trunk(), Neck()

        def forward(self, image: Any, clinical: Any) -> tuple[Any, Any]:
            fused = self.image_neck(self.image_trunk(image))
            vector = self.embedding(clinical) if hasattr(self, "embedding") else None
            if config["maps_fusion"]:
                fused = fused + self.clinical_neck(self.clinical_trunk(self.spatialise(vector)))
            return fused, vector

    class Head(nn.Module):
        """Layers by name."""

        def __init__(self, **layers: Any) -> None:
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)

    class MaskRCNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            channels, hidden, wide = config["channels"], config["hidden"], config["mask_hidden"]
            classes, anchors = len(config["classes"]) + 1, len(config["anchors"]["ratios"])
            anchors *= len(config["anchors"]["sizes"][0])
            self.maps = Maps()
            self.rpn = Head(
                conv=nn.Conv2d(channels, channels, 3, padding=1),
                objectness=nn.Conv2d(channels, anchors, 1),
                deltas=nn.Conv2d(channels, 4 * anchors, 1),
            )
            inputs = 49 * channels + (config["vector"] if config["roi_fusion"] else 0)
            self.box_head = Head(fc6=nn.Linear(inputs, hidden), fc7=nn.Linear(hidden, hidden))
            self.box_predictor = Head(classes=nn.Linear(hidden, classes), boxes=nn.Linear(hidden, 4 * classes))
            widths = [channels, wide, wide, wide, wide]
            self.mask_head = Head(**{f"conv_{i}": nn.Conv2d(widths[i], widths[i + 1], 3, padding=1) for i in range(4)})
            deconv = nn.ConvTranspose2d(wide, wide, 2, 2)
            self.mask_predictor = Head(deconv=deconv, logits=nn.Conv2d(wide, classes, 1))

        def propose_from(self, maps: Any) -> tuple[Any, Any]:
            x = relu(self.rpn.conv(maps), inplace=True)
            objectness = self.rpn.objectness(x).permute(0, 2, 3, 1).flatten(1)
            return objectness, self.rpn.deltas(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4)

        def classify(self, regions: Any) -> tuple[Any, Any]:
            x = relu(self.box_head.fc7(relu(self.box_head.fc6(regions))))
            deltas = self.box_predictor.boxes(x)
            return self.box_predictor.classes(x), deltas.reshape(len(deltas), -1, 4)

        def mask(self, regions: Any) -> Any:
            for i in range(4):
                regions = relu(getattr(self.mask_head, f"conv_{i}")(regions), inplace=True)
            return self.mask_predictor.logits(relu(self.mask_predictor.deconv(regions), inplace=True))

    return MaskRCNN()


def state_dict(torch: Any, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Weights by PyTorch's names from ours, such as `params/maps/image_trunk/stem_conv/kernel`."""
    state = {}
    for name, array in arrays.items():
        if "/" not in name:  # an input
            continue
        _, *path, leaf = name.split("/")
        leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(leaf, leaf)
        if path[-1] == "deconv" and array.ndim == 4:
            array = array[::-1, ::-1].transpose(2, 3, 0, 1)
        elif path[-1] == "fc6" and array.ndim == 2:
            # Ours flattens channels last; what is appended to them stays behind.
            channels = arrays["params/maps/image_neck/conv/kernel"].shape[-1]
            maps, rest = array[: 49 * channels], array[49 * channels :]
            maps = maps.reshape(49, channels, -1).transpose(1, 0, 2).reshape(maps.shape)
            array = np.concatenate([maps, rest]).T
        elif leaf == "weight" and array.ndim > 1:
            array = array.transpose({4: (3, 2, 0, 1), 2: (1, 0)}[array.ndim])
        state[".".join([*path, leaf])] = torch.from_numpy(np.ascontiguousarray(array))
    return state


# Boxes.


def encode(torch: Any, boxes: Any, anchors: Any, weights: tuple[float, ...]) -> Any:
    sides, own = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, :2] + 0.5 * own - anchors[:, :2] - 0.5 * sides) / sides
    return torch.cat([shift, torch.log(own / sides)], 1) * torch.tensor(weights)


def decode(torch: Any, deltas: Any, anchors: Any, weights: tuple[float, ...], size: tuple[int, int]) -> Any:
    """Boxes (…, 4) cut at the border of the image."""
    deltas = deltas / torch.tensor(weights)
    sides = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + 0.5 * sides + deltas[..., :2] * sides
    half = 0.5 * sides * torch.exp(deltas[..., 2:].clamp(max=LARGEST_GROWTH))
    boxes = torch.cat([centre - half, centre + half], -1)
    limit = torch.tensor([size[1], size[0], size[1], size[0]], dtype=boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)


def overlaps(torch: Any, a: Any, b: Any) -> Any:
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def suppress(boxes: Array, scores: Array, threshold: float, most: int) -> Array:
    """Rows kept, by falling score: a loop over the boxes kept, each against all that are left."""
    x0, y0, x1, y1 = boxes.T
    areas = (x1 - x0) * (y1 - y0)
    order, kept = np.argsort(-scores, kind="stable"), []
    while order.size and len(kept) < most:
        best, order = order[0], order[1:]
        kept.append(best)
        width = np.minimum(x1[best], x1[order]) - np.maximum(x0[best], x0[order])
        height = np.minimum(y1[best], y1[order]) - np.maximum(y0[best], y0[order])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        order = order[shared <= np.float32(threshold) * (areas[best] + areas[order] - shared)]
    return np.asarray(kept, np.int64)


def shares(counts: list[int], most: int) -> list[int]:
    """How many of each image are taken: the first of every image, then the second, up to so many of all together."""
    turns = sorted((turn, image) for image, count in enumerate(counts) for turn in range(count))[:most]
    return [sum(image == own for _, own in turns) for image in range(len(counts))]


def roi_align(torch: Any, features: Any, boxes: Any, bins: int, scale: float) -> Any:
    """Two samples an axis in each bin, from one map (c, h, w): (p, c, bins, bins)."""
    if not len(boxes):
        return features.new_zeros(0, len(features), bins, bins)
    height, width = features.shape[1:]
    # On a CPU `grid_sample` shares its work by the batch: as many views of the map as there are threads.
    groups = math.gcd(len(boxes), torch.get_num_threads())

    def places(low: Any, high: Any) -> Any:
        steps = (torch.arange(2 * bins) + 0.5) / (2 * bins)
        return low[:, None] + (high - low).clamp(min=1)[:, None] * steps

    x0, y0, x1, y1 = (boxes * scale).unbind(1)
    xs, ys = places(x0, x1), places(y0, y1)
    across, down = xs * (2 / (width - 1)) - 1, ys * (2 / (height - 1)) - 1
    grid = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), -1)
    grid = grid.reshape(groups, -1, 2 * bins, 2)
    views = features.expand(groups, -1, -1, -1)
    sampled = torch.nn.functional.grid_sample(views, grid, padding_mode="border", align_corners=True)
    inside = (ys <= height)[:, :, None] & (xs <= width)[:, None, :]
    if not inside.all():
        # More than one feature outside, where a small box at the border was made one feature wide.
        sampled = sampled * inside.reshape(groups, 1, -1, 2 * bins)
    pooled = torch.nn.functional.avg_pool2d(sampled, 2)
    return pooled.unflatten(2, (-1, bins)).permute(0, 2, 1, 3, 4).flatten(0, 1)


class Detector:
    """The network with what lies between its layers: matching, sampling, suppression and losses."""

    def __init__(self, torch: Any, arrays: Mapping[str, Array], options: Options) -> None:
        self.torch, self.config, self.fill = torch, options["config"], options["fill"]
        self.size = tuple(self.config["image_size"])
        self.anchors = torch.from_numpy(arrays["anchors"])
        self.scale = 1 / self.config["anchors"]["strides"][0]
        self.model = network(torch, self.config)
        missing, unexpected = self.model.load_state_dict(state_dict(torch, arrays), strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise ValueError(f"weights do not fit: missing {missing[:3]}, unexpected {unexpected[:3]}")
        names = ("objectness", "proposal_boxes", "classes", "boxes", "masks")
        self.alpha = {name: torch.nn.Parameter(torch.ones(())) for name in names}

    def match(self, boxes: Any, truth: Any, foreground: float, background: float, low_quality: bool) -> tuple:
        """Row of the truth, whether positive and whether negative."""
        torch = self.torch
        if not len(truth):
            nothing = torch.zeros(len(boxes), dtype=torch.long)
            return nothing, nothing > 0, nothing == 0
        found = overlaps(torch, truth, boxes)
        best, row = found.max(0)
        positive = best >= foreground
        if low_quality:
            positive |= (found == found.max(1, keepdim=True).values).any(0)
        return row, positive, ~positive & (best < background)

    def sample(self, positive: Any, negative: Any, size: int, fraction: float) -> tuple[Any, int]:
        """Rows, positives first, and how many these are."""
        torch = self.torch
        positive, negative = (group.nonzero()[:, 0] for group in (positive, negative))
        first = min(len(positive), int(size * fraction))
        second = min(len(negative), size - first)
        chosen = [positive[torch.randperm(len(positive))[:first]], negative[torch.randperm(len(negative))[:second]]]
        return torch.cat(chosen), first

    def propose(self, objectness: Any, deltas: Any, before: int, after: int) -> list[Any]:
        """Boxes of each image."""
        torch, found = self.torch, []
        for logits, moves in zip(objectness.detach(), deltas.detach(), strict=True):
            logits, rows = logits.topk(min(before, len(logits)))
            boxes = decode(torch, moves[rows], self.anchors[rows], ANCHOR_WEIGHTS, self.size)
            large = ((boxes[:, 2:] - boxes[:, :2]) >= 1e-3).all(1)
            boxes, logits = boxes[large], logits[large]
            kept = suppress(boxes.numpy(), logits.numpy(), self.config["rpn_overlap"], after)
            found.append(boxes[torch.from_numpy(kept)])
        return found

    def regions(self, maps: Any, boxes: list[Any], bins: int) -> Any:
        """Features of the boxes of all images, (p, c, bins, bins)."""
        found = [roi_align(self.torch, one, own, bins, self.scale) for one, own in zip(maps, boxes, strict=True)]
        return self.torch.cat(found)

    def classify(self, maps: Any, vector: Any, boxes: list[Any]) -> tuple[Any, Any]:
        flat = self.regions(maps, boxes, 7).flatten(1)
        if self.config["roi_fusion"]:
            rows = [one.expand(len(own), -1) for one, own in zip(vector, boxes, strict=True)]
            flat = self.torch.cat([flat, self.torch.cat(rows)], 1)
        return self.model.classify(flat)

    def padded(self, rows: Any, size: int) -> Any:
        """So many rows as a program of fixed shapes has, if that is asked for; the first is repeated."""
        missing = size - len(rows) if self.fill else 0
        return self.torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])]) if missing > 0 else rows

    def losses(self, image: Any, clinical: Any, boxes: list[Any], labels: list[Any]) -> dict[str, Any]:
        torch, nn, config = self.torch, self.torch.nn.functional, self.config
        maps, vector = self.model.maps(image, clinical)
        objectness, deltas = self.model.propose_from(maps)

        logits, said, moved, wanted, count = [], [], [], [], 0
        for k, truth in enumerate(boxes):
            row, positive, negative = self.match(
                self.anchors, truth, config["rpn_foreground"], config["rpn_background"], True
            )
            chosen, first = self.sample(positive, negative, config["rpn_batch"], config["rpn_positive"])
            count += len(chosen)
            logits.append(objectness[k, chosen])
            said.append((torch.arange(len(chosen)) < first).float())
            if first:
                moved.append(deltas[k, chosen[:first]])
                own = self.anchors[chosen[:first]]
                wanted.append(encode(torch, truth[row[chosen[:first]]], own, ANCHOR_WEIGHTS))
        losses = {"objectness": nn.binary_cross_entropy_with_logits(torch.cat(logits), torch.cat(said))}
        losses["proposal_boxes"] = self.distance(moved, wanted) / count

        proposals = self.propose(objectness, deltas, config["rpn_before_train"], config["rpn_after_train"])
        rois, kinds, firsts, targets = [], [], [], []
        for own, truth, label in zip(proposals, boxes, labels, strict=True):
            own = torch.cat([own, truth])
            row, positive, negative = self.match(own, truth, config["roi_foreground"], config["roi_background"], False)
            chosen, first = self.sample(positive, negative, config["roi_batch"], config["roi_positive"])
            kind = torch.zeros(len(chosen), dtype=torch.long)
            if first:
                kind[:first] = label[row[chosen[:first]]] + 1
            rois.append(own[chosen])
            kinds.append(kind)
            firsts.append(first)
            targets.append(truth[row[chosen[:first]]])
        sizes = [len(own) for own in rois]
        logits, deltas = self.classify(maps, vector, [self.padded(own, config["roi_batch"]) for own in rois])
        places = self.places(sizes, config["roi_batch"])
        losses["classes"] = nn.cross_entropy(logits[places], torch.cat(kinds))
        own = deltas[places][torch.arange(len(places)), torch.cat(kinds)].split(sizes)
        moved = [one[:first] for one, first in zip(own, firsts, strict=True)]
        pairs = zip(targets, rois, firsts, strict=True)
        wanted = [encode(torch, truth, roi[:first], BOX_WEIGHTS) for truth, roi, first in pairs]
        losses["boxes"] = self.distance(moved, wanted) / len(places)

        few = shares(firsts, config["mask_rois"] * len(firsts))
        several = [roi[:n] for roi, n in zip(rois, few, strict=True)]
        if self.fill:
            missing = config["mask_rois"] * len(firsts) - sum(few)
            several[-1] = torch.cat([several[-1], rois[-1][:1].expand(missing, 4)])
        if not sum(map(len, several)):
            losses["masks"] = maps.sum() * 0
            return losses
        masks = self.model.mask(self.regions(maps, several, 14))
        if not sum(few):
            losses["masks"] = masks.sum() * 0
            return losses
        kinds = torch.cat([kind[:n] for kind, n in zip(kinds, few, strict=True)])
        pairs = zip(targets, rois, few, strict=True)
        filled = torch.cat([self.filled(truth[:n], roi[:n], masks.shape[-1]) for truth, roi, n in pairs])
        own = masks[torch.arange(len(kinds)), kinds]
        losses["masks"] = nn.binary_cross_entropy_with_logits(own, filled)
        return losses

    def places(self, sizes: list[int], padded: int) -> Any:
        """Rows of what was not padded among all."""
        torch = self.torch
        starts = [k * padded for k in range(len(sizes))] if self.fill else np.cumsum([0, *sizes[:-1]]).tolist()
        return torch.cat([torch.arange(start, start + size) for start, size in zip(starts, sizes, strict=True)])

    def distance(self, moved: list[Any], wanted: list[Any]) -> Any:
        """Smooth L1, summed."""
        if not moved:
            return self.torch.zeros(())
        pair = self.torch.cat(moved), self.torch.cat(wanted)
        return self.torch.nn.functional.smooth_l1_loss(*pair, beta=BETA, reduction="sum")

    def filled(self, truth: Any, regions: Any, size: int) -> Any:
        """The truth box as a mask inside a region: the part of each cell that it covers."""

        def covered(low: Any, high: Any, start: Any, end: Any) -> Any:
            extent = ((end - start) / size)[:, None]
            edges = start[:, None] + extent * self.torch.arange(size)
            inside = self.torch.minimum(edges + extent, high[:, None]) - self.torch.maximum(edges, low[:, None])
            return (inside / extent).clamp(0, 1)

        (x0, y0, x1, y1), (left, top, right, bottom) = truth.unbind(1), regions.unbind(1)
        columns, rows = covered(x0, x1, left, right), covered(y0, y1, top, bottom)
        return rows[:, :, None] * columns[:, None]

    def total(self, losses: Mapping[str, Any]) -> Any:
        """Weighted by uncertainties that are trained along, as the authors' code has it."""
        squares = {name: alpha.square() for name, alpha in self.alpha.items()}
        return sum(0.5 * losses[name] / squares[name] + squares[name].log1p() for name in losses)

    def detect(self, image: Any, clinical: Any) -> tuple[Any, list[Any], list[Any], list[Any], Any]:
        """Fused maps; boxes, classes from 0 and scores of each image; masks of all."""
        torch, config = self.torch, self.config
        maps, vector = self.model.maps(image, clinical)
        objectness, deltas = self.model.propose_from(maps)
        proposals = self.propose(objectness, deltas, config["rpn_before"], config["rpn_after"])
        sizes = [len(own) for own in proposals]
        logits, deltas = self.classify(maps, vector, [self.padded(own, config["rpn_after"]) for own in proposals])
        places = self.places(sizes, config["rpn_after"])
        logits, deltas = logits[places].softmax(1).split(sizes), deltas[places].split(sizes)
        found: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        for own, scores, moves in zip(proposals, logits, deltas, strict=True):
            boxes = decode(torch, moves[:, 1:], own[:, None].expand(-1, moves.shape[1] - 1, 4), BOX_WEIGHTS, self.size)
            kind = torch.arange(boxes.shape[1]).expand(len(boxes), -1)
            scores, boxes, kind = scores[:, 1:].flatten(), boxes.flatten(0, 1), kind.flatten()
            good = (scores > config["score_threshold"]) & ((boxes[:, 2:] - boxes[:, :2]) >= 1e-2).all(1)
            scores, boxes, kind = scores[good], boxes[good], kind[good]
            # Boxes of different classes are moved apart.
            apart = (boxes + kind[:, None] * (2.0 * max(self.size))).numpy()
            kept = torch.from_numpy(suppress(apart, scores.numpy(), config["overlap"], config["detections"]))
            for group, values in zip(found, (boxes, kind, scores), strict=True):
                group.append(values[kept])
        boxes, kinds, scores = found
        several = [self.padded(own, config["detections"]) for own in boxes]
        masks = self.model.mask(self.regions(maps, several, 14)) if sum(map(len, several)) else maps.new_zeros(0)
        places = self.places([len(own) for own in boxes], config["detections"])
        masks = masks[places, torch.cat(kinds) + 1].sigmoid() if len(places) else masks
        return maps, boxes, kinds, scores, masks


def detection(torch: Any, device: str, arrays: dict[str, Array], options: dict[str, Any]) -> Work:
    """Work of one mode: "training" (a step of SGD with momentum) or "inference".

    `options` hold the `config` as JSON, the `layout`, and `fill`: whether regions are padded to as many as a program of
    fixed shapes has. Results are, of the first step from the weights given, the losses and the norm of the gradient;
    in inference the fused maps, and boxes, classes and scores of the detections, with rows of -1 where there are fewer.
    """
    if device != "cpu":
        raise ValueError("suppression walks over the boxes kept on the host; this peer is for CPUs.")
    layout = torch.channels_last if options["layout"] == "channels_last" else torch.contiguous_format
    image = torch.from_numpy(np.ascontiguousarray(np.moveaxis(arrays["image"], -1, 1))).to(memory_format=layout)
    clinical = torch.from_numpy(arrays["clinical"])
    detector = Detector(torch, arrays, options)
    detector.model.to(memory_format=layout)
    most = options["config"]["detections"]

    def infer() -> Any:
        with torch.inference_mode():
            return detector.detect(image, clinical)

    def export(found: Any) -> list[Array]:
        maps, parts = found[0], found[1:4]

        def rows(one: Any) -> Array:
            return np.pad(one.numpy(), [(0, most - len(one))] + [(0, 0)] * (one.ndim - 1), constant_values=-1)

        return [np.moveaxis(maps.numpy(), 1, -1), *(np.stack([rows(one) for one in part]) for part in parts)]

    if options["mode"] == "inference":
        detector.model.eval()
        return Work(infer, export)

    there = [torch.from_numpy(valid) for valid in arrays["box_valid"]]
    boxes = [torch.from_numpy(own)[valid] for own, valid in zip(arrays["boxes"], there, strict=True)]
    labels = [torch.from_numpy(own).long()[valid] for own, valid in zip(arrays["classes"], there, strict=True)]
    parameters = [*detector.model.parameters(), *detector.alpha.values()]
    optimiser = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    first: list[Array] = []

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        losses = detector.losses(image, clinical, boxes, labels)
        detector.total(losses).backward()
        if not first:
            squares = sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None)
            first.extend([np.asarray([losses[name].item() for name in detector.alpha]), np.asarray(squares**0.5)])
        optimiser.step()

    return Work(step, lambda _: first)
